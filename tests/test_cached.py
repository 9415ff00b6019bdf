"""CachedStore: what is answered from near, for how long, and what drops it. The contract is in contract/."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from idempo import FingerprintMismatchError, Idempotency, Key
from idempo.errors import StoreError
from idempo.protocols import (
    AsyncPurgeableStore,
    PurgeableStore,
)
from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.testing import AsyncFlakyStore, FakeClock, FlakyStore
from tests.cached_support import KEY, Far, Gated, claim, near, operate
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
        assert store.near(*_id(KEY)) == (b"f", b"done", 1, far._store.get(KEY).token)
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
    assert store.near(*_id(KEY)) == (b"f", b"done", 3, far._store.get(KEY).token)


def test_an_outcome_that_nobody_here_claimed_for_is_not_kept(store: CachedStore, far: Far) -> None:
    """Behaviour 55: its fingerprint is not known here; the next duplicate is told it."""
    claim(far, "ann")
    assert store.complete(KEY, owner="ann", outcome=b"done", ttl=600.0)
    assert near(store) is None
    claim(store, "bob")
    assert store.near(*_id(KEY)) == (b"f", b"done", 1, far._store.get(KEY).token)
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


def _id(key: Key) -> tuple[str, str]:
    return key.namespace, key.value
