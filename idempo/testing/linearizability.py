"""Checks a recorded history: is there an order of single steps that explains every answer?

The order must respect time: an operation that ended before another began comes before it. The search is that of Wing
and Gong (*Testing and verifying concurrent objects*, 1993), with the memory of Lowe (*Testing for linearizability*,
2017), key by key. One rule makes it fast: an operation that can never change anything, and whose answer is right as
things stand, is taken at once, without trying the other orders.

The clock of the store is not seen. A lease that was given by an operation ends somewhere between the operation's
beginning and its end, plus the lease; a claim that took it over must have ended after the earliest of these, and one
that was refused for it must have begun before the latest. Expiry likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import attrs

from idempo.records import Key, Record, State
from idempo.testing.history import UNKNOWN, Asked


class NotLinearizableError(AssertionError):
    """No order of single steps explains what the store answered."""


class _Span(NamedTuple):
    """A point in time that is known to lie between two others."""

    earliest: float
    latest: float

    def may_be_over(self, asked: Asked) -> bool:
        return asked.ended >= self.earliest

    def may_be_ahead(self, asked: Asked) -> bool:
        return asked.began < self.latest


class _Held(NamedTuple):
    """What a key's record must be. ``token`` is None where the answer that told it never came."""

    state: State
    owner: str
    fingerprint: bytes | None
    attempt: int
    token: int | None
    outcome: bytes | None
    lease: _Span | None
    expiry: _Span
    floor: int

    def is_told_by(self, record: Record) -> bool:
        return (
            record.state is self.state
            and record.owner == self.owner
            and record.fingerprint == self.fingerprint
            and record.attempt == self.attempt
            and record.outcome == self.outcome
            and self._is_token(record.token)
        )

    def _is_token(self, token: int) -> bool:
        if self.attempt == 0:  # left by a release of an absent key: nobody was given this token
            return True
        return token == self.token if self.token is not None else token > self.floor


class _Absent(NamedTuple):
    """No record. Tokens of later claims are above ``floor``."""

    floor: int


_Situation = _Held | _Absent


def check_history(history: Iterable[Asked], *, slack: float = 0.0, tokens_survive_delete: bool = True) -> None:
    """Check that the answers of a store could come from single steps, each within its operation's time.

    Args:
        history: What `RecordingStore` wrote down.
        slack: By how much the clocks of store and history may differ over a lease, in seconds.
        tokens_survive_delete: Whether fencing tokens must rise over deletion and expiry.

    Raises:
        NotLinearizableError: They could not. It tells the key, and where the search got stuck.
    """
    by_key: dict[Key, list[Asked]] = {}
    for asked in history:
        by_key.setdefault(asked.key, []).append(asked)
    rules = _Rules(slack, tokens_survive_delete)
    for key, operations in by_key.items():
        _Search(sorted(operations, key=lambda asked: asked.first), rules).run(key)


