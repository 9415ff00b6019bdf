"""Contract cases: what the store's clock does to a record."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from idempo.errors import RecordError
from idempo.protocols import Store
from idempo.records import Key, State
from idempo.testing._case import LONG, Case

_DAY = 24 * 60 * 60.0


class TimeCases(Case):
    """Leases that run out, records that are forgotten, and stores that are opened again."""

    def test_a_lease_runs_out(self, subject: Store) -> None:
        """Behaviour 21: refused while it lives; then there for one, with the next attempt."""
        key = self.key()
        self.claim(subject, key, lease=2 * self.unit)
        self.advance(self.unit)
        refused = self.claim(subject, key, "owner-b")
        assert not refused.acquired
        assert refused.record.lease_left is not None
        assert 0 < refused.record.lease_left <= self.unit + 0.001
        self.advance(2 * self.unit)
        lapsed = self.stands(subject, key, State.RUNNING)
        assert lapsed.lease_left is not None
        assert lapsed.lease_left <= 0
        taken = self.claim(subject, key, "owner-b")
        assert taken.acquired
        assert taken.took_over
        assert taken.record.attempt == 2

    def test_a_late_owner_still_holds_what_nobody_took(self, subject: Store) -> None:
        """Behaviour 23: completes, renews or releases."""
        keys = [self.key(name) for name in ("complete", "renew", "release")]
        for key in keys:
            self.claim(subject, key, lease=self.unit)
        self.advance(2 * self.unit)
        assert subject.complete(keys[0], owner="owner-a", outcome=b"late", ttl=LONG) is True
        assert subject.renew(keys[1], owner="owner-a", lease=LONG, ttl=LONG) is True
        assert subject.release(keys[2], owner="owner-a", ttl=LONG) is True
        assert self.stands(subject, keys[0], State.COMPLETED).outcome == b"late"
        assert not self.claim(subject, keys[1], "owner-b").acquired
        assert self.claim(subject, keys[2], "owner-b").acquired

    def test_a_late_owner_is_out_once_somebody_took_over(self, subject: Store) -> None:
        """Behaviour 22: also when the second lease has run out too."""
        key = self.key()
        self.claim(subject, key, "late", lease=self.unit)
        self.advance(2 * self.unit)
        assert self.claim(subject, key, "owner-b", lease=self.unit).acquired
        self.advance(2 * self.unit)
        before = subject.get(key)
        assert subject.complete(key, owner="late", outcome=b"late", ttl=LONG) is False
        assert subject.release(key, owner="late", ttl=LONG) is False
        assert subject.renew(key, owner="late", lease=LONG, ttl=LONG) is False
        self.assert_same(before, subject.get(key))
        assert not self.claim(subject, key, "late", take_over=False).acquired

    def test_renewal_moves_the_end_of_the_lease_and_the_expiry(self, subject: Store) -> None:
        """Behaviour 20: a renewed key is kept past its first lease, and past its first expiry."""
        key = self.key()
        self.claim(subject, key, lease=2 * self.unit, ttl=self.unit)
        self.advance(self.unit)
        assert subject.renew(key, owner="owner-a", lease=5 * self.unit, ttl=3 * self.unit)
        self.advance(3 * self.unit)  # past the first lease and the first expiry
        assert not self.claim(subject, key, "owner-b").acquired
        self.advance(3 * self.unit)  # past the second lease
        assert self.claim(subject, key, "owner-b").took_over

    def test_a_repeated_claim_moves_the_end_of_the_lease_and_the_expiry(self, subject: Store) -> None:
        """Behaviour 34: the lease counts from the claim that was answered."""
        key = self.key()
        self.claim(subject, key, lease=2 * self.unit, ttl=self.unit)
        self.advance(self.unit)
        self.claim(subject, key, lease=5 * self.unit, ttl=3 * self.unit)
        self.advance(3 * self.unit)
        assert not self.claim(subject, key, "owner-b").acquired

    def test_a_completed_record_is_forgotten_after_its_ttl(self, subject: Store) -> None:
        """Behaviour 8: counted from completion; then the key is new, with any payload, for anybody."""
        keys = [self.key("claimed"), self.key("read")]
        for key in keys:
            self.held(subject, key)
        self.advance(2 * self.unit)
        for key in keys:
            subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=2 * self.unit)
        self.advance(self.unit)
        for key in keys:
            assert not self.claim(subject, key, "owner-b").acquired
        self.advance(2 * self.unit)
        claim = self.claim(subject, keys[0], fingerprint=b"\x01other")  # the same owner: its record is gone too
        assert claim.acquired
        assert not claim.took_over
        assert (claim.record.attempt, claim.record.fingerprint) == (1, b"\x01other")
        assert subject.get(keys[1]) is None

    def test_an_expired_record_is_absent_to_every_method(self, subject: Store) -> None:
        """In each state that it can expire in: nothing comes back to life."""
        self.claim(subject, self.key("doubt"), lease=self.unit / 2, ttl=self.unit / 2)
        self.completed(subject, self.key("completed"), ttl=self.unit)
        self.released(subject, self.key("released"), ttl=self.unit)
        self.advance(2 * self.unit)
        for name in ("doubt", "completed", "released"):
            key = self.key(name)
            assert subject.get(key) is None
            assert subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG) is False
            assert subject.renew(key, owner="owner-a", lease=LONG, ttl=LONG) is False
            assert subject.delete(key) is False
            assert subject.release(key, owner="owner-a", ttl=LONG) is False
            assert subject.get(key) is not None  # what `release` of an absent key leaves

    def test_a_record_in_doubt_is_forgotten_after_its_lease_and_ttl(self, subject: Store) -> None:
        """And not before: until then it is in doubt."""
        key = self.key()
        self.claim(subject, key, lease=self.unit, ttl=3 * self.unit)
        self.advance(2.5 * self.unit)
        assert self.stands(subject, key, State.RUNNING).attempt == 1
        self.advance(2.5 * self.unit)
        assert subject.get(key) is None
        claim = self.claim(subject, key, "owner-b", fingerprint=b"\x01other", take_over=False)
        assert claim.acquired
        assert not claim.took_over
        assert claim.record.attempt == 1

    def test_a_released_record_is_forgotten_after_its_ttl(self, subject: Store) -> None:
        """Attempts begin anew, and the owner is no longer known."""
        key = self.key()
        self.released(subject, key, ttl=2 * self.unit)
        self.advance(self.unit)
        self.stands(subject, key, State.RELEASED)
        self.advance(2 * self.unit)
        assert subject.get(key) is None
        assert self.claim(subject, key).record.attempt == 1

    def test_tokens_rise_over_expiry(self, subject: Store) -> None:
        """Behaviour 27: a writer from before stays behind those after it."""
        if not self.tokens_survive_delete:
            pytest.skip("this store does not promise that tokens rise over deletion")
        key = self.key()
        first = self.completed(subject, key, ttl=self.unit).token
        self.advance(2 * self.unit)
        assert self.held(subject, key, "owner-b").token > first

    def test_many_who_race_for_an_expired_key_run_once(self, subject: Store) -> None:
        """Behaviour 8: a race at that instant runs once."""
        keys = [self.key(f"order-{number}") for number in range(5)]
        for key in keys:
            self.completed(subject, key, ttl=self.unit)
        self.advance(2 * self.unit)
        for key in keys:
            claims = self.race(lambda number, key=key: self.claim(subject, key, f"owner-{number}"))  # type: ignore[misc]
            assert [claim.record.attempt for claim in claims if claim.acquired] == [1]

    def test_long_durations_are_kept(self, subject: Store) -> None:
        """Forty days, and a year: some servers take what is over thirty days for a date."""
        for number, ttl in enumerate((40 * _DAY, 365 * _DAY)):
            key = self.key(f"order-{number}")
            self.assert_about(self.held(subject, key, ttl=ttl).expires_in, LONG + ttl)
            subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=ttl)
            self.assert_about(self.stands(subject, key, State.COMPLETED).expires_in, ttl)

    def test_durations_may_be_whole_numbers(self, subject: Store) -> None:
        """Seconds as an int are seconds."""
        key = self.key()
        assert subject.claim(key, owner="owner-a", fingerprint=None, lease=30, ttl=3600).acquired
        assert subject.renew(key, owner="owner-a", lease=60, ttl=3600)
        assert subject.complete(key, owner="owner-a", outcome=b"", ttl=3600)
        self.assert_about(self.stands(subject, key, State.COMPLETED).expires_in, 3600)

    @pytest.mark.parametrize("off", [_DAY, -_DAY], ids=["a-day-ahead", "a-day-behind"])
    def test_a_clients_clock_changes_nothing(self, subject: Store, monkeypatch: pytest.MonkeyPatch, off: float) -> None:
        """Behaviour 45: durations are judged by the store's clock."""
        if not self.own_clock:
            pytest.skip("this store's clock is the machine's")
        wall, wall_ns = time.time, time.time_ns
        live, done = self.key("live"), self.key("done")
        self.held(subject, live)
        self.completed(subject, done)
        monkeypatch.setattr(time, "time", lambda: wall() + off)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(off * 1e9))
        refused = self.claim(subject, live, "owner-b")
        assert not refused.acquired
        self.assert_about(refused.record.lease_left, LONG)
        self.assert_about(self.stands(subject, done, State.COMPLETED).expires_in, LONG)
        assert subject.renew(live, owner="owner-a", lease=LONG, ttl=LONG)
        monkeypatch.undo()
        assert not self.claim(subject, live, "owner-b").acquired

    def test_records_outlive_the_store_object(self, subject: Store, reopened: Callable[[], Store]) -> None:
        """Behaviours 27, 47: what was stored is read by who opens the store anew, and tokens go on rising."""
        running, done, released = (self.key(name) for name in ("running", "done", "released"))
        before = [self.held(subject, running), self.completed(subject, done), self.released(subject, released)]
        again = reopened()
        for key, record in zip((running, done, released), before, strict=True):
            self.assert_same(record, again.get(key))
        assert not self.claim(again, running, "owner-b").acquired
        assert again.complete(running, owner="owner-a", outcome=b"after", ttl=LONG) is True
        assert self.stands(again, running, State.COMPLETED).outcome == b"after"
        claim = self.claim(again, released, "owner-b")
        assert claim.record.attempt == 2
        assert claim.record.token > before[2].token

    def test_tokens_rise_over_deletion_and_reopening(self, subject: Store, reopened: Callable[[], Store]) -> None:
        """Behaviour 27: nothing is left of the record but the store's clock."""
        if not self.tokens_survive_delete:
            pytest.skip("this store does not promise that tokens rise over deletion")
        key = self.key()
        first = self.held(subject, key).token
        subject.delete(key)
        again = reopened()
        self.tick()
        assert self.held(again, key, "owner-b").token > first

    @pytest.mark.parametrize("how", ["truncated", "flipped", "newer", "foreign"])
    def test_a_record_that_cannot_be_read_is_never_absent(
        self, subject: Store, damaged: Callable[[Key, str], None], how: str
    ) -> None:
        """Behaviour 35: RecordError from every method, and the record is left as it is, but for a plain delete."""
        key = self.key()
        self.completed(subject, key)
        damaged(key, how)
        for _ in range(2):
            with pytest.raises(RecordError):
                self.claim(subject, key, "owner-b")
            with pytest.raises(RecordError):
                subject.get(key)
            with pytest.raises(RecordError):
                subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG)
            with pytest.raises(RecordError):
                subject.release(key, owner="owner-a", ttl=LONG)
            with pytest.raises(RecordError):
                subject.renew(key, owner="owner-a", lease=LONG, ttl=LONG)
            with pytest.raises(RecordError):
                subject.delete(key, owner="owner-a")
        assert subject.delete(key)
        assert not subject.delete(key)
        assert subject.get(key) is None
