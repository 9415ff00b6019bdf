"""Joining within a process: who leads, who waits, and what happens when a leader leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from idempo import FingerprintMismatchError, Idempotency, InProgressError, Key, MemoryStore, ReentrantCallError
from idempo.hub import hub_of
from tests.async_support import pass_time

WAIT = 0.2  # seconds; the tests below are about deadlines of real calls


def held_elsewhere(store: MemoryStore, value: str) -> None:
    """Let another process hold a key, as far as this one can tell."""
    store.claim(Key("default", value), owner="elsewhere", fingerprint=None, lease=60, ttl=60)


def in_threads(number: int, call: Any) -> list[Any]:
    """Return what each of so many calls at once returned or raised; fail when one does not end."""
    barrier = threading.Barrier(number)
    answers: list[Any] = []

    def work() -> None:
        barrier.wait()
        try:
            answers.append(call())
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a call never ended"
    return answers


@pytest.mark.parametrize("number", [1, 2, 8])
def test_threads_that_joined_a_waiting_leader_all_reach_their_own_deadline(number: int) -> None:
    """Behaviour 14: when the leader's deadline comes the next takes its place, and nobody waits beyond his own."""
    store = MemoryStore()
    held_elsewhere(store, "k")
    guard = Idempotency(store, wait=WAIT)
    ran: list[int] = []
    started = time.monotonic()
    answers = in_threads(number, lambda: guard.run("k", ran.append, 1))
    assert [type(answer) for answer in answers] == [InProgressError] * number
    assert time.monotonic() - started < 20 * WAIT
    assert ran == []
    assert len(hub_of(store).flights) == 0


