"""Every store of the core under the state machine, and broken ones that it must find out."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from idempo.protocols import AsyncStore, Store
from idempo.stores.memory import MemoryStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import StoreMachine
from tests.broken_stores import SEVEN
from tests.reference_store import ReferenceStore
from tests.testing.async_stores import Able

_RUN = settings(max_examples=30, stateful_step_count=40, deadline=None)


class MemoryStoreMachine(StoreMachine):
    def make_store(self) -> Store:
        return MemoryStore(clock=self.clock)


class SqliteStoreMachine(StoreMachine):
    def make_store(self) -> Store:
        self.folder = tempfile.TemporaryDirectory()
        return SqliteStore(f"{self.folder.name}/idempo.db", synchronous="NORMAL", clock=self.clock)

    def close_store(self) -> None:
        self.made.close()
        self.folder.cleanup()


class ReferenceStoreMachine(StoreMachine):
    def make_store(self) -> Store:
        return ReferenceStore(self.clock)


class AsyncMachine(StoreMachine):
    def make_store(self) -> AsyncStore:
        return Able(self.clock)


class OwnClockMachine(StoreMachine):
    """Goes by the machine's clock, as a server would by its own."""

    turns_clock = False

    def make_store(self) -> Store:
        return ReferenceStore()


TestMemoryStore = MemoryStoreMachine.TestCase
TestSqliteStore = SqliteStoreMachine.TestCase
TestReferenceStore = ReferenceStoreMachine.TestCase
TestAsync = AsyncMachine.TestCase
TestOwnClock = OwnClockMachine.TestCase
for case in (TestMemoryStore, TestReferenceStore):
    case.settings = _RUN
for case in (TestSqliteStore, TestAsync, TestOwnClock):
    case.settings = settings(_RUN, max_examples=10)


@pytest.mark.parametrize("broken", SEVEN)
def test_a_broken_store_is_rejected(broken: type[ReferenceStore]) -> None:
    """Behaviours 21-23, 27: each fault shows in some short sequence of calls."""

    class Machine(StoreMachine):
        def make_store(self) -> Store:
            return broken(self.clock)

    search = settings(
        max_examples=300,
        stateful_step_count=30,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=search)


def test_a_machine_without_a_store_says_what_is_missing() -> None:
    """Bad input: what to do is in the error."""
    with pytest.raises(NotImplementedError, match="needs a make_store"):
        StoreMachine()


def test_a_store_may_promise_less_about_tokens() -> None:
    """Behaviour 27: a store that starts anew after deletion is accepted where it says so, else not."""

    class Restarting(ReferenceStore):
        def delete(self, key: Any, *, owner: str | None = None) -> bool:
            deleted = super().delete(key, owner=owner)
            if not self.rows:
                self.last_token = 0
            return deleted

    class Machine(StoreMachine):
        tokens_survive_delete = False

        def make_store(self) -> Store:
            return Restarting(self.clock)

    machine = Machine()
    for owner, _ in zip(itertools.cycle(["owner-a", "owner-b"]), range(3), strict=False):
        machine.claim(("one", "order-1"), owner, None, 2.0, 2.0, True)
        machine.delete(("one", "order-1"), owner)
    machine.tokens_survive_delete = True
    with pytest.raises(AssertionError, match="greater token"):
        machine.claim(("one", "order-1"), "owner-c", None, 2.0, 2.0, True)
