"""CachedStore: what is answered from near, for how long, and what drops it. The contract is in contract/."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from idempo import FingerprintMismatchError, Idempotency, Key, MemoryStore, PickleCodec, State
from idempo.errors import StoreError
from idempo.protocols import (
    AsyncPurgeableStore,
    AsyncScannableStore,
    AsyncSweepableStore,
    AsyncWatchableStore,
    NearStore,
    PurgeableStore,
    ScannableStore,
    SweepableStore,
    WatchableStore,
)
from idempo.records import Claim
from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.stores.cas import CasStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import AsyncFlakyStore, FakeClock, FlakyStore
from idempo.testing.backend import DictBackend
from tests.interrupting import until
from tests.reference_store import ReferenceStore
from tests.test_memory_mended import struck_at
from tests.testing.async_stores import Able, SixMethods

KEY = Key("default", "k")


class Far(FlakyStore):
    """A store whose requests are counted, and which coroutines may not call themselves."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__(ReferenceStore(FakeClock() if clock is None else clock))
        self.blocking = True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def far(clock: FakeClock) -> Far:
    return Far(clock)


@pytest.fixture
def store(far: Far, clock: FakeClock) -> CachedStore:
    return CachedStore(far, clock=clock)


def claim(store: Any, owner: str = "ann", key: Key = KEY, ttl: float = 600.0) -> Claim:
    answer: Claim = store.claim(key, owner=owner, fingerprint=b"f", lease=15.0, ttl=ttl)
    return answer


def operate(store: Any, key: Key = KEY, *, owner: str = "ann", outcome: bytes = b"done", ttl: float = 600.0) -> None:
    assert claim(store, owner, key).acquired
    assert store.complete(key, owner=owner, outcome=outcome, ttl=ttl)


def near(store: CachedStore | AsyncCachedStore, key: Key = KEY) -> bytes | None:
    found = store.near(key.namespace, key.value)
    return None if found is None else found[1]


# -- what is answered from near ------------------------------------------------------------------------------------


def test_a_duplicate_makes_no_request(store: CachedStore, far: Far) -> None:
    """Behaviour 55: the first call asks twice, as ever; its duplicates, by `run` or by a block, not at all."""
    guard = Idempotency(store)
    assert guard.run("k", dict, a=1) == {"a": 1}
    assert far.count() == 2
    for _ in range(3):
        assert guard.run("k", dict, a=1) == {"a": 1}
    with guard.operation("k") as block:
        assert not block.fresh
        assert (block.result, block.attempt) == ({"a": 1}, 1)
    record = far._store.get(KEY)
    assert record is not None
    assert block.token == record.token
    assert far.count() == 2
    assert guard.stats().replayed == 4


def test_a_coroutines_duplicate_makes_no_request(store: CachedStore, far: Far, clock: FakeClock) -> None:
    """Behaviour 55: on a store that blocks it needs no worker thread either; nor on one of coroutines."""
    twin_far = AsyncFlakyStore(Able(clock))
    twin = AsyncCachedStore(twin_far, clock=clock)

    async def effect() -> list[int]:
        return [1]

    async def scenario(guard: Idempotency) -> None:
        for _ in range(3):
            assert await guard.run_async("k", effect) == [1]
        async with guard.operation("k") as block:
            assert not block.fresh
        assert block.result == [1]

    for one, other in ((store, far), (twin, twin_far)):
        asyncio.run(scenario(Idempotency(one)))
        assert other.count() == 2


def test_what_another_process_completed_is_kept_once_it_was_told(far: Far, clock: FakeClock) -> None:
    """Behaviour 55: by a refused claim, or by `lookup`."""
    operate(far)
    by_claim, by_get = CachedStore(far, clock=clock), CachedStore(far, clock=clock)
    assert near(by_claim) is None
    assert not claim(by_claim, "bob").acquired
    assert Idempotency(by_get).lookup("k") == far._store.get(KEY)
    asked = far.count()
    for store in (by_claim, by_get):
        assert store.near(*_id(KEY)) == (b"f", b"done", 1)
        refused = claim(store, "bob")
        assert (refused.acquired, refused.took_over, refused.record) == (False, False, far._store.get(KEY))
    assert far.count() == asked


