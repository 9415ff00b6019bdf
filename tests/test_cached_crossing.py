"""CachedStore: answers that cross each other on their way, interrupts and forks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from idempo import Idempotency, Key
from idempo.errors import StoreError
from idempo.records import Claim
from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.testing import FakeClock
from tests.cached_support import KEY, Far, Gated, claim, near, operate
from tests.reference_store import ReferenceStore
from tests.test_memory_mended import struck_at
from tests.testing.async_stores import Able


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def far(clock: FakeClock) -> Far:
    return Far(clock)


@pytest.fixture
def store(far: Far, clock: FakeClock) -> CachedStore:
    return CachedStore(far, clock=clock)


@pytest.mark.parametrize("asks", ["claim", "get"])
@pytest.mark.parametrize("drops", ["delete", "purge"])
def test_an_answer_that_was_on_its_way_brings_no_record_back(far: Far, clock: FakeClock, asks: str, drops: str) -> None:
    """Behaviour 55: the far store said "done", then the key was forgotten, then the answer arrived."""
    gate = Gated(far)
    store = CachedStore(gate, clock=clock)
    operate(far)
    held = gate.hold(asks)
    asking = threading.Thread(target=lambda: claim(store, "bob") if asks == "claim" else store.get(KEY))
    asking.start()
    assert held.asked.wait(20)
    assert store.delete(KEY) if drops == "delete" else store.purge(KEY.namespace)  # type: ignore[attr-defined]
    held.let_go.set()
    asking.join(20)
    assert near(store) is None
    assert claim(store, "cid").acquired


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_that_comes_while_the_key_is_being_forgotten_does_not_outlast_it(
    far: Far, clock: FakeClock, when: str
) -> None:
    """Behaviour 55: asked and answered while the deletion is on its way there, or back."""
    gate = Gated(far)
    store = CachedStore(gate, clock=clock)
    operate(store)
    held = gate.hold("delete", when)
    forgetting = threading.Thread(target=store.delete, args=(KEY,))
    forgetting.start()
    assert held.asked.wait(20)
    assert near(store) is None  # from when it was asked for
    assert claim(store, "bob").acquired is (when == "after")
    assert near(store) == (b"done" if when == "before" else None)
    held.let_go.set()
    forgetting.join(20)
    assert near(store) is None


def test_of_two_answers_the_one_of_the_later_claim_is_kept(far: Far, clock: FakeClock) -> None:
    """Behaviour 55: the older one arrives last. Its record was replaced by others, which nobody tells us."""
    gate = Gated(far)
    store = CachedStore(gate, clock=clock)
    operate(far, outcome=b"first")
    held = gate.hold("get")
    reader = threading.Thread(target=store.get, args=(KEY,))
    reader.start()
    assert held.asked.wait(20)
    far.delete(KEY)
    operate(far, owner="bob", outcome=b"second")
    assert not claim(store, "cid").acquired
    held.let_go.set()
    reader.join(20)
    assert near(store) == b"second"


def test_a_claim_whose_answer_was_lost_lets_no_older_one_in(far: Far, clock: FakeClock) -> None:
    """Behaviours 34, 55: it may have been taken. The next claim of this owner is told so, not that all is done."""
    gate = Gated(far)
    store = CachedStore(gate, clock=clock)
    operate(far)
    held = gate.hold("get")
    reader = threading.Thread(target=store.get, args=(KEY,))
    reader.start()
    assert held.asked.wait(20)  # the far store has said "done"
    far.delete(KEY)
    far._choose = lambda call: "after" if call.method == "claim" and call.number == 2 else None
    with pytest.raises(StoreError):
        claim(store, "bob")
    held.let_go.set()
    reader.join(20)
    assert near(store) is None
    assert claim(store, "bob").acquired


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_claim_whose_answer_was_lost_lets_no_older_one_in_coroutines(clock: FakeClock, cancelled: bool) -> None:
    """Behaviours 34, 55: nor where it was cancelled before it came."""

    class Far(Able):
        async def get(self, key: Key) -> Any:
            answer = await super().get(key)
            asked.set()
            await let_go.wait()
            return answer

        async def claim(self, key: Key, **options: Any) -> Claim:
            await super().claim(key, **options)
            taken.set()
            if cancelled:
                await asyncio.Event().wait()
            raise StoreError("the answer was lost")

    async def scenario() -> None:
        far = Far(clock)
        store = AsyncCachedStore(far, clock=clock)
        operate(far.inner)
        reading = asyncio.create_task(store.get(KEY))
        await asked.wait()
        far.inner.delete(KEY)
        claiming = asyncio.create_task(store.claim(KEY, owner="bob", fingerprint=b"f", lease=15.0, ttl=600.0))
        await taken.wait()
        if cancelled:
            claiming.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else StoreError):
            await claiming
        let_go.set()
        assert await reading is not None
        assert near(store) is None

    asked, let_go, taken = asyncio.Event(), asyncio.Event(), asyncio.Event()
    asyncio.run(scenario())


@pytest.mark.parametrize("slow", [False, True])
def test_an_answer_that_was_on_its_way_brings_no_record_back_in_coroutines(clock: FakeClock, slow: bool) -> None:
    """Behaviour 55: also where the one that forgets is cancelled."""

    class Far(Able):
        async def claim(self, key: Key, **options: Any) -> Claim:
            answer = await super().claim(key, **options)
            asked.set()
            await let_go.wait()
            return answer

        async def delete(self, key: Key, *, owner: str | None = None) -> bool:
            found = await super().delete(key, owner=owner)
            if slow:
                await asyncio.Event().wait()
            return found

    async def scenario() -> None:
        far = Far(clock)
        store = AsyncCachedStore(far, clock=clock)
        operate(far.inner)
        asking = asyncio.create_task(store.claim(KEY, owner="bob", fingerprint=b"f", lease=15.0, ttl=600.0))
        await asked.wait()
        forgetting = asyncio.create_task(store.delete(KEY))
        await asyncio.sleep(0)
        if slow:
            forgetting.cancel()
        await asyncio.wait([forgetting])
        assert forgetting.cancelled() is slow
        let_go.set()
        assert not (await asking).acquired
        assert near(store) is None

    asked, let_go = asyncio.Event(), asyncio.Event()
    asyncio.run(scenario())


def test_many_threads_and_loops_share_one(clock: FakeClock) -> None:
    """Behaviours 1, 42: whatever is answered is what was stored, and what was forgotten runs again."""
    far = Far(clock)
    store = CachedStore(far, max_records=5, clock=clock)
    guard = Idempotency(store)
    runs: list[int] = []
    barrier = threading.Barrier(8)

    async def effect(number: int) -> int:
        runs.append(number)
        return number

    def work(seed: int) -> None:
        barrier.wait(20)
        for step in range(60):
            number = (step * 7 + seed) % 10
            if seed == 0 and step % 5 == 0:
                guard.forget(number, force=True)
            elif seed % 2:
                assert guard.run(number, lambda number: runs.append(number) or number, number, payload=None) == number
            else:
                assert asyncio.run(guard.run_async(number, effect, number, payload=None)) == number

    def note(seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=note, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [error for error in errors if type(error).__name__ != "LeaseLostError"] == []
    assert len(store) <= 5
    assert store._copies._asked == {}


@pytest.mark.parametrize("next_step", ["evict", "delete"])
def test_an_interrupt_leaves_no_copy_that_cannot_be_dropped(clock: FakeClock, next_step: str) -> None:
    """Behaviours 30, 55: at whatever line of the cache it comes; copies may go, and what is there is right."""
    keys = [Key("orders", str(number)) for number in range(3)]

    def stepped(work: Callable[[CachedStore], object]) -> None:
        for point in range(1000):
            far = ReferenceStore(clock)
            store = CachedStore(far, max_records=2, clock=clock)
            for key in keys[:2]:
                operate(store, key)
            if not struck_at(point, lambda store=store: work(store)):
                break
            for key in keys:
                found = far.get(key)
                assert near(store, key) in (None, None if found is None else found.outcome)
            for number in range(3 if next_step == "evict" else 0):
                operate(store, Key("evicts", str(number)))
                assert near(store, Key("evicts", str(number))) == b"done"
            for key in keys:
                store.delete(key)
                assert near(store, key) is None
                operate(store, key)
                assert near(store, key) == b"done"
            assert len(store) <= 2
        else:  # pragma: no cover
            raise AssertionError("it never ends")
        assert point > 3

    stepped(lambda store: near(store, keys[0]))
    stepped(lambda store: operate(store, keys[2]))
    stepped(lambda store: store.delete(keys[0]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_copies_of_its_own(store: CachedStore, far: Far) -> None:
    """Behaviours 43, 55: those that it inherits can be used at once; what the parent forgets then, it does not hear."""
    operate(store)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  # runs in another process
        try:
            os.write(write, near(store) or b"none")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"done"
    os.close(read)
    os.close(write)
    assert store.delete(KEY)
    assert near(store) is None
