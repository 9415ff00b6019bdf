"""A workload that is hard on a store: many threads on one key, and owners that come back too late."""

from __future__ import annotations

import itertools
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, TypeAlias, cast

from idempo.errors import StoreError
from idempo.protocols import AsyncStore, Store
from idempo.records import Key
from idempo.testing.bridge import PATIENCE, BlockingStore, LoopThread, is_async
from idempo.testing.clock import FakeClock
from idempo.testing.history import Asked, RecordingStore, late_writes
from idempo.testing.linearizability import check_history

_Script: TypeAlias = Sequence[Callable[[], object]]

_LONG: Final = 3600.0

# How a holder stands before the race for its key, round by round: already taken over; its lease run out; run out, but
# it alone acts first; alive; left in doubt; completed and forgotten; released.
_LOSSES: Final = ("taken", "lapsed", "alone", "live", "taken", "doubt", "forgotten", "lapsed", "released")


def check_store(
    store: Store | AsyncStore,
    *,
    clock: FakeClock | None = None,
    loop: LoopThread | None = None,
    rounds: int = 40,
    threads: int = 4,
    unit: float = 0.05,
    slack: float = 0.0,
    seed: int = 0,
    tokens_survive_delete: bool = True,
) -> Sequence[Asked]:
    """Drive a store hard from many threads, and check that its answers could come from single steps.

    Args:
        store: The store. The workload uses keys of its own, in a namespace of its own.
        clock: The store's clock, if it can be turned; else real time passes, some two units a round.
        loop: For an `AsyncStore`: the loop that its client belongs to; by default one is made.
        rounds: How many keys are fought over.
        threads: How many callers there are at once, at least 2.
        unit: A lease, in seconds.
        slack: By how much the store's clock may differ from this machine's over a lease, in seconds.
        seed: What the callers do follows from it; when they do it, does not.
        tokens_survive_delete: Whether fencing tokens must rise over deletion and expiry.

    Returns:
        The history, which was found to be right.

    Raises:
        NotLinearizableError: The answers contradict the protocol.
        AssertionError: Late owners, which the workload is about, hardly happened.
        ValueError: There are less than 2 threads.

    >>> from idempo import MemoryStore
    >>> from idempo.testing import FakeClock, check_store
    >>> clock = FakeClock()
    >>> len(check_store(MemoryStore(clock=clock), clock=clock)) > 500
    True
    """
    if threads < 2:
        raise ValueError(f"threads must be at least 2, or nobody is late, not {threads}")
    if is_async(store):
        with LoopThread() if loop is None else _left_open(loop) as thread:
            history = _Workload(BlockingStore(store, thread), clock, threads, unit, seed).run(rounds)
    else:
        history = _Workload(cast("Store", store), clock, threads, unit, seed).run(rounds)
    check_history(history, slack=slack, tokens_survive_delete=tokens_survive_delete)
    late = late_writes(history)
    assert late >= rounds, f"only {late} writes by late owners in {rounds} rounds: the history proves nothing"
    return history


@contextmanager
def _left_open(loop: LoopThread) -> Iterator[LoopThread]:
    yield loop


