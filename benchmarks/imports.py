"""What ``import idempo`` costs a program that starts, beside the import of its two dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from benchmarks.children import ask
from benchmarks.measuring import Figure, Size, Turns

# Timed inside the new interpreter: its own start is the same for both, and would only hide the difference.
_CODE: Final = """
import time
start = time.perf_counter()
import {modules}
taken = time.perf_counter() - start
import json
print(json.dumps([taken, "asyncio" in sys.modules]))
"""


def import_once(modules: str) -> tuple[float, bool]:
    """Return the seconds that the import takes in a new interpreter, and whether it imported asyncio."""
    seconds, asyncio_imported = ask(_CODE.format(modules=modules))
    return seconds, asyncio_imported


def import_figures(size: Size) -> Iterator[Figure]:
    """Measure the import, with the compiled files of the first one present.

    Raises:
        AssertionError: ``import idempo`` imported asyncio.
    """
    ours, base = "idempo", "attrs, cachetools"
    taken: dict[str, list[float]] = {ours: [], base: []}
    for turn in range(size.starts + 1):
        for modules in (ours, base) if turn % 2 else (base, ours):
            seconds, asyncio_imported = import_once(modules)
            assert not asyncio_imported, f"import {modules} imports asyncio"
            if turn:  # the first one wrote the compiled files
                taken[modules].append(seconds)
    yield attrs.evolve(
        Turns(taken).figure("import idempo", ours, base, 1.7), base_name=f"import {base}", note="asyncio not imported"
    )
