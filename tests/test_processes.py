"""Real processes that share one SQLite file: they race, they are killed, they come back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import RERUN, UNKNOWN, Idempotency, InDoubtError, InProgressError, Key, Resolved, State
from idempo.stores.sqlite import SqliteStore

# What each process begins with: a guard on the file, an effect that notes each run in another file, a way to wait for
# a line of the test's, and one to tell it something.
PRELUDE = """
import json, os, signal, sys, threading, time
from idempo import *
from idempo.stores.sqlite import SqliteStore

path, effects, policy, arguments = json.loads(sys.argv[1])

def note(text):
    with open(effects, "a") as file:
        file.write(text + "\\n")

def say(value):
    print(json.dumps(value), flush=True)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

guard = Idempotency(SqliteStore(path, synchronous="NORMAL"), **policy)
"""


class Processes:
    """Starts processes on one file, and ends those that a test leaves."""

    prelude = PRELUDE
    store: Any

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records.db"
        self.effects = folder / "effects"
        self.started: list[subprocess.Popen[str]] = []
        self.open()

    def open(self) -> None:
        self.store = SqliteStore(self.path, synchronous="NORMAL")
        self.store.create_table()

    @property
    def address(self) -> str:
        """What each process is told of the store."""
        return str(self.path)

    def start(self, program: str, *arguments: Any, **policy: Any) -> subprocess.Popen[str]:
        given = json.dumps([self.address, str(self.effects), policy, arguments])
        process = subprocess.Popen(
            [sys.executable, "-c", self.prelude + program, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def runs(self) -> list[str]:
        return self.effects.read_text().split() if self.effects.exists() else []

    def guard(self, **policy: Any) -> Idempotency:
        return Idempotency(self.store, **policy)

    def end(self) -> None:
        self.store.close()
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> Any:
    """Return the next thing that a process says."""
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def killed(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors


RACE = """
say("ready")
sys.stdin.readline()

*keys, racers = arguments
asked = effects + ".asked"

def effect(amount):
    note(str(os.getpid()))
    while open(asked).read().split().count(key) < racers:
        time.sleep(0.001)
    time.sleep(0.02)  # all are at their claim by now, and find it running
    return {"by": os.getpid(), "amount": amount}

for key in keys:
    with open(asked, "a") as file:
        file.write(key + "\\n")
    say(guard.run(key, effect, 5))
say(guard.stats().executed)
"""


def test_of_many_processes_one_runs_and_all_get_its_value(processes: Processes) -> None:
    """Behaviour 1: for each of several keys, raced for at once."""
    keys = ["a", "b", "c"]
    racers = [processes.start(RACE, *keys, 4, wait=60) for _ in range(4)]
    assert [heard(racer) for racer in racers] == ["ready"] * 4
    go(*racers)
    for _ in keys:
        values = [heard(racer) for racer in racers]
        assert all(value == values[0] for value in values)
        assert values[0]["amount"] == 5
    assert sum(heard(racer) for racer in racers) == len(keys)
    assert len(processes.runs()) == len(keys)


# Where a process is killed: on its way to the claim, right behind it, in the middle of the function, behind the effect
# and before the outcome is stored.
MOMENTS = {
    "before the claim": "store.claim = lambda *args, **kwargs: kill()",
    "after the claim": "store.claim = after(store.claim)",
    "mid-run": "before = kill",
    "after the effect": "store.complete = lambda *args, **kwargs: kill()",
}
KILLED = """
store = guard.store
before = lambda: None

def after(method):
    def call(*args, **kwargs):
        method(*args, **kwargs)
        kill()
    return call

exec(arguments[0])

def effect():
    before()
    note("effect")
    return "first"

