"""The ASGI middleware: requests at once, streams, clients that go away, and what servers do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from idempo import Idempotency, MemoryStore, State, current_operation
from idempo.http.asgi import IdempotencyMiddleware
from idempo.testing import unguarded
from tests.web.support import AsgiClient, asgi_scope, ask_asgi

KEY = "POST(shop.example,/orders,k-1)"
PATIENCE = 30.0

App = Callable[[Any, Any, Any], Awaitable[None]]


def guarded(app: App, *, guard: Idempotency | None = None, **options: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(app, guard or Idempotency(), principal=None, **options)


def state(app: IdempotencyMiddleware) -> State | None:
    record = app.idempotency.guard.lookup(KEY)
    return None if record is None else record.state


class Slow:
    """An application that ends when it is let go on."""

    def __init__(self, status: int = 200, headers: Any = ()) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.runs = 0
        self.status = status
        self.headers = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        self.begun.set()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"done"})


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_what_is_no_request_passes_untouched() -> None:
    """Behaviour 63: lifespan and websockets."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def test() -> None:
        middleware = guarded(app)
        for kind in ("lifespan", "websocket"):
            await middleware({"type": kind}, None, None)  # type: ignore[arg-type]

    run(test)
    assert seen == ["lifespan", "websocket"]


def test_a_request_in_progress_is_409_at_once() -> None:
    """Behaviour 56: with Retry-After of a second or two, whatever the lease."""

    async def test() -> None:
        slow = Slow()
        app = guarded(slow, guard=Idempotency(lease=60))
        first = asyncio.create_task(ask_asgi(app))
        await slow.begun.wait()
        duplicates = await asyncio.gather(*[ask_asgi(app) for _ in range(20)])
        assert {(one.status, one.problem) for one in duplicates} == {(409, "in-progress")}
        assert {int(one.all("retry-after")[0]) for one in duplicates} <= {1, 2}
        slow.go_on.set()
        assert (await first).body == b"done"
        assert (await ask_asgi(app)).replayed
        assert slow.runs == 1

    run(test)


def test_duplicates_may_wait_for_the_one_in_progress() -> None:
    """All have its response, and it ran once."""

    async def test() -> None:
        slow = Slow(201)
        app = guarded(slow, wait=PATIENCE)
        asked = [asyncio.create_task(ask_asgi(app)) for _ in range(20)]
        await slow.begun.wait()
        slow.go_on.set()
        answers = await asyncio.gather(*asked)
        assert {(one.status, one.body) for one in answers} == {(201, b"done")}
        assert sum(one.replayed for one in answers) == 19
        assert slow.runs == 1

    run(test)


def test_who_waited_for_a_response_that_is_not_kept_has_it_too() -> None:
    """As if it had been that request: a service that is busy is not asked once per waiter."""

    async def test() -> None:
        slow = Slow(503)
        app = guarded(slow, wait=PATIENCE)
        asked = [asyncio.create_task(ask_asgi(app)) for _ in range(5)]
        await slow.begun.wait()  # the others have joined by now: tasks begin in their order, and this one's child last
        slow.go_on.set()
        assert [(one.status, one.body) for one in await asyncio.gather(*asked)] == [(503, b"done")] * 5
        assert slow.runs == 1
        assert not (await ask_asgi(app)).replayed

    run(test)


def test_the_outcome_is_stored_before_the_last_byte_is_sent() -> None:
    """Behaviour 62: whether the client finds the end by Content-Length or by the end of the stream."""

    async def chunked(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async def measured(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"2")]})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def states(inner: App) -> list[State | None]:
        app, seen = guarded(inner), []

        async def send(message: Any) -> None:
            seen.append(state(app))

        await app(asgi_scope(), AsgiClient(b"tea").receive, send)
        assert (await ask_asgi(app)).body == b"ab"
        return seen

    async def test() -> None:
        running, completed = State.RUNNING, State.COMPLETED
        assert await states(chunked) == [running, running, running, completed]
        assert await states(measured) == [running, running, completed, completed]

    run(test)


