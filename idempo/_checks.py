"""What is plugged into a guard, or given to it as an option, is checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

from idempo.policy import PolicyOptions
from idempo.protocols import Codec, Observer, Seal

_METHODS: Final = ("claim", "complete", "release", "renew", "get", "delete")  # an AsyncStore's too


_THE_GUARDS: Final = "it is the guard's"
_ONES_OWN: Final = "the function keeps its own"
_OF_GUARD: Final = "it is one of guard.idempotent()"
_HINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "Idempotency()": {"key": _OF_GUARD, "payload": _OF_GUARD, "ignore": _OF_GUARD},
    "idempotent()": {"seal": "give it to a guard, Idempotency(store, seal=...)"},
    "guard.idempotent()": {"store": _THE_GUARDS, "seal": _THE_GUARDS},
    "guard.options()": {"store": _THE_GUARDS, "seal": _THE_GUARDS},
    "options()": {"store": _ONES_OWN, "namespace": _ONES_OWN, "seal": _ONES_OWN},
}
"""What is no option here, but one of somebody else: whose."""


def refuse_class(value: object, option: str) -> None:
    """Refuse a class where one of its objects is meant: it has the methods, too.

    Raises:
        TypeError: It is a class.
    """
    if isinstance(value, type):
        name = value.__name__
        raise TypeError(f"{option} is the class {name}: make one of it, as in {name}(...)")


def check_store(store: object) -> None:
    """Refuse what is no store.

    Raises:
        TypeError: It is none.
    """
    refuse_class(store, "store")
    if isinstance(store, str | bytes):
        raise TypeError(f"store must be a store, such as SqliteStore(path), not the {type(store).__name__} {store!r}")
    # By hand, for from Python 3.12 on isinstance() of a protocol does not see what a proxy's __getattr__ gives.
    if not all(callable(getattr(store, name, None)) for name in _METHODS):
        raise TypeError(f"store must have the six methods of idempo.Store, and {type(store).__name__} has not")


def checked_codec(codec: object) -> Codec:
    """Return the codec, if it is one.

    Raises:
        TypeError: It is none.
    """
    refuse_class(codec, "codec")
    if not isinstance(codec, Codec):
        raise TypeError(f"codec must have encode and decode, and {type(codec).__name__} has not")
    return codec


def checked_seal(seal: object) -> Seal:
    """Return the seal, if it is one.

    Raises:
        TypeError: It is none.
    """
    refuse_class(seal, "seal")
    if not isinstance(seal, Seal):
        raise TypeError(f"seal must have seal and open, and {type(seal).__name__} has not")
    return seal


def checked_observers(observers: object) -> tuple[Observer, ...]:
    """Return the observers, each of which can be called and ends with its call.

    Raises:
        TypeError: They are not several, or one cannot be called, or is a coroutine function.
    """
    if isinstance(observers, str | bytes) or not isinstance(observers, Iterable):
        example = getattr(observers, "__name__", "observer")
        what = type(observers).__name__
        raise TypeError(f"observers must be a sequence of observers, as in [{example}], not a {what}")
    several: tuple[Any, ...] = tuple(observers)
    for observer in several:
        if not callable(observer):
            raise TypeError(f"an observer must be callable, not {type(observer).__name__}")
        if any(inspect.iscoroutinefunction(one) for one in (observer, type(observer).__call__)):
            raise TypeError(
                "an observer must be a plain function: nobody would await what a coroutine function returns"
            )
    return several


def check_limit(limit: object, name: str) -> None:
    """Refuse what is no number of things, at least one.

    Raises:
        TypeError: It is no int.
        ValueError: It is below 1.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"{name} must be a whole number, not {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"{name} must be at least 1, not {limit}")


def refuse_unknown(given: Iterable[str], of: str) -> None:
    """Refuse an option that is none of a policy's.

    Args:
        given: The options' names.
        of: What they were given to, for the error's text.

    Raises:
        TypeError: There is one.
    """
    known = PolicyOptions.__annotations__
    for name in given:
        if name not in known:
            hint = _HINTS[of].get(name)
            if hint is None:
                from difflib import get_close_matches  # for this error alone

                hint = "".join(f"did you mean {other!r}?" for other in get_close_matches(name, known, 1))
            raise TypeError(f"{of} has no option {name!r}" + (f": {hint}" if hint else ""))
