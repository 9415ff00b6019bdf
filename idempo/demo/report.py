"""What the run says at its end: a table for people, one JSON object for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from idempo.demo.handling import Tally
from idempo.demo.ledger import Verdict
from idempo.records import Stats


@attrs.frozen
class Report:
    """Everything there is to say about a run.

    Attributes:
        source: What was read.
        store: Where the records are.
        workers: How many threads.
        seconds: How long it took.
        stopped: Whether it ended before the input did.
        bad_lines: How many lines were no delivery.
        tally: How the deliveries ended.
        stats: The guard's own count.
        verdict: The ledger held against the count.
    """

    source: str
    store: str
    workers: int
    seconds: float
    stopped: bool
    bad_lines: int
    tally: Tally
    stats: Stats
    verdict: Verdict


def as_json(report: Report) -> str:
    """Return the report as one JSON object, on one line."""
    data: dict[str, Any] = attrs.asdict(report)
    data["waited"] = data["stats"]["waited"]
    data["taken_over"] = data.pop("stats")["taken_over"]
    data["seconds"] = round(report.seconds, 3)
    data["ledger"] = data.pop("verdict") | {"right": report.verdict.right}
    return json.dumps(data)


def as_text(report: Report) -> str:
    """Return the report as a table."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    tally, verdict = report.tally, report.verdict
    yield (
        f"{_number(tally.deliveries, 'delivery', 'deliveries')} of {_number(verdict.events, 'event', 'events')} "
        f"from {report.source}"
        f"{', stopped before the end' if report.stopped else ''}"
    )
    yield f"{report.store}, {_number(report.workers, 'thread', 'threads')}, {report.seconds:.1f} s"
    yield ""
    yield from _columns(_counts(report), left=(0, 2))
    yield ""
    accounts = [
        (currency, f"{account.booked:,}", f"{account.expected:,}", "right" if account.right else "WRONG")
        for currency, account in verdict.accounts.items()
    ]
    if accounts:
        yield from _columns([("ledger", "booked", "expected", "in minor units"), *accounts], left=(0, 3))
        yield ""
    if verdict.right and not accounts:
        yield "The ledger is right: nothing was to be booked."
    elif verdict.right:
        entries = _number(verdict.entries, "entry", "entries")
        yield f"The ledger is right: {entries}, one for each event that moves money."
    else:
        yield f"The ledger is WRONG: {', '.join(_faults(verdict))}."


def _counts(report: Report) -> Iterator[tuple[str, str, str]]:
    tally = report.tally
    yield "ran", f"{tally.ran:,}", "the handler ran, and its result was stored"
    yield "replayed", f"{tally.replayed:,}", "a duplicate got the first outcome"
    yield "waited", f"{report.stats.waited:,}", "times that a delivery waited for another of its event"
    yield "refused", f"{tally.refused:,}", "an id was used again for another payload"
    yield "failed", f"{tally.failed:,}", "the handler raised"
    yield "bad lines", f"{report.bad_lines:,}", "no delivery"
    rare = (
        ("busy", tally.busy, "another process held the id for too long"),
        ("retried", tally.retried, "the ledger gave no answer, and the delivery was handed in again"),
        ("taken over", report.stats.taken_over, "an earlier process had died with the id in its hands"),
        ("found booked", tally.found_booked, "the handler ran again, and the ledger had the booking already"),
        ("kept", report.verdict.kept, "an earlier run had booked the id with another payload"),
    )
    for name, count, meaning in rare:
        if count:
            yield name, f"{count:,}", meaning


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _faults(verdict: Verdict) -> Iterator[str]:
    for count, what in (
        (verdict.missing, "not booked"),
        (verdict.doubled, "booked more than once"),
        (verdict.differing, "booked with another payload than the first"),
        (verdict.stray, "booked for no event of the input"),
    ):
        if count:
            yield f"{count:,} {what}"


def _columns(rows: Iterable[tuple[str, ...]], left: tuple[int, ...]) -> Iterator[str]:
    """Yield the rows with their columns aligned: those in ``left`` to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {'   '.join(cells)}".rstrip()
