"""What one guarded call costs: replayed and fresh, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import TypeAlias

from benchmarks.contenders import (
    AMOUNT,
    BARE_CACHE,
    CURRENCY,
    FLOOR,
    IDEMPO,
    IDEMPO_UNCHECKED,
    AsyncCall,
    Call,
    Peers,
)
from benchmarks.measuring import Figure, Size, take_turns

Arguments: TypeAlias = list[tuple[str, int, str]]
Turn: TypeAlias = Callable[[], float]

_numbers = count()


def new_orders(how_many: int) -> Arguments:
    """Return the arguments of so many calls, each with an order number of 16 characters that was never used before."""
    return [(f"order-{next(_numbers):010d}", AMOUNT, CURRENCY) for _ in range(how_many)]


def time_calls(call: Call, arguments: Arguments) -> float:
    """Return the seconds that one of the calls takes."""
    start = perf_counter()
    for each in arguments:
        call(*each)
    return (perf_counter() - start) / len(arguments)


def replaying(make: Callable[[], Call], calls: int) -> Turn:
    """Return the turn that replays so many completed operations, each once."""
    call, arguments = make(), new_orders(calls)
    time_calls(call, arguments)
    return lambda: time_calls(call, arguments)


def running(make: Callable[[], Call], calls: int) -> Turn:
    """Return the turn that runs so many new operations, from an empty store on."""
    return lambda: time_calls(make(), new_orders(calls))


class AwaitedTurns:
    """As `replaying` and `running`, for coroutine functions on one event loop."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def replaying(self, make: Callable[[], AsyncCall], calls: int) -> Turn:
        """See `replaying`."""
        call, arguments = make(), new_orders(calls)
        self.time(call, arguments)
        return lambda: self.time(call, arguments)

    def running(self, make: Callable[[], AsyncCall], calls: int) -> Turn:
        """See `running`."""
        return lambda: self.time(make(), new_orders(calls))

    def time(self, call: AsyncCall, arguments: Arguments) -> float:
        """See `time_calls`."""

        async def one_after_another() -> float:
            start = perf_counter()
            for each in arguments:
                await call(*each)
            return (perf_counter() - start) / len(arguments)

        return self._runner.run(one_after_another())


def sync_figures(size: Size, peers: Peers) -> Iterator[Figure]:
    """Measure plain functions against the floor and the peers."""
    contenders = [IDEMPO, IDEMPO_UNCHECKED, FLOOR, BARE_CACHE, *peers.present.values()]
    others = [contender.name for contender in contenders if contender not in (IDEMPO, FLOOR)]
    peer = "exactly-once"

    turns = take_turns({each.name: replaying(each.guarded, size.calls) for each in contenders}, size.rounds)
    yield turns.figure("sync replay", IDEMPO.name, FLOOR.name, 1.2, beside=others)
    if peer in peers.present:
        yield turns.figure("sync replay, payload=None", IDEMPO_UNCHECKED.name, peer, 1.0)

    turns = take_turns({each.name: running(each.guarded, size.calls) for each in contenders}, size.rounds)
    yield turns.figure("sync fresh", IDEMPO.name, FLOOR.name, 1.3, beside=others)
    if peer in peers.present:
        yield turns.figure("sync fresh, against a peer", IDEMPO.name, peer, 0.9)


def async_figures(size: Size, peers: Peers) -> Iterator[Figure]:
    """Measure coroutine functions against our own plain ones and the peers' coroutine functions."""
    guards = {name: each.guarded_async for name, each in peers.present.items() if each.guarded_async}
    ours, ours_sync = IDEMPO.guarded_async, "idempo, sync"
    assert ours is not None
    with asyncio.Runner() as runner:
        awaited = AwaitedTurns(runner)
        for what, turn, awaited_turn in (
            ("replay", replaying, awaited.replaying),
            ("fresh", running, awaited.running),
        ):
            turns = take_turns(
                {
                    ours_sync: turn(IDEMPO.guarded, size.calls),
                    IDEMPO.name: awaited_turn(ours, size.calls),
                    **{name: awaited_turn(guard, size.calls) for name, guard in guards.items()},
                },
                size.rounds,
            )
            yield turns.figure(f"async {what}", IDEMPO.name, ours_sync, 1.2, beside=guards)
            if guards:
                fastest = min(guards, key=turns.middle)
                yield turns.speed_up(f"async {what}, against the fastest peer", IDEMPO.name, fastest, 5)
