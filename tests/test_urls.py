"""Stores from URLs: which, with which options, who closes them, and what is never shown."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from idempo import Idempotency, MemoryStore
from idempo.errors import StoreError
from idempo.stores import async_store_from_url, store_from_url
from idempo.stores._urls import FAMILIES, read
from idempo.stores.memcached import MemcachedStore
from idempo.stores.nats import NatsStore, SyncNatsStore
from idempo.stores.redis import AsyncRedisStore, RedisStore
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from idempo.stores.sqlite import SqliteStore

SECRET = "s3cr3t"


async def shout(text: str) -> str:
    return text.upper()


def use(store: Any, namespace: str = "urls") -> None:
    """Run an operation twice, by plain calls, and close the store."""
    with store as entered:
        assert entered is store
        guard = Idempotency(store, namespace=namespace)
        for _ in range(2):
            assert guard.run("k", str.upper, "placed") == "PLACED"
        assert guard.stats().executed == 1
        assert guard.forget("k")


async def use_async(store: Any, namespace: str = "urls") -> None:
    """The same by coroutines."""
    async with store as entered:
        assert entered is store
        guard = Idempotency(store, namespace=namespace)
        for _ in range(2):
            assert await guard.run_async("k", shout, "placed") == "PLACED"
        assert guard.stats().executed == 1
        assert await guard.forget_async("k")


# -- memory and SQLite -----------------------------------------------------------------------------------------------


def test_a_memory_store() -> None:
    store = store_from_url("memory://?max_records=7&on_full=refuse", max_bytes=1000)
    assert isinstance(store, MemoryStore)
    assert (store._max_records, store._max_bytes, store._evicts) == (7, 1000, False)
    assert repr(type(store)) == repr(MemoryStore)
    use(store)
    other = async_store_from_url("memory://")
    assert isinstance(other, MemoryStore)
    asyncio.run(use_async(other))


def test_a_memory_store_of_a_url_takes_the_same_short_cuts() -> None:
    """Behaviour 55: its subclass has nothing of its own that they would pass by."""
    guard = Idempotency(store_from_url("memory://"))
    assert guard._drivers.sync._near is not None
    assert guard._drivers.sync._claim_new is not None


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three slashes from the working directory, with four from the root; percent-encoded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    store = store_from_url("sqlite:///a%20b/records.db?table=billing&synchronous=NORMAL&busy_timeout=2.5")
    assert isinstance(store, SqliteStore)
    assert (store.path, store.table) == (str(tmp_path / "a b" / "records.db"), "billing")
    assert (store._synchronous, store._busy_timeout) == ("NORMAL", 2.5)
    assert repr(store).startswith("SqliteStore(")
    use(store)
    with pytest.raises(StoreError, match="closed"):
        Idempotency(store, namespace="urls").run("k", dict)
    again = async_store_from_url(f"sqlite:///{tmp_path}/a b/records.db", table="billing")
    assert isinstance(again, SqliteStore)
    assert again.path == store.path
    asyncio.run(use_async(again))
    with pytest.raises(StoreError, match="closed"):
        Idempotency(again, namespace="urls").run("k", dict)


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_redis(redis_url: str) -> None:
    """The client's own options stay in the query; closing ends its connections."""
    store = store_from_url(
        f"{redis_url.partition('?')[0]}?prefix=urls:&client_name=idempo-urls&socket_timeout=2.5", eviction="allow"
    )
    assert isinstance(store, RedisStore)
    assert store.prefix == "urls:"
    pool = store._client.connection_pool
    assert pool.connection_kwargs["client_name"] == "idempo-urls"
    assert (pool.connection_kwargs["socket_timeout"], pool.connection_kwargs["socket_connect_timeout"]) == (2.5, 5.0)
    use(store)
    assert [connection._sock for connection in pool._available_connections] == [None]


def test_redis_by_coroutines(redis_url: str) -> None:
    store = async_store_from_url(redis_url.replace("redis://", "valkey://"), prefix="urls-async:")
    assert isinstance(store, AsyncRedisStore)
    pool = store._client.connection_pool  # type: ignore[attr-defined]
    asyncio.run(use_async(store))
    assert [connection.is_connected for connection in pool._available_connections] == [False]