def test_a_stream_passes_as_it_comes() -> None:
    """Behaviour 62: nothing of it is held back, whatever its length."""

    async def test() -> None:
        got: asyncio.Queue[bytes] = asyncio.Queue()
        seen: list[bytes] = []

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for part in (b"1", b"2", b"3"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
                seen.append(await got.get())  # the client has it before there is any more
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        app, client = guarded(stream, max_response=2), AsgiClient(b"")

        async def send(message: Any) -> None:
            if message.get("body"):
                got.put_nowait(message["body"])
            await client.send(message)

        await app(asgi_scope(), client.receive, send)
        assert client.answer().body == b"123"
        assert seen == [b"1", b"2", b"3"]
        assert (await ask_asgi(app, body=b"")).problem == "response-lost"  # three bytes are more than two

    run(test)


@pytest.mark.parametrize("how", ["disconnect", "cancelled", "send-fails"])
def test_a_client_that_goes_away_ends_nothing(how: str) -> None:
    """Behaviour 62: the run ends and is stored, in whatever way the server tells of it."""

    async def test() -> None:
        slow = Slow()
        app, client = guarded(slow), AsgiClient(b"tea")

        async def send(message: Any) -> None:
            if how == "send-fails":
                raise OSError("the client is gone")
            await client.send(message)

        request = asyncio.create_task(app(asgi_scope(), client.receive, send))  # type: ignore[arg-type]
        await slow.begun.wait()
        if how == "cancelled":
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert client.sent == []
        assert state(app) is State.RUNNING
        slow.go_on.set()
        if how == "cancelled":
            while app._running:  # noqa: ASYNC110 (nobody tells its end)
                await asyncio.sleep(0)
            assert client.sent == []  # nothing is sent to a request that was ended
        else:
            await request
        assert (await ask_asgi(app)).replayed
        assert slow.runs == 1

    run(test)


@pytest.mark.parametrize("fails", [False, True])
def test_what_fails_after_its_client_has_gone_is_told_to_the_loop(fails: bool) -> None:
    """Nobody else would hear of it."""
    told: list[Any] = []

    async def test() -> None:
        slow = Slow()

        async def failing(scope: Any, receive: Any, send: Any) -> None:
            await slow(scope, receive, send)
            if fails:
                raise LookupError

        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        app, client = guarded(failing), AsgiClient(b"tea")
        request = asyncio.create_task(app(asgi_scope(), client.receive, client.send))  # type: ignore[arg-type]
        await slow.begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        slow.go_on.set()
        while app._running:  # noqa: ASYNC110 (nobody tells its end)
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(test)
    assert [type(error) for error in told] == ([LookupError] if fails else [])


def test_an_application_that_listens_for_its_client_does_not_hear_it_go() -> None:
    """Behaviour 62: as Starlette's streams listen; they end when the response has ended."""

    async def test() -> None:
        heard: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive()) == {"type": "http.request", "body": b"tea", "more_body": False}
            listening = asyncio.create_task(receive())
            await asyncio.sleep(0)
            assert not listening.done()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"whole"})
            heard.append(await listening)

        assert (await ask_asgi(guarded(app))).body == b"whole"
        assert heard == [{"type": "http.disconnect"}]

    run(test)


def test_a_client_that_goes_before_its_body_has_come_has_no_effect() -> None:
    async def test() -> None:
        slow = Slow()
        app = guarded(slow)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        await app(asgi_scope(), receive, None)  # type: ignore[arg-type]
        assert (slow.runs, state(app)) == (0, None)

    run(test)


def test_a_duplicate_that_is_cancelled_while_it_waits_waits_no_more() -> None:
    """Only a request that has begun is carried to its end."""

    async def test() -> None:
        slow = Slow()
        app = guarded(slow, wait=PATIENCE)
        first = asyncio.create_task(ask_asgi(app))
        await slow.begun.wait()
        waiting = asyncio.create_task(ask_asgi(app))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        slow.go_on.set()
        assert (await first).body == b"done"
        assert slow.runs == 1

    run(test)


def test_bodies_come_in_pieces() -> None:
    """Chunked uploads: one request, whatever its pieces."""

    async def test() -> None:
        bodies: list[bytes] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            bodies.append((await receive())["body"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        middleware = guarded(app, max_body=6)
        assert not (await ask_asgi(middleware, body=[b"ab", b"", b"cd"])).replayed
        assert (await ask_asgi(middleware, body=[b"abcd"])).replayed
        assert (await ask_asgi(middleware, key='"k-2"', body=[b"abcd", b"efg", b"never read"])).status == 413
        assert bodies == [b"abcd"]

    run(test)


def test_work_after_the_response_is_done_and_undoes_nothing() -> None:
    """As Starlette's background tasks: the response does not wait for it."""

    async def test() -> None:
        sent, go_on = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"early"})
            sent.set()
            await go_on.wait()
            raise LookupError("afterwards")

        middleware, client = guarded(app), AsgiClient(b"tea")
        request = asyncio.create_task(middleware(asgi_scope(), client.receive, client.send))  # type: ignore[arg-type]
        await sent.wait()
        assert client.answer().body == b"early"
        assert (await ask_asgi(middleware)).replayed  # while the first is still at its work
        go_on.set()
        with pytest.raises(LookupError):
            await request
        assert (await ask_asgi(middleware)).replayed

    run(test)


