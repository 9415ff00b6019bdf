"""Forked children for the tests: what one does, and what it says of that."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
import warnings
from collections.abc import Callable

PATIENCE = 20  # seconds; no child lives that long unless it hangs


def said_by_child(work: Callable[[], object]) -> str:
    """Fork, let the child do this, and return what it gave, or how it failed, or where it hung."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads run is what is tested
        child = os.fork()
    if not child:  # pragma: no cover - another process
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)  # a child that hangs ends all the same
        try:
            os.close(reading)
            faulthandler.dump_traceback_later(PATIENCE * 3 / 4, file=writing)  # where it hangs is what it says
            said = str(work())
            faulthandler.cancel_dump_traceback_later()
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def in_child(work: Callable[[], object]) -> None:
    """Do this in a forked child, and fail when it failed there, or never ended."""

    def done() -> str:
        work()
        return "done"

    said = said_by_child(done)
    assert said == "done", said or "the child never ended"
