"""Contract cases: what a claim does in every state of a record."""

from __future__ import annotations

import itertools
from typing import Final

import pytest

from idempo.protocols import Store
from idempo.records import Record, State
from idempo.testing._case import LONG, Case

_OWNERS = ("owner-a", "owner-b")
_FINGERPRINTS: Final[tuple[bytes | None, ...]] = (b"\x01one", b"\x01two", None)
_TAKE_OVERS: Final[tuple[bool | str, ...]] = (True, False, "owner-a", "owner-b", "")


class ClaimCases(Case):
    """`Store.claim`, alone on its key."""

    def test_an_absent_key_is_taken(self, subject: Store) -> None:
        """Whatever ``take_over`` says: there is nothing to take over."""
        for number, take_over in enumerate(_TAKE_OVERS):
            key = self.key(f"order-{number}")
            claim = self.claim(subject, key, lease=LONG, ttl=2 * LONG, take_over=take_over)
            record = claim.record
            assert claim.acquired
            assert not claim.took_over
            assert (record.state, record.owner, record.attempt) == (State.RUNNING, "owner-a", 1)
            assert record.outcome is None
            self.assert_about(record.lease_left, LONG)
            self.assert_about(record.expires_in, 3 * LONG)
            self.assert_same(record, subject.get(key))

    @pytest.mark.parametrize("stored", [b"\x01one", None], ids=["with-fingerprint", "without-fingerprint"])
    def test_a_live_claim_is_never_taken_by_another(self, subject: Store, stored: bytes | None) -> None:
        """Behaviour 21: a live lease is never taken, whatever is claimed with."""
        key = self.key()
        before = self.held(subject, key, fingerprint=stored)
        for fingerprint, take_over in itertools.product(_FINGERPRINTS, _TAKE_OVERS):
            claim = self.claim(subject, key, "owner-b", fingerprint=fingerprint, take_over=take_over)
            assert not claim.acquired
            assert not claim.took_over
            self.assert_same(before, claim.record)
        self.assert_same(before, subject.get(key))

    @pytest.mark.parametrize("lapsed", [False, True], ids=["live", "in-doubt"])
    def test_a_repeated_claim_by_the_holder_is_the_same_claim(self, subject: Store, lapsed: bool) -> None:
        """Behaviour 34: the first answer was lost. Same attempt, same token, the lease anew."""
        for number, take_over in enumerate(_TAKE_OVERS):
            key = self.key(f"order-{number}")
            first = self.held(subject, key)
            if lapsed:
                subject.renew(key, owner="owner-a", lease=0, ttl=LONG)
            self.tick()
            again = self.claim(subject, key, lease=2 * LONG, take_over=take_over)
            assert again.acquired
            assert not again.took_over
            assert (again.record.attempt, again.record.token) == (first.attempt, first.token)
            assert again.record.state is State.RUNNING
            self.assert_about(again.record.lease_left, 2 * LONG)
            self.assert_about(again.record.expires_in, 3 * LONG)
            self.assert_same(again.record, subject.get(key))

    @pytest.mark.parametrize("stored", [b"\x01one", None], ids=["with-fingerprint", "without-fingerprint"])
    def test_a_record_in_doubt_is_taken_over_where_allowed(self, subject: Store, stored: bytes | None) -> None:
        """Behaviours 6, 21, 26: the fingerprints agree, and ``take_over`` is true or names the owner that stands."""
        for number, (fingerprint, take_over) in enumerate(itertools.product(_FINGERPRINTS, _TAKE_OVERS)):
            key = self.key(f"order-{number}")
            self.doubtful(subject, key, fingerprint=stored)
            before = self.stands(subject, key, State.RUNNING)
            agree = fingerprint == stored or fingerprint is None or stored is None
            allowed = take_over is True or take_over == "owner-a"
            claim = self.claim(subject, key, "owner-b", fingerprint=fingerprint, take_over=take_over)
            if agree and allowed:
                self._assert_taken(before, claim.record, fingerprint)
                assert claim.acquired
                assert claim.took_over
                self.assert_same(claim.record, subject.get(key))
            else:
                assert not claim.acquired, f"taken over with {fingerprint!r} over {stored!r}, take_over={take_over!r}"
                assert not claim.took_over
                self.assert_same(before, claim.record)
                self.assert_same(before, subject.get(key))

    def test_take_over_that_names_an_owner_means_the_one_that_stands_now(self, subject: Store) -> None:
        """Behaviour 26: of two probes that looked at the same record, the second finds another owner there."""
        key = self.key()
        self.doubtful(subject, key)
        assert self.claim(subject, key, "owner-b", take_over="owner-a").acquired
        subject.renew(key, owner="owner-b", lease=0, ttl=LONG)
        assert not self.claim(subject, key, "owner-c", take_over="owner-a").acquired
        assert self.claim(subject, key, "owner-c", take_over="owner-b").acquired

    @pytest.mark.parametrize("stored", [b"\x01one", None], ids=["with-fingerprint", "without-fingerprint"])
    def test_a_completed_key_is_never_taken(self, subject: Store, stored: bytes | None) -> None:
        """Behaviour 6: nor by the owner that completed it; the answer brings fingerprint and outcome."""
        key = self.key()
        before = self.completed(subject, key, fingerprint=stored, outcome=b"the outcome")
        assert before.outcome == b"the outcome"
        for owner, fingerprint, take_over in itertools.product(_OWNERS, _FINGERPRINTS, _TAKE_OVERS):
            claim = self.claim(subject, key, owner, fingerprint=fingerprint, take_over=take_over)
            assert not claim.acquired
            assert not claim.took_over
            self.assert_same(before, claim.record)
        self.assert_same(before, subject.get(key))

    @pytest.mark.parametrize("stored", [b"\x01one", None], ids=["with-fingerprint", "without-fingerprint"])
    def test_a_released_key_is_free_for_another_owner(self, subject: Store, stored: bytes | None) -> None:
        """Behaviour 29: with any payload, and whatever ``take_over`` says, since nothing is in doubt."""
        for number, (fingerprint, take_over) in enumerate(itertools.product(_FINGERPRINTS, _TAKE_OVERS)):
            key = self.key(f"order-{number}")
            before = self.released(subject, key, fingerprint=stored)
            claim = self.claim(subject, key, "owner-b", fingerprint=fingerprint, take_over=take_over)
            assert claim.acquired
            assert not claim.took_over
            self._assert_taken(before, claim.record, fingerprint)
            self.assert_same(claim.record, subject.get(key))

    def test_a_delayed_copy_of_the_released_owners_claim_is_refused(self, subject: Store) -> None:
        """Behaviour 22: a client that sends twice must not take the key again after it was released."""
        key = self.key()
        before = self.released(subject, key)
        for fingerprint, take_over in itertools.product(_FINGERPRINTS, _TAKE_OVERS):
            claim = self.claim(subject, key, fingerprint=fingerprint, take_over=take_over)
            assert not claim.acquired
            self.assert_same(before, claim.record)
        self.assert_same(before, subject.get(key))

    @pytest.mark.parametrize("fingerprint", [b"", b"\x00", b"\xff\xfe\x00'\"\r\n", bytes(range(256))])
    def test_fingerprints_are_kept_byte_by_byte(self, subject: Store, fingerprint: bytes) -> None:
        """An empty one is not the same as none."""
        key = self.key()
        self.held(subject, key, fingerprint=fingerprint)
        assert self.stands(subject, key, State.RUNNING).fingerprint == fingerprint
        subject.complete(key, owner="owner-a", outcome=b"", ttl=LONG)
        assert self.claim(subject, key, "owner-b").record.fingerprint == fingerprint

    def test_no_fingerprint_is_kept_as_none(self, subject: Store) -> None:
        """It checks nothing, so it must not come back as something."""
        assert self.held(subject, self.key(), fingerprint=None).fingerprint is None
        assert self.completed(subject, self.key("other"), fingerprint=None).fingerprint is None

    def test_attempts_count_the_claims_of_a_living_record(self, subject: Store) -> None:
        """Behaviour 27: over releases and take-overs, until the record is gone."""
        key = self.key()
        assert self.held(subject, key, "owner-a").attempt == 1
        subject.release(key, owner="owner-a", ttl=LONG)
        assert self.held(subject, key, "owner-b").attempt == 2
        subject.renew(key, owner="owner-b", lease=0, ttl=LONG)
        assert self.held(subject, key, "owner-c").attempt == 3
        subject.release(key, owner="owner-c", ttl=LONG)
        assert self.held(subject, key, "owner-d").attempt == 4
        subject.delete(key)
        assert self.held(subject, key, "owner-e").attempt == 1

    def test_tokens_rise_with_every_claim(self, subject: Store) -> None:
        """Behaviour 27: over release and take-over; what does not claim does not change them."""
        key = self.key()
        tokens = [self.held(subject, key, "owner-0").token]
        for number in range(6):
            owner = f"owner-{number}"
            if number % 2:
                subject.renew(key, owner=owner, lease=0, ttl=LONG)
            else:
                subject.release(key, owner=owner, ttl=LONG)
            assert self.stands(subject, key, State.RUNNING if number % 2 else State.RELEASED).token == tokens[-1]
            tokens.append(self.held(subject, key, f"owner-{number + 1}").token)
        assert tokens == sorted(set(tokens))

    def test_tokens_rise_over_deletion(self, subject: Store) -> None:
        """Behaviour 27: a writer from before a ``forget`` stays behind those after it."""
        if not self.tokens_survive_delete:
            pytest.skip("this store does not promise that tokens rise over deletion")
        key = self.key()
        tokens = []
        for number in range(4):
            tokens.append(self.held(subject, key, f"owner-{number}").token)
            assert subject.delete(key)
            self.tick()
        tokens.append(self.completed(subject, key, "owner-4").token)
        subject.delete(key)
        self.tick()
        tokens.append(self.held(subject, key, "owner-5").token)
        assert tokens == sorted(set(tokens))

    def _assert_taken(self, before: Record, after: Record, fingerprint: bytes | None) -> None:
        assert (after.state, after.owner) == (State.RUNNING, "owner-b")
        assert after.attempt == before.attempt + 1
        assert after.token > before.token
        assert after.outcome is None
        assert after.fingerprint == (before.fingerprint if fingerprint is None else fingerprint)
        self.assert_about(after.lease_left, LONG)
        self.assert_about(after.expires_in, 2 * LONG)