def test_another_payload_is_refused_by_the_copy_too(store: CachedStore, far: Far) -> None:
    """Behaviours 6, 55: with no request, and the copy stays."""
    guard = Idempotency(store)
    guard.run("k", str.upper, "a")
    asked = far.count()
    for _ in range(2):
        with pytest.raises(FingerprintMismatchError):
            guard.run("k", str.upper, "b")
    assert guard.run("k", str.upper, "a") == "A"
    assert far.count() == asked


def test_only_a_completed_record_is_answered_from_near(store: CachedStore, far: Far) -> None:
    """Behaviour 55: whoever wants to run asks the far store, however often."""
    for _ in range(2):
        claim(store, "ann")
        assert far.count("claim") == 1 + _
        assert near(store) is None
        assert store.get(KEY) is not None
    store.renew(KEY, owner="ann", lease=0.0, ttl=600.0)
    assert claim(store, "bob").took_over
    assert near(store) is None
    assert store.release(KEY, owner="bob", ttl=15.0)
    assert claim(store, "cid").record.attempt == 3
    assert store.complete(KEY, owner="cid", outcome=b"done", ttl=600.0)
    assert store.near(*_id(KEY)) == (b"f", b"done", 3)


def test_an_outcome_that_nobody_here_claimed_for_is_not_kept(store: CachedStore, far: Far) -> None:
    """Behaviour 55: its fingerprint is not known here; the next duplicate is told it."""
    claim(far, "ann")
    assert store.complete(KEY, owner="ann", outcome=b"done", ttl=600.0)
    assert near(store) is None
    claim(store, "bob")
    assert store.near(*_id(KEY)) == (b"f", b"done", 1)
    other = Key("default", "taken over elsewhere")
    claim(store, "ann", other)
    store.renew(other, owner="ann", lease=0.0, ttl=600.0)
    assert claim(far, "bob", other).took_over
    assert store.complete(other, owner="bob", outcome=b"done", ttl=600.0)
    assert near(store, other) is None


def test_an_outcome_that_was_refused_or_not_answered_is_not_kept(clock: FakeClock) -> None:
    """Behaviours 22, 34, 55: nor is its repetition, for since when the record stands is not known then."""
    far = Far(clock)
    store = CachedStore(far, clock=clock)
    claim(store, "ann")
    far._store.delete(KEY)
    assert not store.complete(KEY, owner="ann", outcome=b"late", ttl=600.0)
    assert near(store) is None
    far._choose = lambda call: "after" if call.method == "complete" and call.number == 2 else None
    claim(store, "bob")
    with pytest.raises(StoreError):
        store.complete(KEY, owner="bob", outcome=b"done", ttl=600.0)
    clock.advance(500)
    assert store.complete(KEY, owner="bob", outcome=b"done", ttl=600.0)
    assert near(store) is None
    claim(store, "cid")
    clock.advance(50)
    assert near(store) == b"done"
    clock.advance(60)
    assert near(store) is None


# -- for how long --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["complete", "claim", "get"])
def test_a_copy_is_used_no_longer_than_its_record_lives(far: Far, clock: FakeClock, how: str) -> None:
    """Behaviour 55: counted from before the request was sent, however long the answer took."""

    class Slow(FlakyStore):
        def _end(self, call: Any) -> None:
            clock.advance(4.0)

    store = CachedStore(Slow(far), clock=clock, ttl=60)
    if how == "complete":
        operate(store, ttl=10.0)
    else:
        operate(far, ttl=10.0)
        assert claim(store, "bob") if how == "claim" else store.get(KEY)
    assert near(store) == b"done"
    clock.advance(5.9)
    assert near(store) == b"done"
    assert claim(store, "bob").record.expires_in == pytest.approx(0.1)
    clock.advance(0.1)
    assert near(store) is None
    assert claim(store, "bob").acquired


