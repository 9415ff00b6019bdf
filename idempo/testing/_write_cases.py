"""Contract cases: the writes that name an owner, and what they leave to be read."""

from __future__ import annotations

import pytest

from idempo.protocols import Store
from idempo.records import Key, State
from idempo.testing._case import LONG, Case

_OUTCOMES = {
    "empty": b"",
    "nul": b"\x00",
    "zero": b"0",
    "none": b"None",
    "newlines": b"\r\n\n",
    "no-text": b"\xff\xfe\x80",
    "every-byte": bytes(range(256)),
}


class WriteCases(Case):
    """`Store.complete`, `release`, `renew`, `get` and `delete`, alone on their key."""

    # complete

    @pytest.mark.parametrize("lapsed", [False, True], ids=["live", "in-doubt"])
    def test_the_holder_completes(self, subject: Store, lapsed: bool) -> None:
        """Behaviour 23: late or not, as long as nobody took the key over."""
        key = self.key()
        before = self.doubtful(subject, key) if lapsed else self.held(subject, key)
        assert subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=2 * LONG) is True
        record = self.stands(subject, key, State.COMPLETED)
        assert record.outcome == b"outcome"
        assert record.lease_left is None
        self.assert_about(record.expires_in, 2 * LONG)
        assert (record.owner, record.attempt, record.token) == ("owner-a", before.attempt, before.token)
        assert record.fingerprint == before.fingerprint

    def test_a_repeated_complete_is_true_and_keeps_the_first_outcome(self, subject: Store) -> None:
        """Behaviour 34: its answer was lost. A second value for one operation is never let in."""
        key = self.key()
        self.held(subject, key)
        for outcome in (b"first", b"first", b"second"):
            assert subject.complete(key, owner="owner-a", outcome=outcome, ttl=LONG) is True
        assert self.stands(subject, key, State.COMPLETED).outcome == b"first"

    def test_nobody_else_completes(self, subject: Store) -> None:
        """Behaviour 22: a stranger changes nothing, in any state."""
        for key in self._in_every_state(subject):
            before = subject.get(key)
            assert subject.complete(key, owner="stranger", outcome=b"stolen", ttl=LONG) is False
            self.assert_same(before, subject.get(key))

    def test_complete_after_release_is_refused(self, subject: Store) -> None:
        """The owner gave the key back: it holds it no more."""
        key = self.key()
        before = self.released(subject, key)
        assert subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG) is False
        self.assert_same(before, subject.get(key))

    @pytest.mark.parametrize("outcome", _OUTCOMES.values(), ids=_OUTCOMES.keys())
    def test_outcomes_are_kept_byte_by_byte(self, subject: Store, outcome: bytes) -> None:
        """Behaviour 2: falsy outcomes are outcomes."""
        key = self.key()
        self.completed(subject, key, outcome=outcome)
        for record in (subject.get(key), self.claim(subject, key, "owner-b").record):
            assert record is not None
            assert record.outcome == outcome
            assert type(record.outcome) is bytes

    def test_the_largest_outcome_is_kept(self, subject: Store) -> None:
        """Up to ``largest_outcome`` bytes: by default what a policy allows."""
        key = self.key()
        outcome = (bytes(range(256)) * (self.largest_outcome // 256 + 1))[: self.largest_outcome]
        assert self.completed(subject, key, outcome=outcome).outcome == outcome

    # release

    @pytest.mark.parametrize("lapsed", [False, True], ids=["live", "in-doubt"])
    def test_the_holder_releases(self, subject: Store, lapsed: bool) -> None:
        """The record keeps what the next claim goes on from."""
        key = self.key()
        before = self.doubtful(subject, key) if lapsed else self.held(subject, key)
        assert subject.release(key, owner="owner-a", ttl=2 * LONG) is True
        record = self.stands(subject, key, State.RELEASED)
        assert (record.owner, record.attempt, record.token) == ("owner-a", before.attempt, before.token)
        assert record.lease_left is None
        assert record.outcome is None
        self.assert_about(record.expires_in, 2 * LONG)

    def test_a_repeated_release_is_true(self, subject: Store) -> None:
        """Behaviour 34: its answer was lost."""
        key = self.key()
        before = self.released(subject, key)
        assert subject.release(key, owner="owner-a", ttl=LONG) is True
        self.assert_same(before, subject.get(key))

    def test_nobody_else_releases(self, subject: Store) -> None:
        """Behaviour 22: a stranger changes nothing, in any state."""
        for key in self._in_every_state(subject):
            before = subject.get(key)
            assert subject.release(key, owner="stranger", ttl=LONG) is False
            self.assert_same(before, subject.get(key))

    def test_a_completed_key_is_not_released(self, subject: Store) -> None:
        """The outcome stands, also against its own owner."""
        key = self.key()
        before = self.completed(subject, key)
        assert subject.release(key, owner="owner-a", ttl=LONG) is False
        self.assert_same(before, subject.get(key))

    def test_a_release_that_overtakes_its_claim_lets_nothing_through(self, subject: Store) -> None:
        """Behaviour 22: of an absent key it is False, and the claim that arrives after it is refused."""
        key = self.key()
        for _ in range(2):
            assert subject.release(key, owner="owner-a", ttl=LONG) is False
            assert self.stands(subject, key, State.RELEASED).owner == "owner-a"
        assert not self.claim(subject, key, "owner-a").acquired
        assert self.stands(subject, key, State.RELEASED).owner == "owner-a"
        assert subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG) is False
        assert subject.renew(key, owner="owner-a", lease=LONG, ttl=LONG) is False
        claim = self.claim(subject, key, "owner-b")
        assert claim.acquired
        assert not claim.took_over
        assert claim.record.attempt == 1, "nobody had claimed the key before"

    # renew

    @pytest.mark.parametrize("lapsed", [False, True], ids=["live", "in-doubt"])
    def test_the_holder_renews(self, subject: Store, lapsed: bool) -> None:
        """Behaviour 23: also a lapsed lease that nobody took over. Lease and expiry move together."""
        key = self.key()
        before = self.doubtful(subject, key) if lapsed else self.held(subject, key)
        for _ in range(2):
            assert subject.renew(key, owner="owner-a", lease=2 * LONG, ttl=3 * LONG) is True
        record = self.stands(subject, key, State.RUNNING)
        self.assert_about(record.lease_left, 2 * LONG)
        self.assert_about(record.expires_in, 5 * LONG)
        assert (record.owner, record.attempt, record.token) == ("owner-a", before.attempt, before.token)
        assert record.fingerprint == before.fingerprint
        assert not self.claim(subject, key, "owner-b").acquired

    def test_a_lease_may_be_shortened(self, subject: Store) -> None:
        """Renewal says when the lease ends; it does not add to it."""
        key = self.key()
        self.held(subject, key)
        assert subject.renew(key, owner="owner-a", lease=LONG / 2, ttl=LONG) is True
        self.assert_about(self.stands(subject, key, State.RUNNING).lease_left, LONG / 2)

    def test_a_lease_of_zero_leaves_the_record_in_doubt_at_once(self, subject: Store) -> None:
        """The function failed in a way that proves nothing."""
        key = self.key()
        before = self.held(subject, key)
        for _ in range(2):
            assert subject.renew(key, owner="owner-a", lease=0, ttl=LONG) is True
        record = self.stands(subject, key, State.RUNNING)
        assert record.lease_left is not None
        assert record.lease_left <= 0
        self.assert_about(record.expires_in, LONG)
        assert (record.owner, record.attempt) == ("owner-a", before.attempt)
        refused = self.claim(subject, key, "owner-b", take_over=False)
        assert not refused.acquired
        assert refused.record.lease_left is not None
        assert refused.record.lease_left <= 0
        assert self.claim(subject, key, "owner-b").took_over

    def test_nobody_else_renews(self, subject: Store) -> None:
        """Behaviour 22: a stranger changes nothing, in any state."""
        for key in self._in_every_state(subject):
            before = subject.get(key)
            assert subject.renew(key, owner="stranger", lease=2 * LONG, ttl=LONG) is False
            assert subject.renew(key, owner="stranger", lease=0, ttl=LONG) is False
            self.assert_same(before, subject.get(key))

    @pytest.mark.parametrize("state", [State.COMPLETED, State.RELEASED])
    def test_what_has_ended_is_not_renewed(self, subject: Store, state: State) -> None:
        """A renewal that was under way when its owner ended changes nothing."""
        key = self.key()
        before = self.completed(subject, key) if state is State.COMPLETED else self.released(subject, key)
        assert subject.renew(key, owner="owner-a", lease=2 * LONG, ttl=LONG) is False
        self.assert_same(before, subject.get(key))

    # after a take-over

    @pytest.mark.parametrize("ended", ["running", "completed", "released", "deleted"])
    def test_a_late_owner_changes_nothing_after_a_take_over(self, subject: Store, ended: str) -> None:
        """Behaviour 22: however far the one who took over has come."""
        key = self.key()
        self.doubtful(subject, key, "late")
        assert self.claim(subject, key, "owner-b").acquired
        if ended == "completed":
            subject.complete(key, owner="owner-b", outcome=b"theirs", ttl=LONG)
        elif ended == "released":
            subject.release(key, owner="owner-b", ttl=LONG)
        elif ended == "deleted":
            subject.delete(key)
        before = subject.get(key)
        assert subject.complete(key, owner="late", outcome=b"late", ttl=LONG) is False
        assert subject.renew(key, owner="late", lease=LONG, ttl=LONG) is False
        assert subject.delete(key, owner="late") is False
        if ended != "deleted":  # of an absent key it leaves RELEASED, as shown elsewhere
            assert subject.release(key, owner="late", ttl=LONG) is False
        self.assert_same(before, subject.get(key))

    # get

    def test_get_answers_none_for_an_absent_key(self, subject: Store) -> None:
        """And leaves it absent."""
        key = self.key()
        assert subject.get(key) is None
        assert subject.get(key) is None
        assert self.held(subject, key).attempt == 1

    def test_get_changes_nothing(self, subject: Store) -> None:
        """In any state, however often."""
        for key in self._in_every_state(subject):
            first = subject.get(key)
            for _ in range(3):
                self.assert_same(first, subject.get(key))

    # delete

    def test_delete_removes_a_record_in_any_state(self, subject: Store) -> None:
        """True when there was one; the key is new then."""
        assert subject.delete(self.key("absent")) is False
        for key in self._in_every_state(subject):
            assert subject.delete(key) is True
            assert subject.get(key) is None
            assert subject.delete(key) is False
            self.tick()
            assert self.held(subject, key, "owner-z", fingerprint=b"\x01other").attempt == 1

    def test_delete_by_owner_removes_only_that_owners_record(self, subject: Store) -> None:
        """In any state: nobody deletes what somebody else has claimed meanwhile."""
        for key in self._in_every_state(subject):
            before = subject.get(key)
            assert subject.delete(key, owner="stranger") is False
            self.assert_same(before, subject.get(key))
            assert subject.delete(key, owner="owner-a") is True
            assert subject.get(key) is None

    def test_a_deleted_claim_is_held_no_more(self, subject: Store) -> None:
        """Its owner hears of it, and brings nothing back."""
        key = self.key()
        self.held(subject, key)
        subject.delete(key)
        assert subject.complete(key, owner="owner-a", outcome=b"outcome", ttl=LONG) is False
        assert subject.renew(key, owner="owner-a", lease=LONG, ttl=LONG) is False
        assert subject.get(key) is None

    def _in_every_state(self, subject: Store) -> list[Key]:
        keys = [self.key(state) for state in ("running", "in doubt", "completed", "released")]
        for key, leave in zip(keys, (self.held, self.doubtful, self.completed, self.released), strict=True):
            leave(subject, key)
        return keys
