"""A token issued and redeemed, beside what it is made of: itsdangerous alone, and one fresh call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Final

from itsdangerous import URLSafeTimedSerializer

from benchmarks.measuring import Figure, Size, take_turns
from idempo import Idempotency, MemoryStore
from idempo.tokens import TokenIssuer

_SECRET: Final = "a secret of the benchmarks"
_DATA: Final = {"cart": 42}
_numbers = count()


def issue_and_redeem() -> Callable[[], object]:
    """Return what issues a token and redeems it, on a memory store."""
    issuer = TokenIssuer(MemoryStore(), secrets=_SECRET, ttl=3600)
    return lambda: issuer.redeem(issuer.issue("order", "user-7", _DATA), "order", "user-7").data


def by_itsdangerous() -> Callable[[], object]:
    """Return what signs the same with the time, and reads it: good for any number of times."""
    options = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    serializer = URLSafeTimedSerializer(_SECRET, salt="benchmarks", signer_kwargs=options)
    return lambda: serializer.loads(serializer.dumps(["order", "user-7", _DATA]), max_age=3600)[2]


def fresh_call() -> Callable[[], object]:
    """Return what runs one new operation, of a key as long as a token's id."""
    guard = Idempotency(MemoryStore(), namespace="benchmarks")

    def effect() -> None:
        return None

    return lambda: guard.run(f"operation-{next(_numbers):012d}", effect)


def seconds_of(calls: int, *parts: Callable[[], object]) -> float:
    """Return the seconds that one of so many calls takes, of one part or of several after each other."""
    taken = 0.0
    for part in parts:
        start = perf_counter()
        for _ in range(calls):
            part()
        taken += perf_counter() - start
    return taken / calls


def token_figures(size: Size) -> Iterator[Figure]:
    """Measure both, turn by turn, each from an empty store on."""
    ours, base = "idempo", "itsdangerous + a fresh call"
    parts = {"itsdangerous": by_itsdangerous, "a fresh call": fresh_call}
    turns = take_turns(
        {
            ours: lambda: seconds_of(size.calls, issue_and_redeem()),
            base: lambda: seconds_of(size.calls, *(make() for make in parts.values())),
            **{name: lambda make=make: seconds_of(size.calls, make()) for name, make in parts.items()},
        },
        size.rounds,
    )
    yield turns.figure("token issue and redeem", ours, base, 2.0, beside=parts)
