"""What is asked of a key from outside its calls: look at its record, forget it, settle it by hand.

Each rule is written once, as a generator of requests to the store; two short drivers carry them out, so that sync and
async cannot drift apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar, cast

from idempo import answers
from idempo.decisions import failure
from idempo.errors import IdempotencyError, InProgressError, StoreError, StoreFullError
from idempo.flights import Flight
from idempo.hub import hub_of
from idempo.protocols import AsyncStore, Store, TransactionalStore
from idempo.records import Key, Record, State
from idempo.terms import AnyStore, Terms

T = TypeVar("T")

Request: TypeAlias = tuple[Key, Callable[[Any], Any]]
"""Of which key; given the store, calls one of its methods."""
Steps: TypeAlias = Generator[Request, Any, T]


def lookup(key: Key) -> Steps[Record | None]:
    """Return a key's record, or None."""
    return cast("Record | None", (yield key, lambda store: store.get(key)))


def forget(store: AnyStore, key: Key, *, force: bool) -> Steps[bool]:
    """Remove a key's record, but not under a live claim unless forced; say whether there was one."""
    hub = hub_of(store)
    offered = hub.flights.offering((key.namespace, key.value))  # and not what another call offers meanwhile
    if force:
        found = yield key, lambda store: store.delete(key)
    else:
        record: Record | None = yield key, lambda store: store.get(key)
        if record is not None and record.state is State.RUNNING and (record.lease_left or 0.0) > 0:
            raise InProgressError("a live claim holds the key; force=True forgets it all the same", key=key)
        # Only what was looked at: whoever has taken the key since then holds it rightly.
        found = record is not None and (yield key, lambda store: store.delete(key, owner=record.owner))
    hub.withdraw(offered)
    return bool(found)


def resolve(terms: Terms, key: Key, value: Any) -> Steps[bool]:
    """Give a key's outcome by hand; False, and nothing changed, where there is one already."""
    policy = terms.policy
    flight = Flight((key.namespace, key.value), None, terms)
    owner, lease, ttl = flight.owner, policy.lease, policy.ttl
    hub = hub_of(terms.store)
    offered = hub.flights.offering(flight.id)
    if hasattr(terms.store, "near"):
        # Else a claim may be answered from what is near, and that be behind: there may be no outcome any more.
        yield from _twice(terms, key, lambda store: store.get(key))
    try:
        answer = yield from _twice(
            terms, key, lambda store: store.claim(key, owner=owner, fingerprint=None, lease=lease, ttl=ttl)
        )
        claim = answers.claimed(answer)
        if not claim.acquired:
            if claim.record.state is State.COMPLETED:
                return False
            raise InProgressError("a live claim holds the key; it may still end by itself", key=key)
        flight.hold(claim.record)
        flight.value = value
        outcome, _ = answers.encode_value(flight)
        stored = yield from _twice(terms, key, lambda store: store.complete(key, owner=owner, outcome=outcome, ttl=ttl))
    except (InProgressError, GeneratorExit):  # nothing is ours; nobody asks any more
        raise
    except BaseException:
        # Whoever asks says that the effect has happened: in doubt, for the policy to decide, and at once.
        with suppress(IdempotencyError):
            yield key, lambda store: store.renew(key, owner=owner, lease=0.0, ttl=ttl)
        raise
    if not stored:
        raise InProgressError(
            "the key was claimed by another call, or forgotten, before the value was kept; look it up, and resolve it "
            "again if need be",
            key=key,
        )
    hub.withdraw(offered)
    return True


def _twice(terms: Terms, key: Key, method: Callable[[Any], Any]) -> Steps[Any]:
    """Ask once more where the store failed: the answer alone may have been lost. No transaction that failed, though."""
    try:
        return (yield key, method)
    except StoreFullError:
        raise
    except StoreError:
        if isinstance(terms.store, TransactionalStore):
            raise
        return (yield key, method)


def _told(raised: BaseException, key: Key, store: object) -> BaseException:
    if not isinstance(raised, Exception):
        return raised
    if isinstance(raised, ValueError) and isinstance(store, TransactionalStore):
        return raised  # there is no transaction to join: a mistake of the caller's
    error = failure(raised)
    error.key = key
    return error


def is_async(store: object) -> bool:
    """Whether a store's methods are coroutines."""
    return inspect.iscoroutinefunction(getattr(store, "claim", None))


def ask(store: AnyStore, steps: Steps[T]) -> T:
    """Carry out the steps on a sync store.

    Raises:
        TypeError: The store is an AsyncStore.
    """
    if is_async(store):
        raise TypeError("the store is an AsyncStore: use the …_async methods")
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            key, method = steps.throw(error) if error is not None else steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        try:
            answer, error = method(store), None
        except BaseException as raised:  # noqa: BLE001 (the steps raise it, once they have put things right)
            error = _told(raised, key, store)


async def ask_async(store: AnyStore, steps: Steps[T]) -> T:
    """Carry out the steps on any store; a blocking one is asked by a worker thread."""
    if not is_async(store):
        if not getattr(store, "blocking", True):
            return ask(store, steps)
        import asyncio  # `import idempo` does without

        return await asyncio.get_running_loop().run_in_executor(hub_of(store).pool, ask, cast("Store", store), steps)
    from idempo.loops import shielded  # needs asyncio

    # To its end, whoever is cancelled: a claim that was made for a value must not be left without it.
    return await shielded(_ask_async(cast("AsyncStore", store), steps))


async def _ask_async(store: AsyncStore, steps: Steps[T]) -> T:
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            key, method = steps.throw(error) if error is not None else steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        try:
            answer, error = await cast("Awaitable[Any]", method(store)), None
        except BaseException as raised:  # noqa: BLE001 (the steps raise it, once they have put things right)
            error = _told(raised, key, store)
