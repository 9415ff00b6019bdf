"""What calls on an event loop need: waiting tasks, a renewer per loop, sync stores behind worker threads."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar, cast

from idempo.decisions import failure
from idempo.errors import StoreError
from idempo.flights import Flight, Group, Room
from idempo.hub import Hub
from idempo.protocols import AsyncStore
from idempo.records import Key
from idempo.renewal import Renewer, Schedule

T = TypeVar("T")

_AT_ONCE: Final = 16  # renewals of one store under way on one loop


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

    @property
    def waits(self) -> bool:
        """See `Group.waits`: a closed loop has left its tasks behind."""
        return bool(self.members) and not self._loop.is_closed()

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
    task, requests = asyncio.ensure_future(step), _cancel_requests()
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what is raised
        elif _cancel_requests() == requests:
            raise StoreError("the store's own request was cancelled") from None
        raise


def _cancel_requests() -> int:
    """How often the running task was asked to be cancelled: by a CancelledError alone nobody knows who was meant."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


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


@asynccontextmanager
async def pooled(context: AbstractContextManager[Any], hub: Hub) -> AsyncIterator[None]:
    """Enter and leave a blocking store's context on the hub's worker threads; once entered, it is left."""
    loop = asyncio.get_running_loop()
    entered = loop.run_in_executor(hub.pool, context.__enter__)
    try:
        await shielded(entered)
        yield
    finally:
        if entered.exception() is None:
            await shielded(loop.run_in_executor(hub.pool, context.__exit__, None, None, None))


async def answered(step: Any) -> Any:
    """Return a direct store's answer, or await another's."""
    return await shielded(step) if inspect.isawaitable(step) else step


@asynccontextmanager
async def watching(store: Any, key: Key, wake: Callable[[], object], hub: Hub) -> AsyncIterator[None]:
    """Watch a key of any store that can be watched; ``wake`` may come from any thread."""
    watch = store.watch(key, wake)
    if hasattr(watch, "__aenter__"):
        async with watch:
            yield
    elif getattr(store, "blocking", True):
        async with pooled(watch, hub):
            yield
    else:
        with watch:
            yield


_left: Final[set[asyncio.Task[None]]] = set()
"""What runs on though nobody waits for it: a loop itself keeps no task alive."""


def begin_on(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on a loop, from any thread and without waiting; where the loop is closed, not at all."""

    def begin() -> None:
        task = loop.create_task(make())
        _left.add(task)
        task.add_done_callback(_left.discard)

    with suppress(RuntimeError):
        loop.call_soon_threadsafe(begin)


class LoopRenewer(Schedule):
    """Renews the leases of an async store's flights, by a timer of their loop and a task while renewals are due."""

    def __init__(self, lost: Callable[[Flight], None], settled: Callable[[Flight], None]) -> None:
        super().__init__(lost, settled)
        self._loop = asyncio.get_running_loop()
        self._alarm = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        self._busy_with: set[Flight] = set()
        self._landed = asyncio.Event()
        self._places = asyncio.Semaphore(_AT_ONCE)

    def adopt(self, other: Schedule) -> None:
        """See `Schedule.adopt`; ``other`` is the renewer of a closed loop."""
        super().adopt(other)
        self._wake(self.next_at())

    async def land(self, flight: Flight) -> None:
        """Wait until no renewal of this removed flight is under way, at most for its lease."""
        with suppress(TimeoutError):
            async with asyncio.timeout(flight.terms.policy.lease):
                while flight in self._busy_with:
                    self._landed.clear()
                    await self._landed.wait()

    def _wake(self, due: float) -> None:
        if self._round is not None or due >= self._alarm:  # a round that ends looks for itself what is due next
            return
        if self._timer is not None:
            self._timer.cancel()
        self._alarm = due
        # In a context of its own, as is the round: it works for all calls, and outlives the one that it was set by.
        pause = max(0.0, due - time.monotonic())
        self._timer = self._loop.call_later(pause, self._ring, context=contextvars.Context())

    def _ring(self) -> None:
        self._alarm, self._timer = math.inf, None
        due = self.due(time.monotonic())
        if due:
            # Not by the loop's task factory: an eager one would run all of it here, before it is known as the round.
            self._round = asyncio.Task(self._renew_all(due), loop=self._loop, name="idempo-renewer")
            # Not at the end of the round itself: one that is cancelled before its first step has none.
            self._round.add_done_callback(self._rest, context=contextvars.Context())
        else:
            self._wake(self.next_at())

    async def _renew_all(self, due: list[Flight]) -> None:
        async with asyncio.TaskGroup() as group:  # one after another would be too late for the last of many
            for flight in due:
                group.create_task(self._renew(flight))

    def _rest(self, _: asyncio.Task[None]) -> None:
        self._round = None
        self._wake(self.next_at())

    async def _renew(self, flight: Flight) -> None:
        store, policy = cast("AsyncStore", flight.terms.store), flight.terms.policy
        async with self._places:
            if flight not in self:
                return
            self._busy_with.add(flight)
            sent, offer = time.monotonic(), flight.offer
            answer: bool | BaseException
            try:
                if offer is not None:
                    answer = await store.complete(flight.key, owner=flight.owner, outcome=offer, ttl=policy.ttl)
                else:
                    answer = await store.renew(flight.key, owner=flight.owner, lease=policy.lease, ttl=policy.ttl)
            except asyncio.CancelledError:
                if _cancel_requests():
                    raise
                answer = StoreError("the store's own request was cancelled")
            except Exception as error:  # noqa: BLE001 (a store's bug must not end the renewal of its other calls)
                answer = failure(error)
            finally:
                self._busy_with.discard(flight)
                self._landed.set()
        self.answered(flight, offer, sent, answer)


def loop_renewer(hub: Hub) -> LoopRenewer:
    """Return the hub's renewer of the running loop."""
    loop = asyncio.get_running_loop()
    found: LoopRenewer | None = hub.loops.get(loop)
    if found is None:
        found = hub.loops[loop] = LoopRenewer(hub.flights.lose, hub.flights.dismiss)
        for other in list(hub.loops):
            left = hub.loops.pop(other, None) if other.is_closed() else None
            if left is not None:
                found.adopt(left)
    return found


async def landed(flight: Flight, renewer: LoopRenewer | Renewer, hub: Hub) -> None:
    """Wait until no renewal of this removed flight is under way, at most for its lease."""
    if isinstance(renewer, LoopRenewer):
        await renewer.land(flight)
    elif hub.blocking:
        await asyncio.get_running_loop().run_in_executor(hub.pool, renewer.land, flight)
    else:
        renewer.land(flight)
