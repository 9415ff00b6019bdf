"""What each kind of server needs so that a record can be written in a transaction of the caller's.

The statements, how long they wait for others, and what the driver and its errors tell about the transaction. Drivers are
known by what they carry, so none is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import attrs
from sqlalchemy.exc import DBAPIError

from idempo.records import Key, Record
from idempo.stores._sql_postgresql import PostgreSQL
from idempo.stores._sql_records import found_at, named
from idempo.stores._sql_scripts import Script, Statements
from idempo.stores._sql_stepwise import SQLITE, Stepwise, Words
from idempo.stores._sql_table import quoted

if TYPE_CHECKING:
    import sqlalchemy as sa

_Answer = TypeVar("_Answer")


class Server(Protocol):
    """One kind of server, for one table."""

    @property
    def statements(self) -> Statements:
        """The methods of a store as scripts that take part in a transaction."""
        ...

    def bounded(self, script: Script[_Answer], limit: float | None) -> Script[_Answer]:
        """Run a script whose statements may have to wait for others, for ``limit`` seconds at most."""
        ...

    def prepared(self, limit: float | None) -> Script[None]:
        """Take what must be taken before anything is read in the transaction."""
        ...

    def is_autocommit(self, driver: Any, *, prepared: bool) -> bool:
        """Whether the driver's connection commits each statement by itself, as far as it can tell by now."""
        ...

    def is_failed(self, error: BaseException) -> bool:
        """Whether an error says that the transaction failed before."""
        ...

    def is_savepoint_gone(self, error: BaseException) -> bool:
        """Whether an error says that there is no such savepoint, or no transaction."""
        ...


# What one kind of server does not need, another does.
# ruff: noqa: ARG002


def server_of(dialect: sa.Dialect, table: sa.Table, clock: Callable[[], float]) -> Server:
    """Return what is needed on the server of this dialect, which is one that the store knows."""
    name = quoted(table, dialect)
    return _PostgreSQL(name) if dialect.name == "postgresql" else _SQLite(name, clock)


class _PostgreSQL:
    """Whoever claims waits on an advisory lock of the transaction, and then sees what was committed, or is told 40001.

    READ COMMITTED sees it; REPEATABLE READ and SERIALIZABLE refuse (PostgreSQL, "Transaction Isolation").
    """

    def __init__(self, table: str) -> None:
        self.statements = PostgreSQL(table)

    def bounded(self, script: Script[_Answer], limit: float | None) -> Script[_Answer]:
        if limit is None:
            return (yield from script)
        rows = yield _LIMIT, {"limit": f"{max(1, math.ceil(limit * 1000))}ms"}
        # Where the script fails, so has the transaction, and what is rolled back takes the setting along.
        answer = yield from script
        yield "SELECT set_config('lock_timeout', %(own)s, true)", {"own": rows[0][0]}
        return answer

    def prepared(self, limit: float | None) -> Script[None]:
        yield from ()

    def is_autocommit(self, driver: Any, *, prepared: bool) -> bool:
        return bool(driver.autocommit) and int(driver.pgconn.transaction_status) == 0  # and nobody sent a BEGIN

    def is_failed(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) == "25P02"  # in_failed_sql_transaction

    def is_savepoint_gone(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) in ("3B001", "25P01")  # no such savepoint; no transaction


# The shorter one of ours and the session's own, of which 0 is none.
_LIMIT: Final = (
    "SELECT own, set_config('lock_timeout', CASE WHEN own::interval > '0' AND own::interval < %(limit)s::text::interval"
    " THEN own ELSE %(limit)s::text END, true) FROM (SELECT current_setting('lock_timeout') AS own OFFSET 0) t"
)


class LockedFirst(Stepwise):
    """`Stepwise` in a transaction of the caller's, and by what stands, not by what his snapshot shows."""

    def __init__(self, table: str, words: Words) -> None:
        super().__init__(table, attrs.evolve(words, begin=None))
        self._seen = self._read
        self._read = self._lock

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`, as the transaction sees it."""
        name = named(key)
        rows = yield self._asked(self._seen, id=name.id)
        return found_at(key, name, rows[0])[0]


class _SQLite:
    """The write lock comes before anything is read.

    A transaction that read first, before others wrote, can only fail when it writes in its turn (SQLite,
    "Isolation In SQLite"). The statement that takes the lock also makes Python's driver begin its transaction, which it
    otherwise leaves until later (SQLAlchemy, "Serializable isolation / Savepoints / Transactional DDL").
    """

    def __init__(self, table: str, clock: Callable[[], float]) -> None:
        self.statements = LockedFirst(table, attrs.evolve(SQLITE, clock=clock))
        self._lock = f"DELETE FROM {table} WHERE 0"

    def bounded(self, script: Script[_Answer], limit: float | None) -> Script[_Answer]:
        return (yield from script)  # there is one lock, and it is held

    def prepared(self, limit: float | None) -> Script[None]:
        if limit is None:
            yield self._lock, {}
            return
        rows = yield "PRAGMA busy_timeout", {}
        own, ours = rows[0][0], math.ceil(limit * 1000)
        if own <= ours:
            yield self._lock, {}
            return
        yield f"PRAGMA busy_timeout = {ours}", {}
        try:
            yield self._lock, {}
        except DBAPIError:
            yield f"PRAGMA busy_timeout = {own}", {}
            raise
        yield f"PRAGMA busy_timeout = {own}", {}

    def is_autocommit(self, driver: Any, *, prepared: bool) -> bool:
        return prepared and not driver.in_transaction  # before, it may be about to begin one

    def is_failed(self, error: BaseException) -> bool:
        return False

    def is_savepoint_gone(self, error: BaseException) -> bool:
        return "no such savepoint" in str(error)
