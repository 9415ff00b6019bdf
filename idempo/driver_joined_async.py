"""The driver of coroutine functions whose record is written in the caller's own transaction."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

from idempo import answers
from idempo.driver_async import AsyncDriver
from idempo.errors import StoreError
from idempo.flights import Flight, Phase
from idempo.joined import JoinedSteps, Request, Steps
from idempo.loops import shielded
from idempo.records import EventKind
from idempo.terms import Terms

T = TypeVar("T")


class AsyncJoinedDriver(AsyncDriver):
    """Runs calls in the transaction that an `AsyncTransactionalStore` has joined."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        self._steps = JoinedSteps(terms, "__aenter__", "__aexit__")
        self._near = self._claim_new = None  # a short cut would go past the savepoint

    async def enter(self, flight: Flight) -> answers.Replayed | None:
        """See `JoinedSteps.enter`."""
        return await _carry_out(self._steps.enter(flight))

    async def complete(self, flight: Flight) -> Any:
        """See `JoinedSteps.complete`."""
        return await _carry_out(self._steps.complete(flight))

    async def settle(self, flight: Flight, error: BaseException) -> None:
        """See `JoinedSteps.settle`."""
        if isinstance(error, GeneratorExit):
            # Closed, it can wait for nothing, so nothing is undone: if the caller commits, the record says so.
            flight.phase = Phase.ENDED
            over = StoreError("the call was closed in the midst of it: roll back your transaction", key=flight.key)
            self._terms.teller.tell(EventKind.STORE_FAILED, flight.key, flight.attempt, error=over)
            return
        try:
            await shielded(_carry_out(self._steps.settle(flight, error)))
        except BaseException:  # an interrupt, or the end of `asyncio.run`, which cancels the request itself as well
            if not flight.over:
                await _carry_out(self._steps.settle(flight, error))
            raise


async def _carry_out(steps: Steps[T]) -> T:
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            request = steps.throw(error) if error is not None else steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        try:
            answer, error = await _answer(request), None
        except BaseException as raised:  # noqa: BLE001 (the steps raise it, once they have put things right)
            error = raised


async def _answer(request: Request) -> Any:
    answer = request.call()
    if request.of_store:
        return await shielded(answer)
    return await answer if inspect.isawaitable(answer) else answer
