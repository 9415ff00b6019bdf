"""Plain functions, coroutine functions, and what is neither: each is run by what fits it, and nothing runs twice."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest

from idempo import Idempotency, InDoubtError, MemoryStore, State, idempotent
from idempo.testing import unguarded

RAN: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def guard() -> Idempotency:
    return Idempotency(MemoryStore(), namespace="orders")


def place(order_id: str) -> str:
    """Place an order."""
    RAN.append(order_id)
    return f"placed {order_id}"


async def place_later(order_id: str) -> str:
    """Place an order, later."""
    await asyncio.sleep(0)
    return place(order_id)


class Placing:
    """What can be awaited, and is no coroutine."""

    def __init__(self, order_id: str) -> None:
        self.order_id = order_id

    def __await__(self) -> Generator[Any, None, str]:
        """Place the order."""
        yield from asyncio.sleep(0).__await__()
        return place(self.order_id)


def test_a_plain_function_that_run_async_is_given_runs_once(guard: Idempotency) -> None:
    """Its value is the outcome: to refuse it once it has run would be to run it again."""
    fn: Any = place
    assert [asyncio.run(guard.run_async("a", fn, "a")) for _ in "123"] == ["placed a"] * 3
    assert RAN == ["a"]
    record = guard.lookup("a")
    assert record is not None
    assert record.state is State.COMPLETED
    with unguarded():
        assert asyncio.run(guard.run_async("a", fn, "b")) == "placed b"


@pytest.mark.parametrize(
    "make",
    [
        lambda order_id: place_later(order_id),  # noqa: PLW0108 (not itself a coroutine function)
        lambda order_id: asyncio.ensure_future(place_later(order_id)),
        Placing,
        functools.partial(place_later),
    ],
    ids=["coroutine", "task", "awaitable", "partial"],
)
def test_run_async_awaits_whatever_can_be_awaited(guard: Idempotency, make: Callable[[str], Awaitable[str]]) -> None:
    """Who returns an awaitable need not be a coroutine function."""

    async def call() -> str:
        return await guard.run_async("a", make, "a")

    assert [asyncio.run(call()) for _ in "12"] == ["placed a"] * 2
    assert RAN == ["a"]
    with unguarded():
        assert asyncio.run(call()) == "placed a"


def generate(order_id: str) -> Iterator[str]:
    yield order_id


async def generate_later(order_id: str) -> AsyncIterator[str]:
    yield order_id


class Generates:
    """An object whose call is a generator."""

    def __call__(self, order_id: str) -> Iterator[str]:
        """Generate."""
        yield order_id


@pytest.mark.parametrize("fn", [generate, generate_later, functools.partial(generate), Generates()])
def test_generators_are_refused_by_calls_too(guard: Idempotency, fn: Any) -> None:
    """As at decoration, and before the key is claimed."""
    for call in (guard.run, lambda *args: asyncio.run(guard.run_async(*args))):
        with pytest.raises(TypeError, match="is a generator: its end cannot be an outcome; guard what consumes it"):
            call("a", fn, "a")
    assert guard.lookup("a") is None


@pytest.mark.parametrize("fn", [place_later, functools.partial(place_later)])
def test_a_coroutine_function_is_refused_by_run(guard: Idempotency, fn: Any) -> None:
    """Nobody would await it."""
    with pytest.raises(TypeError, match=r"use `await run_async\(\.\.\.\)`"):
        guard.run("a", fn, "a")
    assert guard.lookup("a") is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="functions are marked from Python 3.12 on")
def test_a_function_that_is_marked_as_a_coroutine_function_is_one(guard: Idempotency) -> None:
    """It is refused by run; decorated, it is awaited where it can be, and in no case runs twice."""
    mark: Any = vars(inspect)["markcoroutinefunction"]
    marked = mark(lambda order_id: place(order_id))  # noqa: PLW0108 (the mark stays on it)
    with pytest.raises(TypeError, match="run_async"):
        guard.run("a", marked, "a")
    decorated: Any = idempotent(key="order_id")(marked)
    assert [asyncio.run(decorated("a")) for _ in "12"] == ["placed a"] * 2
    assert RAN == ["a"]


def test_a_coroutine_that_run_is_given_is_closed_and_refused_and_the_key_is_free(guard: Idempotency) -> None:
    """Of the coroutine nothing has run."""
    with pytest.raises(TypeError, match=r"returned a coroutine, .* run_async\(\)"):
        guard.run("a", lambda: place_later("a"))
    record = guard.lookup("a")
    assert record is not None
    assert record.state is State.RELEASED
    assert guard.run("a", lambda: place("a")) == "placed a"
    with unguarded(), pytest.raises(TypeError, match="run_async"):
        guard.run("a", lambda: place_later("a"))
    assert RAN == ["a"]


def test_a_coroutine_that_a_decorated_function_returns_is_closed_and_refused() -> None:
    """Its value would be lost, and only the first caller would run it."""

    @idempotent(key="order_id")
    def plain(order_id: str) -> Any:
        return place_later(order_id)

    for _ in "12":
        with pytest.raises(TypeError, match=r"plain\(\) returned a coroutine, .* `async def`"):
            plain("a")
    with unguarded(), pytest.raises(TypeError, match="async def"):
        plain("a")
    assert RAN == []


def test_what_ran_before_a_coroutine_was_returned_is_in_doubt_by_policy() -> None:
    """Who made the coroutine may have had an effect: at most once stays at most once."""
    guard = Idempotency(in_doubt="raise")

    def make() -> Any:
        place("a")
        return place_later("a")

    with pytest.raises(TypeError, match="run_async"):
        guard.run("a", make)
    with pytest.raises(InDoubtError):
        guard.run("a", make)
    assert RAN == ["a"]
