"""Real processes that share a memcached or a NATS server: they race, they are killed, they wait for each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import InDoubtError, Key, State
from tests.kv_support import address_of, memcached_store, nats_store, new_prefix
from tests.test_processes import HOLD, KILLED, LEASE, MOMENTS, RACE, WAITER, Processes, again, go, heard, killed

PRELUDE = """
import json, os, signal, sys, threading, time
from idempo import *

(kind, url, prefix), effects, policy, arguments = json.loads(sys.argv[1])

def note(text):
    with open(effects, "a") as file:
        file.write(text + "\\n")

def say(value):
    print(json.dumps(value), flush=True)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if kind == "memcached":
    from pymemcache import PooledClient
    from idempo.stores.memcached import MemcachedStore
    host, port = url
    store = MemcachedStore(PooledClient((host, port), connect_timeout=5, timeout=5), prefix=prefix)
else:
    from idempo.stores.nats import SyncNatsStore
    store = SyncNatsStore(url, "faults", prefix=prefix)
guard = Idempotency(store, **policy)
"""


class ServedProcesses(Processes):
    """Starts processes on one server."""

    prelude = PRELUDE

    def __init__(self, folder: Path, kind: str, url: str) -> None:
        self.kind, self.url, self.prefix = kind, url, new_prefix()
        super().__init__(folder)

    def open(self) -> None:
        self.context = (memcached_store if self.kind == "memcached" else nats_store)(self.url, self.prefix)
        self.store = self.context.__enter__()
        self.store.close = lambda: self.context.__exit__(None, None, None)

    @property
    def address(self) -> Any:
        return [self.kind, address_of(self.url) if self.kind == "memcached" else self.url, self.prefix]

    def end(self) -> None:
        store = self.store
        close, store.close = store.close, lambda: None
        super().end()
        del store.close
        close()


@pytest.fixture(params=["memcached", "nats"])
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServedProcesses]:
    made = ServedProcesses(tmp_path, request.param, request.getfixturevalue(f"{request.param}_url"))
    yield made
    made.end()


def test_of_many_processes_one_runs_and_all_get_its_value(processes: ServedProcesses) -> None:
    """Behaviour 1: for each of several keys, raced for at once."""
    keys = ["a", "b"]
    racers = [processes.start(RACE, *keys, 3, wait=60) for _ in range(3)]
    assert [heard(racer) for racer in racers] == ["ready"] * 3
    go(*racers)
    for _ in keys:
        values = [heard(racer) for racer in racers]
        assert all(value == values[0] for value in values)
    assert sum(heard(racer) for racer in racers) == len(keys)
    assert len(processes.runs()) == len(keys)


def test_killed_before_the_claim_it_leaves_no_trace(processes: ServedProcesses) -> None:
    """Behaviour 25: whatever the policy, the next call is the first."""
    killed(processes.start(KILLED, MOMENTS["before the claim"], in_doubt="raise"))
    assert processes.store.get(Key("default", "k")) is None
    assert processes.guard(in_doubt="raise").run("k", again) == "second"


@pytest.mark.realtime
@pytest.mark.parametrize("moment", ["mid-run", "after the effect"])
def test_killed_after_the_claim_it_leaves_doubt(processes: ServedProcesses, moment: str) -> None:
    """Behaviours 13, 21, 25, 26: once the lease was watched; then never run again under "raise", or taken over."""
    killed(processes.start(KILLED, MOMENTS[moment], lease=LEASE))
    assert processes.runs() == (["effect"] if moment == "after the effect" else [])
    record = processes.store.get(Key("default", "k"))
    assert record is not None
    assert (record.state, record.attempt) == (State.RUNNING, 1)
    with pytest.raises(InDoubtError):
        processes.guard(wait=20, in_doubt="raise").run("k", again)
    guard = processes.guard(wait=20)
    assert guard.run("k", again) == "second"
    after = processes.store.get(Key("default", "k"))
    assert after is not None
    assert (after.attempt, after.token > record.token) == (2, True)
    assert guard.stats().taken_over == 1


@pytest.mark.realtime
def test_waiters_go_on_when_the_lease_of_a_dead_holder_is_out(processes: ServedProcesses) -> None:
    """Behaviours 13, 21: in other processes, long before their own deadline; one of them takes over."""
    holder = processes.start(HOLD, lease=1.0)
    assert heard(holder) == "holding"
    waiters = [processes.start(WAITER, wait=60) for _ in range(2)]
    assert [heard(waiter) for waiter in waiters] == ["waiting"] * 2
    holder.kill()
    killed_at = time.monotonic()
    assert [heard(waiter) for waiter in waiters] == ["taken over"] * 2
    assert time.monotonic() - killed_at < 20
    assert sum(heard(waiter) for waiter in waiters) == 1
