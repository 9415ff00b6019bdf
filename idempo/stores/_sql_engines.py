"""What an SQL store needs for the engine that it is given: statements in its server's words, and its driver."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import sqlalchemy as sa

from idempo.stores._sql_connections import LaneLike
from idempo.stores._sql_scripts import Statements
from idempo.stores._sql_table import quoted


@attrs.frozen
class SyncParts:
    """What `Connections` are made of."""

    statements: Statements
    lane: Callable[[Any], LaneLike]
    errors: tuple[type[Exception], ...]


def engine_of(engine: object) -> sa.Engine:
    """Return the engine, if it is one.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(engine, sa.Engine):
        raise TypeError(f"engine must be an sqlalchemy.Engine, not {type(engine).__name__}")
    return engine


def sync_parts(engine: sa.Engine, table: sa.Table, timeout: float) -> SyncParts:
    """Return what a `SqlAlchemyStore` on this engine is made of.

    Raises:
        ValueError: The store does not know the database, or the driver.
    """
    match engine.dialect.name, engine.dialect.driver:
        case "postgresql", "psycopg":
            from idempo.stores._sql_postgresql import PostgreSQL
            from idempo.stores._sql_psycopg import ERRORS, Lane

            return SyncParts(PostgreSQL(quoted(table, engine.dialect)), partial(Lane, timeout=timeout), ERRORS)
        case name, driver:
            raise ValueError(f"the store does not know {name}+{driver}: use postgresql+psycopg")
