"""Interrupts at every point of a call at which a signal can be seen, one point after the other.

CPython looks for signals after a call, when a function begins or a generator goes on, and when a loop turns back. A
trace function raises there, as a signal's handler would.
"""

from __future__ import annotations

import dis
import functools
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import idempo

PACKAGE = str(Path(idempo.__file__).parent)
OUTSIDE = str(Path(PACKAGE, "testing"))


@functools.cache
def seen_at(code: CodeType) -> frozenset[int]:
    """Return the instructions that come right after one at which a signal is seen, under the same handler of errors.

    That after ``fn(*args, **kwargs)`` is none: a signal that is seen there came while the function ran.
    """
    handlers = dis._parse_exception_table(code)  # type: ignore[attr-defined]

    def handler(offset: int) -> int | None:
        return next((entry.target for entry in handlers if entry.start <= offset < entry.end), None)

    found: set[int] = set()
    before = None
    for instruction in dis.get_instructions(code):
        if (
            before is not None
            and before.opname in ("CALL", "CALL_KW", "RESUME")
            and handler(before.offset) == handler(instruction.offset)
        ):
            found.add(instruction.offset)
        if instruction.opname.startswith("JUMP_BACKWARD"):
            found.add(instruction.argval)
        before = instruction
    return frozenset(found)


class Interrupted:
    """What became of a call that was interrupted at one point.

    Attributes:
        place: Where; None when the call had fewer points.
        error: What it was interrupted by.
        value: What it returned, or raised.
    """

    def __init__(self, point: int) -> None:
        self.left = point
        self.place: str | None = None
        self.error: BaseException = SystemExit(3) if point % 2 else KeyboardInterrupt()
        self.value: Any = None
        self.thread = threading.get_ident()

    def reach(self, code: CodeType, offset: int) -> None:
        """Note an instruction that is about to run, and raise where its turn has come."""
        if offset not in seen_at(code) or self.place is not None or threading.get_ident() != self.thread:
            return
        self.left -= 1
        if self.left < 0:
            self.place = f"{Path(code.co_filename).name}: {code.co_qualname}+{offset}"
            raise self.error


def is_ours(code: CodeType) -> bool:
    # What is raised in a finalizer reaches nobody.
    ours = code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(OUTSIDE)
    return ours and code.co_name != "__del__"


if sys.version_info >= (3, 12):
    TOOL = 4

    @functools.cache
    def codes() -> list[CodeType]:
        """Return the code of every function of idempo."""
        found: list[CodeType] = [
            each.__code__ for each in gc.get_objects() if isinstance(each, FunctionType) and is_ours(each.__code__)
        ]
        for code in found:  # those within it are put behind it
            found += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        return found

    @contextmanager
    def watched(told: Interrupted) -> Iterator[None]:
        """Let the instructions of idempo be seen, without disturbing whoever traces lines meanwhile."""
        monitoring = sys.monitoring
        monitoring.use_tool_id(TOOL, "interrupts")
        monitoring.register_callback(TOOL, monitoring.events.INSTRUCTION, told.reach)
        try:
            for code in codes():
                monitoring.set_local_events(TOOL, code, monitoring.events.INSTRUCTION)
            yield
        finally:
            for code in codes():
                monitoring.set_local_events(TOOL, code, 0)
            monitoring.register_callback(TOOL, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(TOOL)

else:

    @contextmanager
    def watched(told: Interrupted) -> Iterator[None]:
        """Let the instructions of idempo be seen."""

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if not is_ours(frame.f_code):
                return None
            if event == "call":
                frame.f_trace_opcodes, frame.f_trace_lines = True, False
            elif event == "opcode":
                told.reach(frame.f_code, frame.f_lasti)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)


def interrupted(point: int, call: Callable[[], Any]) -> Interrupted:
    """Make the call, and interrupt it at this point."""
    told = Interrupted(point)
    gc.disable()  # an interrupt within the finalizer of something of another test would be lost
    try:
        with watched(told):
            try:
                told.value = call()
            except BaseException as error:  # what it was interrupted by, if all is well
                told.value = error
    finally:
        gc.enable()
    if told.place is not None:
        assert told.value is told.error, f"the interrupt at {told.place} ended as {told.value!r}"
    # Whoever has dealt with an interrupt lets go of the frames that it came through, and of what they hold.
    told.error.__traceback__ = told.error.__context__ = None
    return told


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until another thread has come so far."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.0005)


def in_thread(call: Callable[[], Any], answers: list[Any]) -> threading.Thread:
    """Start a call, and note what it returns or raises."""

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
