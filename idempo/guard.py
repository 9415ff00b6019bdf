"""`Idempotency`: a store, a namespace and a policy, settled once and used for many operations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack, cast, overload

from idempo._checks import checked_observers, refuse_unknown
from idempo.blocks import OperationBlock
from idempo.choosing import Drivers
from idempo.errors import FingerprintError
from idempo.fingerprint import PLAIN, Fingerprinter
from idempo.flights import Id
from idempo.guard_requests import KeyRequests
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
from idempo.records import Key
from idempo.stores.memory import MemoryStore
from idempo.terms import AnyStore
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


class Idempotency(KeyRequests):
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

    _within_another = False  # whose namespace, with a "/", begins this one's

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
        namespace = check_namespace(namespace, allow_slash=self._within_another)
        if store is None:
            store = MemoryStore()
        self.policy: Final = Policy(**policy)
        self._codec = codec
        self._seal = seal
        self._observers = checked_observers(observers)
        terms = make_terms(store, policy=self.policy, codec=codec, seal=seal, observers=self._observers)
        super().__init__(store, namespace, terms)
        self._drivers = Drivers(terms)
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
            shared = getattr(self.store, "shared", True)
            name = namespace_of(target, namespace, own=False, shared=shared, prefixed=prefixed)
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
            self._within[f"{self.namespace}/{name}"] = wrapper._terms
            return wrapper

        return decorate if fn is None else decorate(fn)

    def options(
        self,
        *,
        namespace: str | None = None,
        fingerprinter: Fingerprinter | None = None,
        codec: Codec | None = None,
        observers: Sequence[Observer] = (),
        **policy: Unpack[PolicyOptions],
    ) -> Idempotency:
        """Return a guard like this one, on the same store, with these options changed. To be made once, not per call.

        Its events count in the `stats` of this one too, and this one answers for its keys, as for those of a function
        that it decorated.

        Args:
            namespace: What follows this guard's namespace and a "/"; the very namespace of this one when None.
            fingerprinter: Instead of this guard's.
            codec: Instead of this guard's.
            observers: Called besides this guard's.
            **policy: The options of `Policy`, instead of this guard's.

        Raises:
            TypeError: An option is of the wrong type, or unknown.
            ValueError: An option is out of its range.
        """
        refuse_unknown(policy, "guard.options()")
        within = self.namespace if namespace is None else f"{self.namespace}/{check_namespace(namespace)}"
        made = _Within(
            self.store,
            namespace=within,
            fingerprinter=self._fingerprinter if fingerprinter is None else fingerprinter,
            codec=self._codec if codec is None else codec,
            seal=self._seal,
            observers=(*self._observers, *checked_observers(observers)),
            **self.policy.evolve(**policy).options(),
        )
        self._counts.append(made._terms.teller.counts)
        if namespace is not None:
            self._within[within] = made._terms
        return made

    def _fingerprint(self, id_: Id, payload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        try:
            if payload is _UNSET:
                return spelled_fingerprint(args, kwargs, self._fingerprinter)
            return None if payload is None else self._fingerprinter(payload)
        except FingerprintError as error:
            error.key = Key(*id_)
            raise


class _Within(Idempotency):
    """A guard that another one made."""

    _within_another = True
