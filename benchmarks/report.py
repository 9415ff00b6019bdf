"""What the run found: a table on the terminal, a JSON file, and the picture for the docs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from benchmarks.measuring import Figure

_OURS = "#2a6f97"
_OTHERS = "#b8bec4"
_MISSED = "#c1121f"
_BEGIN = "<!-- figures: written by `python -m benchmarks --docs` -->"
_END = "<!-- end of the figures -->"


def amount(value: float, unit: str) -> str:
    """Return a figure as people read it."""
    if unit == "B":
        return f"{value:.0f} B"
    for scale, name in ((1e-6, "µs"), (1e-3, "ms")):
        if value < scale * 1000:
            return f"{value / scale:.3g} {name}"
    return f"{value:.3g} s"


def row(figure: Figure) -> tuple[str, ...]:
    """Return the figure as the cells of the table."""
    sign = "≤" if figure.bound == "at most" else "≥"
    absolute = figure.base is None
    return (
        figure.name,
        amount(figure.ours, figure.unit),
        figure.base_name if figure.base is None else f"{figure.base_name}: {amount(figure.base, figure.unit)}",
        "" if absolute else f"{figure.ratio:.2f} ×",
        "{:.2f}–{:.2f}".format(*figure.middle_half) if figure.middle_half else "",
        f"{sign} {amount(figure.bar, figure.unit) if absolute else f'{figure.bar:g} ×'}",
        "yes" if figure.met else "MISSED",
    )


HEAD = ("figure", "idempo", "beside", "ratio", "half of the turns", "bar", "met")


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table of plain text."""
    rows = [HEAD, *map(row, figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip() for each in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def markdown(figures: Sequence[Figure]) -> str:
    """Return the figures as the table of the docs."""
    rows = [HEAD, ("---",) * len(HEAD), *map(row, figures)]
    return "\n".join(f"| {' | '.join(each)} |" for each in rows)


def verdict(figures: Sequence[Figure]) -> str:
    """Return how many figures met their bars."""
    return f"{sum(figure.met for figure in figures)} of {len(figures)} bars met"


def beside(figures: Iterable[Figure]) -> str:
    """Return what was measured beside the figures, and what is to be said of them."""
    lines = []
    for figure in figures:
        others = ", ".join(f"{name} {amount(value, figure.unit)}" for name, value in figure.beside.items())
        if others or figure.note:
            lines.append(f"{figure.name}: {'; '.join(filter(None, (others, figure.note)))}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "attrs": version("attrs"),
        "cachetools": version("cachetools"),
    }


def write_json(path: Path, figures: Sequence[Figure], about: Mapping[str, Any]) -> None:
    """Write everything that was found."""
    found = [{**attrs.asdict(figure), "met": figure.met} for figure in figures]
    path.write_text(json.dumps({**about, "figures": found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_docs(folder: Path, figures: Sequence[Figure], about: Mapping[str, Any]) -> None:
    """Draw the picture of the docs, and write what was found into their page, between its two marks.

    Raises:
        ValueError: The page has no such marks.
        ImportError: matplotlib is not installed.
    """
    page, picture = folder / "benchmarks.md", folder / "_static" / "benchmarks.svg"
    text = page.read_text(encoding="utf-8")
    if not text.count(_BEGIN) == text.count(_END) == 1:
        raise ValueError(f"{page} must hold the lines {_BEGIN} and {_END} once, around what is to be written")
    before, rest = text.split(_BEGIN)
    machine = ", ".join(f"{name} {value}" for name, value in {**about["machine"], **about["peers"]}.items())
    found = [f"{verdict(figures)}. Measured on: {machine}.", markdown(figures)]
    found += [f"- {line}" for line in beside(figures).splitlines()]
    between = "\n".join([found[0], "", found[1], "", *found[2:]])
    page.write_text(f"{before}{_BEGIN}\n\n{between}\n\n{_END}{rest.split(_END)[1]}", encoding="utf-8")
    picture.parent.mkdir(exist_ok=True)
    draw(picture, figures)


def read_json(path: Path) -> list[Figure]:
    """Return the figures of an earlier run."""
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    figures = []
    for each in found:
        half = each["middle_half"]
        members = {**each, "middle_half": half and tuple(half)}
        del members["met"]
        figures.append(Figure(**members))
    return figures


def draw(path: Path, figures: Sequence[Figure]) -> None:
    """Draw the picture: what a call costs beside the peers, and how each figure stands to its bar.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # only whoever draws needs it

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "idempo", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    calls = [figure for figure in figures if figure.beside]
    picture, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", width_ratios=(1, 1))
    _draw_calls(axes[0], calls)
    _draw_bars(axes[1], figures)
    picture.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(picture)


def _draw_calls(axes: Any, figures: Sequence[Figure]) -> None:
    position, ticks, labels = 0.0, [], []
    for figure in figures:
        values = {"idempo": figure.ours, figure.base_name: figure.base or 0.0, **figure.beside}
        for name, value in sorted(values.items(), key=lambda item: item[1]):
            ours = name.startswith("idempo")
            axes.barh(position, value * 1e6, color=_OURS if ours else _OTHERS)
            axes.text(value * 1e6 * 1.1, position, amount(value, "s"), va="center", fontsize=7)
            ticks.append(position)
            labels.append(f"{figure.name} – {name}")
            position += 1
        position += 1
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("µs per call (logarithmic; shorter is better)")
    axes.set_title("One guarded call")


def _draw_bars(axes: Any, figures: Sequence[Figure]) -> None:
    for position, figure in enumerate(figures):
        share = figure.ratio / figure.bar if figure.bound == "at most" else figure.bar / figure.ratio
        axes.barh(position, share, color=_OURS if figure.met else _MISSED)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(figures)), [figure.name for figure in figures], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of the bar (left of the line meets it)")
    axes.set_title("Each figure beside its bar")


def say(text: str = "") -> None:
    """Write a line for the reader."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
