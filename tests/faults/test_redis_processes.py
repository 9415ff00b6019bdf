"""Real processes that share a Redis server: they race, they are killed, they wait for each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from idempo import InDoubtError, Key, State
from idempo.stores.redis import RedisStore
from tests.redis_support import new_prefix
from tests.test_processes import HOLD, KILLED, LEASE, MOMENTS, RACE, WAITER, Processes, again, go, heard, killed

PRELUDE = """
import json, os, signal, sys, threading, time
import redis
from idempo import *
from idempo.stores.redis import RedisStore

(url, prefix), effects, policy, arguments = json.loads(sys.argv[1])

def note(text):
    with open(effects, "a") as file:
        file.write(text + "\\n")

def say(value):
    print(json.dumps(value), flush=True)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

guard = Idempotency(RedisStore(redis.Redis.from_url(url), prefix=prefix), **policy)
"""


class RedisProcesses(Processes):
    """Starts processes on one server."""

    prelude = PRELUDE

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        super().__init__(folder)

    def open(self) -> None:
        self.client = redis.Redis.from_url(self.url)
        self.store = RedisStore(self.client, prefix=new_prefix())

    @property
    def address(self) -> Any:
        return [self.url, self.store.prefix]

    def end(self) -> None:
        super().end()
        self.client.close()


@pytest.fixture
def processes(tmp_path: Path, redis_url: str) -> Iterator[RedisProcesses]:
    made = RedisProcesses(tmp_path, redis_url)
    yield made
    made.end()


def kill_at(processes: Processes, moment: str, **policy: Any) -> None:
    killed(processes.start(KILLED, MOMENTS[moment], lease=LEASE, **policy))
    assert processes.runs() == (["effect"] if moment == "after the effect" else [])


def test_of_many_processes_one_runs_and_all_get_its_value(processes: RedisProcesses) -> None:
    """Behaviour 1: for each of several keys, raced for at once."""
    keys = ["a", "b", "c"]
    racers = [processes.start(RACE, *keys, 4, wait=60) for _ in range(4)]
    assert [heard(racer) for racer in racers] == ["ready"] * 4
    go(*racers)
    for _ in keys:
        values = [heard(racer) for racer in racers]
        assert all(value == values[0] for value in values)
    assert sum(heard(racer) for racer in racers) == len(keys)
    assert len(processes.runs()) == len(keys)


def test_killed_before_the_claim_it_leaves_no_trace(processes: RedisProcesses) -> None:
    """Behaviour 25: whatever the policy, the next call is the first."""
    kill_at(processes, "before the claim", in_doubt="raise")
    assert processes.store.get(Key("default", "k")) is None
    assert processes.guard(in_doubt="raise").run("k", again) == "second"


@pytest.mark.realtime
@pytest.mark.parametrize("moment", ["after the claim", "mid-run", "after the effect"])
def test_killed_after_the_claim_it_leaves_doubt(processes: RedisProcesses, moment: str) -> None:
    """Behaviours 13, 21, 25, 26: refused while the lease stands; then never run again under "raise", or taken over."""
    kill_at(processes, moment)
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
def test_waiters_go_on_when_the_lease_of_a_dead_holder_is_out(processes: RedisProcesses) -> None:
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
