"""Forked children for the tests: what one does, and what it says of that."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PATIENCE = 20  # seconds; no child lives that long unless it hangs


def said_by_child(work: Callable[[], object]) -> str:
    """Fork, let the child do this, and return what it gave, or how it failed, or where it hung."""
    reading, writing = os.pipe()
    faulthandler.register(signal.SIGUSR1, file=writing)  # by the parent: a child may hang before it does anything
    _let_coverage_fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads run is what is tested
        child = os.fork()
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


class _Patient:
    """A lock for coverage that a forked child has anew: it may have been taken as the child came to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()

    def acquire(self) -> None:
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]
        self._lock.acquire(timeout=1)

    def release(self) -> None:
        with suppress(RuntimeError):  # it was not to be had
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _let_coverage_fork() -> None:
    """Change the lock that coverage takes while it notes what is called: it has no other for a forked child."""
    coverage: Any = sys.modules.get("coverage")
    collector: Any = getattr(coverage and coverage.Coverage.current(), "_collector", None)
    if collector is not None and not isinstance(collector.data_lock, _Patient):
        collector.data_lock = _Patient()


def in_child(work: Callable[[], object]) -> None:
    """Do this in a forked child, and fail when it failed there, or never ended."""

    def done() -> str:
        work()
        return "done"

    said = said_by_child(done)
    assert said == "done", said or "the child never ended"
