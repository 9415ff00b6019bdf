"""`Route`: one handler of a framework, plain or a coroutine, guarded."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import attrs
import pytest

from idempo import Idempotency, MemoryStore, current_operation
from idempo.http import PlainHeaders, Request, Response, Route
from idempo.testing import FlakyStore


@attrs.frozen
class Page:
    """A framework's response."""

    text: str
    status: int = 200
    extra: str = ""


def page(response: Response) -> Page:
    return Page(response.body.decode(), response.status, response.header("Idempotent-Replayed") or "")


def response(page: Page) -> Response:
    return Response(page.status, (("content-type", "text/plain"),), page.text.encode())


def request(key: str | None = '"k-1"', body: str = "tea", *, method: str = "POST") -> Request:
    headers = [] if key is None else [("Idempotency-Key", key)]
    return Request(method=method, host="shop", path="/orders", headers=PlainHeaders(headers), body=body.encode())


async def request_async(*args: Any, **kwargs: Any) -> Request:
    await asyncio.sleep(0)
    return request(*args, **kwargs)


class Handler:
    """One handler, in one colour."""

    def __init__(self, colour: str, guard: Idempotency | None = None, **options: Any) -> None:
        self.colour = colour
        self.ran: list[str] = []
        self.result: Any = lambda body: Page(f"made {body}", 201)
        options = {"principal": None, "respond": page, "keep": response, **options}
        make = request if colour == "sync" else options.pop("make", request_async)
        options.pop("make", None)
        self.route = Route(guard or Idempotency(), request=make, **options)

        def handle(key: str | None = '"k-1"', body: str = "tea", *, method: str = "POST") -> Page:
            self.ran.append(body)
            return self.result(body)

        async def handle_async(key: str | None = '"k-1"', body: str = "tea", *, method: str = "POST") -> Page:
            return handle(key, body, method=method)

        self.plain: Any = handle if colour == "sync" else handle_async
        self.guarded: Any = self.route(self.plain)

    def __call__(self, *args: Any, **kwargs: Any) -> Page:
        if self.colour == "sync":
            return self.guarded(*args, **kwargs)
        return asyncio.run(self.guarded(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_repeated_request_gets_the_first_response(colour: str) -> None:
    """Behaviour 57, in the framework's own response."""
    handler = Handler(colour)
    assert [handler(), handler()] == [Page("made tea", 201), Page("made tea", 201, "true")]
    assert handler.ran == ["tea"]


def test_the_handler_keeps_its_signature(colour: str) -> None:
    """Frameworks look at it."""
    handler = Handler(colour)
    assert inspect.signature(handler.guarded) == inspect.signature(handler.plain)
    assert inspect.iscoroutinefunction(handler.guarded) is (colour == "async")
    assert handler.guarded.__name__ == handler.plain.__name__


def test_what_is_refused_does_not_run(colour: str) -> None:
    """Behaviours 56, 61."""
    handler = Handler(colour, max_body=5)
    handler()
    assert [handler(body="milk").status, handler('"').status, handler(body="coffee").status] == [422, 400, 413]
    assert handler.ran == ["tea"]
    assert [handler(None).extra, handler(None).extra, handler(method="GET").extra] == ["", "", ""]
    assert len(handler.ran) == 4


def test_a_request_in_progress_is_refused(colour: str) -> None:
    """Behaviour 56; inside its own call too, where nobody could wait for it."""
    handler = Handler(colour)
    seen: list[int] = []

    def again(body: str) -> Page:
        assert current_operation().attempt == 1
        if colour == "sync":
            seen.append(handler().status)
        return Page("outer")

    handler.result = again
    assert handler() == Page("outer")
    assert seen == ([409] if colour == "sync" else [])


def test_who_waits_has_the_response_of_the_one_in_progress() -> None:
    """Kept or not."""

    async def ask(status: int) -> list[Page]:
        begun, go_on = asyncio.Event(), asyncio.Event()
        route = Route(Idempotency(), request=request, respond=page, keep=response, principal=None, wait=30)

        @route
        async def handle() -> Page:
            begun.set()
            await go_on.wait()
            return Page("whole", status)

        asked = [asyncio.create_task(handle()) for _ in range(3)]
        await begun.wait()
        go_on.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(ask(200)) == [Page("whole"), Page("whole", extra="true"), Page("whole", extra="true")]
    assert asyncio.run(ask(503)) == [Page("whole", 503)] * 3


def test_what_is_not_kept_leaves_the_key_free(colour: str) -> None:
    """Behaviour 58."""
    handler = Handler(colour)
    handler.result = lambda body: Page("busy", 503)
    assert [handler(), handler()] == [Page("busy", 503)] * 2


def test_an_exception_ends_it_by_policy(colour: str) -> None:
    """Behaviour 58."""
    handler = Handler(colour, Idempotency(in_doubt="raise"))

    def fail(body: str) -> Page:
        raise LookupError

    handler.result = fail
    with pytest.raises(LookupError):
        handler()
    assert handler().status == 409


class Broken(MemoryStore):
    """A store with a bug."""

    def complete(self, *args: Any, **options: Any) -> bool:
        raise LookupError("a bug")


@pytest.mark.parametrize(
    "store", [Broken(), FlakyStore(MemoryStore(), [("complete", None, "before")])], ids=["broken", "down"]
)
def test_a_response_that_cannot_be_stored_is_given_all_the_same(colour: str, store: Any) -> None:
    """Behaviour 62."""
    handler = Handler(colour, Idempotency(store, lease=0.2))
    assert handler() == Page("made tea", 201)
    assert handler.route.idempotency.guard.forget("POST(shop,/orders,k-1)", force=True)  # nobody goes on offering it
    with pytest.raises(LookupError):
        current_operation()


def test_a_key_may_come_from_anywhere(colour: str) -> None:
    """The body, another header; None is no key, and an empty one is a mistake of the client."""
    keys = {"a": "one", "b": "one", "none": None, "empty": ""}
    handler = Handler(colour, key=lambda request: keys[request.body.decode()], payload=lambda request: None)
    assert [handler(body="a").extra, handler(body="b").extra, handler(body="none").extra] == ["", "true", ""]
    assert handler(body="empty").status == 400
    strict = Handler(colour, key=lambda request: None, required=True)
    assert strict().status == 400
    with pytest.raises(TypeError, match="key must give a str or None, not int"):
        Handler(colour, key=lambda request: 7)()


def test_a_plain_request_will_do_for_a_coroutine() -> None:
    handler = Handler("async", make=request)
    assert [handler().extra, handler().extra] == ["", "true"]


def test_what_it_is_made_of_is_checked(colour: str) -> None:
    for name in ("respond", "keep"):
        with pytest.raises(TypeError, match=f"{name} must be a callable"):
            Handler(colour, **{name: None})
    with pytest.raises(TypeError, match="request must be a callable"):
        Route(Idempotency(), request=1, respond=page, keep=response, principal=None)  # type: ignore[arg-type]
    broken = Route(Idempotency(), request=lambda: 1, respond=page, keep=response, principal=None)
    with pytest.raises(TypeError, match=r"request must give an idempo\.http\.Request, not int"):
        broken(lambda: Page(""))()
