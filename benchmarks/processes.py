"""Several processes, with many duplicates of one key in each, on one Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any, Final, Literal
from uuid import uuid4

from benchmarks.children import Child
from benchmarks.measuring import Figure, Size
from benchmarks.servers import Servers

PROCESSES: Final = 8
BODY_SECONDS: Final = 0.5
_HEAD_START: Final = 0.3  # until all have been told; then each begins by the clock that they share
_LATE: Final = 0.2
_COMMANDS: Final = 50


def process_figures(size: Size, servers: Servers) -> Iterator[Figure]:
    """Let processes race for one key: how often it runs, when all have its value, and what the server is asked."""
    url = servers.url("redis")
    if url is not None:
        yield from crowds(url, "tasks", size.duplicates, size.process_rounds)
        yield from crowds(url, "threads", size.duplicate_threads, size.process_rounds)


def crowds(url: str, what: Literal["tasks", "threads"], duplicates: int, rounds: int) -> Iterator[Figure]:
    """Measure that many rounds, each on a new key."""
    import redis

    with redis.Redis.from_url(url) as client, ExitStack() as stack:

        def commands() -> int:
            return int(client.info("stats")["total_commands_processed"])

        prefix = f"benchmarks-{uuid4().hex[:12]}:"
        children = [stack.enter_context(Child("benchmarks.crowd_child", url, prefix, what)) for _ in range(PROCESSES)]
        found = []
        for number in range(rounds + 1):
            order = f"order-{number:010d}"
            for child in children:
                child.tell(warm=f"warm-{number}")
            for child in children:
                child.hear()
            before, at = commands(), time.monotonic() + _HEAD_START
            for child in children:
                child.tell(order=order, duplicates=duplicates, body=BODY_SECONDS, at=at)
            heard = [child.hear() for child in children]
            found.append(_together(heard, order, duplicates, commands() - before))
    found = found[1:]  # the first is not counted, as elsewhere
    title = f"{PROCESSES} processes × {duplicates:,} {what} on one key"
    runs, late = [each["runs"] for each in found], [each["late"] for each in found]
    asked = [each["commands"] for each in found]
    yield Figure(f"{title}: runs", max(runs), None, "the most of all rounds", max(runs), 1, unit="")
    note = f"the worst of {rounds} rounds: {max(late) * 1e3:.0f} ms"
    yield Figure(
        f"{title}: last value after the end", median(late), None, "by one clock", median(late), _LATE, note=note
    )
    bar = _COMMANDS * PROCESSES
    note = "all that Redis counts as processed, those within scripts and the connections' own included"
    yield Figure(f"{title}: commands", max(asked), None, "the most of all rounds", max(asked), bar, unit="", note=note)


def _together(heard: list[dict[str, Any]], order: str, duplicates: int, commands: int) -> Mapping[str, float]:
    values = {(value["order_id"], value["ended"]) for each in heard for value in each["values"]}
    answered = sum(each["answered"] for each in heard)
    if len(values) != 1 or answered != PROCESSES * duplicates:
        raise AssertionError(
            f"{order}: {answered} of {PROCESSES * duplicates} callers have one of {len(values)} values"
        )
    return {
        "runs": sum(each["runs"] for each in heard),
        "late": max(each["last"] for each in heard) - next(iter(values))[1],
        "commands": commands,
    }
