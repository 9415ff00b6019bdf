"""What becomes of messages: the answers of a deduplicator, and the report of a batch."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import attrs

M = TypeVar("M")
R = TypeVar("R")


@attrs.frozen
class Processed(Generic[R]):
    """The handler ran, and it is remembered: acknowledge the message.

    Attributes:
        value: What the handler returned. It is not stored.
    """

    value: R


@attrs.frozen
class Duplicate:
    """The message was processed before; nothing ran: acknowledge it."""


@attrs.frozen
class Busy:
    """Another consumer is at it; nothing ran here: have the message delivered again, and not at once.

    Attributes:
        delay: After how many seconds.
    """

    delay: float


@attrs.frozen
class Failed:
    """In a batch: what `Deduplicator.process` would have raised. Have the message delivered again.

    Attributes:
        error: The handler's error, or one of idempo's.
    """

    error: Exception


@attrs.frozen
class NotRun:
    """In a batch: nothing was asked and nothing ran. Have the message delivered again.

    Attributes:
        reason: Why, for people.
    """

    reason: str


Answer: TypeAlias = Processed[R] | Duplicate | Busy
BatchAnswer: TypeAlias = Processed[R] | Duplicate | Busy | Failed | NotRun


@attrs.frozen
class Entry(Generic[M, R]):
    """What became of one message of a batch.

    Attributes:
        message: The message, as it was given.
        id: Its id as text; None where it has no valid one.
        answer: What became of it.
    """

    message: M
    id: str | None
    answer: BatchAnswer[R]

    @property
    def done(self) -> bool:
        """Whether the message is to be acknowledged; else it is to be delivered again."""
        return isinstance(self.answer, Processed | Duplicate)


@attrs.frozen
class Report(Generic[M, R]):
    """What became of a batch, in the order in which its messages were given.

    Attributes:
        entries: One for each message.
    """

    entries: tuple[Entry[M, R], ...]

    @property
    def acknowledge(self) -> list[M]:
        """The messages to acknowledge."""
        return [entry.message for entry in self.entries if entry.done]

    @property
    def redeliver(self) -> list[M]:
        """The messages to have delivered again."""
        return [entry.message for entry in self.entries if not entry.done]

    @property
    def errors(self) -> dict[str | None, Exception]:
        """The error of each message that failed, by id; under None the last of those without an id."""
        return {entry.id: entry.answer.error for entry in self.entries if isinstance(entry.answer, Failed)}

    @property
    def by_id(self) -> dict[str | None, BatchAnswer[R]]:
        """What became of each id; of several copies, of the first."""
        return {entry.id: entry.answer for entry in reversed(self.entries)}

    @property
    def delay(self) -> float:
        """The longest delay that one which is busy asks for, in seconds; or 0."""
        return max((entry.answer.delay for entry in self.entries if isinstance(entry.answer, Busy)), default=0.0)
