"""Forgetting and resolving by hand, on a store that fails, and while an outcome is still being offered to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from idempo import (
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    InProgressError,
    Key,
    MemoryStore,
    ResultNotStoredError,
    State,
    StoreError,
)
from idempo.errors import StoreFullError
from idempo.hub import hub_of
from idempo.testing import AsyncFlakyStore, FlakyStore
from tests.async_support import SlowStore

KEY = Key("default", "k")
Make = Callable[..., Any]
STORES: list[Make] = [
    FlakyStore,
    lambda inner, *schedule, **options: AsyncFlakyStore(SlowStore(inner), *schedule, **options),
]


@pytest.fixture(params=STORES, ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a store of either colour that fails on schedule."""
    chosen: Make = request.param
    return chosen


def asked(guard: Idempotency, method: str, *args: Any) -> Any:
    """Ask a guard in the colour of its store."""
    if isinstance(guard.store, AsyncFlakyStore):
        return asyncio.run(getattr(guard, f"{method}_async")(*args))
    return getattr(guard, method)(*args)


def call(guard: Idempotency, value: str, payload: Any = None) -> Any:
    """Run an operation that gives this value."""

    async def effect() -> str:
        return value

    if isinstance(guard.store, AsyncFlakyStore):
        return asyncio.run(guard.run_async("k", effect, payload=payload))
    return guard.run("k", lambda: value, payload=payload)


def leave_doubt(inner: MemoryStore) -> None:
    inner.claim(KEY, owner="dead", fingerprint=None, lease=60, ttl=600)
    inner.renew(KEY, owner="dead", lease=0.0, ttl=600)


