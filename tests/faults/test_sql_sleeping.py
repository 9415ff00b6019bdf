"""An SQL server says nothing: it sleeps, or is none. Whoever asks it is told so in time."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from idempo import Idempotency, StoreError
from idempo.records import State
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from tests.servers.fixtures import Servers
from tests.servers.process import Server
from tests.sql_support import PATIENCE, URLS, Database, claimed, key

DRIVERS = ["postgresql+psycopg", "mysql+pymysql", "mariadb+pymysql"]
LIMIT = 10.0
"""Seconds in which a store must have given up; psycopg's shortest limit is of 2 seconds for each address."""

pytestmark = pytest.mark.realtime


def in_time(asked: Any) -> StoreError:
    """Ask in a thread, so that one who waits without end is seen to, and return the error that is due."""
    pool = ThreadPoolExecutor(1)
    try:
        error = pool.submit(asked).exception(LIMIT)
    finally:
        pool.shutdown(wait=False)
    assert isinstance(error, StoreError)
    return error


def server_of(servers: Servers, kind: str) -> Server:
    return servers.postgres() if kind == "postgresql" else servers.mysql()


@pytest.fixture
def silent() -> Iterator[int]:
    """Give a port where one is connected and told nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_is_connected_and_told_nothing_gives_up(silent: int, driver: str) -> None:
    """Behaviour 48: within the store's time-out, though the engine sets none."""
    engine = sa.create_engine(f"{driver}://app@127.0.0.1:{silent}/app", poolclass=NullPool)
    with SqlAlchemyStore(engine, timeout=0.3) as store:
        assert in_time(lambda: claimed(store, key())).key == key()


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+asyncmy", "mariadb+asyncmy"])
def test_coroutines_that_are_connected_and_told_nothing_give_up(silent: int, driver: str) -> None:
    """Behaviour 48: as plain functions do."""

    async def main() -> None:
        engine = create_async_engine(f"{driver}://app@127.0.0.1:{silent}/app", poolclass=NullPool)
        async with asyncio.timeout(LIMIT), AsyncSqlAlchemyStore(engine, timeout=0.3) as store:
            with pytest.raises(StoreError) as caught:
                await store.claim(key(), owner="a", fingerprint=None, lease=60, ttl=60)
            assert caught.value.key == key()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_limits_of_the_applications_own_are_kept(silent: int, driver: str) -> None:
    """Behaviour 48: those of its engine, in its connect_args or URL, and for its own connections none is set."""
    seen: list[dict[str, Any]] = []
    engine = sa.create_engine(
        f"{driver}://app@127.0.0.1:{silent}/app?connect_timeout=7", connect_args={"application_name": "x"}
    )

    @sa.event.listens_for(engine, "do_connect")
    def refuse(dialect: object, record: object, args: object, params: dict[str, Any]) -> None:
        params.pop("application_name")

    with SqlAlchemyStore(engine, timeout=0.3) as store:

        @sa.event.listens_for(engine, "do_connect")
        def note(dialect: Any, record: object, args: object, params: dict[str, Any]) -> None:
            seen.append(dict(params))
            raise dialect.dbapi.OperationalError("no")

        with pytest.raises(StoreError):
            claimed(store, key())
        with pytest.raises(sa.exc.OperationalError):
            engine.connect()
    ours, own = seen
    assert int(ours["connect_timeout"]) == int(own["connect_timeout"]) == 7
    assert ours.get("read_timeout") == (0.3 if "pymysql" in driver else None)
    assert "read_timeout" not in own


@pytest.mark.parametrize("kind", URLS)
def test_a_store_that_first_connects_to_a_sleeping_server_gives_up(servers: Servers, kind: str) -> None:
    """Behaviour 48: and connects when it is awake."""
    server = server_of(servers, kind)
    database = Database(kind, server.url)
    store = database.store(timeout=1)
    server.pause()
    try:
        assert in_time(lambda: claimed(store, key())).key == key()
    finally:
        server.resume()
    assert claimed(store, key()).acquired
    database.end()


@pytest.mark.parametrize("kind", URLS)
def test_a_store_that_lost_its_connections_and_finds_the_server_asleep_gives_up(servers: Servers, kind: str) -> None:
    """Behaviour 48: and so does whoever lost its connection to a server that then fell asleep."""
    server = server_of(servers, kind)
    database = Database(kind, server.url)
    store = database.store(timeout=1)
    assert claimed(store, key("warm")).acquired
    server.restart()
    server.pause()
    try:
        assert in_time(lambda: claimed(store, key())).key == key()
    finally:
        server.resume()
    assert claimed(store, key()).acquired
    database.end()


def test_a_connection_that_the_applications_function_makes_is_limited_once_it_is_there(servers: Servers) -> None:
    """Behaviour 48: the function limits the connecting, and the store what it then asks."""
    server = servers.mysql()
    database = Database("mariadb", server.url)
    plain = database.engine()
    connect = functools.partial(plain.dialect.connect, *plain.dialect.create_connect_args(database.url)[0])
    params = plain.dialect.create_connect_args(database.url)[1]
    engine = database.engine(creator=lambda: connect(**params), poolclass=NullPool)
    with SqlAlchemyStore(engine, table=database.table, timeout=1) as store:
        assert claimed(store, key("warm")).acquired
        server.pause()
        try:
            assert in_time(lambda: store.get(key())).key == key()
        finally:
            server.resume()
    database.end()


@pytest.mark.parametrize("kind", URLS)
def test_a_server_that_slept_answers_late_and_the_same_owner_wins(servers: Servers, kind: str) -> None:
    """Behaviour 48: the first answer is given up, and asked for again; the claim stands once."""
    server = server_of(servers, kind)
    database = Database(kind, server.url)
    store, patient = database.store(timeout=1), database.store(timeout=PATIENCE)
    Idempotency(store, namespace="asleep").run("warm", dict)
    patient.get(key("warm"))
    with ThreadPoolExecutor(1) as pool:
        server.pause()
        try:
            assert in_time(lambda: claimed(store, key())).key == key()
            late = pool.submit(claimed, patient, key())
            with pytest.raises(TimeoutError):
                late.result(0.2)  # a server that slept not would have answered
        finally:
            server.resume()
        assert late.result(PATIENCE).acquired
    record = store.get(key())
    assert record is not None
    assert (record.state, record.owner, record.attempt) == (State.RUNNING, "owner-a", 1)
    assert not claimed(store, key(), "owner-b").acquired
    database.end()


@pytest.mark.parametrize("kind", URLS)
def test_coroutines_give_up_a_server_that_sleeps(servers: Servers, kind: str) -> None:
    """Behaviours 32, 48: within the time-out, cancelled or not, connected or not, and go on when it is awake."""
    server = server_of(servers, kind)
    database = Database(kind, server.url)

    async def main() -> None:
        async with database.async_store(timeout=1) as store, database.async_store(timeout=1) as cold:
            await store.claim(key("warm"), owner="owner-a", fingerprint=None, lease=60, ttl=60)
            server.pause()
            try:
                for each in (store, cold):
                    started = time.monotonic()
                    with pytest.raises(StoreError):
                        await each.claim(key(), owner="owner-a", fingerprint=None, lease=60, ttl=60)
                    assert time.monotonic() - started < LIMIT
            finally:
                server.resume()
            for each in (store, cold):
                assert (await each.claim(key(), owner="owner-a", fingerprint=None, lease=60, ttl=60)).acquired

    asyncio.run(main())
    database.end()
