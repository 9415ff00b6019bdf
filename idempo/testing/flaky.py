"""Stores that fail on schedule: before a step was made, or after it was made and only its answer was lost."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs

from idempo.errors import StoreError
from idempo.protocols import AsyncStore, Store
from idempo.records import Claim, Key, Record

_T = TypeVar("_T")

When: TypeAlias = Literal["before", "after"]
"""Before the store was asked, so that nothing happened, or after it had done its step, so that the answer is lost."""

Fault: TypeAlias = tuple[str, int | None, When]
"""A method's name, which of its calls fails (1 is the first; None is every one), and when."""

METHODS: Final = ("claim", "complete", "release", "renew", "get", "delete")

# What can be handed on as it is: reading it makes no step. `near` is left out, as its answers spare calls of `claim`,
# which the schedule would then count wrongly.
_HANDED_ON: Final = (
    "blocking",
    "shared",
    "default_codec",
    "largest_outcome",
    "exact_expiry",
    "watch",
    "scan",
    "purge",
    "sweep",
)


@attrs.frozen
class Call:
    """One call of a flaky store.

    Attributes:
        method: The name of the method.
        key: The key that it was called for.
        number: Which call of this method it is, from 1.
        options: Its keyword arguments.
        failed: When it was made to fail; None where it was not.
    """

    method: str
    key: Key
    number: int
    options: Mapping[str, Any]
    failed: When | None = None


Schedule: TypeAlias = Iterable[Fault] | Callable[[Call], When | None]


