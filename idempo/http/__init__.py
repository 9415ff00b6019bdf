"""Idempotency of HTTP requests, by their ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header-07)."""