@attrs.frozen
class _Rules:
    """Which situations an operation may lead to, given its answer: the store protocol, as far as it can be seen."""

    slack: float
    tokens_survive_delete: bool

    def after(self, now: _Situation, asked: Asked) -> Iterator[_Situation]:
        """Yield the situations that the operation may leave; none where its answer is wrong."""
        if isinstance(now, _Absent):
            yield from self._on_absent(now, asked)
            return
        if now.expiry.may_be_ahead(asked):
            yield from getattr(self, f"_{asked.method}")(now, asked)
        if now.expiry.may_be_over(asked):
            yield from self._on_absent(self._gone(now), asked)

    def _span(self, asked: Asked, duration: float) -> _Span:
        return _Span(asked.began + duration - self.slack, asked.ended + duration + self.slack)

    def _gone(self, held: _Held) -> _Absent:
        if not self.tokens_survive_delete:
            return _Absent(-1)
        return _Absent(held.floor if held.token is None else held.token)

    def _on_absent(self, now: _Absent, asked: Asked) -> Iterator[_Situation]:
        if asked.method == "claim":
            yield from self._taken(asked, 1, asked.options["fingerprint"], now.floor)
        elif asked.method == "get":
            if asked.answer in (None, UNKNOWN):
                yield now
        elif asked.answer in (False, UNKNOWN):
            if asked.method == "release":
                expiry = self._span(asked, asked.options["ttl"])
                owner = asked.options["owner"]
                yield _Held(State.RELEASED, owner, None, 0, None, None, None, expiry, now.floor)
            else:
                yield now

    def _taken(
        self, asked: Asked, attempt: int, fingerprint: bytes | None, floor: int, *, took_over: bool = False
    ) -> Iterator[_Situation]:
        lease = self._span(asked, asked.options["lease"])
        expiry = self._span(asked, asked.options["lease"] + asked.options["ttl"])
        owner = asked.options["owner"]
        if asked.answer is UNKNOWN:
            yield _Held(State.RUNNING, owner, fingerprint, attempt, None, None, lease, expiry, floor)
            return
        token = asked.answer.record.token
        held = _Held(State.RUNNING, owner, fingerprint, attempt, token, None, lease, expiry, floor)
        right = asked.answer.acquired and asked.answer.took_over is took_over and held.is_told_by(asked.answer.record)
        if right and token > floor:
            yield held

    def _claim(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        options = asked.options
        floor = now.floor if now.token is None else now.token
        fingerprint = now.fingerprint if options["fingerprint"] is None else options["fingerprint"]
        mine = now.owner == options["owner"]
        if now.lease is not None and mine:
            yield from self._held_on(now, asked)
            return
        may_refuse = True
        if now.lease is not None:
            agree = now.fingerprint is None or fingerprint == now.fingerprint
            if agree and (options["take_over"] is True or options["take_over"] == now.owner):
                may_refuse = now.lease.may_be_ahead(asked)
                if now.lease.may_be_over(asked):
                    yield from self._taken(asked, now.attempt + 1, fingerprint, floor, took_over=True)
        elif now.state is State.RELEASED and not mine:
            may_refuse = False
            yield from self._taken(asked, now.attempt + 1, fingerprint, floor)
        if may_refuse and (
            asked.answer is UNKNOWN or (not asked.answer.acquired and now.is_told_by(asked.answer.record))
        ):
            yield now

    def _held_on(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        if asked.answer is UNKNOWN or (asked.answer.acquired and now.is_told_by(asked.answer.record)):
            yield self._renewed(now, asked)

    def _renewed(self, now: _Held, asked: Asked) -> _Held:
        lease, ttl = asked.options["lease"], asked.options["ttl"]
        return now._replace(lease=self._span(asked, lease), expiry=self._span(asked, lease + ttl))

    def _complete(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        mine = now.owner == asked.options["owner"] and now.state is not State.RELEASED
        if asked.answer in (mine, UNKNOWN):
            if mine and now.state is State.RUNNING:
                expiry = self._span(asked, asked.options["ttl"])
                yield now._replace(state=State.COMPLETED, outcome=asked.options["outcome"], lease=None, expiry=expiry)
            else:
                yield now

    def _release(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        mine = now.owner == asked.options["owner"] and now.state is not State.COMPLETED and now.attempt > 0
        if asked.answer in (mine, UNKNOWN):
            if mine and now.state is State.RUNNING:
                yield now._replace(state=State.RELEASED, lease=None, expiry=self._span(asked, asked.options["ttl"]))
            else:
                yield now

    def _renew(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        mine = now.owner == asked.options["owner"] and now.state is State.RUNNING
        if asked.answer in (mine, UNKNOWN):
            yield self._renewed(now, asked) if mine else now

    def _get(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        if asked.answer is UNKNOWN or (asked.answer is not None and now.is_told_by(asked.answer)):
            yield now

    def _delete(self, now: _Held, asked: Asked) -> Iterator[_Situation]:
        mine = asked.options["owner"] in (None, now.owner)
        if asked.answer in (mine, UNKNOWN):
            yield self._gone(now) if mine else now


def _never_changes(asked: Asked) -> bool:
    """Whether an operation that gave this answer left everything as it was, whenever it happened."""
    if asked.answer is UNKNOWN:
        return False
    if asked.method == "claim":
        return not asked.answer.acquired
    # A release that answers False is missing here: of an absent key it leaves RELEASED.
    return asked.method == "get" or (asked.answer is False and asked.method != "release")


@attrs.define
class _Choice:
    """A place where several operations could be next: what was taken on the way there, and what is left to try."""

    taken: list[int]
    now: _Situation
    untried: Iterator[tuple[int, _Situation]]


class _Search:
    """The search over one key's operations, sorted by their beginnings.

    Those not yet taken are a doubly linked list of positions, so that taking one and putting it back are single steps.
    The list has a sentinel at the end of the positions.
    """

    def __init__(self, operations: list[Asked], rules: _Rules) -> None:
        self._operations = operations
        self._rules = rules
        self._idle = [_never_changes(asked) for asked in operations]
        count = len(operations)
        self._next = [*range(1, count + 1), 0]
        self._previous = [count, *range(count)]
        self._taken = 0
        self._missing = sum(asked.answer is not UNKNOWN for asked in operations)

    def run(self, key: Key) -> None:
        now: _Situation = _Absent(-1)
        seen: set[tuple[int, _Situation]] = set()
        choices: list[_Choice] = []
        least, stuck = self._missing + 1, ""
        while True:
            taken = self._take_idle(now)
            if self._missing == 0:
                return
            if self._missing < least:
                least, stuck = self._missing, self._describe(now)
            untried: Iterator[tuple[int, _Situation]] = iter(())
            if (self._taken, now) not in seen:
                seen.add((self._taken, now))
                untried = iter([(i, then) for i in self._candidates() for then in self._after(now, i)])
            choices.append(_Choice(taken, now, untried))
            while (step := next(choices[-1].untried, None)) is None:
                for position in reversed(choices.pop().taken):
                    self._put_back(position)
                if not choices:
                    raise NotLinearizableError(f"no order of single steps explains the history of {key!r}: {stuck}")
                self._put_back(choices[-1].taken.pop())
            position, now = step
            self._take(position)
            choices[-1].taken.append(position)

    def _after(self, now: _Situation, position: int) -> Iterator[_Situation]:
        return self._rules.after(now, self._operations[position])

    def _candidates(self) -> Iterator[int]:
        """Yield what could be next: what began before anything else that is left ended."""
        operations, sentinel = self._operations, len(self._operations)
        position, first_end = self._next[sentinel], float("inf")
        while position != sentinel and operations[position].first < first_end:
            following = self._next[position]  # read first: the caller may take this one
            first_end = min(first_end, operations[position].last)
            yield position
            position = following

    def _take_idle(self, now: _Situation) -> list[int]:
        taken: list[int] = []
        more = True
        while more:
            more = False
            for position in self._candidates():
                if self._idle[position] and next(self._after(now, position), None) == now:
                    self._take(position)
                    taken.append(position)
                    more = True
        return taken

    def _take(self, position: int) -> None:
        before, after = self._previous[position], self._next[position]
        self._next[before], self._previous[after] = after, before
        self._taken |= 1 << position
        self._missing -= self._operations[position].answer is not UNKNOWN

    def _put_back(self, position: int) -> None:
        before, after = self._previous[position], self._next[position]
        self._next[before] = self._previous[after] = position
        self._taken ^= 1 << position
        self._missing += self._operations[position].answer is not UNKNOWN

    def _describe(self, now: _Situation) -> str:
        following = [
            f"{asked.method}({', '.join(f'{name}={value!r}' for name, value in asked.options.items())})"
            f" -> {asked.answer!r}"
            for asked in (self._operations[position] for position in self._candidates())
        ]
        return "\n  ".join(
            [f"after {self._taken.bit_count()} operations, with {now!r}, none of these fits:", *following]
        )
