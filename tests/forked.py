"""Forked children for the tests: what one does, and what it says of that."""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

PATIENCE = 20  # seconds; no child lives that long unless it hangs


def said_by_child(work: Callable[[], object]) -> str:
    """Fork, let the child do this, and return what it gave, or how it failed, or where it hung."""
    reading, writing = os.pipe()
    faulthandler.register(signal.SIGUSR1, file=writing)  # by the parent: a child may hang before it does anything
    collector = _coverage_collector()
    gc.disable()  # nothing is called in the child before it has its locks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads run is what is tested
        child = os.fork()
    if not child and collector is not None:
        collector.data_lock = threading.Lock()
    gc.enable()
    if not child:
        try:
            os.close(reading)
            said = str(work())
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)
    faulthandler.unregister(signal.SIGUSR1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGUSR1)
            select.select([pipe], [], [], PATIENCE)
            os.kill(child, signal.SIGKILL)
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def _coverage_collector() -> Any:
    """Return what measures this process, if anything does: it takes a lock at each file's first call."""
    coverage: Any = sys.modules.get("coverage")
    return getattr(coverage and coverage.Coverage.current(), "_collector", None)


def in_child(work: Callable[[], object]) -> None:
    """Do this in a forked child, and fail when it failed there, or never ended."""

    def done() -> str:
        work()
        return "done"

    said = said_by_child(done)
    assert said == "done", said or "the child never ended"
