"""`Deduplicator`: each message once for each consumer, though its broker delivers it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Hashable, Iterable
from datetime import timedelta
from types import CoroutineType
from typing import Any, Final, Generic, TypeVar, cast, overload

from idempo.errors import InProgressError, InvalidKeyError
from idempo.guard import Idempotency
from idempo.messages._answers import Answer, Busy, Duplicate, Entry, Failed, NotRun, Processed, Report
from idempo.messages._batches import Batch, is_of
from idempo.upkeep import is_async
from idempo.wrapping import is_coroutine_function, is_simple, refuse_generators

__all__ = ["Busy", "Deduplicator", "Duplicate", "Entry", "Failed", "NotRun", "Processed", "Report"]

M = TypeVar("M")
R = TypeVar("R")

TWO_WEEKS: Final = timedelta(days=14)


class Deduplicator(Generic[M]):
    """Processes each message once for each consumer. Made once, and shared by threads and tasks.

    What is stored is a message's id, and no result. An exception of the handler ends the claim by the guard's policy:
    by default the id is free again, and the message runs when it is delivered again.

    Args:
        guard: Its store, and its policy but for ``ttl`` and ``wait``.
        consumer: Which consumer this is; two of them each process a message. Processes that share the work share it.
        id: Gives a message's id: a str, int, UUID, Enum, bytes, or a tuple of these. The producer's, the same when
            it publishes again; a broker's delivery tag or receipt handle is none.
        group: For `batch`: gives what a message must stay in order with, something hashable; None, nothing.
        ttl: How long an id is remembered, in seconds; longer than the broker, or the producer, can bring it again.
        wait: How long `process` waits for another consumer of the message, in seconds. At 0 it answers `Busy`.

    Attributes:
        guard: Answers for the ids: ``dedup.guard.lookup(id)``, ``forget``, ``resolve``.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: The consumer's name is empty or too long, or a duration is out of its range.

    >>> from idempo import Idempotency
    >>> from idempo.messages import Deduplicator
    >>> dedup = Deduplicator(Idempotency(namespace="shop"), consumer="invoices", id=lambda message: message["id"])
    >>> dedup.process({"id": "m-1", "total": 5}, lambda message: message["total"])
    Processed(value=5)
    >>> dedup.process({"id": "m-1", "total": 5}, lambda message: message["total"])
    Duplicate()
    """

    def __init__(
        self,
        guard: Idempotency,
        *,
        consumer: str,
        id: Callable[[M], Any],  # noqa: A002 (what it is)
        group: Callable[[M], Hashable] | None = None,
        ttl: float | timedelta = TWO_WEEKS,
        wait: float | timedelta = 0.0,
    ) -> None:
        if not isinstance(guard, Idempotency):
            raise TypeError(f"guard must be an Idempotency, not {type(guard).__name__}")
        if not isinstance(consumer, str):
            raise TypeError(f"consumer must be a str, not {type(consumer).__name__}")
        if not consumer:
            raise ValueError("consumer must name who consumes: two consumers of one name share the work")
        self._id = _callable(id, "id")
        self._group = None if group is None else _callable(group, "group")
        # A room of its own below the guard's: no decorated function's keys are meant by the same words.
        self.guard: Final = guard.options(namespace=f"messages/{consumer}", ttl=ttl, wait=wait)

    def process(self, message: M, handler: Callable[[M], R]) -> Answer[R]:
        """Process a message, unless it was processed before.

        Args:
            message: Whatever the id can be read from.
            handler: A plain function; `idempo.current_operation` works inside it.

        Raises:
            InvalidKeyError: The message has no id, or none that can be a key. Nothing ran.
            TypeError: The handler is a coroutine function, or the store an AsyncStore: use `process_async`.
            Exception: Whatever the handler raised; the message is to be delivered again.
            IdempotencyError: Any other of idempo's errors; an InDoubtError wants somebody to look.
        """
        _check_plain(handler)
        return self._process(self._told(message), message, handler)

    async def process_async(self, message: M, handler: Callable[[M], Coroutine[Any, Any, R]]) -> Answer[R]:
        """`process` for a coroutine function, on any store."""
        refuse_generators(handler)
        return await self._process_async(self._told(message), message, handler)

    def batch(self, messages: Iterable[M], handler: Callable[[M], R]) -> Report[M, R]:
        """Process messages one after another; one that fails does not fail its neighbours.

        Later messages of the ``group`` of one that was not processed do not run, nor do more copies of one that
        failed; after a failure of the store nothing more runs. An interrupt leaves the batch without a report: then
        have all of it delivered again.

        Raises:
            TypeError: The handler is a coroutine function, or the store an AsyncStore: use `batch_async`.
        """
        _check_plain(handler)
        if is_async(self.guard.store):
            raise TypeError("batch() is for sync stores; on an AsyncStore use `await batch_async(...)`")
        work: Batch[M, R] = Batch(self.guard, messages, self._told, self._group_of)
        for item in work.due():
            try:
                item.answer = self._process(item.key, item.message, handler)
            except Exception as error:  # noqa: BLE001 (it is in the report)
                item.answer = Failed(error)
        return work.report()

    async def batch_async(self, messages: Iterable[M], handler: Callable[[M], Coroutine[Any, Any, R]]) -> Report[M, R]:
        """`batch` for a coroutine function, on any store; one after another too."""
        refuse_generators(handler)
        work: Batch[M, R] = Batch(self.guard, messages, self._told, self._group_of)
        for item in work.due():
            try:
                item.answer = await self._process_async(item.key, item.message, handler)
            except Exception as error:  # noqa: BLE001 (it is in the report)
                item.answer = Failed(error)
        return work.report()

    @overload
    def handler(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, fn: Callable[[M], Coroutine[Any, Any, R]], /
    ) -> Callable[[M], Coroutine[Any, Any, Answer[R]]]: ...
    @overload
    def handler(self, fn: Callable[[M], R], /) -> Callable[[M], Answer[R]]: ...
    def handler(self, fn: Any, /) -> Any:
        """Decorate a handler, of either colour: called with a message, it answers as `process` does.

        Raises:
            TypeError: It is a generator, or cannot be called.
        """
        if not callable(fn):
            raise TypeError(f"a handler must be a function, not {type(fn).__name__}")
        refuse_generators(fn)
        body: Any = fn
        if is_coroutine_function(fn):

            @functools.wraps(fn)
            async def process_async(message: M) -> Any:
                return await self._process_async(self._told(message), message, body)

            return process_async

        @functools.wraps(fn)
        def process(message: M) -> Any:
            return self._process(self._told(message), message, body)

        return process

    def _told(self, message: M) -> Any:
        """Return a message's id as its callable tells it."""
        try:
            return self._id(message)
        except Exception as error:
            raise InvalidKeyError(f"the id of a message cannot be told ({type(error).__name__})") from error

    def _group_of(self, message: M) -> Hashable:
        """Return what a message must stay in order with; None, nothing."""
        if self._group is None:
            return None
        try:
            found = self._group(message)
            hash(found)
        except Exception as error:
            raise InvalidKeyError(f"the group of a message cannot be told ({type(error).__name__})") from error
        return cast("Hashable", found)

    def _process(self, key: Any, message: M, handler: Callable[[M], R]) -> Answer[R]:
        ran: list[R] = []
        began = False

        def body() -> None:  # returns None, so that the store is given no result
            nonlocal began
            began = True
            value = handler(message)
            if type(value) is CoroutineType:
                cast("Any", value).close()  # or it would warn of itself
                raise TypeError("the handler returned a coroutine: use process_async()")
            ran.append(value)

        try:
            self.guard.run(key, body)
        except InProgressError as error:
            if began or not is_of(error, self.guard):
                raise
            return Busy(error.retry_after)
        return Processed(ran[0]) if ran else Duplicate()

    async def _process_async(self, key: Any, message: M, handler: Callable[[M], Coroutine[Any, Any, R]]) -> Answer[R]:
        ran: list[R] = []
        began = False

        async def body() -> None:
            nonlocal began
            began = True
            ran.append(await handler(message))

        try:
            await self.guard.run_async(key, body)
        except InProgressError as error:
            if began or not is_of(error, self.guard):
                raise
            return Busy(error.retry_after)
        return Processed(ran[0]) if ran else Duplicate()


def _callable(found: Any, option: str) -> Any:
    if not callable(found):
        raise TypeError(f"{option} must be callable: it is given a message, and returns its {option}")
    if is_coroutine_function(found):
        raise TypeError(f"{option} must not be a coroutine function: it is asked before anything waits")
    return found


def _check_plain(handler: Any) -> None:
    """Refuse a handler that a plain call could not run to its end."""
    if not is_simple(handler):
        refuse_generators(handler)
        if is_coroutine_function(handler):
            raise TypeError("the handler is a coroutine function: use process_async(), or batch_async()")
