"""MemoryStore beyond the contract: what is evicted, what never is, what a call costs, and who may share it."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import tracemalloc
from typing import Any

import pytest
from cachetools import LRUCache

from idempo import Idempotency, Key, MemoryStore, State
from idempo.errors import StoreFullError
from idempo.hub import hub_of
from idempo.testing import FakeClock
from tests.forked import said_by_child

PATIENCE = 20  # seconds; no test waits that long unless it fails


def key(number: object) -> Key:
    return Key("orders", f"o-{number}")


def claim(store: MemoryStore, number: object, *, owner: str = "ann", lease: float = 60, ttl: float = 600) -> Any:
    return store.claim(key(number), owner=owner, fingerprint=None, lease=lease, ttl=ttl)


def complete(store: MemoryStore, number: object, *, outcome: bytes = b"outcome", ttl: float = 600) -> None:
    assert claim(store, number, ttl=ttl).acquired
    assert store.complete(key(number), owner="ann", outcome=outcome, ttl=ttl)


def kept(store: MemoryStore) -> set[str]:
    return {found.value for found, _ in store.scan("orders")}


# What is evicted


@pytest.mark.parametrize("options", [{}, {"max_bytes": 10**6}, {"on_full": "refuse"}], ids=str)
def test_records_that_run_or_are_in_doubt_fill_the_store_and_stay(options: Any) -> None:
    """Behaviour 39: the claim is refused with its key, and both kinds are as they were."""
    clock = FakeClock()
    store = MemoryStore(max_records=4, clock=clock, **options)
    for number in range(2):
        claim(store, number, lease=1)
    clock.advance(2)
    for number in range(2, 4):
        claim(store, number)
    before = {number: store.get(key(number)) for number in range(4)}
    with pytest.raises(StoreFullError, match="4 of 4 records are running or in doubt; raise max_records") as caught:
        claim(store, "new")
    assert caught.value.key == key("new")
    assert {number: store.get(key(number)) for number in range(4)} == before
    assert store.evictions == 0
    assert claim(store, 0, owner="bob").took_over  # a key that is there needs no room
    assert store.release(key(2), owner="ann", ttl=60)
    assert claim(store, "new").acquired


def test_completed_records_go_least_recently_used_first_and_are_counted() -> None:
    """Behaviour 39: a replay, a look and a refused claim are uses."""
    store = MemoryStore(max_records=4)
    for number in range(4):
        complete(store, number)
    assert store.near("orders", "o-0") is not None
    assert store.get(key(1)) is not None
    assert not claim(store, 2, owner="bob").acquired
    for number, (used, left) in enumerate([(3, {0, 1, 2}), (0, {1, 2}), (1, {2}), (2, set())]):
        claim(store, f"new-{number}")
        assert store.get(key(used)) is None
        assert store.evictions == number + 1
        assert {f"o-{one}" for one in left} <= set(kept(store))
        for one in sorted(left):
            store.get(key(one))
    with pytest.raises(StoreFullError):
        claim(store, "one too many")


def test_a_key_that_was_released_makes_room_before_any_outcome_does() -> None:
    """Behaviour 39: it is worth the least."""
    store = MemoryStore(max_records=2)
    complete(store, "done")
    claim(store, "failed")
    store.release(key("failed"), owner="ann", ttl=60)
    claim(store, "new")
    assert kept(store) == {"o-done", "o-new"}
    assert store.evictions == 0


def test_a_full_store_refuses_on_request_and_still_answers() -> None:
    """Behaviour 41: ``on_full="refuse"`` forgets no outcome; what has expired makes room."""
    clock = FakeClock()
    store = MemoryStore(max_records=3, on_full="refuse", clock=clock)
    guard = Idempotency(store, namespace="orders", ttl=600)
    ran: list[str] = []

    def place(order: str) -> str:
        ran.append(order)
        return order

    for order in "abc":
        guard.run(order, place, order)
    with pytest.raises(StoreFullError) as caught:
        guard.run("d", place, "d")
    assert caught.value.key == Key("orders", "d")
    assert guard.run("a", place, "a") == "a"
    assert ran == ["a", "b", "c"]
    assert store.evictions == 0
    clock.advance(700)
    assert guard.run("d", place, "d") == "d"


def test_max_bytes_counts_outcomes_and_evicts_for_them() -> None:
    """Behaviour 39: counted as every eviction is; one outcome over the limit is kept, alone; claims are not counted."""
    store = MemoryStore(max_bytes=10_000)
    for number in range(20):
        complete(store, number, outcome=bytes(1000))
    assert len(store) == 6
    assert store.evictions == 14
    assert kept(store) == {f"o-{number}" for number in range(14, 20)}
    claim(store, "runs")
    complete(store, "large", outcome=bytes(50_000))
    assert kept(store) == {"o-runs", "o-large"}
    assert store.evictions == 20
    record = store.get(key("large"))
    assert record is not None
    assert record.outcome == bytes(50_000)


def test_a_duplicate_of_an_evicted_operation_runs_again() -> None:
    """Behaviour 39: what was evicted is forgotten, and says so in the count."""
    store = MemoryStore(max_records=1)
    guard = Idempotency(store)
    assert [guard.run(one, iter([1]).__next__) for one in ("a", "b")] == [1, 1]
    assert guard.run("a", lambda: "again") == "again"
    assert store.evictions == 2


@pytest.mark.parametrize(
    "options", [{"max_records": 0}, {"max_bytes": 0}, {"max_records": -1}, {"on_full": "grow"}], ids=str
)
def test_a_limit_that_cannot_be_meant_is_refused(options: Any) -> None:
    """Bad input is told before any effect."""
    with pytest.raises(ValueError, match=next(iter(options))):
        MemoryStore(**options)


def test_a_new_key_is_claimed_at_once_only_where_there_is_room_and_whoever_watches_is_woken() -> None:
    """Behaviours 11, 39: `claim` says what is the matter, and makes room."""
    store = MemoryStore(max_records=2)
    complete(store, 1)
    woken = threading.Event()
    with store.watch(key(2), woken.set):
        assert store.claim_new(("orders", "o-2"), "ann", None, 60, 600) is not None
    assert woken.is_set()
    assert store.claim_new(("orders", "o-3"), "ann", None, 60, 600) is None
    assert kept(store) == {"o-1", "o-2"}
    assert claim(store, 3).acquired
    assert kept(store) == {"o-2", "o-3"}


# What a call costs


def test_expired_records_are_removed_a_few_with_each_claim() -> None:
    """Behaviour 40: with the clock alone nothing goes; then each claim removes a bounded number, more than it adds."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for number in range(1000):
        complete(store, number)
    clock.advance(2000)
    assert len(store) == 1000
    sizes = [len(store)]
    while store.get(key(f"new-{len(sizes) - 2}")) is None or sizes[-1] > len(sizes):
        claim(store, f"new-{len(sizes) - 1}")
        sizes.append(len(store))
    steps = [before - after for before, after in itertools.pairwise(sizes)]
    assert set(steps[:-1]) == {7}  # eight go and one comes
    assert len(sizes) < 200


