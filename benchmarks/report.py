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
_BEGIN = "<!-- {}: written by `python -m benchmarks --docs` -->"
_END = "<!-- end of the {} -->"


@attrs.frozen
class Section:
    """What belongs into one table of the docs.

    Attributes:
        name: What stands in its marks on the page.
        figures: What was found.
        about: What it was measured on, by name.
    """

    name: str
    figures: Sequence[Figure]
    about: Mapping[str, Any]


def amount(value: float, unit: str) -> str:
    """Return a figure as people read it."""
    if unit == "":
        return f"{value:,.4g}"
    if unit in ("B", "calls/s"):
        return f"{value:,.0f} {unit}"
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
        "" if figure.bar is None else f"{sign} {amount(figure.bar, figure.unit) if absolute else f'{figure.bar:g} ×'}",
        "" if figure.bar is None else "yes" if figure.met else "MISSED",
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
    barred = [figure for figure in figures if figure.bar is not None]
    return f"{sum(figure.met for figure in barred)} of {len(barred)} bars met"


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


def write_docs(folder: Path, sections: Sequence[Section]) -> None:
    """Draw the picture of the docs, and write what was found into their page, between the marks of each section.

    What has no figures stays as it is. The picture shows the figures of the first section.

    Raises:
        ValueError: The page has no such marks.
        ImportError: matplotlib is not installed.
    """
    page, picture = folder / "benchmarks.md", folder / "_static" / "benchmarks.svg"
    text = page.read_text(encoding="utf-8")
    for section in sections:
        begin, end = _BEGIN.format(section.name), _END.format(section.name)
        if not text.count(begin) == text.count(end) == 1:
            raise ValueError(f"{page} must hold the lines {begin} and {end} once, around what is to be written")
        if section.figures:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n\n{_found(section)}\n\n{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")
    if sections[0].figures:
        picture.parent.mkdir(exist_ok=True)
        draw(picture, sections[0].figures)


def _found(section: Section) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in section.about.items())
    lines = [f"{verdict(section.figures)}. Measured on: {machine}.", "", markdown(section.figures), ""]
    lines += [f"- {line}" for line in beside(section.figures).splitlines()]
    return "\n".join(lines).rstrip()


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
    barred = [figure for figure in figures if figure.bar is not None and figure.ratio]
    for position, figure in enumerate(barred):
        assert figure.bar is not None
        share = figure.ratio / figure.bar if figure.bound == "at most" else figure.bar / figure.ratio
        axes.barh(position, share, color=_OURS if figure.met else _MISSED)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(barred)), [figure.name for figure in barred], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of the bar (left of the line meets it)")
    axes.set_title("Each figure beside its bar")


def say(text: str = "") -> None:
    """Write a line for the reader."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
