"""Storms: threads and tasks of several loops call a few keys at once, and fail, and are cancelled, at random.

Every call and every run of a body is recorded; what is then asked of the history is what the library promises.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest

from idempo import Idempotency, InProgressError, Key, MemoryStore, State, current_operation
from idempo.hub import hub_of
from idempo.stores.cas import AsyncCasStore, CasStore
from idempo.stores.sqlite import SqliteStore
from idempo.testing.backend import AsyncDictBackend, DictBackend
from idempo.upkeep import ask_async, lookup

KEYS = ("a", "b", "c")
THREADS, LOOPS, TASKS, CALLS = 3, 2, 12, 25
LUCK = 0.04  # of a body: how often it returns


class UnluckyError(Exception):
    """What a body raises now and then: its run, in words."""


@attrs.define
class Run:
    """One run of a body."""

    call: Call
    attempt: int
    token: int
    began: int
    ended: int = 0
    value: str | None = None

    @property
    def key(self) -> str:
        """The key that is run."""
        return self.call.key


@attrs.define
class Call:
    """One call, as its caller saw it."""

    key: str
    began: int
    chance: random.Random
    ended: int = 0
    value: str | None = None
    error: str | None = None


class Storm:
    """The callers, and the history that they make."""

    def __init__(self, store: Any, *, is_async: bool, seed: int) -> None:
        self.guard = Idempotency(store, namespace="storm", wait=20, lease=30)
        self.is_async = is_async
        self.seed = seed
        self.runs: list[Run] = []
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._clock = 0

    def now(self) -> int:
        """Return the next moment: no two are one."""
        with self._lock:
            self._clock += 1
            return self._clock

    def begin(self, call: Call) -> Run:
        """Record that a body begins."""
        operation = current_operation()
        run = Run(call, operation.attempt, operation.token, self.now())
        self.runs.append(run)
        return run

    def end(self, run: Run) -> str:
        """End a body, with luck or without."""
        if run.call.chance.random() > LUCK:
            run.ended = self.now()
            raise UnluckyError(f"{run.key}.{run.attempt}")
        run.value = f"{run.key}.{run.attempt}.{run.token}"
        run.ended = self.now()
        return run.value

    def body(self, call: Call) -> str:
        """Return a value, or raise."""
        run = self.begin(call)
        time.sleep(call.chance.random() * 0.003)
        return self.end(run)

    async def body_async(self, call: Call) -> str:
        """`body`, which can be cancelled."""
        run = self.begin(call)
        try:
            await asyncio.sleep(call.chance.random() * 0.003)
        except asyncio.CancelledError:
            run.ended = self.now()
            raise
        return self.end(run)

    def note(self, call: Call, value: str | None, error: BaseException | None) -> None:
        """Record how a call ended."""
        call.value = value
        call.error = None if error is None else f"{type(error).__name__}: {error}"
        call.ended = self.now()
        self.calls.append(call)

    def in_thread(self, number: int) -> None:
        """Call again and again."""
        chance = random.Random(f"{self.seed} thread {number}")
        for _ in range(CALLS):
            call = Call(chance.choice(KEYS), self.now(), chance)
            try:
                value = self.guard.run(call.key, self.body, call, payload=call.key)
            except (UnluckyError, InProgressError) as error:
                self.note(call, None, error)
            else:
                self.note(call, value, None)

    async def in_loop(self, number: int) -> None:
        """Let tasks call at once, each on time and some cancelled."""

        async def one(chance: random.Random) -> None:
            for _ in range(CALLS // 5):
                call = Call(chance.choice(KEYS), self.now(), chance)
                try:
                    async with asyncio.timeout(chance.choice([None, None, 0.0, 0.001, 0.004])):
                        value = await self.guard.run_async(call.key, self.body_async, call, payload=call.key)
                except (UnluckyError, InProgressError, TimeoutError) as error:
                    self.note(call, None, error)
                else:
                    self.note(call, value, None)
                await asyncio.sleep(chance.random() * 0.002)

        await asyncio.gather(*(one(random.Random(f"{self.seed} task {number} {task}")) for task in range(TASKS)))

    def rage(self) -> None:
        """Let all of them loose, and wait for the last."""
        threads = [
            threading.Thread(target=asyncio.run, args=(self.in_loop(number),), daemon=True) for number in range(LOOPS)
        ]
        if not self.is_async:
            threads += [threading.Thread(target=self.in_thread, args=(n,), daemon=True) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a call never ended"

    def check(self) -> None:
        """Hold the history against the promise."""
        for key in KEYS:
            runs = sorted((run for run in self.runs if run.key == key), key=lambda run: run.began)
            for earlier, later in itertools.pairwise(runs):
                assert earlier.ended < later.began, "two runs at once"
                assert earlier.value is None, "a run after one that had completed"
                assert earlier.token < later.token
            values = [run.value for run in runs if run.value is not None]
            failed = {f"UnluckyError: {run.key}.{run.attempt}": run for run in runs if run.value is None}
            for call in self.calls:
                if call.key != key:
                    continue
                assert call.value is None or [call.value] == values
                if call.error is not None and call.error.startswith("UnluckyError"):
                    run = failed[call.error]
                    assert run.began < call.ended, "an error from the future"
                    assert run.call.ended > call.began, "an error of a call that was over before this one began"
            record = asyncio.run(ask_async(self.guard.store, lookup(Key("storm", key))))
            if values:
                assert record is not None
                assert record.state is State.COMPLETED
            else:
                assert record is None or record.state is State.RELEASED, "a key is stuck"
        hub = hub_of(self.guard.store)
        assert len(hub.flights) == 0


def memory(path: Path) -> AbstractContextManager[Any]:
    return nullcontext(MemoryStore())


def cas(path: Path) -> AbstractContextManager[Any]:
    return nullcontext(CasStore(DictBackend()))


def async_cas(path: Path) -> AbstractContextManager[Any]:
    return nullcontext(AsyncCasStore(AsyncDictBackend(DictBackend())))


def sqlite(path: Path) -> AbstractContextManager[Any]:
    return SqliteStore(path / "storm.db", synchronous="NORMAL")


@pytest.fixture(params=[memory, cas, async_cas, sqlite])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_leaves_a_history_that_keeps_the_promise(
    make: Callable[[Path], AbstractContextManager[Any]], tmp_path: Path, seed: int
) -> None:
    """Behaviours 1, 12, 15, 30, 42: no two runs at once, none after one that completed, no key stuck."""
    with make(tmp_path) as store:
        storm = Storm(store, is_async=make is async_cas, seed=seed)
        storm.rage()
        assert len(storm.calls) > LOOPS * TASKS
        storm.check()
