"""Idempotency of HTTP requests, by their ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header-07).

The middlewares are in `idempo.http.asgi` and `idempo.http.wsgi`, and what a client needs in `idempo.http.client`.
"""

from __future__ import annotations

from idempo.http.core import NEVER_STORED, REPLAY_HEADERS, HttpIdempotency, HttpOptions, NotKeptError, Principal
from idempo.http.header import HEADER, parse_key
from idempo.http.requests import Headers, PlainHeaders, Request, Response
from idempo.http.routes import Route

__all__ = [
    "HEADER",
    "NEVER_STORED",
    "REPLAY_HEADERS",
    "Headers",
    "HttpIdempotency",
    "HttpOptions",
    "NotKeptError",
    "PlainHeaders",
    "Principal",
    "Request",
    "Response",
    "Route",
    "parse_key",
]
