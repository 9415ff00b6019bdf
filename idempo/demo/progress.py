"""Tells on standard error how far the work is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from typing import Final, TextIO

LINE_EVERY: Final = 100
"""How many deliveries are handled between two plain lines."""

_REDRAW_AFTER: Final = 0.1
_ERASE: Final = "\r\x1b[K"


class Progress:
    """Says how many deliveries were handled, and lets other messages through. Any thread may use it.

    Args:
        stream: Where to; a bar is drawn when it is a terminal.
        total: How many bytes the input has, or None where nobody knows.
    """

    def __init__(self, stream: TextIO, total: int | None) -> None:
        self._stream = stream
        self._total = total
        self._bar = stream.isatty()
        self._lock = threading.Lock()
        self._handled = 0
        self._skipped = 0
        self._lines = 0
        self._read = 0
        self._share = 0.0
        self._drawn_at = float("-inf")

    @property
    def shows_share(self) -> bool:
        """Whether it matters how far the input has been read: to be told costs a system call."""
        return self._bar and bool(self._total)

    def read(self, position: int) -> None:
        """Take note of one more line, and of how many bytes of the input have been read with it."""
        with self._lock:
            self._lines += 1
            self._read = position

    def skipped(self) -> None:
        """Take note of a line that is no delivery: nobody will handle it."""
        with self._lock:
            self._skipped += 1

    def handled(self) -> None:
        """Take note of one more delivery that has been handled."""
        with self._lock:
            self._handled += 1
            if not self._bar:
                if self._handled % LINE_EVERY == 0:
                    self._write(f"{self._handled:,} deliveries handled\n")
            elif time.monotonic() - self._drawn_at >= _REDRAW_AFTER:
                self._draw()

    def tell(self, message: str) -> None:
        """Write a message on a line of its own."""
        with self._lock:
            self._write(f"{_ERASE if self._bar else ''}{message}\n")
            if self._bar:
                self._draw()

    def end(self, message: str = "") -> None:
        """Take the bar away, and write a message, if there is one, as the last."""
        with self._lock:
            if self._bar or message:
                self._write((_ERASE if self._bar else "") + (f"{message}\n" if message else ""))
                self._bar = False

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        text = f"{self._handled:,} {'delivery' if self._handled == 1 else 'deliveries'} handled"
        if self._total:
            # Of the bytes that were read, as many as of the lines: what is read ahead is not handled. Lines are not of
            # one length, so the share could fall a little.
            done = self._read * (self._handled + self._skipped) / max(self._lines, 1)
            self._share = min(max(done / self._total, self._share), 1.0)
            width = max(min(shutil.get_terminal_size().columns - len(text) - 12, 40), 0)
            full = int(self._share * width)
            text = f"[{'#' * full}{'.' * (width - full)}] {self._share:4.0%}  {text}"
        self._write(_ERASE + text)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # whoever listened is gone; the work goes on
            self._stream.write(text)
            self._stream.flush()
