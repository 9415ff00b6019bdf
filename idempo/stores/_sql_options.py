"""What an SQL driver may be told in a URL's query: of the driver, for SQLAlchemy hands on what it does not know."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlalchemy as sa

_SQLITE = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri"}


def unknown(dialect: sa.Dialect, url: sa.URL) -> Iterator[str]:
    """Yield the names in a URL's query that the driver would refuse at the first connection, or not look at."""
    if dialect.name == "sqlite":
        # With uri=true the rest is for SQLite itself, which passes by what it does not know.
        return iter(() if url.query.get("uri") == "true" else sorted(set(url.query) - _SQLITE))
    made: dict[str, Any] = dict(dialect.create_connect_args(url)[1])
    known = _known(dialect)
    return (name for name in url.query if name in made and name not in known)  # what is not in it SQLAlchemy has used


def _known(dialect: sa.Dialect) -> set[str]:
    module: Any = dialect.dbapi
    if dialect.name == "postgresql":
        psycopg = getattr(module, "psycopg", module)  # SQLAlchemy wraps what is for coroutines
        return {each.keyword.decode() for each in psycopg.pq.Conninfo.get_defaults()}  # libpq's own list
    connect = module.asyncmy.connect if dialect.driver == "asyncmy" else module.connections.Connection
    return set(inspect.signature(connect).parameters)
