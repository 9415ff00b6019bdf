"""NatsStore and SyncNatsStore, beyond what every store does: which buckets they take, loops, threads, forks, ends."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.js import api
from nats.js.errors import APIError

from idempo import Idempotency, Key, RecordError, ResultLostError, State, StoreError, StoreFullError
from idempo.stores import _loop_thread
from idempo.stores._nats_bucket import failed
from idempo.stores.nats import NatsStore, SyncNatsStore
from tests.forked import in_child
from tests.servers.fixtures import Servers
from tests.servers.proxy import Proxy

KEY = Key("billing", "order-42")
DAY = 24 * 60 * 60.0


def prefix() -> str:
    return f"test.{secrets.token_hex(6)}."


def name() -> str:
    return f"test-{secrets.token_hex(6)}"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    client = await nats.connect(url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


async def a_bucket(js: Any, bucket: str, **changes: Any) -> Any:
    """Make a bucket of other settings than those that are right."""
    config: dict[str, Any] = {
        "max_msgs_per_subject": 1,
        "storage": api.StorageType.FILE,
        "discard": api.DiscardPolicy.NEW,
        "allow_msg_ttl": True,
        "allow_rollup_hdrs": True,
    }
    await js.add_stream(api.StreamConfig(name=f"KV_{bucket}", subjects=[f"$KV.{bucket}.>"], **config | changes))
    return await js.key_value(bucket)


async def claim(store: Any, owner: str = "owner-a", *, key: Key = KEY, ttl: float = 1000.0) -> Any:
    return await store.claim(key, owner=owner, fingerprint=b"\x01payload", lease=15.0, ttl=ttl)


# Buckets


def test_a_bucket_that_would_lose_records_is_refused(nats_url: str) -> None:
    """Behaviour 50: before anything is claimed, with what to do about it; and once it is mended, it is taken."""

    async def scenario() -> None:
        async with connected(nats_url) as js:
            for changes, what in (
                ({"max_msgs_per_subject": 5}, "history"),
                ({"storage": api.StorageType.MEMORY}, "kept in memory"),
                ({"max_bytes": 100_000, "discard": api.DiscardPolicy.OLD}, "discard policy"),
                ({"max_msgs": 10, "discard": api.DiscardPolicy.OLD}, "discard policy"),
                ({"allow_msg_ttl": False}, "allow_msg_ttl"),
            ):
                store = NatsStore(await a_bucket(js, name(), **changes))
                for _ in range(2):
                    with pytest.raises(StoreError, match=what):
                        await claim(store)
            bucket = name()
            store = NatsStore(await a_bucket(js, bucket, allow_msg_ttl=False))
            with pytest.raises(StoreError):
                await claim(store)
            config = (await js.stream_info(f"KV_{bucket}")).config
            config.max_age = 2 * DAY
            await js.update_stream(config)
            assert (await claim(store)).acquired

    asyncio.run(scenario())


@pytest.mark.parametrize("ttls", [True, False])
def test_a_bucket_with_a_ttl_keeps_nothing_for_longer(nats_url: str, *, ttls: bool) -> None:
    """What is to be remembered for longer is refused, at the claim: nothing ran."""

    async def scenario() -> None:
        async with connected(nats_url) as js:
            store = NatsStore(await a_bucket(js, name(), allow_msg_ttl=ttls, max_age=DAY, duplicate_window=60))
            with pytest.raises(StoreError, match="forgets everything after 86400 seconds"):
                await claim(store, ttl=DAY)
            assert (await claim(store, ttl=DAY - 15)).acquired
            assert await store.complete(KEY, owner="owner-a", outcome=b"", ttl=100.0)
            bucket = await store._lazy.opened()
            kept = await js.get_last_msg(bucket.stream, bucket.subject(store._book.name(KEY)))
            assert kept.headers.get("Nats-TTL") == ("100s" if ttls else None)  # or else as long as all of them
            assert await store.delete(KEY)
            assert (await claim(store)).acquired

    asyncio.run(scenario())


def test_a_bucket_is_made_once_by_however_many(nats_url: str) -> None:
    """Behaviour 53: many times, at once, and one that is there with other settings stays as it is."""

    async def scenario() -> None:
        async with connected(nats_url) as js, connected(nats_url) as other:
            bucket = name()
            made = await asyncio.gather(*(NatsStore.create_bucket(each, bucket) for each in (js, other) * 4))
            assert (await claim(NatsStore(made[0]))).acquired
            limited = await NatsStore.create_bucket(js, bucket, max_bytes=10_000)
            assert (await limited.status()).stream_info.config.max_bytes == -1
            assert not (await claim(NatsStore(limited), "owner-b")).acquired
            with pytest.raises(StoreError, match="refused"):
                await NatsStore.create_bucket(js, name(), replicas=3)  # a server alone

    asyncio.run(scenario())


def test_a_bucket_that_is_not_there_is_told(nats_url: str) -> None:
    """Where it is not to be made; and one whose stream is gone is no empty one."""

    async def scenario() -> None:
        store = NatsStore.at(nats_url, name(), create=False)
        with pytest.raises(StoreError, match="create_bucket"):
            await claim(store)
        async with connected(nats_url) as js:
            bucket = name()
            store = NatsStore(await NatsStore.create_bucket(js, bucket), timeout=0.5)
            assert (await claim(store)).acquired
            await js.delete_key_value(bucket)
            with pytest.raises(StoreError, match="stream not found"):
                await store.get(KEY)
            with pytest.raises(StoreError):
                await store.renew(KEY, owner="owner-a", lease=15.0, ttl=100.0)

    asyncio.run(scenario())


def test_a_full_bucket_refuses_the_claim(nats_url: str) -> None:
    """Behaviour 49: nothing runs. What is held is completed once there is room again, no sooner."""

    async def scenario() -> None:
        async with connected(nats_url) as js:
            store = NatsStore(await NatsStore.create_bucket(js, name(), max_bytes=8_000))
            assert (await claim(store)).acquired
            guard = Idempotency(store, namespace="billing")
            ran = 0

            async def effect() -> None:
                nonlocal ran
                ran += 1

            for number in range(100):
                try:
                    await claim(store, key=Key("billing", str(number)))
                except StoreFullError:
                    break
            with pytest.raises(StoreFullError, match="maximum bytes"):
                await guard.run_async("another", effect)
            assert ran == 0
            with pytest.raises(StoreFullError):
                await store.complete(KEY, owner="owner-a", outcome=b"x" * 4000, ttl=100.0)
            for number in range(3):  # what expires makes room as well
                await js.purge_stream(
                    store._lazy._opener._bucket._stream,
                    subject=f"$KV.*.{store._book.name(Key('billing', str(number)))}",
                )
            assert await store.complete(KEY, owner="owner-a", outcome=b"kept", ttl=100.0)

    asyncio.run(scenario())


def test_what_a_client_of_another_kind_deleted_is_absent(nats_url: str) -> None:
    """A mark of deletion is no record: neither one of nats-py's, nor what a server puts where a record expired."""

    async def scenario() -> None:
        async with connected(nats_url) as js:
            bucket = await NatsStore.create_bucket(js, name())
            store = NatsStore(bucket)
            first = await claim(store)
            for remove in (bucket.delete, bucket.purge):
                await remove(store._book.name(KEY))
                assert await store.get(KEY) is None
                assert not await store.delete(KEY)
                again = await claim(store)
                assert (again.acquired, again.record.attempt) == (True, 1)
                assert again.record.token > first.record.token
                first = again

    asyncio.run(scenario())