def test_an_expired_record_is_absent_at_once_though_it_was_not_removed_yet() -> None:
    """Behaviour 40: to every method, and to the look without the lock."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for number in range(100):
        complete(store, number)
    clock.advance(600)
    assert store.near("orders", "o-1") is None
    assert store.get(key(2)) is None
    assert not store.complete(key(3), owner="ann", outcome=b"", ttl=1)
    assert not store.delete(key(4))
    assert kept(store) == set()
    assert claim(store, 5, owner="bob").record.attempt == 1


def test_a_record_that_goes_while_it_is_looked_for_is_absent() -> None:
    """Behaviour 42: the look without the lock was true a moment ago."""
    store = MemoryStore()
    complete(store, 1)

    class Going(LRUCache[Any, Any]):
        def __contains__(self, key: object) -> bool:
            there = super().__contains__(key)
            if there:
                del self[key]
            return there

    going: Any = Going(10)
    going.update(store._completed)
    store._completed = going
    assert store.near("orders", "o-1") is None


def test_sweeping_is_bounded_and_leaves_what_has_not_expired() -> None:
    """Behaviours 40, 52: at most so many at once."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for number in range(100):
        complete(store, number)
    complete(store, "lasting", ttl=10**6)
    clock.advance(700)
    assert [store.sweep(40) for _ in range(4)] == [40, 40, 20, 0]
    assert kept(store) == {"o-lasting"}


@pytest.mark.parametrize("options", [{}, {"max_bytes": 300 * 700}], ids=str)
@pytest.mark.parametrize("hot", [False, True], ids=["one by one", "a few stay in use"])
def test_memory_does_not_grow_with_keys_that_are_gone(options: Any, hot: bool) -> None:
    """Behaviour 41: a store that is full stays as large as it is, however many keys go through it within their ttl."""
    clock = FakeClock()
    store = MemoryStore(max_records=300, clock=clock, **options)
    numbers = itertools.count()

    def go_on(many: int) -> int:
        for number in itertools.islice(numbers, many):
            complete(store, number, ttl=3600)
            for old in range(0, number, 600) if hot else ():
                store.near("orders", f"o-{old}")
            clock.advance(0.15)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        # Tables of dicts and sets double and shrink as hashes fall; what leaks stays in all that is measured later.
        full = max(go_on(200) for _ in range(15))
        go_on(5000)
        later = min(go_on(100) for _ in range(10))
    finally:
        tracemalloc.stop()
    assert len(store) <= 300
    assert later < 1.1 * full


