"""An event loop in a thread of a store's own: plain calls wait there for coroutines. A forked child makes another."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from idempo._fork import forks, new_lock
from idempo.errors import StoreError

_Answer = TypeVar("_Answer")

_PATIENCE: Final = 5.0  # seconds that ending may take

_of_parents: Final[list[asyncio.AbstractEventLoop]] = []
"""Loops that a forked child found: whose they are closes them, and to let go of them would close what they share."""


class LoopThread:
    """Runs coroutines for other threads, on a loop that is made when it is first needed, and ends with its owner.

    Args:
        name: The thread's.
        timeout: How long a call waits for its coroutine, in seconds.
        last: Makes the coroutine that runs when the loop ends.
    """

    def __init__(self, name: str, timeout: float, last: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._name = name
        self._timeout = timeout
        self._last = last
        self._lock = new_lock()
        self._generation = forks.generation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._end: Callable[[], object] = _nothing

    def run(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Run a coroutine, and return what it returns.

        Raises:
            StoreError: It did not end in time, or all is closed.
        """
        try:
            loop = self._running()
        except BaseException:
            work.close()
            raise
        call = _Call(work)
        carried = call.carried()
        try:
            future = asyncio.run_coroutine_threadsafe(carried, loop)
        except RuntimeError as error:  # of a loop that has ended since
            carried.close()
            work.close()
            raise StoreError("the store was closed meanwhile") from error
        except BaseException:
            call.give_up(loop)
            raise
        try:
            return future.result(self._timeout)
        except concurrent.futures.TimeoutError as error:
            if future.done():
                raise  # the coroutine's own
            raise StoreError(f"no answer within {self._timeout:g} seconds") from error
        except concurrent.futures.CancelledError as error:
            raise StoreError("the store was closed meanwhile") from error
        finally:
            call.give_up(loop)

    def close(self) -> None:
        """End the loop and its thread. More than once does no harm."""
        with self._lock:
            self._closed = True
            end, self._end = self._end, _nothing
            if self._generation == forks.generation:
                end()
            self._loop = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            if self._loop is not None and self._generation != forks.generation:
                _of_parents.append(self._loop)
                self._loop = None
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_live, args=(loop,), name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # there can be no more threads
                    loop.close()
                    raise
                # Only now: a loop that nobody runs answers nothing, for ever.
                self._generation, self._loop = forks.generation, loop
                # Without a reference to this object: the thread must not keep alive whose loop it runs.
                self._end = weakref.finalize(self, _finish, loop, thread, self._last, forks.generation)
            return self._loop


class _Call(Generic[_Answer]):
    """A coroutine on its way to the loop. An interrupt may come before there is a future that could be cancelled."""

    def __init__(self, work: Coroutine[Any, Any, _Answer]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False
        self._over = False

    async def carried(self) -> _Answer:
        self._task = asyncio.current_task()
        try:
            if self._given_up:  # said before there was a task: one of the two sees the other
                self._work.close()
                raise asyncio.CancelledError
            return await self._work
        finally:
            self._over = True

    def give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what is not over yet, from another thread."""
        self._given_up = True
        if self._task is not None and not self._over:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._task.cancel)


def _nothing() -> None:
    return None


def _live(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _finish(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    last: Callable[[], Coroutine[Any, Any, object]],
    generation: int,
) -> None:
    if generation != forks.generation or loop.is_closed():
        return

    async def end() -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(last(), _PATIENCE)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await loop.shutdown_asyncgens()
        loop.call_soon(loop.stop)

    asyncio.run_coroutine_threadsafe(end(), loop)
    if thread is not threading.current_thread():  # pragma: no branch  # the garbage collector comes anywhere
        thread.join(2 * _PATIENCE)
