"""How much of the time is idempo's own: the Python stack is looked at every millisecond, by a timer of the system."""

from __future__ import annotations

import signal
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import attrs

import idempo

_INTERVAL: Final = 0.001
_IDEMPO: Final = str(Path(idempo.__file__).parent)
_STANDARD: Final = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_PACKAGES: Final = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_OF_IDEMPO: Final = ("attr", "attrs", "cachetools")
"""What belongs to whoever calls it: idempo's own dependencies."""


@attrs.define
class Samples:
    """What was seen.

    Attributes:
        all: How often the stack was looked at.
        ours: How often the innermost frame outside of the standard library was idempo's.
    """

    all: int = 0
    ours: int = 0

    @property
    def share(self) -> float:
        """The share of the time that is idempo's own."""
        return self.ours / self.all if self.all else 0.0


def is_ours(frame: FrameType | None) -> bool:
    """Say whether a stack's innermost frame outside of the standard library is idempo's."""
    while frame is not None:
        place = frame.f_code.co_filename
        if place.startswith(_IDEMPO):
            return True
        if place.startswith(_PACKAGES):
            package = place[len(next(root for root in _PACKAGES if place.startswith(root))) :].split("/")[1]
            if package not in _OF_IDEMPO:
                return False
        elif not place.startswith(("<", *_STANDARD)):
            return False
        frame = frame.f_back
    return False


@contextmanager
def sampling() -> Iterator[Samples]:
    """Look at the main thread's stack while the block runs; a system call that is waited in belongs to its caller."""
    samples = Samples()

    def look(_number: int, frame: FrameType | None) -> None:
        samples.all += 1
        samples.ours += is_ours(frame)

    former = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _INTERVAL, _INTERVAL)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
