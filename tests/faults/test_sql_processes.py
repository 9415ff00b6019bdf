"""Real processes that share an SQL database: they race, they are killed, they wait for each other, they fork."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import Idempotency, InDoubtError, Key, State
from tests.forked import in_child
from tests.sql_support import URLS, Database, claimed, key
from tests.test_processes import HOLD, KILLED, LEASE, MOMENTS, RACE, WAITER, Processes, again, go, heard, killed

PRELUDE = """
import json, os, signal, sys, threading, time
import sqlalchemy
from idempo import *
from idempo.stores.sqlalchemy import SqlAlchemyStore

(url, table), effects, policy, arguments = json.loads(sys.argv[1])

def note(text):
    with open(effects, "a") as file:
        file.write(text + "\\n")

def say(value):
    print(json.dumps(value), flush=True)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

guard = Idempotency(SqlAlchemyStore(sqlalchemy.create_engine(url), table=table), **policy)
"""


class SqlProcesses(Processes):
    """Starts processes on one database."""

    prelude = PRELUDE

    def __init__(self, folder: Path, kind: str, url: str) -> None:
        self.kind, self.url = kind, url
        super().__init__(folder)

    def open(self) -> None:
        self.database = Database(self.kind, self.url)
        self.store = self.database.store()

    @property
    def address(self) -> Any:
        return [self.url, self.database.table]

    def end(self) -> None:
        super().end()
        self.database.end()


@pytest.fixture(params=URLS)
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlProcesses]:
    made = SqlProcesses(tmp_path, request.param, request.getfixturevalue(URLS[request.param]))
    yield made
    made.end()


def kill_at(processes: Processes, moment: str, **policy: Any) -> None:
    killed(processes.start(KILLED, MOMENTS[moment], lease=LEASE, **policy))
    assert processes.runs() == (["effect"] if moment == "after the effect" else [])


def test_of_many_processes_one_runs_and_all_get_its_value(processes: SqlProcesses) -> None:
    """Behaviour 1: for each of several keys, raced for at once."""
    keys = ["a", "b", "c"]
    racers = [processes.start(RACE, *keys, 3, wait=60) for _ in range(3)]
    assert [heard(racer) for racer in racers] == ["ready"] * 3
    go(*racers)
    for _ in keys:
        values = [heard(racer) for racer in racers]
        assert all(value == values[0] for value in values)
    assert sum(heard(racer) for racer in racers) == len(keys)
    assert len(processes.runs()) == len(keys)


def test_killed_before_the_claim_it_leaves_no_trace(processes: SqlProcesses) -> None:
    """Behaviour 25: whatever the policy, the next call is the first."""
    kill_at(processes, "before the claim", in_doubt="raise")
    assert processes.store.get(Key("default", "k")) is None
    assert processes.guard(in_doubt="raise").run("k", again) == "second"


@pytest.mark.realtime
@pytest.mark.parametrize("moment", ["after the claim", "after the effect"])
def test_killed_after_the_claim_it_leaves_doubt(processes: SqlProcesses, moment: str) -> None:
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
def test_waiters_go_on_when_the_lease_of_a_dead_holder_is_out(processes: SqlProcesses) -> None:
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


def test_no_connection_crosses_a_fork(processes: SqlProcesses) -> None:
    """Behaviour 43: the child opens its own, and the parent's are as they were when it has ended."""
    store = processes.store
    guard = Idempotency(store, namespace="forked")
    claimed(store, key("parents"))

    def child() -> None:
        assert guard.run("order-42", str.upper, "placed") == "PLACED"
        assert not claimed(store, key("parents"), "child").acquired
        store.close()

    in_child(child)
    assert guard.run("order-42", str.lower, "placed") == "PLACED"
    assert store.complete(key("parents"), owner="owner-a", outcome=b"", ttl=60)


def test_coroutines_of_a_forked_child_have_connections_of_their_own(processes: SqlProcesses) -> None:
    """Behaviour 43: on the child's own loop; the parent's loop goes on."""
    store = processes.database.async_store()

    async def claim(value: str) -> None:
        claim = await store.claim(key(value), owner="owner-a", fingerprint=None, lease=60, ttl=60)
        assert claim.acquired

    async def main() -> None:
        await claim("before")
        in_child(in_thread)
        await claim("after")
        await store.aclose()

    def in_thread() -> None:
        import threading

        failed: list[BaseException] = []

        def work() -> None:
            try:
                asyncio.run(claim("child"))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not failed, failed

    asyncio.run(main())
