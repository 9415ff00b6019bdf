"""The plainest store there is: a dict under a lock. The kit is tried on it, and on its broken children."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from idempo._checks import check_limit
from idempo.records import Claim, Key, Record, State


@attrs.define
class Row:
    state: State
    owner: str
    fingerprint: bytes | None
    attempt: int
    token: int
    lease_end: float
    expires: float
    outcome: bytes | None = None


class ReferenceStore:
    """All six methods and every ability."""

    blocking = False
    shared = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.rows: dict[Key, Row] = {}
        self.lock = threading.RLock()
        self.last_token = 0
        self.watchers: list[tuple[Key, Callable[[], None]]] = []

    # The decisions, each a method of its own so that a broken child changes one.

    def may_take_over(self, row: Row, fingerprint: bytes | None, take_over: bool | str) -> bool:
        lapsed = row.lease_end <= self.clock()
        allowed = take_over is True or take_over == row.owner
        return lapsed and allowed and (None in (fingerprint, row.fingerprint) or fingerprint == row.fingerprint)

    def next_attempt(self, row: Row | None) -> int:
        return 1 if row is None else row.attempt + 1

    def may_write(self, method: str, row: Row, owner: str) -> bool:
        return row.owner == owner

    def outcome_again(self, row: Row, outcome: bytes) -> bytes | None:
        return row.outcome

    # The protocol.

    def find(self, key: Key) -> Row | None:
        row = self.rows.get(key)
        return None if row is None or row.expires <= self.clock() else row

    def tell(self, key: Key) -> None:
        for watched, wake in list(self.watchers):
            if watched == key:
                wake()

    def record(self, row: Row) -> Record:
        now = self.clock()
        lease_left = row.lease_end - now if row.state is State.RUNNING else None
        return Record(
            row.state, row.fingerprint, row.attempt, row.token, row.owner, row.outcome, lease_left, row.expires - now
        )

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
        with self.lock:
            row = self.find(key)
            end = self.clock() + lease
            took_over = False
            if row is not None:
                if row.state is State.RUNNING and row.owner == owner:
                    row.lease_end, row.expires = end, end + ttl
                    self.tell(key)
                    return Claim(True, self.record(row), False)
                took_over = row.state is State.RUNNING and self.may_take_over(row, fingerprint, take_over)
                if not took_over and not (row.state is State.RELEASED and row.owner != owner):
                    return Claim(False, self.record(row), False)
                fingerprint = row.fingerprint if fingerprint is None else fingerprint
            self.last_token += 1
            new = Row(State.RUNNING, owner, fingerprint, self.next_attempt(row), self.last_token, end, end + ttl)
            self.rows[key] = new
            self.tell(key)
            return Claim(True, self.record(new), took_over)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        with self.lock:
            row = self.find(key)
            if row is None or row.state is State.RELEASED or not self.may_write("complete", row, owner):
                return False
            if row.state is State.COMPLETED:
                row.outcome = self.outcome_again(row, outcome)
                return True
            row.state, row.outcome, row.expires = State.COMPLETED, outcome, self.clock() + ttl
            self.tell(key)
            return True

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        with self.lock:
            row = self.find(key)
            if row is None:
                self.last_token += 1
                expires = self.clock() + ttl
                self.rows[key] = Row(State.RELEASED, owner, None, 0, self.last_token, 0.0, expires)
                self.tell(key)
                return False
            if row.state is State.COMPLETED or not self.may_write("release", row, owner):
                return False
            if row.state is State.RELEASED:
                return row.attempt > 0
            row.state, row.expires = State.RELEASED, self.clock() + ttl
            self.tell(key)
            return True

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        with self.lock:
            row = self.find(key)
            if row is None or row.state is not State.RUNNING or not self.may_write("renew", row, owner):
                return False
            row.lease_end = self.clock() + lease
            row.expires = row.lease_end + ttl
            self.tell(key)
            return True

    def get(self, key: Key) -> Record | None:
        with self.lock:
            row = self.find(key)
            return None if row is None else self.record(row)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        with self.lock:
            row = self.find(key)
            if row is None or owner not in (None, row.owner):
                return False
            del self.rows[key]
            self.tell(key)
            return True

    # The abilities.

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        with self.lock:
            row = self.find(Key(namespace, value))
            return (
                None if row is None or row.outcome is None else (row.fingerprint, row.outcome, row.attempt, row.token)
            )

    @contextmanager
    def watch(self, key: Key, wake: Callable[[], None]) -> Iterator[None]:
        entry = (key, wake)
        self.watchers.append(entry)
        try:
            yield
        finally:
            self.watchers.remove(entry)

    def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
        with self.lock:
            found = [(key, self.record(row)) for key in self.rows if (row := self.find(key)) is not None]
        return iter([(key, record) for key, record in found if key.namespace == namespace])

    def purge(self, namespace: str) -> int:
        with self.lock:
            return sum(self.delete(key) for key in list(self.rows) if key.namespace == namespace)

    def sweep(self, limit: int = 1000) -> int:
        check_limit(limit, "limit")
        with self.lock:
            expired = [key for key in self.rows if self.find(key) is None][:limit]
            for key in expired:
                del self.rows[key]
            return len(expired)
