"""What a completed record costs in memory, measured in an interpreter of its own."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.children import ask
from benchmarks.measuring import Figure, Size

_STATM: Final = Path("/proc/self/statm")
_PAGE: Final = 4096


def _resident() -> int:
    return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE


def measure(records: int, *, traced: bool) -> float:
    """Return the bytes that each of so many completed records takes, its key's text included.

    Args:
        records: How many operations are run, each with a key of 16 characters and a result of 20 bytes.
        traced: Whether to count what Python allocates, or else by how much the process grows.
    """
    from idempo import MemoryStore, idempotent  # nothing of it may be there before

    store = MemoryStore(max_records=records + 1)

    @idempotent(key="order_id", store=store, namespace="benchmarks.memory")
    def charge(order_id: str) -> bytes:
        return bytes(20)

    charge("the first, not counted")
    if traced:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] if traced else _resident()
    for number in range(records):
        charge(f"order-{number:010d}")
    after = tracemalloc.get_traced_memory()[0] if traced else _resident()
    return (after - before) / records


def measure_apart(records: int, *, traced: bool) -> float:
    """See `measure`."""
    answer: float = ask(f"from benchmarks.memory import measure\nprint(measure({records}, traced={traced}))")
    return answer


def memory_figures(size: Size) -> Iterator[Figure]:
    """Measure the memory of a completed record."""
    allocated = measure_apart(size.kept, traced=True)
    note = f"the process grows by {measure_apart(size.kept, traced=False):.0f} B a record" if _STATM.exists() else ""
    name = f"memory per completed record, of {size.kept:,}"
    yield Figure(name, allocated, None, "by tracemalloc", allocated, 720, unit="B", note=note)
