"""`_sql_connections` for coroutines: a set of connections for each event loop, since none may cross to another."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from idempo._fork import Forkable, forks, inherited, new_lock
from idempo.errors import IdempotencyError, StoreError
from idempo.stores._sql_connections import NOT_KNOWN, is_unsure, key_of, pause, refuse_late, translated_by
from idempo.stores._sql_errors import ClosedByForkError, Trouble, trouble_of
from idempo.stores._sql_scripts import AnswerLost, Rows, Script
from idempo.stores._sql_table import DatabaseError

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")


class AsyncLaneLike(Protocol):
    """One connection.

    Attributes:
        generation: That of the process that opened it.
        is_at_rest: Whether it was closed before a fork. What is executed on it then raises `ClosedByForkError`.
    """

    generation: int
    is_at_rest: bool

    async def begin(self) -> None:
        """Make it ready."""
        ...

    async def execute(self, statement: str, params: Mapping[str, Any]) -> Rows:
        """Execute one statement, and return its rows."""
        ...

    async def settle(self) -> bool:
        """Leave no transaction open, and say whether the connection can be used again."""
        ...

    async def close(self) -> None:
        """Close it."""
        ...


class _OfLoop:
    """What belongs to one event loop."""

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        self.idle: deque[AsyncLaneLike] = deque()
        self.slots = asyncio.Semaphore(size)
        self.opening = 0
        sync = engine.sync_engine
        self.factory = AsyncEngine(sa.Engine(sync.pool.recreate(), sync.dialect, sync.url))


class AsyncConnections(Forkable):
    """`Connections`, for the event loops that use the store. The arguments are the same."""

    def __init__(
        self,
        engine: AsyncEngine,
        lane: Callable[[Any], AsyncLaneLike],
        errors: tuple[type[Exception], ...],
        table: str,
        *,
        size: int,
        timeout: float,
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._errors: tuple[type[Exception], ...] = (*errors, DatabaseError, TimeoutError)
        self._table = table
        self._size = size
        self._timeout = timeout
        self._closed = False
        self._lock = new_lock()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _OfLoop] = weakref.WeakKeyDictionary()
        self._lanes: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_forking = False
        forks.register(self)

    async def run(self, method: Callable[[*_Args], Script[_Result]], *args: *_Args) -> _Result:
        """Run a script to its end: see `Connections.run`."""
        started = time.monotonic()
        tries = cuts = 0
        script: Script[_Result] | None = None
        mine = self._of_loop()
        while True:
            lane = await self._take(mine, args)
            kept = False
            try:
                if script is None:
                    script = method(*args)
                    statement, params = next(script)
                else:
                    refuse_late(args, time.monotonic() - started)
                    statement, params = script.throw(AnswerLost())
                while True:
                    statement, params = script.send(await lane.execute(statement, params))
            except StopIteration as stop:
                kept = True
                result: _Result = stop.value
                if cuts and is_unsure(result, args, time.monotonic() - started):
                    raise StoreError(NOT_KNOWN, key=key_of(args)) from None
                return result
            except AnswerLost:
                kept, script = True, None
            except IdempotencyError:
                kept = await lane.settle()
                raise
            except self._errors as error:
                trouble = trouble_of(error)
                in_time = time.monotonic() - started < self._timeout
                kept = trouble not in (Trouble.CUT, Trouble.SILENT) and await lane.settle()
                if trouble is Trouble.AGAIN and in_time:
                    tries += 1
                    script = script if cuts else None  # to be told that an answer was lost, it goes on
                elif trouble is Trouble.CUT and in_time and not cuts:
                    cuts += 1
                    await self._forget_idle(mine)
                else:
                    raise self.translated(error, args) from error
            finally:
                await self._give(mine, lane, kept=kept)
            if tries:
                await asyncio.sleep(pause(tries))

    def translated(self, error: Exception, args: tuple[object, ...]) -> IdempotencyError:
        """Return an error of a driver's as one of ours; ``args`` are those of the script."""
        return translated_by(self._table, error, args)

    async def close(self) -> None:
        """Close this loop's connections, each when its call has ended. A later call, on any loop, raises StoreError."""
        self._closed = True
        await self._forget_idle(self._of_loop())

    def _of_loop(self) -> _OfLoop:
        loop = asyncio.get_running_loop()
        mine = self._loops.get(loop)
        if mine is None:
            with self._lock:
                mine = self._loops[loop] = _OfLoop(self._engine, self._size)
        return mine

    async def _take(self, mine: _OfLoop, args: tuple[object, ...]) -> AsyncLaneLike:
        if mine.slots.locked():
            try:
                async with asyncio.timeout(self._timeout):
                    await mine.slots.acquire()
            except TimeoutError:
                raise StoreError(
                    f"none of the store's {self._size} connections was free within {self._timeout:g} s",
                    key=key_of(args),
                ) from None
        else:
            await mine.slots.acquire()  # at once
        try:
            while mine.idle:
                lane = mine.idle.pop()
                if not lane.is_at_rest:
                    return lane
                await lane.close()
            return await self.open()
        except self._errors as error:
            mine.slots.release()
            raise self.translated(error, args) from error
        except BaseException:
            mine.slots.release()
            raise

    async def open(self) -> AsyncLaneLike:
        """Open a connection more, for this loop, which belongs to the caller.

        Raises:
            StoreError: The store was closed.
        """
        if self._closed:
            raise StoreError("the store was closed")
        mine = self._of_loop()
        async with asyncio.timeout(self._timeout):
            # Noted first, looked second: a fork does it the other way round.
            mine.opening += 1
            try:
                while self._is_forking:  # pragma: no cover  # by chance: of another thread
                    mine.opening -= 1
                    try:
                        await asyncio.sleep(_MOMENT)
                    finally:
                        mine.opening += 1
                while True:  # pragma: no branch  # rarely twice
                    with suppress(ClosedByForkError):
                        return await self._open(mine)
            finally:
                mine.opening -= 1

    async def _open(self, mine: _OfLoop) -> AsyncLaneLike:
        fairy = await mine.factory.raw_connection()
        connection = fairy.driver_connection
        fairy.detach()  # from here on it is the store's alone
        lane = self._lane(connection)
        with self._lock:
            self._lanes.add(lane)
        try:
            await lane.begin()
        except BaseException:
            await lane.close()
            raise
        return lane

    async def _give(self, mine: _OfLoop, lane: AsyncLaneLike, *, kept: bool) -> None:
        if lane.generation != forks.generation:  # pragma: no cover  # in a child that was forked amid this very call
            inherited.append(lane)
            return
        if kept and not self._closed:
            mine.idle.append(lane)
            mine.slots.release()
            return
        try:
            await lane.close()
        finally:
            mine.slots.release()

    async def _forget_idle(self, mine: _OfLoop) -> None:
        while mine.idle:
            await mine.idle.pop().close()

    def before_fork(self) -> None:
        """Close all connections of SQLite's, each after the statement that it is at: see `Connections.before_fork`.

        Calls that are not over then begin again, in the parent: what they had not committed is undone. They cannot be
        waited for, since it may be their own event loop that forks. Nor can a connection that is just being opened on
        that loop: the child has its descriptor, on which nothing was executed yet but by listeners of the engine's.
        """
        if self._engine.dialect.name != "sqlite":
            return
        self._is_forking = True
        deadline = time.monotonic() + self._timeout + 1
        try:
            own: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            own = None
        with self._lock:
            others = [mine for loop, mine in self._loops.items() if loop is not own and not loop.is_closed()]
        _wait(lambda: not any(mine.opening for mine in others), deadline)
        with self._lock:
            lanes = list(self._lanes)
        for is_resting in [lane.rest() for lane in lanes]:
            _wait(is_resting, deadline)

    def after_fork_in_parent(self) -> None:
        """Let connections be opened again."""
        self._is_forking = False

    def after_fork_in_child(self) -> None:  # pragma: no cover  # runs in another process, which no coverage follows
        """Leave the parent's connections alone."""
        inherited.extend(self._lanes)
        inherited.extend(self._loops.values())
        self._lanes = weakref.WeakSet()
        self._loops = weakref.WeakKeyDictionary()
        self._is_forking = False


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(_MOMENT)


_MOMENT: Final = 0.001
