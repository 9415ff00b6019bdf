"""Waiting for a call in another process by notification: what is told, what was missed, and what fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from idempo import Idempotency, RecordError, StoreError, decisions
from idempo.hub import hub_of
from tests.async_support import KEY, WatchedBlockingStore, WatchedStore, complete_elsewhere, hold_elsewhere
from tests.async_support import until as until_async
from tests.interrupting import in_thread, until


@pytest.fixture(params=["sync", "direct", "pooled", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    """A plain function, or a coroutine on a store that never blocks, on one that does, or on an AsyncStore."""
    return str(request.param)


class Waiter:
    """A call that another process has the key of."""

    def __init__(self, colour: str, wait: float = 60) -> None:
        self.is_async = colour != "sync"
        self.store: Any = WatchedStore() if colour == "async" else WatchedBlockingStore()
        if colour == "direct":
            self.store.blocking = False
        self.guard = Idempotency(self.store, wait=wait)
        hold_elsewhere(self.store)

    async def call_async(self) -> Any:
        async def effect() -> str:
            return "ours"

        return await self.guard.run_async("k", effect)

    def __call__(self) -> Any:
        return asyncio.run(self.call_async()) if self.is_async else self.guard.run("k", lambda: "ours")

    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return (self.store.watching, self.store.inner._watchers.waiting, len(hub_of(self.store).flights)) == (0, {}, 0)


def test_a_notification_wakes_a_waiter(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 13, 19: long before it would poll; the store is asked twice, and looked at once in between."""
    monkeypatch.setattr(decisions, "_WATCHED_POLL", 1000.0)
    waiter, answers = Waiter(colour), []  # type: ignore[var-annotated]
    thread = in_thread(waiter, answers)
    until(lambda: waiter.store.watching == 1 and "get" in waiter.store.calls)
    complete_elsewhere(waiter.store, "theirs")
    thread.join(20)
    assert answers == ["theirs"]
    assert waiter.store.calls == ["claim", "get", "claim"]
    assert waiter.is_over()


ENDS: dict[str, tuple[Callable[[Any], object], str]] = {
    "completed": (lambda store: complete_elsewhere(store, "theirs"), "theirs"),
    "released": (lambda store: store.inner.release(KEY, owner="elsewhere", ttl=60), "ours"),
    "in doubt": (lambda store: store.inner.renew(KEY, owner="elsewhere", lease=0.0, ttl=60), "ours"),
    "gone": (lambda store: store.inner.delete(KEY), "ours"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_before_it_is_watched_is_not_waited_for(
    colour: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 13, 19: no notification of it will come any more."""
    monkeypatch.setattr(decisions, "_WATCHED_POLL", 1000.0)
    waiter = Waiter(colour)
    claim, behind = waiter.store.inner.claim, [ENDS[end][0]]

    def claimed(*args: Any, **options: Any) -> Any:
        answer = claim(*args, **options)
        if behind:
            behind.pop()(waiter.store)
        return answer

    waiter.store.inner.claim = claimed
    answers: list[Any] = []
    in_thread(waiter, answers).join(20)
    assert answers == [ENDS[end][1]]
    assert waiter.is_over()


def failing(watch: Any, fault: str, error: Exception) -> Any:
    """Return a watch that fails when it is made, entered or left."""

    @contextmanager
    def watched(key: Any, wake: Any) -> Iterator[None]:
        if fault == "enter":
            raise error
        with watch(key, wake):
            try:
                yield
            finally:
                if fault == "leave":
                    raise error

    def make(key: Any, wake: Any) -> Any:
        if fault == "make":
            raise error
        return watched(key, wake)

    return make


@pytest.mark.parametrize(
    "error", [StoreError("no"), RecordError("no"), ConnectionError("no")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("fault", ["get", "make", "enter", "leave"])
def test_a_watch_that_fails_is_a_notification_that_was_lost(
    colour: str, fault: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 19, 32: the call polls instead, and gets the outcome."""
    monkeypatch.setattr(decisions, "_WATCHED_POLL", 1000.0)
    waiter, answers = Waiter(colour), []  # type: ignore[var-annotated]
    asked = threading.Event()

    def get(key: Any) -> Any:
        asked.set()
        raise error

    if fault == "get":  # and no notification comes: what was not looked at may be over already
        waiter.store.inner.get = get
        waiter.store.inner.watch = lambda key, wake: nullcontext()
    else:
        waiter.store.inner.watch = failing(waiter.store.inner.watch, fault, error)
    started = time.monotonic()
    thread = in_thread(waiter, answers)
    until(
        lambda: asked.is_set() if fault == "get" else waiter.store.calls.count("claim" if fault != "leave" else "get")
    )
    complete_elsewhere(waiter.store, "theirs")
    thread.join(20)
    assert answers == ["theirs"]
    assert time.monotonic() - started < 15  # a watch that works is looked after by 500 s at the earliest


def test_a_failing_end_of_a_watch_hides_no_cancellation() -> None:
    """Behaviour 30: a waiter that is cancelled ends."""

    async def main(waiter: Waiter) -> None:
        waiter.store.inner.watch = failing(waiter.store.inner.watch, "leave", StoreError("cannot unsubscribe"))
        call = asyncio.create_task(waiter.call_async())
        await until_async(lambda: "get" in waiter.store.calls)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 10)

    for colour in ("direct", "pooled", "async"):
        asyncio.run(main(Waiter(colour)))


@pytest.mark.parametrize("fault", ["none", "leave"])
def test_a_failing_end_of_a_watch_hides_no_interrupt(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 30: the original is what is raised."""
    waiter = Waiter("sync")
    waiter.store.inner.watch = failing(waiter.store.inner.watch, fault, StoreError("cannot unsubscribe"))

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        waiter()
    assert fault == "leave" or waiter.is_over()
