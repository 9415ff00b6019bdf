"""CachedStore over a store that cannot tell how long a record still lives: nothing is kept near that may outlive it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymemcache.client.base import Client

from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.stores.cas import AsyncCasStore, CasStore
from idempo.stores.memcached import MemcachedStore
from idempo.stores.nats import NatsStore, SyncNatsStore
from idempo.testing import AsyncFlakyStore, FakeClock, FlakyStore
from idempo.testing.backend import AsyncDictBackend, DictBackend
from tests.cached_support import KEY, claim, near, operate

WRITTEN = 600.0  # what the record says that it lives for, however long ago it was written


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.mark.parametrize("how", ["claim", "get"])
def test_what_others_completed_is_not_kept_longer_than_it_lives(clock: FakeClock, how: str) -> None:
    """Behaviour 55: told of it, one cannot tell since when it stands; once it is gone, the key is free here too."""
    backend = DictBackend(clock)
    far = FlakyStore(CasStore(backend, clock=clock))
    operate(CasStore(backend, clock=clock), ttl=WRITTEN)
    store = CachedStore(far, ttl=60, clock=clock)
    clock.advance(WRITTEN - 1)
    for asked in (1, 2):
        told = claim(store, "bob").record if how == "claim" else store.get(KEY)
        assert told is not None
        assert told.outcome == b"done"
        assert near(store) is None
        assert far.count() == asked
    clock.advance(1)
    assert claim(store, "bob").acquired


def test_what_others_completed_is_not_kept_longer_in_coroutines(clock: FakeClock) -> None:
    """Behaviour 55: as above."""
    backend = DictBackend(clock)
    operate(CasStore(backend, clock=clock), ttl=WRITTEN)
    store = AsyncCachedStore(AsyncFlakyStore(AsyncCasStore(AsyncDictBackend(backend), clock=clock)), clock=clock)

    async def scenario() -> None:
        clock.advance(WRITTEN - 1)
        told = await store.get(KEY)
        assert told is not None
        assert near(store) is None
        clock.advance(1)
        assert (await store.claim(KEY, owner="bob", fingerprint=b"f", lease=15.0, ttl=600.0)).acquired

    asyncio.run(scenario())


def test_what_this_process_completed_is_kept_as_long_as_that_lives(clock: FakeClock) -> None:
    """Behaviour 55: for how long is known here; what the far store tells of the same record changes nothing."""
    backend = DictBackend(clock)
    far = FlakyStore(CasStore(backend, clock=clock))
    store = CachedStore(far, ttl=60, clock=clock)
    operate(store, ttl=10.0)
    asked = far.count()
    clock.advance(9.9)
    assert store.get(KEY) is not None
    assert near(store) == b"done"
    assert not claim(store, "bob").acquired
    assert far.count() == asked + 1
    clock.advance(0.1)
    assert near(store) is None
    assert claim(store, "bob").acquired


def test_a_copy_of_an_earlier_record_goes(clock: FakeClock) -> None:
    """Behaviour 55: `lookup` tells of a later one, of which one does not know how long it lives."""
    backend = DictBackend(clock)
    far = CasStore(backend, clock=clock)
    store = CachedStore(far, clock=clock)
    operate(store)
    far.delete(KEY)
    operate(CasStore(backend, clock=clock), owner="bob", outcome=b"done elsewhere")
    assert near(store) == b"done"
    found = store.get(KEY)
    assert found is not None
    assert found.outcome == b"done elsewhere"
    assert near(store) is None


def test_stores_over_compare_and_swap_say_so() -> None:
    """And so does what stands before them, for a cache before that."""
    stores: list[Any] = [
        MemcachedStore(Client(("localhost", 11211), connect_timeout=1, timeout=1)),
        NatsStore.at("nats://localhost:4222"),
        SyncNatsStore("nats://localhost:4222"),
        CachedStore(FlakyStore(CasStore(DictBackend()))),
    ]
    assert [store.exact_expiry for store in stores] == [False] * 4
