"""Listening for changes: one connection per store in a thread of its own, or per event loop in a task.

Only that thread, or task, uses the connection. Who wants it to subscribe to something says so by publishing to a
channel that it listens to always: no client library lets one wake a reader otherwise.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from idempo._fork import call_in_child, new_lock
from idempo.stores._redis_subscriptions import (
    DOWN,
    IDLE,
    PATIENCE,
    TICK,
    Subscriptions,
    Watcher,
    refuse_deaf,
    unconfirmed,
)


def _own_channel(prefix: str) -> bytes:
    return f"{prefix}listener:{os.urandom(8).hex()}".encode()


class _State:
    """What a listener knows: who waits, and how long nobody has, and nobody shall."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.subscriptions = Subscriptions()
        self.own = _own_channel(self._prefix)
        self.down_until = 0.0
        self.idle_since = time.monotonic()
        self.closing = False

    def refuse_while_down(self) -> None:
        """Refuse who comes right after the connection was lost.

        Raises:
            StoreError: It was.
        """
        if time.monotonic() < self.down_until:
            raise unconfirmed()

    def is_over(self) -> bool:
        """Say whether to end, since nobody waits any more, or the store is closed."""
        if self.subscriptions:
            self.idle_since = time.monotonic()
            return self.closing
        return self.closing or time.monotonic() >= self.idle_since + IDLE

    def lost(self, *, failed: bool) -> list[Watcher]:
        """Note that there is no connection any more, and return who is to be woken."""
        if failed:
            self.down_until = time.monotonic() + DOWN
        return self.subscriptions.lost()


class Listener:
    """Listens for a store of plain methods, in a thread that is there while anybody waits.

    Args:
        client: The store's.
        prefix: The store's.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._lock = new_lock()
        self._state = _State(prefix)
        self._thread: threading.Thread | None = None
        _all.add(self)

    @contextmanager
    def watch(self, name: bytes, wake: Callable[[], object]) -> Iterator[None]:
        """Call ``wake`` after each change of the record of this name, while the context is open.

        Raises:
            StoreError: The server did not confirm that it will tell.
        """
        refuse_deaf(self._client)
        settled = threading.Event()
        watcher = Watcher(wake, settled.set)
        try:
            with self._lock:
                self._state.refuse_while_down()
                must_ask = self._state.subscriptions.enter(name, watcher)
                must_start = self._thread is None
                if must_start:
                    self._start()
            if must_ask and not must_start:
                self._nudge()
            if not settled.wait(PATIENCE) or not watcher.confirmed:
                raise unconfirmed()
            yield
        finally:
            with self._lock:
                self._state.subscriptions.leave(name, watcher)

    def close(self) -> None:
        """End the thread, and give its connection back."""
        with self._lock:
            thread = self._thread
            self._state.closing = thread is not None
        if thread is not None:
            self._nudge()
            thread.join(2 * TICK)

    def after_fork(self) -> None:
        """Forget the parent's waiters and thread."""
        self._thread = None
        self._state.forget()

    def _start(self) -> None:
        self._state.idle_since = time.monotonic()
        self._state.closing = False
        thread = threading.Thread(target=self._run, name="idempo-redis-listener", daemon=True)
        thread.start()
        self._thread = thread

    def _nudge(self) -> None:
        with suppress(Exception):  # the thread looks round by itself, if later
            self._client.execute_command("PUBLISH", self._state.own, b"")

    def _run(self) -> None:
        pubsub: Any = None
        failed = True
        try:
            with suppress(Exception):  # whatever it was, those who wait look for themselves
                pubsub = self._client.pubsub()
                pubsub.subscribe(self._state.own)
                self._listen(pubsub)
                failed = False
        finally:
            with self._lock:
                self._thread = None
                woken = self._state.lost(failed=failed)
            for watcher in woken:
                watcher.wake()
            with suppress(Exception):
                pubsub.close()

    def _listen(self, pubsub: Any) -> None:
        while True:
            with self._lock:
                if self._state.is_over():
                    return
                join, part = self._state.subscriptions.news()
            if join:
                pubsub.subscribe(*join)
            if part:
                pubsub.unsubscribe(*part)
            message = pubsub.get_message(timeout=TICK)
            with self._lock:
                woken = self._state.subscriptions.heard(message)
            for watcher in woken:
                watcher.wake()


class AsyncListener:
    """Listens for a store of coroutines on one event loop, in a task that is there while anybody waits.

    Args:
        client: The store's.
        prefix: The store's.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._state = _State(prefix)
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, name: bytes, wake: Callable[[], object]) -> AsyncIterator[None]:
        """See `Listener.watch`."""
        refuse_deaf(self._client)
        self._state.refuse_while_down()
        settled = asyncio.Event()
        watcher = Watcher(wake, settled.set)
        try:
            must_ask = self._state.subscriptions.enter(name, watcher)
            if self._task is None:
                self._start()
            elif must_ask:
                await self._nudge()
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await settled.wait()
            if not watcher.confirmed:
                raise unconfirmed()
            yield
        finally:
            self._state.subscriptions.leave(name, watcher)

    async def close(self) -> None:
        """End the task, and give its connection back."""
        task = self._task
        if task is not None:
            self._state.closing = True
            await self._nudge()
            await asyncio.wait([task], timeout=2 * TICK)

    def _start(self) -> None:
        self._state.idle_since = time.monotonic()
        self._state.closing = False
        loop = asyncio.get_running_loop()
        # In a context of its own: it outlives the call that it was started by. Not by the loop's task factory: an eager
        # one might run all of it here, and what has ended would then be known as the task that listens.
        name = "idempo-redis-listener"
        self._task = asyncio.Task(self._run(), loop=loop, name=name, context=contextvars.Context())

    async def _nudge(self) -> None:
        with suppress(Exception):  # the task looks round by itself, if later
            await self._client.execute_command("PUBLISH", self._state.own, b"")

    async def _run(self) -> None:
        pubsub: Any = None
        failed = True
        try:
            with suppress(Exception):  # whatever it was, those who wait look for themselves
                if hasattr(self._client, "get_primaries"):
                    await self._client.initialize()  # a cluster's pubsub takes it to know its nodes
                pubsub = self._client.pubsub()
                await pubsub.subscribe(self._state.own)
                await self._listen(pubsub)
                failed = False
        finally:
            self._task = None
            for watcher in self._state.lost(failed=failed):
                watcher.wake()
            with suppress(Exception):
                await pubsub.aclose()

    async def _listen(self, pubsub: Any) -> None:
        while not self._state.is_over():
            join, part = self._state.subscriptions.news()
            if join:
                await pubsub.subscribe(*join)
            if part:
                await pubsub.unsubscribe(*part)
            message = await pubsub.get_message(timeout=TICK)
            for watcher in self._state.subscriptions.heard(message):
                watcher.wake()


class AsyncListeners:
    """The listeners of one store of coroutines, by event loop.

    Args:
        client: The store's.
        prefix: The store's.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._by_loop: dict[asyncio.AbstractEventLoop, AsyncListener] = {}

    def of_this_loop(self) -> AsyncListener:
        """Return the running loop's listener."""
        loop = asyncio.get_running_loop()
        found = self._by_loop.get(loop)
        if found is None:
            for other in [other for other in self._by_loop if other.is_closed()]:
                del self._by_loop[other]
            found = self._by_loop[loop] = AsyncListener(self._client, self._prefix)
        return found


_all: Final[weakref.WeakSet[Listener]] = weakref.WeakSet()


def _after_fork() -> None:
    for listener in _all:
        listener.after_fork()


call_in_child(_after_fork)
