"""Operation blocks: ``with`` and ``async with``, on every kind of store."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from idempo import (
    FingerprintError,
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    InProgressError,
    InvalidKeyError,
    Key,
    LeaseLostError,
    MemoryStore,
    ReentrantCallError,
    ResultNotStoredError,
    State,
    current_operation,
)
from idempo.hub import hub_of
from idempo.stores.cas import AsyncCasStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock, FlakyStore, unguarded
from idempo.testing.backend import AsyncDictBackend, DictBackend

KEY = "order-42"


class FailedError(Exception):
    """What the body raises."""


class Interrupting(MemoryStore):
    """Is interrupted as often as it is told: once a claim was made, and before any other step is."""

    def __init__(self, **times: int) -> None:
        super().__init__()
        self.times = times
        for method in times:
            setattr(self, method, partial(self._step, method, getattr(self, method)))

    def _step(self, method: str, step: Callable[..., Any], key: Key, **options: Any) -> Any:
        if not self.times[method]:
            return step(key, **options)
        self.times[method] -= 1
        if method == "claim":
            step(key, **options)
        raise KeyboardInterrupt


class Blocks:
    """Runs a block in one colour, so that each test below is of both."""

    def __init__(self, guard: Idempotency, *, colour: str) -> None:
        self.guard = guard
        self.colour = colour
        self.seen: list[Any] = []

    def run(self, body: Callable[[Any], Any] | None = None, key: str = KEY, payload: Any = None) -> Any:
        """Enter a block, and call the body with its operation; what it returns completes a fresh one."""
        if self.colour == "sync":
            with self.guard.operation(key, payload=payload) as op:
                self.seen.append(op)
                if op.fresh and body is not None:
                    assert op.complete(body(op)) is op.result
            return op.result
        return asyncio.run(self._run_async(body, key, payload))

    async def _run_async(self, body: Callable[[Any], Any] | None, key: str, payload: Any) -> Any:
        async with self.guard.operation(key, payload=payload) as op:
            self.seen.append(op)
            if op.fresh and body is not None:
                assert await op.complete(body(op)) is op.result
        return op.result


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def blocks(colour: str, clock: FakeClock) -> Blocks:
    return Blocks(Idempotency(MemoryStore(clock=clock), namespace="billing", wait=0), colour=colour)


def test_a_block_runs_once(blocks: Blocks) -> None:
    """Behaviours 1, 2: the second block of the key is a replay, and has the value."""
    assert blocks.run(lambda op: ["placed"]) == ["placed"]
    assert blocks.run(lambda op: pytest.fail("ran again")) == ["placed"]
    first, second = blocks.seen
    assert (first.fresh, first.replayed, second.fresh, second.replayed) == (True, False, False, True)
    assert (first.attempt, first.token) == (second.attempt, second.token) == (1, first.token)
    assert first.key == second.key == Key("billing", KEY)
    assert first.result is not second.result


def test_a_block_that_is_left_without_a_value_has_none(blocks: Blocks) -> None:
    """Leaving a fresh block completes it with None, which is a value like any other."""
    assert blocks.run() is None
    assert blocks.run(lambda op: pytest.fail("ran again")) is None
    assert blocks.seen[1].replayed
    assert blocks.guard.stats().executed == 1


def test_a_block_that_raises_frees_its_key(blocks: Blocks) -> None:
    """Behaviour 29: by policy; the error is what is raised, and the next block runs, as attempt 2."""

    def fail(op: Any) -> None:
        raise FailedError

    with pytest.raises(FailedError):
        blocks.run(fail)
    assert blocks.run(lambda op: op.attempt) == 2


def test_what_a_block_does_after_its_value_is_stored_undoes_nothing(colour: str) -> None:
    """After complete() an error is an error of what follows: duplicates get the value."""
    guard = Idempotency(wait=0, replay_errors=(FailedError,))

    async def in_async() -> None:
        async with guard.operation(KEY) as op:
            await op.complete("placed")
            raise FailedError

    def in_sync() -> None:
        with guard.operation(KEY) as op:
            op.complete("placed")
            raise FailedError

    with pytest.raises(FailedError):
        asyncio.run(in_async()) if colour == "async" else in_sync()
    assert Blocks(guard, colour=colour).run() == "placed"


def test_another_payload_is_refused(blocks: Blocks) -> None:
    """Behaviour 6: what is given is fingerprinted, and None checks nothing."""
    blocks.run(lambda op: 1, payload={"amount": 5})
    with pytest.raises(FingerprintMismatchError):
        blocks.run(payload={"amount": 6})
    assert blocks.run(payload={"amount": 5}) == blocks.run() == 1


def test_bad_keys_and_payloads_are_refused_before_the_block(blocks: Blocks) -> None:
    """Behaviours 9, 10: nothing is entered, and no record is left."""
    with pytest.raises(InvalidKeyError):
        blocks.run(key="")
    with pytest.raises(FingerprintError):
        blocks.run(payload=[object()])
    assert blocks.seen == []
    assert blocks.guard.lookup(KEY) is None


def test_a_stored_error_is_raised_on_entering(colour: str) -> None:
    """Behaviour 29: a declared error is the outcome: duplicates do not enter the block."""
    blocks = Blocks(Idempotency(replay_errors=(FailedError,)), colour=colour)

    def fail(op: Any) -> None:
        raise FailedError("out of stock")

    for _ in range(2):
        with pytest.raises(FailedError, match="out of stock"):
            blocks.run(fail)
    assert len(blocks.seen) == 1
    assert blocks.guard.stats().replayed == 1


def test_a_block_that_leaves_doubt(colour: str) -> None:
    """Behaviour 26: at most once, an undeclared error leaves doubt, until an operator resolves it."""
    blocks = Blocks(Idempotency(in_doubt="raise", wait=0), colour=colour)

    def fail(op: Any) -> None:
        raise FailedError

    with pytest.raises(FailedError):
        blocks.run(fail, payload=1)
    with pytest.raises(InDoubtError):
        blocks.run(payload=1)
    guard = blocks.guard
    in_sync = colour == "sync"
    resolved = guard.resolve(KEY, "by hand") if in_sync else asyncio.run(guard.resolve_async(KEY, "by hand"))
    assert resolved
    with pytest.raises(FingerprintMismatchError):
        blocks.run(payload=2)
    assert blocks.run(payload=1) == "by hand"


def test_a_value_is_given_once(blocks: Blocks) -> None:
    """A second value, one for a replay, or one after the block is a mistake, and says so."""
    values: list[Any] = []

    async def in_async() -> None:
        async with blocks.guard.operation(KEY) as op:
            values.append(await op.complete("first"))
            with pytest.raises(RuntimeError, match="outcome already"):
                await op.complete("second")
        async with blocks.guard.operation(KEY) as op:
            with pytest.raises(RuntimeError, match="outcome already"):
                await op.complete("third")
        async with blocks.guard.operation("other") as op:
            pass
        with pytest.raises(RuntimeError, match="block was left"):
            await op.complete("late")

    def in_sync() -> None:
        with blocks.guard.operation(KEY) as op:
            values.append(op.complete("first"))
            with pytest.raises(RuntimeError, match="outcome already"):
                op.complete("second")
        with blocks.guard.operation(KEY) as op:
            with pytest.raises(RuntimeError, match="outcome already"):
                op.complete("third")
        with blocks.guard.operation("other") as op:
            pass
        with pytest.raises(RuntimeError, match="block was left"):
            op.complete("late")

    asyncio.run(in_async()) if blocks.colour == "async" else in_sync()
    assert values == ["first"]
    assert blocks.run() == "first"


def test_a_block_object_is_for_one_use(blocks: Blocks) -> None:
    """What is entered twice would be two operations with one state."""

    async def in_async() -> None:
        block = blocks.guard.operation(KEY)
        async with block:
            pass
        async with block:
            pytest.fail("entered")

    def in_sync() -> None:
        block = blocks.guard.operation(KEY)
        with block:
            pass
        with block:
            pytest.fail("entered")

    with pytest.raises(RuntimeError, match="one use"):
        asyncio.run(in_async()) if blocks.colour == "async" else in_sync()


def test_inside_a_block_its_operation_is_the_current_one(blocks: Blocks) -> None:
    """The operation, its derived keys, and what is around it afterwards."""

    def look(op: Any) -> str:
        assert current_operation() is op
        op.ensure_held()
        return str(op.derive("capture"))

    first = blocks.run(look)
    assert len(first) == 40
    with pytest.raises(LookupError):
        current_operation()


def test_the_same_key_inside_its_own_block_is_refused(blocks: Blocks) -> None:
    """Behaviour 17: the call would wait for itself."""

    async def in_async() -> None:
        async with blocks.guard.operation(KEY):
            async with blocks.guard.operation(KEY):
                pytest.fail("entered")

    def in_sync() -> None:
        with blocks.guard.operation(KEY):
            with blocks.guard.operation(KEY):
                pytest.fail("entered")

    with pytest.raises(ReentrantCallError):
        asyncio.run(in_async()) if blocks.colour == "async" else in_sync()
    assert blocks.run(lambda op: "free again") == "free again"


def test_a_duplicate_of_an_open_block_is_refused_at_the_deadline(blocks: Blocks) -> None:
    """Behaviours 14, 16: and the open one is undisturbed."""
    store = blocks.guard.store
    assert isinstance(store, MemoryStore)

    def duplicate(op: Any) -> str:
        context = contextvars.Context()  # another caller's: not inside of this block
        other = Blocks(Idempotency(store, namespace="billing", wait=0), colour="sync")
        with pytest.raises((InProgressError, ReentrantCallError)):
            context.run(other.run)
        return "placed"

    assert blocks.run(duplicate) == "placed"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_an_interrupt_in_a_block_sticks_no_key(blocks: Blocks, interrupt: type[BaseException]) -> None:
    """Behaviour 30: whatever ends the block, the next one runs, and the interrupt is what is raised."""

    async def in_async() -> None:
        async with blocks.guard.operation(KEY):
            raise interrupt

    def in_sync() -> None:
        with blocks.guard.operation(KEY):
            raise interrupt

    with pytest.raises(interrupt):
        asyncio.run(in_async()) if blocks.colour == "async" else in_sync()
    record = blocks.guard.lookup(KEY)
    assert record is not None
    assert record.state is State.RELEASED
    assert blocks.run(lambda op: op.attempt) == 2


def test_an_async_block_that_is_cancelled_sticks_no_key() -> None:
    """Behaviour 30: the cancellation is what is raised, and the next block runs."""
    guard = Idempotency(wait=0)

    async def scenario() -> None:
        entered = asyncio.Event()

        async def body() -> None:
            async with guard.operation(KEY):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with guard.operation(KEY) as op:
            assert op.fresh
            assert op.attempt == 2

    asyncio.run(scenario())


def test_a_block_in_a_generator_that_is_closed_elsewhere(blocks: Blocks) -> None:
    """A generator may be closed in another context than it was begun in: its block ends all the same."""
    if blocks.colour == "async":
        pytest.skip("an async generator is closed by its loop")

    def generator() -> Any:
        with blocks.guard.operation(KEY):
            yield

    begun = generator()
    contextvars.Context().run(next, begun)
    begun.close()
    assert blocks.run(lambda op: op.attempt) == 2


def test_an_async_store_serves_async_blocks_alone() -> None:
    """`with` on an AsyncStore is a TypeError, before anything is claimed; its keys can be looked at and resolved."""
    clock = FakeClock()
    guard = Idempotency(AsyncCasStore(AsyncDictBackend(DictBackend(clock)), clock=clock, wall_clock=clock), wait=0)
    with pytest.raises(TypeError, match="async with"):
        with guard.operation(KEY):
            pytest.fail("entered")

    async def scenario() -> None:
        async with guard.operation(KEY, payload=1) as op:
            assert await op.complete((1, 2)) == (1, 2)
        async with guard.operation(KEY, payload=1) as op:
            assert (op.fresh, op.result) == (False, (1, 2))
        assert await guard.resolve_async(KEY, "too late") is False
        assert await guard.resolve_async("never seen", "by hand") is True
        async with guard.operation("never seen") as op:
            assert op.result == "by hand"
        async with guard.operation("open"):
            with pytest.raises(InProgressError):
                await guard.resolve_async("open", "while it runs")
            with pytest.raises(InProgressError):
                await guard.forget_async("open")
        assert await guard.forget_async("open")
        assert not await guard.forget_async("open")
        assert await guard.forget_async(KEY, force=True)
        assert await guard.lookup_async(KEY) is None

    asyncio.run(scenario())
    for refused in (lambda: guard.lookup(KEY), lambda: guard.forget(KEY), lambda: guard.resolve(KEY, 1)):
        with pytest.raises(TypeError, match="async"):
            refused()


def test_a_block_whose_lease_is_lost_is_told(blocks: Blocks, clock: FakeClock) -> None:
    """Behaviour 22: another attempt has taken over: the late value changes nothing, and is on the error."""
    store = blocks.guard.store

    def slow(op: Any) -> str:
        clock.advance(16)
        Idempotency(store, namespace="billing").resolve(KEY, "other")  # type: ignore[arg-type]
        return "late"

    with pytest.raises(LeaseLostError) as caught:
        blocks.run(slow)
    assert caught.value.result == "late"
    assert blocks.run() == "other"


@pytest.mark.realtime
def test_a_block_whose_outcome_is_not_taken_says_so(colour: str) -> None:
    """Behaviour 33: the value is on the error, duplicates of this process get it, and nothing runs twice."""
    store = FlakyStore(MemoryStore(), [("complete", None, "before")])
    blocks = Blocks(Idempotency(store, lease=0.1, wait=0), colour=colour)
    with pytest.raises(ResultNotStoredError) as caught:
        blocks.run(lambda op: "placed")
    assert caught.value.result == "placed"
    assert blocks.run(lambda op: pytest.fail("ran again")) == "placed"


def test_unguarded_blocks_simply_run(blocks: Blocks) -> None:
    """In a user's own tests: each block is fresh, the store is not asked, and there is an operation to ask."""
    with unguarded():
        assert blocks.run(lambda op: [current_operation() is op, op.attempt]) == [True, 0]
        assert blocks.run(lambda op: "again") == "again"
        assert blocks.run() is None
    assert blocks.guard.lookup(KEY) is None
    assert blocks.guard.stats().executed == 0


