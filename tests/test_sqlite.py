"""SqliteStore, beyond what every store does: files, processes, threads, forks, locks, damage."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from idempo._fork import inherited
from idempo.errors import RecordError, StoreError, StoreFullError
from idempo.records import Key, State
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FakeClock
from tests.forked import said_by_child

KEY = Key("billing", "order-42")
PATIENCE = 20.0
ROOT = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "idempo.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[SqliteStore]:
    with SqliteStore(path, synchronous="NORMAL", busy_timeout=0.05, clock=clock) as store:
        yield store


def claim(store: Any, owner: str = "owner-a", key: Key = KEY, *, lease: float = 15.0, ttl: float = 100.0) -> Any:
    return store.claim(key, owner=owner, fingerprint=b"\x01payload", lease=lease, ttl=ttl)


def complete(store: Any, key: Key = KEY, owner: str = "owner-a", *, ttl: float = 100.0) -> bool:
    return bool(store.complete(key, owner=owner, outcome=b"outcome", ttl=ttl))


def by_hand(path: Path, statement: str, *parameters: object) -> list[Any]:
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another Python with a script, which says "ready" and then waits for a line."""
    begin = "import os, sys, time\nfrom idempo.records import Key\nfrom idempo.stores.sqlite import SqliteStore\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def together(script: str, count: int, *arguments: object) -> list[str]:
    """Run a script in so many processes, let all go at once after "ready", and return what each printed."""
    children = [start(script, *arguments, number) for number in range(count)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=PATIENCE)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0] * count
    return answers


# Making one


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        (":memory:", ValueError, "MemoryStore"),
        ("", ValueError, "MemoryStore"),
        ("file:idempo.db?mode=ro", ValueError, "URI"),
        ("a\0b", ValueError, "NUL"),
        (b"idempo.db", TypeError, "pathlib"),
        (42, TypeError, "int"),
    ],
)
def test_a_path_that_names_no_file_is_refused(path: Any, error: type[Exception], words: str) -> None:
    """Before anything is opened, and with what to do instead."""
    with pytest.raises(error, match=words):
        SqliteStore(path)


@pytest.mark.parametrize("table", ["", "1st", "a b", 'a"b', "sqlite_records", "SQLite_x", "ä", "x" * 64, "a\n"])
def test_a_table_is_a_plain_name(path: Path, table: str) -> None:
    """No other text ever gets into a statement."""
    with pytest.raises(ValueError, match="table must be"):
        SqliteStore(path, table=table)
    assert not path.exists()


def test_options_are_checked_when_the_store_is_made(path: Path) -> None:
    """A wrong one is a typed error, and no file is made."""
    with pytest.raises(TypeError, match="table must be a name"):
        SqliteStore(path, table=cast("Any", 7))
    with pytest.raises(ValueError, match="synchronous must be one of"):
        SqliteStore(path, synchronous=cast("Any", "OFF"))
    with pytest.raises(ValueError, match="busy_timeout"):
        SqliteStore(path, busy_timeout=-1)
    with pytest.raises(TypeError, match="clock must be a function that gives seconds, not int"):
        SqliteStore(path, clock=cast("Any", 3))
    assert not path.exists()


def test_a_relative_path_stays_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the process goes to another folder before its first call."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with SqliteStore("idempo.db") as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.create_table()
        assert store.path == str(tmp_path / "idempo.db")
        assert repr(store) == f"SqliteStore({store.path!r}, table='idempo_records')"
    assert (tmp_path / "idempo.db").exists()


