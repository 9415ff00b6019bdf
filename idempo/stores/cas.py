"""Records in any key-value server that has get, add, compare-and-swap and delete.

`CasStore` makes the six methods of a store out of those four; `AsyncCasStore` is its twin for a client of coroutines.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from copy import copy
from typing import Protocol, TypeVar, TypeVarTuple, runtime_checkable

from idempo.errors import RecordError, StoreError
from idempo.records import Claim, Key, Record
from idempo.stores import _transitions
from idempo.stores._cas_records import ROUNDS, Book, Found, Plan
from idempo.stores._transitions import Transition

__all__ = ["AsyncCasBackend", "AsyncCasStore", "CasBackend", "CasStore"]

_Answer = TypeVar("_Answer")
_Args = TypeVarTuple("_Args")


@runtime_checkable
class CasBackend(Protocol):
    """The four methods that `CasStore` needs of a key-value server. Each is one atomic step there.

    Keys are a prefix and 64 hexadecimal digits; values are bytes, some 300 and the outcome. A revision is a whole
    number that every write changes, and that never comes again for a key, not over deletion either.

    ``ttl`` is in seconds from now, by the server's clock. The server forgets the key after it, and must not before: a
    server that counts whole seconds rounds up.

    A backend may also carry these attributes, read when the store is made:

    - ``lasting_revisions`` (False): revisions *rise* with every write to the server, over deletion, expiry and restart.
      They are then the fencing tokens.
    - ``blocking`` (True) and ``shared`` (True): see `idempo.Store`.

    Raises (every method):
        StoreError: The server could not be reached, or did not answer; the step may or may not have been made. An
            OSError, timeouts included, is turned into one.
    """

    def get(self, key: str) -> tuple[bytes, int] | None:
        """Return value and revision, or None where the key is absent. Must see the latest write of every client."""
        ...

    def add(self, key: str, value: bytes, ttl: float) -> int | None:
        """Store the value if the key is absent, and return its revision; None where the key was there."""
        ...

    def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        """Replace the value if its revision is this one, and return the new one; None where it was not, or no key."""
        ...

    def delete(self, key: str, revision: int | None = None) -> bool:
        """Remove the key, if its revision is this one where one is given, and say whether that was done."""
        ...


@runtime_checkable
class AsyncCasBackend(Protocol):
    """`CasBackend` with coroutines; method by method the same promises."""

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """See `CasBackend.get`."""
        ...

    async def add(self, key: str, value: bytes, ttl: float) -> int | None:
        """See `CasBackend.add`."""
        ...

    async def compare_and_swap(self, key: str, value: bytes, revision: int, ttl: float) -> int | None:
        """See `CasBackend.compare_and_swap`."""
        ...

    async def delete(self, key: str, revision: int | None = None) -> bool:
        """See `CasBackend.delete`."""
        ...


class CasStore:
    """Keeps records in a key-value server that has get, add, compare-and-swap and delete.

    No clock of any client is trusted: a lapsed lease is taken over only by a client that has itself watched the
    record's revision stay unchanged for a full lease. A client that first meets a dead holder's record therefore waits
    one lease more than the others, and ``lease_left`` and ``expires_in`` are upper bounds.

    A duplicate's claim is one round trip; a first claim is two; complete, release and renew are one where this store
    object made the claim, else two.

    The fencing token is the server's revision where that lasts. Where it does not, it is the previous one plus one or
    the *client's* clock in microseconds, whichever is greater: over deletion and expiry tokens then rise only as far
    as the clients' clocks agree.

    Args:
        backend: The server.
        prefix: What every key in it begins with.
        max_watched: How many keys in progress are watched at once, some 300 bytes each; beyond it the first of
            them are watched anew, which delays a take-over and never hastens it.
        clock: Measures how long a revision stood, in seconds, and never runs back.
        wall_clock: Seconds since 1970; for fencing tokens where revisions do not last, and for nothing else.

    Raises:
        TypeError: The backend lacks a method, or its methods are coroutines; another argument is of the wrong type.
        ValueError: ``max_watched`` is below 1.
    """

    def __init__(
        self,
        backend: CasBackend,
        *,
        prefix: str = "idempo-",
        max_watched: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        _check(backend, CasBackend, coroutines=False)
        self._backend = backend
        self._book = _book(backend, prefix, clock, wall_clock, max_watched)
        self.exact_expiry = False
        self.blocking: bool = getattr(backend, "blocking", True)
        self.shared: bool = getattr(backend, "shared", True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{type(self._backend).__name__}>, prefix={self._book.prefix!r})"

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
        """See `Store.claim`."""
        return self._step(key, None, _transitions.claim, owner, fingerprint, lease, ttl, take_over)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._step(key, owner, _transitions.complete, owner, outcome, ttl)

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._step(key, owner, _transitions.release, owner, ttl)

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._step(key, owner, _transitions.renew, owner, lease, ttl)

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._look(key, self._book.name(key)).record

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`. False also where a first request did remove it, and only its answer was lost."""
        name = self._book.name(key)
        for _ in range(ROUNDS):
            try:
                found = self._look(key, name)
            except RecordError:
                if owner is not None:
                    raise
                return self._remove(key, name, None)
            if not _transitions.delete(found.record, owner):
                return False
            if self._remove(key, name, found.revision):
                return True
        raise self._book.outrun(key)

    def _remove(self, key: Key, name: str, revision: int | None) -> bool:
        try:
            removed = self._backend.delete(name, revision)
        except (OSError, StoreError) as error:
            raise _failed(key, error) from error
        if removed:
            self._book.forget(name)
        return removed

    def _step(
        self,
        key: Key,
        holder: str | None,
        transition: Transition[*_Args, _Answer],
        *args: *_Args,
    ) -> _Answer:
        book, name = self._book, self._book.name(key)
        found = None if holder is None else book.own(name, holder)
        tried: Plan[_Answer] | None = None
        for _ in range(ROUNDS):
            if found is None:
                found = self._look(key, name)
            if tried is not None and found.revision is not None and found.data == tried.data:
                # The client library sent it twice: the first was taken, and the second found that it had been. It was
                # this call's, whose bytes no other write has, so that nobody has watched it since before this call.
                return book.done(name, tried, found.revision)
            plan = book.plan(key, found, transition, *args)
            if plan.data is None:
                return plan.answer
            try:
                if plan.revision is None:
                    revision = self._backend.add(name, plan.data, plan.ttl)
                else:
                    revision = self._backend.compare_and_swap(name, plan.data, plan.revision, plan.ttl)
            except (OSError, StoreError) as error:
                raise _failed(key, error) from error
            if revision is not None:
                return book.done(name, plan, revision)
            tried, found = plan, None
        raise book.outrun(key)

    def _look(self, key: Key, name: str) -> Found:
        seen = self._book.seen(name)
        try:
            answer = self._backend.get(name)
        except (OSError, StoreError) as error:
            raise _failed(key, error) from error
        return self._book.found(key, name, seen, answer)


