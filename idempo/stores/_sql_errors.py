"""What the errors of database drivers mean. Drivers are known by the marks on their errors, so none is imported."""

from __future__ import annotations

import enum
import sqlite3
from typing import Final

from idempo.errors import IdempotencyError, RecordError, StoreError, StoreFullError
from idempo.records import Key


class Trouble(enum.Enum):
    """What to do about an error."""

    AGAIN = enum.auto()
    """Others were in the way (deadlock, serialization failure, lock): nothing was done, and it may be tried again."""
    CUT = enum.auto()
    """The connection is gone, and whether the statement was executed is not known."""
    SILENT = enum.auto()
    """There was no answer in time, or nobody there who would give one."""
    LARGE = enum.auto()
    """The statement, and so the outcome in it, is larger than the server takes."""
    FULL = enum.auto()
    """There is no room left."""
    ABSENT = enum.auto()
    """There is no such table."""
    FOREIGN = enum.auto()
    """There is a table, but it is not ours; or it cannot be read."""
    POOLED = enum.auto()
    """A prepared statement is not known on this connection of a pooler's."""
    OTHER = enum.auto()


class ClosedByForkError(Exception):
    """The connection was closed since this process forked. What had not been committed on it is undone."""


# https://www.postgresql.org/docs/current/errcodes-appendix.html
_SQLSTATES: Final = {
    "40001": Trouble.AGAIN,
    "40P01": Trouble.AGAIN,
    "55P03": Trouble.AGAIN,
    "57P01": Trouble.CUT,
    "57P02": Trouble.CUT,
    "57P05": Trouble.CUT,
    "53100": Trouble.FULL,
    "42P01": Trouble.ABSENT,
    "3F000": Trouble.ABSENT,
    "42703": Trouble.FOREIGN,
    "42804": Trouble.FOREIGN,
    "42883": Trouble.FOREIGN,
    "42P10": Trouble.FOREIGN,
    "XX001": Trouble.FOREIGN,
    "XX002": Trouble.FOREIGN,
    "26000": Trouble.POOLED,
    "42P05": Trouble.POOLED,
}

# https://mariadb.com/docs/server/reference/error-codes and MySQL's "Server Error Message Reference"
_NUMBERS: Final = {
    1213: Trouble.AGAIN,
    1205: Trouble.AGAIN,
    1020: Trouble.AGAIN,
    0: Trouble.CUT,
    1053: Trouble.CUT,
    1927: Trouble.CUT,
    2006: Trouble.CUT,
    2013: Trouble.CUT,
    2014: Trouble.CUT,
    2055: Trouble.CUT,
    4031: Trouble.CUT,
    1153: Trouble.LARGE,
    2002: Trouble.SILENT,
    2003: Trouble.SILENT,
    1021: Trouble.FULL,
    1114: Trouble.FULL,
    1146: Trouble.ABSENT,
    1049: Trouble.ABSENT,
    1054: Trouble.FOREIGN,
    1136: Trouble.FOREIGN,
}

_SQLITE: Final = {
    sqlite3.SQLITE_BUSY: Trouble.AGAIN,
    sqlite3.SQLITE_LOCKED: Trouble.AGAIN,
    sqlite3.SQLITE_PROTOCOL: Trouble.AGAIN,
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_CORRUPT: Trouble.FOREIGN,
    sqlite3.SQLITE_NOTADB: Trouble.FOREIGN,
    sqlite3.SQLITE_FORMAT: Trouble.FOREIGN,
}


def trouble_of(error: BaseException) -> Trouble:
    """Say what an error of a driver means."""
    if isinstance(error, ClosedByForkError):
        return Trouble.AGAIN
    if isinstance(error, sqlite3.Error):
        return _sqlite(error)
    if isinstance(error, TimeoutError) or type(error).__name__ == "ConnectionTimeout":  # the latter is psycopg's
        return Trouble.SILENT
    number = error.args[0] if error.args else 0
    if isinstance(number, int):  # before the next: MySQL's drivers give a state as well, and it says less
        return _NUMBERS.get(number, Trouble.OTHER)
    if hasattr(error, "sqlstate"):
        state: str | None = getattr(error, "sqlstate", None)
        if state is None or state.startswith("08"):  # libpq's own: the server did not say anything
            return Trouble.CUT
        return _SQLSTATES.get(state, Trouble.OTHER)
    return Trouble.OTHER


def _sqlite(error: sqlite3.Error) -> Trouble:
    code: int | None = getattr(error, "sqlite_errorcode", None)  # missing where Python's part raised it
    if code == sqlite3.SQLITE_ERROR:
        text = str(error)
        if text.startswith("no such table"):
            return Trouble.ABSENT
        if "column" in text:
            return Trouble.FOREIGN
    return Trouble.OTHER if code is None else _SQLITE.get(code & 0xFF, Trouble.OTHER)  # the rest tells a variant


def translated(error: BaseException, table: str, key: Key | None) -> IdempotencyError:  # noqa: PLR0911 (one a kind)
    """Return an error of a driver's as one of ours."""
    trouble = trouble_of(error)
    told = str(error).strip() or type(error).__name__
    if trouble is Trouble.CUT and "timed out" in told:  # PyMySQL's own words
        trouble = Trouble.SILENT
    match trouble:
        case Trouble.ABSENT:
            return StoreError(
                f"there is no table {table}: call create_table() once, or make it by a migration ({told})", key=key
            )
        case Trouble.FOREIGN:
            return RecordError(
                f"table {table} cannot be read; was it made by idempo, in this version? ({told})", key=key
            )
        case Trouble.FULL:
            return StoreFullError(f"the database has no room: {told}", key=key)
        case Trouble.AGAIN:
            return StoreError(f"others were in the way for too long: {told}", key=key)
        case Trouble.CUT:
            return StoreError(f"the connection to the database was lost, or not to be had: {told}", key=key)
        case Trouble.SILENT:
            return StoreError(f"the database did not answer in time, or cannot be reached: {told}", key=key)
        case Trouble.LARGE:
            return StoreError(
                f"the database takes no statement as large as this outcome's ({told}): give the store a "
                "largest_outcome, less than half of the server's max_allowed_packet",
                key=key,
            )
        case Trouble.POOLED:
            return StoreError(
                f"{told}: behind a pooler that knows no prepared statements, make the engine with "
                "connect_args={'prepare_threshold': None}",
                key=key,
            )
        case _:
            return StoreError(f"the database refused: {told}", key=key)
