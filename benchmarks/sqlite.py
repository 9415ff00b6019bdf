"""SqliteStore, at store level, beside the same SQL by hand on `sqlite3`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final, TypeAlias

from benchmarks.measuring import Figure, Size, take_turns
from idempo import Key
from idempo.stores.sqlite import SqliteStore

FINGERPRINT: Final = bytes(range(33))
OUTCOME: Final = b"x" * 80
LEASE: Final = 15.0
TTL: Final = 24 * 60 * 60.0
NAMESPACE: Final = "benchmarks"

Claim: TypeAlias = Callable[[str, str], bool]
Complete: TypeAlias = Callable[[str, str], bool]

_CREATE: Final = """
CREATE TABLE by_hand (
    namespace TEXT NOT NULL, key TEXT NOT NULL, format INTEGER NOT NULL, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, token INTEGER NOT NULL, owner TEXT NOT NULL, fingerprint BLOB, outcome BLOB,
    lease_ends INTEGER, expires INTEGER NOT NULL, revision INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
)
"""
_SELECT: Final = (
    "SELECT format, state, attempt, token, owner, fingerprint, outcome, lease_ends, expires, revision, checksum "
    "FROM by_hand WHERE namespace = ? AND key = ?"
)
_INSERT: Final = (
    "INSERT INTO by_hand (namespace, key, format, state, attempt, token, owner, fingerprint, outcome, lease_ends, "
    "expires, revision, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (namespace, key) DO NOTHING"
)
_UPDATE: Final = (
    "UPDATE by_hand SET (format, state, attempt, token, owner, fingerprint, outcome, lease_ends, expires, revision, "
    "checksum) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE namespace = ? AND key = ? AND token = ? AND revision = ?"
)

_numbers = count()


def by_hand(path: Path) -> tuple[Claim, Complete]:
    """Return claim and complete as plain statements: the same ones, on a table of the same columns and index."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(_CREATE)
    connection.execute("CREATE INDEX by_hand_expires ON by_hand (expires)")

    def claim(key: str, owner: str) -> bool:
        now = time.time_ns() // 1000
        rows = connection.execute(_SELECT, (NAMESPACE, key)).fetchall()
        if rows:
            return False
        lease_ends = now + int(LEASE * 1e6)
        expires = lease_ends + int(TTL * 1e6)
        values = (NAMESPACE, key, 1, "running", 1, now, owner, FINGERPRINT, None, lease_ends, expires, 1, 0)
        return connection.execute(_INSERT, values).rowcount == 1

    def complete(key: str, owner: str) -> bool:
        now = time.time_ns() // 1000
        (row,) = connection.execute(_SELECT, (NAMESPACE, key)).fetchall()
        token, revision = row[3], row[9]
        expires = now + int(TTL * 1e6)
        values = (1, "completed", 1, token, owner, FINGERPRINT, OUTCOME, None, expires, revision + 1, 0)
        return connection.execute(_UPDATE, (*values, NAMESPACE, key, token, revision)).rowcount == 1

    return claim, complete


def by_store(path: Path) -> tuple[Claim, Complete]:
    """Return claim and complete of a `SqliteStore`."""
    store = SqliteStore(path)

    def claim(key: str, owner: str) -> bool:
        claimed = store.claim(Key(NAMESPACE, key), owner=owner, fingerprint=FINGERPRINT, lease=LEASE, ttl=TTL)
        return claimed.acquired

    def complete(key: str, owner: str) -> bool:
        return store.complete(Key(NAMESPACE, key), owner=owner, outcome=OUTCOME, ttl=TTL)

    return claim, complete


def writing(claim: Claim, complete: Complete, rows: int) -> Callable[[], float]:
    """Return the turn that claims and completes so many new keys, timed for one of them."""

    def turn() -> float:
        keys = [f"order-{next(_numbers):010d}" for _ in range(rows)]
        start = perf_counter()
        for key in keys:
            if not (claim(key, "an owner") and complete(key, "an owner")):
                raise AssertionError(f"{key} was not new")
        return (perf_counter() - start) / rows

    return turn


def replaying(claim: Claim, complete: Complete, rows: int) -> Callable[[], float]:
    """Return the turn that claims so many completed keys, timed for one of them."""
    keys = [f"order-{next(_numbers):010d}" for _ in range(rows)]
    for key in keys:
        claim(key, "an owner")
        complete(key, "an owner")

    def turn() -> float:
        start = perf_counter()
        for key in keys:
            if claim(key, "another owner"):
                raise AssertionError(f"{key} was not completed")
        return (perf_counter() - start) / rows

    return turn


def sqlite_figures(size: Size) -> Iterator[Figure]:
    """Measure the store's two hot paths against plain statements, on files side by side."""
    with TemporaryDirectory() as folder:
        sides = {
            "SqliteStore": by_store(Path(folder, "store.db")),
            "the same SQL by hand": by_hand(Path(folder, "hand.db")),
        }
        for name, kind in (("SqliteStore replay", replaying), ("SqliteStore claim + complete", writing)):
            turns = take_turns({side: kind(*pair, size.rows) for side, pair in sides.items()}, size.rounds)
            yield turns.figure(name, "SqliteStore", "the same SQL by hand", 1.6)
