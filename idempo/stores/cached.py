"""Completed records of a slower store, kept near: duplicates are answered without a request."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from idempo._checks import check_clock, check_limit, check_store
from idempo._time import seconds
from idempo.protocols import AsyncStore, Store
from idempo.records import Claim, Key, Record
from idempo.stores._near_copies import Copies

__all__ = ["AsyncCachedStore", "CachedStore"]

MAX_BYTES: Final = 64 * 1024 * 1024

# What the far store says of itself, and its abilities that leave completed records as they are. Not `claim_new`, which
# would pass the copies by; not `joining`: what is not yet committed must not be known here.
_HANDED_ON: Final = ("blocking", "shared", "default_codec", "largest_outcome", "exact_expiry", "watch", "scan", "sweep")


class _Cached:
    """What the twins share: how they are made, and what they hand on."""

    def __init__(
        self, store: Any, max_records: int, max_bytes: int, ttl: float | timedelta, clock: Callable[[], float]
    ) -> None:
        check_store(store)
        if hasattr(store, "savepoint"):
            raise TypeError("a store that joins a transaction cannot be cached: what it writes may be rolled back")
        check_limit(max_records, "max_records")
        check_limit(max_bytes, "max_bytes")
        within = seconds(ttl, "ttl")
        if not within:
            raise ValueError("ttl must be more than 0 seconds, or no copy would ever be used")
        check_clock(clock)
        exact: bool = getattr(store, "exact_expiry", True)
        self._copies = Copies(max_records, max_bytes, within, clock, exact=exact)
        # By assignment, not by methods: an ability is told by whether the method is there.
        for name in _HANDED_ON:
            if hasattr(store, name):
                setattr(self, name, getattr(store, name))

    def __len__(self) -> int:
        """How many records are at hand, those past their time included."""
        return len(self._copies)


class CachedStore(_Cached):
    """A `Store` that keeps *completed* records of a slower one in this process, and answers duplicates from them.

    A copy is used for at most ``ttl`` seconds, and never longer than the far record lives, counted from before the
    request was sent. Nothing but a completed record is ever answered from here: who runs is decided by the far store
    alone. ``lookup`` always asks it, and so brings a copy up to date.

    ``forget`` and ``purge`` through this object take effect here at once. What another process forgets, or this one by
    another object, is still replayed here until ``ttl`` is over.

    It has the abilities of the far store: watching, scanning, purging, sweeping. The far store's way to join a
    transaction is its own. Threads and event loops share one; a forked child has a copy, of which the same holds as of
    another process.

    Args:
        store: The far store, of plain methods.
        max_records: The most copies at once; the least recently used go first. Evicting one costs a request.
        max_bytes: The most bytes of them, outcomes and an estimate of the rest. A larger outcome is not kept near.
        ttl: Seconds, or a timedelta.
        clock: Gives seconds, and never runs back.

    Raises:
        TypeError: The store is an `AsyncStore` (`AsyncCachedStore` is for those), joins a transaction, or is none; or
            an option is of the wrong type.
        ValueError: An option is out of its range.

    >>> from idempo import Idempotency
    >>> from idempo.stores.cached import CachedStore
    >>> from idempo.stores.sqlite import SqliteStore
    >>> store = CachedStore(SqliteStore("idempo.db"), ttl=60)
    >>> guard = Idempotency(store, namespace="billing")  # doctest: +SKIP
    """

    def __init__(
        self,
        store: Store,
        *,
        max_records: int = 10_000,
        max_bytes: int = MAX_BYTES,
        ttl: float | timedelta = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store, max_records, max_bytes, ttl, clock)
        if inspect.iscoroutinefunction(store.claim):
            raise TypeError(f"{type(store).__name__} is a store of coroutines: use AsyncCachedStore")
        self._store = store
        purge = getattr(store, "purge", None)
        if purge is not None:
            vars(self)["purge"] = lambda namespace: self._purge(purge, namespace)

    if TYPE_CHECKING:  # there only where the far store has them

        def watch(self, key: Key, wake: Callable[[], None]) -> AbstractContextManager[None]:
            """See `WatchableStore.watch`."""
            ...

        def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
            """See `ScannableStore.scan`."""
            ...

        def purge(self, namespace: str) -> int:
            """See `PurgeableStore.purge`."""
            ...

        def sweep(self, limit: int = 1000) -> int:
            """See `SweepableStore.sweep`."""
            ...

    def __repr__(self) -> str:
        return f"CachedStore(<{type(self._store).__name__}>)"  # a store's own may tell more

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        """See `NearStore.near`."""
        return self._copies.near(namespace, value)

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
        """See `Store.claim`. Makes no request where a copy says that the key is completed."""
        refused = self._copies.refused(key)
        if refused is not None:
            return refused
        with self._copies.take(key) as asked:
            return asked.claimed(
                self._store.claim(key, owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)
            )

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        with self._copies.complete(key, owner) as asked:
            return asked.completed(self._store.complete(key, owner=owner, outcome=outcome, ttl=ttl), outcome, ttl)

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        with self._copies.write(key):
            return self._store.release(key, owner=owner, ttl=ttl)

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        with self._copies.write(key):
            return self._store.renew(key, owner=owner, lease=lease, ttl=ttl)

    def get(self, key: Key) -> Record | None:
        """See `Store.get`. Always asks the far store."""
        with self._copies.ask(key) as asked:
            return asked.found(self._store.get(key))

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        with self._copies.write(key):
            return self._store.delete(key, owner=owner)

    def _purge(self, purge: Callable[[str], int], namespace: str) -> int:
        self._copies.drop_all(namespace)
        try:
            return purge(namespace)
        finally:
            self._copies.drop_all(namespace)


class AsyncCachedStore(_Cached):
    """`CachedStore` for an `AsyncStore`.

    Raises:
        TypeError: The store is one of plain methods (`CachedStore` is for those), or is none; or an option is of the
            wrong type.
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        store: AsyncStore,
        *,
        max_records: int = 10_000,
        max_bytes: int = MAX_BYTES,
        ttl: float | timedelta = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store, max_records, max_bytes, ttl, clock)
        if not inspect.iscoroutinefunction(store.claim):
            raise TypeError(f"{type(store).__name__} is a store of plain methods: use CachedStore")
        self._store = store
        purge = getattr(store, "purge", None)
        if purge is not None:
            vars(self)["purge"] = lambda namespace: self._purge(purge, namespace)

    if TYPE_CHECKING:  # there only where the far store has them

        def watch(self, key: Key, wake: Callable[[], None]) -> AbstractAsyncContextManager[None]:
            """See `WatchableStore.watch`."""
            ...

        def scan(self, namespace: str) -> AsyncIterator[tuple[Key, Record]]:
            """See `ScannableStore.scan`."""
            ...

        async def purge(self, namespace: str) -> int:
            """See `PurgeableStore.purge`."""
            ...

        async def sweep(self, limit: int = 1000) -> int:
            """See `SweepableStore.sweep`."""
            ...

    def __repr__(self) -> str:
        return f"AsyncCachedStore(<{type(self._store).__name__}>)"

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        """See `NearStore.near`."""
        return self._copies.near(namespace, value)

    async def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `CachedStore.claim`."""
        refused = self._copies.refused(key)
        if refused is not None:
            return refused
        with self._copies.take(key) as asked:
            return asked.claimed(
                await self._store.claim(
                    key, owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over
                )
            )

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        with self._copies.complete(key, owner) as asked:
            stored = await self._store.complete(key, owner=owner, outcome=outcome, ttl=ttl)
            return asked.completed(stored, outcome, ttl)

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        with self._copies.write(key):
            return await self._store.release(key, owner=owner, ttl=ttl)

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        with self._copies.write(key):
            return await self._store.renew(key, owner=owner, lease=lease, ttl=ttl)

    async def get(self, key: Key) -> Record | None:
        """See `Store.get`. Always asks the far store."""
        with self._copies.ask(key) as asked:
            return asked.found(await self._store.get(key))

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        with self._copies.write(key):
            return await self._store.delete(key, owner=owner)

    async def _purge(self, purge: Callable[[str], Any], namespace: str) -> int:
        self._copies.drop_all(namespace)
        try:
            removed: int = await purge(namespace)
            return removed
        finally:
            self._copies.drop_all(namespace)
