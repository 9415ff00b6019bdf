"""Measure everything in one run: ``python -m benchmarks``. Ends with 1 when a bar was missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.contenders import Peers, peers
from benchmarks.crowds import crowd_figures
from benchmarks.fingerprints import fingerprint_figures
from benchmarks.growth import growth_figures
from benchmarks.imports import import_figures
from benchmarks.measuring import FULL, QUICK, Figure, Size
from benchmarks.memory import memory_figures
from benchmarks.single_calls import async_figures, sync_figures
from benchmarks.sqlite import sqlite_figures

PARTS: Final[dict[str, Callable[[Size, Peers], Iterable[Figure]]]] = {
    "sync": sync_figures,
    "async": async_figures,
    "fingerprint": lambda size, _: fingerprint_figures(size),
    "crowds": lambda size, _: crowd_figures(size),
    "growth": lambda size, _: growth_figures(size),
    "memory": lambda size, _: memory_figures(size),
    "import": lambda size, _: import_figures(size),
    "sqlite": lambda size, _: sqlite_figures(size),
}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"what to measure, of: {', '.join(PARTS)} (default: everything)")
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
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if (options.plot or options.docs) and not find_spec("matplotlib"):
        parser.error("to draw needs matplotlib: python -m pip install --group bench, with pip 25.1 or newer")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, report, and return 1 if a bar was missed."""
    options = _arguments(argv)
    found = peers()
    about = {"machine": report.machine(), "peers": found.versions, "missing": found.missing}
    report.say("  ".join(f"{name} {value}" for name, value in about["machine"].items()))
    report.say("  ".join(f"{name} {value}" for name, value in found.versions.items()))
    for name, reason in found.missing.items():
        report.say(f"{name} is not measured, since it cannot be imported here: {reason}")

    figures: list[Figure] = []
    for part in options.parts or PARTS:
        sys.stderr.write(f"measuring {part} …\n")
        figures.extend(PARTS[part](QUICK if options.quick else FULL, found))
    report.say()
    report.say(report.markdown(figures) if options.markdown else report.table(figures))
    report.say(report.verdict(figures))
    report.say()
    report.say(report.beside(figures))
    if options.json:
        report.write_json(options.json, figures, about)
    if options.plot:
        report.draw(options.plot, figures)
    if options.docs:
        report.write_docs(options.docs, figures, about)
    return 0 if options.quick or all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