class AsyncCasStore:
    """`CasStore` over a backend of coroutines: the same rules, arguments and limits.

    Line by line it is `CasStore` with ``await``: every rule is in what the two share.
    """

    def __init__(
        self,
        backend: AsyncCasBackend,
        *,
        prefix: str = "idempo-",
        max_watched: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        _check(backend, AsyncCasBackend, coroutines=True)
        self._backend = backend
        self._book = _book(backend, prefix, clock, wall_clock, max_watched)
        self.exact_expiry = False
        self.shared: bool = getattr(backend, "shared", True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{type(self._backend).__name__}>, prefix={self._book.prefix!r})"

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
        return await self._step(key, None, _transitions.claim, owner, fingerprint, lease, ttl, take_over)

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return await self._step(key, owner, _transitions.complete, owner, outcome, ttl)

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return await self._step(key, owner, _transitions.release, owner, ttl)

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return await self._step(key, owner, _transitions.renew, owner, lease, ttl)

    async def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return (await self._look(key, self._book.name(key))).record

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        name = self._book.name(key)
        for _ in range(ROUNDS):
            try:
                found = await self._look(key, name)
            except RecordError:
                if owner is not None:
                    raise
                return await self._remove(key, name, None)
            if not _transitions.delete(found.record, owner):
                return False
            if await self._remove(key, name, found.revision):
                return True
        raise self._book.outrun(key)

    async def _remove(self, key: Key, name: str, revision: int | None) -> bool:
        try:
            removed = await self._backend.delete(name, revision)
        except (OSError, StoreError) as error:
            raise _failed(key, error) from error
        if removed:
            self._book.forget(name)
        return removed

    async def _step(
        self,
        key: Key,
        holder: str | None,
        transition: Transition[*_Args, _Answer],
        *args: *_Args,
    ) -> _Answer:
        book, name = self._book, self._book.name(key)
        found = None if holder is None else book.own(name, holder)
        tried: Plan[_Answer] | None = None
        for _ in range(ROUNDS):
            if found is None:
                found = await self._look(key, name)
            if tried is not None and found.revision is not None and found.data == tried.data:
                return book.done(name, tried, found.revision)
            plan = book.plan(key, found, transition, *args)
            if plan.data is None:
                return plan.answer
            try:
                if plan.revision is None:
                    revision = await self._backend.add(name, plan.data, plan.ttl)
                else:
                    revision = await self._backend.compare_and_swap(name, plan.data, plan.revision, plan.ttl)
            except (OSError, StoreError) as error:
                raise _failed(key, error) from error
            if revision is not None:
                return book.done(name, plan, revision)
            tried, found = plan, None
        raise book.outrun(key)

    async def _look(self, key: Key, name: str) -> Found:
        seen = self._book.seen(name)
        try:
            answer = await self._backend.get(name)
        except (OSError, StoreError) as error:
            raise _failed(key, error) from error
        return self._book.found(key, name, seen, answer)


def _check(backend: object, protocol: type, *, coroutines: bool) -> None:
    get = getattr(backend, "get", None)
    if not isinstance(backend, protocol):
        raise TypeError(f"backend must have the four methods of {protocol.__name__}, not be {backend!r}")
    if inspect.iscoroutinefunction(get) is not coroutines:
        raise TypeError(
            f"the methods of backend must {'' if coroutines else 'not '}be coroutine functions: {backend!r}"
        )


def _book(
    backend: object,
    prefix: str,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    max_watched: int,
) -> Book:
    lasting = bool(getattr(backend, "lasting_revisions", False))
    return Book(prefix, clock, wall_clock, lasting_revisions=lasting, max_watched=max_watched)


def _failed(key: Key, error: OSError | StoreError) -> StoreError:
    if isinstance(error, OSError):
        return StoreError(f"the key-value server failed: {type(error).__name__}: {error}", key=key)
    named = copy(error)  # a backend may raise the same one for several calls, each of another key
    named.key = error.key or key
    return named
