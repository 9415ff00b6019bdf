"""Putting a guard around one function: what the decorator and `Idempotency.idempotent` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from types import CoroutineType, FunctionType, MethodType
from typing import Any, Final, TypeVar, cast

from idempo import answers
from idempo._checks import check_store, checked_codec, checked_seal, refuse_unknown
from idempo._methods import Questions, equip
from idempo.choosing import Drivers
from idempo.codecs import JsonCodec, return_annotation
from idempo.fingerprint import Fingerprinter
from idempo.keys import CompiledCall, KeySpec, PayloadSpec, check_namespace, compile_call
from idempo.operation import Operation, current, unguarded
from idempo.outcomes import Outcomes
from idempo.policy import Policy
from idempo.protocols import Codec, Observer, Seal
from idempo.records import Key
from idempo.telling import Teller
from idempo.terms import AnyStore, Terms
from idempo.upkeep import is_async

R = TypeVar("R")

_SPECIAL: Final = (
    inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
)


def digests(fingerprinter: object) -> Fingerprinter:
    """Return the fingerprinter, if it is one.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(fingerprinter, Fingerprinter):
        raise TypeError(f"fingerprinter must be an idempo.Fingerprinter, not {type(fingerprinter).__name__}")
    return fingerprinter


def is_coroutine_function(fn: Any) -> bool:
    """Whether calling this gives a coroutine, as far as that can be told before it is called."""
    if isinstance(fn, FunctionType | MethodType):
        return inspect.iscoroutinefunction(fn)
    return any(inspect.iscoroutinefunction(one) for one in (fn, type(fn).__call__))


def is_simple(fn: Any) -> bool:
    """Whether this is a function that is certainly no coroutine function and no generator: most are, and told fast."""
    return type(fn) is FunctionType and not fn.__code__.co_flags & _SPECIAL and not fn.__dict__


def refuse_generators(fn: Any) -> None:
    """Refuse what gives a generator, of either colour.

    Raises:
        TypeError: It does.
    """
    if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in (fn, type(fn).__call__)):
        raise TypeError(f"{_name_of(fn)} is a generator: its end cannot be an outcome; guard what consumes it")


def refuse_own_payload(fn: Any) -> None:
    """Refuse a function that has a parameter ``payload``, which is not already given, where `run` is given one.

    Raises:
        TypeError: It has.
    """
    if isinstance(fn, functools.partial) and "payload" in fn.keywords:
        return
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:  # written in C, and does not tell
        return
    if "payload" in parameters and parameters["payload"].kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL):
        raise TypeError(
            f"{_name_of(fn)}() has a parameter payload of its own: which one is meant? For the function's, give it by "
            "its place or by functools.partial(fn, payload=...)"
        )


