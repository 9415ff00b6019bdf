"""What can be plugged in: stores, their optional abilities, codecs, seals and observers.

A store is six methods. Everything else on this page is optional, and a store without it still works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeAlias, runtime_checkable

from idempo.records import Claim, Event, Key, Record

Observer: TypeAlias = Callable[[Event], object]
"""Called with each event, in the thread where it happened. What it raises is logged and breaks nothing."""


@runtime_checkable
class Store(Protocol):
    """Where records live. Each method is one atomic step by the store's own clock.

    Who calls: the driver behind every guarded call, from any thread, several at once; the renewer, from a thread of its
    own. No method may block without bound.

    Durations (``lease``, ``ttl``) are seconds from now, by the *store's* clock, never by the caller's.

    ``owner`` is the random text of one claim. Every write names it, and is idempotent for it: a client library may have
    sent the same request twice, and the repeated request must answer as the first did.

    A store may also carry these attributes, read once when a function is decorated or a guard is made:

    - ``blocking`` (True): whether a method can wait for I/O. A store that says False is called directly by coroutines.
    - ``shared`` (True): whether other processes can reach the same records.
    - ``default_codec`` (`JsonCodec` when absent): the codec for outcomes where the user names none.
    - ``largest_outcome`` (None, for any): the largest outcome that `complete` takes, in bytes. A larger one becomes a
      *lost* one, rather than be offered in vain.
    - ``exact_expiry`` (True): whether ``expires_in`` of a completed record is what it still has to live. A store that
      says False tells no more than an upper bound, and a near cache then keeps only what its own process completed.

    Raises (every method):
        StoreError: The store could not be reached, or did not answer. The step may or may not have been made.
        RecordError: The record that is there cannot be read. Never answer "absent" instead.
    """

    def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """Take the key for ``owner``, or say who has it.

        The key is taken, and becomes RUNNING for ``lease`` seconds, when:

        - there is no record, or an expired one (attempt 1);
        - it is RELEASED by another owner, whatever its fingerprint (attempt + 1). The last released owner itself is
          refused: what arrives is a delayed copy of its claim;
        - it is RUNNING with the lease run out, the fingerprints agree, and ``take_over`` allows it: True, or the very
          owner that stands in the record (attempt + 1, ``took_over``);
        - the same owner holds it already: same attempt, same token, the lease anew.

        Fingerprints agree when they are equal or when either is None; a stored one is never replaced by None.
        The token is greater than that of every earlier claim of the key. A RUNNING record expires ``ttl`` seconds
        after its lease.

        Returns:
            The claim. When not acquired, nothing was changed, and the record is the one that stands in the way.

        Raises:
            StoreFullError: There is no room for another claim.
        """
        ...

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """Keep the outcome of the operation for ``ttl`` seconds from now: COMPLETED.

        Acts only while ``owner`` holds the key (RUNNING under that owner, its lease run out or not).

        Returns:
            True when the owner's outcome stands, also when this is a repetition; False when the owner holds the key
            no more, and nothing was changed. A repetition does not replace the outcome that was stored first.
        """
        ...

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """Free the key after a failure that had no effect: RELEASED, for ``ttl`` seconds.

        The record keeps attempt, token and owner, so that a delayed copy of that owner's claim is refused and attempts
        go on counting. Where there is no record, it answers False and still leaves RELEASED for that owner, whose
        claim may be on the way.

        Returns:
            True when the owner held the key, also when this is a repetition; else False.
        """
        ...

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """Let the lease end ``lease`` seconds from now, and the record expire ``ttl`` after that.

        A lease of 0 puts the record in doubt at once. A lapsed lease that nobody took over is renewed.

        Returns:
            True when the owner holds the key (RUNNING); else False, and nothing was changed.
        """
        ...

    def get(self, key: Key) -> Record | None:
        """Return the record as it stands, or None where there is none or it has expired. Changes nothing."""
        ...

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """Remove the record, in whatever state; with ``owner``, only while that owner's record stands.

        Without an owner a record that cannot be read is removed too: nothing else can, and somebody has looked at it.

        Returns:
            True when a record was removed.
        """
        ...


@runtime_checkable
class AsyncStore(Protocol):
    """`Store` with coroutines; method by method the same promises."""

    async def claim(
        self,
        key: Key,
        *,
        owner: str,
        fingerprint: bytes | None,
        lease: float,
        ttl: float,
        take_over: bool | str = True,
    ) -> Claim:
        """See `Store.claim`."""
        ...

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        ...

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        ...

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        ...

    async def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        ...

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        ...


@runtime_checkable
class NearStore(Protocol):
    """Ability: answer a duplicate from this process's own memory, without waiting and without I/O.

    Where the records themselves are elsewhere, what is near may be behind for a while: it may still be there when the
    record was deleted by others, though never when it has expired. ``get`` always tells how the record stands.
    """

    def near(self, namespace: str, value: str) -> tuple[bytes | None, bytes, int, int] | None:
        """Return fingerprint, outcome, attempt and token of a completed record at hand that is not expired, else None.

        None says nothing about the key: the caller claims next. Marks the record as used.
        """
        ...


@runtime_checkable
class InstantStore(Protocol):
    """Ability: claim a key that has no record, without waiting and without I/O, and without an answer to look at."""

    def claim_new(
        self, id_: tuple[str, str], owner: str, fingerprint: bytes | None, lease: float, ttl: float
    ) -> int | None:
        """Claim a new key, given as namespace and value, as `Store.claim` does, and return its fencing token.

        None where it is not new, or cannot be taken: nothing was changed, and `Store.claim` says what is the matter.
        """
        ...


@runtime_checkable
class WatchableStore(Protocol):
    """Ability: tell when a key changes, so that waiters need not poll."""

    def watch(self, key: Key, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """While the context is open, call ``wake`` after each change of the key.

        A change made after ``__enter__`` has returned is never missed while the connection holds; ``wake`` comes from
        any thread, may come more often than there are changes, returns at once, and does not raise.
        Waiters read the record again after entering, and poll slowly beside it, since a notification can be lost.
        """
        ...


@runtime_checkable
class AsyncWatchableStore(Protocol):
    """Ability: `WatchableStore` for an `AsyncStore`; ``wake`` is called on the loop that entered."""

    def watch(self, key: Key, wake: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """See `WatchableStore.watch`."""
        ...


@runtime_checkable
class TransactionalStore(Protocol):
    """Ability: write the record in the transaction that the caller has open, so that it commits with the effect.

    The guard then renews, joins, waits for and retries nothing: it claims the key, runs the function and completes the
    key inside one savepoint. Nothing is kept of a body that raises, even where its error is declared an outcome.
    """

    def savepoint(self, board: Callable[[object], None] | None = None) -> AbstractContextManager[None]:
        """Return a context that undoes what was written inside, record and effect, when it raises.

        Where leaving it without an error has failed, it is left once more, with that error.

        Args:
            board: To be called when the context is entered, before the savepoint is set, with the caller's connection;
                for a session, with that and with the connection that it has in use. It raises RuntimeError where a
                call is open there, by this store or another, that is none around this one.

        Raises:
            LeaseLostError: When it is left without an error: the transaction was committed or rolled back inside.
            StoreError: The transaction cannot go on: roll it back, and run it again.
        """
        ...


@runtime_checkable
class AsyncTransactionalStore(Protocol):
    """Ability: `TransactionalStore` for an `AsyncStore`.

    One task at a time may use what is joined, as with the connection itself.
    """

    def savepoint(self, board: Callable[[object], None] | None = None) -> AbstractAsyncContextManager[None]:
        """See `TransactionalStore.savepoint`."""
        ...


@runtime_checkable
class ScannableStore(Protocol):
    """Ability: list the records of a namespace."""

    def scan(self, namespace: str) -> Iterator[tuple[Key, Record]]:
        """Yield each live record of exactly this namespace, in no order; one that changes meanwhile may be missed."""
        ...


@runtime_checkable
class AsyncScannableStore(Protocol):
    """Ability: `ScannableStore` for an `AsyncStore`."""

    def scan(self, namespace: str) -> AsyncIterator[tuple[Key, Record]]:
        """See `ScannableStore.scan`."""
        ...


@runtime_checkable
class PurgeableStore(Protocol):
    """Ability: forget a namespace."""

    def purge(self, namespace: str) -> int:
        """Remove every record of exactly this namespace, in whatever state, and return how many there were."""
        ...


@runtime_checkable
class AsyncPurgeableStore(Protocol):
    """Ability: `PurgeableStore` for an `AsyncStore`."""

    async def purge(self, namespace: str) -> int:
        """See `PurgeableStore.purge`."""
        ...


@runtime_checkable
class SweepableStore(Protocol):
    """Ability: remove expired records that the store's server does not remove by itself."""

    def sweep(self, limit: int = 1000) -> int:
        """Remove at most ``limit`` expired records, never a live one, and return how many were removed.

        Raises:
            TypeError: The limit is no int.
            ValueError: It is below 1.
        """
        ...


