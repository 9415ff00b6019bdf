"""What a store keeps and answers, and what an observer is told: frozen values without behaviour."""

from __future__ import annotations

import enum

import attrs


@attrs.frozen
class Key:
    """An idempotency key: the name of one operation.

    Attributes:
        namespace: Which family of operations; by default a function's module and qualified name.
        value: Which operation of that family. Any text of 1 to 255 characters, NUL and newlines included.
    """

    namespace: str
    value: str

    def __str__(self) -> str:
        return f"{self.namespace}:{self.value}"


class State(enum.Enum):
    """Where in its life a record stands. The value is what stores write down."""

    RUNNING = "running"
    COMPLETED = "completed"
    RELEASED = "released"


@attrs.frozen(slots=False)  # one is made for every claim, and in half the time
class Record:
    """What a store holds for a key.

    Attributes:
        state: Where in its life the record stands.
        fingerprint: The digest of the payload that it was claimed with; None where none was given.
        attempt: 1, 2, 3 …: how often the key was claimed while its record lived.
        token: The fencing token: greater for every later claim of the key.
        owner: The random token of the last claim.
        outcome: The stored end of the operation, set when and only when COMPLETED.
        lease_left: While RUNNING, seconds until the lease runs out by the store's clock, zero or less once it has.
            None otherwise.
        expires_in: Seconds until the record is forgotten.
    """

    state: State
    fingerprint: bytes | None
    attempt: int
    token: int
    owner: str
    outcome: bytes | None
    lease_left: float | None
    expires_in: float


@attrs.frozen(slots=False)
class Claim:
    """A store's answer to a claim.

    Attributes:
        acquired: Whether the caller holds the key now.
        record: The record as it stands after the claim, whoever holds it.
        took_over: Whether the claim was acquired over another owner's record in doubt.
    """

    acquired: bool
    record: Record
    took_over: bool


class EventKind(enum.Enum):
    """What an `Event` tells."""

    EXECUTED = "executed"
    """The function ran and its value became the outcome."""
    REPLAYED = "replayed"
    """A duplicate was given a stored outcome."""
    WAITED = "waited"
    """A duplicate waited for the call in progress; what it got is told by an event of its own."""
    REFUSED = "refused"
    """A duplicate reached its deadline while the call was in progress."""
    MISMATCHED = "mismatched"
    """The key was used with another payload."""
    RELEASED = "released"
    """The function failed in a way that proves that nothing happened; the key is free."""
    FAILED = "failed"
    """The function raised a declared error, and that became the outcome."""
    TAKEN_OVER = "taken_over"
    """A record in doubt was claimed anew."""
    IN_DOUBT = "in_doubt"
    """A record was left in doubt, or a call was refused for it."""
    LEASE_LOST = "lease_lost"
    """A claim was gone before its owner had ended."""
    RESULT_LOST = "result_lost"
    """An outcome could not be kept; duplicates get ResultLostError."""
    STORE_FAILED = "store_failed"
    """A call of the store failed."""

    __hash__ = object.__hash__  # an Enum's own is written in Python, and each event asks for some


@attrs.frozen
class Event:
    """One thing that happened to one key, told to observers.

    Attributes:
        kind: What happened.
        key: The key concerned.
        attempt: The attempt concerned; 0 where none is known.
        duration: Seconds that it took: the run of a function, the wait of a duplicate. None where nothing was timed.
        error: The exception concerned, if any.
    """

    kind: EventKind
    key: Key
    attempt: int = 0
    duration: float | None = None
    error: BaseException | None = None


@attrs.frozen
class Stats:
    """How many events of each kind were told in this process; one number for each `EventKind`."""

    executed: int = 0
    replayed: int = 0
    waited: int = 0
    refused: int = 0
    mismatched: int = 0
    released: int = 0
    failed: int = 0
    taken_over: int = 0
    in_doubt: int = 0
    lease_lost: int = 0
    result_lost: int = 0
    store_failed: int = 0
