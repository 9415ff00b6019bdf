"""What CasStore and its asynchronous twin share: how a record is written down, and what a client has watched.

No I/O; the only clock is a monotonic one, which measures how long something was watched.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Final, Generic, NamedTuple, TypeVar, TypeVarTuple
from zlib import crc32

import attrs

from idempo._checks import check_clock, check_limit
from idempo._fork import new_lock
from idempo.errors import RecordError, StoreError
from idempo.records import Claim, Key, Record, State
from idempo.stores._transitions import Transition

_Answer = TypeVar("_Answer")
_Args = TypeVarTuple("_Args")

_MAGIC: Final = b"idempo\x01"  # the last byte is the version of what follows
_HEAD: Final = len(_MAGIC) + 4
_STATES: Final = {state.value: state for state in State}

ROUNDS: Final = 100
"""How often a step is begun again before the store gives up: each time another client has changed the key."""


class _Written(NamedTuple):
    """A record as written down: durations are as they were given, whenever that was."""

    state: State
    fingerprint: bytes | None
    attempt: int
    token: int | None  # None: the revision of this very write
    owner: str
    outcome: bytes | None
    lease: float | None
    ttl: float


def encode(key: Key, written: _Written) -> bytes:
    """Return the bytes of a record: a magic word, a version, a checksum, a line of JSON, and the outcome as it is.

    No two calls return the same bytes: who finds those of one write has found that write, and not an earlier one that
    said the same.
    """
    fields = {
        "key": [key.namespace, key.value],
        "state": written.state.value,
        "fingerprint": None if written.fingerprint is None else written.fingerprint.hex(),
        "attempt": written.attempt,
        "token": written.token,
        "owner": written.owner,
        "lease": written.lease,
        "ttl": written.ttl,
        "write": os.urandom(8).hex(),  # never read; the system's, which no seed and no fork makes come twice
    }
    body = json.dumps(fields, separators=(",", ":")).encode() + b"\n" + (written.outcome or b"")
    return _MAGIC + crc32(body).to_bytes(4, "big") + body


def decode(key: Key, data: bytes) -> _Written:
    """Return what `encode` was given.

    Raises:
        RecordError: The bytes are damaged, of another version, of another key, or not idempo's.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        version = data[len(_MAGIC) - 1 : len(_MAGIC)]
        newer = data.startswith(_MAGIC[:-1]) and version
        what = f"of version {version[0]}, and this idempo reads version 1" if newer else "not written by idempo"
        raise RecordError(f"the record of {key.value!r} is {what}", key=key)
    body = data[_HEAD:]
    if crc32(body).to_bytes(4, "big") != data[len(_MAGIC) : _HEAD]:
        raise RecordError(f"the record of {key.value!r} is damaged", key=key)
    line, _, outcome = body.partition(b"\n")
    fields = json.loads(line)
    if fields["key"] != [key.namespace, key.value]:
        raise RecordError(f"the record of {key.value!r} is one of {fields['key']!r}", key=key)
    state = _STATES[fields["state"]]
    fingerprint = fields["fingerprint"]
    return _Written(
        state,
        None if fingerprint is None else bytes.fromhex(fingerprint),
        fields["attempt"],
        fields["token"],
        fields["owner"],
        outcome if state is State.COMPLETED else None,
        fields["lease"],
        fields["ttl"],
    )


class Watched(NamedTuple):
    """A revision, and when this client first knew that it stood."""

    revision: int
    since: float
    own: _Written | None  # the record, where this client itself wrote it and nobody need have changed it since


class Found(NamedTuple):
    """What a backend answered for a key, or what this client knows that it would."""

    record: Record | None
    revision: int | None
    data: bytes | None


class Plan(NamedTuple, Generic[_Answer]):
    """What one round comes to.

    Attributes:
        answer: What to return, at once where there is nothing to write, else when that has been done.
        data: The bytes to write; None for nothing.
        ttl: How long the backend is to keep them, in seconds.
        revision: The revision that they replace; None where they must be added.
        written: What the bytes say.
    """

    answer: _Answer
    data: bytes | None
    ttl: float
    revision: int | None
    written: _Written | None


