"""The facts of the comparison with peers, found by trying: ``python -m benchmarks.comparison`` prints the table.

Each fact is a question that is put to every library in the same way; the answer is what it was seen to do. A peer that
is not installed is named, and nothing is printed: a table that lacks columns is not the one in the README.
``--installed`` prints it all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.compared import ALL, PAYLOAD, Compared, present, quiet

Question: TypeAlias = Callable[[type[Compared]], str]

SHORT: Final = 0.3  # seconds: a lease
FALSY: Final = (None, 0, False, "", [], {})
TYPED: Final = ((1, 2), {1, 2}, b"\0", Decimal("1.0"), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), {7: "seven"})
SOON: Final = 0.7  # seconds, shorter than a duplicate waits
PATIENCE: Final = 20.0


def falsy_results(library: type[Compared]) -> str:
    """Is a result that is false replayed like any other?"""
    missed = []
    for number, value in enumerate(FALSY):
        runs, compared = [], library()
        call = compared.guard(lambda _, value=value, runs=runs: runs.append(1) or value)
        answers = [call(f"key-{number}", PAYLOAD) for _ in range(2)]
        if len(runs) != 1 or answers[1] != value or type(answers[1]) is not type(value):
            missed.append(repr(value))
    return "replayed" if not missed else f"not {', '.join(missed)}"


def types_of_a_replay(library: type[Compared]) -> str:
    """Of six results that are more than plain JSON, how many come back equal and of the same type?"""
    kept = changed = refused = 0
    for number, value in enumerate(TYPED):
        call = library().guard(lambda _, value=value: value)
        try:
            call(f"key-{number}", PAYLOAD)
            again = call(f"key-{number}", PAYLOAD)
        except Exception:  # noqa: BLE001  # every library has its own
            refused += 1
            continue
        same = again == value and type(again) is type(value)
        kept, changed = kept + same, changed + (not same)
    return ", ".join(f"{n} {what}" for n, what in ((kept, "kept"), (changed, "changed"), (refused, "refused")) if n)


def copies(library: type[Compared]) -> str:
    """Does a caller who changes the result that it got change what others get?"""
    call = library().guard(lambda _: {"lines": [1]})
    for _ in range(2):
        call("key", PAYLOAD)["lines"].append(2)
    return "each its own" if call("key", PAYLOAD) == {"lines": [1]} else "one shared"


def another_payload(library: type[Compared]) -> str:
    """The same key, another payload."""
    call = library().guard(lambda payload: payload)
    call("key", 1)
    try:
        return "gets the first result" if call("key", 2) == 1 else "runs"
    except Exception:  # noqa: BLE001
        return "refused"


def a_duplicate_meanwhile(library: type[Compared]) -> str:
    """A second thread calls while the first is running."""
    runs: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def effect(_: object) -> str:
        runs.append(1)
        begun.set()
        go.wait(PATIENCE)
        return "done"

    call = library().guard(effect)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, "key", PAYLOAD)
        begun.wait(PATIENCE)
        second = pool.submit(call, "key", PAYLOAD)
        waits = not _comes(lambda: second.done() or len(runs) > 1)
        go.set()
        first.result()
        if waits:
            return "waits for its result" if second.result() == "done" and len(runs) == 1 else "?"
        return "refused at once" if second.exception() is not None else "runs too"


def after_a_failure(library: type[Compared]) -> str:
    """The function raised; the next call."""
    runs: list[int] = []

    def effect(_: object) -> str:
        runs.append(1)
        if len(runs) == 1:
            raise ConnectionError
        return "done"

    call = library().guard(effect)
    with suppress(ConnectionError):
        call("key", PAYLOAD)
    try:
        call("key", PAYLOAD)
    except Exception:  # noqa: BLE001
        return "refused"
    return "runs"


def a_failure_with_waiters(library: type[Compared]) -> str:
    """The function fails, always, while four others wait for it: how often is it run?"""
    runs: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def effect(_: object) -> None:
        runs.append(1)
        begun.set()
        go.wait(PATIENCE)
        raise ConnectionError

    call = library().guard(effect)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(call, "key", PAYLOAD)
        begun.wait(PATIENCE)
        others = [pool.submit(call, "key", PAYLOAD) for _ in range(4)]
        none_waits = _comes(lambda: all(other.done() for other in others) or len(runs) == 5)
        go.set()
        errors = {type(future.exception(PATIENCE)) for future in (first, *others)}
    if len(runs) > 1:
        return f"{len(runs)} times"
    if none_waits:
        return "once; none of them waits"
    return "once; they get its error" if errors == {ConnectionError} else "once; they get another error"


def a_result_that_cannot_be_kept(library: type[Compared]) -> str:
    """It returns what no codec takes: what the caller gets, and the next one."""
    runs: list[int] = []

    def effect(_: object) -> object:
        runs.append(1)
        return threading.Lock()

    call = library(SHORT).guard(effect)
    try:
        call("key", PAYLOAD)
        first = "the value"
    except Exception:  # noqa: BLE001
        first = "an error"
    time.sleep(2 * SHORT)  # a claim that was left behind is over now
    with suppress(Exception):
        call("key", PAYLOAD)
    return f"{first}; then {'an error' if len(runs) == 1 and first == 'an error' else _next(runs, call)}"


def _comes(event: Callable[[], bool]) -> bool:
    """Wait for what happens at once if it happens at all."""
    until = time.monotonic() + SOON
    while not event() and time.monotonic() < until:
        time.sleep(0.01)
    return event()


def _next(runs: list[int], call: Any) -> str:
    if len(runs) > 1:
        return "it runs again"
    try:
        call("key", PAYLOAD)
    except Exception:  # noqa: BLE001
        return "an error"
    return "the value"


def after_a_kill(library: type[Compared]) -> str:
    """A process was killed after its claim; a call when the lease is over."""
    compared = library(SHORT)
    call = compared.guard(lambda _: "done")
    compared.abandon("key")
    time.sleep(1.5 * SHORT)
    try:
        return "runs" if call("key", PAYLOAD) == "done" else "?"
    except Exception:  # noqa: BLE001
        return "refused"


def a_late_owner(library: type[Compared]) -> str:
    """The call was taken over while it ran. What is it told, and what does it do to the record?"""
    compared = library()
    call = compared.guard(lambda _: compared.usurp("key") or "late")
    try:
        told = "not told" if call("key", PAYLOAD) == "late" else "?"
    except NotImplementedError:
        return "–"
    except Exception as error:  # noqa: BLE001
        told = "told" + (", with its value" if getattr(error, "result", None) == "late" else "")
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(call, "key", PAYLOAD)  # waits for the one that took over, or is refused, if all is well
        overwrote = _comes(later.done) and later.exception() is None
    return f"{told}; {'overwrites' if overwrote else 'kept out'}"


def a_long_call(library: type[Compared]) -> str:
    """The function takes three leases; a duplicate comes after one and a half."""
    runs: list[int] = []

    def effect(_: object) -> str:
        runs.append(1)
        time.sleep(3 * SHORT)
        return "done"

    call = library(SHORT).guard(effect)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, "key", PAYLOAD)
        time.sleep(1.5 * SHORT)
        second = pool.submit(call, "key", PAYLOAD)
        first.exception(PATIENCE)
        second.exception(PATIENCE)
    return "runs once" if len(runs) == 1 else "runs twice"


def coroutines(library: type[Compared]) -> str:
    """Is a coroutine function guarded?"""
    runs: list[int] = []

    async def effect(_: object) -> str:
        runs.append(1)
        return "done"

    async def main() -> list[str]:
        call = library().guard_async(effect)
        return [await call("key", PAYLOAD), await call("key", PAYLOAD)]

    try:
        return "yes" if asyncio.run(main()) == ["done", "done"] and len(runs) == 1 else "no"
    except Exception:  # noqa: BLE001
        return "no"


def after_a_cancellation(library: type[Compared]) -> str:
    """The task was cancelled in the function; a call right after it."""
    runs: list[int] = []

    async def main() -> str:
        begun = asyncio.Event()

        async def effect(_: object) -> str:
            runs.append(1)
            if len(runs) == 1:
                begun.set()
                await asyncio.Event().wait()
            return "done"

        call = library().guard_async(effect)
        task = asyncio.ensure_future(call("key", PAYLOAD))
        await asyncio.wait({task, asyncio.ensure_future(begun.wait())}, timeout=2, return_when="FIRST_COMPLETED")
        task.cancel()
        await asyncio.wait({task})
        try:
            async with asyncio.timeout(1):
                await call("key", PAYLOAD)
        except TimeoutError:
            return "waits for the lease"
        except Exception:  # noqa: BLE001
            return "refused"
        return "runs"

    return asyncio.run(main()) if coroutines(library) == "yes" else "–"


def needs(library: type[Compared]) -> str:
    """What is installed along with it."""
    names = [line.partition(";")[0] for line in requires(library.package) or [] if "extra ==" not in line]
    return ", ".join(sorted(name.strip().split("<")[0].split(">")[0].split("=")[0] for name in names)) or "nothing"


def size(library: type[Compared]) -> int:
    """How many lines of Python it is; of Powertools, what concerns idempotency."""
    folder = Path(import_module(library.module).__file__ or "").parent
    return sum(len(path.read_bytes().splitlines()) for path in folder.rglob("*.py"))


QUESTIONS: Final[dict[str, Question]] = {
    "a result that is None, 0, False or empty": falsy_results,
    "six results beyond plain JSON": types_of_a_replay,
    "results of several callers": copies,
    "the same key with another payload": another_payload,
    "a duplicate while the first runs": a_duplicate_meanwhile,
    "after the function raised, the next call": after_a_failure,
    "it fails while four others call: it is run": a_failure_with_waiters,
    "a result that cannot be kept": a_result_that_cannot_be_kept,
    "after a `kill -9`, once the lease is over": after_a_kill,
    "an owner that was taken over": a_late_owner,
    "a call of three leases, and a duplicate": a_long_call,
    "coroutine functions": coroutines,
    "after a cancellation, the next call": after_a_cancellation,
    "is installed with it": needs,
}


def ask() -> dict[str, dict[str, str]]:
    """Put every question to every library that is here: answers by question, then by name."""
    here = present()
    libraries = [library for library in ALL if library.name in here]
    with quiet():
        return {
            title: {library.name: question(library) for library in libraries} for title, question in QUESTIONS.items()
        }


def table() -> str:
    """Return the answers as a table of Markdown."""
    here, answers = present(), ask()
    rows = [["", *(f"{name} {number}" for name, number in here.items())], ["---"] * (len(here) + 1)]
    rows += [[title, *by_name.values()] for title, by_name in answers.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and return 1 if peers are missing that it should have."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__.partition("\n")[0])
    parser.add_argument("--installed", action="store_true", help="leave out the peers that are not installed")
    options = parser.parse_args(argv)
    here = present()
    missing = [library.package for library in ALL if library.name not in here]
    for package in missing:
        print(f"{package} is not installed here", file=sys.stderr)
    if missing and not options.installed:
        print(
            "Install them, with pip 25.1 or newer: python -m pip install -e . --group bench\n"
            "Or leave them out: --installed",
            file=sys.stderr,
        )
        return 1
    print(table())
    print(*(f"{library.name}: {size(library):,} lines" for library in ALL if library.name in here), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
