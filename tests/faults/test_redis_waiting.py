"""Calls that wait for news from a Redis server: connections that break, news that is lost, processes that fork."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from idempo import Idempotency, StoreError, decisions
from idempo.stores import _redis_listening as listening
from idempo.stores.redis import AsyncRedisStore, RedisStore
from tests.forked import in_child
from tests.redis_support import HAS_RETRIES, PATIENCE, PATIENT, claimed, key, new_prefix, until
from tests.servers.fixtures import Servers
from tests.servers.proxy import Proxy


@pytest.fixture
def prefix() -> str:
    return new_prefix()


@pytest.fixture
def beside(redis_url: str, prefix: str) -> Iterator[RedisStore]:
    """The same records, by a way that does not fail."""
    with redis.Redis.from_url(redis_url) as client, RedisStore(client, prefix=prefix) as store:
        yield store


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    parts = urlsplit(redis_url)
    assert parts.hostname
    with Proxy(parts.hostname, parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: Proxy, prefix: str) -> Iterator[RedisStore]:
    with redis.Redis(port=proxy.port, **PATIENT) as client, RedisStore(client, prefix=prefix) as store:
        yield store


def listeners(store: RedisStore) -> int:
    return int(store._listener._thread is not None)


def change(store: RedisStore, name: str = "order-42") -> None:
    store.delete(key(name))
    assert claimed(store, key(name)).acquired


def test_many_who_wait_share_one_connection(proxy: Proxy, store: RedisStore, beside: RedisStore) -> None:
    """Behaviour 19: and each hears of its own key only."""
    claimed(store, key("warm"))
    with store.watch(key("warm"), lambda: None):  # the listener, and what it is called by, are connected
        before = proxy.connections
        barrier = threading.Barrier(9)

        def wait(number: int) -> bool:
            woken = threading.Event()
            with store.watch(key(f"order-{number % 4}"), woken.set):
                barrier.wait(PATIENCE)
                assert woken.wait(PATIENCE)
            return True

        quiet = threading.Event()
        with ThreadPoolExecutor(8) as pool, store.watch(key("quiet"), quiet.set):
            waiting = [pool.submit(wait, number) for number in range(8)]
            barrier.wait(PATIENCE)
            for number in range(4):
                change(beside, f"order-{number}")
            assert all(one.result(PATIENCE) for one in waiting)
            assert not quiet.is_set()
    assert proxy.connections - before <= 8  # those by which eight threads at once ask the server


def test_after_its_connection_broke_everybody_looks_again(proxy: Proxy, store: RedisStore, beside: RedisStore) -> None:
    """Behaviour 19: news may have been lost meanwhile; then it goes on as before."""
    woken = threading.Event()
    with store.watch(key(), woken.set):
        proxy.cut()
        assert woken.wait(PATIENCE)
        if HAS_RETRIES:  # else the connection is lost for good, and the next who comes makes another
            assert listeners(store) == 1
            woken.clear()
            change(beside)
            assert woken.wait(PATIENCE)


def test_where_the_way_stays_cut_those_who_wait_poll(
    proxy: Proxy, store: RedisStore, beside: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour 19: they are woken, who comes next is refused at once, and after a while it is tried again."""
    monkeypatch.setattr(listening, "TICK", 0.01)
    store._client.connection_pool.disconnect()
    woken = threading.Event()
    store._client.set_retry(Retry(NoBackoff(), 0))
    with store.watch(key(), woken.set):
        proxy.refuse()
        assert woken.wait(PATIENCE)
        until(lambda: listeners(store) == 0)
        with pytest.raises(StoreError, match="polls"), store.watch(key(), woken.set):
            pytest.fail("the connection was lost a moment ago")
        proxy.accept()
        store._listener._state.down_until = 0.0
        woken.clear()
        with store.watch(key(), woken.set):
            change(beside)
            assert woken.wait(PATIENCE)


