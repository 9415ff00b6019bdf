"""A shop on each database: a table of orders, a store beside it, and desks that serve it, each in one transaction.

A desk is a connection or an ORM session, sync or async, behind one set of plain calls: each test is written once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from idempo import Event, EventKind, Idempotency, Key
from idempo.stores._sql_joining_servers import ReservedFirst, server_of
from idempo.stores._sql_mysql import MYSQL
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from idempo.testing.bridge import LoopThread

if TYPE_CHECKING:
    import pytest

KEY = "order-42"
NAME = Key("billing", KEY)
PATIENCE = 20.0
DATABASES = ("postgresql", "mariadb", "mysql", "sqlite")
COLOURS = ("connection", "session", "async connection", "async session")

Statements: TypeAlias = Sequence[str]


class OutOfStockError(Exception):
    """What a body raises."""


class Desk:
    """One transaction at a time, by a plain connection or session."""

    def __init__(self, shop: Shop, colour: str, policy: dict[str, Any], **options: Any) -> None:
        self.shop = shop
        self.policy = policy
        self.options = options
        self.engine: Any = (
            shop.engine
            if not options.get("isolation_level")
            else shop.engine.execution_options(isolation_level=options.pop("isolation_level"))
        )
        self.caller: Any = Session(self.engine) if colour == "session" else self.engine.connect()

    def begin(self) -> None:
        self.caller.begin()

    def execute(self, statement: str) -> list[Any]:
        result = self.caller.execute(sa.text(self.shop.named(statement)))
        return list(result.fetchall()) if result.returns_rows else []

    def commit(self) -> None:
        self.caller.commit()

    def rollback(self) -> None:
        self.caller.rollback()

    def close(self) -> None:
        self.caller.close()

    @property
    def guard(self) -> Idempotency:
        joined = self.shop.store.joining(self.caller, **self.options)
        return Idempotency(joined, namespace="billing", observers=[self.shop.events.append], **self.policy)

    def call(self, *statements: str, key: str = KEY, payload: Any = None, error: BaseException | None = None) -> Any:
        """Run the statements as one guarded operation."""

        def body() -> str:
            for statement in statements:
                self.execute(statement)
            if error is not None:
                raise error
            return "placed"

        return self.guard.run(key, body, payload=payload)

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the guard that has a twin for coroutines."""
        return getattr(self.guard, method)(*args, **options)


class AsyncDesk(Desk):
    """One transaction at a time, by an AsyncConnection or an AsyncSession, on the shop's loop."""

    def __init__(self, shop: Shop, colour: str, policy: dict[str, Any], **options: Any) -> None:
        self.shop = shop
        self.policy = policy
        self.options = options
        self.engine = shop.async_engine
        if level := options.pop("isolation_level", None):
            self.engine = self.engine.execution_options(isolation_level=level)
        self.run = shop.loop.run
        if colour == "async session":
            self.caller = AsyncSession(self.engine)
        else:
            self.caller = self.run(self._connect())

    async def _connect(self) -> Any:
        return await self.engine.connect()

    async def _execute(self, statement: str) -> list[Any]:
        result = await self.caller.execute(sa.text(self.shop.named(statement)))
        return list(result.fetchall()) if result.returns_rows else []

    def begin(self) -> None:
        self.run(self._awaited(self.caller.begin))

    def execute(self, statement: str) -> list[Any]:
        return self.run(self._execute(statement))

    def commit(self) -> None:
        self.run(self.caller.commit())

    def rollback(self) -> None:
        self.run(self.caller.rollback())

    def close(self) -> None:
        self.run(self.caller.close())

    async def _awaited(self, call: Callable[[], Any]) -> Any:
        return await call()

    @property
    def guard(self) -> Idempotency:
        joined = self.shop.async_store.joining(self.caller, **self.options)
        return Idempotency(joined, namespace="billing", observers=[self.shop.events.append], **self.policy)

    def call(self, *statements: str, key: str = KEY, payload: Any = None, error: BaseException | None = None) -> Any:
        async def body() -> str:
            for statement in statements:
                await self._execute(statement)
            if error is not None:
                raise error
            return "placed"

        return self.run(self.guard.run_async(key, body, payload=payload))

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        return self.run(getattr(self.guard, f"{method}_async")(*args, **options))


