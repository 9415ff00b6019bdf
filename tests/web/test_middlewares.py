"""Both middlewares, on two stores: what holds of every guarded request (behaviours 56-61 and 63)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idempo import Idempotency, Key, MemoryStore, StoreError
from idempo.http import NEVER_STORED, Request, Response
from idempo.stores.sqlite import SqliteStore
from idempo.testing import FlakyStore
from tests.web.support import Answer, Web

KEY = "POST(shop.example,/orders,k-1)"


@pytest.fixture(params=["asgi", "wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        with SqliteStore(tmp_path / "records.db") as sqlite:
            yield sqlite


@pytest.fixture
def web(kind: str, store: Any) -> Web:
    return Web(kind, Idempotency(store, namespace="shop"))


def test_a_repeated_request_gets_the_first_response(web: Web) -> None:
    """Behaviour 57: status, body and allowed headers, and it says that it is a replay."""
    first, second = web.ask(), web.ask()
    assert (first.status, first.body, first.replayed) == (201, b"made tea", False)
    assert (second.status, second.body, second.replayed) == (201, b"made tea", True)
    assert second.all("location") == first.all("location") == ["/orders/1"]
    assert second.all("content-type") == ["text/plain"]
    assert second.all("content-length") == ["8"]
    assert web.asked == ["/orders"]


def test_a_bare_key_and_a_quoted_one_are_one(web: Web) -> None:
    assert not web.ask("k-1").replayed
    assert web.ask('"k-1"').replayed


@pytest.mark.parametrize(
    "other",
    [{"host": "other.example"}, {"method": "PATCH"}, {"path": "/refunds"}, {"key": '"k-2"'}],
    ids=["host", "method", "path", "key"],
)
def test_a_key_counts_for_one_host_method_and_path(web: Web, other: dict[str, Any]) -> None:
    """Behaviour 60."""
    web.ask()
    assert not web.ask(**other).replayed
    assert len(web.asked) == 2


def test_hosts_are_names(web: Web) -> None:
    """RFC 9110 section 4.2.3: in any case."""
    web.ask(host="Shop.Example")
    assert web.ask(host="shop.example").replayed


@pytest.mark.parametrize("other", [{"body": b"milk"}, {"query": "size=2"}], ids=["body", "query"])
def test_another_payload_is_refused(web: Web, other: dict[str, Any]) -> None:
    """Behaviour 56: 422."""
    web.ask()
    refused = web.ask(**other)
    assert (refused.status, refused.problem) == (422, "key-reused")
    assert len(web.asked) == 1


def test_two_principals_with_one_key_never_meet(kind: str, store: Any) -> None:
    """Behaviour 60: one user's key never shows another's answer."""
    web = Web(kind, Idempotency(store), principal=lambda request: request.headers.get("x-user"))
    web.handler = lambda method, path, body: Response(200, (), f"answer {len(web.asked)}".encode())
    ann, bob = {"headers": [("x-user", "ann")]}, {"headers": [("x-user", "bob")]}
    assert (web.ask(**ann).body, web.ask(**bob).body) == (b"answer 1", b"answer 2")
    assert (web.ask(**ann).body, web.ask(**bob).body) == (b"answer 1", b"answer 2")
    nobody = web.ask()
    assert (nobody.status, nobody.problem) == (400, "principal-unknown")
    assert web.ask(key=None).body == b"answer 3"  # without a key it is the handler's matter


def test_parts_of_a_key_cannot_pass_for_each_other(kind: str, store: Any) -> None:
    web = Web(kind, Idempotency(store), principal=lambda request: request.headers.get("x-user"))
    web.ask('"k,ann"', headers=[("x-user", "b")])
    assert not web.ask('"k"', headers=[("x-user", "ann,b")]).replayed


def test_what_is_too_long_for_a_key_is_hashed(kind: str, store: Any) -> None:
    """Behaviour 60."""
    web = Web(kind, Idempotency(store), principal=lambda request: "p" * 300)
    long = {"path": "/" + "x" * 2000, "key": '"' + "k" * 255 + '"'}
    assert not web.ask(**long).replayed
    assert web.ask(**long).replayed
    assert not web.ask(path="/" + "x" * 2001, key=long["key"]).replayed


@pytest.mark.parametrize("length", [230, 231, 232, 233, 234, 235, 236])
def test_no_length_is_too_long(web: Web, length: int) -> None:
    """Behaviour 60: about the limit of a key, on both sides of it."""
    path = "/" + "x" * length
    assert [web.ask(path=path).replayed for _ in "12"] == [False, True]


def test_a_path_that_is_no_unicode_is_a_path(web: Web) -> None:
    assert not web.ask(path="/\udcff").replayed
    assert web.ask(path="/\udcff").replayed
    assert not web.ask(path="/\udcfe").replayed


@pytest.mark.parametrize("principal", [True, 1.5, "", object()])
def test_a_principal_that_names_nobody_is_the_programs_mistake(kind: str, principal: Any) -> None:
    web = Web(kind, Idempotency(), principal=lambda request: principal)
    with pytest.raises(TypeError, match="principal must give"):
        web.ask()
    assert web.asked == []


@pytest.mark.parametrize("key", ['"', "a b", "k" * 300, '""'])
def test_a_malformed_key_is_refused(web: Web, key: str) -> None:
    """Behaviour 56: 400, and nothing ran."""
    refused = web.ask(key)
    assert (refused.status, refused.problem) == (400, "key-invalid")
    assert web.asked == []


def test_a_repeated_header_is_refused(web: Web) -> None:
    """Behaviour 56."""
    refused = web.ask('"a"', headers=[("idempotency-key", '"b"')])
    assert (refused.status, refused.problem) == (400, "key-invalid")
    assert web.asked == []


def test_a_missing_key_passes_unless_it_is_required(kind: str, store: Any) -> None:
    """Behaviour 56: 400 where it is required."""
    web = Web(kind, Idempotency(store))
    assert [web.ask(None).status for _ in "12"] == [201, 201]
    assert len(web.asked) == 2
    strict = Web(kind, Idempotency(store), required=True)
    refused = strict.ask(None)
    assert (refused.status, refused.problem, strict.asked) == (400, "key-missing", [])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_other_methods_pass_untouched(kind: str, method: str) -> None:
    """Behaviour 63: at no cost to the store."""
    store = FlakyStore(MemoryStore())
    web = Web(kind, Idempotency(store), required=True)
    assert [web.ask(method=method).replayed for _ in "12"] == [False, False]
    assert store.calls == []


def test_paths_that_are_not_guarded_pass_untouched(kind: str) -> None:
    """Behaviour 63: whatever they send."""
    store = FlakyStore(MemoryStore())
    web = Web(kind, Idempotency(store), required=True, applies=lambda request: request.path.startswith("/pay"))
    assert [web.ask('"').status, web.ask(None).status, web.ask().status, web.ask().status] == [201] * 4
    assert store.calls == []
    assert (web.ask(path="/pay").replayed, web.ask(path="/pay").replayed) == (False, True)


@pytest.mark.parametrize("status", [200, 202, 204, 301, 304, 400, 404, 410, 422, 500, 502, 504])
def test_what_the_handler_answered_is_kept(web: Web, status: int) -> None:
    """Behaviour 58: errors too, for they prove nothing."""
    web.handler = lambda method, path, body: Response(status, (), b"" if status in (204, 304) else b"said")
    first, second = web.ask(), web.ask()
    assert (second.status, second.body, second.replayed) == (first.status, first.body, True)
    assert second.all("content-length") == ([] if status in (204, 304) else ["4"])
    assert len(web.asked) == 1


@pytest.mark.parametrize("in_doubt", ["rerun", "raise"])
@pytest.mark.parametrize("status", sorted(NEVER_STORED))
def test_what_says_that_nothing_was_done_is_not_kept(kind: str, status: int, in_doubt: Any) -> None:
    """Behaviour 58: and the key is free again, under at-most-once too."""
    web = Web(kind, Idempotency(in_doubt=in_doubt))
    web.handler = lambda method, path, body: Response(status, (("retry-after", "7"),), b"not now")
    first = web.ask()
    assert (first.status, first.body, first.all("retry-after")) == (status, b"not now", ["7"])
    web.handler = lambda method, path, body: Response(200, (), b"now")
    assert web.ask(body=b"milk").body == b"now"  # with another payload, even
    assert web.ask(body=b"milk").replayed


def test_an_option_says_which_statuses_are_kept(kind: str) -> None:
    """Behaviour 58."""
    web = Web(kind, Idempotency(), store_status=lambda status: status < 500)
    web.handler = lambda method, path, body: Response(500, (), b"oh")
    assert [web.ask().replayed for _ in "12"] == [False, False]
    web.handler = lambda method, path, body: Response(409, (), b"so it is")
    assert [web.ask().replayed for _ in "12"] == [False, True]


def test_cookies_and_credentials_are_never_replayed(web: Web) -> None:
    """Behaviour 59: the first client gets them, and nobody else."""
    headers = (
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("www-authenticate", "Basic"),
        ("x-request-id", "77"),
        ("link", "<a>"),
        ("link", "<b>"),
    )
    web.handler = lambda method, path, body: Response(200, headers, b"")
    assert web.ask().headers == headers
    second = web.ask()
    assert second.replayed
    assert second.all("link") == ["<a>", "<b>"]  # several values of one header are kept
    for name in ("set-cookie", "www-authenticate", "x-request-id"):
        assert second.all(name) == []


def test_replayed_headers_are_an_option(kind: str) -> None:
    web = Web(kind, Idempotency(), replay_headers=["X-Order"])
    web.handler = lambda method, path, body: Response(200, (("x-order", "42"), ("etag", "e")), b"")
    assert [(one.all("x-order"), one.all("etag")) for one in (web.ask(), web.ask())] == [(["42"], ["e"]), (["42"], [])]


def test_a_body_over_the_limit_is_refused_before_the_run(kind: str) -> None:
    """Behaviour 61: 413, whether it is told or found."""
    web = Web(kind, Idempotency(), max_body=10)
    assert web.ask(body=b"x" * 10).status == 201
    for more in ({}, {"headers": [("content-length", "11")]}):
        refused = web.ask('"k-2"', body=b"x" * 11, **more)
        assert (refused.status, refused.problem) == (413, "body-too-large")
    huge = web.ask('"k-2"', body=b"", headers=[("content-length", "9" * 5000)])
    assert huge.status == 413
    assert len(web.asked) == 1
    assert web.ask('"k-2"', body=b"x").status == 201


def test_a_response_over_the_limit_is_passed_and_lost(kind: str, store: Any) -> None:
    """Behaviour 61: never truncated, never run again."""
    web = Web(kind, Idempotency(store), max_response=10)
    web.handler = lambda method, path, body: Response(200, (), b"x" * 11)
    assert web.ask().body == b"x" * 11
    second = web.ask()
    assert (second.status, second.problem) == (409, "response-lost")
    assert len(web.asked) == 1
    web.handler = lambda method, path, body: Response(200, (), b"x" * 10)
    assert [web.ask('"k-2"').replayed for _ in "12"] == [False, True]


def test_headers_that_are_too_large_are_lost_too(kind: str, store: Any) -> None:
    web = Web(kind, Idempotency(store), max_response=10)
    web.handler = lambda method, path, body: Response(200, (("link", "x" * 70_000),), b"")
    assert web.ask().status == 200
    assert web.ask().problem == "response-lost"


def test_a_payload_of_ones_own_is_what_counts(kind: str) -> None:
    """Behaviour 60: where bytes change on retry; and what is no such payload counts by its bytes."""

    def parsed(request: Request) -> Any:
        return json.loads(request.body)

    web = Web(kind, Idempotency(), payload=parsed)
    assert [web.ask(body=body).replayed for body in (b'{"a": 1, "b": 2}', b'{"b":2,"a":1}')] == [False, True]
    assert web.ask(body=b'{"a": 1}').status == 422
    for number, bad in enumerate((b"{", b"\xff", b"[" * 100_000, b"[" * 500 + b"]" * 500)):
        key = f'"bad-{number}"'
        assert [web.ask(key, body=bad).replayed for _ in "12"] == [False, True]
        assert web.ask(key, body=bad + b" ").status == 422
    unchecked = Web(kind, Idempotency(), payload=lambda request: None)
    assert [unchecked.ask(body=body).replayed for body in (b"a", b"b")] == [False, True]


def test_a_store_that_is_down_is_503_and_nothing_runs(kind: str) -> None:
    """Fail-closed, by problem; under store_errors="run" it is passed on."""
    store = FlakyStore(MemoryStore(), [("claim", None, "before"), ("release", None, "before")])
    web = Web(kind, Idempotency(store))
    refused = web.ask()
    assert (refused.status, refused.problem, refused.all("retry-after")) == (503, "store-unavailable", ["1"])
    assert web.asked == []


def test_when_the_record_cannot_be_stored_the_client_gets_the_answer(kind: str) -> None:
    """Behaviour 62: and duplicates in this process too."""
    store = FlakyStore(MemoryStore(), [("complete", None, "before")])
    web = Web(kind, Idempotency(store, lease=0.3))
    first = web.ask()
    assert (first.status, first.body) == (201, b"made tea")
    assert web.asked == ["/orders"]
    assert web.middleware.idempotency.guard.forget(KEY, force=True)  # nobody goes on offering the outcome


def test_an_exception_of_the_handler_follows_the_policy(kind: str) -> None:
    """Behaviour 58: the key is free again, or in doubt; declared ones are an outcome."""

    def fail(method: str, path: str, body: bytes) -> Response:
        raise LookupError("no tea")

    web = Web(kind, Idempotency())
    web.handler, works = fail, web.handler
    with pytest.raises(LookupError):
        web.ask()
    web.handler = works
    assert web.ask().status == 201

    careful = Web(kind, Idempotency(in_doubt="raise"))
    careful.handler = fail
    with pytest.raises(LookupError):
        careful.ask()
    doubtful = careful.ask()
    assert (doubtful.status, doubtful.problem) == (409, "in-doubt")

    declared = Web(kind, Idempotency(replay_errors=LookupError))
    declared.handler = fail
    for _ in "12":
        with pytest.raises(LookupError, match="no tea"):
            declared.ask()
    assert len(declared.asked) == 1


def test_an_operator_answers_for_a_request(web: Web) -> None:
    """By the middleware's guard, or by the one that it was made of."""
    web.ask()
    guard = web.middleware.idempotency.guard
    assert guard.lookup(KEY) is not None
    assert guard.forget(KEY) is True
    assert not web.ask().replayed
    guard.forget(KEY)
    assert guard.resolve(KEY, Response(200, (("content-type", "text/plain"),), b"by hand")) is True
    found = web.ask()
    assert (found.status, found.body, found.replayed) == (200, b"by hand", True)