@pytest.mark.parametrize("in_doubt", ["rerun", "raise"])
@pytest.mark.parametrize("begun", [False, True])
def test_an_application_that_ends_too_soon_ends_by_policy(begun: bool, in_doubt: Any) -> None:
    """Nothing is kept of half a response."""

    async def test() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if begun:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"half", "more_body": True})

        middleware, client = guarded(app, guard=Idempotency(in_doubt=in_doubt)), AsgiClient(b"tea")
        await middleware(asgi_scope(), client.receive, client.send)
        assert state(middleware) is (State.RELEASED if in_doubt == "rerun" else State.RUNNING)
        if in_doubt == "raise":
            assert (await ask_asgi(middleware)).problem == "in-doubt"

    run(test)


def test_the_application_may_ask_for_its_operation() -> None:
    """And none is left behind in the caller's context, for requests of one task follow each other."""

    async def test() -> None:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            operation = current_operation()
            assert operation is not None
            operation.ensure_held()
            seen.append((operation.key.value, operation.attempt, operation.fresh))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        middleware = guarded(app)
        for key in ('"k-1"', '"k-2"'):
            await ask_asgi(middleware, key)
            with pytest.raises(LookupError):
                current_operation()
        assert seen == [(KEY, 1, True), (KEY.replace("k-1", "k-2"), 1, True)]

    run(test)


def test_unguarded_requests_simply_run() -> None:
    """In users' tests."""

    async def test() -> None:
        slow = Slow()
        slow.go_on.set()
        app = guarded(slow)
        with unguarded():
            assert [(await ask_asgi(app)).replayed for _ in "12"] == [False, False]
        assert slow.runs == 2

    run(test)


def test_ways_around_the_messages_are_closed() -> None:
    """What would send a file, or trailers, past whoever looks at the body; other messages pass."""

    async def test() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert scope["extensions"] == {"http.response.debug": {}}
            await send({"type": "http.response.debug", "info": {}})
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"x"})
            await send({"type": "http.response.body", "body": b"too much"})

        client = AsgiClient(b"tea")
        await guarded(app)(asgi_scope(), client.receive, client.send)
        assert [one["type"].rpartition(".")[2] for one in client.sent] == ["debug", "start", "body", "body"]

        scope = asgi_scope()
        del scope["extensions"]  # as of a server that has none
        slow, client = Slow(), AsgiClient(b"tea")
        slow.go_on.set()
        await guarded(slow)(scope, client.receive, client.send)
        assert client.answer().body == b"done"

    run(test)


def test_a_store_with_a_bug_takes_nothing_from_the_client() -> None:
    """Behaviour 62."""

    class Broken(MemoryStore):
        def complete(self, *args: Any, **options: Any) -> bool:
            raise LookupError("a bug")

    async def test() -> None:
        slow = Slow()
        slow.go_on.set()
        app = guarded(slow, guard=Idempotency(Broken(), lease=0.2))
        assert (await ask_asgi(app)).body == b"done"
        assert app.idempotency.guard.forget(KEY, force=True)  # nobody goes on offering the outcome

    run(test)


def test_a_lost_lease_takes_nothing_from_the_client() -> None:
    """Behaviour 62: it has the handler's answer; whoever took over keeps the key."""

    async def test() -> None:
        slow = Slow()
        app = guarded(slow)
        first = asyncio.create_task(ask_asgi(app))
        await slow.begun.wait()
        assert app.idempotency.guard.forget(KEY, force=True)
        slow.go_on.set()
        assert (await first).body == b"done"
        assert state(app) is None

    run(test)


def test_a_cancelled_loop_ends_what_runs_by_policy() -> None:
    """A server that stops: nothing is stored, and the key is free, or in doubt."""
    app: Any = None

    async def begin() -> None:
        nonlocal app
        slow = Slow()
        app = guarded(slow)
        request = asyncio.create_task(ask_asgi(app))
        await slow.begun.wait()
        request.cancel()

    asyncio.run(begin())
    assert state(app) is State.RELEASED
