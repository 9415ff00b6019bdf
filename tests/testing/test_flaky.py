"""FlakyStore and AsyncFlakyStore."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from idempo.errors import StoreError
from idempo.protocols import NearStore, PurgeableStore, ScannableStore, Store, SweepableStore, WatchableStore
from idempo.records import Key, State
from idempo.testing import AsyncFlakyStore, Call, FakeClock, FlakyStore, StoreContract
from tests.reference_store import ReferenceStore
from tests.testing.async_stores import SixMethods

KEY = Key("flaky", "order-42")
CLAIM: dict[str, Any] = {"owner": "owner-a", "fingerprint": b"\x01", "lease": 10.0, "ttl": 100.0}


class TestWithoutFaults(StoreContract):
    """Without a schedule it is the store that it was given, save that it answers nothing from near memory."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> FlakyStore:
        return FlakyStore(ReferenceStore(clock))


def test_a_call_that_fails_before_changes_nothing() -> None:
    """Behaviour 32: the store was not reached."""
    store = FlakyStore(ReferenceStore(), fail=[("claim", 1, "before")])
    with pytest.raises(StoreError, match=r"call 1 of claim fails before") as raised:
        store.claim(KEY, **CLAIM)
    assert raised.value.key == KEY
    assert store.get(KEY) is None
    assert store.claim(KEY, **CLAIM).record.attempt == 1


def test_a_call_that_fails_after_was_made() -> None:
    """Behaviour 34: only its answer is lost."""
    store = FlakyStore(ReferenceStore(), fail=[("claim", 1, "after"), ("complete", 2, "after")])
    with pytest.raises(StoreError, match=r"call 1 of claim fails after"):
        store.claim(KEY, **CLAIM)
    record = store.get(KEY)
    assert record is not None
    assert record.owner == "owner-a"
    assert store.complete(KEY, owner="stranger", outcome=b"", ttl=1.0) is False
    with pytest.raises(StoreError):
        store.complete(KEY, owner="owner-a", outcome=b"done", ttl=100.0)
    record = store.get(KEY)
    assert record is not None
    assert record.outcome == b"done"


def test_calls_are_remembered_with_what_became_of_them() -> None:
    """For assertions: method, key, number, options, and whether it was made to fail."""
    store = FlakyStore(ReferenceStore(), fail=[("renew", 2, "before")])
    store.claim(KEY, **CLAIM)
    for _ in range(2):
        with suppress(StoreError):
            store.renew(KEY, owner="owner-a", lease=1.0, ttl=2.0)
    store.release(KEY, owner="owner-a", ttl=3.0)
    store.get(KEY)
    store.delete(KEY)
    assert store.calls == [
        Call("claim", KEY, 1, {**CLAIM, "take_over": True}),
        Call("renew", KEY, 1, {"owner": "owner-a", "lease": 1.0, "ttl": 2.0}),
        Call("renew", KEY, 2, {"owner": "owner-a", "lease": 1.0, "ttl": 2.0}, "before"),
        Call("release", KEY, 1, {"owner": "owner-a", "ttl": 3.0}),
        Call("get", KEY, 1, {}),
        Call("delete", KEY, 1, {"owner": None}),
    ]
    assert (store.count(), store.count("renew"), store.count("complete")) == (6, 2, 0)


def test_every_call_of_a_method_can_fail() -> None:
    """None in the place of the number; a number of its own comes first."""
    store = FlakyStore(ReferenceStore(), fail=[("get", None, "before"), ("get", 2, "after")])
    for _ in range(3):
        with pytest.raises(StoreError):
            store.get(KEY)
    assert [call.failed for call in store.calls] == ["before", "after", "before"]


def test_a_callable_can_choose_and_the_error_can_be_another() -> None:
    """It is given each call; what it answers is what happens."""
    store = FlakyStore(
        ReferenceStore(),
        fail=lambda call: "after" if call.method == "claim" and call.options["owner"] == "owner-b" else None,
        error=lambda call: ConnectionError(f"{call.method} {call.failed}"),
    )
    assert store.claim(KEY, **CLAIM).acquired
    with pytest.raises(ConnectionError, match="claim after"):
        store.claim(KEY, **{**CLAIM, "owner": "owner-b"})


def test_an_outage_ends() -> None:
    """Behaviour 33: within it nothing is reached; outages may overlap."""
    store = FlakyStore(ReferenceStore())
    with store.outage():
        with store.outage(), pytest.raises(StoreError):
            store.claim(KEY, **CLAIM)
        with pytest.raises(StoreError):
            store.get(KEY)
    assert store.get(KEY) is None


def test_abilities_are_the_inner_stores_save_near_memory() -> None:
    """A proxy that had more, or answered behind the schedule's back, would test something else."""
    inner = ReferenceStore()
    store = FlakyStore(inner)
    for ability in (WatchableStore, ScannableStore, PurgeableStore, SweepableStore):
        assert isinstance(store, ability)
    assert isinstance(store, Store)
    assert not isinstance(store, NearStore)
    assert (getattr(store, "blocking", None), getattr(store, "shared", None)) == (False, False)
    bare = AsyncFlakyStore(SixMethods(FakeClock()))
    for name in ("near", "watch", "scan", "purge", "sweep"):
        assert not hasattr(bare, name)
    for name in ("blocking", "shared", "default_codec"):
        assert not hasattr(bare, name), "what the inner store leaves to the default stays the default"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("purge", 1, "before"), "names a method"),
        (("claim", 0, "before"), "counted from 1"),
        (("claim", 1, "never"), '"before" or "after"'),
    ],
)
def test_a_schedule_that_can_never_happen_is_refused(fault: Any, message: str) -> None:
    """A test whose fault does not come passes for nothing."""
    with pytest.raises(ValueError, match=message):
        FlakyStore(ReferenceStore(), fail=[fault])


def test_the_async_one_fails_on_the_same_schedule() -> None:
    """Before and after, and all six methods reach the inner store."""

    async def use() -> None:
        inner = SixMethods(FakeClock())
        store = AsyncFlakyStore(inner, fail=[("claim", 1, "after"), ("complete", 1, "before")])
        with pytest.raises(StoreError):
            await store.claim(KEY, **CLAIM)
        assert (await store.claim(KEY, **CLAIM)).acquired
        assert await store.renew(KEY, owner="owner-a", lease=10.0, ttl=100.0)
        with pytest.raises(StoreError):
            await store.complete(KEY, owner="owner-a", outcome=b"done", ttl=100.0)
        assert await store.complete(KEY, owner="owner-a", outcome=b"done", ttl=100.0)
        record = await store.get(KEY)
        assert record is not None
        assert record.state is State.COMPLETED
        assert not await store.release(KEY, owner="owner-a", ttl=100.0)
        assert await store.delete(KEY)
        assert [call.failed for call in store.calls].count(None) == 6

    asyncio.run(use())