@pytest.mark.parametrize("method", ["claim", "complete"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_resolution_is_asked_for_once_more(make: Make, method: str, when: Any) -> None:
    """Behaviour 26: a lost answer, or one failure, is no reason to leave the doubt."""
    inner = MemoryStore()
    leave_doubt(inner)
    guard = Idempotency(make(inner, [(method, 1, when)]), in_doubt="raise", wait=0)
    assert asked(guard, "resolve", "k", "by hand") is True
    assert call(guard, "ran") == "by hand"


@pytest.mark.parametrize("method", ["claim", "complete"])
@pytest.mark.parametrize("before", ["in doubt", "absent"])
def test_a_resolution_that_the_store_does_not_take_leaves_doubt(make: Make, method: str, before: str) -> None:
    """Behaviour 26: at once, and not under a lease of its own; whoever asks says that the effect has happened."""
    inner = MemoryStore()
    if before == "in doubt":
        leave_doubt(inner)
    guard = Idempotency(make(inner, [(method, 1, "after"), (method, 2, "before")]), in_doubt="raise", wait=0)
    if method == "complete":  # or it is stored, and only its answer is lost
        guard = Idempotency(make(inner, [(method, 1, "before"), (method, 2, "before")]), in_doubt="raise", wait=0)
    with pytest.raises(StoreError) as caught:
        asked(guard, "resolve", "k", "by hand")
    assert caught.value.key == KEY
    with pytest.raises(InDoubtError):
        call(guard, "ran")
    assert asked(guard, "resolve", "k", "once more") is True
    assert call(guard, "ran") == "once more"


def test_a_full_store_is_asked_for_a_resolution_once(make: Make) -> None:
    """Behaviour 49: it says what is so, and nothing was lost."""
    store = make(MemoryStore(), [("claim", None, "before")], error=lambda _: StoreFullError("full"))
    with pytest.raises(StoreFullError):
        asked(Idempotency(store), "resolve", "k", "by hand")
    assert store.count("claim") == 1


def test_a_store_that_answers_no_claim_resolves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 32: its own mistake is told as one."""
    store = MemoryStore()
    monkeypatch.setattr(store, "claim", lambda *_, **__: None)
    with pytest.raises(StoreError, match="claim answered None"):
        Idempotency(store).resolve("k", "by hand")


@pytest.mark.parametrize("by", ["another call", "forget"])
def test_a_resolution_that_was_overtaken_says_so(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Behaviour 22: it is not said to be there already, for it is not."""
    store = MemoryStore()
    complete = store.complete

    def overtaken(key: Key, **options: Any) -> bool:
        store.delete(key)
        if by == "another call":
            store.claim(key, owner="another", fingerprint=None, lease=60, ttl=600)
        return complete(key, **options)

    monkeypatch.setattr(store, "complete", overtaken)
    with pytest.raises(InProgressError, match="claimed by another call, or forgotten"):
        Idempotency(store).resolve("k", "by hand")
    record = store.get(KEY)
    assert (record.owner if record else None) == ("another" if by == "another call" else None)


@pytest.mark.parametrize("method", ["claim", "complete"])
@pytest.mark.parametrize(
    ("make", "interrupt", "raised"),
    [
        (STORES[0], KeyboardInterrupt, KeyboardInterrupt),
        (STORES[0], asyncio.CancelledError, asyncio.CancelledError),
        (STORES[1], asyncio.CancelledError, StoreError),  # the store's own: nobody has cancelled the caller
    ],
)
def test_a_resolution_that_is_interrupted_leaves_doubt_and_no_lease(
    make: Make, method: str, interrupt: type[BaseException], raised: type[BaseException]
) -> None:
    """Behaviour 30: duplicates need not wait for a lease that nobody holds."""
    inner = MemoryStore()
    store = make(inner, [(method, 1, "after" if method == "claim" else "before")], error=lambda _: interrupt())
    guard = Idempotency(store, in_doubt="raise", wait=0)
    with pytest.raises(raised):
        asked(guard, "resolve", "k", "by hand")
    with pytest.raises(InDoubtError):
        call(guard, "ran")


@pytest.mark.parametrize("how", ["forget", "resolve"])
def test_what_is_settled_by_hand_is_no_longer_offered(make: Make, how: str) -> None:
    """Behaviour 33: duplicates get what was settled, and not what the store had not taken until then."""
    inner, outage = MemoryStore(), ExitStack()
    store = make(inner)
    guard = Idempotency(store, lease=0.05, wait=0)

    def down() -> str:
        outage.enter_context(store.outage())
        return "offered"

    async def down_async() -> str:
        return down()

    async def main() -> None:  # one loop, on which it goes on being offered
        is_async = isinstance(store, AsyncFlakyStore)
        with pytest.raises(ResultNotStoredError):
            await guard.run_async("k", down_async) if is_async else guard.run("k", down)
        offered: Any = hub_of(store).flights.offering(("default", "k"))
        assert any(offered in one for one in [hub_of(store).renewer, *hub_of(store).loops.values()])
        outage.close()
        inner.renew(KEY, owner=inner.get(KEY).owner, lease=0.0, ttl=60)  # type: ignore[union-attr]
        args = ["k"] if how == "forget" else ["k", "by hand"]
        done = await getattr(guard, f"{how}_async")(*args) if is_async else getattr(guard, how)(*args)
        assert done is True
        assert len(hub_of(store).flights) == 0
        assert not any(offered in one for one in [hub_of(store).renewer, *hub_of(store).loops.values()])

    asyncio.run(main())
    assert call(guard, "ran") == ("ran" if how == "forget" else "by hand")


def test_a_live_claim_is_neither_forgotten_nor_resolved(make: Make) -> None:
    """Behaviour 26: and its payload is still compared afterwards."""
    inner = MemoryStore()
    guard = Idempotency(make(inner), wait=0)
    inner.claim(KEY, owner="elsewhere", fingerprint=b"1:other", lease=60, ttl=600)
    for method, args in (("forget", ["k"]), ("resolve", ["k", "by hand"])):
        with pytest.raises(InProgressError):
            asked(guard, method, *args)
    record = inner.get(KEY)
    assert record is not None
    assert (record.state, record.owner, record.attempt) == (State.RUNNING, "elsewhere", 1)
    with pytest.raises(FingerprintMismatchError):
        call(guard, "ran", payload=1)