def test_the_callers_own_database_is_left_alone(path: Path, clock: FakeClock) -> None:
    """Other tables, and the numbers that a database has for its application, are not ours."""
    by_hand(path, "CREATE TABLE orders (id TEXT)")
    by_hand(path, "PRAGMA user_version = 7")
    with SqliteStore(path, clock=clock) as store, SqliteStore(path, table="other", clock=clock) as other:
        assert claim(store).acquired
        assert claim(other, "owner-b").acquired
    assert by_hand(path, "PRAGMA user_version") == [(7,)]
    tables = {row[0] for row in by_hand(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert tables == {"orders", "idempo_records", "other"}


@pytest.mark.parametrize(("synchronous", "number"), [("NORMAL", 1), ("FULL", 2), ("EXTRA", 3)])
def test_durability_is_what_was_asked_for(path: Path, synchronous: Any, number: int) -> None:
    """FULL keeps an acknowledged write over a power cut; each connection must be told."""
    with SqliteStore(path, synchronous=synchronous) as store:
        store.create_table()
        (connection,) = [lane.connection for lane in store._connections.lanes()]
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchall() == [(number,)]
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


def test_a_file_that_cannot_be_in_wal_mode_is_refused(store: SqliteStore) -> None:
    """Without it a reader would wait for writers; some network file systems have no WAL."""
    store._path = ":memory:"  # which stays in a mode of its own
    with pytest.raises(StoreError, match="WAL"):
        store.create_table()


# Many processes


@pytest.mark.parametrize("_round", range(2))
def test_many_processes_make_the_table_at_once(path: Path, _round: int) -> None:
    """Behaviour 53 (real): each creates file, mode, table and index, twice, and each then works."""
    script = """
path, number = sys.argv[1:]
print("ready", flush=True); sys.stdin.readline()
with SqliteStore(path) as store:
    store.create_table()
    store.create_table()
    print(store.claim(Key("n", number), owner=number, fingerprint=None, lease=9, ttl=9).acquired)
"""
    assert together(script, 4, path) == ["True"] * 4
    assert by_hand(path, "SELECT count(*) FROM idempo_records") == [(4,)]


def test_processes_race_for_keys(path: Path) -> None:
    """Behaviours 1, 21, 51 (real): each of many keys is taken by exactly one, and nobody meets a busy error."""
    script = """
path, number = sys.argv[1:]
store = SqliteStore(path, synchronous="NORMAL")
store.create_table()
print("ready", flush=True); sys.stdin.readline()
keys = [Key("race", str(key)) for key in range(60)]
won = [key.value for key in keys if store.claim(key, owner=number, fingerprint=None, lease=99, ttl=9).acquired]
done = [store.complete(Key("race", key), owner=number, outcome=number.encode(), ttl=9) for key in won]
assert all(done)
print(" ".join(won))
"""
    answers = together(script, 3, path)
    won = [key for answer in answers for key in answer.split()]
    assert sorted(won, key=int) == [str(key) for key in range(60)]


def test_a_killed_holder_leaves_doubt(path: Path) -> None:
    """Behaviours 25, 27 (real): kill -9 after the claim; the lease runs out, one takes over, token and attempt rise."""
    child = start(
        """
store = SqliteStore(sys.argv[1])
claim = store.claim(Key("billing", "order-42"), owner="dead", fingerprint=None, lease=30, ttl=99)
print(claim.record.token, flush=True)
sys.stdin.readline()
""",
        path,
    )
    assert child.stdout is not None
    token = int(child.stdout.readline())
    child.kill()
    child.communicate()
    with SqliteStore(path) as store:
        assert not claim(store).acquired
    with SqliteStore(path, clock=lambda: time.time() + 31) as later:
        taken = claim(later)
        assert taken.took_over
        assert (taken.record.attempt, taken.record.token > token) == (2, True)


def test_a_writer_killed_in_mid_transaction_holds_nothing(path: Path, store: SqliteStore) -> None:
    """Behaviour 25 (real): its lock is gone with it, and its half of a write too."""
    store.create_table()
    child = start(
        """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute(
    "INSERT INTO idempo_records VALUES ('billing', 'order-42', 1, 'x', 1, 1, 'x', NULL, NULL, 1, 1, 1, 1)"
)
print("ready", flush=True)
sys.stdin.readline()
""",
        path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(StoreError):
        claim(store)
    child.kill()
    child.communicate()
    assert claim(store).acquired


# Threads, closing, forks


def test_each_thread_has_a_connection_and_gives_it_back(store: SqliteStore) -> None:
    """A thread that ends leaves no connection open, and no warning."""
    store.create_table()
    with ThreadPoolExecutor(3) as pool:
        barrier = threading.Barrier(3)

        def act(number: int) -> bool:
            barrier.wait(PATIENCE)
            return bool(claim(store, key=Key("threads", str(number))).acquired)

        assert all(pool.map(act, range(3)))
        barrier.reset()
        assert len(store._connections.lanes()) == 4
    gc.collect()
    assert len(store._connections.lanes()) == 1


def test_a_store_that_is_dropped_closes_its_connection(path: Path) -> None:
    """Without close(), and without a ResourceWarning (3.13 gives one for a forgotten connection)."""
    store = SqliteStore(path)
    store.create_table()
    (lane,) = store._connections.lanes()
    connection = lane.connection
    assert connection is not None
    del store, lane
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_closed_store_says_so(store: SqliteStore) -> None:
    """To every thread, also one that never used it."""
    claim(store)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get(KEY)
    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreError, match="closed"):
        pool.submit(store.get, KEY).result(PATIENCE)


def test_closing_waits_for_a_call_under_way(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is never closed under a statement of another thread."""
    inside, go_on = threading.Event(), threading.Event()
    read = store._table.read

    def slow(*args: Any) -> Any:
        inside.set()
        assert go_on.wait(PATIENCE)
        return read(*args)

    monkeypatch.setattr(store._table, "read", slow)
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(claim, store)
        assert inside.wait(PATIENCE)
        closing_ = pool.submit(store.close)
        go_on.set()
        assert call.result(PATIENCE).acquired
        closing_.result(PATIENCE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_no_connection_crosses_a_fork(store: SqliteStore) -> None:
    """Behaviour 43 (real): parent and child open their own, and see each other's records."""
    claim(store)
    (before,) = [lane.connection for lane in store._connections.lanes()]
    assert before is not None

    def child() -> list[bool]:
        inherited = [lane for lane in store._connections.lanes() if lane.connection is not None]
        completed = complete(store)
        (own,) = [lane.connection for lane in store._connections.lanes()]
        return [not inherited, completed, own is not None]

    assert said_by_child(child) == "[True, True, True]"
    record = store.get(KEY)
    assert record is not None
    assert record.state is State.COMPLETED
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        before.execute("SELECT 1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_thread_that_was_interrupted_at_its_first_call_leaves_no_connection_unlisted(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt at any step of it, and the next call's connection is still one that is closed before a fork."""

    class Interrupted:
        def add(self, lane: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store._connections, "_lanes", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            claim(store)
    assert claim(store).acquired
    assert store._connections.lanes() == [store._connections.local.lane]


def test_a_fork_does_not_wait_for_ever(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 43 (real): a thread that is stuck in a call delays a fork, bounded; the child works all the same."""
    store.create_table()
    store._connections.patience = 0.01
    inside, go_on = threading.Event(), threading.Event()
    read = store._table.read

    def stuck(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(PATIENCE)
        return read(*args)

    monkeypatch.setattr(store._table, "read", stuck)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(store.get, KEY)
        assert inside.wait(PATIENCE)

        def child() -> tuple[bool, bool]:
            stuck_ones = len(inherited)  # of other stores, too: there is one list for all
            return stuck_ones >= 1, claim(store, key=Key("billing", "order-43")).acquired

        answer = said_by_child(child)
        go_on.set()
        assert call.result(PATIENCE) is None
    assert answer == "(True, True)"
    assert claim(store).acquired


# Locks and failures


def test_a_duplicate_waits_for_no_writer(path: Path, store: SqliteStore) -> None:
    """What changes nothing takes no lock: a replay, a refusal, a look."""
    claim(store)
    complete(store)
    claim(store, key=Key("billing", "running"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert claim(store, "owner-b").record.outcome == b"outcome"
        assert not claim(store, "owner-b", Key("billing", "running")).acquired
        assert complete(store)
        assert store.get(KEY) is not None


def test_a_locked_file_is_a_store_error_and_never_absent(path: Path, store: SqliteStore) -> None:
    """Behaviour 51: after a bounded wait, from whatever writes, with the key on it."""
    claim(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked by others for 0\.05 s") as caught:
            complete(store)
        assert caught.value.key == KEY
        with pytest.raises(StoreError, match="locked"):
            claim(store, key=Key("billing", "new"))
        with pytest.raises(StoreError, match="locked"):
            store.delete(KEY)
        with pytest.raises(StoreError, match="locked") as caught:
            store.sweep()
        assert caught.value.key is None
    assert complete(store)


def test_a_busy_error_at_which_sqlite_gives_up_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour 51: recovery by another process, or a snapshot gone stale, is over in a moment."""
    with SqliteStore(path, busy_timeout=PATIENCE) as store:
        store.create_table()
        read, failures = store._table.read, [sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_PROTOCOL]

        def failing(*args: Any) -> Any:
            if failures:
                error = sqlite3.OperationalError("busy")
                error.sqlite_errorcode = failures.pop()
                raise error
            return read(*args)

        monkeypatch.setattr(store._table, "read", failing)
        assert claim(store).acquired
        assert failures == []


def test_who_is_always_overtaken_gives_up(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that never finds what was read is a StoreError in the end, not a hang."""
    claim(store)
    monkeypatch.setattr(store._table, "write", lambda *args: False)
    monkeypatch.setattr(store._table, "remove", lambda *args: False)
    with pytest.raises(StoreError, match="1000 times"):
        complete(store)
    with pytest.raises(StoreError, match="1000 times"):
        store.delete(KEY)


def test_a_full_disk_refuses_the_claim(store: SqliteStore) -> None:
    """Behaviour 49: StoreFullError, and nothing is half there."""
    store.create_table()
    (connection,) = [lane.connection for lane in store._connections.lanes()]
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 1")  # which SQLite raises to what the file has
    with pytest.raises(StoreFullError, match="no room"):
        store.claim(KEY, owner="owner-a", fingerprint=b"x" * 100_000, lease=15, ttl=100)
    assert store.get(KEY) is None


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """StoreError says what to look at; once it is there the same store works."""
    store = SqliteStore(tmp_path / "missing" / "idempo.db")
    with pytest.raises(StoreError, match=r"missing/idempo\.db cannot be opened: does its folder exist"):
        store.get(KEY)
    (tmp_path / "missing").mkdir()
    assert claim(store).acquired
    store.close()


def test_a_table_that_is_dropped_is_made_anew(path: Path, store: SqliteStore) -> None:
    """The call that meets it fails, and the next finds an empty table, as after a purge."""
    claim(store)
    by_hand(path, "DROP TABLE idempo_records")
    with pytest.raises(StoreError, match="no such table"):
        store.get(KEY)
    assert store.get(KEY) is None


# Damage


@pytest.mark.parametrize(
    "content", [b"no database, but longer than the header of one is. " * 40, b"SQLite format 3\0\xff\xff"]
)
def test_a_file_that_is_no_database_is_a_record_error(path: Path, content: bytes) -> None:
    """Behaviour 35: and it is left as it is."""
    path.write_bytes(content)
    with SqliteStore(path) as store, pytest.raises(RecordError, match="cannot be read"):
        claim(store)
    assert path.read_bytes() == content


def test_a_page_that_was_overwritten_is_a_record_error(path: Path) -> None:
    """Behaviour 35: the file's own structure is damaged."""
    with SqliteStore(path) as store:
        claim(store)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with SqliteStore(path) as store, pytest.raises(RecordError):
        store.get(KEY)


@pytest.mark.parametrize(
    "change",
    [
        "state = 'completed'",
        "state = 'released', lease_ends = NULL",
        "state = 'unheard of'",
        "attempt = attempt + 1",
        "token = token | 1024",
        "owner = 'owner-b'",
        "fingerprint = NULL",
        "fingerprint = x'00'",
        "fingerprint = 'text'",
        "outcome = x'00'",
        "lease_ends = lease_ends + 1",
        "lease_ends = NULL",
        "lease_ends = 'text'",
        "expires = expires - 1",
        "expires = expires / 2",
        "checksum = checksum + 1",
        "namespace = 'other'",
        "key = 'other'",
        "format = 2",
        "format = 'text'",
    ],
)
def test_a_changed_column_is_noticed(path: Path, store: SqliteStore, change: str) -> None:
    """Behaviour 35: whichever it is, also one that would make the record expired, or another key's."""
    claim(store)
    by_hand(path, f"UPDATE idempo_records SET {change}")
    ((namespace, value),) = by_hand(path, "SELECT namespace, key FROM idempo_records")
    before = by_hand(path, "SELECT * FROM idempo_records")
    key = Key(namespace, value)
    for act in (claim, complete):
        with pytest.raises(RecordError) as caught:
            act(store, key=key)
        assert caught.value.key == key
    with pytest.raises(RecordError):
        store.delete(key, owner="owner-a")
    assert by_hand(path, "SELECT * FROM idempo_records") == before
    assert store.delete(key)
    assert store.get(key) is None


@pytest.mark.parametrize("columns", ["id INTEGER", "namespace TEXT, key TEXT, state TEXT"])
def test_a_table_of_somebody_else_is_refused(path: Path, store: SqliteStore, columns: str) -> None:
    """Behaviour 35: by what columns it has, and it is left as it is."""
    by_hand(path, f"CREATE TABLE idempo_records ({columns})")
    with pytest.raises(RecordError, match="not made by idempo"):
        claim(store)
    with pytest.raises(RecordError, match="not made by idempo"):
        store.create_table()


def test_a_table_of_a_newer_version_is_refused(path: Path, store: SqliteStore) -> None:
    """Behaviour 35: a column that this version does not know may say anything about the others."""
    claim(store)
    by_hand(path, "ALTER TABLE idempo_records ADD COLUMN seal BLOB")
    with SqliteStore(path) as later, pytest.raises(RecordError, match="another version"):
        later.get(KEY)


# Keys, tokens, sweeping, scanning


def test_keys_that_utf8_cannot_hold_stay_distinct(store: SqliteStore) -> None:
    """Behaviour 44: a lone surrogate is a text to Python, so it is one here."""
    keys = [Key("n", "\ud800"), Key("n", "\ud801"), Key("\ud800", "n"), Key("n", "\ufffd"), Key("n", "?")]
    for number, key in enumerate(keys):
        assert claim(store, str(number), key).acquired
    for number, key in enumerate(keys):
        record = store.get(key)
        assert record is not None
        assert record.owner == str(number)
    assert {key for key, _ in store.scan("n")} == {key for key in keys if key.namespace == "n"}
    assert store.purge("\ud800") == 1


def test_tokens_rise_while_the_clock_stands(store: SqliteStore, clock: FakeClock) -> None:
    """Behaviour 27: over take-over, release and expiry they rise by at least one."""
    tokens = [claim(store, "first", lease=0).record.token, claim(store, "second").record.token]
    store.release(KEY, owner="second", ttl=100)
    tokens.append(claim(store, "third", lease=0, ttl=0).record.token)
    tokens.append(claim(store, "fourth").record.token)
    assert tokens == sorted(set(tokens))
    assert tokens[0] == int(clock() * 1_000_000)


def test_tokens_rise_over_removal_while_the_clock_stands(store: SqliteStore) -> None:
    """Behaviour 27: some clocks stand for milliseconds, and what is deleted, swept or purged is gone."""
    removals: list[Callable[[], object]] = [
        lambda: store.delete(KEY),
        store.sweep,
        lambda: store.purge(KEY.namespace),
    ]
    store._acquired = itertools.count(1)  # no claim of these sweeps of its own accord
    tokens = []
    for remove in removals:
        tokens.append(claim(store, lease=0, ttl=0 if remove == store.sweep else 100).record.token)
        assert remove()
    tokens.append(claim(store).record.token)
    assert tokens == sorted(set(tokens))


def test_an_equal_token_of_another_process_does_not_hide_a_new_claim(
    path: Path, store: SqliteStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviours 11, 27: while the clock stands two processes may give one token; a late write is still refused."""
    write = store._table.write
    first = claim(store)

    def late(*args: Any) -> bool:
        monkeypatch.undo()
        with SqliteStore(path, clock=clock) as deleting, SqliteStore(path, clock=clock) as claiming:
            assert deleting.delete(KEY)
            second = claim(claiming, "owner-b")
            assert (second.acquired, second.record.token) == (True, first.record.token)
        return write(*args)

    monkeypatch.setattr(store._table, "write", late)
    assert complete(store) is False
    record = store.get(KEY)
    assert record is not None
    assert (record.state, record.owner) == (State.RUNNING, "owner-b")


def test_a_call_from_inside_a_call_is_refused(path: Path) -> None:
    """What a finalizer or a signal handler writes must not share the fate of what it broke in on."""
    refused = []

    class Clock(FakeClock):
        armed = False

        def __call__(self) -> float:
            if self.armed and store._connections.local.lane.connection.in_transaction:
                self.armed = False
                with pytest.raises(StoreError, match="inside its own call") as caught:
                    claim(store, key=Key("billing", "of a finalizer"))
                refused.append(caught.value.key)
            return super().__call__()

    clock = Clock()
    with SqliteStore(path, clock=clock) as store:
        store.create_table()
        clock.armed = True
        assert claim(store).acquired
        assert refused == [Key("billing", "of a finalizer")]
        assert claim(store, "owner-b", refused[0]).acquired


def test_a_ttl_of_any_length_is_kept(store: SqliteStore) -> None:
    """Longer than a 64-bit number of microseconds: as long as it can count."""
    assert claim(store, ttl=1e300).record.attempt == 1
    record = store.get(KEY)
    assert record is not None
    assert record.expires_in > 1e12


def test_claims_keep_the_file_from_growing(path: Path, store: SqliteStore, clock: FakeClock) -> None:
    """Behaviour 52: expired rows go with claims, in bounded batches, faster than new ones come."""
    for number in range(600):
        claim(store, key=Key("old", str(number)), lease=1, ttl=1)
    clock.advance(3)
    for number in range(3 * 64):
        claim(store, key=Key("new", str(number)))
    left = by_hand(path, "SELECT namespace, count(*) FROM idempo_records GROUP BY namespace")
    assert left == [("new", 3 * 64)]


def test_a_sweep_that_fails_does_not_undo_the_claim(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim stands; a later one sweeps."""

    def failing(*args: Any) -> int:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    monkeypatch.setattr(store._table, "sweep", failing)
    for number in range(64):
        assert claim(store, key=Key("n", str(number))).acquired
    with pytest.raises(StoreError, match="disk I/O error"):
        store.sweep()


def test_a_claim_does_not_wait_in_order_to_sweep(path: Path, clock: FakeClock) -> None:
    """Behaviour 52: its lease runs, so that its answer must not come late; a later claim sweeps."""
    with SqliteStore(path, busy_timeout=PATIENCE, clock=clock) as store:
        claim(store, key=Key("old", "1"), lease=1, ttl=1)
        clock.advance(3)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:

            def busy() -> Iterator[int]:
                other.execute("BEGIN IMMEDIATE")
                yield 0

            store._acquired = cast("Any", busy())
            before = time.monotonic()
            assert claim(store).acquired
            assert time.monotonic() - before < PATIENCE / 2
            other.execute("ROLLBACK")
        connection = store._connections.local.lane.connection
        assert connection.execute("PRAGMA busy_timeout").fetchall() == [(PATIENCE * 1000,)]
        assert len(by_hand(path, "SELECT key FROM idempo_records")) == 2
        store._acquired = itertools.count()
        assert claim(store, key=Key("new", "2")).acquired
        assert by_hand(path, "SELECT key FROM idempo_records WHERE namespace = 'old'") == []


def test_sweeping_leaves_what_it_cannot_read(path: Path, store: SqliteStore, clock: FakeClock) -> None:
    """Behaviours 35, 52: a row of a newer version is that version's to remove."""
    claim(store, ttl=1)
    by_hand(path, "UPDATE idempo_records SET format = 2")
    clock.advance(1000)
    assert store.sweep() == 0


def test_scan_and_purge_go_by_pages(store: SqliteStore) -> None:
    """Behaviour 52: more records than one page holds, each once; no lock is held in between."""
    keys = {Key("many", f"order-{number}") for number in range(1100)}
    for key in keys:
        claim(store, key=key)
    seen = []
    for key, record in store.scan("many"):
        seen.append(key)
        if len(seen) == 1:
            store.delete(key)
        assert record.state is State.RUNNING
    assert len(seen) == len(set(seen)) == 1100
    assert store.purge("many") == 1099


def test_what_is_stored_can_be_read_by_people(path: Path, store: SqliteStore) -> None:
    """Plain columns: how many are in doubt is one statement."""
    claim(store)
    rows = by_hand(path, "SELECT namespace, key, state, attempt, owner FROM idempo_records")
    assert json.dumps(rows) == '[["billing", "order-42", "running", 1, "owner-a"]]'
