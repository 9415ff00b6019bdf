"""Measure everything in one run: ``python -m benchmarks``. Ends with 1 when a bar was missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeAlias

from benchmarks import report
from benchmarks.contenders import Peers, peers
from benchmarks.crowds import crowd_figures
from benchmarks.fingerprints import fingerprint_figures
from benchmarks.growth import growth_figures
from benchmarks.http import http_figures
from benchmarks.imports import import_figures
from benchmarks.measuring import FULL, QUICK, Figure, Size
from benchmarks.memory import memory_figures
from benchmarks.messages import message_figures
from benchmarks.near import near_figures
from benchmarks.postgresql import postgresql_figures
from benchmarks.processes import process_figures
from benchmarks.redis import redis_figures
from benchmarks.round_trips import round_trip_figures
from benchmarks.servers import Servers
from benchmarks.single_calls import async_figures, sync_figures
from benchmarks.sqlite import sqlite_figures
from benchmarks.throughput import throughput_figures
from benchmarks.tokens import token_figures

Part: TypeAlias = Callable[[Size, Peers, Servers], Iterable[Figure]]

HERE: Final[dict[str, Part]] = {
    "sync": lambda size, found, _: sync_figures(size, found),
    "async": lambda size, found, _: async_figures(size, found),
    "fingerprint": lambda size, *_: fingerprint_figures(size),
    "crowds": lambda size, *_: crowd_figures(size),
    "growth": lambda size, *_: growth_figures(size),
    "memory": lambda size, *_: memory_figures(size),
    "import": lambda size, *_: import_figures(size),
    "sqlite": lambda size, *_: sqlite_figures(size),
    "near": lambda size, *_: near_figures(size),
    "http": lambda size, *_: http_figures(size),
    "tokens": lambda size, *_: token_figures(size),
    "messages": lambda size, *_: message_figures(size),
}
STORES: Final[dict[str, Part]] = {
    "round-trips": lambda size, _, servers: round_trip_figures(size, servers),
    "redis": redis_figures,
    "postgresql": postgresql_figures,
    "processes": lambda size, _, servers: process_figures(size, servers),
    "throughput": lambda size, _, servers: throughput_figures(size, servers),
}
PARTS: Final[dict[str, Part]] = {**HERE, **STORES}
GROUPS: Final = {"here": HERE, "stores": STORES}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help=f"what to measure, of: {', '.join([*GROUPS, *PARTS])} (default: everything)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and judges no bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture, .svg or .png (needs matplotlib)")
    parser.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=Path("docs"),
        metavar="FOLDER",
        help="write the table and the picture into the docs (needs matplotlib)",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(argv)
    unknown = [part for part in options.parts if part not in PARTS and part not in GROUPS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join([*GROUPS, *PARTS])}")
    asked = {name for part in options.parts or GROUPS for name in GROUPS.get(part, (part,))}
    options.parts = [part for part in PARTS if part in asked]
    if (options.plot or options.docs) and not find_spec("matplotlib"):
        parser.error("to draw needs matplotlib: python -m pip install --group bench, with pip 25.1 or newer")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, report, and return 1 if a bar was missed."""
    options = _arguments(argv)
    found, machine = peers(), report.machine()
    report.say("  ".join(f"{name} {value}" for name, value in machine.items()))
    report.say("  ".join(f"{name} {value}" for name, value in found.versions.items()))
    for name, reason in found.missing.items():
        report.say(f"{name} is not measured, since it cannot be imported here: {reason}")

    by_part: dict[str, list[Figure]] = {}
    with Servers() as servers:
        for part in options.parts:
            sys.stderr.write(f"measuring {part} …\n")
            by_part[part] = list(PARTS[part](QUICK if options.quick else FULL, found, servers))
    report.say("  ".join(f"{name} {value}" for name, value in servers.versions.items()))
    for name, reason in servers.missing.items():
        report.say(f"{name} is not measured, since there is none here: {reason}")
    figures = [figure for part in by_part.values() for figure in part]
    report.say()
    report.say(report.markdown(figures) if options.markdown else report.table(figures))
    report.say(report.verdict(figures))
    report.say()
    report.say(report.beside(figures))
    if options.json:
        about = {"machine": machine, "peers": found.versions, "servers": servers.versions}
        report.write_json(options.json, figures, {**about, "missing": {**found.missing, **servers.missing}})
    if options.plot:
        report.draw(options.plot, figures)
    if options.docs:
        used = {name: value for name, value in found.versions.items() if name == "idemkit"}
        sections = [
            report.Section("figures", _of(HERE, by_part), {**machine, **found.versions}),
            report.Section("figures of the stores", _of(STORES, by_part), {**machine, **used, **servers.versions}),
        ]
        report.write_docs(options.docs, sections)
    return 0 if options.quick or all(figure.met for figure in figures) else 1


def _of(group: Iterable[str], by_part: Mapping[str, list[Figure]]) -> list[Figure]:
    return [figure for part in group for figure in by_part.get(part, ())]


if __name__ == "__main__":
    sys.exit(main())
