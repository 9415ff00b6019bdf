"""LoopThread: calls of other threads on a loop of a store's own, and what gives them up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from idempo import StoreError
from idempo.stores._loop_thread import LoopThread


async def nothing() -> None:
    return


@pytest.mark.parametrize("busy", [False, True], ids=["begun", "not-begun"])
def test_an_interrupt_that_comes_before_there_is_a_future_gives_the_call_up_too(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour 30: whether the loop has begun with the coroutine or not."""
    thread = LoopThread("test", 20.0, nothing)
    begun, ended, on = threading.Event(), threading.Event(), threading.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(60)

    async def carried(work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        finally:
            ended.set()

    def interrupted(work: Coroutine[Any, Any, object], loop: asyncio.AbstractEventLoop) -> None:
        if busy:
            loop.call_soon_threadsafe(on.wait, 20)
        schedule(carried(work), loop)
        assert busy or begun.wait(20)
        raise KeyboardInterrupt

    schedule = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thread.run(hang())
    monkeypatch.undo()
    on.set()
    assert ended.wait(20)
    assert begun.is_set() is not busy
    thread.close()


def test_a_loop_that_ends_under_a_call_is_a_store_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = LoopThread("test", 20.0, nothing)
    ended = asyncio.new_event_loop()
    ended.close()
    monkeypatch.setattr(thread, "_running", lambda: ended)
    with pytest.raises(StoreError, match="closed meanwhile"):
        thread.run(nothing())


def test_a_thread_that_could_not_be_started_is_started_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 32: the call fails at once, and those after it do not wait for a loop that nobody runs."""

    async def nothing() -> int:
        return 1

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    loop = LoopThread("test", 5.0, nothing)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises((RuntimeError, StoreError)):
            loop.run(nothing())
    assert loop.run(nothing()) == 1
    loop.close()
