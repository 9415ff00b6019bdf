"""Ctrl-C between two deliveries, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """While it is open, the first SIGINT only asks to stop; a second one raises KeyboardInterrupt at once.

    Elsewhere than in the main thread, where no handler can be set, it changes nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._waiting = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def stop_here(self) -> Iterator[None]:
        """Let the first SIGINT stop what is inside: waiting for input, which may never come.

        Raises:
            KeyboardInterrupt: Also when the SIGINT came before.
        """
        self._waiting = True  # before the look at _asked: a signal in between is then raised, not forgotten
        try:
            if self._asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked or self._waiting:
            self._asked = True
            raise KeyboardInterrupt
        self._asked = True