def test_an_unguarded_block_takes_one_value_too() -> None:
    """What would fail with the guard fails without."""
    with unguarded(), Idempotency().operation(KEY) as op:
        op.complete(1)
        with pytest.raises(RuntimeError, match="outcome already"):
            op.complete(2)


def test_keys_of_a_blocking_store_are_asked_for_by_a_worker_thread(tmp_path: Path) -> None:
    """A coroutine looks, resolves and forgets without stopping its loop for the file."""
    threads = set()

    class Watched(SqliteStore):
        def get(self, key: Key) -> Any:
            threads.add(threading.get_ident())
            return super().get(key)

    async def scenario() -> None:
        with Watched(tmp_path / "idempo.db") as store:
            guard = Idempotency(store, namespace="billing")
            assert await guard.resolve_async(KEY, "by hand")
            record = await guard.lookup_async(KEY)
            assert record is not None
            assert record.state is State.COMPLETED
            assert await guard.forget_async(KEY)
            assert await guard.lookup_async(KEY) is None

    asyncio.run(scenario())
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("at", ["claim", "complete"])
def test_an_interrupt_inside_the_store_sticks_no_key(blocks: Blocks, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Behaviour 30: while entering the key is free again; while leaving, the value is stored all the same."""
    real = getattr(MemoryStore, at)

    def interrupted(self: MemoryStore, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(MemoryStore, at, real)
        real(self, *args, **options)
        raise asyncio.CancelledError

    monkeypatch.setattr(MemoryStore, at, interrupted)

    async def in_async() -> None:
        async with blocks.guard.operation(KEY):
            pass

    def in_sync() -> None:
        with blocks.guard.operation(KEY):
            pass

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(in_async()) if blocks.colour == "async" else in_sync()
    expected = None if at == "complete" else "next"
    assert blocks.run(lambda op: "next") == expected


def test_an_interrupt_while_a_block_that_was_interrupted_on_entering_is_ended() -> None:
    """Behaviour 30: the claim that was made is given back all the same."""
    store = Interrupting(claim=1, release=1)
    guard = Idempotency(store, wait=0)
    # The error is kept until the end: when its traceback goes, so does the block, whose finalizer ends it too.
    with pytest.raises(KeyboardInterrupt) as caught, guard.operation(KEY):
        pytest.fail("entered")
    assert len(hub_of(store).flights) == 0
    with guard.operation(KEY) as op:
        assert op.attempt == 2
    assert store.times == {"claim": 0, "release": 0}
    del caught


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", ["release", "complete"])
def test_an_interrupt_while_a_block_is_ended_ends_it_all_the_same(method: str, times: int) -> None:
    """Behaviour 30: the key of a body that was interrupted is free, the value of one that ran is stored."""
    store = Interrupting(**{method: times})
    guard = Idempotency(store, wait=0)
    with pytest.raises(KeyboardInterrupt) as caught, guard.operation(KEY):  # kept until the end, as above
        if method == "release":
            raise KeyboardInterrupt
    assert len(hub_of(store).flights) == 0
    with guard.operation(KEY) as op:
        assert (op.fresh, op.attempt) == ((True, 2) if method == "release" else (False, 1))
    assert store.times == {method: 0}
    del caught


@pytest.mark.realtime
@pytest.mark.parametrize("completes", [False, True])
def test_a_block_whose_renewal_was_refused_is_told_at_its_end(colour: str, completes: bool) -> None:
    """Behaviours 22, 24: by LeaseLostError with its value, also where it was left without one."""
    store = MemoryStore()
    guard = Idempotency(store, lease=0.15)

    def lose(op: Any) -> None:
        store.delete(op.key)
        while True:
            try:
                op.ensure_held()
            except LeaseLostError:
                return

    async def in_async() -> None:
        async with guard.operation(KEY) as op:
            lose(op)
            if completes:
                await op.complete("late")

    def in_sync() -> None:
        with guard.operation(KEY) as op:
            lose(op)
            if completes:
                op.complete("late")

    with pytest.raises(LeaseLostError) as caught:
        asyncio.run(in_async()) if colour == "async" else in_sync()
    assert caught.value.result == ("late" if completes else None)
    assert store.get(Key("default", KEY)) is None
    assert len(hub_of(store).flights) == 0


def test_work_that_goes_on_for_ever_keeps_no_chain_of_its_operations() -> None:
    """Each call was begun inside the one before it, which has ended."""
    guard = Idempotency()
    seen: list[Any] = []

    def step(number: int) -> None:
        seen.append(weakref.ref(current_operation()))
        if number:
            context = contextvars.copy_context()
            pending.append(lambda: context.run(guard.run, f"k{number}", step, number - 1, payload=None))

    pending = [lambda: guard.run("first", step, 50, payload=None)]
    while pending:
        pending.pop()()
    gc.collect()
    assert sum(ref() is not None for ref in seen) < 5


@pytest.mark.parametrize("raises", [False, True])
def test_a_value_whose_await_was_forgotten_is_stored_as_the_block_is_left(raises: bool) -> None:
    """Behaviour 2: and None is not; awaited later, it is what it was."""
    guard = Idempotency(wait=0)
    given: list[Any] = []

    async def scenario() -> None:
        with pytest.raises(FailedError) if raises else nullcontext():
            async with guard.operation(KEY) as op:
                given.append(op.complete("sent"))
                with pytest.raises(RuntimeError, match="outcome already"):
                    op.complete("again")
                if raises:
                    raise FailedError
        async with guard.operation(KEY) as op:
            assert (op.fresh, op.result) == (False, "sent")
        assert await given[0] == "sent"
        assert guard.stats().executed == 1

    asyncio.run(scenario())
