"""Time as seconds: the one unit in which idempo counts."""

from __future__ import annotations

import math
from datetime import timedelta


def seconds(value: float | timedelta, name: str, *, minimum: float = 0.0) -> float:
    """Return a duration as a finite float of seconds.

    Args:
        value: Seconds, or a timedelta. A bool is not a number of seconds.
        name: What the duration is called, for the error's text.
        minimum: The least value that is allowed; zero excludes nothing, a positive one is itself allowed.

    Raises:
        TypeError: The value is neither a number nor a timedelta.
        ValueError: It is not finite, or below the minimum.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    else:
        result = float(value)
    if not math.isfinite(result) or result < minimum:
        raise ValueError(f"{name} must be a finite number of seconds, at least {minimum:g}, not {result:g}")
    return result
