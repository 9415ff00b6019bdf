"""A store of coroutines, called from plain code."""

from __future__ import annotations

import asyncio
import threading

import pytest

from idempo.protocols import (
    InstantStore,
    NearStore,
    PurgeableStore,
    ScannableStore,
    Store,
    SweepableStore,
    WatchableStore,
)
from idempo.testing import BlockingStore, FakeClock, LoopThread
from idempo.testing.bridge import is_async
from tests.reference_store import ReferenceStore
from tests.testing.async_stores import Able, SixMethods

ABILITIES = (NearStore, WatchableStore, ScannableStore, PurgeableStore, SweepableStore)


def test_it_has_the_abilities_that_the_store_has() -> None:
    """And no others."""
    with LoopThread() as loop:
        able, bare = BlockingStore(Able(FakeClock()), loop), BlockingStore(SixMethods(FakeClock()), loop)
        assert isinstance(able, Store)
        assert isinstance(bare, Store)
        assert [isinstance(able, ability) for ability in ABILITIES] == [True] * 5
        assert [isinstance(bare, ability) for ability in ABILITIES] == [False] * 5


def test_what_an_async_store_answers_without_waiting_is_asked_directly() -> None:
    """Nothing is sent to the loop for it."""

    class Instant(SixMethods):
        def claim_new(
            self, id_: tuple[str, str], owner: str, fingerprint: bytes | None, lease: float, ttl: float
        ) -> int | None:
            threads.append(threading.current_thread())
            return 7

    threads: list[threading.Thread] = []
    with LoopThread() as loop:
        store = BlockingStore(Instant(FakeClock()), loop)
        assert isinstance(store, InstantStore)
        assert store.claim_new(("orders", "o-1"), "ann", None, 1, 1) == 7
        assert not isinstance(BlockingStore(SixMethods(FakeClock()), loop), InstantStore)
    assert threads == [threading.current_thread()]


def test_all_calls_run_on_one_loop_in_another_thread() -> None:
    """A client that belongs to a loop is used on it."""

    async def where() -> tuple[asyncio.AbstractEventLoop, int]:
        return asyncio.get_running_loop(), threading.get_ident()

    with LoopThread() as loop:
        first, second = loop.run(where()), loop.run(where())
    assert first == second
    assert first[1] != threading.get_ident()


def test_it_may_be_closed_twice_and_leaves_no_thread() -> None:
    """A fixture and a test may both do it."""
    before = threading.active_count()
    loop = LoopThread()
    loop.close()
    loop.close()
    assert threading.active_count() == before


def test_an_exception_comes_through() -> None:
    """As the coroutine raised it."""

    async def fail() -> None:
        raise KeyError("42")

    with LoopThread() as loop, pytest.raises(KeyError, match="42"):
        loop.run(fail())


def test_the_two_colours_of_a_store_are_told_apart() -> None:
    """By their methods."""
    assert is_async(SixMethods(FakeClock()))
    assert not is_async(ReferenceStore())
