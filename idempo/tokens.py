"""Tokens that can be redeemed once: for a form that is sent twice, a link that is opened twice.

A token is text for a URL or a form field: an id, when it was issued, its purpose, subject and data, as JSON, signed
with HMAC-SHA-256 by itsdangerous. Signed is not encrypted: whoever holds a token can read it. To redeem it is an
operation of a guard under the token's id; nothing else of it is stored. Needs ``idempo[tokens]``.
"""

from __future__ import annotations

import hashlib
import json
import secrets as random_texts
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Literal

import attrs

try:
    from itsdangerous import BadData, Signer
    from itsdangerous.encoding import base64_decode, base64_encode
except ImportError as error:
    raise ImportError("idempo.tokens needs itsdangerous: pip install 'idempo[tokens]'") from error

from idempo import ExpiredTokenError, Idempotency, InvalidTokenError, Key, Observer, UsedTokenError, WrongPurposeError
from idempo._key_text import check_namespace, key_text
from idempo._secrets import checked_secrets
from idempo._time import seconds
from idempo.blocks import OperationBlock
from idempo.policy import ErrorClasses, Seconds
from idempo.terms import AnyStore

__all__ = ["Redeeming", "Redemption", "TokenIssuer"]

_VERSION: Final = 1
_SHORTEST_LIFE: Final = 1.0
_LONGEST_LIFE: Final = 366 * 24 * 60 * 60.0
_LONGEST_LEEWAY: Final = 24 * 60 * 60.0
_LARGEST_DATA: Final = 4096  # bytes of JSON: what still goes into a form field, and mostly into a URL
_LONGEST_TOKEN: Final = 16_384  # more than the largest data, purpose and subject give


@attrs.frozen
class Redemption:
    """What a token said that was redeemed.

    Attributes:
        id: The token's random id: the value of its key in the store, and of no use to who would forge one.
        purpose: As text.
        subject: As text; None where the token has none.
        data: What `TokenIssuer.issue` was given; None where that was nothing.
        issued_at: By the clock of whoever issued it, in UTC.
        expires_at: From then on it cannot be redeemed.
    """

    id: str
    purpose: str
    subject: str | None
    data: Any = attrs.field(repr=False)
    issued_at: datetime
    expires_at: datetime


class _ExactSigner(Signer):
    """A `Signer` for which each signature has one spelling: in base64 the last character has bits that nobody reads."""

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        text = sig.encode() if isinstance(sig, str) else sig
        return super().verify_signature(value, text) and base64_encode(base64_decode(text)) == text


