"""SqlAlchemyStore and AsyncSqlAlchemyStore: what they are made of, what they refuse, and what needs no server."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from idempo import Idempotency, Key, RecordError, State, StoreError
from idempo.errors import StoreFullError
from idempo.records import Record
from idempo.stores import _sql_table
from idempo.stores._sql_errors import Trouble, translated, trouble_of
from idempo.stores._sql_mysql import MariaDB, statements_for
from idempo.stores._sql_records import named
from idempo.stores._sql_scripts import BATCH
from idempo.stores._sql_stepwise import Stepwise, row_of
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from tests.sql_support import claimed, key

RECORD = Record(State.COMPLETED, None, 1, 1, "owner-a", b"outcome", None, 3600.0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = sa.create_engine(f"sqlite:///{tmp_path}/app.db")
    yield made
    made.dispose()


@pytest.fixture
def store(engine: sa.Engine) -> Iterator[SqlAlchemyStore]:
    with SqlAlchemyStore(engine) as store:
        store.create_table()
        yield store


def test_what_is_no_engine_is_refused(engine: sa.Engine, tmp_path: Path) -> None:
    """Bad input: with a hint where it is one for the other store."""
    made: Any = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    anything: Any = "sqlite:///app.db"
    for factory, given, hint in (
        (SqlAlchemyStore, made, "AsyncSqlAlchemyStore"),
        (SqlAlchemyStore, anything, "not str"),
        (AsyncSqlAlchemyStore, engine, "there is SqlAlchemyStore"),
        (AsyncSqlAlchemyStore, anything, "not str"),
    ):
        with pytest.raises(TypeError, match=hint):
            factory(given)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """Bad input: each connection would have one of its own."""
    with pytest.raises(ValueError, match=r"use idempo\.MemoryStore"):
        SqlAlchemyStore(sa.create_engine(url, poolclass=NullPool))


def test_an_engine_of_one_connection_is_refused(tmp_path: Path) -> None:
    """Bad input: the store needs connections of its own."""
    with pytest.raises(ValueError, match="a StaticPool does not make"):
        SqlAlchemyStore(sa.create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=StaticPool))


def test_a_driver_that_is_not_known_is_refused(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: and those that are, are named."""
    monkeypatch.setattr(type(engine.dialect), "driver", "other")
    with pytest.raises(ValueError, match=r"does not know sqlite\+other: use postgresql\+psycopg"):
        SqlAlchemyStore(engine)
    made = create_async_engine("sqlite+aiosqlite:///app.db")
    monkeypatch.setattr(type(made.dialect), "driver", "other")
    with pytest.raises(ValueError, match=r"use postgresql\+psycopg, mysql\+asyncmy"):
        AsyncSqlAlchemyStore(made)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"table": 5}, TypeError, "table must be a name, not int"),
        ({"table": "a b"}, ValueError, "at most 63 ASCII letters"),
        ({"table": "x" * 64}, ValueError, "at most 63"),
        ({"table": 'x"; DROP TABLE y; --'}, ValueError, "at most 63"),
        ({"schema": "a.b"}, ValueError, "schema must be a name"),
        ({"max_connections": 0}, ValueError, "at least 1"),
        ({"max_connections": 1.5}, TypeError, "whole number"),
        ({"max_connections": True}, TypeError, "whole number, not bool"),
        ({"notify": "no"}, TypeError, "notify must be True or False, not str"),
        ({"clock": 3}, TypeError, "clock must be a function that gives seconds, not int"),
        ({"timeout": -1}, ValueError, "timeout"),
    ],
)
def test_options_out_of_range_are_refused(engine: sa.Engine, options: Any, error: type[Exception], text: str) -> None:
    """Bad input: when the store is made."""
    with pytest.raises(error, match=text):
        SqlAlchemyStore(engine, **options)


def test_it_says_what_it_is(store: SqlAlchemyStore) -> None:
    """The database and the table."""
    assert repr(store).startswith("SqlAlchemyStore(Engine(sqlite:///")
    assert repr(store).endswith("table='idempo_records')")
    assert store.table.name == "idempo_records"


def test_the_statements_that_make_the_table_are_to_be_had(tmp_path: Path) -> None:
    """Behaviour 53: for a migration; a table made by them is the store's."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db")
    with SqlAlchemyStore(engine, table="kept") as store, sqlite3.connect(tmp_path / "app.db") as connection:
        connection.executescript(store.ddl())
        store.create_table()
        assert claimed(store, key()).acquired
    connection.close()
    engine.dispose()
    table = _sql_table.records_table("kept", "billing")
    assert "CREATE TABLE billing.kept" in _sql_table.ddl(table, postgresql.dialect())
    made = _sql_table.ddl(table, mysql.dialect())
    assert "id BINARY(48)" in made
    assert "outcome LONGBLOB" in made
    assert "ENGINE=InnoDB" in made


def test_many_make_an_sqlite_table_at_once(engine: sa.Engine) -> None:
    """Behaviour 53: there is no lock to take before one writes."""
    barrier = threading.Barrier(4)
    failed: list[BaseException] = []

    def make() -> None:
        try:
            barrier.wait(10)
            SqlAlchemyStore(engine).create_table()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_closed_store_refuses(engine: sa.Engine, tmp_path: Path) -> None:
    """Behaviour 32: a StoreError, also for what was running."""
    store = SqlAlchemyStore(engine)
    store.create_table()
    claimed(store, key())
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        store.get(key())

    async def main() -> None:
        made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
        other = AsyncSqlAlchemyStore(made)
        assert await other.get(key()) is not None
        await other.aclose()
        with pytest.raises(StoreError, match="was closed"):
            await other.get(key())
        await made.dispose()

    asyncio.run(main())


def test_coroutines_are_told_what_is_the_matter_with_their_table(tmp_path: Path) -> None:
    """Behaviours 35, 53: none, or one that is not ours."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db", poolclass=NullPool)
        async with AsyncSqlAlchemyStore(engine) as store:
            with pytest.raises(StoreError, match=r"call create_table\(\)"):
                await store.get(key())
            async with engine.begin() as connection:
                await connection.execute(sa.text("CREATE TABLE idempo_records (id INTEGER)"))
            with pytest.raises(RecordError, match="columns id"):
                await store.create_table()
            with pytest.raises(RecordError):
                await store.get(key())
        folder = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/none/app.db", poolclass=NullPool)
        async with AsyncSqlAlchemyStore(folder) as store:
            for ask in (store.create_table(), store.get(key())):
                with pytest.raises(StoreError):
                    await ask

    asyncio.run(main())


