"""Telling what happened: counters, observers, the ``idempo`` logger."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from idempo import _fork
from idempo._checks import checked_observers
from idempo._showing import shown
from idempo.protocols import Observer
from idempo.records import Event, EventKind, Key, Stats

if TYPE_CHECKING:
    import logging

_TROUBLE: Final = frozenset(
    {
        EventKind.MISMATCHED,
        EventKind.TAKEN_OVER,
        EventKind.IN_DOUBT,
        EventKind.LEASE_LOST,
        EventKind.RESULT_LOST,
        EventKind.STORE_FAILED,
    }
)
_DUPLICATES: Final = frozenset({EventKind.REPLAYED, EventKind.WAITED, EventKind.REFUSED})


_reading: Final = _fork.new_lock()  # one for all: counts are made with every guard, and seldom read


class Counts:
    """Counts events by kind, exactly and without a lock on the counting side."""

    __slots__ = ("_reads", "add")

    add: Final[Mapping[EventKind, Callable[[], int]]]
    """Counts one event of a kind: ``add[kind]()``."""

    def __init__(self) -> None:
        # ``next()`` of an itertools counter is one atomic step; ``+= 1`` is three.
        self.add = {kind: itertools.count().__next__ for kind in EventKind}
        self._reads = 0

    def read(self) -> dict[str, int]:
        """Return the counts by the kinds' names."""
        with _reading:  # reading a counter counts once, too
            counts = {kind.value: count() - self._reads for kind, count in self.add.items()}
            self._reads += 1
        return counts


def total(counts: Iterable[Counts]) -> Stats:
    """Return the sum of several counters."""
    sums = dict.fromkeys((field.name for field in attrs.fields(Stats)), 0)
    for one in counts:
        for name, number in one.read().items():
            sums[name] += number
    return Stats(**sums)


class Teller:
    """Tells one guard's or one function's events."""

    __slots__ = ("_add", "_count_replayed", "_log", "_observers", "counts")

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = checked_observers(observers)
        self._log = _logger()
        self.counts = Counts()
        self._add = self.counts.add
        self._count_replayed = self.counts.add[EventKind.REPLAYED]

    def replayed(self, namespace: str, value: str, attempt: int) -> None:
        """Tell a replay: what `tell` does, without building what nobody looks at."""
        self._count_replayed()
        if self._observers or self._log.isEnabledFor(20):
            self._pass_on(Event(EventKind.REPLAYED, Key(namespace, value), attempt))

    def tell(
        self,
        kind: EventKind,
        key: Key,
        attempt: int = 0,
        duration: float | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Count the event, log it where it is a duplicate or trouble, and tell the observers."""
        self._add[kind]()
        if (
            self._observers
            or kind in _TROUBLE
            or self._log.isEnabledFor(10)
            or (kind in _DUPLICATES and self._log.isEnabledFor(20))
        ):
            self._pass_on(Event(kind, key, attempt, duration, error))

    def _pass_on(self, event: Event) -> None:
        level = 30 if event.kind in _TROUBLE else 20 if event.kind in _DUPLICATES else 10
        if self._log.isEnabledFor(level):
            self._log.log(
                level,
                "%s: %s (attempt %d)%s",
                event.kind.value,
                shown(event.key),
                event.attempt,
                # The class alone: an error's text may hold a payload.
                f": {type(event.error).__name__}" if event.error is not None else "",
            )
        for observer in self._observers:
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 (whatever an observer raises breaks nothing)
                # No traceback: its text and frames may hold what the observer was working on.
                self._log.warning("an observer failed on %s: %s", event.kind.value, type(error).__name__)

    def trouble(self, what: str, error: BaseException) -> None:
        """Log what is told nobody else: something of ours was ended from inside, and goes on."""
        self._log.warning("%s failed: %s", what, type(error).__name__)


def _logger() -> logging.Logger:
    import logging  # a large import, and nobody needs it before the first guard is made

    log = logging.getLogger("idempo")
    if not log.handlers:  # or Python prints warnings itself where nobody has configured logging
        log.addHandler(logging.NullHandler())
    return log
