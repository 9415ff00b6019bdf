"""The contract suites, on the plainest store, sync and async, with a clock that is turned and with real time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from idempo.errors import RecordError
from idempo.records import Key
from idempo.testing import AsyncStoreContract, FakeClock, StoreContract
from tests.reference_store import ReferenceStore
from tests.testing.async_stores import Able, SixMethods


class Damageable(ReferenceStore):
    """Some records cannot be read any more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.damaged: set[Key] = set()

    def find(self, key: Key) -> Any:
        if key in self.damaged:
            raise RecordError("damaged", key=key)
        return super().find(key)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        if owner is None:
            self.damaged.discard(key)
        return super().delete(key, owner=owner)


class TestSync(StoreContract):
    """Every case, none skipped but the one of a short cut that this store has not."""

    own_clock = True

    @pytest.fixture
    def store(self, clock: FakeClock) -> Damageable:
        return Damageable(clock)

    def reopen(self, store: Any) -> ReferenceStore:
        again = ReferenceStore(store.clock)
        again.rows, again.last_token = store.rows, store.last_token
        return again

    def damage(self, store: Any, key: Key, how: str) -> None:
        store.damaged.add(key)


class TestAsync(AsyncStoreContract):
    """The same cases through an event loop."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> Able:
        return Able(clock)

    def reopen(self, store: Any) -> SixMethods:
        again = SixMethods(store.inner.clock)
        again.inner = store.inner
        return again


class TestAsyncWithoutAbilities(AsyncStoreContract):
    """A fixture may run coroutines of its own on the store's loop. Tokens may be promised less of."""

    tokens_survive_delete = False

    @pytest.fixture
    def store(self, clock: FakeClock, run: Callable[..., Any]) -> Iterator[SixMethods]:
        store = SixMethods(clock)
        yield store
        assert run(store.get(Key("contract", "nothing"))) is None


class TestRealTime(StoreContract):
    """Without a clock to turn, the suite sleeps."""

    unit = 0.05

    @pytest.fixture
    def store(self) -> ReferenceStore:
        return ReferenceStore()
