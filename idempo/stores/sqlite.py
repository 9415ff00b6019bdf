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
from contextlib import suppress
from datetime import timedelta
from typing import Final, Literal, TypeVar, TypeVarTuple

from idempo._checks import check_clock, check_limit
from idempo._time import seconds
from idempo.errors import IdempotencyError, StoreError
from idempo.records import Claim, Key, Record
from idempo.stores import _transitions
from idempo.stores._sqlite_connections import Connections, Lane
from idempo.stores._sqlite_joining import JoiningSqliteStore
from idempo.stores._sqlite_records import ROUNDS, Records, Work, is_busy, key_of, translated
from idempo.stores._sqlite_table import MICROSECONDS, Table
from idempo.stores._transitions import Transition

__all__ = ["JoiningSqliteStore", "SqliteStore"]

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")

_SYNCHRONOUS: Final = ("NORMAL", "FULL", "EXTRA")
_CLAIMS_PER_SWEEP: Final = 64
_ROWS_PER_SWEEP: Final = 256  # more than one row per claim, or a file full of expired rows would never shrink
_BATCH: Final = 500
_LONGEST_TIMEOUT: Final = (1 << 31) - 1  # milliseconds, as SQLite counts them


class SqliteStore(Records):
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
        check_clock(clock)
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
                self._reading(self._sweep_unless_busy)
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
        self._removing(self._reading(self._table.newest_of_namespace, namespace))
        self._in_batches(self._table.purge_expired, namespace)
        return self._in_batches(self._table.purge_live, namespace)

    def sweep(self, limit: int = 1000) -> int:
        """See `SweepableStore.sweep`.

        Claims sweep too: one acquired claim in 64 removes up to 256 expired rows. The file does not get smaller by it;
        SQLite uses the room again.
        """
        check_limit(limit, "limit")
        now = self._now()
        self._removing(self._reading(self._table.newest_expired, now, limit))
        return self._writing(self._table.sweep, now, limit)

    def joining(self, connection: sqlite3.Connection) -> JoiningSqliteStore:
        """Return a store that writes its record in the transaction that is open on the caller's connection.

        Effect and record then commit or roll back together. Make one per transaction, as its first
        step: it takes SQLite's write lock, waiting as long as the connection's own time-out, so that what a concurrent
        duplicate commits is seen. Where the table is not there yet, it is made in that transaction.

        Args:
            connection: A connection to this store's file, in a transaction.

        Raises:
            TypeError: It is no `sqlite3.Connection`.
            ValueError: It is in no transaction, or its main database is another file.
            StoreError: The database is locked: roll back, and retry the transaction.
            RecordError: The table is of another version, or not idempo's.
        """
        return JoiningSqliteStore(connection, self._path, self._table, self._clock)

    def _step(
        self, connection: sqlite3.Connection, key: Key, transition: Transition[*_Args, _Result], *args: *_Args
    ) -> _Result:
        # One statement reads, another writes if the row is still the one that was read: nobody waits for a lock in
        # order to change nothing.
        for _ in ROUNDS:
            now = int(self._clock() * MICROSECONDS)
            row = self._table.read(connection, key, now)
            if row is None:
                answer, write = transition(None, now, *args)
                if write is None:
                    return answer
                # There is no row to pin. Between the two, others may claim the key and remove their record: the token
                # must be greater than theirs, so it is made under the lock.
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    return super()._step(connection, key, transition, *args)
            found, token, _ = row
            answer, write = transition(found, now if now > token else token + 1, *args)
            if write is None or self._table.write(connection, key, now, write, row):
                return answer
        raise self._outrun(key)

    def _sweep_unless_busy(self, connection: sqlite3.Connection) -> None:
        # The lease of the claim that was acquired runs: its owner must not wait here while others write.
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            now = self._now()
            self._removing(self._table.newest_expired(connection, now, _ROWS_PER_SWEEP))
            self._table.sweep(connection, now, _ROWS_PER_SWEEP)
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
        finally:
            # Where an interrupt leaves it at 0, calls still wait as long, by trying again.
            connection.execute(f"PRAGMA busy_timeout = {min(int(self._busy_timeout * 1000), _LONGEST_TIMEOUT)}")

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

    def _reading(self, work: Work[*_Args, _Result], *args: *_Args) -> _Result:
        connections = self._connections
        try:
            lane: Lane = connections.local.lane
        except AttributeError:
            lane = connections.new_lane()
        deadline = time.monotonic() + self._busy_timeout
        while True:
            with lane.lock:
                try:
                    connection = lane.connection or connections.open(lane)
                    if connection.in_transaction:
                        raise StoreError(
                            "the store was called from inside its own call, by a signal handler or a finalizer",
                            key=key_of(args),
                        )
                    return work(connection, *args)
                except sqlite3.Error as error:
                    if not is_busy(error):
                        lane.close()  # the next call starts afresh, where the file has changed or come back
                        raise translated(error, self._path, args) from error
                    # SQLite itself waits for most locks; this is for those at which it gives up at once.
                    if time.monotonic() >= deadline:
                        raise StoreError(
                            f"{self._path} stayed locked by others for {self._busy_timeout:g} s: {error}",
                            key=key_of(args),
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
