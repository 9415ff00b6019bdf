"""The six methods in several statements, for databases that cannot do them in one: SQLite, and MySQL without RETURNING.

What needs no change is answered from one plain read. What does is read again under a lock, decided by the rules that
all stores share, and written, in a transaction of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import attrs

from idempo.errors import RecordError
from idempo.records import Claim, Key, Record, State
from idempo.stores import _transitions
from idempo.stores._sql_records import (
    COLUMNS,
    LONGEST,
    MICROSECONDS,
    NUMBERS,
    READ,
    VERSION,
    Name,
    checksum,
    decoded,
    encoded,
    found_at,
    named,
    prefix_of,
    spelled_as,
)
from idempo.stores._sql_scripts import BATCH, Rows, Script
from idempo.stores._transitions import Transition

_Answer = TypeVar("_Answer")
_Args = TypeVarTuple("_Args")


@attrs.frozen
class Words:
    """What one kind of server calls things.

    Attributes:
        param: The form of a parameter, as in ``"%({})s"``.
        now: The clock in microseconds, as an expression.
        lock: What makes a SELECT lock the row that it reads.
        begin: Begins a transaction; None where the caller's own is to be used.
        upsert: What follows the values of an INSERT, so that it replaces a row that is there.
        excluded: The form of a value that could not be inserted, in ``upsert``.
        changes: Asks how many rows the last statement removed.
        delete_some: The form of a statement that removes some rows.
        clock: The clock, where ``now`` is a parameter.
    """

    param: str
    now: str
    lock: str
    begin: str | None
    upsert: str
    excluded: str
    changes: str
    delete_some: str
    clock: Callable[[], float] | None = None


SQLITE: Final = Words(
    param=":{}",
    now=":now",
    lock="",
    begin="BEGIN IMMEDIATE",
    upsert="ON CONFLICT (id) DO UPDATE SET",
    excluded="excluded.{}",
    changes="SELECT changes()",
    delete_some="DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {which} LIMIT {limit})",
    clock=time.time,
)


class Stepwise:
    """`Statements` for one table.

    Args:
        table: The table's name, as it stands in a statement.
        words: The server's.
    """

    def __init__(self, table: str, words: Words) -> None:
        self._words = words
        p = words.param.format
        columns = ", ".join(f"r.{name}" for name in READ)
        # One row in any case, for the clock.
        self._read = f"SELECT {words.now}, {columns} FROM (SELECT 1 AS one) one LEFT JOIN {table} r ON r.id = {p('id')}"
        self._lock = self._read + words.lock
        replaced = ", ".join(f"{name} = {words.excluded.format(name)}" for name in COLUMNS[1:])
        self._write = (
            f"INSERT INTO {table} ({', '.join(COLUMNS)}) VALUES ({', '.join(p(name) for name in COLUMNS)})"
            f" {words.upsert} {replaced}"
        )
        self._delete = f"DELETE FROM {table} WHERE id = {p('id')}"
        within = f"id > {p('after')} AND id <= {p('last')}"
        self._page = (
            f"SELECT r.id, r.namespace, r.value, {words.now}, {columns} FROM {table} r WHERE {within}"
            f" ORDER BY r.id LIMIT {BATCH}"
        )
        self._some = (
            f"SELECT r.id, r.expires, r.token, {words.now} FROM {table} r WHERE {within} ORDER BY r.id LIMIT {BATCH}"
        )
        self._purge = f"DELETE FROM {table} WHERE {within}"
        expired = f"expires <= {words.now} AND version = {VERSION}"
        oldest = f"{expired} ORDER BY expires"
        self._newest_expired = (
            f"SELECT max(token) FROM (SELECT token FROM {table} WHERE {oldest} LIMIT {p('limit')}) oldest"
        )
        self._sweep = words.delete_some.format(table=table, which=oldest, limit=p("limit"))
        # No token that was removed comes again while the clock stands: some clocks do, for milliseconds.
        self._greatest_removed = 0

    def claim(
        self, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float, take_over: bool | str
    ) -> Script[Claim]:
        """`Store.claim`."""
        return self._step(key, _transitions.claim, owner, fingerprint, lease, ttl, take_over)

    def complete(self, key: Key, owner: str, outcome: bytes, ttl: float) -> Script[bool]:
        """`Store.complete`."""
        return self._step(key, _transitions.complete, owner, outcome, ttl)

    def release(self, key: Key, owner: str, ttl: float) -> Script[bool]:
        """`Store.release`."""
        return self._step(key, _transitions.release, owner, ttl)

    def renew(self, key: Key, owner: str, lease: float, ttl: float) -> Script[bool]:
        """`Store.renew`."""
        return self._step(key, _transitions.renew, owner, lease, ttl)

    def get(self, key: Key) -> Script[Record | None]:
        """`Store.get`."""
        name = named(key)
        rows = yield self._asked(self._read, id=name.id)
        return found_at(key, name, rows[0])[0]

    def delete(self, key: Key, owner: str | None) -> Script[bool]:
        """`Store.delete`."""
        name = named(key)
        rows = yield self._asked(self._read, id=name.id)
        if not self._deletes(key, name, rows, owner):
            return False
        yield from self._begin()
        rows = yield self._asked(self._lock, id=name.id)
        deletes = self._deletes(key, name, rows, owner)
        if deletes:
            self._removing(rows[0][4])
            yield self._delete, {"id": name.id}
        yield from self._commit()
        return deletes

    def page(self, namespace: str, after: bytes) -> Script[tuple[list[tuple[Key, Record]], bytes | None]]:
        """Return live records of a namespace, and where the next page begins, or None after the last."""
        prefix, _ = prefix_of(namespace)
        rows = yield self._asked(self._page, after=after or prefix, last=prefix + b"\xff" * 32)
        found: list[tuple[Key, Record]] = []
        for id_, space, value, now, *row in rows:
            key, name = spelled_as(namespace, id_, space, value)
            record = decoded(key, name, row, now)
            if record is not None:
                found.append((key, record))
        return found, rows[-1][0] if len(rows) == BATCH else None

    def purge(self, namespace: str) -> Script[tuple[int, int]]:
        """Remove a batch of a namespace's rows, and return how many, and how many of them had not expired."""
        prefix, _ = prefix_of(namespace)
        yield from self._begin()
        rows = yield self._asked(self._some, after=prefix, last=prefix + b"\xff" * 32)
        if rows:
            self._removing(max(token for _, _, token, _ in rows))
            yield self._purge, {"after": prefix, "last": rows[-1][0]}
        yield from self._commit()
        return len(rows), sum(expires > now for _, expires, _, now in rows)

    def sweep(self, limit: int) -> Script[int]:
        """Remove at most so many expired rows, and return how many."""
        yield from self._begin()
        rows = yield self._asked(self._newest_expired, limit=limit)
        self._removing(rows[0][0])
        yield self._asked(self._sweep, limit=limit)
        rows = yield self._words.changes, {}
        yield from self._commit()
        removed: int = rows[0][0]
        return removed

    def _step(self, key: Key, transition: Transition[*_Args, _Answer], *args: *_Args) -> Script[_Answer]:
        name = named(key)
        rows = yield self._asked(self._read, id=name.id)
        answer, write = self._decided(key, name, rows, transition, *args)
        if write is None:
            return answer
        yield from self._begin()
        rows = yield self._asked(self._lock, id=name.id)
        answer, write = self._decided(key, name, rows, transition, *args)
        if write is not None:
            yield self._write, row_of(name, write, rows[0][0])
        yield from self._commit()
        return answer

    def _decided(
        self, key: Key, name: Name, rows: Rows, transition: Transition[*_Args, _Answer], *args: *_Args
    ) -> _transitions.Step[_Answer]:
        found, token = found_at(key, name, rows[0])
        return transition(found, max(rows[0][0], token + 1, self._greatest_removed + 1), *args)

    def _deletes(self, key: Key, name: Name, rows: Rows, owner: str | None) -> bool:
        try:
            found, _ = found_at(key, name, rows[0])
        except RecordError:
            if owner is not None:
                raise
            return True
        return _transitions.delete(found, owner)

    def _asked(self, statement: str, **params: Any) -> tuple[str, dict[str, Any]]:
        clock = self._words.clock
        if clock is not None:
            params["now"] = int(clock() * MICROSECONDS)
        return statement, params

    # In the caller's own transaction no step comes to these two: `LockedFirst` has steps of its own.
    def _begin(self) -> Script[None]:
        if self._words.begin is not None:  # pragma: no branch  # see above
            yield self._words.begin, {}

    def _commit(self) -> Script[None]:
        if self._words.begin is not None:  # pragma: no branch  # see above
            yield "COMMIT", {}

    def _removing(self, token: object) -> None:
        if isinstance(token, int) and token > self._greatest_removed:
            self._greatest_removed = token


def expired_row(name: Name) -> dict[str, Any]:
    """Return a row that stands for no record, by the names of its columns."""
    return row_of(name, Record(State.RELEASED, None, 0, 0, "", None, None, 0.0), 0)


def row_of(name: Name, record: Record, now: int) -> dict[str, Any]:
    """Return the row of a record, by the names of its columns."""
    expires = now + _microseconds(record.expires_in)
    lease_ends = None if record.lease_left is None else now + _microseconds(record.lease_left)
    state, owner = NUMBERS[record.state], encoded(record.owner)
    values = (
        VERSION,
        state,
        record.attempt,
        record.token,
        owner,
        record.fingerprint,
        record.outcome,
        lease_ends,
        expires,
    )
    row = {"id": name.id, "namespace": name.namespace, "value": name.value, "checksum": checksum(name, *values)}
    return row | dict(zip(READ, values, strict=False))


def _microseconds(seconds: float) -> int:
    return min(round(seconds * MICROSECONDS), LONGEST)