def test_a_record_that_cannot_be_read_is_removed_by_a_plain_delete(nats_url: str) -> None:
    """Behaviour 35: by nothing else; and what is removed meanwhile by another is not removed again."""

    async def scenario() -> None:
        async with connected(nats_url) as js:
            bucket = await NatsStore.create_bucket(js, name())
            store = NatsStore(bucket)
            await bucket.put(store._book.name(KEY), b"not a record")
            with pytest.raises(RecordError):
                await claim(store)
            assert await store.delete(KEY)
            assert not await store._backend.delete(store._book.name(KEY))
            assert not await store.delete(KEY)
            assert (await claim(store)).acquired

    asyncio.run(scenario())


# What it costs


def test_what_a_call_costs(nats_url: str) -> None:
    """Behaviour 46: a claim two round trips, its end one, a replay one."""
    parts = urlsplit(nats_url)
    assert parts.hostname is not None

    async def scenario(port: int, proxy: Proxy) -> list[int]:
        store = NatsStore.at(f"nats://127.0.0.1:{port}", "costs", prefix=prefix())
        guard = Idempotency(store, namespace="billing")

        async def place(order: str) -> str:
            return order.upper()

        await guard.run_async("the first connects, and looks at the bucket", place, "x")
        counted = []
        for _ in range(2):
            proxy.reset_counts()
            assert await guard.run_async("order-42", place, "placed") == "PLACED"
            counted.append(proxy.round_trips)
        await store.aclose()
        return counted

    with Proxy(parts.hostname, parts.port or 4222) as proxy:
        assert asyncio.run(scenario(proxy.port, proxy)) == [3, 1]


