"""NatsStore and SyncNatsStore through the contract of every store, on a real NATS server."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import nats
import pytest
from hypothesis import settings

from idempo.protocols import Store
from idempo.records import Key
from idempo.stores.nats import NatsStore, SyncNatsStore
from idempo.testing import AsyncStoreContract, StoreContract, StoreMachine, check_store
from idempo.testing._time_cases import TimeCases
from idempo.testing.bridge import LoopThread

BUCKET = "contract"

# What waits for the real clock waits all at once: 11 seconds, not 80.
WAITING = [
    name
    for name, case in inspect.getmembers(TimeCases, inspect.isfunction)
    if name.startswith("test_") and "self.advance(" in inspect.getsource(case)
]


def _prefix() -> str:
    return f"test.{secrets.token_hex(6)}."


def _damaged(value: bytes, how: str) -> bytes:
    return {
        "truncated": value[:-3],
        "flipped": value[:-1] + bytes([value[-1] ^ 1]),
        "newer": value.replace(b"idempo\x01", b"idempo\x02", 1),
        "foreign": b'{"somebody": "else"}',
    }[how]


def _at_once(case: Any, store: Store) -> None:
    assert len(WAITING) > 8
    with ThreadPoolExecutor(len(WAITING)) as pool:
        cases = {name: pool.submit(getattr(case(), name), store) for name in WAITING}
        failed = {name: done.exception() for name, done in cases.items()}
    assert {name: error for name, error in failed.items() if error is not None} == {}


class NatsContract(AsyncStoreContract):
    unit = 1.5  # message TTLs are whole seconds
    own_clock = True
    largest_outcome = 1_000_000

    @pytest.fixture
    def store(self, nats_url: str, run: Callable[..., Any]) -> Iterator[NatsStore]:
        async def connect() -> Any:
            client = await nats.connect(nats_url)
            return client, await NatsStore.create_bucket(client.jetstream(), BUCKET)

        client, self.bucket = run(connect())
        self.run = run
        yield NatsStore(self.bucket, prefix=_prefix())
        run(client.close())

    def reopen(self, store: NatsStore) -> NatsStore:
        return NatsStore(self.bucket, prefix=store._book.prefix)

    def damage(self, store: NatsStore, key: Key, how: str) -> None:
        async def damage() -> None:
            name = store._book.name(key)
            entry = await self.bucket.get(name)
            await self.bucket.put(name, _damaged(entry.value, how))

        self.run(damage())


class TestNatsStore(NatsContract):
    """On the event loop that its connection belongs to."""

    @pytest.mark.realtime
    def test_cases_that_wait(self, subject: Store) -> None:
        """Behaviours 8, 20-23, 27: leases that run out, and records that are forgotten."""
        _at_once(NatsContract, subject)


class SyncNatsContract(StoreContract):
    unit = 1.5
    own_clock = True
    largest_outcome = 1_000_000

    @pytest.fixture
    def make(self, nats_url: str) -> Iterator[Callable[[str], SyncNatsStore]]:
        with ExitStack() as stack:
            yield lambda prefix: stack.enter_context(SyncNatsStore(nats_url, BUCKET, prefix=prefix))

    @pytest.fixture
    def store(self, make: Callable[[str], SyncNatsStore]) -> SyncNatsStore:
        self.make_another = make
        return make(_prefix())

    def reopen(self, store: SyncNatsStore) -> SyncNatsStore:
        return self.make_another(store._store._book.prefix)


class TestSyncNatsStore(SyncNatsContract):
    """In plain calls; what waits for the clock is left to its twin."""


for _name in WAITING:
    setattr(TestNatsStore, _name, None)
    setattr(TestSyncNatsStore, _name, None)


def test_its_answers_can_be_explained_by_single_steps(nats_url: str) -> None:
    """Behaviours 21-23: many threads, and owners that come too late."""
    with SyncNatsStore(nats_url, BUCKET, prefix=_prefix()) as store:
        # The seventh round is of a ttl that runs out, which message TTLs would round up beyond slack.
        check_store(store, rounds=6, threads=6, unit=0.1, slack=0.05)


def test_its_answers_by_several_clients_can_be_explained_too(nats_url: str) -> None:
    """Behaviours 21-23: on one event loop, each coroutine's requests between those of others."""
    with LoopThread() as loop:
        store = NatsStore.at(nats_url, BUCKET, prefix=_prefix())
        check_store(store, loop=loop, rounds=6, threads=6, unit=0.1, slack=0.05)
        loop.run(store.aclose())


class NatsStoreMachine(StoreMachine):
    """Every order of calls, against the model of the protocol."""

    turns_clock = False
    tolerance = 1e9  # what is left of a ttl is an upper bound: no client's clock is trusted to know it
    url: str

    def make_store(self) -> SyncNatsStore:
        return SyncNatsStore(self.url, BUCKET, prefix=_prefix())

    def close_store(self) -> None:
        self.made.close()


class TestNatsStoreMachine(NatsStoreMachine.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(max_examples=10, stateful_step_count=30, deadline=None)

    @pytest.fixture(autouse=True)
    def _server(self, nats_url: str) -> None:
        NatsStoreMachine.url = nats_url