@contextmanager
def _hurried() -> Iterator[None]:
    """Let threads change places often, so that their steps interleave."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Workload:
    """Each round takes one key through a claim, its loss, and what its late owner and others do about it."""

    def __init__(self, store: Store, clock: FakeClock | None, threads: int, unit: float, seed: int) -> None:
        self._store = RecordingStore(store, clock=time.monotonic if clock is None else clock)
        self._advance: Callable[[float], object] = time.sleep if clock is None else clock.advance
        self._unit = unit
        self._namespace = f"workload-{secrets.token_hex(6)}"
        self._random = random.Random(seed)
        self._threads = threads
        self._barrier = threading.Barrier(threads)

    def run(self, rounds: int) -> list[Asked]:
        with _hurried(), ThreadPoolExecutor(self._threads) as pool:
            for number, how in zip(range(rounds), itertools.cycle(_LOSSES), strict=False):
                self._round(pool, Key(self._namespace, f"order-{number}"), how)
        return self._store.history

    def _round(self, pool: ThreadPoolExecutor, key: Key, how: str) -> None:
        owners = [f"first-{number}" for number in range(self._threads)]
        claims: list[_Script] = [[partial(self._claim, key, owner)] for owner in owners]
        self._at_once(pool, claims)
        holder = self._holder(key, owners[0])
        seconds = [f"second-{number}" for number in range(self._threads)]
        self._lose(key, holder, how)
        # While the others reach for the key, thread 0 is its owner, late or just in time.
        scripts = [self._writes(key, holder)]
        scripts += [[partial(self._claim, key, owner), *self._others(key, owner)] for owner in seconds[1:]]
        self._at_once(pool, scripts)
        # Whoever has it now ends twice, with two values, against an owner who is late for certain.
        second = self._holder(key, seconds[0])
        ends: _Script = [
            partial(self._complete, key, second, b"value"),
            partial(self._complete, key, second, b"another value"),
            partial(self._store.get, key),
        ]
        again: _Script = [partial(self._claim, key, holder, take_over=False), *self._writes(key, holder)]
        rest = [self._others(key, f"third-{number}") for number in range(self._threads - 2)]
        self._at_once(pool, [ends, again, *rest])
        self._at_once(pool, [self._others(key, f"fourth-{number}") for number in range(self._threads)])

    def _lose(self, key: Key, holder: str, how: str) -> None:
        """Bring the holder into one of the `_LOSSES`."""
        with suppress(StoreError):
            if how == "doubt":
                self._store.renew(key, owner=holder, lease=0, ttl=_LONG)
            elif how == "forgotten":
                self._store.complete(key, owner=holder, outcome=b"brief", ttl=self._unit)
            elif how == "released":
                self._store.release(key, owner=holder, ttl=_LONG)
        self._advance(self._unit / 2 if how == "live" else 2 * self._unit)
        if how == "taken":
            _act([partial(self._claim, key, "second-0")])
        elif how == "alone":
            _act(self._writes(key, holder)[:1])

    def _holder(self, key: Key, otherwise: str) -> str:
        with suppress(StoreError):
            record = self._store.get(key)
            if record is not None:
                return record.owner
        return otherwise

    def _writes(self, key: Key, owner: str) -> _Script:
        """All that an owner can write, in some order."""
        return self._shuffled(
            [
                partial(self._store.renew, key, owner=owner, lease=self._unit, ttl=_LONG),
                partial(self._complete, key, owner, b"late value"),
                partial(self._store.release, key, owner=owner, ttl=_LONG),
            ]
        )

    def _others(self, key: Key, owner: str) -> _Script:
        """Some of what others do: copies of a claim, reading, and writing as if they held the key."""
        stranger = f"stranger-{owner}"
        return self._shuffled(
            [
                partial(self._claim, key, owner),
                partial(self._store.get, key),
                partial(self._complete, key, stranger, b"stolen"),
                partial(self._store.release, key, owner=stranger, ttl=_LONG),
                partial(self._store.renew, key, owner=stranger, lease=self._unit, ttl=_LONG),
                partial(self._store.delete, key, owner=owner),
            ]
        )[:4]

    def _claim(self, key: Key, owner: str, *, take_over: bool | str = True) -> object:
        # A copy of a claim is a copy: what an owner claims with follows from its name.
        fingerprint = b"another payload" if owner in ("second-1", "fourth-1") else b"payload"
        return self._store.claim(
            key, owner=owner, fingerprint=fingerprint, lease=self._unit, ttl=_LONG, take_over=take_over
        )

    def _complete(self, key: Key, owner: str, outcome: bytes) -> object:
        return self._store.complete(key, owner=owner, outcome=outcome, ttl=_LONG)

    def _shuffled(self, actions: _Script) -> _Script:
        return self._random.sample(actions, len(actions))

    def _at_once(self, pool: ThreadPoolExecutor, scripts: Sequence[_Script]) -> None:
        def act(script: _Script) -> None:
            self._barrier.wait(PATIENCE)
            _act(script)

        # Shuffled, since whoever comes to the barrier last is the first to go on.
        for future in [pool.submit(act, script) for script in self._random.sample(scripts, len(scripts))]:
            future.result(PATIENCE)


def _act(script: _Script) -> None:
    for action in script:
        with suppress(StoreError):  # it is in the history, with an unknown answer
            action()
