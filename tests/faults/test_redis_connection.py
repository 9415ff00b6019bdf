"""The way to a Redis server fails: answers are lost, connections cut, the pool is used up, the server sleeps.

The client is redis-py with the retries that it has by default, unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from idempo import Idempotency, StoreError
from idempo.records import State
from idempo.stores.redis import AsyncRedisStore, RedisStore
from idempo.testing import check_store
from tests.redis_support import PATIENCE, PATIENT, claimed, key, new_prefix
from tests.servers.fixtures import Servers
from tests.servers.proxy import Proxy

SLEEPY: Any = {**PATIENT, "retry": Retry(NoBackoff(), 1000)} if PATIENT else {}


def is_script(request: bytes) -> bool:
    return b"EVAL" in request


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    parts = urlsplit(redis_url)
    assert parts.hostname
    with Proxy(parts.hostname, parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
def prefix() -> str:
    return new_prefix()


@pytest.fixture
def beside(redis_url: str, prefix: str) -> Iterator[RedisStore]:
    """The same records, by a way that does not fail."""
    with redis.Redis.from_url(redis_url) as client, RedisStore(client, prefix=prefix) as store:
        yield store


@pytest.fixture
def store(proxy: Proxy, prefix: str) -> Iterator[RedisStore]:
    """By way of the proxy, with a connection made, and all that is asked once asked."""
    with redis.Redis(port=proxy.port, **PATIENT) as client, RedisStore(client, prefix=prefix) as store:
        Idempotency(store, namespace="warm").run("up", dict)
        yield store


@pytest.fixture
def impatient(proxy: Proxy, prefix: str) -> Iterator[RedisStore]:
    """By way of the proxy, and never tried again by the client."""
    with redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0)) as client:
        with RedisStore(client, prefix=prefix) as store:
            Idempotency(store, namespace="warm").run("up", dict)
            yield store


def test_a_fresh_call_costs_two_round_trips_and_a_replay_one(proxy: Proxy, store: RedisStore) -> None:
    """Behaviour 46: counted between client and server; every other method costs one."""
    guard = Idempotency(store, namespace="counted")
    proxy.reset_counts()
    assert guard.run("order-42", str.upper, "placed") == "PLACED"
    assert proxy.round_trips == 2
    assert guard.run("order-42", str.upper, "placed") == "PLACED"
    assert proxy.round_trips == 3
    claimed(store, key())
    store.renew(key(), owner="owner-a", lease=1, ttl=1)
    store.release(key(), owner="owner-a", ttl=1)
    for _ in range(2):  # the first time, scripts are sent whole
        proxy.reset_counts()
        store.renew(key(), owner="owner-a", lease=1, ttl=1)
        store.release(key(), owner="owner-a", ttl=1)
        store.get(key())
        store.delete(key())
    assert proxy.round_trips == 4
    assert proxy.connections == 0


def test_coroutines_cost_as_many_round_trips(proxy: Proxy, prefix: str) -> None:
    """Behaviour 46: two, then one."""

    async def order() -> str:
        return "placed"

    async def main() -> list[int]:
        counts = []
        async with redis.asyncio.Redis(port=proxy.port) as client, AsyncRedisStore(client, prefix=prefix) as store:
            guard = Idempotency(store, namespace="counted")
            for name in ("warm", "order-42", "order-42"):
                proxy.reset_counts()
                assert await guard.run_async(name, order) == "placed"
                counts.append(proxy.round_trips)
        return counts

    assert asyncio.run(main())[1:] == [2, 1]


METHODS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "claim": (lambda store: None, lambda store: claimed(store, key()).acquired),
    "complete": (
        lambda store: claimed(store, key()),
        lambda store: store.complete(key(), owner="owner-a", outcome=b"kept", ttl=60),
    ),
    "release": (lambda store: claimed(store, key()), lambda store: store.release(key(), owner="owner-a", ttl=60)),
    "renew": (
        lambda store: claimed(store, key()),
        lambda store: store.renew(key(), owner="owner-a", lease=60, ttl=60),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_that_is_lost_is_as_if_it_had_arrived(proxy: Proxy, store: RedisStore, method: str) -> None:
    """Behaviour 34: the client sends it again behind our back, and is answered as the first time."""
    before, ask = METHODS[method]
    before(store)
    proxy.drop_answers(1, only=is_script)
    assert ask(store) is True
    assert proxy.dropped == 1
    record = store.get(key())
    assert record is not None
    assert record.attempt == 1


def test_of_a_call_whose_answers_are_lost_one_by_one_nothing_is_seen(
    proxy: Proxy, impatient: RedisStore, beside: RedisStore
) -> None:
    """Behaviours 33, 34: without any retry by the client, the driver's own are enough."""
    guard = Idempotency(impatient, namespace="lost")
    proxy.drop_answers(1, only=is_script)

    def body() -> str:
        proxy.drop_answers(1, only=is_script)
        return "placed"

    assert guard.run("order-42", body) == "placed"
    assert proxy.dropped == 2
    again = Idempotency(beside, namespace="lost")
    assert again.run("order-42", str.upper) == "placed"
    assert again.stats().executed == 0