def test_a_burst_of_failures_leaves_nothing_that_grows() -> None:
    """Behaviour 41: neither records nor places of calls."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    guard = Idempotency(store, lease=10, namespace="orders")

    def fail() -> None:
        raise ConnectionError

    for number in range(3000):
        with pytest.raises(ConnectionError):
            guard.run(f"o-{number}", fail)
        clock.advance(0.01)
    assert len(store) < 1200  # those of the last lease, and the few whose bucket is not due yet
    clock.advance(20)
    for number in range(200):
        claim(store, f"later-{number}")
    assert len(store) == 200
    assert len(hub_of(store).flights) == 0
    renewed = hub_of(store).renewer._flights.values()  # of every memory store
    assert not any(flight.terms.store is store for flight in list(renewed))


# Who may share it


def test_threads_tasks_and_event_loops_share_one_store() -> None:
    """Behaviour 42: of plain callers and coroutines on several loops one runs, for each of many keys."""
    store = MemoryStore()
    guard = Idempotency(store, namespace="orders")
    runs: list[str] = []
    kinds, keys = 3, [f"o-{number}" for number in range(25)]
    barrier = threading.Barrier(2 * kinds)
    answers: list[list[list[str]]] = []

    def place(order: str) -> list[str]:
        runs.append(order)
        return [order]

    async def place_async(order: str) -> list[str]:
        await asyncio.sleep(0)
        return place(order)

    def plain() -> None:
        barrier.wait(PATIENCE)
        answers.append([guard.run(order, place, order) for order in keys])

    def in_a_loop() -> None:
        async def main() -> list[list[str]]:
            barrier.wait(PATIENCE)
            return await asyncio.gather(*(guard.run_async(order, place_async, order) for order in keys * 2))

        answers.append(asyncio.run(main()))

    threads = [threading.Thread(target=work, daemon=True) for work in [plain, in_a_loop] * kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(runs) == sorted(keys)
    expected = [[order] for order in keys]
    assert sorted(answers, key=len) == [expected] * kinds + [expected * 2] * kinds
    assert len({id(answer) for some in answers for answer in some}) == sum(map(len, answers))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_finds_the_locks_free_whatever_its_parents_threads_were_doing() -> None:
    """Behaviour 43 (real): forked while another thread is within the lock, and the store is whole."""
    inside, go_on = threading.Event(), threading.Event()
    clock = FakeClock()

    def stopped() -> float:
        if threading.current_thread().name == "stopped":
            inside.set()
            assert go_on.wait(PATIENCE)
        return clock()

    store = MemoryStore(clock=stopped)
    complete(store, "before")
    thread = threading.Thread(target=claim, args=(store, "meanwhile"), name="stopped", daemon=True)
    thread.start()
    assert inside.wait(PATIENCE)
    # The fork waits for who is within the lock; it must not come back before that one has been let go.
    timer = threading.Timer(0.1, go_on.set)
    timer.start()

    def child() -> list[object]:
        return [sorted(kept(store)), claim(store, "meanwhile", owner="bob").acquired, claim(store, "child").acquired]

    assert said_by_child(child) == "[['o-before', 'o-meanwhile'], False, True]"
    thread.join(PATIENCE)
    assert kept(store) == {"o-before", "o-meanwhile"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_inherits_no_renewer_and_releases_nothing_of_its_parents() -> None:
    """Behaviour 43 (real): calls in the child are renewed by a thread of its own; the parent's claim stands."""
    store = MemoryStore()
    guard = Idempotency(store, namespace="orders", wait=0)

    def child() -> list[object]:
        renewer = hub_of(store).renewer

        def renewed() -> bool:
            here = hub_of(store).renewer
            return here is renewer and here._thread is not None and here._thread.is_alive()

        inherited = [renewer._thread, bool(renewer), len(hub_of(store).flights)]
        own = guard.run("o-child", renewed)
        record = store.get(key("parent"))
        assert record is not None
        return [*inherited, own, record.state is State.RUNNING]

    def parent() -> str:
        before = store.get(key("parent"))
        said = said_by_child(child)
        assert before is not None
        after = store.get(key("parent"))
        assert after is not None
        assert (after.state, after.owner) == (before.state, before.owner)
        return said

    assert guard.run("o-parent", parent) == "[None, False, 0, True, True]"
    assert store.get(key("child")) is None
