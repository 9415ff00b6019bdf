"""`_sql_connections` for coroutines: a set of connections for each event loop, since none may cross to another."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from idempo._fork import forks, inherited, new_lock
from idempo.errors import IdempotencyError, StoreError
from idempo.stores._sql_connections import NOT_KNOWN, is_unsure, key_of, pause, refuse_late, translated_by
from idempo.stores._sql_errors import Trouble, trouble_of
from idempo.stores._sql_scripts import AnswerLost, Rows, Script
from idempo.stores._sql_table import DatabaseError

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")


class AsyncLaneLike(Protocol):
    """One connection."""

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
        sync = engine.sync_engine
        self.factory = AsyncEngine(sa.Engine(sync.pool.recreate(), sync.dialect, sync.url))


class AsyncConnections:
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
        self._generation = forks.generation

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
                kept = trouble is not Trouble.CUT and await lane.settle()
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
        if self._generation != forks.generation:
            inherited.extend(self._loops.values())
            self._loops = weakref.WeakKeyDictionary()
            self._generation = forks.generation
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
        if mine.idle:
            return mine.idle.pop()
        try:
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
        async with asyncio.timeout(self._timeout):
            fairy = await self._of_loop().factory.raw_connection()
            connection = fairy.driver_connection
            fairy.detach()  # from here on it is the store's alone
            lane = self._lane(connection)
            try:
                await lane.begin()
            except BaseException:
                await lane.close()
                raise
        return lane

    async def _give(self, mine: _OfLoop, lane: AsyncLaneLike, *, kept: bool) -> None:
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
