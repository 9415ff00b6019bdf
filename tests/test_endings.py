"""How a call ends when something fails: the function, the store, the answer on its way."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from idempo import (
    RERUN,
    UNKNOWN,
    FingerprintMismatchError,
    Idempotency,
    InDoubtError,
    Key,
    LeaseLostError,
    MemoryStore,
    Resolved,
    ResultLostError,
    ResultNotStoredError,
    State,
    StoreError,
    current_operation,
)
from idempo.hub import hub_of
from idempo.testing import FakeClock, FlakyStore


class Runner:
    """Runs one effect under one policy, by the sync or by the async driver."""

    def __init__(self, store: Any, is_async: bool, **policy: Any) -> None:
        self.events: list[str] = []
        self.guard = Idempotency(store, observers=[lambda event: self.events.append(event.kind.value)], **policy)
        self.is_async = is_async
        self.runs = 0

    def __call__(self, effect: Any, *args: Any) -> Any:
        """Run the effect, counted."""

        def plain(*_: Any) -> Any:
            self.runs += 1
            return effect()

        async def coroutine(*_: Any) -> Any:
            return plain()

        if self.is_async:
            return asyncio.run(self.guard.run_async("k", coroutine, *args))
        return self.guard.run("k", plain, *args)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    """Whether the async driver is asked."""
    return bool(request.param)


class DeclinedError(Exception):
    """An outcome of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class HardDeclinedError(DeclinedError):
    """A subclass of it."""


def raising(error: BaseException) -> Any:
    """Return an effect that raises."""

    def effect() -> None:
        raise error

    return effect


KEY = Key("default", "k")


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, (), b"", {"a": [1, (2,)]}])
def test_every_value_replays_equal_and_of_the_same_type(is_async: bool, value: object) -> None:
    """Behaviour 2: falsy ones too."""
    run = Runner(MemoryStore(), is_async)
    first, second = run(lambda: value), run(lambda: value)
    assert (first, type(first)) == (second, type(second)) == (value, type(value))
    assert run.runs == 1
    assert run.events == ["executed", "replayed"]


def test_an_exception_frees_the_key(is_async: bool) -> None:
    """Behaviour 29."""
    run = Runner(MemoryStore(), is_async)
    with pytest.raises(ValueError, match="no"):
        run(raising(ValueError("no")))
    assert run(lambda: current_operation().attempt) == 2
    assert run.events == ["released", "executed"]


