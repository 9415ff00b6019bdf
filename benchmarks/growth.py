"""What the number of records costs a call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

import attrs

from benchmarks.contenders import AMOUNT, CURRENCY, Call, charge
from benchmarks.floor import by_hand
from benchmarks.measuring import Figure, Size, Turns, take_turns
from benchmarks.single_calls import Arguments, Turn, new_orders, time_calls
from idempo import MemoryStore, idempotent

Make: TypeAlias = Callable[[int], Call]


def with_idempo(max_records: int) -> Call:
    """Guard `charge` on a memory store that has room for so many records."""
    return idempotent(key="order_id", store=MemoryStore(max_records=max_records), namespace="benchmarks")(charge)


def with_floor(max_records: int) -> Call:
    """Guard `charge` by hand, with room for so many records."""
    return by_hand(charge, max_records=max_records)


def filled(make: Make, records: int) -> tuple[Call, Arguments]:
    """Return a guarded function whose store holds so many records, and the calls that made them."""
    call, made = make(2 * records + 100_000), new_orders(records)
    for each in made:
        call(*each)
    return call, made


def replaying_some(call: Call, made: Arguments, calls: int) -> Turn:
    """Return the turn that replays some of these, drawn anew each time."""
    draw = random.Random(42)

    def turn() -> float:
        drawn = draw.choices(made, k=calls)
        # A key comes from outside: it is a new text each time, and not the very object that the store holds.
        return time_calls(call, [("".join(list(order_id)), AMOUNT, CURRENCY) for order_id, *_ in drawn])

    return turn


@attrs.frozen
class Grown:
    """What "few" and "many" records took, each in turns."""

    recent: Turns
    scattered: Turns
    fresh: Turns


def grown(make: Make, size: Size) -> Grown:
    """Measure a store of few records and one of many, side by side.

    Duplicates come soon after the first call, so the figure of a replay is that of the *recent* operations: as many as
    the small store holds. A replay of any of a million reads memory that no cache of the processor holds, which costs
    a large table of any kind as much; that is measured too, as *scattered*.
    """
    small, small_made = filled(make, size.few)
    large, large_made = filled(make, size.many)

    def replays(made: Arguments) -> Turns:
        return take_turns(
            {
                "few": replaying_some(small, small_made, size.calls),
                "many": replaying_some(large, made, size.calls),
            },
            size.rounds,
        )

    def fresh_calls_on_few() -> float:
        small_again, _ = filled(make, size.few)  # or it would grow
        return time_calls(small_again, new_orders(size.calls))

    return Grown(
        recent=replays(large_made[-size.few :]),
        scattered=replays(large_made),
        fresh=take_turns(
            {"few": fresh_calls_on_few, "many": lambda: time_calls(large, new_orders(size.calls))}, size.rounds
        ),
    )


def growth_figures(size: Size) -> Iterator[Figure]:
    """Measure calls on a store of few records and on one of many."""
    floor, ours = grown(with_floor, size), grown(with_idempo, size)
    step = f"{size.few:,} → {size.many:,} records"

    def figure(what: str, taken: Turns, beside: Turns) -> Figure:
        note = f"the floor grows {beside.ratio('many', 'few'):.2f} ×"
        found = taken.figure(f"{what}, {step}", "many", "few", 1.3)
        return attrs.evolve(found, base_name=f"on {size.few:,} records", note=note)

    replay = figure("replay", ours.recent, floor.recent)
    scattered = (
        f"scattered over all records, idempo grows {ours.scattered.ratio('many', 'few'):.2f} × "
        f"and the floor {floor.scattered.ratio('many', 'few'):.2f} ×"
    )
    yield attrs.evolve(replay, note=f"{replay.note}; {scattered}")
    yield figure("fresh call", ours.fresh, floor.fresh)