class Shop:
    """A database with an `orders` table and a table of records, both of this test alone."""

    def __init__(self, url: str, async_url: str, **engine_options: Any) -> None:
        mark = secrets.token_hex(6)
        self.records = f"records_{mark}"
        self.orders = f"orders_{mark}"
        self.engine = sa.create_engine(url, **engine_options)
        self.async_engine = create_async_engine(async_url, **engine_options)
        self.kind = self.engine.dialect.name
        self.store = SqlAlchemyStore(self.engine, table=self.records)
        self.async_store = AsyncSqlAlchemyStore(self.async_engine, table=self.records)
        self.events: list[Event] = []
        self.loop = LoopThread()
        self.store.create_table()
        with self.engine.begin() as connection:
            kind = " ENGINE=InnoDB" if self.kind in ("mysql", "mariadb") else ""
            connection.execute(sa.text(self.named(f"CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT){kind}")))

    def named(self, statement: str) -> str:
        """Return a statement that says `orders` and `records` with the names that the tables have."""
        return statement.replace("orders", self.orders).replace("records", self.records)

    @contextmanager
    def desk(self, colour: str, policy: dict[str, Any] | None = None, **options: Any) -> Iterator[Desk]:
        """Open a desk in a transaction that is rolled back in the end, unless it was committed."""
        make = AsyncDesk if colour.startswith("async") else Desk
        desk = make(self, colour, policy or {}, **options)
        try:
            desk.begin()
            yield desk
        finally:
            desk.close()

    def placed(self) -> list[int]:
        """Return the orders that are committed."""
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text(self.named("SELECT id FROM orders ORDER BY id"))))

    def kinds(self) -> list[EventKind]:
        """Return the kinds of the events so far."""
        return [event.kind for event in self.events]

    def close(self) -> None:
        """Close everything, and drop the tables of a server that others use."""
        if self.kind != "sqlite":
            with self.engine.begin() as connection:
                for table in (self.orders, self.records):
                    connection.execute(sa.text(f"DROP TABLE {table}"))
        self.store.close()
        self.engine.dispose()
        self.loop.run(self._close())
        self.loop.close()

    async def _close(self) -> None:
        await self.async_store.aclose()
        await self.async_engine.dispose()


PLACE = "INSERT INTO orders VALUES (42, 'book')"


def shops(request: pytest.FixtureRequest, path: Path) -> Iterator[Shop]:
    """A shop on the database that the fixture's parameter names; "mysql": on MariaDB, by the statements for MySQL."""
    if request.param == "sqlite":
        shop = sqlite_shop(path / "shop.db")
    elif request.param == "postgresql":
        shop = postgres_shop(request.getfixturevalue("postgres_url"))
    else:
        shop = mysql_shop(request.getfixturevalue("mysql_url"))
    if request.param == "mysql":
        for store in (shop.store, shop.async_store):
            server = server_of(shop.engine.dialect, store.table, time.time)
            server.statements._chosen = ReservedFirst(store.table.name, MYSQL)  # type: ignore[attr-defined]
            store._server = server
    yield shop
    shop.close()


def sqlite_shop(path: Path) -> Shop:
    """Return a shop in a file."""
    shop = Shop(f"sqlite:///{path}", f"sqlite+aiosqlite:///{path}", connect_args={"timeout": PATIENCE})
    with shop.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    return shop


def mysql_shop(url: str) -> Shop:
    """Return a shop on MariaDB."""
    return Shop(url, url.replace("pymysql", "asyncmy"))


def postgres_shop(url: str) -> Shop:
    """Return a shop on PostgreSQL."""
    return Shop(url, url)
