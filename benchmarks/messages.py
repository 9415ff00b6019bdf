"""What a message costs that was processed before, beside a guarded function that is called again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from benchmarks.contenders import IDEMPO, Call, charge
from benchmarks.measuring import Figure, Size, take_turns
from benchmarks.single_calls import replaying, running
from idempo import Idempotency
from idempo.messages import Deduplicator

OURS: Final = "idempo, a message"


def guarded() -> Call:
    """Return a consumer of messages that are the arguments of `charge`, on a new store."""
    dedup: Deduplicator[tuple[str, int, str]] = Deduplicator(
        Idempotency(), consumer="charges", id=lambda message: message[0]
    )

    @dedup.handler
    def handle(message: tuple[str, int, str]) -> Any:
        return charge(*message)

    return lambda *message: handle(message)


def message_figures(size: Size) -> Iterator[Figure]:
    """Measure duplicates, and new messages, against calls of a decorated function."""
    base = "idempo, sync replay"
    turns = take_turns({OURS: replaying(guarded, size.calls), base: replaying(IDEMPO.guarded, size.calls)}, size.rounds)
    yield turns.figure("messages: duplicate skipped", OURS, base, 1.0)
    base = "idempo, sync fresh"
    turns = take_turns({OURS: running(guarded, size.calls), base: running(IDEMPO.guarded, size.calls)}, size.rounds)
    yield turns.figure("messages: processed", OURS, base, None)
