"""Running guarded functions as if nothing guarded them, in tests of what they do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from idempo.operation import unguarded as _switch

_lock: Final = threading.Lock()


@contextmanager
def unguarded() -> Iterator[None]:
    """Let guarded functions and operation blocks simply run while the block is open.

    No store is asked and no event told; `idempo.current_operation` gives an `Operation` with attempt and token 0. Keys
    and fingerprints are still computed, so that bad arguments are found. It holds for the whole process, since test
    clients run the code under test in threads; blocks may be nested, and open in several threads at once. A call that
    has begun goes on as it began.

    >>> from idempo import idempotent
    >>> from idempo.testing import unguarded
    >>> @idempotent
    ... def roll(sides: int) -> list[int]:
    ...     return []
    >>> with unguarded():
    ...     assert roll(6) is not roll(6)
    >>> roll.stats().executed
    0
    """
    with _lock:
        _switch.depth += 1
    try:
        yield
    finally:
        with _lock:
            _switch.depth -= 1