class _Flaky:
    """The schedule and the list of calls; the two stores below differ in their colour alone."""

    def __init__(
        self,
        store: Store | AsyncStore,
        fail: Schedule = (),
        *,
        error: Callable[[Call], BaseException] | None = None,
    ) -> None:
        self._choose = fail if callable(fail) else _chooser(fail)
        self._error = error or _store_error
        self._lock = threading.Lock()
        self._outages = 0
        self._calls: list[Call] = []
        for name in _HANDED_ON:  # read once, by name: what the inner store has not, this one has not either
            if hasattr(store, name):
                setattr(self, name, getattr(store, name))

    @property
    def calls(self) -> list[Call]:
        """Every call so far, in the order in which they began."""
        with self._lock:
            return list(self._calls)

    def count(self, method: str | None = None) -> int:
        """Return how many calls there were so far, of one method or of all six."""
        return sum(method in (None, call.method) for call in self.calls)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Let every call fail, before anything happens, while the context is open."""
        with self._lock:
            self._outages += 1
        try:
            yield
        finally:
            with self._lock:
                self._outages -= 1

    def _begin(self, method: str, key: Key, options: Mapping[str, Any]) -> Call:
        """Note a call, and raise where it is to fail before anything happens."""
        with self._lock:
            number = 1 + sum(call.method == method for call in self._calls)
            call = Call(method, key, number, options)
            failed = "before" if self._outages else self._choose(call)
            call = attrs.evolve(call, failed=failed)
            self._calls.append(call)
        if call.failed == "before":
            raise self._error(call)
        return call

    def _end(self, call: Call) -> None:
        """Raise where the answer is to be lost."""
        if call.failed == "after":
            raise self._error(call)


def _chooser(faults: Iterable[Fault]) -> Callable[[Call], When | None]:
    schedule: dict[tuple[str, int | None], When] = {}
    for method, number, when in faults:
        if method not in METHODS:
            raise ValueError(f"a fault names a method of a store ({', '.join(METHODS)}), not {method!r}")
        if number is not None and number < 1:
            raise ValueError(f"calls are counted from 1, so none is call {number} of {method}")
        if when not in ("before", "after"):
            raise ValueError(f'a call fails "before" or "after" its step, not {when!r}')
        schedule[method, number] = when
    return lambda call: schedule.get((call.method, call.number)) or schedule.get((call.method, None))


def _store_error(call: Call) -> StoreError:
    return StoreError(f"call {call.number} of {call.method} fails {call.failed} its step, by schedule", key=call.key)


class FlakyStore(_Flaky):
    """A `Store` that fails on schedule, and remembers how it was called.

    Whether it blocks and is shared, its codec, and the abilities to watch, scan, purge and sweep are the inner store's,
    and never fail. It never answers from near memory, so that every call reaches the schedule.

    Args:
        store: Where the calls that do not fail before their step are made.
        fail: Faults, such as ``("complete", 1, "after")``, or a callable that is given each `Call` and answers
            "before", "after" or None. It is called under a lock, in the order of the calls.
        error: Makes the exception from the call; `StoreError` by default.

    Raises:
        ValueError: A fault names no method of a store, no call, or no time to fail.

    >>> from idempo import MemoryStore
    >>> from idempo.testing import FlakyStore
    >>> store = FlakyStore(MemoryStore(), fail=[("complete", 1, "before"), ("claim", None, "after")])
    >>> store.count("complete")
    0
    """

    def __init__(
        self,
        store: Store,
        fail: Schedule = (),
        *,
        error: Callable[[Call], BaseException] | None = None,
    ) -> None:
        super().__init__(store, fail, error=error)
        self._store = store

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
        options = _options(owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)
        return self._do("claim", self._store.claim, key, options)

    def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `Store.complete`."""
        return self._do("complete", self._store.complete, key, _options(owner=owner, outcome=outcome, ttl=ttl))

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `Store.release`."""
        return self._do("release", self._store.release, key, _options(owner=owner, ttl=ttl))

    def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `Store.renew`."""
        return self._do("renew", self._store.renew, key, _options(owner=owner, lease=lease, ttl=ttl))

    def get(self, key: Key) -> Record | None:
        """See `Store.get`."""
        return self._do("get", self._store.get, key, {})

    def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `Store.delete`."""
        return self._do("delete", self._store.delete, key, _options(owner=owner))

    def _do(self, method: str, step: Callable[..., _T], key: Key, options: Mapping[str, Any]) -> _T:
        call = self._begin(method, key, options)
        answer = step(key, **options)
        self._end(call)
        return answer


class AsyncFlakyStore(_Flaky):
    """`FlakyStore` for an `AsyncStore`."""

    def __init__(
        self,
        store: AsyncStore,
        fail: Schedule = (),
        *,
        error: Callable[[Call], BaseException] | None = None,
    ) -> None:
        super().__init__(store, fail, error=error)
        self._store = store

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
        """See `AsyncStore.claim`."""
        options = _options(owner=owner, fingerprint=fingerprint, lease=lease, ttl=ttl, take_over=take_over)
        return await self._do("claim", self._store.claim, key, options)

    async def complete(self, key: Key, *, owner: str, outcome: bytes, ttl: float) -> bool:
        """See `AsyncStore.complete`."""
        return await self._do("complete", self._store.complete, key, _options(owner=owner, outcome=outcome, ttl=ttl))

    async def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        """See `AsyncStore.release`."""
        return await self._do("release", self._store.release, key, _options(owner=owner, ttl=ttl))

    async def renew(self, key: Key, *, owner: str, lease: float, ttl: float) -> bool:
        """See `AsyncStore.renew`."""
        return await self._do("renew", self._store.renew, key, _options(owner=owner, lease=lease, ttl=ttl))

    async def get(self, key: Key) -> Record | None:
        """See `AsyncStore.get`."""
        return await self._do("get", self._store.get, key, {})

    async def delete(self, key: Key, *, owner: str | None = None) -> bool:
        """See `AsyncStore.delete`."""
        return await self._do("delete", self._store.delete, key, _options(owner=owner))

    async def _do(self, method: str, step: Callable[..., Awaitable[_T]], key: Key, options: Mapping[str, Any]) -> _T:
        call = self._begin(method, key, options)
        answer = await step(key, **options)
        self._end(call)
        return answer


def _options(**options: Any) -> Mapping[str, Any]:
    return options
