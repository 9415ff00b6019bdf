"""What a fingerprint costs, beside SHA-256 of sorted JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.floor import fingerprint_by_hand
from benchmarks.measuring import Figure, Size, take_turns
from idempo import fingerprint


def small_payload() -> dict[str, Any]:
    """Return a payload of 100 bytes of JSON."""
    return {"order_id": "order-00042", "amount": 1250, "currency": "EUR", "tags": ["web", "eu"], "gift": False}


def large_payload() -> dict[str, Any]:
    """Return a payload of some 70 kB of JSON: 372 order lines as a web shop sends them."""
    return {
        "order_id": "order-0000000042",
        "customer": {"name": "Zoë Ångström", "email": "zoe@example.org", "vip": True, "referrer": None},
        "lines": [
            {
                "sku": f"sku-{number:06d}",
                "title": f"A thing of the kind number {number}, in blue",
                "quantity": number % 7 + 1,
                "unit_price": number * 1.25,
                "discount": None if number % 3 else {"code": "SPRING", "percent": 15},
                "in_stock": number % 2 == 0,
                "tags": ["new", "blue", "eu"],
            }
            for number in range(372)
        ],
    }


def time_one(digest: Callable[[Any], bytes], payload: Any, times: int) -> float:
    """Return the seconds that one digest of the payload takes."""
    start = perf_counter()
    for _ in range(times):
        digest(payload)
    return (perf_counter() - start) / times


def fingerprint_figures(size: Size) -> Iterator[Figure]:
    """Measure `idempo.fingerprint` on a small and a large payload."""
    for name, payload, times, bar in (
        ("fingerprint of 100 bytes", small_payload(), size.calls, 1.3),
        ("fingerprint of 70 kB", large_payload(), max(size.calls // 50, 1), 1.4),
    ):
        turns = take_turns(
            {
                "idempo": partial(time_one, fingerprint, payload, times),
                "SHA-256 of sorted JSON": partial(time_one, fingerprint_by_hand, payload, times),
            },
            size.rounds,
        )
        yield turns.figure(name, "idempo", "SHA-256 of sorted JSON", bar)


def json_bytes(payload: Any) -> int:
    """Return how many bytes the payload has as JSON."""
    return len(json.dumps(payload))