@pytest.mark.parametrize(
    ("url", "connection", "host"),
    [
        ("rediss://example.org:6380/3", "SSLConnection", ("example.org", 6380)),
        ("valkeys://example.org", "SSLConnection", ("example.org", None)),
        ("unix:///run/valkey.sock?db=3", "UnixDomainSocketConnection", (None, None)),
    ],
)
def test_what_kind_of_connection_it_makes(url: str, connection: str, host: tuple[Any, Any]) -> None:
    for store in (store_from_url(url), async_store_from_url(url)):
        pool = store._client.connection_pool  # type: ignore[union-attr]
        assert pool.connection_class.__name__ == connection
        kwargs = pool.connection_kwargs
        assert (kwargs.get("host"), kwargs.get("port")) == host
        assert kwargs.get("path") == ("/run/valkey.sock" if connection.startswith("Unix") else None)


def test_a_cluster_that_cannot_be_reached_is_a_store_error() -> None:
    """Its client asks it when it is made; one of coroutines only when it is used."""
    with pytest.raises(StoreError, match="cluster cannot be reached"):
        store_from_url(f"redis+cluster://:{SECRET}@127.0.0.1:1?socket_connect_timeout=0.2")
    store = async_store_from_url("redis+cluster://127.0.0.1:1")
    assert isinstance(store, AsyncRedisStore)
    assert type(store._client).__name__ == "RedisCluster"


def test_a_client_is_closed_where_the_store_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import redis

    made: list[Any] = []

    class Noted(redis.Redis):
        closed = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)  # and so it is not collected, which closes it too

        def close(self) -> None:
            self.closed += 1

    monkeypatch.setattr(redis, "Redis", Noted)
    with pytest.raises(ValueError, match="eviction"):
        store_from_url("redis://localhost?eviction=maybe")
    assert [client.closed for client in made] == [1]


# -- SQL and memcached -------------------------------------------------------------------------------------------------


def test_postgresql(postgres_url: str) -> None:
    """The engine's own options stay in the query; closing ends its connections, and the store's."""
    joint = "&" if "?" in postgres_url else "?"
    store = store_from_url(f"{postgres_url}{joint}table=urls_sync&timeout=5&application_name=idempo-urls")
    assert isinstance(store, SqlAlchemyStore)
    assert store.table.fullname == "urls_sync"
    assert store._engine.url.query["application_name"] == "idempo-urls"
    store.create_table()
    use(store)
    with pytest.raises(StoreError, match="closed"):
        Idempotency(store, namespace="urls").run("k", dict)
    assert store._engine.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_postgresql_by_coroutines(postgres_url: str) -> None:
    store = async_store_from_url(postgres_url, table="urls_async")
    assert isinstance(store, AsyncSqlAlchemyStore)

    async def scenario() -> None:
        await store.create_table()
        await use_async(store)
        with pytest.raises(StoreError, match="closed"):
            await Idempotency(store, namespace="urls").run_async("k", shout, "a")

    asyncio.run(scenario())


def test_mariadb_or_mysql(mysql_url: str) -> None:
    """By either scheme, and by coroutines through the other driver."""
    for scheme in ("mysql+pymysql", "mariadb+pymysql"):
        store = store_from_url(mysql_url.replace("mysql+pymysql", scheme), table="urls_sync")
        assert isinstance(store, SqlAlchemyStore)
        store.create_table()
        use(store)
    other = async_store_from_url(mysql_url.replace("pymysql", "asyncmy"), table="urls_async")
    assert isinstance(other, AsyncSqlAlchemyStore)

    async def scenario() -> None:
        await other.create_table()
        await use_async(other)

    asyncio.run(scenario())


