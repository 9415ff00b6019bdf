"""CachedStore: how it is made, and what it hands on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from idempo import Idempotency, Key, MemoryStore, PickleCodec, State
from idempo.errors import StoreError
from idempo.protocols import (
    AsyncPurgeableStore,
    AsyncScannableStore,
    AsyncSweepableStore,
    AsyncWatchableStore,
    NearStore,
    PurgeableStore,
    ScannableStore,
    SweepableStore,
    WatchableStore,
)
from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.stores.cas import CasStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock
from idempo.testing.backend import DictBackend
from tests.cached_support import KEY, Far, claim
from tests.interrupting import until
from tests.reference_store import ReferenceStore
from tests.testing.async_stores import Able, SixMethods


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def far(clock: FakeClock) -> Far:
    return Far(clock)


@pytest.fixture
def store(far: Far, clock: FakeClock) -> CachedStore:
    return CachedStore(far, clock=clock)


def test_it_has_the_abilities_that_the_far_store_has(clock: FakeClock, tmp_path: Any) -> None:
    """And what it says of itself; but it lets nobody join a transaction by it."""
    plain = (WatchableStore, ScannableStore, PurgeableStore, SweepableStore)
    of_coroutines = (AsyncWatchableStore, AsyncScannableStore, AsyncPurgeableStore, AsyncSweepableStore)
    able, bare = CachedStore(ReferenceStore(clock)), AsyncCachedStore(SixMethods(clock))
    assert not hasattr(CachedStore(CasStore(DictBackend(clock))), "purge")
    twin = AsyncCachedStore(Able(clock))
    assert [isinstance(able, ability) for ability in plain] == [True] * 4
    assert [isinstance(twin, ability) for ability in of_coroutines] == [True] * 4
    assert [isinstance(bare, ability) for ability in of_coroutines] == [False] * 4
    assert all(isinstance(store, NearStore) for store in (able, bare, twin))
    memory = CachedStore(MemoryStore())
    assert not memory.blocking  # type: ignore[attr-defined]
    assert not memory.shared  # type: ignore[attr-defined]
    assert isinstance(memory.default_codec, PickleCodec)  # type: ignore[attr-defined]
    assert not hasattr(memory, "claim_new")
    sqlite = CachedStore(SqliteStore(tmp_path / "records.db"))
    assert not hasattr(sqlite, "joining")
    assert sqlite.blocking  # type: ignore[attr-defined]
    assert repr(sqlite) == "CachedStore(<SqliteStore>)"
    assert repr(twin) == "AsyncCachedStore(<Able>)"


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (lambda: CachedStore(Able(FakeClock())), TypeError, "use AsyncCachedStore"),  # type: ignore[arg-type]
        (lambda: AsyncCachedStore(MemoryStore()), TypeError, "use CachedStore"),  # type: ignore[arg-type]
        (lambda: CachedStore("redis://localhost"), TypeError, "must be a store"),  # type: ignore[arg-type]
        (lambda: CachedStore(MemoryStore(), max_records=0), ValueError, "max_records must be at least 1"),
        (lambda: CachedStore(MemoryStore(), max_bytes=1.5), TypeError, "max_bytes"),  # type: ignore[arg-type]
        (lambda: CachedStore(MemoryStore(), ttl=0), ValueError, "ttl must be more than 0"),
        (lambda: CachedStore(MemoryStore(), ttl="1"), TypeError, "ttl must be seconds"),  # type: ignore[arg-type]
        (lambda: CachedStore(MemoryStore(), clock=1.0), TypeError, "clock must be"),  # type: ignore[arg-type]
    ],
)
def test_what_it_cannot_be_made_of(make: Callable[[], object], error: type[Exception], what: str) -> None:
    """Bad input: said when it is made, and what to do."""
    with pytest.raises(error, match=what):
        make()


def test_a_store_that_joins_a_transaction_is_not_cached(tmp_path: Any) -> None:
    """Behaviour 54: what is not committed must not be seen."""
    import sqlite3
    from contextlib import closing

    file = tmp_path / "records.db"
    with SqliteStore(file) as far, closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        joined = far.joining(connection)
        with pytest.raises(TypeError, match="joins a transaction"):
            CachedStore(joined)


def test_a_claim_that_is_none_is_handed_on(far: Far, clock: FakeClock) -> None:
    """A store's bug is told by whoever asked, in its own words."""

    class Wrong(ReferenceStore):
        def claim(self, key: Key, **options: Any) -> Any:
            return None

    with pytest.raises(StoreError):
        Idempotency(CachedStore(Wrong(clock), clock=clock)).run("k", dict)


def test_scan_and_watch_are_the_far_stores(store: CachedStore) -> None:
    """A waiter hears of a change that another process makes."""
    assert isinstance(store, WatchableStore)
    assert isinstance(store, ScannableStore)
    woken = threading.Event()
    claim(store)
    with store.watch(KEY, woken.set):
        assert store.complete(KEY, owner="ann", outcome=b"done", ttl=600.0)
        until(woken.is_set)
    assert [(key, record.state) for key, record in store.scan("default")] == [(KEY, State.COMPLETED)]
