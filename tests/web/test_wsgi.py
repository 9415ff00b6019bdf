"""The WSGI middleware: requests at once, streams, clients that go away, and what PEP 3333 asks of both sides."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from idempo import Idempotency, MemoryStore, State, current_operation
from idempo.http.wsgi import IdempotencyMiddleware
from idempo.hub import hub_of
from tests.interrupting import until
from tests.web.support import ask_wsgi, wsgi_environ

KEY = "POST(shop.example,/orders,k-1)"
PATIENCE = 30.0


def guarded(app: Any, *, guard: Idempotency | None = None, **options: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(app, guard or Idempotency(), principal=None, **options)


def state(app: IdempotencyMiddleware) -> State | None:
    record = app.idempotency.guard.lookup(KEY)
    return None if record is None else record.state


class Parts:
    """An iterable of a response's parts, which notes its closing."""

    def __init__(self, parts: Iterable[bytes], log: list[str]) -> None:
        self._parts = iter(parts)
        self.log = log

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self._parts)
        self.log.append(part.decode())
        return part

    def close(self) -> None:
        self.log.append("closed")


def streaming(parts: Callable[[], Iterable[bytes]], headers: Any = (), log: list[str] | None = None) -> Any:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(headers))
        return Parts(parts(), [] if log is None else log)

    return app


def begin(app: Any, **more: Any) -> Any:
    """Begin a request, as a server does, and return the iterable of its body."""
    return app(wsgi_environ(**more), lambda *_: lambda _: None)


def test_requests_at_once_run_once() -> None:
    """Behaviour 56: the others are told so, at once."""
    begun, go_on = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        begun.set()
        assert go_on.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"done"]

    middleware = guarded(app)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(ask_wsgi(middleware)))
    first.start()
    assert begun.wait(PATIENCE)
    duplicate = ask_wsgi(middleware)
    assert (duplicate.status, duplicate.problem) == (409, "in-progress")
    assert duplicate.all("retry-after")[0] in ("1", "2")
    go_on.set()
    first.join(PATIENCE)
    assert [one.body for one in answers] == [b"done"]
    assert ask_wsgi(middleware).replayed


@pytest.mark.parametrize("status", ["201 Created", "503 Service Unavailable"])
def test_duplicates_may_wait_for_the_one_in_progress(status: str) -> None:
    """All have its response, kept or not."""
    begun, go_on, runs = threading.Event(), threading.Event(), []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        runs.append(1)
        begun.set()
        assert go_on.wait(PATIENCE)
        start_response(status, [])
        return [b"done"]

    middleware = guarded(app, wait=PATIENCE)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask_wsgi(middleware))) for _ in range(5)]
    threads[0].start()
    assert begun.wait(PATIENCE)
    for thread in threads[1:]:
        thread.start()
    until(lambda: waiting(middleware) == 4)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [(one.status, one.body) for one in answers] == [(int(status[:3]), b"done")] * 5
    assert len(runs) == 1


def waiting(middleware: IdempotencyMiddleware) -> int:
    """How many threads wait for the request in progress."""
    guard = middleware.idempotency.guard
    flight = hub_of(guard.store).flights._table[guard.namespace, KEY]
    return 0 if flight.room is None else sum(len(group.members) for group in flight.room.groups.values())


def test_the_outcome_is_stored_before_the_last_byte() -> None:
    """Behaviour 62: where Content-Length tells the end; else before the end of the stream is told."""
    measured = guarded(streaming(lambda: [b"a", b"b"], [("Content-Length", "2")]))
    parts = begin(measured)
    assert (next(parts), state(measured)) == (b"a", State.RUNNING)
    assert (next(parts), state(measured)) == (b"b", State.COMPLETED)
    assert next(parts, None) is None
    parts.close()

    chunked = guarded(streaming(lambda: [b"a", b"b"]))
    parts = begin(chunked)
    assert [next(parts), next(parts)] == [b"a", b"b"]
    assert state(chunked) is State.RUNNING
    assert next(parts, None) is None
    assert state(chunked) is State.COMPLETED
    parts.close()
    assert ask_wsgi(chunked).body == b"ab"


def test_a_client_that_goes_away_ends_nothing() -> None:
    """Behaviour 62: the rest of the response is asked of the application, kept, and closed once."""
    log: list[str] = []
    app = guarded(streaming(lambda: [b"a", b"b", b"c"], log=log))
    parts = begin(app)
    assert next(parts) == b"a"
    parts.close()
    assert log == ["a", "b", "c", "closed"]
    assert ask_wsgi(app).body == b"abc"
    parts.close()
    assert log == ["a", "b", "c", "closed"]


def test_an_endless_response_is_not_asked_for_its_end() -> None:
    """Once it is more than is kept, it is lost, whatever comes."""

    def forever() -> Iterator[bytes]:
        while True:
            yield b"more"

    app = guarded(streaming(forever), max_response=10)
    parts = begin(app)
    assert [next(parts) for _ in range(10)] == [b"more"] * 10
    parts.close()
    assert ask_wsgi(app).problem == "response-lost"


def test_a_server_that_forgets_the_response_ends_the_operation() -> None:
    """One that neither reads nor closes it."""
    app = guarded(streaming(lambda: [b"a"]))
    parts = begin(app)
    assert state(app) is State.RUNNING
    del parts
    gc.collect()
    assert state(app) is State.RELEASED
    with pytest.raises(LookupError):
        current_operation()


