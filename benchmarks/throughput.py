"""How many calls a second two processes make, each on keys of its own, on every store that they can share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from benchmarks.children import Child
from benchmarks.measuring import Figure, Size
from benchmarks.servers import Servers
from benchmarks.stored import CACHED, NETWORKED, SQLITE, SYNC_NATS, Stored

PROCESSES: Final = 2
STORES: Final = {stored.name: stored for stored in (SQLITE, *NETWORKED, CACHED)}
TASKS: Final = 8
"""Calls at once in each process, where they are coroutines; plain calls follow each other."""
_HEAD_START: Final = 0.05
_SHARES: Final = (("fresh share", 1), ("replay share", 1))


def throughput_figures(size: Size, servers: Servers) -> Iterator[Figure]:
    """Measure fresh calls and replays, and the share of the time that is spent in idempo itself."""
    with TemporaryDirectory() as folder:
        label = f"benchmarks-{uuid4().hex[:12]}"
        places: dict[str, tuple[str, str]] = {}
        for stored in STORES.values():
            url = servers.url(stored.server) if stored.server else ""
            if url is not None:
                places[stored.name] = (url, label if stored.server else str(Path(folder, "records.db")))
        found: dict[str, dict[str, list[float]]] = {
            name: {"fresh": [], "replay": [], "fresh share": [], "replay share": []} for name in places
        }
        with ExitStack() as stack:
            children = [
                stack.enter_context(Child("benchmarks.throughput_child", number, places)) for number in range(PROCESSES)
            ]
            for name in places:
                for child in children:  # one after another: the first makes what the records are in
                    child.tell(open=name)
                    child.hear()
            for what, rounds in (("fresh", size.process_rounds), ("replay", size.process_rounds), *_SHARES):
                for _ in range(rounds):
                    for name in places:
                        found[name][what].append(_measured(children, name, what, size.seconds))
    for name, values in found.items():
        yield _figure(STORES[name], {what: median(each) for what, each in values.items()})


def _measured(children: list[Child], name: str, what: str, seconds: float) -> float:
    kind, _, share = what.partition(" ")
    at = time.monotonic() + _HEAD_START
    for child in children:
        child.tell(store=name, kind=kind, share=bool(share), seconds=seconds, at=at)
    heard: list[float] = [child.hear() for child in children]
    return sum(heard) / (len(heard) if share else 1)


def _figure(stored: Stored, found: dict[str, Any]) -> Figure:
    how = f"{TASKS} tasks each" if stored.is_async else "plain calls"
    note = f"of the time in idempo itself: fresh {found['fresh share']:.0%}, replay {found['replay share']:.0%}; {how}"
    if stored is SQLITE:
        note += "; SQLite itself, which has no frame of its own, is in that share"
    if stored is SYNC_NATS:
        note += "; waiting for the thread in which nats-py works is in that share"
    fresh, replay = found["fresh"], found["replay"]
    shown = replay if stored is CACHED else fresh
    kind = "replays" if stored is CACHED else "fresh calls"
    return Figure(
        f"{kind} of {PROCESSES} processes, {stored.name}",
        shown,
        None,
        "reported",
        shown,
        None,
        unit="calls/s",
        beside={"fresh": fresh} if stored is CACHED else {"replays": replay},
        note=note,
    )
