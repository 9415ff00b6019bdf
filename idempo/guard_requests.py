"""What a guard answers for a key from outside a call: lookup, forget, resolve, and what it has counted."""

from __future__ import annotations

from typing import Any, Final

from idempo.errors import InvalidKeyError
from idempo.keys import key_text
from idempo.records import Key, Record, Stats
from idempo.telling import Counts, total
from idempo.terms import AnyStore, Terms
from idempo.upkeep import Steps, ask, ask_async, forget, lookup, resolve


class KeyRequests:
    """The half of `Idempotency` that runs nothing."""

    def __init__(self, store: AnyStore, namespace: str, terms: Terms) -> None:
        self.store: Final = store
        self.namespace: Final = namespace
        self._terms = terms
        self._counts: list[Counts] = [terms.teller.counts]
        self._within: dict[str, Terms] = {}  # of the functions it decorated and the guards it made, by their namespaces

    def lookup(self, key: Any) -> Record | None:
        """Return the record of a key, or None.

        Args:
            key: As for `run`. A decorated function has keys of its own: ask its wrapper.

        Raises:
            InvalidKeyError: The key is none, or of another namespace.
            RecordError: The record cannot be read.
            StoreError: The store did not answer.
            TypeError: The store is an AsyncStore.
        """
        return ask(self.store, lookup(self._key(key)))

    async def lookup_async(self, key: Any) -> Record | None:
        """`lookup` on any store."""
        return await ask_async(self.store, lookup(self._key(key)))

    def forget(self, key: Any, *, force: bool = False) -> bool:
        """Forget a key, so that the next call runs; say whether there was a record.

        It also ends the offering of an outcome that the store has not taken yet (in this process, through this store).

        Args:
            key: As for `run`; or the `Key` that an error or an event carries, also of a function of this guard.
            force: Forget it under a live claim too, whose call then ends with LeaseLostError.

        Raises:
            InProgressError: A live claim holds the key, and ``force`` was not given.
            InvalidKeyError: The key is none, or of another namespace.
            RecordError: The record cannot be read. One whose *outcome* alone cannot be read is forgotten.
            StoreError: The store did not answer.
            TypeError: The store is an AsyncStore.
        """
        return ask(self.store, forget(self.store, self._key(key), force=force))

    async def forget_async(self, key: Any, *, force: bool = False) -> bool:
        """`forget` on any store."""
        return await ask_async(self.store, forget(self.store, self._key(key), force=force))

    def resolve(self, key: Any, value: Any) -> bool:
        """Give the outcome of a key by hand: an operator's answer to a record in doubt, or to none at all.

        The record's fingerprint stays. A value that cannot be kept makes the outcome *lost*, as a function's does.

        Args:
            key: As for `run`; or the `Key` that an error or an event carries, also of a function of this guard.
            value: What duplicates get from now on, for ``ttl``.

        Returns:
            False, and nothing was changed, where there is an outcome already.

        Raises:
            InProgressError: A live claim holds the key; or the key was claimed, or forgotten, meanwhile.
            InvalidKeyError: The key is none, or of another namespace.
            RecordError: The record cannot be read.
            ResultNotStoredError: The outcome cannot be sealed; the key is left in doubt.
            StoreError: The store failed twice. The key may be left in doubt, also one that had no record: under
                ``in_doubt="rerun"`` the next call runs. Resolve it again.
            StoreFullError: There is no room for a key without a record; nothing was changed.
            TypeError: The store is an AsyncStore.
        """
        return ask(self.store, self._resolve(key, value))

    async def resolve_async(self, key: Any, value: Any) -> bool:
        """`resolve` on any store."""
        return await ask_async(self.store, self._resolve(key, value))

    def stats(self) -> Stats:
        """Count the events of this guard and of the functions that it decorated."""
        return total(self._counts)

    def _key(self, key: Any) -> Key:
        if not isinstance(key, Key):
            return Key(self.namespace, key_text(key))
        if key.namespace == self.namespace or key.namespace.startswith(f"{self.namespace}/"):
            return key
        raise InvalidKeyError(
            f"the key is of the namespace {key.namespace!r}, and this guard's is {self.namespace!r}", key=key
        )

    def _resolve(self, key: Any, value: Any) -> Steps[bool]:
        found = self._key(key)
        return resolve(self._within.get(found.namespace, self._terms), found, value)