@pytest.mark.parametrize("ttl", [30, timedelta(seconds=30)])
def test_a_copy_is_used_for_its_ttl_at_most(far: Far, clock: FakeClock, ttl: float | timedelta) -> None:
    """Behaviour 55: what another process forgets is replayed here until then, and not longer."""
    store = CachedStore(far, ttl=ttl, clock=clock)
    guard = Idempotency(store)
    guard.run("k", list, "a")
    assert far.delete(KEY)
    clock.advance(29.9)
    assert guard.run("k", list, "a") == ["a"]
    assert guard.stats().executed == 1
    clock.advance(0.1)
    guard.run("k", list, "a")
    assert guard.stats().executed == 2


def test_an_answer_that_took_longer_than_the_ttl_is_not_kept(far: Far, clock: FakeClock) -> None:
    class Slow(FlakyStore):
        def _end(self, call: Any) -> None:
            clock.advance(60.0)

    operate(far)
    store = CachedStore(Slow(far), clock=clock)
    assert store.get(KEY) is not None
    assert near(store) is None
    assert len(store) == 0


def test_the_copies_are_bounded_in_number(far: Far, clock: FakeClock) -> None:
    """Behaviour 55: the least recently used go first; evicting one costs a request, and runs nothing again."""
    store = CachedStore(far, max_records=3, clock=clock)
    keys = [Key("orders", str(number)) for number in range(4)]
    for key in keys[:3]:
        operate(store, key)
    assert near(store, keys[0]) == b"done"
    operate(store, keys[3])
    assert [near(store, key) for key in keys] == [b"done", None, b"done", b"done"]
    assert len(store) == 3
    assert not claim(store, "bob", keys[1]).acquired
    assert near(store, keys[1]) == b"done"
    # And so are the claims that are remembered for the outcome to come.
    many = [Key("running", str(number)) for number in range(10)]
    for key in many:
        claim(store, "ann", key)
    assert len(store._copies._held) == 3
    for key in many:
        assert store.complete(key, owner="ann", outcome=b"done", ttl=600.0)
    assert [near(store, key) for key in many] == [None] * 7 + [b"done"] * 3


def test_the_copies_are_bounded_in_bytes(far: Far, clock: FakeClock) -> None:
    """Behaviour 55: and an outcome that is larger than all of that is not kept near."""
    store = CachedStore(far, max_bytes=10_000, clock=clock)
    first, second, large = (Key("orders", name) for name in ("first", "second", "large"))
    operate(store, first, outcome=b"x" * 4_000)
    operate(store, large, outcome=b"x" * 10_000)
    assert (near(store, first), near(store, large)) == (b"x" * 4_000, None)
    operate(store, second, outcome=b"x" * 5_000)
    assert (near(store, first), near(store, second)) == (None, b"x" * 5_000)


# -- what drops it -------------------------------------------------------------------------------------------------


def test_forgetting_here_reaches_the_copy(store: CachedStore, far: Far) -> None:
    """Behaviour 55: the next call runs; `purge` likewise, in its namespace alone."""
    guard, other = Idempotency(store), Idempotency(store, namespace="other")
    assert isinstance(store, PurgeableStore)
    for forget in (lambda: guard.forget("k"), lambda: guard.forget("k", force=True), lambda: store.purge("default")):
        guard.run("k", dict)
        other.run("k", dict)
        assert forget()
        assert near(store) is None
    guard.run("k", dict)
    assert (guard.stats().executed, other.stats().executed) == (4, 1)
    assert near(store, Key("other", "k")) is not None


def test_forgetting_on_a_store_of_coroutines_reaches_the_copy(clock: FakeClock) -> None:
    """Behaviour 55: as above."""
    store = AsyncCachedStore(Able(clock), clock=clock)
    guard = Idempotency(store)

    async def effect() -> None:
        pass

    async def scenario() -> None:
        assert isinstance(store, AsyncPurgeableStore)
        for _ in range(2):
            await guard.run_async("k", effect)
            assert await guard.forget_async("k")
            assert near(store) is None
            await guard.run_async("k", effect)
            assert await store.purge("default") == 1
            assert near(store) is None

    asyncio.run(scenario())
    assert guard.stats().executed == 4


