"""Codecs, seals and stores that break their contract: after the effect its value is kept, and nothing runs twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from idempo import (
    CodecError,
    Event,
    Idempotency,
    Key,
    LeaseLostError,
    MemoryStore,
    PickleCodec,
    RecordError,
    Resolved,
    ResultLostError,
    ResultNotStoredError,
    State,
    StoreError,
    StoreFullError,
)
from idempo.hub import hub_of
from idempo.outcomes import Outcomes
from idempo.testing import AsyncFlakyStore, FakeClock, FlakyStore
from tests.async_support import SlowStore

KEY = Key("default", "k")
COLOURS = [
    "sync",
    "direct",
    "pooled",
    "async",
]  # coroutines: on a store that never blocks, one that does, one of theirs


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Calls:
    """Makes calls of one colour on a flaky store."""

    def __init__(self, colour: str, fail: Any = (), *, error: Any = None, inner: Any = None, **options: Any) -> None:
        self.inner = MemoryStore() if inner is None else inner
        self.is_async = colour != "sync"
        store: Any
        if colour == "async":
            store = AsyncFlakyStore(SlowStore(self.inner), fail, error=error)
        else:
            store = FlakyStore(self.inner, fail, error=error)
            store.blocking = colour == "pooled"
        self.store = store
        self.runs = 0
        self.events: list[Event] = []
        self.guard = Idempotency(store, observers=[self.events.append], **{"wait": 0, "lease": 60} | options)

    def __call__(self, value: Any = "value", *args: Any) -> Any:
        """Run an effect that returns the value, or raises it."""

        def effect(*_: Any) -> Any:
            self.runs += 1
            if isinstance(value, BaseException):
                raise value
            return value

        async def coroutine(*_: Any) -> Any:
            return effect()

        if self.is_async:
            return asyncio.run(self.guard.run_async("k", coroutine, *args))
        return self.guard.run("k", effect, *args)

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]


# -- codecs and seals ------------------------------------------------------------------------------------------------


class Answering(PickleCodec):
    """A codec that encodes everything as what it was told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def encode(self, value: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", ["text", None, 7, bytearray(b"x")])
def test_a_codec_that_answers_no_bytes_loses_the_outcome_and_no_more(colour: str, answer: Any) -> None:
    """Behaviour 31: its caller has the value, a duplicate gets ResultLostError, and nothing runs again."""
    calls = Calls(colour, codec=Answering(answer))
    assert calls("paid") == "paid"
    with pytest.raises(ResultLostError, match="not bytes"):
        calls("paid twice")
    assert (calls.runs, calls.kinds) == (1, ["result_lost", "replayed"])


@pytest.mark.parametrize("answer", ["text", None])
def test_a_declared_error_that_is_encoded_as_no_bytes_is_lost(colour: str, answer: Any) -> None:
    """Behaviours 29, 31: the original is raised, and nothing runs again."""
    calls = Calls(colour, codec=Answering(answer), replay_errors=ValueError)
    with pytest.raises(ValueError, match="declined"):
        calls(ValueError("declined"))
    with pytest.raises(ResultLostError, match="not bytes"):
        calls(ValueError("declined"))
    assert calls.runs == 1


class Failing:
    """A seal that fails the first so many times."""

    def __init__(self, times: int, answer: Any = None) -> None:
        self.times = times
        self.answer = answer

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        self.times -= 1
        if self.times >= 0:
            if self.answer is None:
                raise ConnectionError("payload 4711")
            return self.answer  # type: ignore[no-any-return]
        return data

    def open(self, data: bytes, *, context: bytes) -> bytes:
        return data


@pytest.mark.parametrize("answer", [None, "text"])
def test_a_value_that_cannot_be_sealed_is_lost(colour: str, answer: Any) -> None:
    """Behaviour 31: as one that cannot be encoded."""
    calls = Calls(colour, seal=Failing(1, answer))
    assert calls("paid") == "paid"
    with pytest.raises(ResultLostError) as caught:
        calls("paid twice")
    assert "4711" not in str(caught.value)
    assert calls.runs == 1


@pytest.mark.parametrize("answer", [None, "text"])
def test_where_nothing_can_be_sealed_the_value_comes_with_the_error_and_the_lease_stands(
    colour: str, answer: Any
) -> None:
    """Behaviours 31, 33: nothing is released; while the lease stands nothing runs, and it is renewed no more."""
    clock = FakeClock()
    seal = Failing(1000, answer)
    calls = Calls(colour, inner=MemoryStore(clock=clock), seal=seal)
    with pytest.raises(ResultNotStoredError) as caught:
        calls("paid")
    assert (caught.value.result, caught.value.key) == ("paid", KEY)
    assert isinstance(caught.value.__cause__, CodecError)
    assert seal.times == 998  # the value, and that it is lost
    assert calls.kinds == ["result_lost"]
    assert [calls.store.count(method) for method in ("complete", "release", "renew")] == [0, 0, 0]
    assert len(hub_of(calls.store).flights) == 0
    record = calls.inner.get(KEY)
    assert record is not None
    assert (record.state, record.lease_left) == (State.RUNNING, 60)
    with pytest.raises(Exception, match="in progress"):
        calls("paid twice")
    assert calls.runs == 1


def test_a_declared_error_of_which_nothing_can_be_sealed_is_raised(colour: str) -> None:
    """Behaviours 29, 31: the original, not what the seal raised; the claim is left to its lease."""
    calls = Calls(colour, seal=Failing(1000), replay_errors=ValueError)
    with pytest.raises(ValueError, match="declined"):
        calls(ValueError("declined"))
    assert calls.kinds == ["result_lost"]
    assert [calls.store.count(method) for method in ("complete", "release", "renew")] == [0, 0, 0]


def test_what_a_probe_found_and_nothing_can_seal_stays_in_doubt(colour: str) -> None:
    """Behaviours 26, 31: the effect has happened, and is not run again."""
    calls = Calls(colour, seal=Failing(2), in_doubt=lambda key: Resolved("seen"))
    with pytest.raises(OSError, match="maybe"):
        calls(OSError("maybe"))
    with pytest.raises(ResultNotStoredError) as caught:
        calls("again")
    assert caught.value.result == "seen"
    assert calls("again") == "seen"
    assert calls.runs == 1


# -- stores ----------------------------------------------------------------------------------------------------------


def gone(call: Any) -> BaseException:
    """Return what a client's library raises, and a store has let through."""
    return ConnectionError("payload 4711")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["claim", "complete"])
