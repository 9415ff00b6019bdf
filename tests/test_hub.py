"""What a process keeps of a store while calls run, and what is asked of its keys from outside."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from idempo import Idempotency, Key, LeaseLostError, MemoryStore, State, current_operation
from idempo.hub import hub_of
from idempo.stores.cas import AsyncCasStore
from idempo.testing.backend import AsyncDictBackend, DictBackend
from tests.reference_store import ReferenceStore


class Slotted:
    """A store that no weak reference can be made to."""

    __slots__ = ("_store",)

    def __init__(self) -> None:
        self._store = MemoryStore()

    def claim(self, key: Key, **options: Any) -> Any:
        return self._store.claim(key, **options)

    def complete(self, key: Key, **options: Any) -> bool:
        return self._store.complete(key, **options)

    def release(self, key: Key, **options: Any) -> bool:
        return self._store.release(key, **options)

    def renew(self, key: Key, **options: Any) -> bool:
        return self._store.renew(key, **options)

    def get(self, key: Key) -> Any:
        return self._store.get(key)

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        return self._store.delete(key, owner=owner)


def test_a_store_that_takes_no_weak_reference_is_guarded_as_any_other() -> None:
    """Behaviour 1: its calls join each other too."""
    store: Any = Slotted()
    begun, end = threading.Event(), threading.Event()
    runs: list[int] = []

    def place() -> str:
        runs.append(1)
        begun.set()
        assert end.wait(20)
        return "placed"

    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(Idempotency(store).run("k", place))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    end.set()
    for thread in threads:
        thread.join(20)
    assert answers == ["placed"] * 4
    assert runs == [1]
    assert hub_of(store) is hub_of(store)


def test_a_hub_goes_with_its_store() -> None:
    """What is kept for a store is kept no longer than the store."""
    from idempo.hub import _hubs

    store = ReferenceStore()
    Idempotency(store).run("k", int)
    before = len(_hubs._by_id)
    del store
    gc.collect()
    assert len(_hubs._by_id) < before


@pytest.mark.realtime
def test_a_memory_store_that_refuses_a_renewal_tells_those_who_joined() -> None:
    """Behaviours 20, 24: one renewer serves all memory stores, and finds the waiters of each."""
    store = MemoryStore()
    guard = Idempotency(store, lease=0.3, wait=20)
    begun = threading.Event()
    answers: list[object] = []
    attempts: list[int] = []

    def lose() -> str:
        attempts.append(current_operation().attempt)
        if begun.is_set():
            return "second"
        begun.set()
        store.delete(Key("default", "k"))
        while True:  # until the renewer has been refused
            try:
                current_operation().ensure_held()
            except LeaseLostError:
                return "first"

    def call() -> None:
        try:
            answers.append(guard.run("k", lose))
        except LeaseLostError as error:
            answers.append(error.result)

    first = threading.Thread(target=call)
    first.start()
    assert begun.wait(20)
    call()
    first.join(20)
    assert sorted(map(str, answers)) == ["first", "second"]
    assert attempts == [1, 1]


def test_a_resolution_that_is_cancelled_is_brought_to_its_end() -> None:
    """Behaviour 30: the claim that it made is not left without the value that it was made for."""
    store = AsyncCasStore(AsyncDictBackend(DictBackend()))
    guard = Idempotency(store)

    async def scenario() -> None:
        for steps in range(8):
            key = f"k{steps}"
            task = asyncio.create_task(guard.resolve_async(key, "by hand"))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            record = await guard.lookup_async(key)
            assert record is None or record.state is State.COMPLETED

    asyncio.run(scenario())