def test_a_deletion_that_fails_drops_the_copy_all_the_same(store: CachedStore, far: Far) -> None:
    """Behaviours 34, 55: nobody knows whether the record is there."""
    operate(store)
    with far.outage(), pytest.raises(StoreError):
        store.delete(KEY)
    assert near(store) is None


def test_what_is_at_hand_is_answered_while_the_far_store_is_gone(store: CachedStore, far: Far) -> None:
    """Behaviours 32, 55: and nothing else: a new key is not run without the store's leave."""
    guard = Idempotency(store)
    guard.run("k", list, "a")
    with far.outage():
        assert guard.run("k", list, "a") == ["a"]
        with pytest.raises(StoreError):
            guard.run("another", list, "a")
    assert guard.stats().executed == 1


def test_looking_brings_the_copy_up_to_date(store: CachedStore, far: Far) -> None:
    """Behaviour 55: `lookup` tells how the record stands, and a copy that is behind goes."""
    operate(store)
    far.delete(KEY)
    assert near(store) == b"done"
    assert store.get(KEY) is None
    assert near(store) is None
    operate(store)
    far.delete(KEY)
    operate(far, owner="bob", outcome=b"done elsewhere")
    assert store.get(KEY) == far._store.get(KEY)
    assert near(store) == b"done elsewhere"


def test_an_operators_answer_is_not_refused_for_a_copy_that_is_behind(far: Far, clock: FakeClock) -> None:
    """Behaviours 26, 55: `resolve` asks the far store whether there is an outcome."""
    store = CachedStore(far, clock=clock)
    guard = Idempotency(store)
    guard.run("k", lambda: "first")
    assert guard.resolve("k", "second") is False
    far.delete(KEY)
    assert guard.resolve("k", "second") is True
    assert guard.run("k", lambda: "third") == "second"
    elsewhere = Idempotency(AsyncCachedStore(Able(clock), clock=clock))
    assert asyncio.run(elsewhere.resolve_async("k", 1)) is True


def test_a_claim_that_is_won_drops_what_was_kept_of_the_key(far: Far, clock: FakeClock) -> None:
    """Behaviour 55: whoever was answered before knows of an older life of the key."""
    gate = Gated(far)
    store = CachedStore(gate, clock=clock)
    operate(far)
    reading = gate.hold("get")
    reader = threading.Thread(target=store.get, args=(KEY,))
    reader.start()
    assert reading.asked.wait(20)  # the far store has said "done"
    far.delete(KEY)
    assert claim(store, "bob").acquired
    reading.let_go.set()
    reader.join(20)
    assert near(store) is None


# -- answers that cross each other on their way ---------------------------------------------------------------------


class _Held:
    def __init__(self, when: str) -> None:
        self.when = when
        self.asked = threading.Event()
        self.let_go = threading.Event()


