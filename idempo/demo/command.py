"""The ``demo`` command: its options, and the run from the first line to the verdict."""

from __future__ import annotations

import argparse
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.resources import files
from typing import IO, Final
from urllib.parse import unquote

import attrs

from idempo import Idempotency, IdempotencyError, MemoryStore
from idempo.demo.feeding import feed
from idempo.demo.handling import Handler
from idempo.demo.interrupts import Interrupts
from idempo.demo.ledger import Expectation, Ledger, Verdict, audit
from idempo.demo.progress import Progress
from idempo.demo.report import Report, as_json, as_text
from idempo.demo.workers import Workers
from idempo.stores.sqlite import SqliteStore

RIGHT: Final = 0
WRONG: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

MAX_WORKERS: Final = 256

_TTL: Final = 30 * 24 * 60 * 60.0
"""How long an event is remembered: longer than any provider goes on delivering it."""

_PATIENCE: Final = 5.0
"""Seconds that a duplicate waits longer than a lease: it then takes over what a dead process left."""

_STOPPING: Final = "stopping: what has begun is brought to its end (Ctrl-C again: at once)"

_DESCRIPTION: Final = """\
Book webhook deliveries to a ledger, each event once, whatever the provider sends twice, at once, or by mistake.

Each line of the input is an event as JSON, with "id", "type" and, where it moves money, "data.object.amount" (in minor
units) and "data.object.currency". What is in "delivery" belongs to the delivery, not to the event.
"""

_EPILOG: Final = """\
Exit codes: 0 the ledger is right; 1 it is wrong; 2 the command line, the input, the store or the output is unusable;
130 Ctrl-C.
"""


class _UnusableError(Exception):
    """Says why the input, the store or the output cannot be used."""


@attrs.frozen
class StoreUrl:
    """Where records and ledger are.

    Attributes:
        text: The URL as it was given.
        path: The SQLite file; "" for the memory.
    """

    text: str
    path: str


def parse_store(text: str) -> StoreUrl:
    """Return what a store's URL means.

    Raises:
        argparse.ArgumentTypeError: It is none that the demo knows.
    """
    if text == "memory://":
        return StoreUrl(text, "")
    prefix = "sqlite:///"
    path = unquote(text.removeprefix(prefix))
    if not text.startswith(prefix) or path in ("", ":memory:") or any(char in text for char in "?#") or "\0" in path:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither memory:// nor sqlite:///FILE (sqlite:////FILE with an absolute path)"
        )
    return StoreUrl(text, path)


def parse_workers(text: str) -> int:
    """Return a number of threads.

    Raises:
        argparse.ArgumentTypeError: It is none, or too small or large.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MAX_WORKERS}")
    return int(text)


def parse_seconds(least: float, most: float) -> Callable[[str], float]:
    """Return what reads a number of seconds within the bounds, for argparse."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:  # not a number is not within any bounds either
            raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {least:g} to {most:g}")
        return value

    return parse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``python -m idempo``."""
    parser = commands.add_parser(
        "demo",
        help="book a thousand webhook deliveries, each event once",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="deliveries as JSON lines; - is standard input (default: the sample)"
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        type=parse_store,
        default="memory://",
        help="where records and ledger are: memory:// (default), or sqlite:///FILE, which survives the process",
    )
    parser.add_argument(
        "--workers", metavar="N", type=parse_workers, default=8, help=f"threads, 1 to {MAX_WORKERS} (default: 8)"
    )
    parser.add_argument(
        "--lease",
        metavar="SECONDS",
        type=parse_seconds(0.05, 3600.0),
        default=15.0,
        help="how long a claim stands after its process has died (default: 15)",
    )
    parser.add_argument(
        "--work",
        metavar="SECONDS",
        type=parse_seconds(0.0, 60.0),
        default=0.002,
        help="how long the handler pretends to work on an event (default: 0.002)",
    )
    parser.add_argument("--json", action="store_true", help="report as one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    try:
        if sys.stdout is None:
            raise _UnusableError("standard output is closed")
        with ExitStack() as stack:
            stream, source = stack.enter_context(_input(options.file))
            ledger, store = _open(options.store, stack)
            report, code = _work_through(options, stream, source, ledger, store)
        _print(as_json(report) if options.json else as_text(report), report.verdict)
    except _UnusableError as problem:
        print(f"idempo demo: {problem}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # whoever read the report has seen enough of it, and needs no word more
        return USAGE
    return code


def _print(report: str, verdict: Verdict) -> None:
    """Write the report to standard output, and see it arrive."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(report.encode(encoding, "backslashreplace").decode(encoding))  # a file's name can hold anything
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        ledger = "right" if verdict.right else "WRONG"
        raise _UnusableError(
            f"the report could not be written: {error.strerror or error}; the ledger is {ledger}"
        ) from None


