"""`Idempotency`: a store, a namespace and a policy, settled once and used for many operations."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Unpack, cast, overload

from idempo import answers
from idempo.driver_sync import SyncDriver
from idempo.errors import InProgressError
from idempo.fingerprint import Fingerprinter
from idempo.flights import Flight, new_owner
from idempo.keys import (
    ALL_ARGUMENTS,
    EVERYTHING,
    KeySpec,
    PayloadSpec,
    check_namespace,
    key_text,
    spelled_fingerprint,
)
from idempo.operation import Operation, _current, operation_of, unguarded
from idempo.policy import Policy, PolicyOptions
from idempo.protocols import Codec, Observer, Seal, Store
from idempo.records import Key, Record, State, Stats
from idempo.stores.memory import MemoryStore
from idempo.telling import Counts, total
from idempo.terms import AnyStore
from idempo.wrapping import (
    Decorator,
    Guarded,
    P,
    R,
    forget,
    forget_async,
    is_async,
    lookup_async,
    make_terms,
    namespace_of,
    run_unguarded,
    run_unguarded_async,
    wrap,
)

DEFAULT_NAMESPACE: Final = "default"
_UNSET: Final[Any] = object()


class Idempotency:
    """Guards operations on one store: immutable, and cheap to make.

    Args:
        store: Where records live; a `MemoryStore` of its own when None.
        namespace: Which family of operations; 1 to 255 characters, no "/".
        codec: How results are kept; the store's default when None.
        seal: Protects results in a store that others can write.
        observers: Called with each `Event`.
        **policy: The options of `Policy`.

    Raises:
        TypeError: An option is of the wrong type, or unknown.
        ValueError: An option is out of its range.

    >>> from idempo import Idempotency
    >>> guard = Idempotency(namespace="orders")
    >>> guard.run("order-42", str.upper, "placed")
    'PLACED'
    >>> guard.run("order-42", str.upper, "placed")  # not run again
    'PLACED'
    >>> guard.stats().replayed
    1
    """

    def __init__(
        self,
        store: AnyStore | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        codec: Codec | None = None,
        seal: Seal | None = None,
        observers: Sequence[Observer] = (),
        **policy: Unpack[PolicyOptions],
    ) -> None:
        self.namespace: Final = check_namespace(namespace, allow_slash=False)
        self.store: Final[AnyStore] = MemoryStore() if store is None else store
        self.policy: Final = Policy(**policy)
        self._codec = codec
        self._seal = seal
        self._observers = tuple(observers)
        self._terms = make_terms(self.store, policy=self.policy, codec=codec, seal=seal, observers=self._observers)
        self._counts: list[Counts] = [self._terms.teller.counts]
        self._fingerprinter = Fingerprinter()

    @property
    def _driver(self) -> SyncDriver:
        if is_async(self.store):
            raise TypeError("the store is an AsyncStore: use run_async() and the other …_async methods")
        return SyncDriver(self._terms)

    def run(self, key: Any, fn: Callable[..., R], /, *args: Any, payload: Any = _UNSET, **kwargs: Any) -> R:
        """Run ``fn(*args, **kwargs)`` once for this key, or return the first outcome.

        Args:
            key: A str, int, UUID, Enum, bytes, or a tuple of these.
            fn: A plain function.
            *args: Its arguments, which are the payload as they are spelled; none of them, and nothing is checked.
            payload: What is fingerprinted instead; None checks nothing.
            **kwargs: Its keyword arguments.

        Raises:
            TypeError: ``fn`` is a coroutine function (``run_async`` is meant), or the store is an AsyncStore.
            IdempotencyError: Any of idempo's errors; which, and whether anything ran, is said by each class.
        """
        if inspect.iscoroutinefunction(fn):
            raise TypeError("run() is for plain functions; for a coroutine function use `await run_async(...)`")
        id_ = (self.namespace, key_text(key))
        if unguarded.depth:
            return run_unguarded(Key(*id_), fn, args, kwargs)
        return cast("R", self._driver.run(id_, self._fingerprint(payload, args, kwargs), fn, args, kwargs))

    async def run_async(
        self, key: Any, fn: Callable[..., Awaitable[R]], /, *args: Any, payload: Any = _UNSET, **kwargs: Any
    ) -> R:
        """`run` for a coroutine function, on any store.

        Raises:
            IdempotencyError: Any of idempo's errors; which, and whether anything ran, is said by each class.
        """
        from idempo.driver_async import AsyncDriver  # needs asyncio, which `import idempo` does without

        id_ = (self.namespace, key_text(key))
        if unguarded.depth:
            return cast("R", await run_unguarded_async(Key(*id_), fn, args, kwargs))
        fingerprint = self._fingerprint(payload, args, kwargs)
        return cast("R", await AsyncDriver(self._terms).run(id_, fingerprint, fn, args, kwargs))

    async def lookup_async(self, key: Any) -> Record | None:
        """`lookup` on any store."""
        return await lookup_async(self.store, Key(self.namespace, key_text(key)))

    async def forget_async(self, key: Any, *, force: bool = False) -> bool:
        """`forget` on any store."""
        return await forget_async(self.store, Key(self.namespace, key_text(key)), force=force)

    @contextmanager
    def operation(self, key: Any, *, payload: Any = None) -> Iterator[Block]:
        """Guard a block of code: run its effect only if ``op.fresh``.

        >>> from idempo import Idempotency
        >>> guard = Idempotency()
        >>> with guard.operation("order-42", payload={"amount": 5}) as op:
        ...     if op.fresh:
        ...         _ = op.complete("placed")
        >>> op.result
        'placed'
        """
        id_ = (self.namespace, key_text(key))
        if unguarded.depth:
            yield Block(Key(*id_))
            return
        driver = self._driver
        flight = Flight(id_, None if payload is None else self._fingerprinter(payload), self._terms)
        try:
            replayed = driver.enter(flight)
            if replayed is not None:
                yield Block(
                    flight.key, attempt=replayed.attempt, token=replayed.token, fresh=False, result=replayed.value
                )
                return
            block = Block.of(operation_of(flight, _current.get()), flight, driver)
            reset = _current.set(block)
            try:
                yield block
            finally:
                _current.reset(reset)
            if not flight.over:
                block.complete(None)
        except BaseException as error:
            if not flight.over:
                driver.settle(flight, error)
            raise

    @overload
    def idempotent(self, fn: Callable[P, R], /) -> Guarded[P, R]: ...
    @overload
    def idempotent(
        self,
        fn: None = None,
        /,
        *,
        key: KeySpec = ...,
        payload: PayloadSpec = ...,
        ignore: Sequence[str] = ...,
        namespace: str | None = ...,
        codec: Codec | None = ...,
        observers: Sequence[Observer] = ...,
        **policy: Unpack[PolicyOptions],
    ) -> Decorator: ...
    def idempotent(
        self,
        fn: Any = None,
        /,
        *,
        key: KeySpec = ALL_ARGUMENTS,
        payload: PayloadSpec = EVERYTHING,
        ignore: Sequence[str] = (),
        namespace: str | None = None,
        codec: Codec | None = None,
        observers: Sequence[Observer] = (),
        **policy: Unpack[PolicyOptions],
    ) -> Any:
        """Decorate a function as `idempo.idempotent` does, on this guard's store, namespace and policy.

        Options override the guard's; observers are added to its own, and its namespace stays as a prefix.

        Raises:
            TypeError: The function cannot be guarded so, or an option is of the wrong type.
            ValueError: An option is out of its range.
        """
        made = self.policy.evolve(**policy)
        prefixed = self.namespace != DEFAULT_NAMESPACE

        def decorate(target: Any) -> Any:
            shared = getattr(self.store, "shared", True)
            name = namespace_of(target, namespace, own=False, shared=shared, prefixed=prefixed)
            wrapper = wrap(
                target,
                self.store,
                f"{self.namespace}/{name}",
                made,
                key=key,
                payload=payload,
                ignore=ignore,
                codec=codec or self._codec,
                seal=self._seal,
                observers=(*self._observers, *observers),
            )
            self._counts.append(wrapper._counts)
            return wrapper

        return decorate if fn is None else decorate(fn)

    def lookup(self, key: Any) -> Record | None:
        """Return the record of a key, or None."""
        return self._sync_store.get(Key(self.namespace, key_text(key)))

    def forget(self, key: Any, *, force: bool = False) -> bool:
        """Forget a key, so that the next call runs; say whether there was a record.

        Raises:
            InProgressError: A live claim holds the key, and ``force`` was not given.
        """
        return forget(self._sync_store, Key(self.namespace, key_text(key)), force=force)

    def resolve(self, key: Any, value: Any) -> bool:
        """Give the outcome of a key by hand: an operator's answer to a record in doubt.

        Returns:
            False, and nothing was changed, where there is an outcome already.

        Raises:
            InProgressError: A live claim holds the key.
        """
        store, policy = self._sync_store, self.policy
        flight = Flight((self.namespace, key_text(key)), None, self._terms)
        flight.owner = new_owner()
        claim = store.claim(flight.key, owner=flight.owner, fingerprint=None, lease=policy.lease, ttl=policy.ttl)
        if not claim.acquired:
            if claim.record.state is State.COMPLETED:
                return False
            raise InProgressError("a live claim holds the key", key=flight.key)
        flight.record, flight.value = claim.record, value
        outcome, _ = answers.encode_value(flight)
        return store.complete(flight.key, owner=flight.owner, outcome=outcome, ttl=policy.ttl)

    def stats(self) -> Stats:
        """Count the events of this guard and of the functions that it decorated."""
        return total(self._counts)

    @property
    def _sync_store(self) -> Store:
        if is_async(self.store):
            raise TypeError("the store is an AsyncStore: use the …_async methods")
        return cast("Store", self.store)

    def _fingerprint(self, payload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        if payload is _UNSET:
            return spelled_fingerprint(args, kwargs, self._fingerprinter)
        return None if payload is None else self._fingerprinter(payload)


class Block(Operation):
    """The `Operation` of a ``with guard.operation(...)`` block."""

    @classmethod
    def of(cls, operation: Operation, flight: Flight, driver: SyncDriver) -> Block:
        """Make the block of a claim that is held."""
        block = cls(
            operation.key, attempt=operation.attempt, token=operation.token, flight=flight, outer=operation._outer
        )
        block._driver = driver
        return block

    _driver: SyncDriver

    def complete(self, value: R) -> R:
        """Store the value here and now, and return it. Once."""
        flight = self._flight
        if flight is not None:
            if flight.returned or not self.fresh:
                raise RuntimeError("the operation is completed already")
            flight.value, flight.returned = value, True
            self._driver.complete(flight)
        self._result = value
        return value
