"""Probes: what one answers that is no answer, and what it may not do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from idempo import (
    RERUN,
    UNKNOWN,
    Idempotency,
    InDoubtError,
    Key,
    MemoryStore,
    ReentrantCallError,
    Resolved,
    State,
    idempotent,
)
from idempo.hub import hub_of

KEY = Key("default", "k")


class Doubt:
    """A key that is in doubt, asked for in one colour."""

    def __init__(self, is_async: bool, probe: Any, **policy: Any) -> None:
        self.store = MemoryStore()
        self.store.claim(KEY, owner="dead", fingerprint=None, lease=60, ttl=60)
        self.store.renew(KEY, owner="dead", lease=0.0, ttl=60)
        self.is_async = is_async
        self.guard = Idempotency(self.store, in_doubt=probe, **policy)

    def __call__(self) -> Any:
        async def effect() -> str:
            return "ran"

        if self.is_async:
            return asyncio.run(self.guard.run_async("k", effect))
        return self.guard.run("k", lambda: "ran")

    def is_untouched(self) -> bool:
        record = self.store.get(KEY)
        assert record is not None
        return (record.owner, record.attempt, record.state, len(hub_of(self.store).flights)) == (
            "dead",
            1,
            State.RUNNING,
            0,
        )


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Secret:
    def __repr__(self) -> str:
        return "payload 4711"


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (True, "True"),
        (None, "None"),
        (Resolved, "the class Resolved"),
        ("rerun", "a str"),
        (Secret(), "a Secret"),
    ],
)
def test_what_is_no_answer_is_named(is_async: bool, answer: Any, named: str) -> None:
    """Behaviour 26: nobody knows; nothing is claimed, and whoever wrote the probe reads what is wrong."""
    call = Doubt(is_async, lambda key: answer)
    with pytest.raises(InDoubtError) as caught:
        call()
    assert f"the probe answered {named}, " in str(caught.value)
    assert "4711" not in str(caught.value)
    assert caught.value.key == KEY
    assert call.is_untouched()
    assert call.guard.stats().in_doubt == 1


def test_unknown_is_an_answer(is_async: bool) -> None:
    """Behaviour 26: and the error says what to do."""
    with pytest.raises(InDoubtError, match=r"resolve\(\) or forget\(\)"):
        Doubt(is_async, lambda key: UNKNOWN)()


def test_a_probe_that_raises_is_told(is_async: bool) -> None:
    """Behaviours 26, 36: as every refusal for doubt."""
    call = Doubt(is_async, lambda key: 1 / 0)
    with pytest.raises(InDoubtError) as caught:
        call()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert call.guard.stats().in_doubt == 1


class Awaitable:
    """An awaitable that is no coroutine."""

    closed = False

    def __await__(self) -> Generator[None, None, Any]:
        yield
        return RERUN

    def close(self) -> None:
        self.closed = True
        raise RuntimeError("cannot be closed")


async def looks(key: Key) -> Any:
    return RERUN


class Looks:
    async def __call__(self, key: Key) -> Any:
        return RERUN


class Bare:
    def __await__(self) -> Generator[None, None, Any]:
        yield


@pytest.mark.parametrize("make", [lambda: looks(KEY), Awaitable, Bare], ids=["coroutine", "awaitable", "bare"])
def test_an_awaitable_is_no_answer_to_a_plain_call(make: Callable[[], Any]) -> None:
    """Behaviour 26: it is closed (no warning of one that was never awaited), and the error says so."""
    call = Doubt(False, lambda key: make())
    with pytest.raises(InDoubtError, match="awaitable"):
        call()
    assert call.is_untouched()


def test_an_awaitable_of_an_awaitable_is_no_answer() -> None:
    """Behaviour 26: what is awaited must give the answer itself."""

    async def probe(key: Key) -> Any:
        return looks(key)

    call = Doubt(True, probe)
    with pytest.raises(InDoubtError, match="awaitable"):
        call()
    assert call.is_untouched()


@pytest.mark.parametrize("probe", [looks, Looks()], ids=["function", "object"])
def test_a_coroutine_function_as_probe_is_for_coroutines(probe: Any) -> None:
    """Behaviour 26: a plain call is refused before anything is claimed, at decoration where there is one."""
    call = Doubt(False, probe)
    with pytest.raises(TypeError, match="probe"):
        call()
    with pytest.raises(TypeError, match="probe"), call.guard.operation("k"):
        pytest.fail("entered")
    with pytest.raises(TypeError, match="probe"):
        idempotent(key="k", in_doubt=probe)(lambda k: k)
    assert call.is_untouched()
    assert Doubt(True, probe)() == "ran"


def test_a_probe_that_calls_what_it_probes_for_is_refused_at_once(is_async: bool) -> None:
    """Behaviours 17, 26: it would wait for itself; and it does not ask itself again, without end."""
    guard: Any = None
    asked: list[Key] = []

    async def effect() -> str:
        return "ran"

    async def probe_async(key: Key) -> Any:
        asked.append(key)
        return await guard.run_async("k", effect)

    def probe(key: Key) -> Any:
        asked.append(key)
        return guard.run("k", lambda: "ran")

    call = Doubt(is_async, probe_async if is_async else probe, wait=60)
    guard = call.guard
    started = time.monotonic()
    with pytest.raises(InDoubtError) as caught:
        call()
    assert isinstance(caught.value.__cause__, ReentrantCallError)
    assert time.monotonic() - started < 20
    assert asked == [KEY]
    assert call.is_untouched()
