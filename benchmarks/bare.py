"""What a call on a store costs beside the same requests sent by the bare client, and beside a peer's call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeAlias

import attrs

from benchmarks.measuring import Figure, Size, take_turns
from benchmarks.single_calls import Arguments, Turn, new_orders

OURS: Final = "idempo"
PEER: Final = "idemkit"
TIMES_FASTER: Final = 2.0
"""How many times as long as ours a call of the peer must take."""

Request: TypeAlias = tuple[Any, ...]
Guarded: TypeAlias = Callable[[str, int, str], Any]
"""A guarded function, plain or of coroutines."""


@attrs.frozen
class Bare:
    """A bare client, and a store whose requests are noted so that the client can send the very same.

    Attributes:
        name: What is sent, in the report.
        note: Makes these calls on the store, and returns what they sent.
        forget: Takes out of the server what those calls left, so that their keys are new once more.
        send: Sends it, and returns the seconds that it took.
        beside: Other ways to send it, by name, that are reported and not compared with.
    """

    name: str
    note: Callable[[Arguments], list[Request]]
    forget: Callable[[list[Request]], object]
    send: Callable[[list[Request]], float]
    beside: Mapping[str, Callable[[list[Request]], float]] = attrs.field(factory=dict)


@attrs.frozen
class Colour:
    """How calls are timed: plain ones, or those of coroutines.

    Attributes:
        name: "sync" or "async".
        replaying: See `benchmarks.single_calls.replaying`.
        running: See `benchmarks.single_calls.running`.
    """

    name: str
    replaying: Callable[[Callable[[], Any], int], Turn]
    running: Callable[[Callable[[], Any], int], Turn]


def figures_beside_bare(
    where: str,
    bare: Bare,
    contenders: Mapping[str, Guarded],
    colour: Colour,
    size: Size,
    bar: float | None,
) -> Iterator[Figure]:
    """Measure replays and fresh calls beside the bare client's requests, and beside the peer where there is one.

    Args:
        where: The server, in the report.
        bare: The bare client.
        contenders: Guarded functions on that server: ours, and the peer's.
        colour: How they are timed.
        size: How much is measured.
        bar: How many times as long as the bare requests a call of ours may take; None for no bar.
    """
    calls, names = size.server_calls, list(contenders)

    def made(name: str) -> Callable[[], Guarded]:
        return lambda: contenders[name]

    ways = {bare.name: bare.send, **bare.beside}

    def sending(way: str, requests: list[Request], each: int) -> float:
        if len(requests) != calls * each:
            raise AssertionError(f"{where}: {calls} calls sent {len(requests)} requests, not {each} each")
        return ways[way](requests) / calls

    def sending_fresh(way: str) -> float:
        requests = bare.note(new_orders(calls))
        bare.forget(requests)
        return sending(way, requests, 2)

    completed = new_orders(calls)
    bare.note(completed)
    replays = bare.note(completed)
    each_turn: dict[str, dict[str, Turn]] = {
        "replay": {way: partial(sending, way, replays, 1) for way in ways},
        "fresh": {way: partial(sending_fresh, way) for way in ways},
    }
    for name in names:
        each_turn["replay"][name] = colour.replaying(made(name), calls)
        each_turn["fresh"][name] = colour.running(made(name), calls)
    for what, contending in each_turn.items():
        turns = take_turns(contending, size.server_rounds)
        title, times = f"{where}, {colour.name} {what}", 1 if what == "replay" else 2
        figure = turns.figure(title, OURS, bare.name, bar, beside=bare.beside)
        yield attrs.evolve(figure, base_name=f"{bare.name} × {times}")
        if PEER in contenders:
            yield turns.speed_up(f"{title}, against a peer", OURS, PEER, TIMES_FASTER)


def timed(send: Callable[[Request], object], requests: list[Request]) -> float:
    """Return the seconds that it takes to send them one after another."""
    start = perf_counter()
    for request in requests:
        send(request)
    return perf_counter() - start