def test_a_result_that_is_too_large_is_lost_and_runs_once(nats_url: str) -> None:
    """Behaviour 31: a policy allows 1 MiB, and a message takes a little less: no outcome is offered in vain."""
    with SyncNatsStore(nats_url, prefix=prefix()) as store:
        guard = Idempotency(store, namespace="billing")
        large = "x" * 1_000_100
        assert guard.run("order-42", str, large) == large
        with pytest.raises(ResultLostError, match="the store takes 1000000 at most"):
            guard.run("order-42", str, large)
        other = Key("billing", "order-43")
        assert store.claim(other, owner="owner-a", fingerprint=None, lease=15.0, ttl=100.0).acquired
        with pytest.raises(StoreError, match="MaxPayload"):
            store.complete(other, owner="owner-a", outcome=b"x" * (2 << 20), ttl=100.0)


# Arguments


def test_bad_arguments_are_refused_before_anything_is_sent(nats_url: str) -> None:
    """Typed, with what is meant."""
    nowhere = "nats://127.0.0.1:1"
    with pytest.raises(TypeError, match="bucket must be a key-value bucket"):
        NatsStore(nowhere)  # type: ignore[arg-type]
    for make in (NatsStore.at, SyncNatsStore):
        for options, error in (
            ({"prefix": "has a space"}, ValueError),
            ({"prefix": "star*"}, ValueError),
            ({"prefix": ".first"}, ValueError),
            ({"prefix": "two..dots"}, ValueError),
            ({"prefix": "x" * 101}, ValueError),
            ({"prefix": b"bytes"}, TypeError),
            ({"largest_outcome": 0}, ValueError),
            ({"largest_outcome": True}, TypeError),
            ({"timeout": 0}, ValueError),
            ({"timeout": "soon"}, TypeError),
            ({"max_watched": 0}, ValueError),
            ({"create": "no"}, TypeError),
            ({"replicas": True}, TypeError),
            ({"replicas": 0}, ValueError),
            ({"clock": 3}, TypeError),
        ):
            with pytest.raises(error):
                make(nowhere, **options)  # type: ignore[arg-type]
        make(nowhere, prefix="x" * 100, timeout=timedelta(seconds=1))
        make([nowhere], prefix="")


# Event loops


def test_each_event_loop_has_a_connection_of_its_own(nats_url: str) -> None:
    """Behaviour 42: the same store serves one loop after another; a user's own bucket serves its own loop only."""
    store = NatsStore.at(nats_url, prefix=prefix())
    taken = []

    async def scenario() -> None:
        async with store:
            taken.append((await claim(store)).acquired)
        taken.append((await claim(store)).acquired)  # after a close, by a new connection: the same owner's
        await store.aclose()
        await store.aclose()

    for _ in range(2):
        asyncio.run(scenario())
    assert taken == [True] * 4

    async def own() -> NatsStore:
        async with connected(nats_url) as js:
            theirs = NatsStore(await NatsStore.create_bucket(js, "own"), prefix=prefix())
            assert (await claim(theirs)).acquired
            await theirs.aclose()  # closes nothing of the user's
            assert (await claim(theirs)).acquired
        return theirs

    theirs = asyncio.run(own())
    with pytest.raises(StoreError, match="another event loop"):
        asyncio.run(claim(theirs))


