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

Claim: TypeAlias = Callable[[Key, str], bytes | None]
"""Claims a key for an owner; returns the outcome that stands there already, or None once it is claimed."""
Complete: TypeAlias = Callable[[Key, str], bool]

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

    def claim(key: Key, owner: str) -> bytes | None:
        now = time.time_ns() // 1000
        rows = connection.execute(_SELECT, (key.namespace, key.value)).fetchall()
        if rows:
            _, state, _, _, _, fingerprint, outcome, _, expires, _, _ = rows[0]
            if state == "completed" and expires > now and fingerprint == FINGERPRINT:
                assert isinstance(outcome, bytes)
                return outcome
            raise AssertionError(f"{key} is {state}")
        lease_ends = now + int(LEASE * 1e6)
        expires = lease_ends + int(TTL * 1e6)
        values = (key.namespace, key.value, 1, "running", 1, now, owner, FINGERPRINT, None, lease_ends, expires, 1, 0)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute(_SELECT, (key.namespace, key.value)).fetchall():
                raise AssertionError(f"{key} was taken meanwhile")
            connection.execute(_INSERT, values)
        return None

    def complete(key: Key, owner: str) -> bool:
        now = time.time_ns() // 1000
        (row,) = connection.execute(_SELECT, (key.namespace, key.value)).fetchall()
        _, state, attempt, token, holder, fingerprint, _, _, _, revision, _ = row
        if state != "running" or holder != owner:
            return False
        expires = now + int(TTL * 1e6)
        values = (1, "completed", attempt, token, owner, fingerprint, OUTCOME, None, expires, revision + 1, 0)
        return connection.execute(_UPDATE, (*values, key.namespace, key.value, token, revision)).rowcount == 1

    return claim, complete


def by_store(path: Path) -> tuple[Claim, Complete]:
    """Return claim and complete of a `SqliteStore`."""
    store = SqliteStore(path)

    def claim(key: Key, owner: str) -> bytes | None:
        claimed = store.claim(key, owner=owner, fingerprint=FINGERPRINT, lease=LEASE, ttl=TTL)
        return None if claimed.acquired else claimed.record.outcome

    def complete(key: Key, owner: str) -> bool:
        return store.complete(key, owner=owner, outcome=OUTCOME, ttl=TTL)

    return claim, complete


def new_keys(how_many: int) -> list[Key]:
    """Return keys that were never used before."""
    return [Key("benchmarks", f"order-{next(_numbers):010d}") for _ in range(how_many)]


def time_writes(claim: Claim, complete: Complete, keys: list[Key]) -> float:
    """Return the seconds that claim and completion of one key take together."""
    start = perf_counter()
    for key in keys:
        if claim(key, "an owner") is not None or not complete(key, "an owner"):
            raise AssertionError(f"{key} was not new")
    return (perf_counter() - start) / len(keys)


def time_replays(claim: Claim, keys: list[Key]) -> float:
    """Return the seconds that the claim of one completed key takes."""
    start = perf_counter()
    for key in keys:
        if claim(key, "another owner") != OUTCOME:
            raise AssertionError(f"{key} was not completed")
    return (perf_counter() - start) / len(keys)


def sqlite_figures(size: Size) -> Iterator[Figure]:
    """Measure the store's two hot paths against plain statements, on files side by side."""
    ours, base = "SqliteStore", "the same SQL by hand"
    with TemporaryDirectory() as folder:
        claim, complete = by_store(Path(folder, "store.db"))
        claim_by_hand, complete_by_hand = by_hand(Path(folder, "hand.db"))
        completed = new_keys(size.calls)
        time_writes(claim, complete, completed)
        time_writes(claim_by_hand, complete_by_hand, completed)
        replays = take_turns(
            {ours: lambda: time_replays(claim, completed), base: lambda: time_replays(claim_by_hand, completed)},
            size.rounds,
        )
        writes = take_turns(
            {
                ours: lambda: time_writes(claim, complete, new_keys(size.rows)),
                base: lambda: time_writes(claim_by_hand, complete_by_hand, new_keys(size.rows)),
            },
            size.rounds,
        )
    yield replays.figure("SqliteStore replay", ours, base, 1.6)
    yield writes.figure("SqliteStore claim + complete", ours, base, 1.6)
