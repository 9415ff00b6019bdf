"""SqlAlchemyStore through the contract of every store, on each database."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from idempo.records import Key
from idempo.stores._sql_mysql import MySqlOrMariaDB, statements_for
from idempo.stores._sql_records import named
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from idempo.testing import AsyncStoreContract, FakeClock, StoreContract, check_store
from tests.servers import every_server

_DAMAGE = {
    "truncated": "outcome = substr(outcome, 1, 3)",
    "flipped": "attempt = attempt + 1",
    "newer": "version = version + 1",
    "foreign": "state = 7, owner = fingerprint, fingerprint = NULL, checksum = owner",
}


_RUN = secrets.token_hex(4)


def table_of(kind: str) -> str:
    """Return a table's name that no other run uses: the cases of one kind share it, since each has keys of its own."""
    return f"records_{kind}_{_RUN}"


def opened(store: SqlAlchemyStore) -> Iterator[SqlAlchemyStore]:
    """Make the store's table, and close everything in the end."""
    with store:
        store.create_table()
        yield store
    store._engine.dispose()


def opened_async(store: AsyncSqlAlchemyStore, run: Callable[[Any], Any]) -> Iterator[AsyncSqlAlchemyStore]:
    """`opened`, on a loop."""
    run(store.create_table())
    yield store
    run(store.aclose())
    run(store._engine.dispose())


def damage(url: sa.URL | str, table: str, key: Key, how: str) -> None:
    """Damage a row behind the store's back."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        changed = connection.execute(
            sa.text(f"UPDATE {table} SET {_DAMAGE[how]} WHERE id = :id"), {"id": named(key).id}
        )
        assert changed.rowcount == 1
    engine.dispose()


class TestPostgresql(StoreContract):
    own_clock = True
    unit = 0.1

    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[SqlAlchemyStore]:
        yield from opened(SqlAlchemyStore(sa.create_engine(postgres_url), table=table_of("postgresql")))

    def reopen(self, store: SqlAlchemyStore) -> SqlAlchemyStore:
        return SqlAlchemyStore(store._engine, table=store.table.name)

    def damage(self, store: SqlAlchemyStore, key: Key, how: str) -> None:
        damage(store._engine.url, store.table.name, key, how)


class TestAsyncPostgresql(AsyncStoreContract):
    own_clock = True
    unit = 0.1

    @pytest.fixture
    def store(self, postgres_url: str, run: Callable[[Any], Any]) -> Iterator[AsyncSqlAlchemyStore]:
        yield from opened_async(
            AsyncSqlAlchemyStore(create_async_engine(postgres_url), table=table_of("asyncpostgresql")), run
        )

    def reopen(self, store: AsyncSqlAlchemyStore) -> AsyncSqlAlchemyStore:
        return AsyncSqlAlchemyStore(store._engine, table=store.table.name)

    def damage(self, store: AsyncSqlAlchemyStore, key: Key, how: str) -> None:
        damage(store._engine.url, store.table.name, key, how)


class TestMariadb(StoreContract):
    own_clock = True
    unit = 0.1

    @pytest.fixture
    def store(self, mysql_url: str) -> Iterator[SqlAlchemyStore]:
        yield from opened(SqlAlchemyStore(sa.create_engine(mysql_url), table=table_of("mariadb")))

    def reopen(self, store: SqlAlchemyStore) -> SqlAlchemyStore:
        return SqlAlchemyStore(store._engine, table=store.table.name)

    def damage(self, store: SqlAlchemyStore, key: Key, how: str) -> None:
        damage(store._engine.url, store.table.name, key, how)


@every_server
class TestMysql(TestMariadb):
    """As on a server that has no RETURNING."""

    @pytest.fixture
    def store(self, mysql_url: str) -> Iterator[SqlAlchemyStore]:
        store = SqlAlchemyStore(sa.create_engine(mysql_url), table=table_of("mysql"))
        assert isinstance(store._statements, MySqlOrMariaDB)
        store._statements._chosen = statements_for("8.4.0", store.table.name)
        yield from opened(store)


class TestAsyncMariadb(AsyncStoreContract):
    own_clock = True
    unit = 0.1

    @pytest.fixture
    def store(self, mysql_url: str, run: Callable[[Any], Any]) -> Iterator[AsyncSqlAlchemyStore]:
        engine = create_async_engine(mysql_url.replace("pymysql", "asyncmy"))
        yield from opened_async(AsyncSqlAlchemyStore(engine, table=table_of("asyncmariadb")), run)

    def damage(self, store: AsyncSqlAlchemyStore, key: Key, how: str) -> None:
        damage(store._engine.url.set(drivername="mysql+pymysql"), store.table.name, key, how)


class TestSqlite(StoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock, tmp_path: Path) -> Iterator[SqlAlchemyStore]:
        engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db")
        yield from opened(SqlAlchemyStore(engine, table=table_of("sqlite"), clock=clock))

    def reopen(self, store: SqlAlchemyStore) -> SqlAlchemyStore:
        assert self._clock is not None
        return SqlAlchemyStore(store._engine, table=store.table.name, clock=self._clock)

    def damage(self, store: SqlAlchemyStore, key: Key, how: str) -> None:
        damage(store._engine.url, store.table.name, key, how)


class TestAsyncSqlite(AsyncStoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock, tmp_path: Path, run: Callable[[Any], Any]) -> Iterator[AsyncSqlAlchemyStore]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
        yield from opened_async(AsyncSqlAlchemyStore(engine, table=table_of("asyncsqlite"), clock=clock), run)

    def damage(self, store: AsyncSqlAlchemyStore, key: Key, how: str) -> None:
        damage(f"sqlite:///{store._engine.url.database}", store.table.name, key, how)


@pytest.mark.realtime
@pytest.mark.parametrize("seed", range(2))
def test_its_answers_can_be_explained_by_single_steps(postgres_url: str, seed: int) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    for store in opened(SqlAlchemyStore(sa.create_engine(postgres_url), table=table_of("steps"))):
        check_store(store, seed=seed, rounds=20)
