"""Where a call on PostgreSQL costs a round trip more than one for each method."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.proxy import Proxy
from tests.sql_support import Database, claimed, key, opened


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    yield from opened(request, "postgresql")


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url.host or "", database.url.port or 0) as proxy:
        yield proxy


@pytest.mark.parametrize("over", ["released", "in doubt", "expired", "held by its owner"])
def test_a_claim_over_a_record_costs_one_more(database: Database, proxy: Proxy, over: str) -> None:
    """Behaviour 46: it tries a new key first, and is told what there is; every other method is one."""
    store, owner = database.store(), "owner-b"
    claimed(store, key())
    if over == "released":
        store.release(key(), owner="owner-a", ttl=60)
    elif over == "in doubt":
        store.renew(key(), owner="owner-a", lease=0, ttl=60)
    elif over == "expired":
        store.renew(key(), owner="owner-a", lease=0, ttl=0)
    else:
        owner = "owner-a"
    by_proxy = database.store(proxy.port)
    by_proxy.get(key("other"))  # a connection is made
    proxy.reset_counts()
    assert claimed(by_proxy, key(), owner).acquired
    assert proxy.round_trips == 2


def test_what_the_owner_does_not_hold_costs_one_more(database: Database, proxy: Proxy) -> None:
    """Behaviour 46: a "no" is looked into, and a "yes" that was given before."""
    claimed(database.store(), key())
    store = database.store(proxy.port)
    assert store.complete(key(), owner="owner-a", outcome=b"kept", ttl=60)
    proxy.reset_counts()
    assert store.complete(key(), owner="owner-a", outcome=b"kept", ttl=60)
    assert proxy.round_trips == 2
    assert not store.renew(key(), owner="owner-b", lease=60, ttl=60)
    assert proxy.round_trips == 4
