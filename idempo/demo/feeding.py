"""From the input to the workers, one line at a time."""

from __future__ import annotations

from typing import IO

import attrs

from idempo.demo.deliveries import BadLine, read_deliveries
from idempo.demo.interrupts import Interrupts
from idempo.demo.ledger import Expectation
from idempo.demo.progress import Progress
from idempo.demo.workers import Workers


@attrs.define
class Intake:
    """What became of the input.

    Attributes:
        bad_lines: How many lines were no delivery.
        stopped: Whether reading ended before the input did.
        problem: Why it did, unless it was Ctrl-C.
    """

    bad_lines: int = 0
    stopped: bool = False
    problem: str | None = None


def feed(
    stream: IO[bytes],
    source: str,
    expectation: Expectation,
    workers: Workers,
    progress: Progress,
    interrupts: Interrupts,
) -> Intake:
    """Count each delivery, then hand it to the workers, until the input ends, breaks off or Ctrl-C comes.

    Args:
        stream: The deliveries.
        source: What the stream is called.
        expectation: Sees each delivery before the workers do.
        workers: What is slow: reading waits for them.
        progress: Is told of bad lines, and of how far reading has come.
        interrupts: Open.
    """
    intake = Intake()
    lines = read_deliveries(stream)
    while True:
        try:
            with interrupts.stop_here():
                line = next(lines, None)
        except KeyboardInterrupt:
            intake.stopped = True
            return intake
        except OSError as error:
            intake.stopped = True
            intake.problem = f"{source} broke off: {error.strerror or error}"
            return intake
        if line is None:
            return intake
        if progress.shows_share:
            progress.read(stream.tell())
        if isinstance(line, BadLine):
            intake.bad_lines += 1
            progress.skipped()
            progress.tell(f"line {line.line}: {line.reason}")
            continue
        expectation.see(line)
        workers.submit(line)