def test_a_locked_file_is_waited_for_within_bounds(engine: sa.Engine) -> None:
    """Behaviours 48, 51: then it is a StoreError, and never "absent"; a replay waits for nobody."""
    with SqlAlchemyStore(engine, timeout=0.2) as store, engine.connect() as other:
        store.create_table()
        guard = Idempotency(store, namespace="locked")
        guard.run("order-42", lambda: "placed")
        other.exec_driver_sql("BEGIN IMMEDIATE")
        assert guard.run("order-42", pytest.fail) == "placed"
        with pytest.raises(StoreError, match="in the way"):
            claimed(store, key())
        other.rollback()
        assert claimed(store, key()).acquired


def test_coroutines_wait_for_a_locked_file_as_long(tmp_path: Path) -> None:
    """Behaviours 48, 51: and go on when it is free."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
        async with AsyncSqlAlchemyStore(engine, timeout=0.2) as store, engine.connect() as other:
            await store.create_table()
            await other.exec_driver_sql("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="in the way"):
                await store.claim(key(), owner="owner-a", fingerprint=None, lease=60, ttl=60)
            await other.rollback()
            assert (await store.claim(key(), owner="owner-a", fingerprint=None, lease=60, ttl=60)).acquired
        await engine.dispose()

    asyncio.run(main())


def test_a_store_that_nobody_closed_leaves_no_connection(tmp_path: Path) -> None:
    """Behaviour 41: they are closed with it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=NullPool)
    store = SqlAlchemyStore(engine)
    store.create_table()
    claimed(store, key())
    lane = store._connections._idle[0]
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError):
        lane.execute("SELECT 1", {})


def test_a_namespace_of_many_pages_is_listed_and_purged(store: SqlAlchemyStore, tmp_path: Path) -> None:
    """Behaviour 52: a batch at a time, plainly and by coroutines."""
    database = sqlite3.connect(tmp_path / "app.db")
    claimed(store, key())
    for space in ("one", "two"):
        rows = [row_of(named(Key(space, str(number))), RECORD, int(time.time() * 1e6)) for number in range(BATCH + 1)]
        names = ", ".join(rows[0])
        marks = ", ".join(f":{name}" for name in rows[0])
        database.executemany(f"INSERT INTO idempo_records ({names}) VALUES ({marks})", rows)
    database.commit()
    database.close()
    assert len(list(store.scan("one"))) == BATCH + 1
    assert store.purge("one") == BATCH + 1
    assert list(store.scan("one")) == []

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
        async with AsyncSqlAlchemyStore(engine) as other:
            assert len([found async for found in other.scan("two")]) == BATCH + 1
            assert await other.purge("two") == BATCH + 1
        await engine.dispose()

    asyncio.run(main())
    assert store.get(key()) is not None


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("10.11.6-MariaDB-0+deb12u1", MariaDB),
        ("5.5.5-11.4.2-MariaDB", MariaDB),
        ("10.4.33-MariaDB", Stepwise),
        ("8.4.0", Stepwise),
        ("9.0.1-commercial", Stepwise),
    ],
)
def test_the_servers_version_chooses_the_statements(version: str, kind: type) -> None:
    """Behaviour 46: only MariaDB since 10.5 says what stands after an INSERT."""
    assert isinstance(statements_for(version, "records"), kind)


def raised_by(statement: str) -> sqlite3.Error:
    """Return what SQLite says to a statement that is none."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(statement)
    except sqlite3.Error as error:
        return error
    finally:
        connection.close()
    raise AssertionError


class _Error(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("what the server said")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (_Error("53100"), StoreFullError, "no room"),
        (_Error("26000"), StoreError, "prepare_threshold"),
        (_Error("42501"), StoreError, "refused"),
        (_Error("57P01"), StoreError, "was lost"),
        (_Error(None), StoreError, "was lost"),
        (_Error("XX001"), RecordError, "cannot be read"),
        (Exception(1021, "Disk full"), StoreFullError, "no room"),
        (Exception(2006, "gone"), StoreError, "was lost"),
        (Exception("odd"), StoreError, "refused"),
        (sqlite3.Error("odd"), StoreError, "refused"),
        (raised_by("SELECT"), StoreError, "refused"),
    ],
)
def test_what_drivers_raise_is_told_in_our_words(error: Exception, kind: type[Exception], text: str) -> None:
    """Behaviours 32, 35, 49: with what the server said, and the key."""
    told = translated(error, "records", key())
    assert type(told) is kind
    assert text in str(told)
    assert told.key == key()
    assert str(error) in str(told)
    assert trouble_of(Exception()) is Trouble.CUT
