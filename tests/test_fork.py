"""Processes that fork while guarded functions run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from idempo import (
    Idempotency,
    Key,
    LeaseLostError,
    MemoryStore,
    State,
    current_operation,
)
from idempo._fork import new_lock
from idempo.hub import hub_of
from tests.async_support import KEY, BlockingStore, Effect, SlowStore
from tests.forked import in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # What is tested is that it does not.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

STORES = [MemoryStore, BlockingStore]


@pytest.mark.parametrize("make", STORES)
def test_a_child_runs_keys_of_its_own(make: Callable[[], Any]) -> None:
    """Behaviour 43: its locks work, and its renewer is its own; what is completed it replays."""
    store = make()
    guard = Idempotency(store)
    assert guard.run("k", lambda: 1) == 1
    renewer = hub_of(store).renewer
    pool = hub_of(store).pool

    async def coroutine() -> int:
        return 3

    def child() -> None:
        assert guard.run("k", lambda: 2) == 1
        assert guard.run("another", lambda: 2) == 2
        assert asyncio.run(guard.run_async("third", coroutine)) == 3
        assert hub_of(store).renewer is not renewer
        assert hub_of(store).pool is not pool
        assert guard.stats().executed == 3

    in_child(child)
    assert guard.run("another", lambda: 4) == 4


@pytest.mark.parametrize("make", STORES)
@pytest.mark.realtime
def test_a_call_of_a_child_is_renewed_there(make: Callable[[], Any]) -> None:
    """Behaviour 43: by a thread that the child starts; its parent's does not exist there."""
    store = make()
    guard = Idempotency(store, lease=0.15)
    inner = getattr(store, "inner", store)
    renew = inner.renew

    def kept_up() -> int:
        renewed = threading.Semaphore(0)

        def noting(key: Key, **options: Any) -> bool:
            answer = bool(renew(key, **options))
            renewed.release()
            return answer

        inner.renew = noting
        for _ in range(4):
            assert renewed.acquire(timeout=5), "nobody renews"
        current_operation().ensure_held()
        return 1

    def parent() -> int:
        assert kept_up() == 1
        in_child(lambda: guard.run("another", kept_up))
        return kept_up()

    assert guard.run("k", parent) == 1


@pytest.mark.parametrize("make", STORES)
@pytest.mark.parametrize("policy", ["rerun", "raise"])
@pytest.mark.parametrize("ends", ["returns", "raises", "is interrupted"])
def test_a_body_that_ends_in_a_child_writes_nothing(make: Callable[[], Any], policy: Any, ends: str) -> None:
    """Behaviour 43: its value comes with LeaseLostError; its parent's claim stands, and completes."""
    store = make()
    guard = Idempotency(store, in_doubt=policy, replay_errors=LookupError)

    class Forked(BaseException):
        """Leaves the parent's frames in the child."""

    raised: dict[str, tuple[type[BaseException], BaseException | None]] = {
        "returns": (LeaseLostError, None),
        "raises": (LookupError, LookupError("mine")),
        "is interrupted": (Forked, Forked()),
    }
    expected, error = raised[ends]
    inner = getattr(store, "inner", store)

    def body() -> str:
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert status == 0
            current_operation().ensure_held()
            record = inner.get(KEY)
            assert record is not None
            assert record.state is State.RUNNING
            return "parent"
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # a child that hangs ends all the same
        with pytest.raises(LeaseLostError):
            current_operation().ensure_held()
        if error is not None:
            raise error
        return "child"

    parent = os.getpid()
    try:
        value = guard.run("k", body)
    except BaseException as caught:
        if os.getpid() == parent:
            raise
        record = inner.get(KEY)
        fine = (
            isinstance(caught, expected)
            and (error is None or caught is error)
            and (error is not None or getattr(caught, "result", None) == "child")
            and record is not None
            and record.state is State.RUNNING
        )
        if not fine:
            traceback.print_exc()
        os._exit(0 if fine else 1)
    assert os.getpid() == parent
    assert value == "parent"
    assert guard.run("k", lambda: "again") == "parent"


@pytest.mark.parametrize("make", [MemoryStore, SlowStore, BlockingStore])
@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_coroutine_that_ends_in_a_child_writes_nothing(make: Callable[[], Any], ends: str) -> None:
    """Behaviour 43: for a coroutine, which is driven on in the child by hand, since its loop is its parent's."""
    store = make()
    guard = Idempotency(store)
    inner = getattr(store, "inner", store)

    class Gate:
        def __await__(self) -> Any:
            yield self

    async def body() -> str:
        await Gate()
        if ends == "raises":
            raise LookupError("mine")
        return "value"

    async def main() -> None:
        coroutine = guard.run_async("k", body)
        while not isinstance(waits_for := coroutine.send(None), Gate):
            await asyncio.wait([waits_for])

        def child() -> None:
            with pytest.raises(LeaseLostError if ends == "returns" else LookupError) as caught:
                coroutine.send(None)
            if ends == "returns":
                assert caught.value.result == "value"  # type: ignore[attr-defined]
            assert inner.get(KEY).state is State.RUNNING

        in_child(child)
        coroutine.close()

    asyncio.run(main())


def test_a_child_does_not_wait_for_a_call_of_its_parent() -> None:
    """Behaviour 43: which will never end there; by what the store says it goes."""
    store = MemoryStore()
    guard = Idempotency(store, wait=0)

    def body() -> int:
        def child() -> None:
            assert len(hub_of(store).flights) == 0
            assert Idempotency(store, wait=0).forget("k", force=True)
            assert guard.run("k", lambda: 2) == 2

        in_child(child)
        return 1

    assert guard.run("k", body) == 1


def test_a_child_of_a_busy_process_has_working_locks() -> None:
    """Behaviour 43: whatever its parent's threads were doing as it forked."""
    store = MemoryStore()
    guard = Idempotency(store)
    end = threading.Event()

    def busy(number: int) -> None:
        n = 0
        while not end.is_set():
            n += 1
            guard.run((number, n), int)
            guard.stats()

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            in_child(lambda: (guard.run("child", int), guard.stats(), Idempotency(MemoryStore()).run("k", int)))
    finally:
        end.set()
        for thread in threads:
            thread.join(20)


@pytest.mark.parametrize("held", ["pool", "renewer"])
def test_a_lock_that_another_thread_holds_is_free_in_the_child(held: str) -> None:
    """Behaviour 43: each lock for itself."""
    store = BlockingStore()
    guard = Idempotency(store)
    hub = hub_of(store)
    lock: Any = {"pool": hub._lock, "renewer": hub.renewer._changed}[held]
    taken, end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            assert end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)

    def child() -> None:
        done = threading.Event()

        def work() -> None:
            guard.stats()
            assert hub.pool
            assert asyncio.run(guard.run_async("k", Effect())) == 1
            done.set()

        threading.Thread(target=work, daemon=True).start()
        assert done.wait(5), "a lock is still taken"

    try:
        in_child(child)
    finally:
        end.set()
        thread.join(20)


@pytest.mark.realtime
def test_a_lock_that_is_held_for_long_is_free_in_the_child() -> None:
    """Behaviour 43: a fork waits within bounds, the child finds it as new, and in the parent it is still held."""
    lock, other = new_lock(), new_lock()
    taken, end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock, lock:
            taken.set()
            assert end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)

    def child() -> None:
        for each in (lock, other):
            assert each.acquire(timeout=5), "a lock is still taken"
            each.release()

    try:
        in_child(child)
        assert not lock.acquire(blocking=False)
    finally:
        end.set()
        thread.join(20)