def test_a_claim_that_is_never_answered_wedges_nothing(proxy: Proxy, impatient: RedisStore, beside: RedisStore) -> None:
    """Behaviours 32, 34: the server made it; nothing ran; whoever comes next runs at once."""
    beside._client.script_flush()  # nothing of the kind was released on this server yet
    claimed(impatient, key())
    proxy.drop_answers(100, only=is_script)
    with pytest.raises(StoreError) as caught:
        Idempotency(impatient, namespace="lost").run("order-42", pytest.fail)
    assert proxy.dropped == 3  # two claims and a release
    assert caught.value.key is not None
    assert Idempotency(beside, namespace="lost", wait=0).run("order-42", lambda: "placed") == "placed"


def test_what_looks_at_many_keys_may_fail_on_its_way(proxy: Proxy, impatient: RedisStore, prefix: str) -> None:
    """Behaviours 32, 52: a StoreError, and never a part of them for the whole."""
    claimed(impatient, key())
    for ask in (lambda: list(impatient.scan("redis")), lambda: impatient.purge("redis")):
        proxy.drop_answers(1, only=is_script)
        with pytest.raises(StoreError):
            ask()
    claimed(impatient, key())

    async def main() -> None:
        retry = AsyncRetry(NoBackoff(), 0)
        async with redis.asyncio.Redis(port=proxy.port, retry=retry) as client:
            proxy.drop_answers(1, only=is_script)
            with pytest.raises(StoreError):
                await AsyncRedisStore(client, prefix=prefix).purge("redis")

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(2))
def test_through_a_lossy_way_answers_can_be_explained_by_single_steps(
    proxy: Proxy, impatient: RedisStore, seed: int
) -> None:
    """Behaviours 21-23, 34: one connection in thirty is reset after the server has acted, and nobody knows."""
    chance = random.Random(seed)
    proxy.drop_answers(1_000_000, only=lambda request: is_script(request) and chance.random() < 0.03)
    check_store(impatient, rounds=18, unit=0.03, slack=0.005, seed=seed)
    assert proxy.dropped > 10


def test_where_nobody_answers_it_is_a_store_error_that_names_the_key(proxy: Proxy, impatient: RedisStore) -> None:
    """Behaviour 32: of every method, and of what looks at many keys."""
    proxy.refuse()
    for ask in [
        lambda: claimed(impatient, key()),
        lambda: impatient.complete(key(), owner="owner-a", outcome=b"", ttl=1),
        lambda: impatient.get(key()),
        lambda: impatient.delete(key()),
    ]:
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.key == key()
    for ask in [lambda: list(impatient.scan("redis")), lambda: impatient.purge("redis"), impatient.check]:
        with pytest.raises(StoreError):
            ask()
    with pytest.raises(StoreError), impatient.watch(key(), lambda: None):
        pytest.fail("nobody confirmed it")


def test_a_pool_that_is_used_up_is_a_bounded_wait_and_a_store_error(redis_url: str, prefix: str) -> None:
    """Behaviour 48: and once a connection is back, the call goes on."""
    pool = redis.BlockingConnectionPool.from_url(redis_url, max_connections=2, timeout=0.05)
    with redis.Redis(connection_pool=pool) as client, RedisStore(client, prefix=prefix) as store:
        store.check()
        taken = [client.pubsub(), client.pubsub()]
        for one in taken:
            one.subscribe("elsewhere")  # and so keeps its connection
        with pytest.raises(StoreError) as caught:
            claimed(store, key())
        assert caught.value.key == key()
        with pytest.raises(StoreError), store.watch(key(), lambda: None):
            pytest.fail("there is no connection to listen by")
        for one in taken:
            one.close()
        assert claimed(store, key()).acquired
    pool.disconnect()


def test_a_pool_of_one_connection_is_not_listened_by(redis_url: str, prefix: str) -> None:
    """Behaviour 48: the calls need it; those that wait poll."""
    pool = redis.BlockingConnectionPool.from_url(redis_url, max_connections=1, timeout=0.05)
    with redis.Redis(connection_pool=pool) as client, RedisStore(client, prefix=prefix) as store:
        claimed(store, key(), "elsewhere", lease=0.2)
        with pytest.raises(StoreError), store.watch(key(), lambda: None):
            pytest.fail("that took the only connection")
        assert Idempotency(store, namespace="redis").run("order-42", lambda: "placed") == "placed"
    pool.disconnect()


@pytest.mark.realtime
def test_a_server_that_slept_answers_late_and_the_same_owner_wins(servers: Servers, prefix: str) -> None:
    """Behaviour 48: its claim was sent several times, and stands once."""
    server = servers.redis()
    with redis.Redis(port=server.port, socket_timeout=0.1, **SLEEPY) as client, ThreadPoolExecutor(2) as pool:
        store = RedisStore(client, prefix=prefix)
        claimed(store, key("warm"))
        server.pause()
        try:
            first = pool.submit(claimed, store, key())
            time.sleep(0.35)  # long enough for the client to give up a time or two, and to ask again
            assert not first.done()
        finally:
            server.resume()
        assert first.result(PATIENCE).acquired
        record = store.get(key())
        assert record is not None
        assert (record.state, record.owner, record.attempt) == (State.RUNNING, "owner-a", 1)
        assert not claimed(store, key(), "owner-b").acquired
