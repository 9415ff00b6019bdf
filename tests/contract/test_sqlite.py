"""SqliteStore through the contract of every store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from idempo.records import Key
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock, StoreContract, check_store

_DAMAGE = {
    "truncated": "outcome = substr(outcome, 1, length(outcome) - 1)",
    "flipped": "state = replace(state, 'c', 'b')",
    "newer": "format = format + 1",
    "foreign": "owner = CAST(x'ff00' AS TEXT), fingerprint = 'text', checksum = 'none'",
}


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock, tmp_path: Path) -> Iterator[SqliteStore]:
        with SqliteStore(tmp_path / "idempo.db", synchronous="NORMAL", clock=clock) as store:
            yield store

    def reopen(self, store: SqliteStore) -> SqliteStore:
        assert self._clock is not None
        store.close()
        return SqliteStore(store.path, synchronous="NORMAL", clock=self._clock)

    def damage(self, store: SqliteStore, key: Key, how: str) -> None:
        with closing(sqlite3.connect(store.path)) as connection, connection:
            changed = connection.execute(
                f"UPDATE {store.table} SET {_DAMAGE[how]} WHERE namespace = ? AND key = ?", (key.namespace, key.value)
            )
            assert changed.rowcount == 1


@pytest.mark.parametrize("seed", range(2))
def test_its_answers_can_be_explained_by_single_steps(tmp_path: Path, seed: int) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    clock = FakeClock()
    with SqliteStore(tmp_path / "idempo.db", synchronous="NORMAL", clock=clock) as store:
        check_store(store, clock=clock, seed=seed)
