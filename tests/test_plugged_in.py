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
    MemoryStore,
    PickleCodec,
    Resolved,
    ResultLostError,
    ResultNotStoredError,
    State,
)
from idempo.hub import hub_of
from idempo.testing import AsyncFlakyStore, FakeClock, FlakyStore
from tests.async_support import SlowStore

KEY = Key("default", "k")
COLOURS = ["sync", "direct", "async"]  # the last two: coroutines, on a store that never blocks and on one that waits


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


def gone(call: Any) -> BaseException:
    """What a client's library raises."""
    return ConnectionError("payload 4711")


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