@runtime_checkable
class AsyncSweepableStore(Protocol):
    """Ability: `SweepableStore` for an `AsyncStore`."""

    async def sweep(self, limit: int = 1000) -> int:
        """See `SweepableStore.sweep`."""
        ...


class ClosableStore(Store, Protocol):
    """A `Store` that owns its client, and is closed with it; by coroutines too, since it serves them."""

    def close(self) -> None:
        """Close the store and its client. What is called later may fail, with StoreError."""
        ...

    def __enter__(self) -> ClosableStore: ...
    def __exit__(self, *exc_info: object) -> None: ...

    async def aclose(self) -> None:
        """`close`, in a thread of its own."""
        ...

    async def __aenter__(self) -> ClosableStore: ...
    async def __aexit__(self, *exc_info: object) -> None: ...


class AsyncClosableStore(AsyncStore, Protocol):
    """An `AsyncStore` that owns its client, and is closed with it."""

    async def aclose(self) -> None:
        """Close the store and its client. What is called later may fail, with StoreError."""
        ...

    async def __aenter__(self) -> AsyncClosableStore: ...
    async def __aexit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class Codec(Protocol):
    """Turns values into bytes and back, equal and of the same types.

    A codec may carry ``safe_in_shared_store = False`` where decoding bytes that somebody else wrote is dangerous; it is
    then refused for a shared store that has no seal. It may carry ``for_return_type(annotation) -> Codec`` to learn, at
    decoration, the classes that a function says it returns; it raises TypeError for an annotation that it cannot keep.
    """

    def encode(self, value: Any) -> bytes:
        """Return the value as bytes.

        Raises:
            CodecError: The value cannot be kept so that `decode` gives an equal one of the same type.
        """
        ...

    def decode(self, data: bytes) -> Any:
        """Return the value that `encode` was given.

        Raises:
            CodecError: The bytes are not of this codec, or name a class that it was not told of.
        """
        ...


@runtime_checkable
class Seal(Protocol):
    """Protects outcomes in a store that others can write to."""

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """Return the data protected, and bound to the context (the key and fingerprint)."""
        ...

    def open(self, data: bytes, *, context: bytes) -> bytes:
        """Return what `seal` was given.

        Raises:
            RecordError: The data was not sealed with one of our secrets, was altered, or for another context.
        """
        ...
