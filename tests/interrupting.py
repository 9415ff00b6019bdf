"""Interrupts at every point of a call at which a signal can be seen, one point after the other.

CPython looks for signals after a call, when a function begins or a generator goes on, and when a loop turns back. A
trace function raises there, as a signal's handler would.
"""

from __future__ import annotations

import dis
import functools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import idempo

PACKAGE = str(Path(idempo.__file__).parent)
OUTSIDE = tuple(str(Path(PACKAGE, name)) for name in ("testing", "stores/memory", "stores/_memory"))


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

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or name.startswith(OUTSIDE):
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode" and frame.f_lasti in seen_at(frame.f_code):
            self.left -= 1
            if self.left < 0 and self.place is None:
                self.place = f"{Path(name).name}:{frame.f_lineno} {frame.f_code.co_name}+{frame.f_lasti}"
                raise self.error
        return self.trace


def interrupted(point: int, call: Callable[[], Any]) -> Interrupted:
    """Make the call, and interrupt it at this point."""
    told = Interrupted(point)
    before = sys.gettrace()
    sys.settrace(told.trace)
    try:
        told.value = call()
    except BaseException as error:  # what it was interrupted by, if all is well
        told.value = error
    finally:
        sys.settrace(before)
    if told.place is not None:
        assert told.value is told.error, f"the interrupt at {told.place} ended as {told.value!r}"
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
