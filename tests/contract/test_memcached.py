"""MemcachedStore through the contract of every store, on a real memcached."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import settings
from pymemcache import Client, HashClient, PooledClient
from pymemcache.client.retrying import RetryingClient

from idempo.records import Key
from idempo.stores.memcached import MemcachedStore
from idempo.testing import StoreContract, StoreMachine, check_store
from idempo.testing._time_cases import TimeCases

_BOUNDED = {"connect_timeout": 5, "timeout": 10}


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _prefix() -> str:
    return f"test-{secrets.token_hex(6)}-"


class MemcachedContract(StoreContract):
    unit = 2.0  # the server counts whole seconds
    own_clock = True
    largest_outcome = 1_000_000

    @pytest.fixture
    def client(self, memcached_url: str) -> Iterator[Any]:
        client = PooledClient(_address(memcached_url), **_BOUNDED)
        yield client
        client.close()

    @pytest.fixture
    def store(self, client: Any) -> MemcachedStore:
        return MemcachedStore(client, prefix=_prefix())

    def reopen(self, store: MemcachedStore) -> MemcachedStore:
        return MemcachedStore(store._backend._client, prefix=store._book.prefix)  # type: ignore[attr-defined]

    def damage(self, store: MemcachedStore, key: Key, how: str) -> None:
        client, name = store._backend._client, store._book.name(key)  # type: ignore[attr-defined]
        value = client.get(name)
        damaged = {
            "truncated": value[:-3],
            "flipped": value[:-1] + bytes([value[-1] ^ 1]),
            "newer": value.replace(b"idempo\x01", b"idempo\x02", 1),
            "foreign": b'{"somebody": "else"}',
        }[how]
        client.set(name, damaged, noreply=False)


# What waits for the real clock waits all at once: 15 seconds, not 100.
WAITING = [
    name
    for name, case in inspect.getmembers(TimeCases, inspect.isfunction)
    if name.startswith("test_") and "self.advance(" in inspect.getsource(case)
]


class TestMemcachedStore(MemcachedContract):
    """By a pool of connections, as threads would."""

    @pytest.mark.realtime
    def test_cases_that_wait(self, store: MemcachedStore) -> None:
        """Behaviours 8, 20-23, 27: leases that run out, and records that are forgotten."""
        assert len(WAITING) > 8
        with ThreadPoolExecutor(len(WAITING)) as pool:
            cases = {name: pool.submit(getattr(MemcachedContract(), name), store) for name in WAITING}
            failed = {name: case.exception() for name, case in cases.items()}
        assert {name: error for name, error in failed.items() if error is not None} == {}


for _name in WAITING:
    setattr(TestMemcachedStore, _name, None)


def _plain(address: tuple[str, int]) -> Any:
    return Client(address, key_prefix="of-the-client:", **_BOUNDED)


def _retrying(address: tuple[str, int]) -> Any:
    return RetryingClient(PooledClient(address, **_BOUNDED), attempts=3)


def _hashed(address: tuple[str, int]) -> Any:
    return HashClient([address], use_pooling=True, **_BOUNDED)


@pytest.mark.parametrize("make", [_plain, _retrying, _hashed, lambda address: RetryingClient(_plain(address))])
def test_its_answers_can_be_explained_by_single_steps(memcached_url: str, make: Callable[..., Any]) -> None:
    """Behaviours 21-23: many threads, and owners that come too late, by every kind of client."""
    store = MemcachedStore(make(_address(memcached_url)), prefix=_prefix())
    # The seventh round is of a ttl that runs out, which a server that counts whole seconds would round up beyond slack.
    check_store(store, rounds=6, unit=0.1, slack=0.05)
    store._backend._close()  # type: ignore[attr-defined]


class MemcachedStoreMachine(StoreMachine):
    """Every order of calls, against the model of the protocol."""

    turns_clock = False
    tolerance = 1e9  # what is left of a ttl is an upper bound: no client's clock is trusted to know it
    address: tuple[str, int]

    def make_store(self) -> MemcachedStore:
        self.client = PooledClient(self.address, **_BOUNDED)
        return MemcachedStore(self.client, prefix=_prefix())

    def close_store(self) -> None:
        self.client.close()


class TestMemcachedStoreMachine(MemcachedStoreMachine.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(max_examples=10, stateful_step_count=30, deadline=None)

    @pytest.fixture(autouse=True)
    def _server(self, memcached_url: str) -> None:
        MemcachedStoreMachine.address = _address(memcached_url)
