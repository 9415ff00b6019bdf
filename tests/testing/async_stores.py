"""The plainest store, as coroutines: bare, and with every ability."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from idempo.records import Claim, Key, Record
from tests.reference_store import ReferenceStore


class SixMethods:
    """A store without any ability, as coroutines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.inner = ReferenceStore(clock)

    async def claim(self, key: Key, **options: Any) -> Claim:
        return self.inner.claim(key, **options)

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        return self.inner.complete(key, owner=owner, outcome=outcome, ttl=ttl)

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        return self.inner.release(key, owner=owner, ttl=ttl)

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        return self.inner.renew(key, owner=owner, lease=lease, ttl=ttl)

    async def get(self, key: Key) -> Record | None:
        return self.inner.get(key)

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        return self.inner.delete(key, owner=owner)


class Able(SixMethods):
    """With every ability."""

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        return self.inner.near(namespace, value)

    @asynccontextmanager
    async def watch(self, key: Key, wake: Callable[[], None]) -> AsyncIterator[None]:
        with self.inner.watch(key, wake):
            yield

    async def scan(self, namespace: str) -> AsyncIterator[tuple[Key, Record]]:
        for item in self.inner.scan(namespace):
            yield item

    async def purge(self, namespace: str) -> int:
        return self.inner.purge(namespace)

    async def sweep(self, limit: int = 1000) -> int:
        return self.inner.sweep(limit)
