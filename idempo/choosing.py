"""Which driver runs a sync call."""

from __future__ import annotations

from idempo.driver_joined import JoinedDriver
from idempo.driver_sync import SyncDriver
from idempo.protocols import TransactionalStore
from idempo.terms import Terms
from idempo.upkeep import is_async


def sync_driver(terms: Terms) -> SyncDriver:
    """Return the driver for plain functions and blocks on this store.

    Raises:
        TypeError: The store is an AsyncStore.
    """
    if is_async(terms.store):
        raise TypeError("the store is an AsyncStore: use run_async(), `async with`, and the other …_async methods")
    return JoinedDriver(terms) if isinstance(terms.store, TransactionalStore) else SyncDriver(terms)
