"""The SQL stores under the state machine: on SQLite, whose clock is turned, and on servers with their own."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.ext.asyncio import create_async_engine

from idempo.protocols import AsyncStore, Store
from idempo.stores.sqlalchemy import AsyncSqlAlchemyStore, SqlAlchemyStore
from idempo.testing import StoreMachine
from tests.sql_support import URLS, Database

_FEW = settings(max_examples=6, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class SqliteMachine(StoreMachine):
    def make_store(self) -> Store:
        self.folder = tempfile.TemporaryDirectory()
        self.engine = sa.create_engine(f"sqlite:///{self.folder.name}/app.db")
        store = SqlAlchemyStore(self.engine, clock=self.clock)
        store.create_table()
        return store

    def close_store(self) -> None:
        self.made.close()
        self.engine.dispose()
        self.folder.cleanup()


class AioSqliteMachine(StoreMachine):
    def make_store(self) -> AsyncStore:
        self.folder = tempfile.TemporaryDirectory()
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{self.folder.name}/app.db")
        store = AsyncSqlAlchemyStore(self.engine, clock=self.clock)
        self.loop.run(store.create_table())
        return store

    def close_store(self) -> None:
        self.loop.run(self.made.aclose())
        self.loop.run(self.engine.dispose())
        self.folder.cleanup()


TestSqlite = SqliteMachine.TestCase
TestAioSqlite = AioSqliteMachine.TestCase
TestSqlite.settings = settings(_FEW, max_examples=10)
TestAioSqlite.settings = settings(_FEW, max_examples=3)


@pytest.mark.parametrize("kind", URLS)
def test_a_server_answers_as_the_model_does(request: pytest.FixtureRequest, kind: str) -> None:
    """Behaviours 21-23, 27: any sequence of calls; no time passes, save that leases are ended."""
    database = Database(kind, request.getfixturevalue(URLS[kind]))
    shared: Any = database.store()

    class Machine(StoreMachine):
        turns_clock = False
        tolerance = 10.0

        def make_store(self) -> Store:
            store: Store = shared
            return store

    run_state_machine_as_test(Machine, settings=_FEW)
    database.end()