class Gated(FlakyStore):
    """Holds back the next request of one method: before the far store has it, or its answer."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._held: dict[str, _Held] = {}

    def hold(self, method: str, when: str = "after") -> _Held:
        held = self._held[method] = _Held(when)
        return held

    def _begin(self, method: str, key: Key, options: Any) -> Any:
        call = super()._begin(method, key, options)
        self._pass(method, "before")
        return call

    def _end(self, call: Any) -> None:
        self._pass(call.method, "after")

    def _pass(self, method: str, when: str) -> None:
        held = self._held.get(method)
        if held is not None and held.when == when:
            del self._held[method]
            held.asked.set()
            assert held.let_go.wait(20)


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


# -- how it is made, and what it hands on ---------------------------------------------------------------------------


def test_it_has_the_abilities_that_the_far_store_has(clock: FakeClock, tmp_path: Any) -> None:
    """And what it says of itself; but it lets nobody join a transaction by it."""
    plain = (WatchableStore, ScannableStore, PurgeableStore, SweepableStore)
    of_coroutines = (AsyncWatchableStore, AsyncScannableStore, AsyncPurgeableStore, AsyncSweepableStore)
    able, bare = CachedStore(ReferenceStore(clock)), AsyncCachedStore(SixMethods(clock))
    assert not hasattr(CachedStore(CasStore(DictBackend(clock))), "purge")
    twin = AsyncCachedStore(Able(clock))
    assert [isinstance(able, ability) for ability in plain] == [True] * 4
    assert [isinstance(twin, ability) for ability in of_coroutines] == [True] * 4
    assert [isinstance(bare, ability) for ability in of_coroutines] == [False] * 4
    assert all(isinstance(store, NearStore) for store in (able, bare, twin))
    memory = CachedStore(MemoryStore())
    assert not memory.blocking  # type: ignore[attr-defined]
    assert not memory.shared  # type: ignore[attr-defined]
    assert isinstance(memory.default_codec, PickleCodec)  # type: ignore[attr-defined]
    assert not hasattr(memory, "claim_new")
    sqlite = CachedStore(SqliteStore(tmp_path / "records.db"))
    assert not hasattr(sqlite, "joining")
    assert sqlite.blocking  # type: ignore[attr-defined]
    assert repr(sqlite) == "CachedStore(<SqliteStore>)"
    assert repr(twin) == "AsyncCachedStore(<Able>)"


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (lambda: CachedStore(Able(FakeClock())), TypeError, "use AsyncCachedStore"),  # type: ignore[arg-type]
        (lambda: AsyncCachedStore(MemoryStore()), TypeError, "use CachedStore"),  # type: ignore[arg-type]
        (lambda: CachedStore("redis://localhost"), TypeError, "must be a store"),  # type: ignore[arg-type]
        (lambda: CachedStore(MemoryStore(), max_records=0), ValueError, "max_records must be at least 1"),
        (lambda: CachedStore(MemoryStore(), max_bytes=1.5), TypeError, "max_bytes"),  # type: ignore[arg-type]
        (lambda: CachedStore(MemoryStore(), ttl=0), ValueError, "ttl must be more than 0"),
        (lambda: CachedStore(MemoryStore(), ttl="1"), TypeError, "ttl must be seconds"),  # type: ignore[arg-type]
        (lambda: CachedStore(MemoryStore(), clock=1.0), TypeError, "clock must be"),  # type: ignore[arg-type]
    ],
)
def test_what_it_cannot_be_made_of(make: Callable[[], object], error: type[Exception], what: str) -> None:
    """Bad input: said when it is made, and what to do."""
    with pytest.raises(error, match=what):
        make()


def test_a_store_that_joins_a_transaction_is_not_cached(tmp_path: Any) -> None:
    """Behaviour 54: what is not committed must not be seen."""
    import sqlite3
    from contextlib import closing

    file = tmp_path / "records.db"
    with SqliteStore(file) as far, closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        joined = far.joining(connection)
        with pytest.raises(TypeError, match="joins a transaction"):
            CachedStore(joined)


def test_a_claim_that_is_none_is_handed_on(far: Far, clock: FakeClock) -> None:
    """A store's bug is told by whoever asked, in its own words."""

    class Wrong(ReferenceStore):
        def claim(self, key: Key, **options: Any) -> Any:
            return None

    with pytest.raises(StoreError):
        Idempotency(CachedStore(Wrong(clock), clock=clock)).run("k", dict)


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


def test_scan_and_watch_are_the_far_stores(store: CachedStore) -> None:
    """A waiter hears of a change that another process makes."""
    assert isinstance(store, WatchableStore)
    assert isinstance(store, ScannableStore)
    woken = threading.Event()
    claim(store)
    with store.watch(KEY, woken.set):
        assert store.complete(KEY, owner="ann", outcome=b"done", ttl=600.0)
        until(woken.is_set)
    assert [(key, record.state) for key, record in store.scan("default")] == [(KEY, State.COMPLETED)]


def _id(key: Key) -> tuple[str, str]:
    return key.namespace, key.value
