"""What of a batch of messages is tried, and what is not: decided for both colours, and done by neither."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from idempo.errors import IdempotencyError, ResultNotStoredError, StoreError
from idempo.guard import Idempotency
from idempo.keys import key_text
from idempo.messages._answers import BatchAnswer, Busy, Duplicate, Entry, Failed, NotRun, Processed, Report

M = TypeVar("M")
R = TypeVar("R")


class Item(Generic[M, R]):
    """One message of a batch, while it is worked on."""

    __slots__ = ("answer", "group", "id", "key", "message")

    def __init__(self, message: M, told: Callable[[M], Any], group_of: Callable[[M], Hashable]) -> None:
        self.message = message
        self.key: Any = None
        self.id: str | None = None
        self.group: Hashable = None
        self.answer: BatchAnswer[R] | None = None
        try:
            self.group = group_of(message)
            self.key = told(message)
            self.id = key_text(self.key, "the id of a message")
        except IdempotencyError as error:
            self.answer = Failed(error)


class Batch(Generic[M, R]):
    """Says what of a batch is to be tried next, for both colours; it does nothing itself."""

    def __init__(
        self,
        guard: Idempotency,
        messages: Iterable[M],
        told: Callable[[M], Any],
        group_of: Callable[[M], Hashable],
    ) -> None:
        self._guard = guard
        self._items: list[Item[M, R]] = [Item(one, told, group_of) for one in messages]  # before any effect
        self._stopped = False

    def due(self) -> Iterator[Item[M, R]]:
        """Yield each message that is to be tried, and look at its answer when asked for the next."""
        seen: dict[str, BatchAnswer[R]] = {}
        held: set[Hashable] = set()
        for item in self._items:
            if item.answer is None:
                item.answer = self._without_trying(item, seen, held)
            if item.answer is None:
                yield item
                self._look_at(item)
            if item.id is not None and item.answer is not None:
                seen.setdefault(item.id, item.answer)
            if item.group is not None and not isinstance(item.answer, Processed | Duplicate):
                held.add(item.group)

    def report(self) -> Report[M, R]:
        """Return what became of each message."""
        return Report(tuple(Entry(item.message, item.id, item.answer) for item in self._items if item.answer))

    def _without_trying(
        self, item: Item[M, R], seen: dict[str, BatchAnswer[R]], held: set[Hashable]
    ) -> BatchAnswer[R] | None:
        """Return the answer of a message that is not to be tried."""
        if self._stopped:
            return NotRun("the store failed at an earlier message")
        if item.group is not None and item.group in held:
            return NotRun("an earlier message of its group was not processed")
        copy = seen.get(item.id or "")
        if copy is None or isinstance(copy, Busy):
            return copy
        if isinstance(copy, Processed | Duplicate):
            return Duplicate()
        return NotRun("an earlier copy of it was not processed")

    def _look_at(self, item: Item[M, R]) -> None:
        """Stop where the store fails: each message more would wait for it in vain."""
        if isinstance(item.answer, Failed):
            error = item.answer.error
            self._stopped = isinstance(error, StoreError | ResultNotStoredError) and is_of(error, self._guard)


def is_of(error: IdempotencyError, guard: Idempotency) -> bool:
    """Say whether an error speaks of a key of this guard's, rather than of one within a handler."""
    return error.key is not None and error.key.namespace == guard.namespace