def test_whatever_a_store_raises_once_is_tried_again(colour: str, method: str, when: Any) -> None:
    """Behaviour 34: as a StoreError is; the function runs once."""
    calls = Calls(colour, [(method, 1, when)], error=gone)
    assert calls("paid") == "paid"
    assert calls("paid twice") == "paid"
    assert (calls.runs, calls.kinds, calls.store.count("release")) == (1, ["executed", "replayed"], 0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("policy", "method"), [("rerun", "release"), ("raise", "renew")])
def test_an_end_that_fails_in_whatever_way_is_tried_once_more(colour: str, policy: Any, method: str, when: Any) -> None:
    """Behaviour 34: the key is free, or in doubt, at once."""
    calls = Calls(colour, [(method, 1, when)], error=gone, in_doubt=policy)
    with pytest.raises(OSError, match="no"):
        calls(OSError("no"))
    assert calls.kinds == ["released" if method == "release" else "in_doubt"]
    assert calls.store.count(method) == 2


def test_a_claim_that_fails_in_whatever_way_is_a_store_error(colour: str) -> None:
    """Behaviours 32, 34: told, with its key and its cause; nothing ran, and the key is free."""
    calls = Calls(colour, [("claim", 1, "before"), ("claim", 2, "after")], error=gone)
    with pytest.raises(StoreError) as caught:
        calls()
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert caught.value.key == KEY
    assert "ConnectionError" in str(caught.value)
    assert "4711" not in str(caught.value)
    assert (calls.runs, calls.kinds, calls.store.count("claim")) == (0, ["store_failed"], 2)
    assert isinstance(calls.events[0].error, StoreError)
    assert calls("paid") == "paid"


def test_a_store_that_is_full_is_not_asked_again(colour: str) -> None:
    """Behaviour 32: it has answered, and would answer the same."""
    calls = Calls(colour, [("claim", None, "before")], error=lambda call: StoreFullError("full"))
    with pytest.raises(StoreFullError):
        calls()
    assert (calls.runs, calls.store.count("claim"), calls.kinds) == (0, 1, ["store_failed"])


