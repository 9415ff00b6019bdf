"""MemoryStore through the contract of every store."""

from __future__ import annotations

import pytest

from idempo.stores.memory import MemoryStore
from idempo.testing import FakeClock, StoreContract, check_store


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock=clock)


class TestBoundedMemoryStore(StoreContract):
    """With a limit on bytes, completed records are kept another way."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock=clock, max_records=1000, max_bytes=1 << 24, on_full="refuse")


@pytest.mark.parametrize("seed", range(3))
def test_its_answers_can_be_explained_by_single_steps(seed: int) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    clock = FakeClock()
    check_store(MemoryStore(clock=clock), clock=clock, seed=seed)
