"""The six methods over a table, whoever's the connection is, and what SQLite's errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar, TypeVarTuple, Unpack

from idempo._fork import new_lock
from idempo.errors import IdempotencyError, RecordError, StoreError, StoreFullError
from idempo.records import Claim, Key, Record
from idempo.stores import _transitions
from idempo.stores._sqlite_table import MICROSECONDS, Table
from idempo.stores._transitions import Transition

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")
Work: TypeAlias = Callable[[sqlite3.Connection, Unpack[_Args]], _Result]

_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_UNREADABLE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
ROUNDS: Final = range(1000)  # each lost round is another caller's write to the same key within microseconds


def is_busy(error: sqlite3.Error) -> bool:
    """Say whether others had the database locked."""
    return _code(error) in _BUSY


def _code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)  # missing where Python's part raised it
    return None if code is None else code & 0xFF  # the rest tells a variant


def translated(error: sqlite3.Error, what: str, args: tuple[object, ...]) -> IdempotencyError:
    """Return an error of SQLite's as one of ours; ``args`` are those of the work that met it."""
    code, key = _code(error), key_of(args)
    if code in _UNREADABLE or (code is None and "decode" in str(error)):
        return RecordError(f"{what} cannot be read: {error}", key=key)
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"{what} has no room: {error}", key=key)
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"{what} cannot be opened: does its folder exist, and may it be written to? ({error})", key=key
        )
    return StoreError(f"{what} failed: {error}", key=key)


def key_of(args: tuple[object, ...]) -> Key | None:
    """Return the key that the work with these arguments was about, if it was about one."""
    return args[0] if args and isinstance(args[0], Key) else None


class Records:
    """The six methods over one table; what is under them is a connection of our own or the caller's."""

    blocking: Final = True
    shared: Final = True

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock
        # No token that was removed comes again while the clock stands: some clocks do, for milliseconds.
        self._greatest_removed = 0
        self._lock = new_lock()

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

    # Each of these is given a connection, and may be called again from the start when SQLite is busy.

    def _step(
        self, connection: sqlite3.Connection, key: Key, transition: Transition[*_Args, _Result], *args: *_Args
    ) -> _Result:
        """Read, decide and write, in a transaction that holds the write lock."""
        now = self._now()
        row = self._table.read(connection, key, now)
        found, least = (None, self._greatest_removed) if row is None else row[:2]
        answer, write = transition(found, max(now, least + 1), *args)
        if write is not None:
            self._table.write(connection, key, now, write, row)
        return answer

    def _get(self, connection: sqlite3.Connection, key: Key) -> Record | None:
        row = self._table.read(connection, key, self._now())
        return None if row is None else row[0]

    def _delete(self, connection: sqlite3.Connection, key: Key, owner: str | None) -> bool:
        for _ in ROUNDS:
            try:
                row = self._table.read(connection, key, self._now())
            except (RecordError, sqlite3.Error) as error:  # SQLite itself refuses texts that are none
                if owner is not None or (isinstance(error, sqlite3.Error) and is_busy(error)):
                    raise
                return self._table.discard(connection, key)
            if row is None or not _transitions.delete(row[0], owner):
                return False
            self._removing(row[1])
            if self._table.remove(connection, key, row):
                return True
        raise self._outrun(key)

    def _removing(self, token: int) -> None:
        with self._lock:
            self._greatest_removed = max(self._greatest_removed, token)

    def _now(self) -> int:
        return int(self._clock() * MICROSECONDS)

    def _outrun(self, key: Key) -> StoreError:
        return StoreError(
            f"others changed the record of {key.value!r} {len(ROUNDS)} times while it was written", key=key
        )

    def _reading(self, work: Work[*_Args, _Result], *args: *_Args) -> _Result:
        raise NotImplementedError  # pragma: no cover  # each store has its own

    def _writing(self, work: Work[*_Args, _Result], *args: *_Args) -> _Result:
        raise NotImplementedError  # pragma: no cover  # each store has its own