def test_a_bug_at_the_end_does_not_hide_what_the_function_raised(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 30: the original is what is raised; the other is told."""

    def encode(*args: Any) -> Any:
        raise RuntimeError("a bug")

    calls = Calls(colour, replay_errors=ValueError)
    monkeypatch.setattr(Outcomes, "encode_error", encode)
    with pytest.raises(ValueError, match="declined"):
        calls(ValueError("declined"))
    assert calls.kinds == ["store_failed"]


def test_a_claim_that_fails_in_whatever_way_is_done_without_on_request(colour: str) -> None:
    """Behaviour 32: store_errors="run"."""
    calls = Calls(colour, [("claim", None, "before")], error=gone, store_errors="run")
    assert calls("paid") == "paid"
    assert calls.kinds[0] == "store_failed"


@pytest.mark.realtime
@pytest.mark.parametrize("store_errors", ["raise", "run"])
def test_an_outcome_that_fails_in_whatever_way_is_with_the_error(colour: str, store_errors: Any) -> None:
    """Behaviour 33: nothing is released, and local duplicates get the value."""
    calls = Calls(colour, [("complete", None, "before")], error=gone, lease=0.15, store_errors=store_errors)
    if store_errors == "run":
        assert calls("paid") == "paid"
    else:
        with pytest.raises(ResultNotStoredError) as caught:
            calls("paid")
        assert caught.value.result == "paid"
    assert (calls.kinds, calls.store.count("release")) == (["store_failed"], 0)
    assert isinstance(calls.events[0].error, StoreError)
    assert calls("paid twice") == "paid"
    assert calls.runs == 1


def test_a_record_that_cannot_be_read_at_its_end_leaves_the_caller_its_value(colour: str) -> None:
    """Behaviours 33, 35: it is not written over, and to try again at once would change nothing."""
    calls = Calls(colour, [("complete", None, "before")], error=lambda call: RecordError("damaged"))
    with pytest.raises(ResultNotStoredError) as caught:
        calls("paid")
    assert caught.value.result == "paid"
    assert (calls.kinds, calls.store.count("complete"), calls.store.count("release")) == (["store_failed"], 1, 0)


@pytest.mark.parametrize("store_errors", ["raise", "run"])
def test_what_a_probe_found_stays_in_doubt_whatever_the_store_raises(colour: str, store_errors: Any) -> None:
    """Behaviours 26, 32: the effect has happened; it is not run again."""
    probe = lambda key: Resolved("seen")  # noqa: E731 (shorter)
    calls = Calls(colour, [("complete", 1, "before")], error=gone, in_doubt=probe, store_errors=store_errors)
    with pytest.raises(OSError, match="maybe"):
        calls(OSError("maybe"))
    if store_errors == "run":
        assert calls("again") == "seen"
    else:
        with pytest.raises(StoreError) as caught:
            calls("again")
        assert caught.value.key == KEY
    assert calls("again") == "seen"
    assert calls.runs == 1


@pytest.mark.parametrize("answer", [None, True, "claimed"])
def test_a_claim_that_is_none_lets_nothing_run(colour: str, answer: Any) -> None:
    """Behaviour 32: a store that answers it is not one that fails, for which the policy could say: run."""
    calls = Calls(colour)
    calls.inner.claim = lambda key, **options: answer  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="not a Claim") as caught:
        calls()
    assert caught.value.key == KEY
    if answer is None:
        assert str(caught.value) == "key default:k: claim answered None, not a Claim"
    assert "claimed" not in str(caught.value)
    assert (calls.runs, calls.kinds) == (0, ["store_failed"])
    assert len(hub_of(calls.store).flights) == 0


def test_a_claim_that_is_none_is_done_without_on_request(colour: str) -> None:
    """Behaviour 32: store_errors="run"."""
    calls = Calls(colour, store_errors="run")
    calls.inner.claim = lambda key, **options: None  # type: ignore[method-assign]
    assert calls("paid") == "paid"
    assert calls.kinds[0] == "store_failed"


def test_a_complete_that_answers_nothing_is_a_lost_lease(colour: str) -> None:
    """Behaviour 22: nobody said that the outcome stands; the caller has its value."""
    calls = Calls(colour)
    calls.inner.complete = lambda key, **options: None  # type: ignore[method-assign]
    with pytest.raises(LeaseLostError) as caught:
        calls("paid")
    assert caught.value.result == "paid"


class ShortCuts(MemoryStore):
    """A store whose short cuts fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.asked: list[str] = []

    def claim(self, key: Key, **options: Any) -> Any:
        return super().claim(key, **options)

    def near(self, namespace: str, value: str) -> Any:
        self.asked.append("near")
        raise self.error

    def claim_new(self, *args: Any) -> Any:
        self.asked.append("claim_new")
        raise self.error


@pytest.mark.parametrize("error", [ConnectionError(), StoreError(), RecordError()])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_short_cut_that_fails_is_not_taken(is_async: bool, error: Exception) -> None:
    """Behaviours 32, 34: the claim behind it says what there is."""
    store = ShortCuts(error)
    guard = Idempotency(store)

    async def effect() -> str:
        return "paid"

    for _ in range(2):
        assert (asyncio.run(guard.run_async("k", effect)) if is_async else guard.run("k", lambda: "paid")) == "paid"
    assert store.asked == ["near", "claim_new"] * 2
    assert (guard.stats().executed, guard.stats().replayed, guard.stats().store_failed) == (1, 1, 0)
