"""What ``import idempo`` costs a program that starts, beside the import of its two dependencies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

import idempo
from benchmarks.measuring import Figure, Size, Turns

# Timed inside the new interpreter: its own start is the same for both, and would only hide the difference.
_CODE: Final = """
import sys, time
sys.path.insert(0, {folder!r})
start = time.perf_counter()
import {modules}
taken = time.perf_counter() - start
import json
print(json.dumps([taken, "asyncio" in sys.modules]))
"""
_FOLDER: Final = str(Path(idempo.__file__).resolve().parent.parent)


def import_once(modules: str) -> tuple[float, bool]:
    """Return the seconds that the import takes in a new interpreter, and whether asyncio was imported by it."""
    code = _CODE.format(folder=_FOLDER, modules=modules)
    answer = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout
    seconds, asyncio_loaded = json.loads(answer)
    return seconds, asyncio_loaded


def import_figures(size: Size) -> Iterator[Figure]:
    """Measure the import, with the compiled files of the first one present.

    Raises:
        AssertionError: ``import idempo`` imported asyncio.
    """
    ours, base = "idempo", "attrs, cachetools"
    taken: dict[str, list[float]] = {ours: [], base: []}
    for turn in range(size.starts + 1):
        for modules in (ours, base) if turn % 2 else (base, ours):
            seconds, asyncio_loaded = import_once(modules)
            assert not asyncio_loaded, f"import {modules} imports asyncio"
            if turn:  # the first one wrote the compiled files
                taken[modules].append(seconds)
    yield attrs.evolve(
        Turns(taken).figure("import idempo", ours, base, 1.7), base_name=f"import {base}", note="asyncio not imported"
    )
