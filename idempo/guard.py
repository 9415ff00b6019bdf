"""`Idempotency`: a store, a namespace and a policy, settled once and used for many operations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack, cast, overload

from idempo._checks import checked_observers, refuse_unknown
from idempo.blocks import OperationBlock
from idempo.choosing import Drivers
from idempo.errors import FingerprintError, InvalidKeyError
from idempo.fingerprint import PLAIN, Fingerprinter
from idempo.flights import Id
from idempo.guarded import AsyncGuarded, Decorator, Guarded, P, R
from idempo.keys import (
    ALL_ARGUMENTS,
    EVERYTHING,
    KeySpec,
    PayloadSpec,
    check_namespace,
    key_text,
    spelled_fingerprint,
)
from idempo.operation import unguarded
from idempo.policy import Policy, PolicyOptions
from idempo.protocols import Codec, Observer, Seal
from idempo.records import Key, Record, Stats
from idempo.stores.memory import MemoryStore
from idempo.telling import Counts, total
from idempo.terms import AnyStore, Terms
from idempo.upkeep import Steps, ask, ask_async, forget, lookup, resolve
from idempo.wrapping import (
    call_coroutine,
    digests,
    is_coroutine_function,
    is_simple,
    make_terms,
    namespace_of,
    refuse_generators,
    refuse_own_payload,
    run_unguarded,
    run_unguarded_async,
    wrap,
)

DEFAULT_NAMESPACE: Final = "default"


class _Unset:
    """Stands for a payload that was not given: None is one."""

    def __repr__(self) -> str:
        return "..."  # as signatures show it


_UNSET: Final[Any] = _Unset()


class Idempotency:
    """Guards operations on one store: immutable, and cheap to make.

    Args:
        store: Where records live; a `MemoryStore` of its own when None.
        namespace: Which family of operations; 1 to 255 characters, no "/".
        fingerprinter: Digests payloads; one of your own has a secret, or hooks for classes.
        codec: How results are kept; the store's default when None.
        seal: Protects results in a store that others can write.
        observers: Called with each `Event`.
        **policy: The options of `Policy`.

    Attributes:
        namespace: As given; keys of `run` and `operation` count within it.
        store: As given, or the memory store that was made.
        policy: The `Policy` that the options make.

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
        fingerprinter: Fingerprinter = PLAIN,
        codec: Codec | None = None,
        seal: Seal | None = None,
        observers: Sequence[Observer] = (),
        **policy: Unpack[PolicyOptions],
    ) -> None:
        refuse_unknown(policy, "Idempotency()")
        self.namespace: Final = check_namespace(namespace, allow_slash=False)
        self.store: Final[AnyStore] = MemoryStore() if store is None else store
        self.policy: Final = Policy(**policy)
        self._codec = codec
        self._seal = seal
        self._observers = checked_observers(observers)
        self._terms = make_terms(self.store, policy=self.policy, codec=codec, seal=seal, observers=self._observers)
        self._drivers = Drivers(self._terms)
        self._counts: list[Counts] = [self._terms.teller.counts]
        self._functions: dict[str, Terms] = {}  # decorated by this guard, by namespace
        self._fingerprinter = digests(fingerprinter)
        self._made: Final = True

    # Type checkers would let anything be set, where they see that there is a method for it.
    if not TYPE_CHECKING:  # pragma: no branch (it runs, so it is so)

        def __setattr__(self, name: str, value: object) -> None:
            if "_made" in self.__dict__:
                raise AttributeError(f"a guard is immutable: {name} cannot be set; make another one")
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"a guard is immutable: {name} cannot be deleted")

    def __repr__(self) -> str:
        return (
            f"Idempotency(<{type(self.store).__name__}>, namespace={self.namespace!r})"  # a store's own may tell more
        )

    def run(self, key: Any, fn: Callable[..., R], /, *args: Any, payload: Any = _UNSET, **kwargs: Any) -> R:
        """Run ``fn(*args, **kwargs)`` once for this key, or return the first outcome.

        Args:
            key: A str, int, UUID, Enum, bytes, or a tuple of these.
            fn: A plain function.
            *args: Its arguments, which are the payload as they are spelled; none of them, and nothing is checked.
            payload: What is fingerprinted instead; None checks nothing. It is not passed on: ``fn`` must have no
                parameter of this name, or be given it by `functools.partial`.
            **kwargs: Its keyword arguments.

        Raises:
            TypeError: ``fn`` is a generator or a coroutine function, or returns a coroutine (use ``run_async``); or the
                store is an AsyncStore; or ``payload`` is given, and a parameter of ``fn``.
            IdempotencyError: Any of idempo's errors; which, and whether anything ran, is said by each class.
        """
        if not is_simple(fn):
            refuse_generators(fn)
            if is_coroutine_function(fn):
                raise TypeError("run() is for plain functions; for a coroutine function use `await run_async(...)`")
        if payload is not _UNSET:
            refuse_own_payload(fn)
        id_ = (self.namespace, key_text(key))
        if unguarded.depth:
            return run_unguarded(Key(*id_), fn, args, kwargs)
        return cast("R", self._drivers.sync.run(id_, self._fingerprint(id_, payload, args, kwargs), fn, args, kwargs))

    async def run_async(
        self, key: Any, fn: Callable[..., Awaitable[R]], /, *args: Any, payload: Any = _UNSET, **kwargs: Any
    ) -> R:
        """`run` for a coroutine function, or for what returns an awaitable, on any store.

        A function that returns no awaitable has run all the same, so what it returns is the outcome.

        Raises:
            TypeError: ``fn`` is a generator; or ``payload`` is given, and a parameter of ``fn``.
            IdempotencyError: Any of idempo's errors; which, and whether anything ran, is said by each class.
        """
        if not is_simple(fn):
            refuse_generators(fn)
        if payload is not _UNSET:
            refuse_own_payload(fn)
        id_ = (self.namespace, key_text(key))
        if unguarded.depth:
            return cast("R", await run_unguarded_async(Key(*id_), call_coroutine, (fn, *args), kwargs))
        fingerprint = self._fingerprint(id_, payload, args, kwargs)
        return cast("R", await self._drivers.coroutine.run(id_, fingerprint, call_coroutine, (fn, *args), kwargs))

    def operation(self, key: Any, *, payload: Any = None) -> OperationBlock:
        """Guard a block of code, entered by ``with`` or, on any store, by ``async with``.

        Its effect is for ``if op.fresh``. Leaving a fresh block that was never completed completes it with None; an
        exception in it ends the claim by policy, and after ``complete()`` undoes nothing.

        Args:
            key: As for `run`.
            payload: What is fingerprinted; None checks nothing.

        Raises:
            InvalidKeyError: The key is none.
            FingerprintError: The payload has no canonical form.
            IdempotencyError: On entering, any other of idempo's errors, and what the operation's stored error was.

        >>> from idempo import Idempotency
        >>> guard = Idempotency()
        >>> with guard.operation("order-42", payload={"amount": 5}) as op:
        ...     if op.fresh:
        ...         _ = op.complete("placed")
        >>> op.result
        'placed'
        """
        id_ = (self.namespace, key_text(key))
        return OperationBlock(self._drivers, id_, self._fingerprint(id_, payload, (), {}))

    @overload
    def idempotent(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncGuarded[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
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
        fingerprinter: Fingerprinter | None = ...,
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
        fingerprinter: Fingerprinter | None = None,
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
        refuse_unknown(policy, "guard.idempotent()")
        more = checked_observers(observers)
        made = self.policy.evolve(**policy)
        prefixed = self.namespace != DEFAULT_NAMESPACE

        def decorate(target: Any) -> Any:
            name = namespace_of(target, namespace, self.store, own=False, prefixed=prefixed)
            wrapper = wrap(
                target,
                self.store,
                check_namespace(f"{self.namespace}/{name}"),
                made,
                key=key,
                payload=payload,
                ignore=ignore,
                fingerprinter=self._fingerprinter if fingerprinter is None else fingerprinter,
                codec=self._codec if codec is None else codec,
                seal=self._seal,
                observers=(*self._observers, *more),
            )
            self._counts.append(wrapper._terms.teller.counts)
            self._functions[f"{self.namespace}/{name}"] = wrapper._terms
            return wrapper

        return decorate if fn is None else decorate(fn)

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
        return resolve(self._functions.get(found.namespace, self._terms), found, value)

    def _fingerprint(self, id_: Id, payload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        try:
            if payload is _UNSET:
                return spelled_fingerprint(args, kwargs, self._fingerprinter)
            return None if payload is None else self._fingerprinter(payload)
        except FingerprintError as error:
            error.key = Key(*id_)
            raise