class Book:
    """The rules of one CasStore: from what a backend answered to what is to be written, and what was watched meanwhile.

    Args:
        prefix: What the backend's keys begin with.
        clock: Measures how long a revision stood, in seconds, and never runs back.
        wall_clock: Seconds since 1970; only for fencing tokens, and only where revisions cannot serve.
        lasting_revisions: Whether revisions rise over deletion and restart, so that they are the fencing tokens.
        max_watched: How many keys are watched at once.
    """

    def __init__(
        self,
        prefix: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        lasting_revisions: bool,
        max_watched: int,
    ) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a text, not {type(prefix).__name__}")
        check_limit(max_watched, "max_watched")
        check_clock(clock)
        check_clock(wall_clock, "wall_clock")
        self.prefix = prefix
        self._clock = clock
        self._wall_clock = wall_clock
        self._lasting = lasting_revisions
        self._max_watched = max_watched
        self._watched: OrderedDict[str, Watched] = OrderedDict()
        self._lock = new_lock()

    def __len__(self) -> int:
        """How many keys are watched."""
        return len(self._watched)

    def name(self, key: Key) -> str:
        """Return the backend's key: the prefix and 64 hexadecimal digits, whatever the texts."""
        namespace = key.namespace.encode("utf-8", "surrogatepass")
        value = key.value.encode("utf-8", "surrogatepass")
        return self.prefix + sha256(b"%d:%b%b" % (len(namespace), namespace, value)).hexdigest()

    def own(self, name: str, owner: str) -> Found | None:
        """Return the claim that this client itself wrote for the owner, if it may still stand: it saves a read.

        If it stands no more, the compare-and-swap that follows says so.
        """
        watched = self.seen(name)
        if watched is None or watched.own is None or watched.own.owner != owner:
            return None
        return Found(self._record(watched.own, watched.revision, watched.since), watched.revision, None)

    def seen(self, name: str) -> Watched | None:
        """Return what is known of a key; to be asked before a ``get`` is sent, and handed to `found`."""
        with self._lock:
            return self._watched.get(name)

    def found(self, key: Key, name: str, seen: Watched | None, answer: tuple[bytes, int] | None) -> Found:
        """Return what a backend's ``get`` has answered, and go on watching it.

        Raises:
            RecordError: The record cannot be read.
        """
        if answer is None:
            self._look_again(name, seen, None)
            return Found(None, None, None)
        data, revision = answer
        written = decode(key, data)
        if written.state is State.RUNNING:
            since = self._look_again(name, seen, revision)
        else:
            since = self._look_again(name, seen, None)
        return Found(self._record(written, revision, since), revision, data)

    def plan(self, key: Key, found: Found, transition: Transition[*_Args, _Answer], *args: *_Args) -> Plan[_Answer]:
        """Return what a transition makes of what was found."""
        token = 1 if self._lasting else int(self._wall_clock() * 1_000_000)
        answer, record = transition(found.record, token, *args)
        if record is None:
            return Plan(answer, None, 0.0, None, None)
        before = found.record
        new = before is None or record.owner != before.owner
        written = _Written(
            record.state,
            record.fingerprint,
            record.attempt,
            None if self._lasting and new else record.token,
            record.owner,
            record.outcome,
            record.lease_left,
            record.expires_in if record.lease_left is None else record.expires_in - record.lease_left,
        )
        return Plan(answer, encode(key, written), record.expires_in, found.revision, written)

    def done(self, name: str, plan: Plan[_Answer], revision: int) -> _Answer:
        """Return the answer of a plan whose bytes the backend has taken as this revision, and begin to watch it."""
        running = plan.written is not None and plan.written.state is State.RUNNING
        watched = Watched(revision, self._clock(), plan.written) if running else None
        with self._lock:
            self._put(name, watched)
        answer = plan.answer
        if isinstance(answer, Claim) and plan.written is not None and plan.written.token is None:
            return attrs.evolve(answer, record=attrs.evolve(answer.record, token=revision))
        return answer

    def forget(self, name: str) -> None:
        """Watch a key no more."""
        with self._lock:
            self._put(name, None)

    def outrun(self, key: Key) -> StoreError:
        """Return the error for a key that others change faster than it can be written."""
        return StoreError(f"others changed the record of {key.value!r} {ROUNDS} times while it was written", key=key)

    def _record(self, written: _Written, revision: int, since: float) -> Record:
        state, fingerprint, attempt, token, owner, outcome, lease, ttl = written
        watched = self._clock() - since
        lease_left = None if lease is None else lease - watched
        return Record(
            state,
            fingerprint,
            attempt,
            revision if token is None else token,
            owner,
            outcome,
            lease_left,
            ttl + (0.0 if lease is None else lease) - watched,
        )

    def _look_again(self, name: str, seen: Watched | None, revision: int | None) -> float:
        """Go on watching a key, of which ``seen`` was known, or begin to; return since when this revision stands."""
        # Read after the answer came: by now the holder has counted its lease for longer than we have.
        now = self._clock()
        with self._lock:
            known = self._watched.get(name)
            for each in (known, seen):
                if each is not None and each.revision == revision:
                    return each.since
            # Where another thread has seen more meanwhile, what we read may be the older.
            if known is seen:
                self._put(name, None if revision is None else Watched(revision, now, None))
        return now

    def _put(self, name: str, watched: Watched | None) -> None:
        self._watched.pop(name, None)
        if watched is not None:
            self._watched[name] = watched
            while len(self._watched) > self._max_watched:
                # Watched anew when it is next seen: that costs time, never safety.
                self._watched.popitem(last=False)
