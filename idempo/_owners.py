"""Owners: who made a claim."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Final

from idempo import _fork


class _Owners:
    """Owners: a random prefix of this process, and a count."""

    def __init__(self) -> None:
        self.renew()
        _fork.call_in_child(self.renew)

    def renew(self) -> None:
        prefix = os.urandom(12).hex()  # what `secrets` gives, without its imports
        count = itertools.count().__next__
        self.new: Callable[[], str] = lambda: f"{prefix}.{count()}"


owners: Final = _Owners()


def new_owner() -> str:
    """Return the random token of one claim: 96 random bits of this process, then a count."""
    return owners.new()
