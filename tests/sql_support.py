"""What tests of the SQL stores share: databases by kind, tables of their own, and ways through a proxy."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from idempo.records import Key
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore

if TYPE_CHECKING:
    import pytest

PATIENCE = 30.0
URLS = {"postgresql": "postgres_url", "mariadb": "mysql_url"}
ASYNC_DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+asyncmy"}


def new_table() -> str:
    """Return a table's name that no other test uses: servers are shared."""
    return f"records_{secrets.token_hex(6)}"


def key(value: str = "order-42") -> Key:
    """Return a key in a namespace of these tests."""
    return Key("sql", value)


def claimed(store: Any, key: Key, owner: str = "owner-a", *, lease: float = 60.0) -> Any:
    """Claim for a minute."""
    return store.claim(key, owner=owner, fingerprint=None, lease=lease, ttl=60.0)


class Database:
    """A database of one kind, and stores in it, each on an engine of its own, by whatever way."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = sa.make_url(url)
        self.table = new_table()
        self._engines: list[sa.Engine] = []
        self._stores: list[SqlAlchemyStore] = []
        self.store().create_table()

    def engine(self, port: int | None = None, **options: Any) -> sa.Engine:
        """Return an engine, by this port."""
        made = sa.create_engine(self.url if port is None else self.url.set(port=port), **options)
        self._engines.append(made)
        return made

    def store(self, port: int | None = None, **options: Any) -> SqlAlchemyStore:
        """Return a store, by this port."""
        made = SqlAlchemyStore(self.engine(port, poolclass=NullPool), table=self.table, **options)
        self._stores.append(made)
        return made

    def async_engine(self, port: int | None = None) -> AsyncEngine:
        """Return an engine for coroutines, by this port."""
        url = self.url if port is None else self.url.set(port=port)
        return create_async_engine(url.set(drivername=ASYNC_DRIVERS[self.kind]), poolclass=NullPool)

    def async_store(self, port: int | None = None, **options: Any) -> AsyncSqlAlchemyStore:
        """Return a store for coroutines, by this port."""
        return AsyncSqlAlchemyStore(self.async_engine(port), table=self.table, **options)

    @contextmanager
    def connected(self, **options: Any) -> Iterator[sa.Connection]:
        """Give a connection beside the stores."""
        with self.engine(poolclass=NullPool, **options).connect() as connection:
            yield connection

    def execute(self, statement: str, **params: Any) -> list[Any]:
        """Execute something beside the stores, in autocommit; ``{table}`` is the table."""
        with self.connected(isolation_level="AUTOCOMMIT") as connection:
            result = connection.execute(sa.text(statement.format(table=self.table)), params)
            return list(result.all()) if result.returns_rows else []

    def end(self) -> None:
        """Close everything, and remove the table."""
        for store in self._stores:
            store.close()
        self.execute("DROP TABLE IF EXISTS {table}")
        for engine in self._engines:
            engine.dispose()


def opened(request: pytest.FixtureRequest, kind: str) -> Iterator[Database]:
    """Open a database of this kind, on the server that all tests share."""
    made = Database(kind, request.getfixturevalue(URLS[kind]))
    yield made
    made.end()