def test_a_record_that_cannot_be_read_is_503(kind: str) -> None:
    store = MemoryStore()
    guard = Idempotency(store)
    web = Web(kind, guard)
    web.ask()
    key = Key("default/http", KEY)
    assert store.delete(key)
    store.claim(key, owner="o", fingerprint=None, lease=5, ttl=60)
    store.complete(key, owner="o", outcome=b"garbage", ttl=60)
    assert web.ask().problem == "store-unavailable"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"principal": "ann"}, TypeError, "principal must be a callable or None"),
        ({"applies": 1}, TypeError, "applies must be a callable"),
        ({"payload": 1}, TypeError, "payload must be a callable"),
        ({"store_status": 1}, TypeError, "store_status must be a callable"),
        ({"methods": "POST"}, TypeError, r'methods must be several, as in \("POST",\)'),
        ({"methods": ["post"]}, ValueError, "upper case"),
        ({"methods": ["GET"]}, ValueError, "GET has no effect"),
        ({"replay_headers": "etag"}, TypeError, "replay_headers must be several"),
        ({"replay_headers": ["Set-Cookie"]}, ValueError, "set-cookie is never replayed: it is a secret"),
        ({"replay_headers": ["Date"]}, ValueError, "date is never replayed: it belongs to one connection"),
        ({"max_body": 0}, ValueError, "max_body"),
        ({"max_response": "1"}, TypeError, "max_response"),
        ({"wait": -1}, ValueError, "wait"),
        ({"surprise": 1}, TypeError, "surprise"),
    ],
)
def test_options_are_checked(kind: str, options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Web(kind, Idempotency(), **options)


def test_a_guard_is_a_guard_and_principal_is_said_aloud(kind: str) -> None:
    with pytest.raises(TypeError, match="guard must be an Idempotency"):
        Web(kind, MemoryStore())
    with pytest.raises(TypeError, match="principal"):
        type(Web(kind, Idempotency()).middleware)(None, Idempotency())


def answers(web: Web, count: int) -> list[Answer]:
    return [web.ask() for _ in range(count)]


def test_events_tell_of_requests(kind: str) -> None:
    seen: list[str] = []
    web = Web(kind, Idempotency(observers=[lambda event: seen.append(event.kind.value)]))
    answers(web, 3)
    assert seen == ["executed", "replayed", "replayed"]


def test_a_store_error_has_the_answer_of_idempos_own(kind: str) -> None:
    """An error of the handler that has the same class is the handler's."""

    def fail(method: str, path: str, body: bytes) -> Response:
        raise StoreError("the handler's own")

    web = Web(kind, Idempotency())
    web.handler = fail
    with pytest.raises(StoreError, match="own"):
        web.ask()