async def call_coroutine(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a coroutine function, or what returns an awaitable. What is none is the value: its function has run."""
    value = fn(*args, **kwargs)
    if type(value) is CoroutineType or inspect.isawaitable(value):
        return await value
    return value


def make_terms(
    store: AnyStore,
    *,
    policy: Policy,
    codec: Codec | None,
    seal: Seal | None,
    observers: Sequence[Observer],
    returns: Any = None,
) -> Terms:
    """Settle how calls on this store run.

    Raises:
        TypeError: The store or codec is none, the codec is unsafe in this store, or it cannot keep what is returned.
    """
    check_store(store)
    if codec is None:
        codec = getattr(store, "default_codec", None) or JsonCodec()
    codec = checked_codec(codec)
    if seal is not None:
        seal = checked_seal(seal)
    if seal is None and getattr(store, "shared", True) and not getattr(codec, "safe_in_shared_store", True):
        raise TypeError(f"{type(codec).__name__} is unsafe in a store that others can write: use JsonCodec, or a seal")
    learn = getattr(codec, "for_return_type", None)
    if learn is not None and returns is not None:
        codec = cast("Codec", learn(returns))
    largest = getattr(store, "largest_outcome", None)
    outcomes = Outcomes(codec, seal, max_result=policy.max_result, largest=largest, replay_errors=policy.replay_errors)
    return Terms(store, policy, outcomes, Teller(observers), policy.in_doubt == "rerun")


def run_unguarded(key: Key, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """Run the function as if nothing guarded it, with an operation to ask."""
    reset = current.set(Operation(key))
    try:
        value = fn(*args, **kwargs)
    finally:
        current.reset(reset)
    if isinstance(value, CoroutineType):
        raise answers.coroutine_returned(fn, value)
    return value


async def run_unguarded_async(key: Key, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`run_unguarded` for a coroutine function."""
    reset = current.set(Operation(key))
    try:
        return await fn(*args, **kwargs)
    finally:
        current.reset(reset)


def refuse_other_colour(fn: Any, store: AnyStore) -> None:
    """Refuse a plain function on a store of coroutines.

    Raises:
        TypeError: It is one.
    """
    refuse_generators(fn)
    if is_async(store) and not is_coroutine_function(fn):
        raise TypeError(f"{_name_of(fn)} is a plain function, and its store an AsyncStore: give it a sync store")


def namespace_of(fn: Any, given: str | None, store: AnyStore, *, own: bool, prefixed: bool = False) -> str:
    """Return a function's namespace, or refuse one that other functions or processes could share by accident."""
    refuse_other_colour(fn, store)  # before a namespace is asked for, which would not help
    if given is not None:
        return check_namespace(given)
    shared = getattr(store, "shared", True)
    module, name = getattr(fn, "__module__", "") or "", _name_of(fn)
    if not own and "<lambda>" in name:
        raise TypeError("a lambda on a store that is not its own must be given a namespace")
    if not own and not hasattr(fn, "__qualname__"):  # it would share its class's with all others
        raise TypeError(f"this {name} has no name of its own: where the store is not, it must be given a namespace")
    if shared and "<locals>" in name:
        raise TypeError(
            f"{name} is made inside a function: on a shared store it must be given a namespace of its own, as in"
            " @guard.idempotent(namespace=...); its guard's is not enough"
        )
    if shared and module == "__main__" and not prefixed:
        raise TypeError(f"{name} is of __main__: on a shared store it, or its guard, must be given a namespace")
    return check_namespace(f"{module}.{name}")


def _name_of(fn: object) -> str:
    """Return what a function is called; a partial, or another object that can be called, by its class."""
    return str(getattr(fn, "__qualname__", type(fn).__name__))


def wrap(
    fn: Any,
    store: AnyStore,
    namespace: str,
    policy: Policy,
    *,
    key: KeySpec,
    payload: PayloadSpec,
    ignore: Sequence[str],
    fingerprinter: Fingerprinter,
    codec: Codec | None,
    seal: Seal | None,
    observers: Sequence[Observer],
) -> Any:
    """Return the function guarded: the same signature, and the attributes that a guarded function carries.

    Raises:
        TypeError: The function cannot be guarded, or not so.
    """
    refuse_generators(fn)
    is_coroutine = is_coroutine_function(fn)
    resolve = compile_call(
        fn, key=key, payload=payload, ignore=ignore, fingerprinter=digests(fingerprinter), namespace=namespace
    )
    refuse_other_colour(fn, store)
    if not is_coroutine and inspect.iscoroutinefunction(policy.probe):
        raise TypeError(f"the probe of {_name_of(fn)} is a coroutine function, and the function a plain one")
    terms = make_terms(store, policy=policy, codec=codec, seal=seal, observers=observers, returns=return_annotation(fn))
    wrapper = _async_wrapper(fn, terms, namespace, resolve) if is_coroutine else _wrapper(fn, terms, namespace, resolve)

    def rewrap(**changes: Any) -> Any:
        kept: dict[str, Any] = {
            "key": key,
            "payload": payload,
            "ignore": ignore,
            "fingerprinter": fingerprinter,
            "codec": codec,
            "observers": observers,
        }
        own = {name: changes.pop(name, old) for name, old in kept.items()}
        refuse_unknown(changes, "options()")
        return wrap(fn, store, namespace, policy.evolve(**changes), seal=seal, **own)

    parameters = inspect.signature(fn).parameters
    first = next(iter(parameters), None) if hasattr(fn, "__qualname__") else None
    questions = Questions(
        name=_name_of(fn),
        namespace=namespace,
        terms=terms,
        compiled=resolve,
        is_coroutine=is_coroutine,
        of_class=first == "cls",
        has_force="force" in parameters,
        rewrap=rewrap,
    )
    return equip(wrapper, fn, questions, is_method=first != "cls" and (first == "self" or _in_class(fn)))


def _in_class(fn: object) -> bool:
    """Say whether a function was written in the body of a class, as far as its name tells."""
    around = getattr(fn, "__qualname__", "").rpartition(".")[0]
    return bool(around) and not around.endswith("<locals>")


def _wrapper(fn: Any, terms: Terms, namespace: str, resolve: CompiledCall) -> Any:
    run = Drivers(terms).sync.run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value, fingerprint = resolve(*args, **kwargs)
        if unguarded.depth:
            return run_unguarded(Key(namespace, value), fn, args, kwargs)
        return run((namespace, value), fingerprint, fn, args, kwargs)

    return wrapper


def _async_wrapper(fn: Any, terms: Terms, namespace: str, resolve: CompiledCall) -> Any:
    run = Drivers(terms).coroutine.run

    sure = isinstance(fn, FunctionType) and fn.__code__.co_flags & inspect.CO_COROUTINE
    body = fn if sure else functools.partial(call_coroutine, fn)

    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        value, fingerprint = resolve(*args, **kwargs)
        if unguarded.depth:
            return await run_unguarded_async(Key(namespace, value), body, args, kwargs)
        return await run((namespace, value), fingerprint, body, args, kwargs)

    return wrapper