@pytest.mark.parametrize("number", [1, 2, 50])
def test_tasks_that_joined_a_waiting_leader_all_reach_their_own_deadline(number: int) -> None:
    """Behaviour 14, for tasks."""
    store = MemoryStore()
    held_elsewhere(store, "k")
    guard = Idempotency(store, wait=WAIT)
    ran: list[int] = []

    async def effect() -> None:
        ran.append(1)

    async def main() -> list[Any]:
        calls = [guard.run_async("k", effect) for _ in range(number)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

    answers = asyncio.run(main())
    assert [type(answer) for answer in answers] == [InProgressError] * number
    assert ran == []
    assert len(hub_of(store).flights) == 0


def test_a_leader_that_gives_up_leaves_the_key_to_those_who_wait_longer() -> None:
    """Behaviours 13 and 14: the next leads, and gets the outcome when it comes."""
    store = MemoryStore()
    held_elsewhere(store, "k")
    patient = Idempotency(store, wait=20)
    hasty = Idempotency(store, wait=WAIT)
    leading = threading.Event()
    given: list[Any] = []

    def lead() -> None:
        leading.set()
        with pytest.raises(InProgressError):
            hasty.run("k", list)

    first = threading.Thread(target=lead)
    first.start()
    leading.wait()
    others = [threading.Thread(target=lambda: given.append(patient.run("k", list)), daemon=True) for _ in range(4)]
    for other in others:
        other.start()
    first.join(20)
    assert store.release(Key("default", "k"), owner="elsewhere", ttl=60)
    for other in others:
        other.join(20)
    assert given == [[], [], [], []]
    assert patient.stats().executed == 1
    assert len(hub_of(store).flights) == 0


def test_of_many_threads_one_runs_and_all_get_its_value() -> None:
    """Behaviours 1 and 3: one run, and a copy of its value for each."""
    guard = Idempotency()
    runs: list[int] = []

    def effect() -> dict[str, int]:
        runs.append(1)
        return {"n": len(runs)}

    answers = in_threads(32, lambda: guard.run("k", effect))
    assert answers == [{"n": 1}] * 32
    assert len({id(answer) for answer in answers}) == 32
    assert len(runs) == 1


def test_those_who_joined_get_the_exception_of_the_one_that_ran() -> None:
    """Behaviour 12: a failing service is called once, not once per waiter."""
    calls = 0

    async def main() -> list[Any]:
        guard = Idempotency()
        started = asyncio.Event()
        end = asyncio.Event()

        async def failing() -> None:
            nonlocal calls
            calls += 1
            started.set()
            await end.wait()
            raise LookupError("gone")

        tasks = [asyncio.create_task(guard.run_async("k", failing)) for _ in range(20)]
        await started.wait()
        await asyncio.sleep(0)  # one turn, in which every other task has joined
        end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(main())
    assert [(type(answer), str(answer)) for answer in answers] == [(LookupError, "gone")] * 20
    assert calls == 1


def test_a_cancelled_holder_hands_over_to_exactly_one() -> None:
    """Behaviours 12 and 15: the others wait on."""
    runs = 0

    async def main() -> list[Any]:
        nonlocal runs
        guard = Idempotency()
        started = asyncio.Event()
        go = asyncio.Event()

        async def effect() -> int:
            nonlocal runs
            runs += 1
            started.set()
            await go.wait()
            return runs

        holder = asyncio.create_task(guard.run_async("k", effect))
        await started.wait()
        others = [asyncio.create_task(guard.run_async("k", effect)) for _ in range(20)]
        await asyncio.sleep(0)
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder
        go.set()
        return await asyncio.wait_for(asyncio.gather(*others), 20)

    assert asyncio.run(main()) == [2] * 20
    assert runs == 2


def test_the_same_key_inside_its_own_call_is_refused_at_once() -> None:
    """Behaviour 17."""
    guard = Idempotency(wait=20)
    started = time.monotonic()
    with pytest.raises(ReentrantCallError):
        guard.run("k", lambda: guard.run("k", list))
    assert time.monotonic() - started < 5


def test_another_payload_is_refused_while_the_first_runs_and_after() -> None:
    """Behaviour 6."""
    guard = Idempotency()

    def other(amount: int) -> type[BaseException]:
        with pytest.raises(FingerprintMismatchError) as caught:
            guard.run("k", pow, amount, 2)
        return caught.type

    def first(_: int) -> list[Any]:
        return in_threads(1, lambda: other(2))

    assert guard.run("k", first, 1) == [FingerprintMismatchError]
    assert other(3) is FingerprintMismatchError


def test_one_wait_is_told_once() -> None:
    """Behaviour 37: a duplicate that joined, and then led, tells one wait."""
    store = MemoryStore()
    held_elsewhere(store, "k")
    events: list[str] = []
    guard = Idempotency(store, wait=WAIT * 3, observers=[lambda event: events.append(event.kind.value)])
    hasty = Idempotency(store, wait=WAIT)

    def give_up() -> None:
        with pytest.raises(InProgressError):
            hasty.run("k", list)

    leading = threading.Thread(target=give_up)
    leading.start()
    while len(hub_of(store).flights) == 0:
        time.sleep(0)
    joined = threading.Thread(target=lambda: guard.run("k", list))
    joined.start()
    leading.join(20)
    store.complete(Key("default", "k"), owner="elsewhere", outcome=outcome_of([]), ttl=60)
    joined.join(20)
    assert events.count("waited") == 1
    assert events.count("replayed") == 1


def outcome_of(value: object) -> bytes:
    """Return what the memory store keeps for a value."""
    store = MemoryStore()
    Idempotency(store).run("k", lambda: value)
    record = store.get(Key("default", "k"))
    assert record is not None
    assert record.outcome is not None
    return record.outcome


@pytest.mark.realtime
def test_tasks_of_one_loop_are_woken_each_at_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 14, 15: by one timer for all; whoever came first, waits longest or was cancelled does not matter."""
    store = MemoryStore()

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        call_later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda *args: timers.append(call_later(*args)) or timers[-1])
        end, begun, refused = asyncio.Event(), asyncio.Event(), []

        async def hold() -> None:
            begun.set()
            await end.wait()

        async def wait(seconds: float) -> None:
            try:
                await Idempotency(store, wait=seconds).run_async("k", hold)
            except InProgressError:
                refused.append(seconds)

        holder = asyncio.create_task(Idempotency(store).run_async("k", hold))
        await begun.wait()
        waits = [0.3, 0.1, 60.0, 0.2, 0.05]
        tasks = [asyncio.create_task(wait(seconds)) for seconds in waits]
        await asyncio.sleep(0)
        pending = [timer for timer in timers if not timer.cancelled()]
        assert len(pending) == 1
        tasks[-1].cancel()
        await asyncio.gather(tasks[0], tasks[1], tasks[3])
        end.set()
        await asyncio.gather(holder, tasks[2])
        assert all(timer.cancelled() or timer.when() <= loop.time() for timer in timers)
        return refused

    assert asyncio.run(scenario()) == [0.1, 0.2, 0.3]


def test_a_task_that_waits_in_its_own_process_sleeps_until_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviours 11, 18: its loop has nothing to do in between, however long the other runs."""
    turns: list[object] = []
    run = asyncio.Handle._run

    def noted(self: asyncio.Handle) -> None:
        turns.append(self)
        run(self)

    async def scenario() -> list[str]:
        guard, begun, end = Idempotency(wait=60), asyncio.Event(), asyncio.Event()

        async def hold() -> str:
            begun.set()
            await end.wait()
            return "held"

        calls = [asyncio.create_task(guard.run_async("k", hold)) for _ in range(3)]
        await begun.wait()
        await asyncio.sleep(0)  # one turn, in which the others have joined
        turns.clear()
        await pass_time(monkeypatch, 2, turns=10)
        assert len(turns) == 10  # of this task alone
        end.set()
        return await asyncio.gather(*calls)

    monkeypatch.setattr(asyncio.Handle, "_run", noted)
    assert asyncio.run(scenario()) == ["held"] * 3
