"""Every store that a server stands behind, made from an address, behind one shape; and SQLite beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import attrs

from benchmarks.contenders import AsyncCall, Call, charge, charge_async
from idempo import idempotent

Make = Callable[[str, str], AbstractContextManager[Any]]
MakeAsync = Callable[[str, str], AbstractAsyncContextManager[Any]]


@attrs.frozen
class Stored:
    """A store that can be made, any number of times, in any process.

    Attributes:
        name: What it is called in the report.
        server: What it needs, as `benchmarks.servers.Servers.url` calls it; "" for none.
        make: Makes it from the server's address and a label, and closes it; one label, one set of records.
        make_async: The same, where it is of coroutines.
        one_trip: Whether each of its methods is one round trip.
    """

    name: str
    server: str
    make: Make | None = None
    make_async: MakeAsync | None = None
    one_trip: bool = True

    @property
    def is_async(self) -> bool:
        """Whether it is of coroutines."""
        return self.make_async is not None


def at_port(url: str, port: int) -> str:
    """Return the address with another port."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))


def guard(store: Any) -> Call:
    """Guard the function as the other figures do."""
    return idempotent(key="order_id", store=store)(charge)


def guard_async(store: Any) -> AsyncCall:
    """See `guard`."""
    return idempotent(key="order_id", store=store)(charge_async)


@contextmanager
def redis_store(url: str, label: str, client: Any = None) -> Iterator[Any]:
    """Make a `RedisStore`, of redis-py's client unless another is given."""
    from redis import Redis

    from idempo.stores.redis import RedisStore

    with client or Redis.from_url(url) as used, RedisStore(used, prefix=f"{label}:") as store:
        yield store


@asynccontextmanager
async def async_redis_store(url: str, label: str, client: Any = None) -> AsyncIterator[Any]:
    """See `redis_store`."""
    from redis.asyncio import Redis

    from idempo.stores.redis import AsyncRedisStore

    async with client or Redis.from_url(url) as used, AsyncRedisStore(used, prefix=f"{label}:") as store:
        yield store


@contextmanager
def cached_redis_store(url: str, label: str) -> Iterator[Any]:
    """Make a `CachedStore` before a `RedisStore`."""
    from idempo.stores.cached import CachedStore

    with redis_store(url, label) as store:
        yield CachedStore(store)


@contextmanager
def sql_store(url: str, label: str) -> Iterator[Any]:
    """Make a `SqlAlchemyStore`, and its table."""
    from sqlalchemy import create_engine

    from idempo.stores.sqlalchemy import SqlAlchemyStore

    engine = create_engine(url)
    with SqlAlchemyStore(engine, table=label.replace("-", "_")) as store:
        store.create_table()
        yield store
    engine.dispose()


@asynccontextmanager
async def async_sql_store(url: str, label: str) -> AsyncIterator[Any]:
    """See `sql_store`."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore

    engine = create_async_engine(url.replace("+pymysql", "+asyncmy"))
    async with AsyncSqlAlchemyStore(engine, table=label.replace("-", "_")) as store:
        await store.create_table()
        yield store
    await engine.dispose()


@contextmanager
def memcached_store(url: str, label: str) -> Iterator[Any]:
    """Make a `MemcachedStore`."""
    from pymemcache import PooledClient

    from idempo.stores.memcached import MemcachedStore

    address = urlsplit(url)
    client = PooledClient((address.hostname, address.port), connect_timeout=10, timeout=10)
    try:
        yield MemcachedStore(client, prefix=f"{label}:")
    finally:
        client.close()


@contextmanager
def sync_nats_store(url: str, label: str) -> Iterator[Any]:
    """Make a `SyncNatsStore`, and its bucket."""
    from idempo.stores.nats import SyncNatsStore

    store = SyncNatsStore(url, label)
    try:
        yield store
    finally:
        store.close()


@asynccontextmanager
async def nats_store(url: str, label: str) -> AsyncIterator[Any]:
    """Make a `NatsStore`, and its bucket."""
    from idempo.stores.nats import NatsStore

    store = NatsStore.at(url, label)
    try:
        yield store
    finally:
        await store.aclose()


@contextmanager
def sqlite_store(_url: str, label: str) -> Iterator[Any]:
    """Make a `SqliteStore`; the label is its file."""
    from idempo.stores.sqlite import SqliteStore

    yield SqliteStore(label)


REDIS: Final = Stored("RedisStore", "redis", redis_store)
ASYNC_REDIS: Final = Stored("AsyncRedisStore", "redis", make_async=async_redis_store)
CACHED: Final = Stored("CachedStore before RedisStore", "redis", cached_redis_store)
POSTGRESQL: Final = Stored("SqlAlchemyStore, PostgreSQL", "postgresql", sql_store)
ASYNC_POSTGRESQL: Final = Stored("AsyncSqlAlchemyStore, PostgreSQL", "postgresql", make_async=async_sql_store)
MARIADB: Final = Stored("SqlAlchemyStore, MariaDB", "mariadb", sql_store)
ASYNC_MARIADB: Final = Stored("AsyncSqlAlchemyStore, MariaDB", "mariadb", make_async=async_sql_store)
MEMCACHED: Final = Stored("MemcachedStore", "memcached", memcached_store, one_trip=False)
SYNC_NATS: Final = Stored("SyncNatsStore", "nats", sync_nats_store, one_trip=False)
NATS: Final = Stored("NatsStore", "nats", make_async=nats_store, one_trip=False)
SQLITE: Final = Stored("SqliteStore", "", sqlite_store)

NETWORKED: Final = (
    REDIS,
    ASYNC_REDIS,
    POSTGRESQL,
    ASYNC_POSTGRESQL,
    MARIADB,
    ASYNC_MARIADB,
    MEMCACHED,
    SYNC_NATS,
    NATS,
)
