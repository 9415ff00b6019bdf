"""What an SQL store needs for the engine that it is given: statements in its server's words, and its driver."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import sqlalchemy as sa
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from idempo.stores._sql_connections import LaneLike
from idempo.stores._sql_postgresql import PostgreSQL
from idempo.stores._sql_scripts import Statements
from idempo.stores._sql_stepwise import SQLITE, Stepwise
from idempo.stores._sql_table import quoted

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from idempo.stores._sql_connections_async import AsyncLaneLike

_Lane = TypeVar("_Lane")

_SYNC = "postgresql+psycopg, mysql+pymysql, mariadb+pymysql or sqlite"
_ASYNC = "postgresql+psycopg, mysql+asyncmy, mariadb+asyncmy or sqlite+aiosqlite"


@attrs.frozen
class Parts(Generic[_Lane]):
    """What a store on an engine is made of: its statements, a maker of lanes, and the errors of these."""

    statements: Statements
    lane: Callable[[Any], _Lane]
    errors: tuple[type[Exception], ...]
    notifying: PostgreSQL | None = None
    """The statements again, where they tell of changes."""


def sync_parts(
    engine: sa.Engine, table: sa.Table, *, timeout: float, clock: Callable[[], float], notify: bool
) -> Parts[LaneLike]:
    """Return what a `SqlAlchemyStore` on this engine is made of.

    Raises:
        TypeError: It is no Engine.
        ValueError: The store does not know the database, or the driver, or cannot make connections of its own.
    """
    if not isinstance(engine, sa.Engine):
        hint = ": for an AsyncEngine there is AsyncSqlAlchemyStore" if hasattr(engine, "sync_engine") else ""
        raise TypeError(f"engine must be an sqlalchemy.Engine, not {type(engine).__name__}{hint}")
    _check(engine)
    statements = _statements(engine.dialect, table, clock, notify=notify)
    match engine.dialect.name, engine.dialect.driver:
        case "postgresql", "psycopg":
            from idempo.stores._sql_psycopg import ERRORS, Lane

            return Parts(statements, partial(Lane, timeout=timeout), ERRORS, _notifying(statements))
        case "sqlite", "pysqlite":
            from idempo.stores._sql_drivers import SQLITE_ERRORS, SqliteLane

            return Parts(statements, partial(SqliteLane, timeout=timeout), SQLITE_ERRORS)
        case "mysql" | "mariadb", "pymysql":
            from idempo.stores._sql_drivers import PyMySqlLane

            dbapi: Any = engine.dialect.dbapi
            return Parts(statements, partial(PyMySqlLane, timeout=timeout), (dbapi.Error, OSError))
        case _:
            raise ValueError(f"the store does not know {_kind(engine.dialect)}: use {_SYNC}")


def async_parts(
    engine: AsyncEngine, table: sa.Table, *, timeout: float, clock: Callable[[], float], notify: bool
) -> Parts[AsyncLaneLike]:
    """Return what an `AsyncSqlAlchemyStore` on this engine is made of.

    Raises:
        TypeError: It is no AsyncEngine.
        ValueError: The store does not know the database, or the driver, or cannot make connections of its own.
    """
    from sqlalchemy.ext.asyncio import AsyncEngine  # which needs greenlet, as the plain half does not

    if not isinstance(engine, AsyncEngine):
        hint = ": for an Engine there is SqlAlchemyStore" if isinstance(engine, sa.Engine) else ""
        raise TypeError(f"engine must be an sqlalchemy.ext.asyncio.AsyncEngine, not {type(engine).__name__}{hint}")
    _check(engine.sync_engine)
    statements = _statements(engine.dialect, table, clock, notify=notify)
    match engine.dialect.name, engine.dialect.driver:
        case "postgresql", "psycopg_async" | "psycopg":
            from idempo.stores._sql_psycopg import ERRORS, AsyncLane

            return Parts(statements, partial(AsyncLane, timeout=timeout), ERRORS, _notifying(statements))
        case "sqlite", "aiosqlite":
            from idempo.stores._sql_drivers import SQLITE_ERRORS, AioSqliteLane

            return Parts(statements, partial(AioSqliteLane, timeout=timeout), SQLITE_ERRORS)
        case "mysql" | "mariadb", "asyncmy":
            from asyncmy.errors import Error

            from idempo.stores._sql_drivers import AioMySqlLane

            return Parts(statements, partial(AioMySqlLane, timeout=timeout), (Error, OSError))
        case _:
            raise ValueError(f"the store does not know {_kind(engine.dialect)}: use {_ASYNC}")


def _kind(dialect: sa.Dialect) -> str:
    return f"{dialect.name}+{dialect.driver}"


def _check(engine: sa.Engine) -> None:
    url = engine.url
    if engine.dialect.name == "sqlite" and (
        url.database in (None, "", ":memory:") or url.query.get("mode") == "memory" or ":memory:" in str(url.database)
    ):
        raise ValueError("the engine's database is in memory: for records in memory use idempo.MemoryStore")
    if isinstance(engine.pool, StaticPool | SingletonThreadPool | AssertionPool):
        raise ValueError(  # noqa: TRY004  # an engine it is
            f"the store needs connections of its own, which a {type(engine.pool).__name__} does not make: "
            "give it an engine with SQLAlchemy's default pool, or with a NullPool"
        )


def _statements(
    dialect: sa.Dialect, table: sa.Table, clock: Callable[[], float], *, notify: bool = False
) -> Statements:
    name = quoted(table, dialect)
    match dialect.name:
        case "postgresql":
            return PostgreSQL(name, notify=notify)
        case "mysql" | "mariadb":
            from idempo.stores._sql_mysql import MySqlOrMariaDB

            return MySqlOrMariaDB(name)
        case _:
            return Stepwise(name, attrs.evolve(SQLITE, clock=clock))


def _notifying(statements: Statements) -> PostgreSQL | None:
    return statements if isinstance(statements, PostgreSQL) and statements.channel is not None else None
