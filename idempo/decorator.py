"""`@idempotent`: a function that runs once per key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Unpack, overload

from idempo._checks import check_store, checked_observers, refuse_unknown
from idempo.fingerprint import PLAIN, Fingerprinter
from idempo.guarded import AsyncGuarded, Decorator, Guarded, P, R
from idempo.keys import ALL_ARGUMENTS, EVERYTHING, KeySpec, PayloadSpec
from idempo.policy import Policy, PolicyOptions
from idempo.protocols import Codec, Observer
from idempo.stores.memory import MemoryStore
from idempo.terms import AnyStore
from idempo.wrapping import namespace_of, wrap


@overload
def idempotent(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncGuarded[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def idempotent(fn: Callable[P, R], /) -> Guarded[P, R]: ...
@overload
def idempotent(
    fn: None = None,
    /,
    *,
    key: KeySpec = ...,
    payload: PayloadSpec = ...,
    ignore: Sequence[str] = ...,
    store: AnyStore | None = ...,
    namespace: str | None = ...,
    fingerprinter: Fingerprinter = ...,
    codec: Codec | None = ...,
    observers: Sequence[Observer] = ...,
    **policy: Unpack[PolicyOptions],
) -> Decorator: ...
def idempotent(
    fn: Any = None,
    /,
    *,
    key: KeySpec = ALL_ARGUMENTS,
    payload: PayloadSpec = EVERYTHING,
    ignore: Sequence[str] = (),
    store: AnyStore | None = None,
    namespace: str | None = None,
    fingerprinter: Fingerprinter = PLAIN,
    codec: Codec | None = None,
    observers: Sequence[Observer] = (),
    **policy: Unpack[PolicyOptions],
) -> Any:
    """Make a function run once per key; duplicates get the first outcome.

    Args:
        fn: The function, when used without parentheses.
        key: A parameter's name or dotted path, a sequence of them, a callable given the call's arguments, or
            `ALL_ARGUMENTS`.
        payload: What is fingerprinted: every argument by default; names, a callable, or None to check nothing.
        ignore: Parameters that are no part of the payload.
        store: Where records live; a `MemoryStore` of the function's own when None.
        namespace: The function's module and qualified name when None.
        fingerprinter: Digests the payload; one of your own has a secret, or hooks for classes.
        codec: How results are kept; the store's default when None.
        observers: Called with each `Event`.
        **policy: The options of `Policy`.

    Raises:
        TypeError: The function cannot be guarded so, or an option is of the wrong type.
        ValueError: An option is out of its range.

    >>> from idempo import idempotent
    >>> @idempotent(key="order_id")
    ... def charge(order_id: str, amount: int) -> str:
    ...     return f"{order_id} paid {amount}"
    >>> charge("o-1", 5), charge(order_id="o-1", amount=5), charge.stats().executed
    ('o-1 paid 5', 'o-1 paid 5', 1)
    """
    options: dict[str, Any] = {
        "key": key,
        "payload": payload,
        "ignore": ignore,
        "fingerprinter": fingerprinter,
        "codec": codec,
        "observers": checked_observers(observers),
    }
    if store is not None:
        check_store(store)
    refuse_unknown(policy, "idempotent()")
    made = Policy(**policy)

    def decorate(target: Any) -> Any:
        where = MemoryStore() if store is None else store
        name = namespace_of(target, namespace, where, own=store is None)
        return wrap(target, where, name, made, seal=None, **options)

    return decorate if fn is None else decorate(fn)
