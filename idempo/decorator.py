"""`@idempotent`: a function that runs once per key."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, Unpack, cast, overload

from idempo.driver_sync import SyncDriver
from idempo.fingerprint import Fingerprinter
from idempo.guard import Idempotency, _simply, forget, is_async, make_terms
from idempo.keys import ALL_ARGUMENTS, EVERYTHING, KeySpec, PayloadSpec, check_namespace, compile_call
from idempo.operation import unguarded
from idempo.policy import Policy, PolicyOptions
from idempo.protocols import Codec, Observer, Seal, Store
from idempo.records import Key
from idempo.stores.memory import MemoryStore
from idempo.telling import total
from idempo.terms import AnyStore

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """What `idempotent` returns when it is given options."""

    def __call__(self, fn: F, /) -> F: ...


@overload
def idempotent(fn: F, /) -> F: ...
@overload
def idempotent(
    *,
    key: KeySpec = ...,
    payload: PayloadSpec = ...,
    ignore: Sequence[str] = ...,
    store: AnyStore | None = ...,
    namespace: str | None = ...,
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
    options: dict[str, Any] = dict(key=key, payload=payload, ignore=ignore, codec=codec, observers=tuple(observers))
    made = Policy(**policy)

    def decorate(target: Any) -> Any:
        where = MemoryStore() if store is None else store
        name = namespace_of(target, namespace, own=store is None, shared=getattr(where, "shared", True))
        return _wrap(target, where, name, made, seal=None, **options)

    return decorate if fn is None else decorate(fn)


def namespace_of(fn: Any, given: str | None, *, own: bool, shared: bool, prefixed: bool = False) -> str:
    """Return a function's namespace, or refuse one that other functions or processes could share by accident."""
    if given is not None:
        return check_namespace(given)
    module, name = getattr(fn, "__module__", "") or "", getattr(fn, "__qualname__", type(fn).__name__)
    if not own and "<lambda>" in name:
        raise TypeError("a lambda on a store that is not its own must be given a namespace")
    if shared and "<locals>" in name:
        raise TypeError(f"{name} is made inside a function: on a shared store it must be given a namespace")
    if shared and module == "__main__" and not prefixed:
        raise TypeError(f"{name} is of __main__: on a shared store it, or its guard, must be given a namespace")
    return f"{module}.{name}"


def _wrap(
    fn: Any,
    store: AnyStore,
    namespace: str,
    policy: Policy,
    *,
    key: KeySpec,
    payload: PayloadSpec,
    ignore: Sequence[str],
    codec: Codec | None,
    seal: Seal | None,
    observers: Sequence[Observer],
) -> Any:
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(f"{fn.__qualname__} is a generator: its end cannot be an outcome; guard what consumes it")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{fn.__qualname__} is a coroutine function; only plain functions can be guarded yet")
    resolve = compile_call(fn, key=key, payload=payload, ignore=ignore, fingerprinter=Fingerprinter())
    if is_async(store):
        raise TypeError(f"{fn.__qualname__} is a plain function, and its store an AsyncStore: give it a sync store")
    if policy.probe is not None and inspect.iscoroutinefunction(policy.probe):
        raise TypeError(f"the probe of {fn.__qualname__} is a coroutine function, and the function a plain one")
    terms = make_terms(
        store, policy=policy, codec=codec, seal=seal, observers=observers, returns=_returns(fn)
    )
    run = SyncDriver(terms).run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value, fingerprint = resolve(*args, **kwargs)
        if unguarded.depth:
            return _simply(Key(namespace, value), fn, args, kwargs)
        return run((namespace, value), fingerprint, fn, args, kwargs)

    def key_for(*args: Any, **kwargs: Any) -> Key:
        return Key(namespace, resolve(*args, **kwargs)[0])

    def options(**changes: Any) -> Any:
        own = {name: changes.pop(name) for name in ("key", "payload", "ignore", "codec", "observers") if name in changes}
        kept = dict(key=key, payload=payload, ignore=ignore, codec=codec, observers=observers)
        return _wrap(fn, store, namespace, policy.evolve(**changes), seal=seal, **{**kept, **own})

    sync_store = cast("Store", store)
    attributes = cast("Any", wrapper)
    attributes.key_for = key_for
    attributes.lookup = lambda *args, **kwargs: sync_store.get(key_for(*args, **kwargs))
    attributes.forget = lambda *args, force=False, **kwargs: forget(sync_store, key_for(*args, **kwargs), force=force)
    attributes.options = options
    attributes.stats = lambda: total([terms.teller.counts])
    attributes._counts = terms.teller.counts
    return wrapper


def _returns(fn: Any) -> Any:
    return None if getattr(fn, "__annotations__", {}).get("return") is None else _hint(fn)


def _hint(fn: Any) -> Any:
    import typing

    try:
        return typing.get_type_hints(fn, include_extras=True).get("return")
    except NameError:  # names a type that is not there at run time: nothing can be learnt from it
        return None
