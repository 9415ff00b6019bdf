"""Contract cases: many callers at once on one key. Each method is one atomic step."""

from __future__ import annotations

from functools import partial

from idempo.protocols import Store
from idempo.records import Claim, Key, State
from idempo.testing._case import LONG, Case

_ROUNDS = 8


class RaceCases(Case):
    """Threads that start together at a barrier, several rounds of each race."""

    def test_many_claim_one_key_and_one_has_it(self, subject: Store) -> None:
        """Behaviour 1: the others are told who."""
        for key in self._keys():
            winner = self._only_one(self.race(partial(self._claim, subject, key)))
            assert (winner.record.attempt, winner.took_over) == (1, False)

    def test_a_record_in_doubt_is_taken_over_by_one_of_many(self, subject: Store) -> None:
        """Behaviour 21: with the next attempt."""
        for key in self._keys():
            self.doubtful(subject, key)
            winner = self._only_one(self.race(partial(self._claim, subject, key)))
            assert (winner.record.attempt, winner.took_over) == (2, True)

    def test_of_many_probes_that_answer_rerun_one_takes_over(self, subject: Store) -> None:
        """Behaviour 26: each names the owner that it looked at."""
        for key in self._keys():
            self.doubtful(subject, key, "looked-at")
            winner = self._only_one(self.race(partial(self._claim, subject, key, take_over="looked-at")))
            assert winner.took_over

    def test_a_released_key_is_claimed_by_one_of_many(self, subject: Store) -> None:
        """Behaviour 12: a failing holder hands over to exactly one."""
        for key in self._keys():
            self.released(subject, key)
            winner = self._only_one(self.race(partial(self._claim, subject, key)))
            assert (winner.record.attempt, winner.took_over) == (2, False)

    def test_repeated_claims_of_one_owner_are_one_claim(self, subject: Store) -> None:
        """Behaviour 34: copies of one request that arrive together."""
        for key in self._keys():
            claims = self.race(lambda _, key=key: self.claim(subject, key, "owner-a"))  # type: ignore[misc]
            assert all(claim.acquired for claim in claims)
            assert {claim.record.token for claim in claims} == {claims[0].record.token}
            assert {claim.record.attempt for claim in claims} == {1}

    def test_complete_against_take_over(self, subject: Store) -> None:
        """Behaviour 22: either the late owner completes and nobody takes over, or one does and it is refused."""
        for key in self._keys():
            self.doubtful(subject, key, "late")

            def act(number: int, key: Key = key) -> bool:
                if number == 0:
                    return subject.complete(key, owner="late", outcome=b"late", ttl=LONG)
                return self._claim(subject, key, number).acquired

            completed, *taken = self.race(act)
            record = subject.get(key)
            assert record is not None
            assert taken.count(True) == (0 if completed else 1)
            assert record.state is (State.COMPLETED if completed else State.RUNNING)
            assert record.outcome == (b"late" if completed else None)

    def test_renewal_against_take_over(self, subject: Store) -> None:
        """Behaviour 21: a lease that was renewed in time is live, and nobody's."""
        for key in self._keys():
            self.doubtful(subject, key, "late")

            def act(number: int, key: Key = key) -> bool:
                if number == 0:
                    return subject.renew(key, owner="late", lease=LONG, ttl=LONG)
                return self._claim(subject, key, number).acquired

            renewed, *taken = self.race(act)
            record = self.stands(subject, key, State.RUNNING)
            assert taken.count(True) == (0 if renewed else 1)
            assert (record.owner == "late") is renewed

    def test_release_against_claims(self, subject: Store) -> None:
        """One at most has the key afterwards, and the release is true."""
        for key in self._keys():
            self.held(subject, key)

            def act(number: int, key: Key = key) -> bool:
                if number == 0:
                    return subject.release(key, owner="owner-a", ttl=LONG)
                return self._claim(subject, key, number).acquired

            released, *taken = self.race(act)
            assert released
            assert taken.count(True) <= 1
            self.stands(subject, key, State.RUNNING if any(taken) else State.RELEASED)

    def test_one_of_many_outcomes_stands(self, subject: Store) -> None:
        """Behaviour 34: and it does not change any more."""
        for key in self._keys():
            self.held(subject, key)
            answers = self.race(
                lambda number, key=key: subject.complete(key, owner="owner-a", outcome=b"%d" % number, ttl=LONG)  # type: ignore[misc]
            )
            assert all(answers)
            outcome = self.stands(subject, key, State.COMPLETED).outcome
            assert outcome in {b"%d" % number for number in range(self.threads)}
            subject.complete(key, owner="owner-a", outcome=b"another", ttl=LONG)
            assert self.stands(subject, key, State.COMPLETED).outcome == outcome

    def test_one_of_many_deletes_removed_it(self, subject: Store) -> None:
        """The others say that there was nothing."""
        for key in self._keys():
            self.completed(subject, key)
            answers = self.race(lambda _, key=key: subject.delete(key))  # type: ignore[misc]
            assert answers.count(True) == 1

    def test_different_keys_do_not_disturb_each_other(self, subject: Store) -> None:
        """Each thread takes its own keys through a whole life."""

        def live(number: int) -> list[bytes | None]:
            seen = []
            for turn in range(10):
                key = self.key(f"order-{number}-{turn}")
                assert self.claim(subject, key, f"owner-{number}").acquired
                assert subject.renew(key, owner=f"owner-{number}", lease=LONG, ttl=LONG)
                assert subject.complete(key, owner=f"owner-{number}", outcome=b"%d %d" % (number, turn), ttl=LONG)
                seen.append(self.stands(subject, key, State.COMPLETED).outcome)
            return seen

        for number, seen in enumerate(self.race(live)):
            assert seen == [b"%d %d" % (number, turn) for turn in range(10)]

    def _keys(self) -> list[Key]:
        return [self.key(f"order-{number}") for number in range(_ROUNDS)]

    def _claim(self, subject: Store, key: Key, number: int, take_over: bool | str = True) -> Claim:
        return self.claim(subject, key, f"racer-{number}", take_over=take_over)

    def _only_one(self, claims: object) -> Claim:
        assert isinstance(claims, list)
        winners = [claim for claim in claims if claim.acquired]
        assert len(winners) == 1, f"{len(winners)} of {len(claims)} were told that they hold the key"
        for claim in claims:
            assert claim.record.owner == winners[0].record.owner
        winner: Claim = winners[0]
        return winner
