"""Time as seconds: the one unit in which idempo counts."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

LONGEST: Final = 100 * 365.25 * 24 * 60 * 60
"""Seconds in a hundred years. No duration is longer: threads cannot wait for three hundred."""


def seconds(value: float | timedelta, name: str, *, minimum: float = 0.0) -> float:
    """Return a duration as a float of seconds, at most a hundred years of them.

    Args:
        value: Seconds, or a timedelta. A bool is not a number of seconds.
        name: What the duration is called, for the error's text.
        minimum: The least value that is allowed; zero excludes nothing, a positive one is itself allowed.

    Raises:
        TypeError: The value is neither a number nor a timedelta.
        ValueError: It is not finite, below the minimum, or longer than `LONGEST`.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number of seconds, at least {minimum:g}, not {value:g}")
    if value > LONGEST:
        raise ValueError(f"{name} must be at most 100 years, which are {LONGEST:.0f} seconds")
    if value < minimum:  # the value itself may have too many digits to be shown
        shown = f", not {value:g}" if value > -LONGEST else ""
        raise ValueError(f"{name} must be a finite number of seconds, at least {minimum:g}{shown}")
    return float(value)
