"""`_sql_listening` for coroutines: a task for each event loop on which a key is watched."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from idempo._fork import forks, inherited
from idempo.records import Key
from idempo.stores._sql_listening import (
    IDLE,
    LOCK,
    PATIENCE,
    UNLOCK,
    Watched,
    Watching,
    not_listening,
    pauses,
    wake_all,
)
from idempo.stores._sql_records import named


class AsyncListener:
    """`Listener` for the event loops that use the store. The arguments are the same."""

    def __init__(
        self,
        open_: Callable[[], Awaitable[Any]],
        statements: Watching,
    ) -> None:
        self._open = open_
        self._statements = statements
        self._closed = False
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _OfLoop] = weakref.WeakKeyDictionary()
        self._generation = forks.generation

    @asynccontextmanager
    async def watch(self, key: Key, wake: Callable[[], None]) -> AsyncIterator[None]:
        """See `AsyncWatchableStore.watch`."""
        mine = self._of_loop()
        name = named(key)
        id_ = name.id.hex()
        watched = mine.watched.get(id_)
        if watched is None:
            watched = mine.watched[id_] = Watched(self._statements.watch_of(name), asyncio.Event())
            mine.undone.append((LOCK, watched.number))
        watched.wakes.append(wake)
        try:
            self._go_on(mine)
            try:
                async with asyncio.timeout(PATIENCE):
                    await watched.ready.wait()
            except TimeoutError:
                raise not_listening(key) from None
            if watched.lost:
                raise not_listening(key)
            yield
        finally:
            watched.wakes.remove(wake)
            if not watched.wakes and mine.watched.get(id_) is watched:
                del mine.watched[id_]
                if mine.task is not None:  # else the lock has gone with the connection
                    mine.undone.append((UNLOCK, watched.number))
                    self._go_on(mine)

    async def close(self) -> None:
        """End the task of this loop, and close its connection."""
        self._closed = True
        task = self._of_loop().task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    def _of_loop(self) -> _OfLoop:
        if self._generation != forks.generation:
            inherited.extend(self._loops.values())
            self._loops = weakref.WeakKeyDictionary()
            self._generation = forks.generation
        loop = asyncio.get_running_loop()
        mine = self._loops.get(loop)
        if mine is None:
            mine = self._loops[loop] = _OfLoop()
        return mine

    def _go_on(self, mine: _OfLoop) -> None:
        mine.nudge.set()
        if mine.task is None and not self._closed:
            # Not by the loop's task factory: an eager one might run all of it before it is known as the task.
            loop = asyncio.get_running_loop()
            mine.task = asyncio.Task(self._run(mine), loop=loop, name="idempo-listener")

    async def _run(self, mine: _OfLoop) -> None:
        try:
            again = False
            for pause in pauses():  # pragma: no branch  # without end
                with suppress(Exception):  # whatever it is: see `Listener`
                    lane = await self._open()
                    try:
                        await self._serve(mine, lane, again=again)
                    finally:
                        await lane.close()
                mine.lose()
                if not mine.watched:
                    break  # pragma: no cover  # by chance: the last one left while the connection was being lost
                again = True
                await asyncio.sleep(pause)
        finally:
            mine.task = None
            mine.undone.clear()
            mine.lose()

    async def _serve(self, mine: _OfLoop, lane: Any, *, again: bool) -> None:
        def told(id_: str) -> None:
            watched = mine.watched.get(id_)
            if watched is not None:
                wake_all(watched.wakes)

        await lane.listen(f'LISTEN "{self._statements.channel}"', told)
        mine.undone.clear()
        mine.undone.extend((LOCK, watched.number) for watched in mine.watched.values())
        await _execute(mine, lane)
        if again:  # changes of before may have been missed
            for watched in mine.watched.values():
                wake_all(watched.wakes)
        loop = asyncio.get_running_loop()
        while True:
            # The driver itself waits for the socket while it executes a statement.
            loop.add_reader(lane.fileno(), mine.nudge.set)
            try:
                async with asyncio.timeout(IDLE):
                    await mine.nudge.wait()
            except TimeoutError:
                if not mine.watched and not mine.undone:
                    return
            finally:
                loop.remove_reader(lane.fileno())
            mine.nudge.clear()
            lane.notified()
            await _execute(mine, lane)


class _OfLoop:
    """What belongs to one event loop."""

    def __init__(self) -> None:
        self.watched: dict[str, Watched[asyncio.Event]] = {}
        self.undone: deque[tuple[str, int]] = deque()
        self.nudge = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def lose(self) -> None:
        """Let whoever waits look for himself as long as nobody tells him."""
        for watched in self.watched.values():
            watched.lost = True
            watched.ready.set()
            wake_all(watched.wakes)


async def _execute(mine: _OfLoop, lane: Any) -> None:
    while mine.undone:
        statement, number = mine.undone.popleft()
        await lane.execute(statement, {"number": number})
    for watched in mine.watched.values():
        watched.lost = False
        watched.ready.set()