def test_write_is_served() -> None:
    """PEP 3333's way of old: what is written goes out, and is kept."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "4")])
        write(b"ab")
        write(b"cd")
        return []

    middleware = guarded(app)
    assert [ask_wsgi(middleware).body for _ in "12"] == [b"abcd"] * 2


def test_a_response_that_is_begun_anew_is_the_later_one() -> None:
    """With exc_info, as an error page takes the place of a page."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        try:
            raise LookupError
        except LookupError as error:
            start_response("500 Oh", [], (type(error), error, error.__traceback__))
        return [b"sorry"]

    middleware = guarded(app)
    assert [ask_wsgi(middleware).status for _ in "12"] == [500, 500]


@pytest.mark.parametrize("when", ["called", "iterated", "drained"])
def test_an_exception_ends_the_operation_by_policy(when: str) -> None:
    """Whenever it comes; the iterable is closed, and the server told."""
    log: list[str] = []

    def broken() -> Iterator[bytes]:
        yield b"a"
        raise LookupError

    def app(environ: Any, start_response: Any) -> Any:
        if when == "called":
            raise LookupError
        start_response("200 OK", [])
        return Parts(broken(), log)

    middleware = guarded(app)
    with pytest.raises(LookupError):
        if when == "drained":
            parts = begin(middleware)
            next(parts)
            parts.close()
        else:
            ask_wsgi(middleware)
    assert state(middleware) is State.RELEASED
    assert log[-1:] == ([] if when == "called" else ["closed"])


def test_an_application_that_never_begins_its_response_ends_by_policy() -> None:
    middleware = guarded(lambda environ, start_response: [])
    parts = begin(middleware)
    assert list(parts) == []
    assert state(middleware) is State.RELEASED


def test_a_body_that_is_cut_short_is_refused() -> None:
    """The client went away while it was sending: nothing runs on half an order."""
    ran: list[Any] = []
    middleware = guarded(lambda environ, start_response: ran.append(1))
    refused = ask_wsgi(middleware, headers=[("content-length", "50")])
    assert (refused.status, refused.problem, ran) == (400, "body-cut-short", [])


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({"CONTENT_LENGTH": "", "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}, b"tea"),
        ({"CONTENT_LENGTH": ""}, b""),
        ({"CONTENT_LENGTH": "0"}, b""),
        ({}, b"tea"),
    ],
)
def test_the_application_reads_the_body_anew(changes: dict[str, Any], body: bytes) -> None:
    """Whole, with its length, whether it came in chunks or not."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append((environ["wsgi.input"].read(), environ["CONTENT_LENGTH"], environ.get("HTTP_TRANSFER_ENCODING")))
        start_response("200 OK", [])
        return []

    given = {**wsgi_environ(), **changes}
    list(guarded(app)(given, lambda *_: lambda _: None))
    assert seen == [(body, str(len(body)), None)]


def test_a_chunked_body_over_the_limit_is_refused() -> None:
    """Behaviour 61: read no further than it takes to see it."""
    source = io.BytesIO(b"x" * 1_000_000)
    environ = {**wsgi_environ(), "CONTENT_LENGTH": "", "wsgi.input_terminated": True, "wsgi.input": source}
    started: list[str] = []
    middleware = guarded(lambda environ, start_response: [], max_body=100)
    middleware(environ, lambda status, headers: started.append(status))
    assert [status[:3] for status in started] == ["413"]  # its phrase is Python's
    assert source.tell() <= 200


def test_a_path_is_what_the_client_sent() -> None:
    """PEP 3333 gives its bytes as Latin-1; the prefix of the application belongs to it."""
    seen: list[str] = []

    def applies(request: Any) -> bool:
        seen.append(request.path)
        return False

    environ = {**wsgi_environ(path="/caf\N{LATIN SMALL LETTER E WITH ACUTE}"), "SCRIPT_NAME": "/shop"}
    middleware = guarded(streaming(list), applies=applies)
    list(middleware(environ, lambda *_: lambda _: None))
    assert seen == ["/shop/caf\N{LATIN SMALL LETTER E WITH ACUTE}"]


def test_a_status_that_nobody_registered_is_replayed() -> None:
    middleware = guarded(lambda environ, start_response: (start_response("299 Odd", []), [b"x"])[1])
    assert [ask_wsgi(middleware).status for _ in "12"] == [299, 299]


def test_the_application_may_ask_for_its_operation() -> None:
    """From its call to its last part; and none is left on the server's thread."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        seen.append(current_operation().key.value)
        start_response("200 OK", [])
        yield b"x"
        seen.append(current_operation().attempt)

    ask_wsgi(guarded(app))
    assert seen == [KEY, 1]
    with pytest.raises(LookupError):
        current_operation()


def test_a_store_with_a_bug_takes_nothing_from_the_client() -> None:
    """Behaviour 62; a lost lease neither."""

    class Broken(MemoryStore):
        def complete(self, *args: Any, **options: Any) -> bool:
            raise LookupError("a bug")

    app = streaming(lambda: [b"done"])
    broken = guarded(app, guard=Idempotency(Broken(), lease=0.2))
    assert ask_wsgi(broken).body == b"done"
    assert broken.idempotency.guard.forget(KEY, force=True)  # nobody goes on offering the outcome
    with pytest.raises(LookupError):
        current_operation()

    def forgotten(environ: Any, start_response: Any) -> Any:
        assert middleware.idempotency.guard.forget(KEY, force=True)
        return app(environ, start_response)

    middleware = guarded(forgotten)
    assert ask_wsgi(middleware).body == b"done"
    assert state(middleware) is None
