"""What one guard or one decorated function has settled before any call is made."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from idempo.outcomes import Outcomes
from idempo.policy import Policy
from idempo.protocols import AsyncStore, Store
from idempo.telling import Teller

AnyStore: TypeAlias = Store | AsyncStore


def shortcut(store: AnyStore, name: str) -> Any:
    """Return a method that spares ``claim``; None where a subclass, or the object itself, has a newer one of that."""
    for names in (getattr(store, "__dict__", {}), *(vars(cls) for cls in type(store).__mro__)):
        if name in names:
            return getattr(store, name)
        if "claim" in names:
            break
    return None


def kept_near(near: Any, id_: tuple[str, str]) -> Any:
    """Return what a short cut to completed records finds; None where it fails: the claim says what there is."""
    try:
        return near(*id_)
    except Exception:  # noqa: BLE001 (a short cut, and no more)
        return None


@attrs.frozen
class Terms:
    """The store, the policy, and how outcomes are written and events told."""

    store: AnyStore
    policy: Policy
    outcomes: Outcomes
    teller: Teller
    take_over: bool
    """Whether a claim may take over a record in doubt without looking at it first."""