def test_sqlite_by_sqlalchemy(tmp_path: Path) -> None:
    """For what else SQLAlchemy does with the file; the other scheme of SQLite's needs no library."""
    place = f"{tmp_path}/records.db?table=records&max_connections=2"
    store = store_from_url(f"sqlite+pysqlite:///{place}")
    assert isinstance(store, SqlAlchemyStore)
    store.create_table()
    use(store)
    other = async_store_from_url(f"sqlite+aiosqlite:///{place}")
    asyncio.run(use_async(other))


def test_a_driver_of_the_other_colour_is_refused() -> None:
    """Bad input: with what to do."""
    with pytest.raises(ValueError, match="one of coroutines: use async_store_from_url"):
        store_from_url("mysql+asyncmy://localhost/app")
    with pytest.raises(ValueError, match="one of plain functions: use store_from_url"):
        async_store_from_url("mysql+pymysql://localhost/app")


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("postgresql+psycopg://localhost/app?connect_timout=3", "connect_timout"),
        ("postgresql+psycopg://localhost/app?application_name=a&tabel=b", "tabel"),
        ("mysql+pymysql://localhost/app?charset=utf8mb4&tabel=b", "tabel"),
        ("mariadb+pymysql://localhost/app?ssl_ca=a&maxconnections=3", "maxconnections"),
        ("mysql+asyncmy://localhost/app?connect_timeout=3&write_timout=3", "write_timout"),
        ("sqlite+pysqlite:///records.db?timeout=3&mode=ro", "mode"),
        ("sqlite+aiosqlite:///records.db?tabel=b", "tabel"),
    ],
)
def test_what_neither_the_store_nor_the_driver_knows_is_refused_at_once(url: str, option: str) -> None:
    """Bad input: and not at the first connection, or never."""
    known = "it has table, schema, max_connections, timeout, notify"
    makers: list[Any] = [store_from_url] * ("+a" not in url) + [async_store_from_url] * ("+py" not in url)
    for make in makers:
        with pytest.raises(ValueError, match=f"no option '{option}' in its query; {known}"):
            make(url)


def test_what_the_driver_knows_is_taken(tmp_path: Path) -> None:
    """SQLite's own, with uri=true; libpq's and PyMySQL's, in place of the store's limits."""
    file = store_from_url(f"sqlite+pysqlite:///file:{tmp_path}/records.db?uri=true&mode=rwc&table=records")
    assert isinstance(file, SqlAlchemyStore)
    file.create_table()
    use(file)
    for url in (
        "postgresql+psycopg://localhost/app?connect_timeout=3&sslmode=disable&options=-csearch_path%3Da",
        "mysql+pymysql://localhost/app?connect_timeout=3&read_timeout=4&ssl_ca=a&charset=utf8mb4",
    ):
        store = store_from_url(url, notify=False)
        assert isinstance(store, SqlAlchemyStore)
        assert store._timeout == 5


def test_flags_in_a_query(nats_url: str) -> None:
    """Whether to listen, and whether to make a bucket."""
    for text, listens in (("true", True), ("False", False)):
        store = store_from_url(f"postgresql+psycopg://localhost/app?notify={text}")
        assert hasattr(store, "watch") == listens
    with (
        store_from_url(f"nats://{urlsplit(nats_url).netloc}/urls-never-made?create=false") as store,
        pytest.raises(StoreError, match="bucket"),
    ):
        Idempotency(store, namespace="urls").run("k", dict)


def test_memcached(memcached_url: str) -> None:
    """One server by a pool of connections; coroutines by the same store."""
    host, port = urlsplit(memcached_url).hostname, urlsplit(memcached_url).port
    store = store_from_url(f"memcached://{host}:{port}?prefix=urls-&timeout=2.5&max_pool_size=3", max_watched=7)
    assert isinstance(store, MemcachedStore)
    client = store._backend._client  # type: ignore[attr-defined]
    assert (client.timeout, client.connect_timeout, client.client_pool.max_size) == (2.5, 5.0, 3)
    use(store)
    assert not client.client_pool.free
    asyncio.run(use_async(async_store_from_url(f"memcached://{host}:{port}", prefix="urls-async-")))
    several = store_from_url(f"memcached://{host}:{port},{host}:{port}", prefix="urls-several-")
    assert type(several._backend._client).__name__ == "HashClient"  # type: ignore[attr-defined]
    use(several)