def test_a_declared_exception_is_the_outcome(is_async: bool) -> None:
    """Behaviour 29: a subclass too, equal, with its attributes, and another object."""
    run = Runner(MemoryStore(), is_async, replay_errors=DeclinedError)
    error = HardDeclinedError(51)
    with pytest.raises(HardDeclinedError):
        run(raising(error))
    with pytest.raises(HardDeclinedError) as caught:
        run(raising(error))
    assert caught.value is not error
    assert caught.value.code == 51
    assert run.runs == 1
    assert run.events == ["failed", "replayed"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_frees_the_key(is_async: bool, interrupt: type[BaseException]) -> None:
    """Behaviour 30: the original is raised, and nothing is stuck."""
    run = Runner(MemoryStore(), is_async, wait=0.1)
    with pytest.raises(interrupt):
        run(raising(interrupt()))
    assert run(lambda: 1) == 1


def test_at_most_once_does_not_run_again_after_an_exception(is_async: bool) -> None:
    """Behaviour 26: an undeclared exception leaves doubt at once; resolve ends it."""
    run = Runner(MemoryStore(), is_async, in_doubt="raise")
    with pytest.raises(ValueError, match="maybe"):
        run(raising(ValueError("maybe")))
    with pytest.raises(InDoubtError):
        run(lambda: 1)
    assert run.runs == 1
    assert run.guard.resolve("k", "it happened")
    assert run(lambda: 1) == "it happened"
    assert not run.guard.resolve("k", "something else")
    assert run.runs == 1


def test_at_most_once_runs_again_when_somebody_forgot_the_key(is_async: bool) -> None:
    """Behaviour 26: forget is the other way out of doubt."""
    run = Runner(MemoryStore(), is_async, in_doubt="raise")
    with pytest.raises(ValueError, match="maybe"):
        run(raising(ValueError("maybe")))
    assert run.guard.forget("k")
    assert run(lambda: 1) == 1


@pytest.mark.parametrize(
    ("answer", "runs", "expected"), [(Resolved("seen"), 1, "seen"), (RERUN, 2, "again"), (UNKNOWN, 1, InDoubtError)]
)
def test_a_probe_decides_about_a_record_in_doubt(is_async: bool, answer: Any, runs: int, expected: object) -> None:
    """Behaviour 26: the probe looks before anything is claimed."""
    store = MemoryStore()
    asked: list[Key] = []

    def probe(key: Key) -> Any:
        asked.append(key)
        return answer

    run = Runner(store, is_async, in_doubt=probe)
    with pytest.raises(ValueError, match="maybe"):
        run(raising(ValueError("maybe")))
    before = store.get(KEY)
    if expected is InDoubtError:
        with pytest.raises(InDoubtError):
            run(lambda: "again")
        after = store.get(KEY)
        assert before is not None
        assert after is not None
        assert (after.owner, after.attempt, after.state) == (before.owner, before.attempt, State.RUNNING)
    else:
        assert run(lambda: "again") == expected
    assert asked == [KEY]
    assert run.runs == runs


def test_a_result_that_cannot_be_encoded_is_lost_and_not_run_again(is_async: bool) -> None:
    """Behaviour 31: its caller has it."""
    run = Runner(MemoryStore(), is_async)
    unkept = lambda: None  # noqa: E731 (what no codec keeps)
    assert run(lambda: unkept) is unkept
    with pytest.raises(ResultLostError):
        run(lambda: unkept)
    assert run.runs == 1
    assert run.events[0] == "result_lost"


def test_a_result_over_the_limit_is_lost_and_not_run_again(is_async: bool) -> None:
    """Behaviour 31."""
    run = Runner(MemoryStore(), is_async, max_result=10)
    assert run(lambda: "x" * 100) == "x" * 100
    with pytest.raises(ResultLostError):
        run(lambda: "x" * 100)
    assert run.runs == 1


def test_a_store_that_fails_at_claim_lets_nothing_run(is_async: bool) -> None:
    """Behaviour 32: tried twice, then raised with its key; afterwards the key is free."""
    store = FlakyStore(MemoryStore(), [("claim", 1, "before"), ("claim", 2, "before")])
    run = Runner(store, is_async)
    with pytest.raises(StoreError) as caught:
        run(lambda: 1)
    assert caught.value.key == KEY
    assert run.runs == 0
    assert store.count("claim") == 2
    assert run(lambda: 1) == 1


def test_a_store_that_fails_at_claim_is_done_without_on_request(is_async: bool) -> None:
    """Behaviour 32: store_errors="run"."""
    store = FlakyStore(MemoryStore(), [("claim", None, "before")])
    run = Runner(store, is_async, store_errors="run")
    assert run(lambda: 7) == 7
    assert "store_failed" in run.events


@pytest.mark.parametrize("method", ["claim", "complete"])
def test_a_lost_answer_is_as_if_it_had_arrived(is_async: bool, method: str) -> None:
    """Behaviour 34: the request was applied, and is repeated by its own owner."""
    store = FlakyStore(MemoryStore(), [(method, 1, "after")])
    run = Runner(store, is_async)
    assert run(lambda: current_operation().attempt) == 1
    assert run(lambda: 2) == 1
    assert run.runs == 1


def test_a_claim_whose_every_answer_is_lost_wedges_nothing(is_async: bool) -> None:
    """Behaviour 34."""
    store = FlakyStore(MemoryStore(), [("claim", 1, "after"), ("claim", 2, "after")])
    run = Runner(store, is_async, wait=0.1)
    with pytest.raises(StoreError):
        run(lambda: 1)
    assert run(lambda: 1) == 1
    assert run.runs == 1


def test_an_outcome_that_the_store_does_not_take_is_with_the_error_and_with_local_duplicates(is_async: bool) -> None:
    """Behaviour 33: nothing runs twice, and no claim is released."""
    store = FlakyStore(MemoryStore(), [("complete", None, "before")])
    run = Runner(store, is_async, lease=0.2)
    with pytest.raises(ResultNotStoredError) as caught:
        run(lambda: "paid")
    assert caught.value.result == "paid"
    assert store.count("release") == 0
    assert run(lambda: "paid twice") == "paid"
    assert run.runs == 1


def test_a_late_owner_gets_its_value_with_the_error(is_async: bool) -> None:
    """Behaviour 22: after a take-over it changes nothing."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    run = Runner(store, is_async)

    def slow() -> str:
        clock.advance(60)
        assert store.claim(KEY, owner="another", fingerprint=None, lease=60, ttl=60).took_over
        return "late"

    with pytest.raises(LeaseLostError) as caught:
        run(slow)
    assert caught.value.result == "late"
    record = store.get(KEY)
    assert record is not None
    assert (record.owner, record.state) == ("another", State.RUNNING)
    assert run.events == ["lease_lost"]


def test_a_late_owner_that_nobody_took_over_completes(is_async: bool) -> None:
    """Behaviour 23."""
    clock = FakeClock()
    run = Runner(MemoryStore(clock=clock), is_async)

    def slow() -> str:
        clock.advance(60)
        return "late"

    assert run(slow) == "late"
    assert run(slow) == "late"
    assert run.runs == 1


def test_a_lapsed_lease_is_taken_over_with_the_next_attempt(is_async: bool) -> None:
    """Behaviours 21 and 27."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    first = store.claim(KEY, owner="dead", fingerprint=None, lease=5, ttl=60)
    clock.advance(6)
    run = Runner(store, is_async)
    operation = run(lambda: (current_operation().attempt, current_operation().token))
    assert operation[0] == 2
    assert operation[1] > first.record.token
    assert run.events == ["taken_over", "executed"]


def test_another_payload_of_a_completed_key_is_refused(is_async: bool) -> None:
    """Behaviour 6."""
    run = Runner(MemoryStore(), is_async)
    run(lambda: 1, "a")
    with pytest.raises(FingerprintMismatchError):
        run(lambda: 1, "b")
    assert run.runs == 1


def test_an_observer_that_raises_breaks_nothing(is_async: bool) -> None:
    """Behaviour 37."""
    guard = Idempotency(observers=[raising(RuntimeError("no")), lambda event: 1 / 0])

    async def one() -> int:
        return 1

    result = asyncio.run(guard.run_async("k", one)) if is_async else guard.run("k", lambda: 1)
    assert result == 1


@pytest.mark.parametrize(("policy", "method"), [("rerun", "release"), ("raise", "renew")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_end_that_was_not_answered_is_tried_once_more(is_async: bool, policy: Any, method: str, when: Any) -> None:
    """Behaviour 34: as if the answer had arrived; the key is free, or in doubt, at once."""
    store = FlakyStore(MemoryStore(), [(method, 1, when)])
    run = Runner(store, is_async, in_doubt=policy, wait=0)
    with pytest.raises(ValueError, match="no"):
        run(raising(ValueError("no")))
    assert run.events == ["released" if policy == "rerun" else "in_doubt"]
    if policy == "rerun":
        assert run(lambda: 1) == 1
    else:
        with pytest.raises(InDoubtError):
            run(lambda: 1)


@pytest.mark.parametrize(("policy", "method"), [("rerun", "release"), ("raise", "renew")])
def test_an_end_that_the_store_never_takes_is_told(is_async: bool, policy: Any, method: str) -> None:
    """Behaviour 30: the original is raised all the same; the lease runs out by itself."""
    run = Runner(FlakyStore(MemoryStore(), [(method, None, "before")]), is_async, in_doubt=policy)
    with pytest.raises(ValueError, match="no"):
        run(raising(ValueError("no")))
    assert run.events == ["store_failed"]


@pytest.mark.parametrize("policy", ["rerun", "raise"])
def test_a_failing_function_whose_claim_is_gone_says_so(is_async: bool, policy: Any) -> None:
    """Behaviour 22: what another has taken over is neither released nor put in doubt."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    run = Runner(store, is_async, in_doubt=policy)

    def overtaken() -> None:
        clock.advance(16)
        assert store.claim(KEY, owner="other", fingerprint=None, lease=15, ttl=100).took_over
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(overtaken)
    assert run.events == ["lease_lost"]
    record = store.get(KEY)
    assert record is not None
    assert (record.owner, record.state) == ("other", State.RUNNING)
    assert record.lease_left == 15


@pytest.mark.parametrize("faults", [[("complete", 1, "before")], [("claim", 4, "after"), ("claim", 5, "after")]])
def test_what_a_probe_found_to_have_happened_stays_in_doubt_when_it_cannot_be_kept(is_async: bool, faults: Any) -> None:
    """Behaviour 26: the store fails just then; the key is not freed, and nothing runs twice."""
    store = FlakyStore(MemoryStore(), [("claim", 1, "before"), *faults])
    run = Runner(store, is_async, in_doubt=lambda key: Resolved("seen"), wait=0)
    with pytest.raises(ValueError, match="maybe"):
        run(raising(ValueError("maybe")))
    with pytest.raises(StoreError):
        run(lambda: "again")
    record = store.get(KEY)
    assert record is not None
    assert record.state is State.RUNNING
    assert run(lambda: "again") == "seen"
    assert run.runs == 1


def test_what_a_probe_found_is_given_also_where_the_store_is_done_without(is_async: bool) -> None:
    """Behaviours 26, 32: store_errors="run" runs what nobody knows of, not what is known to have happened."""
    store = FlakyStore(MemoryStore(), lambda call: "before" if call.method == "claim" and call.number > 2 else None)
    run = Runner(store, is_async, in_doubt=lambda key: Resolved("seen"), store_errors="run", wait=0)
    with pytest.raises(ValueError, match="maybe"):
        run(raising(ValueError("maybe")))
    assert run(lambda: "again") == "seen"
    assert run.runs == 1


def test_a_bug_of_the_store_does_not_hide_what_the_function_raised(is_async: bool) -> None:
    """Behaviour 30: the original is what is raised; the other is told."""
    store = FlakyStore(MemoryStore(), [("release", None, "before")], error=lambda call: RuntimeError("a bug"))
    run = Runner(store, is_async)
    with pytest.raises(ValueError, match="no"):
        run(raising(ValueError("no")))
    assert run.events == ["store_failed"]


def test_those_who_joined_a_call_that_runs_unguarded_get_its_value(is_async: bool) -> None:
    """Behaviour 32: the store is back when it ends, and knows nothing of it; nobody runs it again for that."""
    store = FlakyStore(MemoryStore(), [("claim", 1, "before"), ("claim", 2, "before")])
    guard = Idempotency(store, store_errors="run", wait=20)
    runs: list[int] = []

    async def in_tasks() -> list[int]:
        async def effect() -> int:
            runs.append(1)
            await asyncio.sleep(0)  # one turn, in which the others have joined
            return len(runs)

        return list(await asyncio.gather(*(guard.run_async("k", effect) for _ in range(4))))

    def in_threads() -> list[int]:
        begun = threading.Barrier(4)

        def effect() -> int:
            runs.append(1)
            hub = hub_of(store)
            while sum(len(group.members) for group in waiting(hub)) < 3:
                time.sleep(0.001)
            return len(runs)

        def call() -> int:
            begun.wait()
            return guard.run("k", effect)

        with ThreadPoolExecutor(4) as pool:
            return [future.result() for future in [pool.submit(call) for _ in range(4)]]

    def waiting(hub: Any) -> list[Any]:
        room = hub.flights._table["default", "k"].room
        return [] if room is None else list(room.groups.values())

    assert (asyncio.run(in_tasks()) if is_async else in_threads()) == [1] * 4
    assert runs == [1]


class LateStore:
    """A store whose answers to claims arrive late, as by a paused server; something may happen on the way."""

    blocking = True
    shared = False

    def __init__(self, delays: list[float]) -> None:
        self.inner = MemoryStore()
        self.default_codec = self.inner.default_codec
        self.delays = delays
        self.meanwhile: Any = lambda: None
        self.complete, self.release, self.renew = self.inner.complete, self.inner.release, self.inner.renew
        self.get, self.delete = self.inner.get, self.inner.delete

    def claim(self, key: Key, **options: Any) -> Any:
        claim = self.inner.claim(key, **options)
        time.sleep(self.delays.pop(0) if self.delays else 0.0)  # the delay is what is tested
        self.meanwhile()
        return claim


@pytest.mark.realtime
def test_a_claim_whose_answer_comes_after_its_lease_begins_nothing(is_async: bool) -> None:
    """Behaviour 21: another may have taken over by then; the key is asked for once more, by the same owner."""
    store = LateStore([0.15])
    run = Runner(store, is_async, lease=0.1)
    assert run(lambda: current_operation().attempt) == 1
    assert run.runs == 1
    assert run.events == ["executed"]


@pytest.mark.realtime
def test_who_took_over_before_a_late_answer_came_runs_alone(is_async: bool) -> None:
    """Behaviours 21, 22: the late one is given the other's outcome, and its body never begins."""
    store = LateStore([0.15])

    def take_over() -> None:
        store.meanwhile = lambda: None
        other = Idempotency(store.inner, lease=60)
        assert other.run("k", lambda: "other's") == "other's"

    store.meanwhile = take_over
    run = Runner(store, is_async, lease=0.1)
    assert run(lambda: pytest.fail("began")) == "other's"
    assert run.runs == 0


@pytest.mark.realtime
def test_a_store_that_always_answers_after_the_lease_has_failed(is_async: bool) -> None:
    """Behaviour 32: nothing ran, and the key is free."""
    store = LateStore([0.15, 0.15])
    run = Runner(store, is_async, lease=0.1)
    with pytest.raises(StoreError, match="longer than the lease"):
        run(lambda: pytest.fail("began"))
    assert run.events == ["store_failed"]
    record = store.inner.get(KEY)
    assert record is not None
    assert record.state is State.RELEASED
