"""Records in an SQLite file: they survive a restart, and the processes of one machine share them.

Needs nothing but the standard library.
"""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Final, Literal, TypeAlias, TypeVar, TypeVarTuple, Unpack

from idempo._time import seconds
from idempo.errors import IdempotencyError, RecordError, StoreError, StoreFullError
from idempo.records import Claim, Key, Record
from idempo.stores import _transitions
from idempo.stores._sqlite_connections import Connections
from idempo.stores._sqlite_table import MICROSECONDS, Table
from idempo.stores._transitions import Transition

__all__ = ["JoiningSqliteStore", "SqliteStore"]

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")
_Work: TypeAlias = Callable[[sqlite3.Connection, Unpack[_Args]], _Result]

_SYNCHRONOUS: Final = ("NORMAL", "FULL", "EXTRA")
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_UNREADABLE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_ROUNDS: Final = range(1000)  # each lost round is another caller's write to the same key within microseconds
_CLAIMS_PER_SWEEP: Final = 64
_ROWS_PER_SWEEP: Final = 256  # more than one row per claim, or a file full of expired rows would never shrink
_BATCH: Final = 500


def _code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)  # missing where Python's part raised it
    return None if code is None else code & 0xFF  # the rest tells a variant


def _key_of(args: tuple[object, ...]) -> Key | None:
    return args[0] if args and isinstance(args[0], Key) else None


def _translated(error: sqlite3.Error, what: str, args: tuple[object, ...]) -> IdempotencyError:
    code, key = _code(error), _key_of(args)
    if code in _UNREADABLE or (code is None and "decode" in str(error)):
        return RecordError(f"{what} cannot be read: {error}", key=key)
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"{what} has no room: {error}", key=key)
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"{what} cannot be opened: does its folder exist, and may it be written to? ({error})", key=key
        )
    return StoreError(f"{what} failed: {error}", key=key)


