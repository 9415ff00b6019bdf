"""NatsStore after nats-py has closed its connection for good: the next call opens another, but not too often."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from idempo import Key, StoreError
from idempo.records import Claim
from idempo.stores._nats_opening import LazyBucket
from idempo.stores.nats import NatsStore, SyncNatsStore
from tests.kv_support import KEY, PATIENCE, claim
from tests.servers.fixtures import Servers

HASTY: dict[str, Any] = {"max_reconnect_attempts": 1, "reconnect_time_wait": 0.01}


def gave_up() -> tuple[threading.Event, dict[str, Any]]:
    """Return what is set when nats-py closes a connection that soon gives up, and the options for that."""
    told = threading.Event()

    async def closed() -> None:
        told.set()

    return told, {**HASTY, "closed_cb": closed}


def test_a_connection_that_gave_up_is_opened_anew(servers: Servers) -> None:
    """Behaviours 32, 48: while there is no server, calls are refused; with one, the next is served, and knows all."""
    server = servers.nats()
    told, options = gave_up()
    with SyncNatsStore(server.url, connect=options, timeout=5) as store:
        held = claim(store)
        server.stop()
        assert told.wait(PATIENCE)
        with pytest.raises(StoreError):
            store.get(KEY)
        server.start()
        record = store.get(KEY)
        assert record is not None
        assert record.token == held.record.token
        assert claim(store, "owner-b", key=Key("n", "another")).acquired


def test_a_connection_that_gave_up_is_opened_anew_by_coroutines(servers: Servers) -> None:
    """Behaviours 32, 48: as above, by however many at once; and what was closed by the user is as well."""
    server = servers.nats()
    told, options = gave_up()

    async def taken(store: NatsStore, value: str) -> Claim:
        return await store.claim(Key("n", value), owner="ann", fingerprint=None, lease=60.0, ttl=60.0)

    async def scenario() -> None:
        store = NatsStore.at(server.url, connect=options, timeout=5)
        assert (await taken(store, "first")).acquired
        await asyncio.to_thread(server.stop)
        assert await asyncio.to_thread(told.wait, PATIENCE)
        with pytest.raises(StoreError):
            await store.get(KEY)
        await asyncio.to_thread(server.start)
        claims = await asyncio.gather(*(taken(store, str(number)) for number in range(10)))
        assert all(each.acquired for each in claims)
        await store.aclose()
        assert await store.get(Key("n", "first")) is not None
        await store.aclose()

    asyncio.run(scenario())


def test_a_connection_whose_user_was_thrown_out_is_opened_anew(servers: Servers, tmp_path: Path) -> None:
    """Behaviour 48: nats-py gives up where the server takes back the leave; given it again, the next call is served."""
    file = tmp_path / "users.conf"

    def allow(name: str) -> None:
        file.write_text(f"authorization {{ users = [{{user: {name}, password: secret}}] }}\n")

    allow("ann")
    server = servers.nats("-c", str(file))
    told, options = gave_up()
    # One try each: of those that the server refuses, nats-py leaves all connections open but the last.
    options |= {"allow_reconnect": False, "user": "ann", "password": "secret"}
    with SyncNatsStore(server.url, connect=options, timeout=5) as store:
        assert claim(store).acquired
        allow("bob")
        server.restart()
        assert told.wait(PATIENCE)
        with pytest.raises(StoreError):
            store.get(KEY)
        allow("ann")
        server.restart()
        assert store.get(KEY) is not None


class Failing:
    """Opens nothing, and notes when it was asked to."""

    name = "nowhere"

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def open(self) -> Any:
        self.asked.append(asyncio.get_running_loop().time())
        raise StoreError("no server")

    def is_over(self, bucket: Any) -> bool:
        raise NotImplementedError

    async def close(self, bucket: Any) -> None:
        raise NotImplementedError


@pytest.mark.realtime
def test_connections_are_opened_no_more_often_than_four_times_a_second() -> None:
    """Behaviour 48: a hundred calls that all fail at once are no hundred connections."""
    opener = Failing()

    async def scenario() -> None:
        lazy = LazyBucket(opener, 1.0)
        for _ in range(3):
            answers = await asyncio.gather(*(lazy.get("key") for _ in range(100)), return_exceptions=True)
            assert all(isinstance(answer, StoreError) for answer in answers)

    asyncio.run(scenario())
    assert len(opener.asked) == 3
    assert all(later - earlier > 0.24 for earlier, later in zip(opener.asked, opener.asked[1:], strict=False))
