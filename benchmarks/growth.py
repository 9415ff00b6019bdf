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


def replaying_any(call: Call, made: Arguments, calls: int) -> Turn:
    """Return the turn that replays records that are drawn anew each time: none is still in the processor's cache."""
    draw = random.Random(42)

    def turn() -> float:
        drawn = draw.choices(made, k=calls)
        # A key comes from outside: it is a new text each time, and not the very object that the store holds.
        return time_calls(call, [("".join(list(order_id)), AMOUNT, CURRENCY) for order_id, *_ in drawn])

    return turn


def _grown(make: Make, size: Size) -> tuple[Turns, Turns]:
    small, small_made = filled(make, size.few)
    large, large_made = filled(make, size.many)
    replays = take_turns(
        {
            "few": replaying_any(small, small_made, size.calls),
            "many": replaying_any(large, large_made, size.calls),
        },
        size.rounds,
    )
    fresh = take_turns(
        {
            "few": lambda: time_calls(filled(make, size.few)[0], new_orders(size.calls)),  # or it would grow
            "many": lambda: time_calls(large, new_orders(size.calls)),
        },
        size.rounds,
    )
    return replays, fresh


def growth_figures(size: Size) -> Iterator[Figure]:
    """Measure calls on a store of few records and on one of many, side by side."""
    of_the_floor = _grown(with_floor, size)
    of_ours = _grown(with_idempo, size)
    for what, ours, floor in zip(("replay", "fresh call"), of_ours, of_the_floor, strict=True):
        figure = ours.figure(f"{what}, {size.few:,} → {size.many:,} records", "many", "few", 1.3)
        yield attrs.evolve(
            figure, base_name=f"on {size.few:,} records", note=f"the floor grows {floor.ratio('many', 'few'):.2f} ×"
        )
