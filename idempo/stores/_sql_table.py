"""The table that SQL stores keep their records in: its columns, how it is made, and whether it is ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from idempo.errors import RecordError, StoreError

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import mysql
    from sqlalchemy.exc import SQLAlchemyError as DatabaseError
    from sqlalchemy.schema import CreateIndex, CreateTable, SetColumnComment
except ImportError as error:  # pragma: no cover  # the tests have it
    raise ImportError('idempo.stores.sqlalchemy needs SQLAlchemy: pip install "idempo[sqlalchemy]"') from error

__all__ = ["DatabaseError", "check", "create", "ddl", "quoted", "records_table"]

_NAME: Final = re.compile(r"(?!sqlite_)[A-Za-z_][A-Za-z0-9_]{0,62}", re.IGNORECASE)
_LOCK: Final = int.from_bytes(b"idempo-t", "big", signed=True)

_STATES: Final = "1 running, 4 the same taken over, 5 that repeated, 2 completed, 3 released"

_PATIENCE = 30  # seconds

LONGEST_NAMESPACE: Final = 2048
"""Bytes; more than 255 characters and a guard's prefix take."""
LONGEST_VALUE: Final = 1020
LONGEST_OWNER: Final = 1020
LONGEST_FINGERPRINT: Final = 4096


def _bytes(length: int, *, fixed: bool = False) -> sa.types.TypeEngine[bytes]:
    kind: Any = mysql.BINARY(length) if fixed else mysql.VARBINARY(length)
    return sa.LargeBinary(length).with_variant(kind, "mysql", "mariadb")


def records_table(name: str, schema: str | None = None, metadata: sa.MetaData | None = None) -> sa.Table:
    """Return the table, as SQLAlchemy describes tables.

    Raises:
        TypeError: A name is no text.
        ValueError: A name is not of the form that is taken.
    """
    _check(name, "table")
    if schema is not None:
        _check(schema, "schema")
    return sa.Table(
        name,
        metadata or sa.MetaData(),
        sa.Column("id", _bytes(48, fixed=True), primary_key=True),
        sa.Column("namespace", _bytes(LONGEST_NAMESPACE), nullable=False),
        sa.Column("value", _bytes(LONGEST_VALUE), nullable=False),
        sa.Column("version", sa.SmallInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False, comment=_STATES),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("owner", _bytes(LONGEST_OWNER), nullable=False),
        sa.Column("fingerprint", _bytes(LONGEST_FINGERPRINT)),
        sa.Column("outcome", sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")),
        sa.Column("lease_ends", sa.BigInteger, comment="microseconds since 1970"),
        sa.Column("expires", sa.BigInteger, nullable=False, comment="microseconds since 1970"),
        sa.Column("checksum", _bytes(32), nullable=False),
        sa.Index(f"{name[:55]}_expires", "expires"),
        schema=schema,
        mysql_engine="InnoDB",
    )


def _check(name: object, what: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a name, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} must be a name of at most 63 ASCII letters, digits and underscores, "
            f"not beginning with a digit or with sqlite_, not {name!r}"
        )


def quoted(table: sa.Table, dialect: sa.Dialect) -> str:
    """Return the table's name as it stands in a statement."""
    return str(dialect.identifier_preparer.format_table(table))


def ddl(table: sa.Table, dialect: sa.Dialect) -> str:
    """Return the statements that make the table."""
    made: list[sa.schema.ExecutableDDLElement] = [CreateTable(table), *(CreateIndex(index) for index in table.indexes)]
    if dialect.supports_comments and not dialect.inline_comments:
        made += [SetColumnComment(column) for column in table.columns if column.comment]
    return "".join(f"{str(element.compile(dialect=dialect)).strip()};\n" for element in made)


def create(connection: sa.Connection, table: sa.Table) -> None:
    """Make the table, where it is not there yet, in the connection's transaction.

    Raises:
        RecordError: Something of that name is there, and it is not of this version's making.
        StoreError: Others who make it hold the lock for too long.
    """
    if connection.dialect.name == "sqlite":
        connection.detach()  # left in the engine's pool, it would cross a fork
    with_lock = _LOCKED.get(connection.dialect.name, _create)
    with_lock(connection, table)


def check(connection: sa.Connection, table: sa.Table) -> bool:
    """Say whether the table is there.

    Raises:
        RecordError: Something of that name is, and it is not of this version's making.
    """
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name, schema=table.schema):
        return False
    found = {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
    if found != set(table.columns.keys()):
        raise RecordError(
            f"table {table.name} was not made by idempo, or by another version of it: it has the columns "
            f"{', '.join(sorted(found))}{_hint(connection.dialect.name)}"
        )
    return True


def _hint(database: str) -> str:
    return " (a SqliteStore's in the same file is another: give each a table=)" if database == "sqlite" else ""


def _create(connection: sa.Connection, table: sa.Table) -> None:
    if not check(connection, table):
        table.create(connection)


def _on_postgresql(connection: sa.Connection, table: sa.Table) -> None:
    # CREATE TABLE IF NOT EXISTS at once from two sessions fails in one of them, on an index of the system's own.
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    _create(connection, table)


def _on_mysql(connection: sa.Connection, table: sa.Table) -> None:
    # Each of these statements commits what went before, so that no transaction can be the lock.
    name = {"name": f"idempo.{table.name}"[:64]}
    if connection.execute(sa.text(f"SELECT GET_LOCK(:name, {_PATIENCE})"), name).scalar() != 1:
        raise StoreError(f"others have been making table {table.name} for {_PATIENCE} s")
    try:
        _create(connection, table)
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), name)


def _on_sqlite(connection: sa.Connection, table: sa.Table) -> None:
    # The driver begins no transaction before it is asked to write, so two may both see no table.
    if not check(connection, table):
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))
        check(connection, table)


_LOCKED: Final[dict[str, Callable[[sa.Connection, sa.Table], None]]] = {
    "postgresql": _on_postgresql,
    "mysql": _on_mysql,
    "mariadb": _on_mysql,
    "sqlite": _on_sqlite,
}
