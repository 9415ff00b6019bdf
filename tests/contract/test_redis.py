"""RedisStore and AsyncRedisStore through the contract of every store, on real servers.

By default on one server and, in short, on a cluster of one node. With all servers asked for: on those of other kinds
and versions, on a cluster of three nodes, and by Valkey's own client.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster

from idempo import Idempotency
from idempo.records import Key
from idempo.stores.redis import AsyncRedisStore, RedisStore
from idempo.testing import AsyncStoreContract, StoreContract, check_store
from tests.redis_support import PATIENCE, claimed, key, new_prefix, start_cluster
from tests.servers import every_server
from tests.servers.fixtures import Servers


class OnRedis:
    """What both suites need to know."""

    own_clock = True
    unit = 0.15

    @pytest.fixture(autouse=True)
    def _address(self, redis_url: str) -> None:
        self.url = redis_url

    def beside(self) -> Any:
        """Return a plain client of the same server."""
        return redis.Redis.from_url(self.url)

    def damage(self, store: Any, key: Key, how: str) -> None:
        name = store._names.of(key)
        with self.beside() as client:
            kept = client.get(name)
            assert kept
            client.delete(name)
            if how == "foreign":
                client.hset(name, "owner", "somebody else")
                return
            damaged = {"truncated": kept[:-1], "flipped": kept[:42] + b"R" + kept[43:], "newer": b"i2" + kept[2:]}
            client.set(name, damaged[how])


class TestRedisStore(OnRedis, StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[RedisStore]:
        with self.beside() as client, RedisStore(client, prefix=new_prefix()) as store:
            yield store

    def reopen(self, store: RedisStore) -> RedisStore:
        return RedisStore(store._client, prefix=store.prefix)


class TestAsyncRedisStore(OnRedis, AsyncStoreContract):
    def connect(self) -> Any:
        return redis.asyncio.Redis.from_url(self.url)

    @pytest.fixture
    def store(self, run: Callable[[Any], Any]) -> Iterator[AsyncRedisStore]:
        async def connect() -> Any:
            return self.connect()

        client = run(connect())
        store = AsyncRedisStore(client, prefix=new_prefix())
        yield store
        run(store.aclose())
        run(client.aclose())

    def reopen(self, store: AsyncRedisStore) -> AsyncRedisStore:
        return AsyncRedisStore(store._client, prefix=store.prefix)


Elsewhere = Callable[[str], str]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Start a server of some other kind, or a cluster of three nodes, when it is first asked for."""
    with closing(Servers()) as servers:

        @functools.cache
        def url(kind: str) -> str:
            return (start_cluster(servers, 3)[0] if kind == "cluster" else servers.redis(kind)).url

        yield url


class OnServer:
    """On a server of another kind than the one that all tests share."""

    flavour: str

    @pytest.fixture
    def redis_url(self, elsewhere: Elsewhere) -> str:
        return elsewhere(self.flavour)


@every_server
class TestOnNewestRedis(OnServer, TestRedisStore):
    flavour = "redis"


@every_server
class TestOnTheSystemsRedis(OnServer, TestRedisStore):
    flavour = "system"


@every_server
class TestOnOldestRedis(OnServer, TestRedisStore):
    flavour = "oldest"


class OnCluster:
    """On three nodes."""

    url: str

    @pytest.fixture
    def redis_url(self, elsewhere: Elsewhere) -> str:
        return elsewhere("cluster")

    def beside(self) -> Any:
        return RedisCluster.from_url(self.url)


@every_server
class TestOnCluster(OnCluster, TestRedisStore):
    pass


@every_server
class TestAsyncOnCluster(OnCluster, TestAsyncRedisStore):
    def connect(self) -> Any:
        return AsyncRedisCluster.from_url(self.url)


@every_server
class TestByValkeysClient(TestRedisStore):
    def beside(self) -> Any:
        valkey = pytest.importorskip("valkey")
        return valkey.Valkey(port=urlsplit(self.url).port)


@every_server
class TestAsyncByValkeysClient(TestAsyncRedisStore):
    def connect(self) -> Any:
        valkey = pytest.importorskip("valkey.asyncio")
        return valkey.Valkey(port=urlsplit(self.url).port)


@pytest.mark.parametrize("seed", range(2))
def test_its_answers_can_be_explained_by_single_steps(redis_url: str, seed: int) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    with redis.Redis.from_url(redis_url) as client:
        check_store(RedisStore(client, prefix=new_prefix()), rounds=20, unit=0.03, slack=0.005, seed=seed)


def use(store: RedisStore) -> None:
    """Do a little of everything."""
    guard = Idempotency(store, namespace="redis")
    for number in range(20):
        for _ in range(2):
            assert guard.run(str(number), lambda: b"\xff") == b"\xff"
    woken = threading.Event()
    with store.watch(key(), woken.set):
        assert claimed(store, key()).acquired
        assert woken.wait(PATIENCE)
    assert len(list(store.scan("redis"))) == 21
    assert store.purge("redis") == 21
    store.close()


async def use_async(store: AsyncRedisStore, *, can_listen: bool = True) -> None:
    """Do the same by coroutines."""
    if can_listen:  # first of all: a client of coroutines has not connected to anything yet
        woken = asyncio.Event()
        async with store.watch(key(), woken.set):
            assert (await store.claim(key(), owner="a", fingerprint=None, lease=60, ttl=60)).acquired
            await asyncio.wait_for(woken.wait(), PATIENCE)
        await store.delete(key())
    guard = Idempotency(store, namespace="redis")

    async def body() -> bytes:
        return b"\xff"

    for number in range(20):
        for _ in range(2):
            assert await guard.run_async(str(number), body) == b"\xff"
    assert len([found async for found in store.scan("redis")]) == 20
    assert await store.purge("redis") == 20
    await store.aclose()


def test_a_cluster_will_do(servers: Servers) -> None:
    """Behaviours 1, 19, 52: each method touches one key, each look for keys all primaries; by either library."""
    (server,) = start_cluster(servers, 1)
    with RedisCluster.from_url(server.url) as client:
        use(RedisStore(client))

    async def main() -> None:
        client = AsyncRedisCluster.from_url(server.url)
        try:
            await use_async(AsyncRedisStore(client), can_listen=hasattr(client, "pubsub"))
        finally:
            await client.aclose()

    asyncio.run(main())


def test_valkeys_own_client_will_do(servers: Servers, redis_url: str) -> None:
    """Behaviours 1, 19, 52: what the stores need of a client, this one has, too."""
    valkey = pytest.importorskip("valkey")
    pytest.importorskip("valkey.asyncio")
    port = urlsplit(redis_url).port
    with valkey.Valkey(port=port) as client:
        client.script_flush()
        use(RedisStore(client, prefix=new_prefix()))

    async def main() -> None:
        async with valkey.asyncio.Valkey(port=port) as client:
            await use_async(AsyncRedisStore(client, prefix=new_prefix()))

    asyncio.run(main())


@every_server
def test_a_cluster_will_do_for_valkeys_own_client(servers: Servers) -> None:
    """Behaviours 19, 52: of coroutines it has none that can subscribe to a cluster; those poll."""
    valkey = pytest.importorskip("valkey")
    server = start_cluster(servers, 3)[0]
    with valkey.cluster.ValkeyCluster(host=server.host, port=server.port) as client:
        use(RedisStore(client))

    async def main() -> None:
        async with valkey.asyncio.ValkeyCluster(host=server.host, port=server.port) as client:
            await use_async(AsyncRedisStore(client), can_listen=hasattr(client, "pubsub"))

    asyncio.run(main())
