"""Lets the one suite of this package, which is written in plain calls, drive a store of coroutines too."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

from idempo.protocols import (
    AsyncPurgeableStore,
    AsyncScannableStore,
    AsyncStore,
    AsyncSweepableStore,
    AsyncWatchableStore,
    InstantStore,
    NearStore,
    Store,
)
from idempo.records import Claim, Key, Record

_T = TypeVar("_T")

PATIENCE = 30.0
"""Seconds after which anything that a test waits for counts as hung."""


def is_async(store: Store | AsyncStore) -> TypeGuard[AsyncStore]:
    """Tell whether a store's methods are coroutine functions."""
    return inspect.iscoroutinefunction(store.claim)


class LoopThread:
    """An event loop in a thread of its own, that runs coroutines for any other thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="idempo-testing-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop and return its result.

        Raises:
            TimeoutError: It did not end within 30 seconds.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def close(self) -> None:
        """End the loop and its thread. More than once does no harm."""
        if self._loop.is_closed():
            return
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlockingStore:
    """An `AsyncStore` as a `Store`: each call runs on the loop, while the calling thread waits.

    It has the abilities that the store has, and no others. Calls from several threads run at once on the one loop.

    Args:
        store: The store of coroutines.
        loop: Where they run; it must be the loop that the store's client belongs to.
    """

    def __init__(self, store: AsyncStore, loop: LoopThread) -> None:
        self._store = store
        self._loop = loop
        # By assignment, not by methods: an ability is told by whether the method is there.
        if isinstance(store, NearStore):
            self.near = store.near
        if isinstance(store, InstantStore):
            self.claim_new = store.claim_new
        if isinstance(store, AsyncWatchableStore):
            self.watch = self._watch(store)
        if isinstance(store, AsyncScannableStore):
            self.scan = self._scan(store)
        if isinstance(store, AsyncPurgeableStore):
            purge = store.purge
            self.purge = lambda namespace: loop.run(purge(namespace))
        if isinstance(store, AsyncSweepableStore):
            sweep = store.sweep
            self.sweep = lambda limit=1000: loop.run(sweep(limit))

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`."""
        return self._loop.run(
            self._store.claim(key, owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)
        )

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._loop.run(self._store.complete(key, owner=owner, outcome=outcome, ttl=ttl))

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._loop.run(self._store.release(key, owner=owner, ttl=ttl))

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._loop.run(self._store.renew(key, owner=owner, lease=lease, ttl=ttl))

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._loop.run(self._store.get(key))

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._loop.run(self._store.delete(key, owner=owner))

    def _watch(self, store: AsyncWatchableStore) -> Callable[[Key, Callable[[], None]], AbstractContextManager[None]]:
        async def enter(key: Key, wake: Callable[[], None]) -> Any:
            context = store.watch(key, wake)
            await context.__aenter__()
            return context

        async def leave(context: Any) -> None:
            await context.__aexit__(None, None, None)

        @contextmanager
        def watch(key: Key, wake: Callable[[], None]) -> Iterator[None]:
            context = self._loop.run(enter(key, wake))
            try:
                yield
            finally:
                self._loop.run(leave(context))

        return watch

    def _scan(self, store: AsyncScannableStore) -> Callable[[str], Iterator[tuple[Key, Record]]]:
        async def collect(namespace: str) -> list[tuple[Key, Record]]:
            return [item async for item in store.scan(namespace)]

        return lambda namespace: iter(self._loop.run(collect(namespace)))
