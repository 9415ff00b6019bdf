"""What each kind of server needs so that a record can be written in a transaction of the caller's.

The statements, how long they wait for others, and what the driver and its errors tell about the transaction. Drivers
are known by what they carry, so none is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, TypeVarTuple

import attrs
from sqlalchemy.exc import DBAPIError

from idempo.errors import IdempotencyError
from idempo.records import Claim, Key
from idempo.stores._sql_mysql import MySqlOrMariaDB
from idempo.stores._sql_postgresql import PostgreSQL
from idempo.stores._sql_records import COLUMNS, named
from idempo.stores._sql_scripts import Script, Statements, Step
from idempo.stores._sql_stepwise import SQLITE, Stepwise, Words, expired_row, row_of
from idempo.stores._sql_table import quoted
from idempo.stores._transitions import Transition

if TYPE_CHECKING:
    import sqlalchemy as sa

_Answer = TypeVar("_Answer")
_Args = TypeVarTuple("_Args")


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
    match dialect.name:
        case "postgresql":
            return _PostgreSQL(name)
        case "sqlite":
            return _SQLite(name, clock)
        case _:
            return _MySQL(name)


def _milliseconds(limit: float) -> int:
    # 0 would be no limit, and servers take 31 bits.
    return min(max(1, math.ceil(limit * 1000)), 2**31 - 1)


class _PostgreSQL:
    """Whoever claims waits on an advisory lock of the transaction, and then sees what was committed, or is told 40001.

    READ COMMITTED sees it; REPEATABLE READ and SERIALIZABLE refuse (PostgreSQL, "Transaction Isolation").
    """

    def __init__(self, table: str) -> None:
        self.statements = PostgreSQL(table)

    def bounded(self, script: Script[_Answer], limit: float | None) -> Script[_Answer]:
        if limit is None:
            return (yield from script)
        rows = yield _LIMIT, {"limit": f"{_milliseconds(limit)}ms"}
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

    def delete(self, key: Key, owner: str | None) -> Script[bool]:
        """`Store.delete`."""
        name = named(key)
        rows = yield self._asked(self._lock, id=name.id)
        if not self._deletes(key, name, rows, owner):
            return False
        yield self._delete, {"id": name.id}
        return True

    def _step(self, key: Key, transition: Transition[*_Args, _Answer], *args: *_Args) -> Script[_Answer]:
        name = named(key)
        rows = yield self._asked(self._lock, id=name.id)
        answer, write = self._decided(key, name, rows, transition, *args)
        if write is not None:
            yield self._write, row_of(name, write, rows[0][0])
        return answer


class ReservedFirst(LockedFirst):
    """`LockedFirst` where a row that is not there cannot be locked, but made.

    The INSERT waits for whoever makes the same row, or holds it, and locks it to the end of the transaction, as an
    UPDATE does: a plain one would let two who have waited for a third both share the row, and then lock each other out
    (MySQL, "Locks Set by Different SQL Statements in InnoDB"). After a rollback several who have waited can still be a
    deadlock. The row that it makes has expired: it is no record.
    """

    def __init__(self, table: str, words: Words) -> None:
        super().__init__(table, words)
        p = words.param.format
        self._reserve = (
            f"INSERT INTO {table} ({', '.join(COLUMNS)}) VALUES ({', '.join(p(name) for name in COLUMNS)})"
            f" {words.upsert} id = {words.excluded.format('id')}"
        )

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        yield self._reserve, expired_row(named(key))
        return (yield from super().claim(key, owner, fingerprint, lease, ttl, take_over))

    def release(self, key: Key, owner: str, ttl: float) -> Script[bool]:
        """`Store.release`."""
        yield self._reserve, expired_row(named(key))
        return (yield from super().release(key, owner, ttl))


class _MySQL:
    """Whoever claims waits on the row, and then sees what was committed, also under REPEATABLE READ.

    A lock that was not to be had in time (1205) undoes the statement alone, and a deadlock (1213) the whole transaction
    (MySQL, "InnoDB Error Handling").
    """

    def __init__(self, table: str) -> None:
        self.statements = MySqlOrMariaDB(table, ReservedFirst, any_mode=True)

    def bounded(self, script: Script[_Answer], limit: float | None) -> Script[_Answer]:
        if limit is None:
            return (yield from script)
        ours = min(max(1, math.ceil(limit)), _LONGEST_WAIT)
        name = "innodb_lock_wait_timeout"
        yield f"SET @idempo_lock_wait = @@{name}, {name} = LEAST(@@{name}, {ours})", {}
        restore: Step = f"SET {name} = @idempo_lock_wait", {}
        try:
            answer = yield from script
        except DBAPIError as error:
            if not error.connection_invalidated:
                yield restore
            raise
        except IdempotencyError:
            yield restore
            raise
        yield restore
        return answer

    def prepared(self, limit: float | None) -> Script[None]:
        yield from ()

    def is_autocommit(self, driver: Any, *, prepared: bool) -> bool:
        if not driver.get_autocommit():
            return False
        asked = getattr(driver, "get_transaction_status", None)  # asyncmy's; PyMySQL shows what the server said
        return not (driver.server_status & _IN_TRANSACTION if asked is None else asked())

    def is_failed(self, error: BaseException) -> bool:
        return False

    def is_savepoint_gone(self, error: BaseException) -> bool:
        return error.args[:1] == (1305,)  # SAVEPOINT does not exist


_IN_TRANSACTION: Final = 1  # SERVER_STATUS_IN_TRANS (MySQL, "Client/Server Protocol")
_LONGEST_WAIT: Final = 1 << 30  # seconds; what the server's variable takes


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
        own, ours = rows[0][0], _milliseconds(limit)
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