class _Records:
    """The six methods over one table; what is under them is a connection of our own or the caller's."""

    blocking: Final = True
    shared: Final = True

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`.

        Raises:
            StoreFullError: The disk is full.
        """
        return self._writing(self._step, key, _transitions.claim, owner, fingerprint, lease, ttl, take_over)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._writing(self._step, key, _transitions.complete, owner, outcome, ttl)

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._writing(self._step, key, _transitions.release, owner, ttl)

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._writing(self._step, key, _transitions.renew, owner, lease, ttl)

    def get(self, key: Key) -> Record | None:
        """See `Store.get`. Takes no lock."""
        return self._reading(self._get, key)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._writing(self._delete, key, owner)

    # Each of these is given a connection, and may be called again from the start when SQLite is busy. One statement
    # reads, another writes if the row is still the one that was read: each takes the lock that it needs for as long as
    # it needs it, and nobody waits for a lock in order to change nothing.

    def _step(
        self,
        connection: sqlite3.Connection,
        key: Key,
        transition: Transition[*_Args, _Result],
        *args: *_Args,
    ) -> _Result:
        table = self._table
        for _ in _ROUNDS:
            now = int(self._clock() * MICROSECONDS)
            row = table.read(connection, key, now)
            if row is None:
                answer, write = transition(None, now, *args)
            else:
                found, token, _ = row
                answer, write = transition(found, max(now, token + 1), *args)
            if write is None or table.write(connection, key, now, write, row):
                return answer
        raise self._outrun(key)

    def _get(self, connection: sqlite3.Connection, key: Key) -> Record | None:
        row = self._table.read(connection, key, self._now())
        return None if row is None else row[0]

    def _delete(self, connection: sqlite3.Connection, key: Key, owner: str | None) -> bool:
        for _ in _ROUNDS:
            row = self._table.read(connection, key, self._now())
            if row is None or not _transitions.delete(row[0], owner):
                return False
            if self._table.remove(connection, key, row):
                return True
        raise self._outrun(key)

    def _now(self) -> int:
        return int(self._clock() * MICROSECONDS)

    def _outrun(self, key: Key) -> StoreError:
        return StoreError(
            f"others changed the record of {key.value!r} {len(_ROUNDS)} times while it was written", key=key
        )

    def _reading(self, work: _Work[*_Args, _Result], *args: *_Args) -> _Result:
        raise NotImplementedError

    def _writing(self, work: _Work[*_Args, _Result], *args: *_Args) -> _Result:
        raise NotImplementedError


class SqliteStore(_Records):
    """Keeps records in a table of an SQLite file, durable, and shared by all processes of one machine.

    The file and the table are made at first use, by however many processes at once, and the file is put into WAL mode.
    It must lie on a local disk: over a network file system SQLite's locks do not hold.

    SQLite does not tell others of a change; duplicates of a call that runs in another process poll, with backoff.
    Expired rows are removed a few at a time by claims; see `sweep`.

    Each thread has a connection of its own, closed when the thread ends, when the store is closed, and before a fork.

    Args:
        path: The file. Made absolute at once. ":memory:" is refused: use `idempo.MemoryStore`.
        table: The table's name: at most 63 ASCII letters, digits and underscores.
        synchronous: "FULL" keeps every acknowledged write over a power cut. "NORMAL" is several times faster, and
            over a power cut (not over the death of a process) may lose the last ones, claims and outcomes: those
            operations can run again. "EXTRA" is stricter than "FULL".
        busy_timeout: How long a call waits while others write, in seconds, before StoreError.
        clock: Gives seconds since 1970. All processes that share the file must agree about it.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The path names no file, or an option is out of its range.

    >>> from idempo import Idempotency
    >>> guard = Idempotency(SqliteStore("idempo.db"), namespace="billing")  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        table: str = "idempo_records",
        synchronous: Literal["NORMAL", "FULL", "EXTRA"] = "FULL",
        busy_timeout: float | timedelta = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(Table(table), clock)
        self._path = _file(path)
        if synchronous not in _SYNCHRONOUS:
            raise ValueError(f"synchronous must be one of {', '.join(_SYNCHRONOUS)}, not {synchronous!r}")
        self._synchronous = synchronous
        self._busy_timeout = seconds(busy_timeout, "busy_timeout")
        # A fork waits as long as a statement may, and a moment more.
        self._connections = Connections(self._connect, patience=self._busy_timeout + 1)
        # From a random start, so that processes which claim once and end do their share of sweeping too.
        self._acquired = itertools.count(random.randrange(_CLAIMS_PER_SWEEP))

    @property
    def path(self) -> str:
        """The file, as an absolute path."""
        return self._path

    @property
    def table(self) -> str:
        """The table's name."""
        return self._table.name

    def __repr__(self) -> str:
        return f"SqliteStore({self._path!r}, table={self.table!r})"

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, each when its thread's call has ended. A later call raises StoreError."""
        self._connections.close()

    def create_table(self) -> None:
        """Make the file and the table now instead of at first use. May be called many times, and by many at once.

        Raises:
            StoreError: The file cannot be opened or written.
            RecordError: The file is no database, or its table of this name is of another version or not idempo's.
        """
        self._reading(self._table.exists)

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`. One that changes nothing takes no lock; now and then an acquired one also sweeps.

        Raises:
            StoreFullError: The disk is full.
        """
        claim = self._writing(self._step, key, _transitions.claim, owner, fingerprint, lease, ttl, take_over)
        if claim.acquired and not next(self._acquired) % _CLAIMS_PER_SWEEP:
            with suppress(IdempotencyError):  # the claim stands, and a later one sweeps
                self.sweep(_ROWS_PER_SWEEP)
        return claim

    def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
        """See `ScannableStore.scan`. Reads a page at a time, and holds no lock between them."""
        after: str | bytes = ""
        while True:
            page = self._reading(self._page, namespace, after)
            for after, key, record in page:  # noqa: B007  # the last one is where the next page begins
                yield key, record
            if len(page) < _BATCH:
                return

    def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`. Removes a batch at a time, damaged records too."""
        self._in_batches(self._table.purge_expired, namespace)
        return self._in_batches(self._table.purge_live, namespace)

    def sweep(self, limit: int = 1000) -> int:
        """See `SweepableStore.sweep`.

        Claims sweep too: one acquired claim in 64 removes up to 256 expired rows. The file does not get smaller by it;
        SQLite uses the room again.
        """
        return self._writing(self._table.sweep, self._now(), limit)

    def joining(self, connection: sqlite3.Connection) -> JoiningSqliteStore:
        """Return a store that writes its record in the transaction that is open on the caller's connection.

        Effect and record then commit or roll back together. Make one per transaction. Where the table is not there
        yet, it is made in that transaction.

        Args:
            connection: A connection to this store's file, in a transaction.

        Raises:
            TypeError: It is no `sqlite3.Connection`.
            ValueError: It is in no transaction, or its main database is another file.
            StoreError: The database is locked: roll back, and retry the transaction.
            RecordError: The table is of another version, or not idempo's.
        """
        return JoiningSqliteStore(connection, self._path, self._table, self._clock)

    def _page(
        self, connection: sqlite3.Connection, namespace: str, after: str | bytes
    ) -> list[tuple[str | bytes, Key, Record]]:
        return self._table.page(connection, namespace, after, self._now(), _BATCH)

    def _in_batches(self, remove: Callable[[sqlite3.Connection, str, int, int], int], namespace: str) -> int:
        total, now = 0, self._now()
        while True:
            removed = self._writing(remove, namespace, now, _BATCH)
            total += removed
            if removed < _BATCH:
                return total

    def _reading(self, work: _Work[*_Args, _Result], *args: *_Args) -> _Result:
        connections = self._connections
        lane = connections.lane()
        deadline = time.monotonic() + self._busy_timeout
        while True:
            with lane.lock:
                try:
                    return work(lane.connection or connections.open(lane), *args)
                except sqlite3.Error as error:
                    if _code(error) not in _BUSY:
                        lane.close()  # the next call starts afresh, where the file has changed or come back
                        raise _translated(error, self._path, args) from error
                    # SQLite itself waits for most locks; this is for those at which it gives up at once.
                    if time.monotonic() >= deadline:
                        raise StoreError(
                            f"{self._path} stayed locked by others for {self._busy_timeout:g} s: {error}",
                            key=_key_of(args),
                        ) from error
            time.sleep(random.uniform(0.001, 0.01))

    _writing = _reading  # each statement takes the lock that it needs

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
        )
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchall()[0][0]
            if mode != "wal":
                raise StoreError(
                    f"{self._path} cannot be put into WAL mode (it stays in {mode} mode): use a local disk"
                )
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if not self._table.exists(connection):
                connection.execute("BEGIN IMMEDIATE")
                self._table.create(connection)
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection


