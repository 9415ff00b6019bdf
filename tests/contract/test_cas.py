"""CasStore and its twin through the contract of every store, over a dict."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from idempo.records import Key
from idempo.stores.cas import AsyncCasStore, CasStore
from idempo.testing import AsyncStoreContract, FakeClock, StoreContract, StoreMachine, check_store
from idempo.testing.backend import AsyncDictBackend, DictBackend


def _damage(backend: DictBackend, how: str) -> None:
    (name,) = backend.values
    value, revision, expires = backend.values[name]
    damaged = {
        "truncated": value[:-3],
        "flipped": value[:-1] + bytes([value[-1] ^ 1]),
        "newer": value.replace(b"idempo\x01", b"idempo\x02", 1),
        "foreign": b'{"somebody": "else"}',
    }[how]
    backend.values[name] = (damaged, revision, expires)


def _wall_clock(clock: FakeClock) -> Callable[[], float]:
    """This machine's clock, which the suite puts a day off, and which goes on as ``clock`` does."""
    return lambda: time.time() + clock()


class TestCasStore(StoreContract):
    own_clock = True  # as far as it has one: it measures how long something stood, and asks no clock for the time

    @pytest.fixture(params=[True, False], ids=["lasting-revisions", "passing-revisions"])
    def backend(self, request: pytest.FixtureRequest, clock: FakeClock) -> DictBackend:
        return DictBackend(clock, lasting_revisions=request.param)

    @pytest.fixture
    def store(self, backend: DictBackend, clock: FakeClock) -> CasStore:
        return CasStore(backend, clock=clock, wall_clock=_wall_clock(clock))

    def reopen(self, store: CasStore) -> CasStore:
        clock = self._clock
        assert clock is not None
        return CasStore(store._backend, clock=clock, wall_clock=_wall_clock(clock))

    def damage(self, store: CasStore, key: Key, how: str) -> None:
        assert isinstance(store._backend, DictBackend)
        _damage(store._backend, how)


class TestAsyncCasStore(AsyncStoreContract):
    own_clock = True  # as above

    @pytest.fixture
    def backend(self, clock: FakeClock) -> AsyncDictBackend:
        return AsyncDictBackend(DictBackend(clock))

    @pytest.fixture
    def store(self, backend: AsyncDictBackend, clock: FakeClock) -> AsyncCasStore:
        return AsyncCasStore(backend, clock=clock, wall_clock=_wall_clock(clock))

    def reopen(self, store: AsyncCasStore) -> AsyncCasStore:
        clock = self._clock
        assert clock is not None
        return AsyncCasStore(store._backend, clock=clock, wall_clock=_wall_clock(clock))

    def damage(self, store: AsyncCasStore, key: Key, how: str) -> None:
        assert isinstance(store._backend, AsyncDictBackend)
        _damage(store._backend.plain, how)


@pytest.mark.parametrize("lasting", [True, False])
def test_its_answers_can_be_explained_by_single_steps(lasting: bool) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    clock = FakeClock()
    backend = DictBackend(clock, lasting_revisions=lasting)
    check_store(CasStore(backend, clock=clock, wall_clock=clock), clock=clock, tokens_survive_delete=lasting)


def test_its_twins_answers_can_be_explained_by_single_steps() -> None:
    """Behaviours 21-23: the same of `AsyncCasStore`."""
    clock = FakeClock()
    check_store(AsyncCasStore(AsyncDictBackend(DictBackend(clock)), clock=clock), clock=clock)


class CasStoreMachine(StoreMachine):
    """Every order of calls, against the model of the protocol."""

    tolerance = 1e9  # what is left of a ttl is an upper bound: no client's clock is trusted to know it

    def make_store(self) -> CasStore:
        return CasStore(DictBackend(self.clock), clock=self.clock, wall_clock=self.clock)


TestCasStoreMachine = CasStoreMachine.TestCase
