"""Stores for the tests of coroutines: one that really waits, and a blocking one; and effects that count themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from idempo import Idempotency, Key, MemoryStore
from idempo.records import Claim, Record

if TYPE_CHECKING:
    import pytest

KEY = Key("default", "k")


class SlowStore:
    """An AsyncStore whose every method lets the loop turn before its step and after it, as a network does."""

    blocking = True
    shared = False

    def __init__(self, inner: MemoryStore | None = None, turns: int = 1) -> None:
        self.inner = MemoryStore() if inner is None else inner
        self.default_codec = self.inner.default_codec
        self.turns = turns
        self.calls: list[str] = []

    async def _step(self, method: str, key: Key, **options: Any) -> Any:
        self.calls.append(method)
        await self._turn()
        answer = getattr(self.inner, method)(key, **options)
        await self._turn()
        return answer

    async def _turn(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)

    async def claim(self, key: Key, **options: Any) -> Claim:
        claim: Claim = await self._step("claim", key, **options)
        return claim

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        return bool(await self._step("complete", key, owner=owner, outcome=outcome, ttl=ttl))

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        return bool(await self._step("release", key, owner=owner, ttl=ttl))

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        return bool(await self._step("renew", key, owner=owner, lease=lease, ttl=ttl))

    async def get(self, key: Key) -> Record | None:
        record: Record | None = await self._step("get", key)
        return record

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        return bool(await self._step("delete", key, owner=owner))


class WatchedStore(SlowStore):
    """A `SlowStore` that tells of changes."""

    watching = 0

    @asynccontextmanager
    async def watch(self, key: Key, wake: Callable[[], None]) -> AsyncIterator[None]:
        await self._turn()
        with self.inner.watch(key, wake):
            self.watching += 1
            try:
                yield
            finally:
                self.watching -= 1
                await self._turn()


class BlockingStore:
    """A sync store that waits for I/O, as far as a driver can tell; it notes the threads that asked it."""

    blocking = True
    shared = False

    def __init__(self, inner: MemoryStore | None = None) -> None:
        self.inner = MemoryStore() if inner is None else inner
        self.default_codec = self.inner.default_codec
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.gates: dict[str, threading.Event] = {}
        """A method named here answers only once its gate is open."""
        self.asked: dict[str, threading.Event] = {}

    def _step(self, method: str, key: Key, **options: Any) -> Any:
        self.calls.append(method)
        self.threads.add(threading.current_thread())
        if method in self.asked:
            self.asked[method].set()
        if method in self.gates:
            assert self.gates[method].wait(20), f"nobody let {method} go on"
        return getattr(self.inner, method)(key, **options)

    def gate(self, method: str) -> threading.Event:
        """Let a method wait from now on; return what lets it go on."""
        self.asked[method] = threading.Event()
        self.gates[method] = threading.Event()
        return self.gates[method]

    def claim(self, key: Key, **options: Any) -> Claim:
        claim: Claim = self._step("claim", key, **options)
        return claim

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        return bool(self._step("complete", key, owner=owner, outcome=outcome, ttl=ttl))

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        return bool(self._step("release", key, owner=owner, ttl=ttl))

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        return bool(self._step("renew", key, owner=owner, lease=lease, ttl=ttl))

    def get(self, key: Key) -> Record | None:
        record: Record | None = self._step("get", key)
        return record

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        return bool(self._step("delete", key, owner=owner))


class Effect:
    """A coroutine function that counts its runs, and fails the test when two of them overlap."""

    def __init__(self, turns: int = 2) -> None:
        self.turns = turns
        self.runs = 0
        self.running = 0
        self.started = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        self.running += 1
        run = self.runs
        self.started.set()
        assert self.running == 1, "the effect ran twice at once"
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return run


class WatchedBlockingStore(BlockingStore):
    """A `BlockingStore` that tells of changes."""

    watching = 0

    @contextmanager
    def watch(self, key: Key, wake: Callable[[], None]) -> Iterator[None]:
        self.threads.add(threading.current_thread())
        with self.inner.watch(key, wake):
            self.watching += 1
            try:
                yield
            finally:
                self.watching -= 1
                self.threads.add(threading.current_thread())


def hold_elsewhere(store: Any, lease: float = 60.0) -> None:
    """Let another process hold the key."""
    store.inner.claim(KEY, owner="elsewhere", fingerprint=None, lease=lease, ttl=60)


def complete_elsewhere(store: Any, value: object) -> None:
    """Let it end."""
    other = MemoryStore()
    Idempotency(other).run("k", lambda: value)
    record = other.get(KEY)
    assert record is not None
    assert record.outcome is not None
    assert store.inner.complete(KEY, owner="elsewhere", outcome=record.outcome, ttl=60)


async def until(said: Callable[[], object], pause: float = 0.002) -> None:
    """Let the loop turn until something is so: what no event tells."""
    while not said():  # noqa: ASYNC110 (counters of stores and states of tasks have no event)
        await asyncio.sleep(pause)


NOTING = [SlowStore, WatchedStore, BlockingStore, WatchedBlockingStore]
"""The stores that note how they were called."""


async def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float, turns: int = 5) -> None:
    """Put the clock forward, for the rest of the test, and let the loop turn: whoever set a timer for less is woken."""
    monotonic = time.monotonic  # what the loop goes by, too
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + seconds)
    for _ in range(turns):
        await asyncio.sleep(0)