class TokenIssuer:
    """Issues tokens that can be redeemed once each, on one store. Make one, and keep it.

    Args:
        store: Where redeemed tokens are remembered, by their id, until after they expire. It must not drop records
            before: a `MemoryStore` is for one process, and needs ``on_full="refuse"`` where it can fill up.
        secrets: One secret or several: the first signs, all verify. To replace one, put the new one first and take the
            old one away once ``ttl`` has passed. At least 16 bytes each; text counts as its UTF-8 bytes. Make one with
            ``python -c "import secrets; print(secrets.token_urlsafe(32))"``.
        ttl: How long a token can be redeemed; 1 second to 366 days.
        in_doubt: What is done about a token in whose `redeeming` block a process died. "raise" gives InDoubtError until
            somebody looked, and called ``issuer.guard.resolve(error.key, None)`` (used) or
            ``issuer.guard.forget(error.key)`` (unused): at most once. "rerun" lets it be redeemed again: at least once.
        release_errors: Exceptions that leave the token unused when the block raises them; any other leaves it in doubt.
            By default every Exception, and under "rerun" cancellation and interrupts as well.
        wait: How long a second redeemer waits for an open block of another; 0 refuses at once with InProgressError.
        leeway: By how much the clocks of the machines, and of the store, may differ; at most a day. Tokens are
            remembered for twice that longer than they live.
        namespace: Of the store's keys; 1 to 255 characters, no "/". A token is good in its own namespace only.
        observers: Called with each `Event`, whose key has the token's id.
        clock: Gives the seconds since the epoch.

    Attributes:
        guard: The guard that redeems: for its ``stats()``, and to end a doubt.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range; or a secret is too short, or there is none.

    >>> from idempo import MemoryStore, UsedTokenError
    >>> from idempo.tokens import TokenIssuer
    >>> issuer = TokenIssuer(MemoryStore(), secrets="example-only-0123456789", ttl=3600)
    >>> token = issuer.issue("order", subject="user-7", data={"cart": 42})
    >>> issuer.redeem(token, "order", subject="user-7").data
    {'cart': 42}
    >>> try:
    ...     issuer.redeem(token, "order", subject="user-7")
    ... except UsedTokenError:
    ...     print("we have your order already")
    we have your order already
    """

    def __init__(
        self,
        store: AnyStore,
        *,
        secrets: str | bytes | Sequence[str | bytes],
        ttl: Seconds,
        in_doubt: Literal["raise", "rerun"] = "raise",
        release_errors: ErrorClasses | None = None,
        wait: Seconds = 20.0,
        leeway: Seconds = 300.0,
        namespace: str = "tokens",
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if in_doubt not in ("raise", "rerun"):
            raise ValueError('in_doubt must be "raise" or "rerun": a token has nothing that a probe could look at')
        if not callable(clock):
            raise TypeError(f"clock must be a function that gives seconds, not {type(clock).__name__}")
        if release_errors is None:
            release_errors = Exception if in_doubt == "raise" else BaseException
        several = release_errors if isinstance(release_errors, tuple) else (release_errors,)
        life = _at_most(seconds(ttl, "ttl", minimum=_SHORTEST_LIFE), _LONGEST_LIFE, "ttl", "366 days")
        self._life: Final = round(life * 1000)
        self._leeway: Final = _at_most(seconds(leeway, "leeway"), _LONGEST_LEEWAY, "leeway", "a day")
        self._clock = clock
        # Whoever has the secret for another namespace, or uses it for something else, signs nothing that is good here.
        self._signer: Final = _ExactSigner(
            checked_secrets(secrets)[::-1],  # itsdangerous signs with the last
            salt="idempo.tokens:" + check_namespace(namespace, allow_slash=False),
            key_derivation="hmac",
            digest_method=hashlib.sha256,
        )
        self._make_guard: Callable[[int], Idempotency] = lambda life: Idempotency(
            store,
            namespace=namespace,
            observers=observers,
            # The first redemption is made when its clock shows at least `issued - leeway`. When its record goes, that
            # clock shows at least `issued + life + leeway`, and any other at least `issued + life`: expired.
            ttl=life / 1000 + 2 * self._leeway,
            wait=wait,
            in_doubt=in_doubt,
            # One that expired while it waited for its turn was not redeemed.
            release_errors=(*several, ExpiredTokenError),
        )
        self.guard: Final = self._make_guard(self._life)

    def __repr__(self) -> str:
        return f"TokenIssuer(<{type(self.guard.store).__name__}>, namespace={self.guard.namespace!r})"

    def issue(self, purpose: str, subject: Any = None, data: Any = None) -> str:
        """Return a new token: URL-safe text, of about 150 characters and what purpose, subject and data need.

        Nothing is stored, so an issued token costs nothing.

        Args:
            purpose: What it is good for, such as "order"; 1 to 255 characters.
            subject: Whom it is for, such as a user's id: a str, int, UUID or Enum, or a tuple of these. Whoever redeems
                it must name the same.
            data: What `Redemption.data` gives back: JSON (dicts with text for keys, lists, text, finite numbers, bools,
                None), at most 4096 bytes of it. Signed, and readable for whoever holds the token.

        Raises:
            InvalidKeyError: Purpose or subject is empty, too long, or of a type that names nothing reliably.
            TypeError: Data is no JSON.
            ValueError: Data is too large, or too deeply nested.
        """
        id_ = random_texts.token_urlsafe(16)
        issued = round(self._clock() * 1000)
        claims = [_VERSION, id_, issued, self._life, key_text(purpose, "the purpose"), _subject(subject), data]
        if data is not None:
            _check_data(data)
        text = json.dumps(claims, separators=(",", ":"))
        return self._signer.sign(base64_encode(text)).decode("ascii")

    def redeem(self, token: str, purpose: str, subject: Any = None) -> Redemption:
        """Redeem a token, here and now: it is used from then on, whatever becomes of the caller.

        Args:
            token: What `issue` gave; anything may come from a client, None included.
            purpose: As it was issued for.
            subject: As it was issued for; None only where there was none.

        Raises:
            InvalidTokenError: The token was forged, altered or cut short, or there is none.
            WrongPurposeError: It is for another purpose or subject.
            ExpiredTokenError: Its time is over.
            UsedTokenError: It was redeemed before.
            InProgressError: Another's `redeeming` block was still open after ``wait``.
            InDoubtError: A `redeeming` block ended in a way that nobody knows.
            InvalidKeyError: The purpose or subject that was given names nothing.
            StoreError: The store did not answer; the token is unused.
            ResultNotStoredError: The store did not answer any more once it was ours; the token is in doubt.
            TypeError: The store is an AsyncStore: use `redeem_async`.
        """
        redemption, guard = self._read(token, purpose, subject)
        turn = _Turn(self._clock, redemption, guard.namespace)

        def take() -> None:
            turn.take()

        guard.run(redemption.id, take)
        return turn.redemption(fresh=turn.taken)

    async def redeem_async(self, token: str, purpose: str, subject: Any = None) -> Redemption:
        """`redeem` on any store."""
        redemption, guard = self._read(token, purpose, subject)
        turn = _Turn(self._clock, redemption, guard.namespace)

        async def take() -> None:
            turn.take()

        await guard.run_async(redemption.id, take)
        return turn.redemption(fresh=turn.taken)

    def redeeming(self, token: str, purpose: str, subject: Any = None) -> Redeeming:
        """Redeem a token around a block: used when the block ends, unused when it raises.

        To be entered at once, by ``with`` or, on any store, by ``async with``, which give the `Redemption`. Who comes
        meanwhile waits for the end of the block: UsedTokenError where it ends, and where it raises that error too,
        within the same process, or else the token. Inside, `idempo.current_operation` has ``derive`` for the keys of
        downstream calls.

        Args:
            token: As for `redeem`.
            purpose: As for `redeem`.
            subject: As for `redeem`.

        Raises:
            TokenError: As for `redeem`; UsedTokenError, and whatever else the store has to say, on entering.
        """
        redemption, guard = self._read(token, purpose, subject)
        return Redeeming(guard.operation(redemption.id), _Turn(self._clock, redemption, guard.namespace))

    def _read(self, token: object, purpose: str, subject: Any) -> tuple[Redemption, Idempotency]:
        """Return what a genuine token says, and the guard that redeems it."""
        wanted = (key_text(purpose, "the purpose"), _subject(subject))
        id_, issued, life, *named, data = self._claims(token)
        key = Key(self.guard.namespace, id_)
        if tuple(named) != wanted:
            raise WrongPurposeError("the token is for another purpose or subject", key=key)
        if issued / 1000 > self._clock() + self._leeway:
            raise InvalidTokenError("the token is from the future: the machines' clocks differ by too much", key=key)
        redemption = Redemption(id_, *wanted, data, _instant(issued), _instant(issued + life))
        _refuse_expired(redemption, self._clock, key)
        # A token that an issuer with another ttl signed is remembered for its own life, not for ours.
        return redemption, self.guard if life <= self._life else self._make_guard(life)

    def _claims(self, token: object) -> list[Any]:
        if not isinstance(token, str) or not token:
            raise InvalidTokenError("there is no token: it must be the text that issue() gave")
        try:
            if len(token) > _LONGEST_TOKEN or not token.isascii():
                raise BadData("no token of ours is that long, or in these letters")
            claims: list[Any]
            version, *claims = json.loads(base64_decode(self._signer.unsign(token)))
        except (BadData, ValueError, TypeError):
            # From None: the text of what it came from has the token's signature.
            raise InvalidTokenError(
                "the token was forged, altered or cut short, or its secret is in use no more"
            ) from None
        if version != _VERSION:
            raise InvalidTokenError("the token is of a version of idempo that this one cannot read")
        return claims


class Redeeming:
    """A block around which a token is redeemed. Entered once, by ``with`` or ``async with``."""

    __slots__ = ("_block", "_turn")

    def __init__(self, block: OperationBlock, turn: _Turn) -> None:
        self._block = block
        self._turn = turn

    def __enter__(self) -> Redemption:
        fresh = self._block.__enter__().fresh
        try:
            if fresh:
                self._turn.take()
            return self._turn.redemption(fresh=fresh)
        except BaseException as error:
            self._block.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Redemption:
        fresh = (await self._block.__aenter__()).fresh
        try:
            if fresh:
                self._turn.take()
            return self._turn.redemption(fresh=fresh)
        except BaseException as error:
            await self._block.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._block.__aexit__(kind, error, traceback)


class _Turn:
    """One try to redeem a token."""

    __slots__ = ("_clock", "_key", "_redemption", "taken")

    def __init__(self, clock: Callable[[], float], redemption: Redemption, namespace: str) -> None:
        self._clock = clock
        self._key = Key(namespace, redemption.id)
        self._redemption = redemption
        self.taken = False

    def take(self) -> None:
        """Note that the token is ours; now that it is, its time may be over: it may have waited long for its turn."""
        _refuse_expired(self._redemption, self._clock, self._key)
        self.taken = True

    def redemption(self, *, fresh: bool) -> Redemption:
        if not fresh:
            raise UsedTokenError("the token was redeemed before", key=self._key)
        return self._redemption


def _refuse_expired(redemption: Redemption, clock: Callable[[], float], key: Key) -> None:
    if clock() >= redemption.expires_at.timestamp():
        raise ExpiredTokenError("the token has expired", key=key)


def _subject(subject: Any) -> str | None:
    return None if subject is None else key_text(subject, "the subject")


def _check_data(data: Any) -> None:
    """Refuse what would not come back as it is; no text of an error shows any of it."""
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        back = json.loads(text)
    except RecursionError:
        raise ValueError("data must not be nested so deeply") from None
    except (TypeError, ValueError):
        raise TypeError(
            "data must be JSON: dicts with text for keys, lists, text, finite numbers, bools, None"
        ) from None
    if back != data:
        raise TypeError("data must be JSON that comes back as it is: lists for tuples, text for the keys of dicts")
    if len(text) > _LARGEST_DATA:
        raise ValueError(f"data must be at most {_LARGEST_DATA} bytes of JSON, not {len(text)}: keep it elsewhere")


def _at_most(value: float, most: float, name: str, shown: str) -> float:
    if value > most:
        raise ValueError(f"{name} must be at most {shown}, not {value:g} seconds")
    return value


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _instant(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)
