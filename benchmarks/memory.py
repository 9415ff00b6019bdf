"""What a completed record costs in memory, measured in an interpreter of its own: ``python -m benchmarks.memory N``."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring import Figure, Size

ROOT: Final = Path(__file__).resolve().parent.parent
BAR: Final = 720
_STATM: Final = Path("/proc/self/statm")
_PAGE: Final = 4096


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE if _STATM.exists() else 0


def measure(records: int, *, traced: bool) -> float:
    """Return the bytes that each of so many completed records takes, its key's text included.

    Args:
        records: How many operations are run, each with a key of 16 characters and a result of 20 bytes.
        traced: Whether to count what Python allocates, or else by how much the process grows.
    """
    from idempo import MemoryStore, idempotent  # noqa: PLC0415  # measured is what comes after

    store = MemoryStore(max_records=records + 1)

    @idempotent(key="order_id", store=store, namespace="benchmarks.memory")
    def charge(order_id: str) -> bytes:
        return bytes(20)

    charge("the first, unused")
    if traced:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] if traced else _resident()
    for number in range(records):
        charge(f"order-{number:010d}")
    after = tracemalloc.get_traced_memory()[0] if traced else _resident()
    return (after - before) / records


def measure_apart(records: int, *, traced: bool) -> float:
    """See `measure`; in a new interpreter, where nothing else has been allocated and freed."""
    command = [sys.executable, "-m", "benchmarks.memory", str(records), *(["--traced"] if traced else [])]
    found: Any = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
    return float(found)


def memory_figures(size: Size) -> Iterator[Figure]:
    """Measure the memory of a completed record."""
    traced = measure_apart(size.kept, traced=True)
    grown = measure_apart(size.kept, traced=False)
    yield Figure(
        f"memory per completed record, of {size.kept:,}",
        traced,
        None,
        "by tracemalloc",
        traced,
        BAR,
        unit="B",
        note=f"the process grows by {grown:.0f} B a record" if _STATM.exists() else "",
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]), traced="--traced" in sys.argv)))
