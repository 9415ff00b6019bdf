"""The driver of plain functions whose record is written in the caller's own transaction."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from idempo import answers
from idempo.driver_sync import SyncDriver
from idempo.flights import Flight
from idempo.joined import JoinedSteps, Steps
from idempo.terms import Terms

T = TypeVar("T")


class JoinedDriver(SyncDriver):
    """Runs calls in the transaction that a `TransactionalStore` has joined."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._steps = JoinedSteps(terms, "__enter__", "__exit__")
        self._near = self._claim_new = None  # a short cut would go past the savepoint

    def enter(self, flight: Flight) -> answers.Replayed | None:
        """See `JoinedSteps.enter`."""
        return _carry_out(self._steps.enter(flight))

    def complete(self, flight: Flight) -> Any:
        """See `JoinedSteps.complete`."""
        return _carry_out(self._steps.complete(flight))

    def settle(self, flight: Flight, error: BaseException) -> None:
        """See `JoinedSteps.settle`."""
        _carry_out(self._steps.settle(flight, error))


def _carry_out(steps: Steps[T]) -> T:
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            request = steps.throw(error) if error is not None else steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        try:
            answer, error = request.call(), None
        except BaseException as raised:  # noqa: BLE001 (the steps raise it, once they have put things right)
            error = raised