class JoiningSqliteStore(_Records):
    """Writes its record in the caller's own transaction: made by `SqliteStore.joining`.

    Every call but `get` takes SQLite's write lock first, waiting as long as the *connection's* own time-out, so that a
    concurrent duplicate is seen as it was committed. Nothing is retried here: a database that is locked, or that
    changed since the transaction first read, is a StoreError, and the transaction must be rolled back and run again.
    """

    transactional: Final = True
    """The record commits with the caller's transaction: nothing may be renewed, joined or retried."""

    def __init__(self, connection: sqlite3.Connection, path: str, table: Table, clock: Callable[[], float]) -> None:
        super().__init__(table, clock)
        if not isinstance(connection, sqlite3.Connection):
            raise TypeError(f"a sqlite3.Connection is needed to join its transaction, not {type(connection).__name__}")
        self._connection = connection
        self._savepoints = itertools.count(1)
        self._reading(self._prepare, path)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is done inside, record and effect, when it raises; the caller's transaction goes on.

        Raises:
            StoreError: The transaction is over: the body itself must neither commit nor roll back.
        """
        name = f"idempo_{next(self._savepoints)}"
        self._reading(_execute, f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            # Where SQLite has already rolled the whole transaction back, there is nothing left to undo.
            if self._connection.in_transaction:
                self._reading(_execute, f"ROLLBACK TO {name}")
                self._reading(_execute, f"RELEASE {name}")
            raise
        self._reading(_execute, f"RELEASE {name}")

    def _prepare(self, connection: sqlite3.Connection, path: str) -> None:
        files = {name: file for _, name, file in connection.execute("PRAGMA database_list").fetchall()}
        if not files["main"] or os.path.realpath(files["main"]) != os.path.realpath(path):
            raise ValueError(f"the connection's main database is {files['main'] or 'in memory'}, not {path}")
        if not self._table.exists(connection):
            self._table.create(connection)

    def _reading(self, work: _Work[*_Args, _Result], *args: *_Args) -> _Result:
        connection = self._connection
        factories = connection.row_factory, connection.text_factory
        try:
            if not connection.in_transaction:
                raise ValueError(
                    "the connection is in no transaction, so effect and record could not commit together: begin one "
                    'with connection.execute("BEGIN IMMEDIATE"), and commit it after the call'
                )
            connection.row_factory, connection.text_factory = None, str
            return work(connection, *args)
        except sqlite3.Error as error:
            if _code(error) in _BUSY:
                raise StoreError(
                    f"the database is locked, retry your transaction: {error}", key=_key_of(args)
                ) from error
            raise _translated(error, "the transaction that was joined", args) from error
        finally:
            connection.row_factory, connection.text_factory = factories

    def _writing(self, work: _Work[*_Args, _Result], *args: *_Args) -> _Result:
        # Before anything is read: a transaction that reads first and then finds that another has written can only fail.
        self._reading(self._table.lock)
        return self._reading(work, *args)


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement)


def _file(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path must be a text or a pathlib.Path, not {type(path).__name__}")
    if name in ("", ":memory:"):
        raise ValueError(f"path must name a file, not {name!r}: for records in memory use idempo.MemoryStore")
    if name.startswith("file:"):
        raise ValueError(f"path must be a file's path, not the URI {name!r}")
    if "\0" in name:
        raise ValueError(f"path must not hold a NUL: {name!r}")
    return os.path.abspath(name)
