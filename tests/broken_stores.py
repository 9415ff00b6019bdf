"""Stores that are wrong in one way each. What calls itself a check of stores must reject every one of them."""

from __future__ import annotations

import time

from idempo.records import Claim, Key, State
from tests.reference_store import ReferenceStore, Row


class StealsALiveLease(ReferenceStore):
    def may_take_over(self, row: Row, fingerprint: bytes | None, take_over: bool | str) -> bool:
        before, row.lease_end = row.lease_end, self.clock()
        try:
            return super().may_take_over(row, fingerprint, take_over)
        finally:
            row.lease_end = before


class NeverExpires(ReferenceStore):
    def may_take_over(self, row: Row, fingerprint: bytes | None, take_over: bool | str) -> bool:
        return False


class ConstantAttempt(ReferenceStore):
    def next_attempt(self, row: Row | None) -> int:
        return 1


class ReleaseWithoutOwner(ReferenceStore):
    def may_write(self, method: str, row: Row, owner: str) -> bool:
        return method == "release" or super().may_write(method, row, owner)


class CompleteWithoutOwner(ReferenceStore):
    def may_write(self, method: str, row: Row, owner: str) -> bool:
        return method == "complete" or super().may_write(method, row, owner)


class RenewByAStranger(ReferenceStore):
    def may_write(self, method: str, row: Row, owner: str) -> bool:
        return method == "renew" or super().may_write(method, row, owner)


class CompletesTwice(ReferenceStore):
    def outcome_again(self, row: Row, outcome: bytes) -> bytes | None:
        return outcome


# Beyond the seven: faults that real stores had.


class IgnoresFingerprints(ReferenceStore):
    def may_take_over(self, row: Row, fingerprint: bytes | None, take_over: bool | str) -> bool:
        return super().may_take_over(row, row.fingerprint, take_over)


class ConstantToken(ReferenceStore):
    def record(self, row: Row) -> object:  # type: ignore[override]
        row.token = 1
        return super().record(row)


class ForgetsReleases(ReferenceStore):
    """A delayed copy of a released claim takes the key again."""

    def release(self, key: Key, *, owner: str, ttl: float) -> bool:
        return super().delete(key, owner=owner)


class RefusesTheLate(ReferenceStore):
    """A late owner that nobody took over is turned away."""

    def may_write(self, method: str, row: Row, owner: str) -> bool:
        lapsed = row.state is State.RUNNING and row.lease_end <= self.clock()
        return super().may_write(method, row, owner) and not lapsed


class ClaimInTwoSteps(ReferenceStore):
    """Looks, and then takes: two may look before one takes."""

    def claim(self, key: Key, **options: object) -> Claim:
        free = self.find(key) is None
        time.sleep(0)  # lets another thread in
        if free:
            with self.lock:
                self.rows.pop(key, None)
        return super().claim(key, **options)  # type: ignore[arg-type]


class ForgetsAtTheLeasesEnd(ReferenceStore):
    """A record in doubt is gone instead."""

    def find(self, key: Key) -> Row | None:
        row = super().find(key)
        return None if row is not None and row.state is State.RUNNING and row.lease_end <= self.clock() else row


class FoldsCase(ReferenceStore):
    """As a database does whose collation ignores case."""

    def claim(self, key: Key, **options: object) -> Claim:
        return super().claim(Key(key.namespace, key.value.casefold()), **options)  # type: ignore[arg-type]


SEVEN = [
    StealsALiveLease,
    NeverExpires,
    ConstantAttempt,
    ReleaseWithoutOwner,
    CompleteWithoutOwner,
    RenewByAStranger,
    CompletesTwice,
]
FURTHER = [
    IgnoresFingerprints,
    ConstantToken,
    ForgetsReleases,
    RefusesTheLate,
    ClaimInTwoSteps,
    ForgetsAtTheLeasesEnd,
]
