"""Every error that idempo raises on purpose.

All of them are `IdempotencyError`, so one ``except`` clause catches whatever the library itself has to say. Each one
carries the key that it speaks of, names it in its text, and survives pickling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idempo._showing import shown

if TYPE_CHECKING:
    from idempo.records import Key


class IdempotencyError(Exception):
    """The root of idempo's errors.

    Attributes:
        key: The key concerned, or None where no valid key could be made yet.
    """

    key: Key | None

    def __init__(self, message: str = "", *, key: Key | None = None) -> None:
        super().__init__(message)
        self.key = key

    def __str__(self) -> str:
        text = super().__str__()
        if self.key is None:
            return text
        return f"key {shown(self.key)}: {text}" if text else f"key {shown(self.key)}"


class InvalidKeyError(IdempotencyError, ValueError):
    """A key is missing, empty, too long or of a type that names nothing reliably. Nothing ran."""


class FingerprintError(IdempotencyError, TypeError):
    """A payload has no canonical form. Nothing ran.

    Attributes:
        path: Where in the payload the offending value stands, such as ``items[3].session``.
    """

    path: str

    def __init__(self, message: str = "", *, key: Key | None = None, path: str = "") -> None:
        super().__init__(message, key=key)
        self.path = path


class FingerprintMismatchError(IdempotencyError):
    """The key was used before with another payload: a client's mistake. Nothing ran."""


class InProgressError(IdempotencyError):
    """Another caller holds the key and did not end within ``wait``. Nothing ran here; the holder is undisturbed.

    Attributes:
        retry_after: A hint, in seconds, for when to try again.
    """

    retry_after: float

    def __init__(self, message: str = "", *, key: Key | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, key=key)
        self.retry_after = retry_after


class InDoubtError(IdempotencyError):
    """An earlier attempt ended in a way that nobody knows: its effect may have happened. Nothing ran here.

    Look at the effect, then end the doubt with ``guard.resolve(error.key, value)`` (it happened) or
    ``guard.forget(error.key)`` (it did not).
    """


class _CarriesResultError(IdempotencyError):
    """An error that brings the value that the function returned.

    Attributes:
        result: What the function returned. The effect has happened.
    """

    result: Any

    def __init__(self, message: str = "", *, key: Key | None = None, result: Any = None) -> None:
        super().__init__(message, key=key)
        self.result = result


class LeaseLostError(_CarriesResultError):
    """The claim was not held to the end: another caller may have run, or may run, the operation too.

    Attributes:
        result: What the function returned, or None where it was still running.
    """


class ReentrantCallError(IdempotencyError):
    """The call would wait for itself: the same key from inside its own call, or on the thread that its holder needs."""


class ResultLostError(IdempotencyError):
    """The operation ran and its effect stands, but its outcome could not be kept. It is not run again."""


class ResultNotStoredError(_CarriesResultError):
    """The function ran, but the store would not take its outcome.

    Attributes:
        result: What the function returned. The effect has happened.
    """


class StoreError(IdempotencyError):
    """The store could not be reached or did not answer. Stores raise it; unless said otherwise, nothing ran."""


class StoreFullError(StoreError):
    """The store has no room for another claim. Nothing ran."""


class RecordError(IdempotencyError):
    """A stored record cannot be read: damaged, of a newer version, or not written by idempo. It is left as it is."""


class CodecError(IdempotencyError):
    """A value cannot be encoded, or stored bytes cannot be decoded."""


class TokenError(IdempotencyError):
    """A token is not redeemed: the root of what ``idempo.tokens`` refuses. No text of it shows the token."""


class InvalidTokenError(TokenError):
    """The token is none of ours: forged, altered, cut short, missing, or of a secret that is in use no more."""


class ExpiredTokenError(TokenError):
    """The token is genuine, and its time is over."""


class UsedTokenError(TokenError):
    """The token is genuine, and was redeemed before."""


class WrongPurposeError(TokenError):
    """The token is genuine, and for another purpose or subject. It stays unused."""