def test_nats(nats_url: str) -> None:
    """The bucket is the path; a loop in a thread of its own for plain calls, connections by loop for coroutines."""
    place = f"nats://{urlsplit(nats_url).netloc}"
    store = store_from_url(f"{place}/urls?prefix=sync.&timeout=4")
    assert isinstance(store, SyncNatsStore)
    use(store)
    other = async_store_from_url(f"{place}/urls", prefix="async.")
    assert isinstance(other, NatsStore)
    asyncio.run(use_async(other))


def test_what_nats_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several servers; and a password, or a token, as it is, beside them: their addresses stand in errors."""
    given: list[Any] = []
    monkeypatch.setattr(SyncNatsStore, "__init__", lambda self, **settings: given.append(settings))
    monkeypatch.setattr(SyncNatsStore, "__del__", lambda self: None, raising=False)
    for url in ("nats://a", "nats://us%2Fer:p%40ss@a:1,[::1]/jobs?replicas=3", "nats://t0ken@a"):
        store_from_url(url, **({"connect": {"name": "n"}, "bucket": "b"} if url == "nats://t0ken@a" else {}))
    assert given == [
        {"servers": ["nats://a:4222"], "connect": {}},
        {
            "servers": ["nats://a:1", "nats://[::1]:4222"],
            "bucket": "jobs",
            "replicas": 3,
            "connect": {"user": "us/er", "password": "p@ss"},
        },
        {"servers": ["nats://a:4222"], "bucket": "b", "connect": {"token": "t0ken", "name": "n"}},
    ]


def test_the_hosts_of_a_url() -> None:
    assert read("memcached://a,b:3,[::1]:4,[::2]", {}).hosts(9) == [("a", 9), ("b", 3), ("::1", 4), ("::2", 9)]


# -- what is refused, and what is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "the URL has no scheme; there are memory://, sqlite://, redis://"),
        ("records.db", "no scheme"),
        ("localhost:6379", "no scheme"),
        (f"{SECRET}@localhost", "no scheme"),
        ("mongodb://localhost", "mongodb:// is the scheme of no store; there are memory://"),
        ("memory:", "must begin with memory://"),
        ("sqlite:/records.db", "must begin with sqlite://"),
        ("memory://localhost", "neither host nor path"),
        ("memory:///7", "neither host nor path"),
        ("memory://?max_record=7", "no option 'max_record' in its query; it has max_records, max_bytes, on_full"),
        ("memory://?max_records=many", "max_records in the URL's query must be a number, not 'many'"),
        ("memory://?max_records", "must be a number, not ''"),
        ("memory://?max_records=0", "max_records must be at least 1"),
        ("memory://?on_full=panic", "on_full must be"),
        ("memory://?max_records=1&max_records=2", "given twice"),
        ("sqlite://", "needs a path"),
        ("sqlite:///", "needs a path"),
        ("sqlite://records.db", "has no host: a path begins with a third slash"),
        ("sqlite:///records.db?mode=ro", "no option 'mode'"),
        ("sqlite:///:memory:", "MemoryStore"),
        ("sqlite:///records.db#1", "percent-encode it, as %23"),
        ("redis://localhost/zero", "is the number of a database"),
        ("redis://localhost?prefx=a", "no option 'prefx' in its query; it has prefix, eviction"),
        ("redis://localhost?ssl_ca_certs=a", "no option 'ssl_ca_certs'"),
        ("redis://localhost?max_connections=soon", "does not accept"),
        ("redis+cluster://localhost/1", "a cluster has one database"),
        ("postgresql://localhost/app", "names no driver that a store is made for; there are postgresql+psycopg://"),
        ("postgresql+pg8000://localhost/app", "names no driver"),
        (f"postgresql+psycopg://a,b:{SECRET}/app", "SQLAlchemy does not accept"),
        ("memcached://", "needs a host, or several with commas between: memcached://localhost:11211"),
        ("memcached://a,,b", "needs a host"),
        ("memcached://a/b", "memcached:// has neither path"),
        ("nats://", "needs a host, or several with commas between: nats://localhost:4222"),
        ("nats://a?bucket=b", "no option 'bucket' in its query; it has prefix, create, replicas"),
        ("nats://a?create=no", "create in the URL's query must be true or false, not 'no'"),
        ("nats://a?create=", "true or false, not ''"),
        (f"nats://user:{SECRET}@a/b?replicas=x", "replicas in the URL's query must be a number"),
        (f"memcached://user:{SECRET}@a", "neither path nor user name"),
        (f"memcached://a:{SECRET},b", "the port as a number"),
        ("memcached://a?serde=b", "no option 'serde' in its query; it has prefix, largest_outcome, max_watched, conn"),
        ("memcached://a?timeout=soon", "timeout in the URL's query must be a number, not 'soon'"),
        (f"redis://user:{SECRET}/pass@localhost", "percent-encode"),
        (f"redis://:{SECRET}@localhost:port", "the port as a number"),
        (f"redis://:{SECRET}[@localhost", "percent-encode"),
        (f"redis://user:123/{SECRET}@localhost", "is the number of a database"),
        (f"redis://localhost?password={SECRET}&max_connections=soon", "does not accept this redis:// URL's query"),
        (f"memcached://localhost?password={SECRET}", "no option 'password'"),
        (f"nats://localhost?password={SECRET}", "no option 'password'"),
        (f"sqlite://?password={SECRET}", "no option 'password'"),
    ],
)
def test_a_url_that_says_something_else(url: str, what: str) -> None:
    """Bad input: a ValueError that tells what was wrong, and no part of a password."""
    for make in (store_from_url, async_store_from_url):
        with pytest.raises(ValueError) as caught:
            make(url)
        assert what in str(caught.value)
        assert SECRET not in "".join(traceback.format_exception(caught.value, chain=True)[-1:])
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_options_are_checked_by_the_store() -> None:
    """Bad input: in the words of its class."""
    with pytest.raises(TypeError, match="max_rec"):
        store_from_url("memory://", max_rec=7)
    with pytest.raises(TypeError, match="max_records must be a whole number"):
        store_from_url("memory://", max_records="7")
    with pytest.raises(ValueError, match="max_records is given twice"):
        store_from_url("memory://?max_records=7", max_records=7)
    with pytest.raises(TypeError, match="url must be a text"):
        store_from_url(b"memory://")  # type: ignore[arg-type]


def test_no_password_is_shown() -> None:
    """Not by a store, its client, or what it raises."""
    url = f"redis://user:{SECRET}@127.0.0.1:1/0?prefix=a:&socket_connect_timeout=0.1"
    store = store_from_url(url)
    assert repr(store) == "RedisStore(Redis, prefix='a:')"
    assert SECRET not in repr(async_store_from_url(url))
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    store._client.connection_pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)  # type: ignore[attr-defined]
    with pytest.raises(StoreError) as caught:
        Idempotency(store, namespace="urls").run("k", dict)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://127.0.0.1:1/app?user=u&password={}", "postgresql+psycopg://127.0.0.1:1/app"),
        ("postgresql+psycopg://u:{}@127.0.0.1:1/app?sslpassword={}", "postgresql+psycopg://u:***@127.0.0.1:1/app"),
        ("mysql+pymysql://u@127.0.0.1:1/app?password={}", "mysql+pymysql://u@127.0.0.1:1/app"),
        ("mysql+asyncmy://u@127.0.0.1:1/app?password={}", "mysql+asyncmy://u@127.0.0.1:1/app"),
        ("redis://127.0.0.1:1?password={}&socket_connect_timeout=0.1", ""),
        ("nats://u:{}@127.0.0.1:1", ""),
        ("nats://{}@127.0.0.1:1", ""),
    ],
)
def test_no_password_is_shown_wherever_it_stands_in_the_url(
    caplog: pytest.LogCaptureFixture, url: str, shown: str
) -> None:
    """Not by a store, what it raises, or what it logs; SQLAlchemy's engines show their URL's query."""
    caplog.set_level(logging.DEBUG)
    options: dict[str, Any] = {"timeout": 0.5} if url.startswith("nats") else {}
    url = url.replace("{}", SECRET)

    async def ask(store: Any) -> object:
        async with store:
            return await Idempotency(store, namespace="urls").lookup_async("k")

    makers: list[Any] = [store_from_url] * ("asyncmy" not in url) + [async_store_from_url] * ("pymysql" not in url)
    for make in makers:
        store = make(url, **options)
        with pytest.raises(StoreError) as caught:
            asyncio.run(ask(store))
        told = f"{store!r} {caught.value!r} {''.join(traceback.format_exception(caught.value))} {caplog.text}"
        assert SECRET not in told
        assert f"Engine({shown})" in repr(store) or not shown


def test_the_rest_of_a_query_is_the_clients_as_it_was_spelled() -> None:
    address = read("redis://h/1?a=%2520&prefix=x%3A+y&b=1&a=2", {})
    assert address.url == "redis://h/1?a=%2520&b=1&a=2"
    assert address.options == {"prefix": "x: y"}
    assert address.for_client == ["a", "b", "a"]


def test_every_scheme_has_a_store_of_either_colour() -> None:
    from idempo.stores import _opening

    assert set(FAMILIES) == set(_opening._SYNC) == set(_opening._ASYNC)
    schemes = [scheme for family in FAMILIES.values() for scheme in family.schemes]
    assert len(schemes) == len(set(schemes))


_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

library = sys.argv[1]
sys.meta_path.insert(0, Missing())
from idempo.stores import async_store_from_url, store_from_url

for make in (store_from_url, async_store_from_url):
    try:
        make(sys.argv[2])
    except ImportError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("library", "url", "extra"),
    [
        ("redis", "redis://localhost", "redis"),
        ("psycopg", "postgresql+psycopg://localhost/app", "postgresql"),
        ("sqlalchemy", "postgresql+psycopg://localhost/app", "postgresql"),
        ("pymysql", "mysql+pymysql://localhost/app", "mysql"),
        ("pymemcache", "memcached://localhost", "memcached"),
        ("nats", "nats://localhost", "nats"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(library: str, url: str, extra: str) -> None:
    """Whoever has not installed it reads what to install."""
    command = [sys.executable, "-c", _WITHOUT, library, url]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    told = ran.stdout.splitlines()
    assert len(told) == 2
    assert all(f"idempo[{extra}]" in line for line in told), told


def test_a_bug_in_a_store_is_no_missing_library() -> None:
    from idempo.stores._opening import _needing

    with pytest.raises(ModuleNotFoundError, match="no such"), _needing("redis", "redis"):
        raise ModuleNotFoundError("no such module", name="idempo.stores.nothing")


def test_nothing_is_imported_before_it_is_needed() -> None:
    """No client library, and no store but the one that was asked for."""
    code = """
import sys
import idempo.stores
libraries = {"redis", "sqlalchemy", "pymemcache", "nats", "asyncio"}
assert not libraries & set(sys.modules), libraries & set(sys.modules)
idempo.stores.store_from_url("sqlite:///unused.db")
assert not libraries & set(sys.modules), libraries & set(sys.modules)
assert "idempo.stores.redis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("make", [store_from_url, async_store_from_url])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("redis://localhost", "socket_timeout"),
        ("redis://localhost", "socket_connect_timeout"),
        ("memcached://localhost", "timeout"),
        ("memcached://localhost", "connect_timeout"),
    ],
)
def test_a_time_out_that_gives_no_time_is_refused(make: Any, url: str, option: str, value: str) -> None:
    """By name, before anything is opened."""
    with pytest.raises(ValueError, match=f"{option} in the URL's query must be more than 0 seconds, not '{value}'"):
        make(f"{url}?{option}={value}")