def _work_through(
    options: argparse.Namespace, stream: IO[bytes], source: str, ledger: Ledger, store: MemoryStore | SqliteStore
) -> tuple[Report, int]:
    """Handle everything, and return the report and the exit code."""
    started = time.monotonic()
    guard = Idempotency(store, namespace="demo", ttl=_TTL, lease=options.lease, wait=options.lease + _PATIENCE)
    progress = Progress(sys.stderr, _size(stream))
    handler = Handler(guard, ledger, work=options.work, tell=progress.tell, done=progress.handled)
    with closing(Expectation()) as expectation:
        try:
            workers = Workers(handler.handle, options.workers, handler.look_up)

            def stop() -> None:  # pragma: no cover  # in a thread that is not started by `threading`: not traced
                workers.stop()
                progress.tell(_STOPPING)

            with Interrupts(stop) as interrupts:
                intake = feed(stream, source, expectation, workers, progress, interrupts)
                workers.finish()
        except KeyboardInterrupt:
            # The second one. The workers hold the store and the ledger, so nothing can be closed: like a kill.
            progress.end("stopped at once")
            os._exit(INTERRUPTED)
        for delivery in workers.dropped:
            expectation.take_back(delivery)
        verdict = audit(ledger, expectation)
    report = Report(
        source=source,
        store=options.store.text,
        workers=options.workers,
        seconds=time.monotonic() - started,
        stopped=intake.stopped or bool(workers.dropped),
        bad_lines=intake.bad_lines,
        tally=handler.tally,
        stats=handler.stats(),
        verdict=verdict,
    )
    progress.end()
    if intake.bad_lines and not handler.tally.deliveries and not report.stopped:
        intake.problem = f"no line of {source} is a delivery: --help says what one is"
    if intake.problem:
        progress.tell(f"idempo demo: {intake.problem}")
        return report, USAGE
    if interrupts.asked:
        return report, INTERRUPTED
    return report, RIGHT if verdict.right else WRONG


@contextmanager
def _input(name: str | None) -> Iterator[tuple[IO[bytes], str]]:
    """Give the stream of deliveries, and what it is called."""
    if name == "-":
        if sys.stdin is None:
            raise _UnusableError("standard input is closed")
        yield sys.stdin.buffer, "standard input"
        return
    if name is None:
        with files("idempo.demo").joinpath("deliveries.jsonl").open("rb") as stream:
            yield stream, "the sample"
        return
    try:
        stream = open(name, "rb")  # noqa: SIM115  # only an error of the opening is meant; closed below
    except OSError as error:
        raise _UnusableError(f"cannot read {name}: {error.strerror or error}") from None
    with stream:
        yield stream, name


def _size(stream: IO[bytes]) -> int | None:
    """Return the size of a regular file, or None for a stream whose end nobody knows."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _open(url: StoreUrl, stack: ExitStack) -> tuple[Ledger, MemoryStore | SqliteStore]:
    """Open ledger and store, both in one file, so that one cannot be lost without the other."""
    try:
        store: MemoryStore | SqliteStore = MemoryStore()
        if url.path:
            store = stack.enter_context(SqliteStore(url.path))
            # First: it puts a new file into WAL mode, with patience for another process that is about to do the same.
            store.create_table()
        ledger = stack.enter_context(closing(Ledger(url.path)))
    except (sqlite3.Error, IdempotencyError) as error:
        raise _UnusableError(f"cannot use {url.text}: {error}") from None
    return ledger, store
