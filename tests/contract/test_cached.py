"""CachedStore and its twin through the contract of every store, over several far stores."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from idempo.protocols import Store
from idempo.records import Claim, Key, Record
from idempo.stores import async_store_from_url, store_from_url
from idempo.stores.cached import AsyncCachedStore, CachedStore
from idempo.stores.cas import AsyncCasStore
from idempo.stores.sqlalchemy import SqlAlchemyStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing import AsyncStoreContract, FakeClock, StoreContract, StoreMachine, check_store
from idempo.testing.backend import AsyncDictBackend, DictBackend
from tests.reference_store import ReferenceStore
from tests.servers import every_server
from tests.testing.async_stores import Able


class TestCachedStore(StoreContract):
    """Over one that has every ability. Damage behind its back it need not see: a copy is what the record was."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> CachedStore:
        return CachedStore(ReferenceStore(clock), clock=clock)


class TestTightCachedStore(StoreContract):
    """With room for one copy, and that not for long."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> CachedStore:
        return CachedStore(ReferenceStore(clock), max_records=1, max_bytes=2000, ttl=0.001, clock=clock)


class TestCachedSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock, tmp_path: Path) -> Iterator[CachedStore]:
        with SqliteStore(tmp_path / "idempo.db", synchronous="NORMAL", clock=clock) as far:
            yield CachedStore(far, clock=clock)

    def reopen(self, store: CachedStore) -> CachedStore:
        far = store._store
        assert isinstance(far, SqliteStore)
        assert self._clock is not None
        far.close()
        return CachedStore(SqliteStore(far.path, synchronous="NORMAL", clock=self._clock), clock=self._clock)


class TestAsyncCachedStore(AsyncStoreContract):
    @pytest.fixture
    def store(self, clock: FakeClock) -> AsyncCachedStore:
        return AsyncCachedStore(Able(clock), clock=clock)


class TestAsyncCachedCasStore(AsyncStoreContract):
    """Over one without abilities."""

    @pytest.fixture
    def store(self, clock: FakeClock) -> AsyncCachedStore:
        far = AsyncCasStore(AsyncDictBackend(DictBackend(clock)), clock=clock, wall_clock=clock)
        return AsyncCachedStore(far, clock=clock)


class Remembering:
    """A cached store whose `get` is answered as a duplicate is: by the copy, where there is one."""

    def __init__(self, far: Store, clock: Callable[[], float]) -> None:
        self.cached = CachedStore(far, clock=clock)
        self.answers = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cached, name)

    def claim(self, key: Key, **options: Any) -> Claim:
        return self.cached.claim(key, **options)

    def get(self, key: Key) -> Record | None:
        refused = self.cached._copies.refused(key)
        if refused is None:
            return self.cached.get(key)
        self.answers += 1
        near = self.cached.near(key.namespace, key.value)
        known = refused.record
        assert near in (None, (known.fingerprint, known.outcome, known.attempt, known.token))
        return refused.record


@pytest.mark.parametrize("seed", range(3))
def test_its_answers_can_be_explained_by_single_steps(seed: int) -> None:
    """Behaviours 21-23, 55: from copies or not, as long as all that changes a record goes through it."""
    clock = FakeClock()
    store = Remembering(ReferenceStore(clock), clock)
    check_store(store, clock=clock, seed=seed)
    assert store.answers > 5


def test_its_twins_answers_can_be_explained_by_single_steps() -> None:
    """Behaviours 21-23, 55: the same of `AsyncCachedStore`."""
    clock = FakeClock()
    check_store(AsyncCachedStore(Able(clock), clock=clock), clock=clock)


class CachedStoreMachine(StoreMachine):
    """Every order of calls, against the model of the protocol."""

    def make_store(self) -> Store:
        return Remembering(ReferenceStore(self.clock), self.clock)


class CachedSqliteStoreMachine(StoreMachine):
    """Over a file."""

    def make_store(self) -> Store:
        self.folder = tempfile.TemporaryDirectory()
        far = SqliteStore(f"{self.folder.name}/idempo.db", synchronous="NORMAL", clock=self.clock)
        return CachedStore(far, clock=self.clock, max_records=1)

    def close_store(self) -> None:
        self.made._store.close()
        self.folder.cleanup()


TestCachedStoreMachine = CachedStoreMachine.TestCase
TestCachedSqliteStoreMachine = CachedSqliteStoreMachine.TestCase
TestCachedStoreMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestCachedSqliteStoreMachine.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)


class Deaf(Remembering):
    """Hears nothing of what is deleted."""

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        return self.cached._store.delete(key, owner=owner)


def test_the_machine_would_see_a_copy_that_outlives_its_record() -> None:
    """Behaviour 55: the checks above can fail."""

    class Machine(StoreMachine):
        def make_store(self) -> Store:
            return Deaf(ReferenceStore(self.clock), self.clock)

    machine = Machine()
    machine.claim(("one", "order-1"), "owner-a", None, 10.0, 3600.0, True)
    machine.complete(("one", "order-1"), "owner-a", b"outcome", 3600.0)
    machine.every_record_is_as_it_must_be()
    machine.delete(("one", "order-1"), "owner-a")
    with pytest.raises(AssertionError, match="there must be no record"):
        machine.every_record_is_as_it_must_be()


class TestCachedRedisStore(StoreContract):
    own_clock = True
    unit = 0.08

    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[CachedStore]:
        with store_from_url(redis_url, prefix=f"test-{secrets.token_hex(6)}:") as far:
            yield CachedStore(far)


@every_server  # that its twin's answers go through a copy is seen above
class TestAsyncCachedRedisStore(AsyncStoreContract):
    own_clock = True
    unit = 0.08

    @pytest.fixture
    def store(self, redis_url: str, run: Callable[[Any], Any]) -> Iterator[AsyncCachedStore]:
        far: Any = async_store_from_url(redis_url, prefix=f"test-{secrets.token_hex(6)}:")
        yield AsyncCachedStore(far)
        run(far.aclose())


class TestCachedPostgresqlStore(StoreContract):
    own_clock = True
    unit = 0.1

    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[CachedStore]:
        with store_from_url(postgres_url, table=f"records_{secrets.token_hex(6)}") as far:
            assert isinstance(far, SqlAlchemyStore)
            far.create_table()
            yield CachedStore(far)


@pytest.mark.realtime
@pytest.mark.parametrize("url", ["redis_url", "postgres_url"])
def test_on_a_server_its_answers_can_be_explained_by_single_steps(url: str, request: pytest.FixtureRequest) -> None:
    """Behaviours 21-23, 55: durations are the server's, and copies go by this machine's clock."""
    with store_from_url(request.getfixturevalue(url)) as far:
        if isinstance(far, SqlAlchemyStore):
            far.create_table()
        check_store(Remembering(far, time.monotonic), rounds=20)
