"""``with guard.operation(...)``: a block of code that is one operation, and its twin for ``async with``."""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from idempo.choosing import Drivers
from idempo.flights import BlockFlight, Flight, Id
from idempo.operation import Operation, current, running_task, still_open, unguarded
from idempo.records import Key

if TYPE_CHECKING:
    import asyncio

    from idempo.answers import Replayed
    from idempo.driver_async import AsyncDriver
    from idempo.driver_sync import SyncDriver

R = TypeVar("R")


class _Completable(Operation):
    """What both colours of block share: a value is given once, while the block is open."""

    __slots__ = ("_closed",)

    _closed: bool

    def _take(self, value: Any) -> Flight | None:
        """Note the value; return the flight whose outcome it is, or None where nothing guards the block.

        Raises:
            RuntimeError: The operation has an outcome already, or the block was left.
        """
        flight = self._flight
        if not self.fresh or self._closed or (flight is not None and (flight.returned or flight.over)):
            raise RuntimeError(
                "the operation has its outcome already, or its block was left: complete() is for once, where op.fresh"
            )
        if flight is None:
            self._closed = True  # unguarded: nobody else keeps count
        else:
            flight.value, flight.returned = value, True
        self._result = value
        return flight


class BlockOperation(_Completable):
    """The `Operation` of a ``with guard.operation(...)`` block."""

    __slots__ = ("_driver",)

    _driver: SyncDriver

    def complete(self, value: R) -> R:
        """Store the value here and now, and return it. Once; what the block does afterwards undoes nothing.

        Args:
            value: The outcome that duplicates get; anything that the guard's codec can keep.

        Raises:
            RuntimeError: The operation was replayed or completed already, or its block was left.
            LeaseLostError: The key is held no more: another attempt may run too. Carries the value.
            ResultNotStoredError: The store did not take the outcome while the lease stood. Carries the value.
        """
        flight = self._take(value)
        if flight is not None:
            self._driver.complete(flight)
        return value


class AsyncBlockOperation(_Completable):
    """The `Operation` of an ``async with guard.operation(...)`` block."""

    __slots__ = ("_driver",)

    _driver: AsyncDriver

    def complete(self, value: R) -> Coroutine[Any, Any, R]:
        """Store the value here and now, and return it: `BlockOperation.complete`, to be awaited.

        Where the ``await`` is forgotten, the value is stored when the block is left.
        """
        return self._store(self._take(value), value)

    async def _store(self, flight: Flight | None, value: R) -> R:
        if flight is not None and not flight.over:
            await self._driver.complete(flight)
        return value


class OperationBlock:
    """A block that is one operation. Entered once, by ``with`` or, on any store, by ``async with``."""

    __slots__ = ("_driver", "_drivers", "_fingerprint", "_flight", "_id", "_is_async", "_operation", "_outer", "_used")

    def __init__(self, drivers: Drivers, id_: Id, fingerprint: bytes | None) -> None:
        self._drivers = drivers
        self._id = id_
        self._fingerprint = fingerprint
        self._used = False
        self._is_async = False
        self._flight: Flight | None = None
        self._driver: Any = None
        self._operation: _Completable | None = None
        self._outer: Operation | None = None

    def __enter__(self) -> BlockOperation:
        if self._begins_unguarded():
            return self._open(BlockOperation, None)
        self._driver = driver = self._drivers.sync
        kept = driver.at_hand(self._id, self._fingerprint)
        if kept is not None:
            return self._open(BlockOperation, kept)
        self._flight = flight = BlockFlight(self._id, self._fingerprint, self._drivers.terms)
        flight.task = running_task()
        try:
            return self._open(BlockOperation, driver.enter(flight))
        except BaseException as error:
            try:
                self._end(error)
            except BaseException:  # an interrupt in the midst of it: each of its steps may be made again
                self._end(error)
                raise
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        flight = self._flight
        try:
            self._close()
            if flight is not None and error is None and not flight.over:
                flight.returned = True  # with None, or the value whose storing was interrupted
                self._driver.complete(flight)
            self._end(error)
        except BaseException as later:
            try:
                self._end(later)
            except BaseException:
                self._end(later)
                raise
            raise

    def _end(self, error: BaseException | None) -> None:
        self._close()
        if self._flight is not None and error is not None:
            self._driver.end(self._flight, error)
        self._flight = None

    def __del__(self) -> None:
        # An interrupt can come when `__exit__` is called and before its first line: then this ends the block.
        if getattr(self, "_flight", None) is not None and not self._is_async:
            self._end(KeyboardInterrupt())

    async def __aenter__(self) -> AsyncBlockOperation:
        if self._begins_unguarded():
            return self._open(AsyncBlockOperation, None)
        import asyncio  # with the driver: `import idempo` does without

        self._is_async = True
        self._driver = driver = self._drivers.coroutine
        kept = driver.at_hand(self._id, self._fingerprint)
        if kept is not None:
            return self._open(AsyncBlockOperation, kept)
        self._flight = flight = Flight(self._id, self._fingerprint, self._drivers.terms)
        flight.task = asyncio.current_task()
        try:
            return self._open(AsyncBlockOperation, await driver.enter(flight))
        except BaseException as error:
            self._close()
            if not flight.over:
                await driver.settle(flight, error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        flight = self._flight
        try:
            self._close()
            if flight is not None and error is None and not flight.over:
                flight.returned = True
                await self._driver.complete(flight)
        except BaseException as later:
            error = later
            raise
        finally:
            if flight is not None and error is not None and not flight.over:
                await self._driver.settle(flight, error)

    def hand_to(self, task: asyncio.Task[Any]) -> None:
        """Let another task stand inside the ``async with`` block, and leave it; the caller is inside no more.

        For whoever enters here and goes on in a task that outlives this one. To be called by the task that entered,
        after the other was made, and before it begins.
        """
        if self._flight is not None:
            self._flight.task = task
        current.set(self._outer)

    def _begins_unguarded(self) -> bool:
        if self._used:
            raise RuntimeError("an operation block is for one use: call guard.operation(...) for each")
        self._used = True
        return unguarded.depth > 0

    def _open(self, make: type[_OperationT], replayed: Replayed | None) -> _OperationT:
        """Make the operation of the block that begins now."""
        flight, outer = self._flight, current.get()
        if replayed is not None:
            operation = make(
                Key(*self._id), attempt=replayed.attempt, token=replayed.token, fresh=False, result=replayed.value
            )
        elif flight is None:
            operation = make(Key(*self._id), outer=outer)
        else:
            operation = make(flight.key, flight.attempt, flight.token, flight, still_open(outer))
            operation._driver = self._driver
        operation._closed = False
        # No `reset` by a token: an interrupt could come between the setting and the keeping of the token.
        self._operation, self._outer = operation, outer
        if operation.fresh:
            current.set(operation)
        return operation

    def _close(self) -> None:
        operation = self._operation
        if operation is not None:
            operation._closed = True
            # A generator may be closed in another context than it was begun in: there is nothing to put back there.
            if current.get() is operation:
                current.set(self._outer)


_OperationT = TypeVar("_OperationT", BlockOperation, AsyncBlockOperation)
