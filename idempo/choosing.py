"""Which driver runs a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idempo.driver_joined import JoinedDriver
from idempo.driver_sync import SyncDriver
from idempo.protocols import AsyncTransactionalStore, TransactionalStore
from idempo.terms import Terms
from idempo.upkeep import is_async

if TYPE_CHECKING:
    from idempo.driver_async import AsyncDriver


class Drivers:
    """The drivers of one guard or one decorated function, each made when it is first needed."""

    __slots__ = ("_async", "_sync", "terms")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._sync: SyncDriver | None = None
        self._async: AsyncDriver | None = None

    @property
    def sync(self) -> SyncDriver:
        """The driver for plain functions and blocks.

        Raises:
            TypeError: The store is an AsyncStore.
        """
        if self._sync is None:
            store = self.terms.store
            if is_async(store):
                raise TypeError(
                    "the store is an AsyncStore: use run_async(), `async with`, and the other …_async methods"
                )
            self._sync = (JoinedDriver if isinstance(store, TransactionalStore) else SyncDriver)(self.terms)
        return self._sync

    @property
    def coroutine(self) -> AsyncDriver:
        """The driver for coroutine functions and ``async with`` blocks.

        Raises:
            TypeError: The store joins the transaction of a plain connection.
        """
        if self._async is None:
            # Both need asyncio, which `import idempo` does without.
            store = self.terms.store
            if not isinstance(store, TransactionalStore | AsyncTransactionalStore):
                from idempo.driver_async import AsyncDriver

                self._async = AsyncDriver(self.terms)
            elif is_async(store):
                from idempo.driver_joined_async import AsyncJoinedDriver

                self._async = AsyncJoinedDriver(self.terms)
            else:
                raise TypeError("a store that joins the transaction of a plain connection is for plain functions")
        return self._async
