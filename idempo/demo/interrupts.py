"""Ctrl-C between two deliveries, never in the middle of one."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """While it is open, the first SIGINT only asks to stop; a second one raises KeyboardInterrupt at once.

    Elsewhere than in the main thread, where no handler can be set, and where SIGINT is ignored, it changes nothing.

    Args:
        on_first: Called at the first SIGINT, in a thread of its own.

    Attributes:
        asked: Whether a SIGINT has come.
    """

    def __init__(self, on_first: Callable[[], object]) -> None:
        self.asked = False
        self._on_first = on_first
        self._waiting = False
        self._telling = threading.Lock()
        self._previous: Any = None

    def __enter__(self) -> Self:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell sets it for what it starts with "&"
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if kind is None:
            with self._telling:  # what the first one had to tell comes before whatever is told next
                pass

    @contextmanager
    def stop_here(self) -> Iterator[None]:
        """Let the first SIGINT stop what is inside: waiting for input, which may never come.

        One that comes in the very microseconds before the system call that waits is noticed with the next line, or the
        next SIGINT: Python runs no handler in between.

        Raises:
            KeyboardInterrupt: Also when the SIGINT came before.
        """
        self._waiting = True  # before the look at `asked`: a signal in between is then raised, not forgotten
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if not again:
            # Not in this thread, which may hold the lock that the callee needs, or one of those in `threading`.
            self._telling.acquire()
            _thread.start_new_thread(self._tell, ())
        if again or self._waiting:
            raise KeyboardInterrupt

    def _tell(self) -> None:  # pragma: no cover  # a thread that is not started by `threading` is not traced
        try:
            self._on_first()
        finally:
            self._telling.release()