def test_many_who_come_at_once_share_one_connection(nats_url: str) -> None:
    """And one that is cancelled while it connects leaves it to the others."""
    parts = urlsplit(nats_url)
    assert parts.hostname is not None

    async def scenario(proxy: Proxy) -> None:
        store = NatsStore.at(f"nats://127.0.0.1:{proxy.port}", prefix=prefix())
        first = asyncio.ensure_future(claim(store))
        others = [asyncio.ensure_future(claim(store, key=Key("billing", str(number)))) for number in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        assert all(claim.acquired for claim in await asyncio.gather(*others))
        assert proxy.connections == 1
        await store.aclose()
        closing = asyncio.ensure_future(claim(store))
        await asyncio.sleep(0)
        await store.aclose()
        with pytest.raises(StoreError, match="closed while it connected"):
            await closing

    with Proxy(parts.hostname, parts.port or 4222) as proxy:
        asyncio.run(scenario(proxy))


def test_a_server_that_is_not_there_is_a_store_error_in_bounded_time(servers: Servers) -> None:
    """Behaviours 32, 48: at the first use, and after it; and when it is there, all is well."""
    server = servers.nats()
    with SyncNatsStore(server.url, timeout=0.6) as store:
        server.kill()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(StoreError):
                store.get(KEY)
        server.start()
        assert store.get(KEY) is None
        server.kill()
        with pytest.raises(StoreError):
            store.get(KEY)
        with pytest.raises(StoreError), store.watch(KEY, lambda: None):
            pass
        assert time.monotonic() - began < 15
        server.start()
        deadline = time.monotonic() + 20
        while True:
            try:
                assert store.get(KEY) is None
                break
            except StoreError:
                assert time.monotonic() < deadline


def test_an_error_that_nobody_waits_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The call that connected has been cancelled: nothing else is to be said of it."""

    async def scenario() -> None:
        store = NatsStore.at("nats://127.0.0.1:1", timeout=0.2)
        call = asyncio.ensure_future(claim(store))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0.5)
        await store.aclose()

    asyncio.run(scenario())
    gc.collect()
    assert [record for record in caplog.records if "never retrieved" in record.getMessage()] == []


def test_calls_that_wait_for_one_connection_name_their_own_key_when_it_fails() -> None:
    """Behaviour 32: it fails them all, at once."""
    keys = [Key("billing", str(number)) for number in range(3)]

    async def scenario() -> list[Any]:
        store = NatsStore.at("nats://127.0.0.1:1", timeout=0.2)
        return await asyncio.gather(*(claim(store, key=key) for key in keys), return_exceptions=True)

    errors = asyncio.run(scenario())
    assert [type(error) for error in errors] == [StoreError] * 3
    assert [error.key for error in errors] == keys


# The thread of plain calls


def threads() -> int:
    return sum(thread.name == "idempo-nats" for thread in threading.enumerate())


def test_the_thread_ends_with_the_store(nats_url: str) -> None:
    """By `close`, more than once, and when nobody has the store any more; then calls are errors."""
    before = threads()
    store = SyncNatsStore(nats_url, prefix=prefix())
    assert threads() == before
    store.close()  # before there is one
    with pytest.raises(StoreError, match="closed"):
        store.get(KEY)
    store = SyncNatsStore(nats_url, prefix=prefix())
    assert store.get(KEY) is None
    assert threads() == before + 1
    store.close()
    store.close()
    assert threads() == before
    with pytest.raises(StoreError, match="closed"):
        store.get(KEY)
    store = SyncNatsStore(nats_url, prefix=prefix())
    assert store.get(KEY) is None
    del store
    gc.collect()
    assert threads() == before


def test_a_forked_child_has_a_thread_and_a_connection_of_its_own(nats_url: str) -> None:
    """Behaviour 43: it claims and is refused as any other process; its parent's claim stands."""
    with SyncNatsStore(nats_url, prefix=prefix()) as store:
        assert store.claim(KEY, owner="owner-a", fingerprint=None, lease=60.0, ttl=100.0).acquired

        def child() -> None:
            mine = Key("child", "1")
            assert store.claim(mine, owner="owner-c", fingerprint=None, lease=60.0, ttl=100.0).acquired
            assert not store.claim(KEY, owner="owner-b", fingerprint=None, lease=60.0, ttl=100.0).acquired
            assert _loop_thread._of_parents != []
            store.close()

        in_child(child)
        in_child(store.close)  # of what it has not used, a child closes nothing
        in_child(store._thread._end)  # nor at its end
        assert store.complete(KEY, owner="owner-a", outcome=b"parent", ttl=100.0)


def test_a_call_that_is_interrupted_is_given_up(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 30: its coroutine is cancelled, and the next call is served."""
    with SyncNatsStore(nats_url, prefix=prefix()) as store:
        assert store.get(KEY) is None
        begun, cancelled = threading.Event(), threading.Event()

        async def hang(_: str) -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        monkeypatch.setattr(store._store._lazy, "get", hang)
        interrupting = threading.Thread(
            target=lambda: (begun.wait(20), signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
        )
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            store.get(KEY)
        interrupting.join()
        assert cancelled.wait(20)
        monkeypatch.undo()
        assert store.get(KEY) is None


def test_a_call_that_hangs_is_given_up_in_time(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever hangs: no call of a store blocks without bound. What a coroutine itself raises is not taken for that."""
    with SyncNatsStore(nats_url, prefix=prefix(), timeout=0.1) as store:

        async def hang(_: str) -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr(store._store._lazy, "get", hang)
        with pytest.raises(StoreError, match=r"no answer within 0\.6 seconds"):
            store.get(KEY)

        async def fail() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            store._thread.run(fail())


def test_a_call_is_over_when_its_store_is_closed(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread: a typed error, at once."""
    store = SyncNatsStore(nats_url, prefix=prefix())
    assert store.get(KEY) is None
    begun = threading.Event()

    async def hang(_: str) -> None:
        begun.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(store._store._lazy, "get", hang)
    closing = threading.Thread(target=lambda: (begun.wait(20), store.close()))
    closing.start()
    with pytest.raises(StoreError, match="closed meanwhile"):
        store.get(KEY)
    closing.join()


# Waiting


def test_a_waiter_in_another_client_is_woken(nats_url: str) -> None:
    """Behaviour 13: by the notification, long before its next look."""
    mine = prefix()
    with SyncNatsStore(nats_url, prefix=mine) as store, SyncNatsStore(nats_url, prefix=mine) as other:
        running, woken = threading.Event(), []
        release = threading.Event()

        def effect() -> str:
            running.set()
            assert release.wait(20)
            return "done"

        holder = threading.Thread(target=lambda: Idempotency(store, namespace="n").run("k", effect))
        holder.start()
        assert running.wait(20)
        entered = threading.Event()
        plain: Callable[..., Any] = other.watch

        def watch(key: Key, wake: Callable[[], None]) -> Any:
            def told() -> None:
                woken.append(time.monotonic())
                wake()

            entered.set()
            return plain(key, told)

        other.watch = watch  # type: ignore[method-assign,assignment]
        waiter: list[Any] = []
        waiting = threading.Thread(target=lambda: waiter.append(Idempotency(other, namespace="n").run("k", effect)))
        waiting.start()
        assert entered.wait(20)
        release.set()
        holder.join()
        waiting.join()
        assert waiter == ["done"]
        record = other.get(Key("n", "k"))
        assert record is not None
        assert record.state is State.COMPLETED


def test_what_the_server_says_is_told_without_the_servers_address() -> None:
    """Nothing that a URL may hold stands in an error."""
    full = failed(APIError(code=503, err_code=10077, description="maximum bytes exceeded"))
    assert isinstance(full, StoreFullError)
    assert "10077" in str(full)
    assert type(failed(OSError("connection refused"))) is StoreError


RIGHTS = """
accounts {{
  app {{
    jetstream: enabled
    users: [
      {{ user: owner, password: owner }}
      {{ user: app, password: app, permissions: {{
        publish: ["$KV.shop.mine.>", "$JS.API.STREAM.INFO.KV_shop", "$JS.API.STREAM.MSG.GET.KV_shop"{more}]
        subscribe: ["_INBOX.>"]
      }} }}
    ]
  }}
}}
"""


@pytest.mark.parametrize("watches", [True, False])
def test_few_rights_are_enough(servers: Servers, tmp_path: Path, *, watches: bool) -> None:
    """To write the bucket, to read it, and to look at its settings; to be told of changes takes one more."""
    more = ', "$JS.API.CONSUMER.CREATE.KV_shop"' if watches else ""
    config = tmp_path / "nats.conf"
    config.write_text(RIGHTS.format(more=more))
    server = servers.nats("-c", str(config))
    with SyncNatsStore(server.url, "shop", connect={"user": "owner", "password": "owner"}) as store:
        assert store.get(KEY) is None
    mine = {"user": "app", "password": "app"}
    with SyncNatsStore(server.url, "shop", prefix="mine.", connect=mine, timeout=1.0) as store:
        guard = Idempotency(store, namespace="n")
        assert guard.run("k", lambda: "first") == "first"
        assert guard.run("k", pytest.fail) == "first"
        assert guard.forget("k")
        if watches:
            with store.watch(KEY, lambda: None):
                pass
        else:
            with pytest.raises(StoreError), store.watch(KEY, lambda: None):
                pass
    with SyncNatsStore(server.url, "shop", prefix="theirs.", connect=mine, timeout=0.5) as store:
        with pytest.raises(StoreError):
            Idempotency(store, namespace="n").run("k", pytest.fail)


# What is wrong, when a store is made


@pytest.mark.parametrize("make", [NatsStore.at, SyncNatsStore])
def test_servers_and_buckets_that_cannot_be_are_refused_at_once(make: Callable[..., Any]) -> None:
    """Not by the first call."""
    for bucket in ("bad name", "a/b", "a.b", "", "a*"):
        with pytest.raises(ValueError, match="bucket must be letters, digits, - and _"):
            make("nats://localhost", bucket)
    with pytest.raises(TypeError, match="bucket must be a name, not int"):
        make("nats://localhost", 5)
    for servers in (5, [], [5], b"nats://localhost"):
        with pytest.raises(TypeError, match="servers must be a URL, or several in a list"):
            make(servers)


def test_a_store_is_shown_by_its_bucket_and_prefix() -> None:
    """Not by its servers, whose URLs may hold a password."""
    servers = "nats://user:secret@localhost"
    assert repr(NatsStore.at(servers)) == "NatsStore('idempo', prefix='idempo.')"
    with SyncNatsStore(servers, "orders") as store:
        assert repr(store) == "SyncNatsStore('orders', prefix='idempo.')"


def test_what_cannot_be_reached_is_told_with_its_address_and_the_reason() -> None:
    """A refused port, an unknown name and a silent server are three things; a password is shown of none."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for where, why in (
            ("127.0.0.1:1", "connection refused"),
            ("255.255.255.255:4222", "Network is unreachable"),  # TCP has no broadcasts
            ("no-such-host.invalid:4222", "unknown host|no answer within 2 seconds"),
            (f"127.0.0.1:{port}", "no answer within 2 seconds"),
        ):
            store = SyncNatsStore(f"nats://user:secret@{where}", timeout=2)
            with store, pytest.raises(StoreError, match=f": NATS cannot be reached at {where}: ({why})$"):
                store.get(KEY)
