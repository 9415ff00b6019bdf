"""SqlAlchemyStore through the contract of every store, on each database."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from idempo.records import Key
from idempo.stores._sql_records import named
from idempo.stores.sqlalchemy import SqlAlchemyStore
from idempo.testing import StoreContract, check_store

_DAMAGE = {
    "truncated": "outcome = substring(outcome FROM 1 FOR 3)",
    "flipped": "attempt = attempt + 1",
    "newer": "version = version + 1",
    "foreign": "state = 7, owner = 'text', fingerprint = NULL, checksum = 'none'",
}


def new_table() -> str:
    """Return a name that no other test uses."""
    return f"records_{secrets.token_hex(6)}"


def damage(engine: sa.Engine, table: str, key: Key, how: str) -> None:
    """Damage a row behind the store's back."""
    with engine.begin() as connection:
        changed = connection.execute(
            sa.text(f"UPDATE {table} SET {_DAMAGE[how]} WHERE id = :id"), {"id": named(key).id}
        )
        assert changed.rowcount == 1


class TestPostgresql(StoreContract):
    own_clock = True
    unit = 0.1

    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[SqlAlchemyStore]:
        engine = sa.create_engine(postgres_url)
        with SqlAlchemyStore(engine, table=new_table()) as store:
            store.create_table()
            yield store
        engine.dispose()

    def reopen(self, store: SqlAlchemyStore) -> SqlAlchemyStore:
        return SqlAlchemyStore(store._engine, table=store.table.name)

    def damage(self, store: Any, key: Key, how: str) -> None:
        damage(store._engine, store.table.name, key, how)


@pytest.mark.realtime
@pytest.mark.parametrize("seed", range(2))
def test_its_answers_can_be_explained_by_single_steps(postgres_url: str, seed: int) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    engine = sa.create_engine(postgres_url)
    with SqlAlchemyStore(engine, table=new_table()) as store:
        store.create_table()
        check_store(store, seed=seed, rounds=20)
    engine.dispose()