@pytest.mark.realtime
def test_a_call_whose_news_was_lost_is_woken_by_its_poll(servers: Servers) -> None:
    """Behaviour 19: the holder's user may not publish, and so nobody is told."""
    server = servers.redis()
    with redis.Redis(port=server.port) as client, RedisStore(client) as store:
        client.execute_command("ACL", "SETUSER", "silent", "on", ">secret", "~*", "resetchannels", "+@all")
        with redis.Redis(port=server.port, username="silent", password="secret") as other:
            holder = RedisStore(other)
            claimed(holder, key())
            with ThreadPoolExecutor(1) as pool:
                waiter = pool.submit(Idempotency(store, namespace="redis", wait=20).run, "order-42", pytest.fail)
                until(lambda: store._listener._state.subscriptions)
                outcome = guard_outcome(client)
                assert holder.complete(key(), owner="owner-a", outcome=outcome, ttl=60)
                assert waiter.result(PATIENCE) == "placed"


def guard_outcome(client: redis.Redis) -> bytes:
    """Return an outcome as a guard stores it."""
    store = RedisStore(client, prefix=new_prefix())
    Idempotency(store, namespace="redis").run("order-42", lambda: "placed")
    record = store.get(key())
    assert record is not None
    assert record.outcome is not None
    return record.outcome


