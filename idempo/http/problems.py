"""Answers of idempo's own: problem details (RFC 9457), whose ``type`` is a place in the docs."""

from __future__ import annotations

import json
import math
from typing import Final

from idempo.errors import (
    FingerprintMismatchError,
    IdempotencyError,
    InDoubtError,
    InProgressError,
    LeaseLostError,
    RecordError,
    ReentrantCallError,
    ResultLostError,
    ResultNotStoredError,
    StoreError,
)
from idempo.http.requests import Pairs, Response

DOCS: Final = "https://idempo.readthedocs.io/en/stable/http-problems.html"

_SOON: Final = 2  # seconds: whoever is in progress is asked for again soon, however long its lease may be


class Problems:
    """Makes the answers.

    Args:
        docs: The address of the page that tells of them; the problem's name follows, behind a ``#``.
    """

    __slots__ = ("_docs",)

    def __init__(self, docs: str = DOCS) -> None:
        self._docs = docs

    def missing(self) -> Response:
        """The key is missing where one is required."""
        return self._make(
            400, "key-missing", "Idempotency-Key is missing", "This operation requires the header Idempotency-Key."
        )

    def invalid(self, why: str) -> Response:
        """The header is malformed, too long, or was sent more than once."""
        return self._make(400, "key-invalid", "Idempotency-Key is not valid", f"Idempotency-Key: {why}.")

    def unknown_principal(self) -> Response:
        """Nobody knows whose key it is."""
        detail = "A key is honoured only for a caller who is known: authenticate, or send no Idempotency-Key."
        return self._make(400, "principal-unknown", "The caller is not known", detail)

    def cut_short(self) -> Response:
        """The body ended before Content-Length said so."""
        return self._make(
            400,
            "body-cut-short",
            "The body is cut short",
            "The body is shorter than Content-Length. This request was not carried out.",
        )

    def too_large(self, limit: int) -> Response:
        """The body is over the limit."""
        detail = f"With an Idempotency-Key the body may have at most {limit} bytes. This request was not carried out."
        return self._make(413, "body-too-large", "The body is too large", detail)

    def of(self, error: IdempotencyError) -> Response:
        """The answer for an error of idempo's that came before the handler ran, or instead of a replay.

        Raises:
            IdempotencyError: The error itself, where it is none of these.
        """
        for kind, (status, name, title, detail) in _OF_ERRORS.items():
            if isinstance(error, kind):
                more: Pairs = ()
                if isinstance(error, InProgressError):
                    more = (("retry-after", str(min(max(math.ceil(error.retry_after or 1), 1), _SOON))),)
                elif status == 503:
                    more = (("retry-after", "1"),)
                return self._make(status, name, title, detail, more)
        raise error

    def _make(self, status: int, name: str, title: str, detail: str, more: Pairs = ()) -> Response:
        problem = {"type": f"{self._docs}#{name}", "title": title, "status": status, "detail": detail}
        body = json.dumps(problem).encode()
        headers = (("content-type", "application/problem+json"), ("content-length", str(len(body))), *more)
        return Response(status, headers, body)


_IN_PROGRESS: Final = (
    409,
    "in-progress",
    "A request with this key is in progress",
    "The first request with this Idempotency-Key has not ended yet. Send this one again in a moment.",
)

_LOST: Final = (
    409,
    "response-lost",
    "The first request was carried out, and its response is not kept",
    "The first request with this Idempotency-Key was carried out. Its response could not be kept.",
)

_OF_ERRORS: Final[dict[type[IdempotencyError], tuple[int, str, str, str]]] = {
    FingerprintMismatchError: (
        422,
        "key-reused",
        "The key was used for another request",
        "This Idempotency-Key belongs to a request with another payload. Send a new request with a new key.",
    ),
    InProgressError: _IN_PROGRESS,
    ReentrantCallError: _IN_PROGRESS,
    InDoubtError: (
        409,
        "in-doubt",
        "Nobody knows how the first request ended",
        "The first request with this Idempotency-Key was interrupted. It may have had its effect, and is not repeated.",
    ),
    ResultLostError: _LOST,
    ResultNotStoredError: _LOST,
    LeaseLostError: _LOST,
    RecordError: (
        503,
        "store-unavailable",
        "The key cannot be looked up",
        "What is kept of this Idempotency-Key cannot be read. This request was not carried out.",
    ),
    StoreError: (
        503,
        "store-unavailable",
        "The key cannot be looked up",
        "Idempotency-Keys cannot be looked up at the moment. This request was not carried out. Send it again later.",
    ),
}
