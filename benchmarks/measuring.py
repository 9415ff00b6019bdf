"""Measuring side by side: what is compared takes turns, and the ratio is taken within each turn.

A shared machine slows down and speeds up by the second. Two figures of one turn lie milliseconds apart, so their ratio
stands where the figures themselves do not; the median of the turns drops those that something else disturbed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Literal

import attrs


@attrs.frozen
class Size:
    """How much is measured.

    Attributes:
        rounds: How many turns single calls take: many short ones, since what disturbs a machine lasts longer.
        calls: Calls per turn.
        crowds: How many turns the crowds take.
        tasks: Tasks that share one key.
        threads: Threads at once.
        calls_per_thread: Calls that each of them makes.
        few: Records in the small store, where growth is measured.
        many: Records in the large one.
        kept: Records whose memory is measured.
        starts: How often an interpreter is started to measure an import.
        rows: Rows written per turn, on SQLite.
        server_rounds: How many turns calls take that go to a server.
        server_calls: Calls per turn, of those.
        counted: Calls whose round trips are counted, and whose writes to the log.
        duplicates: Tasks in each of the processes that share one key.
        duplicate_threads: Threads in each of them, where it is threads.
        process_rounds: How many turns several processes take at once.
        seconds: How long one of those turns takes, where it is throughput.
    """

    rounds: int
    calls: int
    crowds: int
    tasks: int
    threads: int
    calls_per_thread: int
    few: int
    many: int
    kept: int
    starts: int
    rows: int
    server_rounds: int
    server_calls: int
    counted: int
    duplicates: int
    duplicate_threads: int
    process_rounds: int
    seconds: float


FULL = Size(
    rounds=151,
    calls=100,
    crowds=15,
    tasks=10_000,
    threads=64,
    calls_per_thread=200,
    few=1_000,
    many=1_000_000,
    kept=200_000,
    starts=41,
    rows=20,
    server_rounds=41,
    server_calls=100,
    counted=100,
    duplicates=1_000,
    duplicate_threads=50,
    process_rounds=5,
    seconds=0.6,
)
QUICK = Size(
    rounds=2,
    calls=20,
    crowds=2,
    tasks=50,
    threads=4,
    calls_per_thread=5,
    few=20,
    many=200,
    kept=500,
    starts=1,
    rows=5,
    server_rounds=2,
    server_calls=5,
    counted=5,
    duplicates=10,
    duplicate_threads=3,
    process_rounds=1,
    seconds=0.02,
)


@attrs.frozen
class Figure:
    """One figure of the table: what was measured, against what, and whether it met its bar.

    Attributes:
        name: What is measured.
        ours: The median of idempo's own, in ``unit``.
        base: The median of what it is compared with, in ``unit``; None where the bar is absolute.
        base_name: What that is.
        ratio: The median of the rounds' ratios; where the bar is absolute, ``ours``.
        middle_half: Between which ratios half of the rounds lie, where there were any.
        bar: What the ratio may be; None where a figure is only reported.
        bound: Whether it may be at most, or must be at least, that.
        unit: "s", "B", "calls/s", or "" for what is counted.
        beside: The medians of what was measured beside them, by name, in ``unit``.
        note: What else is worth knowing.
    """

    name: str
    ours: float
    base: float | None
    base_name: str
    ratio: float
    bar: float | None
    unit: Literal["s", "B", "calls/s", ""] = "s"
    bound: Literal["at most", "at least"] = "at most"
    beside: Mapping[str, float] = attrs.field(factory=dict)
    note: str = ""
    middle_half: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        """Whether the bar was met, or there is none."""
        if self.bar is None:
            return True
        return self.ratio <= self.bar if self.bound == "at most" else self.ratio >= self.bar


@attrs.frozen
class Turns:
    """What each contender took in each turn, by name; smaller is better."""

    taken: Mapping[str, list[float]]

    def middle(self, name: str) -> float:
        """Return the contender's median."""
        return median(self.taken[name])

    def ratio(self, name: str, base: str) -> float:
        """Return the median of the turns' ratios."""
        return median(self._ratios(name, base))

    def middle_half(self, name: str, base: str) -> tuple[float, float] | None:
        """Return the quartiles of the turns' ratios; None where there are too few turns."""
        ratios = self._ratios(name, base)
        if len(ratios) < 4:
            return None
        low, _, high = quantiles(ratios)
        return low, high

    def _ratios(self, name: str, base: str) -> list[float]:
        return [one / other for one, other in zip(self.taken[name], self.taken[base], strict=True)]

    def figure(self, name: str, ours: str, base: str, bar: float | None, *, beside: Iterable[str] = ()) -> Figure:
        """Return the figure of one against another, where the ratio may be at most the bar."""
        others = {other: self.middle(other) for other in beside}
        ratio, half = self.ratio(ours, base), self.middle_half(ours, base)
        return Figure(name, self.middle(ours), self.middle(base), base, ratio, bar, beside=others, middle_half=half)

    def speed_up(self, name: str, ours: str, base: str, bar: float) -> Figure:
        """Return the figure of one against another, where the other must take at least the bar's multiple."""
        ratio, half = self.ratio(base, ours), self.middle_half(base, ours)
        return Figure(name, self.middle(ours), self.middle(base), base, ratio, bar, bound="at least", middle_half=half)


@contextmanager
def settled_collector() -> Iterator[None]:
    """Keep the garbage collector away from what is older than the block."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int, *, collector: bool = False) -> Turns:
    """Let each contender take its turn in every round, in another order each time.

    Args:
        contenders: By name, what does the work of one turn and returns the seconds that it took.
        rounds: How many turns each one has, after one that is not counted.
        collector: Whether the garbage collector runs meanwhile. As with `timeit`, it does not where single calls are
            measured, since it would strike one contender or another by chance.
    """
    names = list(contenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    with settled_collector():
        for name in names:
            contenders[name]()
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                if not collector:
                    gc.disable()
                try:
                    taken[name].append(contenders[name]())
                finally:
                    gc.enable()
    return Turns(taken)
