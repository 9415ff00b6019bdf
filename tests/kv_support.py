"""What tests of the memcached and NATS stores share: a store of each for plain calls, by any address."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from pymemcache import PooledClient

from idempo.protocols import Store
from idempo.records import Key
from idempo.stores.memcached import MemcachedStore
from idempo.stores.nats import SyncNatsStore

KEY = Key("billing", "order-42")
PATIENCE = 30.0

Open: TypeAlias = Callable[[str, str], AbstractContextManager[Any]]


def new_prefix() -> str:
    """Return a prefix that no other test uses: servers are shared."""
    return f"test.{secrets.token_hex(6)}."


def address_of(url: str) -> tuple[str, int]:
    """Return host and port."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@contextmanager
def memcached_store(url: str, prefix: str, **options: Any) -> Iterator[MemcachedStore]:
    """Open a store by a pool of connections, which never sends twice."""
    client = PooledClient(address_of(url), **{"connect_timeout": 5, "timeout": 5, **options})
    try:
        yield MemcachedStore(client, prefix=prefix)
    finally:
        client.close()


@contextmanager
def nats_store(url: str, prefix: str, **options: Any) -> Iterator[SyncNatsStore]:
    """Open a store that sends again within each step, as it does by default."""
    with SyncNatsStore(url, "faults", prefix=prefix, **options) as store:
        yield store


def claim(store: Store, owner: str = "owner-a", *, key: Key = KEY, lease: float = 60.0) -> Any:
    """Claim, for a minute."""
    return store.claim(key, owner=owner, fingerprint=None, lease=lease, ttl=60.0)
