"""Everything that guards the same function, behind one shape: idempo, the floor, the bare cache and the peers.

Each peer is used as its own documentation shows it: its memory store, the key taken from one argument, everything else
left at its default. A peer that cannot be imported is left out, and the report says so.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final, TypeAlias

import attrs
from cachetools import TTLCache, cached

import idempo
from benchmarks.floor import TTL, by_hand

Call: TypeAlias = Callable[[str, int, str], Any]
AsyncCall: TypeAlias = Callable[[str, int, str], Awaitable[Any]]

AMOUNT: Final = 1250
CURRENCY: Final = "EUR"


def charge(order_id: str, amount: int, currency: str) -> dict[str, Any]:
    """Stand for the effect; does next to nothing, so that what is measured is the guarding."""
    return {"order_id": order_id, "status": "charged", "amount": amount}


async def charge_async(order_id: str, amount: int, currency: str) -> dict[str, Any]:
    """See `charge`."""
    return {"order_id": order_id, "status": "charged", "amount": amount}


@attrs.frozen
class Contender:
    """Something that guards `charge`. Each call of ``guarded`` or ``guarded_async`` makes a new, empty store.

    Attributes:
        name: What it is called in the report.
        guarded: Guards the plain function.
        guarded_async: Guards the coroutine function; None where it has no such way.
    """

    name: str
    guarded: Callable[[], Call]
    guarded_async: Callable[[], AsyncCall] | None = None


def _idempo() -> Call:
    return idempo.idempotent(key="order_id")(charge)


def _idempo_async() -> AsyncCall:
    return idempo.idempotent(key="order_id")(charge_async)


def _idempo_unchecked() -> Call:
    return idempo.idempotent(key="order_id", payload=None)(charge)


def _bare_cache() -> Call:
    def key(order_id: str, *_: object) -> str:
        return order_id

    cache: TTLCache[str, Any] = TTLCache(100_000, TTL)
    return cached(cache, key=key, lock=threading.Lock())(charge)


def _exactly_once() -> Contender:
    exactly_once = import_module("exactly_once")

    def guard() -> Any:
        return exactly_once.once(exactly_once.Store.memory(), key=lambda order_id, *_: f"charge:{order_id}")

    return Contender("exactly-once", lambda: guard()(charge), lambda: guard()(charge_async))


def _once_kernel() -> Contender:
    once = import_module("once")

    def payload(order_id: str, amount: int, currency: str) -> dict[str, Any]:
        return {"order_id": order_id, "amount": amount, "currency": currency}

    def guarded() -> Call:
        guard = once.Once()

        def call(order_id: str, amount: int, currency: str) -> Any:
            return guard.run(
                f"charge:{order_id}", payload(order_id, amount, currency), lambda: charge(order_id, amount, currency)
            )

        return call

    def guarded_async() -> AsyncCall:
        guard = once.AsyncOnce()

        async def call(order_id: str, amount: int, currency: str) -> Any:
            async def effect() -> Any:
                return await charge_async(order_id, amount, currency)

            return await guard.run(f"charge:{order_id}", payload(order_id, amount, currency), effect)

        return call

    return Contender("once-kernel", guarded, guarded_async)


def _idemkit() -> Contender:
    idemkit = import_module("idemkit")

    def decorator(name: str) -> Any:
        config = idemkit.MethodConfig(key_fields=["order_id"])
        return getattr(idemkit, name)(backend=idemkit.InMemoryBackend(), config=config)

    def guarded(name: str, function: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that all callers share one scope, which is meant here
            return decorator(name)(function)

    return Contender(
        "idemkit",
        lambda: guarded("idempotent_sync", charge),
        lambda: guarded("idempotent", charge_async),
    )


IDEMPO: Final = Contender("idempo", _idempo, _idempo_async)
IDEMPO_UNCHECKED: Final = Contender("idempo, payload=None", _idempo_unchecked)
FLOOR: Final = Contender("the floor", lambda: by_hand(charge))
BARE_CACHE: Final = Contender("cachetools.cached", _bare_cache)

_PEERS: Final = {"exactly-once": _exactly_once, "once-kernel": _once_kernel, "idemkit": _idemkit}


@attrs.frozen
class Peers:
    """The peers that this Python could import.

    Attributes:
        present: By name.
        versions: What was imported, by name.
        missing: Why one is not here, by name.
    """

    present: dict[str, Contender]
    versions: dict[str, str]
    missing: dict[str, str]


def peers() -> Peers:
    """Import the peers, as far as they can be imported."""
    present, versions, missing = {}, {}, {}
    for name, make in _PEERS.items():
        try:
            present[name] = make()
            versions[name] = version(name)
        except Exception as error:  # noqa: BLE001  # whatever keeps a stranger's package from being imported
            missing[name] = f"{type(error).__name__}: {error}"
    return Peers(present, versions, missing)
