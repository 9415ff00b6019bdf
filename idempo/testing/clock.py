"""A clock that stands still until a test turns it."""

from __future__ import annotations

import threading

from idempo._time import seconds


class FakeClock:
    """A clock that stands still until it is turned; for every store that takes a ``clock``.

    Calling it gives seconds, so it passes for `time.monotonic` and for `time.time`. Threads may share it.

    Args:
        start: The time that it shows at first, in seconds.

    >>> from idempo.testing import FakeClock
    >>> clock = FakeClock(start=100.0)
    >>> clock.advance(2.5)
    102.5
    >>> clock()
    102.5
    """

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self._now = float(start)
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the time that it shows, in seconds."""
        return self._now

    def advance(self, duration: float) -> float:
        """Turn the clock on by this many seconds, and return the time that it shows then.

        Raises:
            TypeError: The duration is no number.
            ValueError: The duration is negative or not finite: this clock never runs back.
        """
        step = seconds(duration, "duration")
        with self._lock:
            self._now += step
            return self._now

    def __repr__(self) -> str:
        return f"FakeClock({self._now!r})"
