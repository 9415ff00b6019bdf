"""The contract suites, on the plainest store, sync and async, with a clock that is turned and with real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from idempo.errors import RecordError
from idempo.records import Claim, Key, Record
from idempo.testing import AsyncStoreContract, FakeClock, StoreContract
from tests.reference_store import ReferenceStore


class Damageable(ReferenceStore):
    """Some records cannot be read any more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.damaged: set[Key] = set()

    def find(self, key: Key) -> Any:
        if key in self.damaged:
            raise RecordError("damaged", key=key)
        return super().find(key)


class TestSync(StoreContract):
    """Every case, none skipped but the one about another machine's clock."""

    own_clock = True

    @pytest.fixture
    def store(self, clock: FakeClock) -> Damageable:
        return Damageable(clock)

    def reopen(self, store: Any) -> ReferenceStore:
        again = ReferenceStore(store.clock)
        again.rows, again.last_token = store.rows, store.last_token
        return again

    def damage(self, store: Any, key: Key, how: str) -> None:
        store.damaged.add(key)


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

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int] | None:
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


class TestAsync(AsyncStoreContract):
    """The same cases through an event loop."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> Able:
        return Able(clock)

    def reopen(self, store: Any) -> SixMethods:
        again = SixMethods(store.inner.clock)
        again.inner = store.inner
        return again


class TestAsyncWithoutAbilities(AsyncStoreContract):
    """A fixture may run coroutines of its own on the store's loop."""

    @pytest.fixture
    def store(self, clock: FakeClock, run: Callable[..., Any]) -> Iterator[SixMethods]:
        store = SixMethods(clock)
        yield store
        assert run(store.get(Key("contract", "nothing"))) is None


class TestRealTime(StoreContract):
    """Without a clock to turn, the suite sleeps."""

    unit = 0.05

    @pytest.fixture
    def store(self) -> ReferenceStore:
        return ReferenceStore()
