"""What calls on an event loop need: waiting tasks, a renewer per loop, sync stores behind worker threads."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from idempo.errors import IdempotencyError, StoreError
from idempo.flights import Flight, Group, Room
from idempo.hub import Hub
from idempo.protocols import AsyncStore
from idempo.renewal import Schedule

T = TypeVar("T")


class LoopGroup(Group):
    """Waiting tasks of one event loop, each on a future of its own: cancelling one disturbs no other.

    One timer of the loop serves the deadlines of all of them; it is the loop's thread alone that sets and obeys it.
    """

    members: dict[asyncio.Future[None], None]

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self._loop = asyncio.get_running_loop()
        self._alarms: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def wake_at(self, future: asyncio.Future[None], when: float) -> None:
        """Wake a member at a time of `time.monotonic`, if nothing wakes it before."""
        heapq.heappush(self._alarms, (when, next(self._count), future))
        if self._alarms[0][2] is future:
            self._set()

    def left(self) -> None:
        """Take note that a member has left: nobody is to be woken where nobody waits."""
        if not self.members and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._alarms.clear()

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, self._alarms[0][0] - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer, now = None, time.monotonic()
        while self._alarms and (self._alarms[0][0] <= now or self._alarms[0][2].done()):
            _, _, future = heapq.heappop(self._alarms)
            if not future.done():
                future.set_result(None)
        if self._alarms:
            self._set()

    def wake_all(self) -> None:
        """See `Group.wake_all`: one message to the loop, however many wait there."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits there
            self._loop.call_soon_threadsafe(self._wake, None)

    def wake_one(self) -> None:
        """See `Group.wake_one`."""
        with suppress(RuntimeError):  # as above; every other loop was nudged as well
            self._loop.call_soon_threadsafe(self._wake, 1)

    def _wake(self, number: int | None) -> None:
        for future in list(self.members)[:number]:
            if not future.done():
                future.set_result(None)


async def shielded(step: Awaitable[T]) -> T:
    """Await a store's answer to its end, also when cancelled meanwhile: a request that was sent has an effect."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what is raised
        raise


class PooledStore:
    """A blocking store's methods as awaitables, run on the hub's worker threads."""

    def __init__(self, store: Any, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)
        return lambda *args, **kwargs: asyncio.get_running_loop().run_in_executor(
            self._hub.pool, partial(method, *args, **kwargs)
        )


class LoopRenewer:
    """Renews the leases of an async store's flights from a task of their loop, which ends when nothing flies."""

    def __init__(self, lost: Callable[[Flight], None], settled: Callable[[Flight], None]) -> None:
        self._schedule = Schedule(lost, settled)
        self._changed = asyncio.Event()
        self._alarm = math.inf
        self._task: asyncio.Task[None] | None = None
        self._busy_with: Flight | None = None
        self._landed = asyncio.Event()

    def add(self, flight: Flight) -> None:
        """See `Schedule.add`."""
        self._schedule.add(flight)
        self._start(flight.renew_at)

    def remove(self, flight: Flight) -> None:
        """See `Schedule.remove`."""
        self._schedule.remove(flight)

    def offer(self, flight: Flight, outcome: bytes) -> bool:
        """See `Schedule.add_offer`."""
        accepted = self._schedule.add_offer(flight, outcome)
        if accepted:
            self._start(flight.renew_at)
        return accepted

    async def land(self, flight: Flight) -> None:
        """Wait until no renewal of this removed flight is under way, at most for its lease."""
        with suppress(TimeoutError):
            async with asyncio.timeout(flight.terms.policy.lease):
                while self._busy_with is flight:
                    self._landed.clear()
                    await self._landed.wait()

    def _start(self, due: float) -> None:
        if self._task is None or self._task.done():
            # In a context of its own: it works for all calls, and outlives the one that it was started by.
            self._task = asyncio.get_running_loop().create_task(
                self._work(), name="idempo-renewer", context=contextvars.Context()
            )
        elif due < self._alarm:
            self._changed.set()

    async def _work(self) -> None:
        while self._schedule:
            self._changed.clear()
            for flight in self._schedule.due(time.monotonic()):
                await self._renew(flight)
            self._alarm = self._schedule.next_at()
            pause = self._alarm - time.monotonic()
            if pause > 0 and self._schedule:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._changed.wait()

    async def _renew(self, flight: Flight) -> None:
        store, policy = cast("AsyncStore", flight.terms.store), flight.terms.policy
        if flight not in self._schedule:
            return
        self._busy_with, sent = flight, time.monotonic()
        answer: bool | BaseException
        try:
            if flight.offer is not None:
                answer = await store.complete(flight.key, owner=flight.owner, outcome=flight.offer, ttl=policy.ttl)
            else:
                answer = await store.renew(flight.key, owner=flight.owner, lease=policy.lease, ttl=policy.ttl)
        except Exception as error:  # noqa: BLE001 (a store's bug must not end the renewal of its other calls)
            answer = error if isinstance(error, IdempotencyError) else StoreError(f"{type(error).__name__}: {error}")
        finally:
            self._busy_with = None
            self._landed.set()
        self._schedule.answered(flight, sent, answer)


def loop_renewer(hub: Hub) -> LoopRenewer:
    """Return the hub's renewer of the running loop."""
    loop = asyncio.get_running_loop()
    found: LoopRenewer | None = hub.loops.get(loop)
    if found is None:
        found = hub.loops[loop] = LoopRenewer(hub.lost, hub.flights.dismiss)
    return found
