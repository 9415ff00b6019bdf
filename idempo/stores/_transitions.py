"""The rules of the six methods, without I/O and without a clock.

Each function is given the record as a store found it (None where there is none, or it has expired), and returns the
answer to give and the record to write, if any. Times are seconds from now in both, so that every store keeps them its
own way. What was read must still stand when the record is written: that is the store's part. ``token`` is the least
fencing token that a record may get that is new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar, TypeVarTuple, Unpack

from idempo.records import Claim, Record, State

_Answer = TypeVar("_Answer")
_Args = TypeVarTuple("_Args")

Step: TypeAlias = tuple[_Answer, Record | None]
"""What a method comes to: the answer, to be given once the record is put in place of the one found, if there is one."""

Transition: TypeAlias = Callable[[Record | None, int, Unpack[_Args]], Step[_Answer]]
"""One of the functions below: given the record found, the least new token, and the method's own arguments."""


# Reading a member off its class is a call into Python until 3.12.
_RUNNING: Final = State.RUNNING
_RELEASED: Final = State.RELEASED
_COMPLETED: Final = State.COMPLETED


def _running(fingerprint: bytes | None, attempt: int, token: int, owner: str, *, lease: float, ttl: float) -> Record:
    return Record(_RUNNING, fingerprint, attempt, token, owner, None, lease, lease + ttl)


def claim(
    found: Record | None,
    token: int,
    owner: str,
    fingerprint: bytes | None,
    lease: float,
    ttl: float,
    take_over: bool | str,
) -> Step[Claim]:
    """`Store.claim`."""
    if found is None:
        return _taken(_running(fingerprint, 1, token, owner, lease=lease, ttl=ttl))
    took_over = False
    if found.state is _RUNNING:
        if found.owner == owner:
            again = _running(found.fingerprint, found.attempt, found.token, owner, lease=lease, ttl=ttl)
            return _taken(again)
        took_over = (
            found.lease_left is not None
            and found.lease_left <= 0
            and (take_over is True or take_over == found.owner)
            and (fingerprint == found.fingerprint or fingerprint is None or found.fingerprint is None)
        )
    # A released record's own owner can only be a delayed copy of the claim that was released.
    if took_over or (found.state is _RELEASED and found.owner != owner):
        kept = found.fingerprint if fingerprint is None else fingerprint
        new_token = max(found.token + 1, token)
        new = _running(kept, found.attempt + 1, new_token, owner, lease=lease, ttl=ttl)
        return _taken(new, took_over=took_over)
    return (Claim(False, found, False), None)


def _taken(record: Record, *, took_over: bool = False) -> Step[Claim]:
    return (Claim(True, record, took_over), record)


def complete(found: Record | None, token: int, owner: str, outcome: bytes, ttl: float) -> Step[bool]:
    """`Store.complete`."""
    if found is None or found.owner != owner:
        return (False, None)
    if found.state is _RUNNING:
        done = Record(_COMPLETED, found.fingerprint, found.attempt, found.token, owner, outcome, None, ttl)
        return (True, done)
    return (found.state is _COMPLETED, None)


def release(found: Record | None, token: int, owner: str, ttl: float) -> Step[bool]:
    """`Store.release`."""
    if found is None:
        # Attempt 0: nobody has claimed the key. A repetition of this release is told so by it.
        return (False, Record(_RELEASED, None, 0, token, owner, None, None, ttl))
    if found.owner != owner:
        return (False, None)
    if found.state is _RUNNING:
        return (True, Record(_RELEASED, found.fingerprint, found.attempt, found.token, owner, None, None, ttl))
    return (found.state is _RELEASED and found.attempt > 0, None)


def renew(found: Record | None, token: int, owner: str, lease: float, ttl: float) -> Step[bool]:
    """`Store.renew`."""
    if found is None or found.owner != owner or found.state is not _RUNNING:
        return (False, None)
    return (True, _running(found.fingerprint, found.attempt, found.token, owner, lease=lease, ttl=ttl))


def delete(found: Record | None, owner: str | None) -> bool:
    """`Store.delete`: whether to remove what was found."""
    return found is not None and (owner is None or found.owner == owner)
