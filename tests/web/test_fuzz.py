"""Any request at all: answered by the application, or refused for a reason; never an error of idempo's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo import Idempotency
from idempo.http.asgi import IdempotencyMiddleware as AsgiMiddleware
from idempo.http.wsgi import IdempotencyMiddleware as WsgiMiddleware
from tests.web.support import Answer, ask_asgi, ask_wsgi

_LATIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40)
_KEYS = st.one_of(st.none(), _LATIN, st.sampled_from(['"k"', "k", '"', '"a";b', '"\\"']), st.text("k", max_size=300))
_REQUESTS = st.fixed_dictionaries(
    {
        "key": _KEYS,
        "body": st.binary(max_size=60),
        "method": st.sampled_from(["POST", "PATCH", "GET", "PURGE"]),
        "path": st.text(st.characters(max_codepoint=0x2FF), max_size=20).map(lambda text: f"/{text}"),
        "host": _LATIN,
        "query": _LATIN,
        "headers": st.lists(
            st.tuples(st.sampled_from(["content-type", "x-user", "accept", "idempotency-key"]), _LATIN), max_size=3
        ),
    }
)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"served"]


def checked(answer: Answer, request: dict[str, Any]) -> bool:
    """Whether it was served, after a look at what it was answered otherwise."""
    if answer.status == 200:
        assert answer.body == b"served"
        return True
    assert (answer.status, answer.problem) in {(400, "key-invalid"), (422, "key-reused"), (413, "body-too-large")}
    assert request["method"] in ("POST", "PATCH")
    return False


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@given(requests=st.lists(_REQUESTS, min_size=1, max_size=4))
def test_any_request_is_served_or_refused(kind: str, requests: list[dict[str, Any]]) -> None:
    """Behaviours 56, 63: and whoever sends the same again gets the same."""
    options: Any = {"principal": lambda request: request.headers.get("x-user") or "nobody", "max_body": 50}

    async def all_asgi() -> list[Answer]:
        app = AsgiMiddleware(asgi, Idempotency(), **options)
        return [await ask_asgi(app, **request) for request in requests for _ in "12"]

    if kind == "asgi":
        answers = asyncio.run(all_asgi())
    else:
        app = WsgiMiddleware(wsgi, Idempotency(), **options)
        answers = [ask_wsgi(app, **request) for request in requests for _ in "12"]
    for at, request in enumerate(requests):
        first, second = answers[2 * at], answers[2 * at + 1]
        assert checked(first, request) is checked(second, request)
        guarded = request["method"] in ("POST", "PATCH") and second.status == 200
        named = request["key"] is not None or any(name == "idempotency-key" for name, _ in request["headers"])
        assert second.replayed is (guarded and named)