guard.run("k", effect)
"""
LEASE = 0.3


def kill_at(processes: Processes, moment: str, **policy: Any) -> None:
    killed(processes.start(KILLED, MOMENTS[moment], lease=LEASE, **policy))
    assert processes.runs() == (["effect"] if moment == "after the effect" else [])


def again() -> str:
    return "second"


def test_killed_before_the_claim_it_leaves_no_trace(processes: Processes) -> None:
    """Behaviour 25: whatever the policy, the next call is the first."""
    kill_at(processes, "before the claim", in_doubt="raise")
    assert processes.store.get(Key("default", "k")) is None
    assert processes.guard(in_doubt="raise").run("k", again) == "second"


AFTER_THE_CLAIM = ["after the claim", "mid-run", "after the effect"]


@pytest.mark.realtime
@pytest.mark.parametrize("moment", AFTER_THE_CLAIM)
def test_killed_after_the_claim_it_is_taken_over_under_rerun(processes: Processes, moment: str) -> None:
    """Behaviours 21, 25: at least once: refused while the lease stands, then attempt 2, with a greater token."""
    kill_at(processes, moment)
    record = processes.store.get(Key("default", "k"))
    assert record is not None
    assert (record.state, record.attempt) == (State.RUNNING, 1)
    guard = processes.guard(wait=20)
    assert guard.run("k", again) == "second"
    after = processes.store.get(Key("default", "k"))
    assert after is not None
    assert (after.attempt, after.token > record.token) == (2, True)
    assert guard.stats().taken_over == 1


@pytest.mark.realtime
@pytest.mark.parametrize("moment", AFTER_THE_CLAIM)
def test_killed_after_the_claim_it_never_runs_again_under_raise(processes: Processes, moment: str) -> None:
    """Behaviours 25, 26: at most once: in doubt until somebody who has looked says what happened."""
    kill_at(processes, moment, in_doubt="raise")
    guard = processes.guard(wait=20, in_doubt="raise")
    for _ in range(2):
        with pytest.raises(InDoubtError):
            guard.run("k", again)
    assert guard.resolve("k", "it happened")
    assert guard.run("k", again) == "it happened"
    assert guard.stats().executed == 0


@pytest.mark.realtime
@pytest.mark.parametrize("moment", AFTER_THE_CLAIM)
def test_killed_after_the_claim_a_probe_looks(processes: Processes, moment: str) -> None:
    """Behaviours 25, 26: what it finds to have happened is kept, and not run again."""
    kill_at(processes, moment, in_doubt="raise")
    seen = processes.runs()
    unsure = processes.guard(wait=20, in_doubt=lambda key: UNKNOWN)
    with pytest.raises(InDoubtError):
        unsure.run("k", again)
    sure = processes.guard(wait=20, in_doubt=lambda key: Resolved("first") if seen else RERUN)
    expected = "first" if moment == "after the effect" else "second"
    assert [sure.run("k", again), sure.run("k", again)] == [expected, expected]
    assert sure.stats().executed == (0 if seen else 1)


HOLD = """
def hold():
    say("holding")
    sys.stdin.readline()
    return "held"

say(guard.run("k", hold))
"""
WAITER = """
say("waiting")
say(guard.run("k", lambda: "taken over"))
say(guard.stats().executed)
"""


@pytest.mark.realtime
def test_waiters_go_on_when_the_lease_of_a_dead_holder_is_out(processes: Processes) -> None:
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


@pytest.mark.realtime
def test_a_living_holder_keeps_its_key_from_other_processes(processes: Processes) -> None:
    """Behaviours 14, 20: past its first lease, and undisturbed by those who waited in vain."""
    holder = processes.start(HOLD, lease=0.6)
    assert heard(holder) == "holding"
    hasty = processes.guard(wait=1.2)
    with pytest.raises(InProgressError) as caught:
        hasty.run("k", again)
    assert caught.value.retry_after is not None
    go(holder)
    assert heard(holder) == "held"
    assert hasty.run("k", again) == "held"


RESTARTED = """
def effect():
    say("running")
    sys.stdin.readline()
    return "ended"

say(guard.run("k", effect))
"""


def test_a_call_completes_although_the_store_was_reopened_meanwhile(processes: Processes) -> None:
    """Behaviours 23, 47: the file is durable; another process opens, checkpoints and closes it in mid-call."""
    runner = processes.start(RESTARTED)
    assert heard(runner) == "running"
    processes.store.close()
    with SqliteStore(processes.path) as reopened:
        record = reopened.get(Key("default", "k"))
        assert record is not None
        assert record.state is State.RUNNING
    go(runner)
    assert heard(runner) == "ended"
    with SqliteStore(processes.path) as reopened:
        assert Idempotency(reopened).run("k", again) == "ended"


def test_a_call_whose_record_another_process_has_removed_is_told_so(processes: Processes) -> None:
    """Behaviours 22, 47: as after a restore of an older file: LeaseLostError with the value, and nothing is kept."""
    program = RESTARTED.replace(
        'say(guard.run("k", effect))',
        """
try:
    guard.run("k", effect)
except LeaseLostError as error:
    say([type(error).__name__, error.result])
""",
    )
    runner = processes.start(program)
    assert heard(runner) == "running"
    processes.store.delete(Key("default", "k"))
    go(runner)
    assert heard(runner) == ["LeaseLostError", "ended"]
    assert processes.store.get(Key("default", "k")) is None


@pytest.mark.parametrize("raises", [False, True])
def test_the_child_of_a_fork_ends_nothing_of_its_parents(processes: Processes, raises: bool) -> None:
    """Behaviour 43: the copy of a running call gets LeaseLostError, or its own error; the parent completes."""
    program = """
def effect():
    child = os.fork()
    if not child:
        try:
            current_operation().ensure_held()
        except LeaseLostError:
            note("not-held")
        if arguments[0]:
            raise ValueError("child")
        return "child"
    assert os.waitpid(child, 0)[1] == 0
    return "parent"

try:
    value = guard.run("k", effect)
except LeaseLostError as error:
    note(error.result)
    os._exit(0)
except ValueError as error:
    note(str(error))
    os._exit(0)
say(value)
"""
    runner = processes.start(program, raises)
    assert heard(runner) == "parent"
    assert processes.runs() == ["not-held", "child"]
    assert processes.guard().run("k", again) == "parent"