def test_a_call_in_another_process_is_waited_for_by_news(
    beside: RedisStore, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 1, 13: the waiter goes on by what it is told, for it polls never here."""
    monkeypatch.setattr(decisions, "_WATCHED_POLL", 1000.0)
    holder = Idempotency(beside, namespace="redis", lease=1000)

    def body() -> str:
        until(lambda: store._listener._state.subscriptions)
        return "placed"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(holder.run, "order-42", body)
        until(lambda: beside.get(key()))
        patient = Idempotency(store, namespace="redis", wait=4 * PATIENCE)
        second = pool.submit(patient.run, "order-42", pytest.fail)
        assert (first.result(PATIENCE), second.result(PATIENCE)) == ("placed", "placed")


def test_a_server_that_does_not_confirm_is_not_waited_for(
    servers: Servers, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 19, 48: a bounded time, then the call polls."""
    monkeypatch.setattr(listening, "PATIENCE", 0.05)
    server = servers.redis()
    with redis.Redis(port=server.port, socket_timeout=0.1) as client:
        store = RedisStore(client, prefix=prefix)
        client.ping()
        server.pause()
        try:
            with pytest.raises(StoreError, match="polls"), store.watch(key(), lambda: None):
                pytest.fail("nobody confirmed it")
        finally:
            server.resume()
        store.close()
        assert listeners(store) == 0
    server.pause()

    async def main() -> None:
        async with redis.asyncio.Redis(port=server.port, socket_timeout=0.1) as client:
            with pytest.raises(StoreError, match="polls"):
                async with AsyncRedisStore(client, prefix=prefix).watch(key(), lambda: None):
                    pytest.fail("nobody confirmed it")

    try:
        asyncio.run(main())
    finally:
        server.resume()


def test_a_listener_that_nobody_needs_ends(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its connection goes back; the next who waits starts another."""
    monkeypatch.setattr(listening, "IDLE", 0.0)
    monkeypatch.setattr(listening, "TICK", 0.01)
    for _ in range(2):
        with store.watch(key(), lambda: None):
            assert listeners(store) == 1
        until(lambda: listeners(store) == 0)
    store.close()  # there is nothing to close, which is no error


def test_a_closed_store_has_no_listener_and_can_be_used_on(store: RedisStore, beside: RedisStore) -> None:
    """`close` gives the connection back at once, and wakes who waits."""
    woken = threading.Event()
    with store.watch(key(), woken.set):
        store.close()
        assert listeners(store) == 0
        assert woken.is_set()
    with store.watch(key(), woken.set):
        woken.clear()
        change(beside)
        assert woken.wait(PATIENCE)


def test_channels_that_nobody_waits_at_are_left(store: RedisStore, beside: RedisStore) -> None:
    """However many keys were waited for, the server remembers few."""
    names = [f"order-{number}" for number in range(20)]
    for name in names:
        with store.watch(key(name), lambda: None):
            pass
    with store.watch(key(), lambda: None):
        prefix = f"{store.prefix}*"
        until(lambda: len(beside._client.pubsub_channels(prefix)) <= 2)  # its own, and the one waited at


def test_a_forked_child_listens_by_itself(store: RedisStore, beside: RedisStore) -> None:
    """Behaviour 43: while the parent's listener goes on."""
    woken = threading.Event()
    with store.watch(key(), woken.set):

        def child() -> None:
            assert listeners(store) == 0
            heard = threading.Event()
            with store.watch(key("child"), heard.set):
                change(store, "child")
                assert heard.wait(PATIENCE)
            store.close()

        in_child(child)
        assert listeners(store) == 1
        change(beside)
        assert woken.wait(PATIENCE)


def test_coroutines_share_one_connection_and_leave_nothing(proxy: Proxy, prefix: str, beside: RedisStore) -> None:
    """Behaviour 19: no task and no connection outlives the loop, though nobody closed the store."""

    async def main() -> None:
        async with redis.asyncio.Redis(port=proxy.port) as client:
            store = AsyncRedisStore(client, prefix=prefix)
            first, second = asyncio.Event(), asyncio.Event()
            async with store.watch(key(), first.set), store.watch(key("other"), second.set):
                await asyncio.to_thread(change, beside)
                await asyncio.wait_for(first.wait(), PATIENCE)
                assert not second.is_set()
                proxy.cut()
                await asyncio.wait_for(second.wait(), PATIENCE)
                if HAS_RETRIES:
                    second.clear()
                    await asyncio.to_thread(change, beside, "other")
                    await asyncio.wait_for(second.wait(), PATIENCE)

    asyncio.run(main())
    gc.collect()  # what was left would warn of itself


def test_an_event_loops_listener_ends_when_idle_or_closed(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it failed, who comes next is refused for a while. A closed loop's is forgotten."""
    monkeypatch.setattr(listening, "TICK", 0.01)

    async def main(store_of: Callable[[Any], AsyncRedisStore]) -> AsyncRedisStore:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            store = store_of(client)
            async with store:
                async with store.watch(key(), lambda: None):
                    assert len(asyncio.all_tasks()) == 2
                await store.aclose()
                assert len(asyncio.all_tasks()) == 1
                monkeypatch.setattr(listening, "IDLE", 0.0)
                async with store.watch(key(), lambda: None):
                    pass
                await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=PATIENCE)
                assert len(asyncio.all_tasks()) == 1
                monkeypatch.undo()
            return store

    store = asyncio.run(main(lambda client: AsyncRedisStore(client, prefix=prefix)))

    def again(client: Any) -> AsyncRedisStore:
        store._listeners._client = client
        return store

    asyncio.run(main(again))
    assert len(store._listeners._by_loop) == 1


def test_a_loops_listener_that_fails_wakes_who_waits(proxy: Proxy, prefix: str) -> None:
    """Behaviour 19: and the next poll instead."""

    async def main() -> None:
        retry = AsyncRetry(NoBackoff(), 0)
        async with redis.asyncio.Redis(port=proxy.port, retry=retry) as client:
            store = AsyncRedisStore(client, prefix=prefix)
            woken = asyncio.Event()
            async with store.watch(key(), woken.set):
                proxy.refuse()
                await asyncio.wait_for(woken.wait(), PATIENCE)
                with pytest.raises(StoreError, match="polls"):
                    async with store.watch(key(), woken.set):
                        pytest.fail("the connection was lost a moment ago")
            for ask in [claim_of(store), store.get(key()), store.check(), store.purge("redis")]:
                with pytest.raises(StoreError):
                    await ask

    async def claim_of(store: AsyncRedisStore) -> None:
        await store.claim(key(), owner="owner-a", fingerprint=None, lease=1, ttl=1)

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_a_listener_that_ended_in_its_first_step_is_no_listener(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour 19: on a loop whose tasks begin at once, too; the next watch is looked after."""
    monkeypatch.setattr(listening, "DOWN", 0.0)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            store, pubsub = AsyncRedisStore(client, prefix=prefix), client.pubsub

            def full() -> None:
                raise redis.ConnectionError("Too many connections")

            client.pubsub = full  # type: ignore[method-assign]
            with pytest.raises(StoreError):
                async with store.watch(key(), lambda: None):
                    pass
            client.pubsub = pubsub  # type: ignore[method-assign]
            async with store.watch(key(), lambda: None):
                pass
            await store.aclose()

    asyncio.run(main())
