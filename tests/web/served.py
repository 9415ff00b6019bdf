"""One shop, in four frameworks, behind the middlewares: run by the servers that the tests start.

``python served.py KIND PORT`` serves one of KINDS. IDEMPO_TEST_FOLDER is where its records, and its effects, are.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idempo import Idempotency
from idempo.stores.sqlite import SqliteStore

FOLDER = Path(os.environ.get("IDEMPO_TEST_FOLDER", "."))
IN_DOUBT: Any = os.environ.get("IDEMPO_TEST_IN_DOUBT", "rerun")
COOKIES = ("a=1; Path=/", "b=2; Path=/")
PARTS = (b"one,", b"two,", b"three")


def options() -> dict[str, Any]:
    """Return what both middlewares are made of."""
    guard = Idempotency(SqliteStore(FOLDER / "records.db"), namespace="shop", lease=1, in_doubt=IN_DOUBT)
    # A test's users say who they are. In earnest this comes from what has been verified.
    return {"guard": guard, "principal": lambda request: request.headers.get("x-user", "ann"), "max_body": 100_000}


def effect(body: bytes, *, hold: bool) -> dict[str, Any]:
    """Have an effect that can be counted, and be held in the midst of it."""
    with (FOLDER / "effects").open("ab") as effects:
        effects.write(b"%d\n" % len(body))
    if hold:
        (FOLDER / "begun").touch()
        deadline = time.monotonic() + 60
        while not (FOLDER / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    return {"length": len(body), "at": time.time_ns()}


def parts() -> Iterator[bytes]:
    """Give a response in parts."""
    effect(b"", hold=False)
    yield from PARTS


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    from idempo.http.asgi import IdempotencyMiddleware

    async def orders(request: Any) -> Any:
        body = await request.body()
        made = await run_in_threadpool(effect, body, hold="hold" in request.query_params)
        response = JSONResponse(made, 201)
        for cookie in COOKIES:
            response.headers.append("set-cookie", cookie)
        return response

    async def stream(request: Any) -> Any:
        return StreamingResponse(parts(), media_type="text/plain")

    routes = [Route("/orders", orders, methods=["POST", "GET"]), Route("/stream", stream, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(IdempotencyMiddleware, **options())])


def fastapi_app() -> Any:
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import StreamingResponse

    from idempo.http.asgi import IdempotencyMiddleware

    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, **options())

    async def body_of(request: Request) -> bytes:
        return await request.body()

    from fastapi import Depends

    @app.post("/orders", status_code=201)
    def orders(response: Response, hold: int = 0, body: bytes = Depends(body_of)) -> dict[str, Any]:
        for cookie in COOKIES:
            response.headers.append("set-cookie", cookie)
        return effect(body, hold=bool(hold))

    @app.post("/stream")
    def stream() -> Any:
        return StreamingResponse(parts(), media_type="text/plain")

    return app


def flask_app() -> Any:
    import flask

    from idempo.http.wsgi import IdempotencyMiddleware

    app = flask.Flask(__name__)

    @app.post("/orders")
    def orders() -> Any:
        response = flask.jsonify(effect(flask.request.get_data(), hold="hold" in flask.request.args))
        response.status_code = 201
        for cookie in COOKIES:
            response.headers.add("Set-Cookie", cookie)
        return response

    @app.post("/stream")
    def stream() -> Any:
        return flask.Response(parts(), mimetype="text/plain")

    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, **options())  # type: ignore[method-assign,arg-type]
    return app


def django_app() -> Any:
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    from idempo.http.wsgi import IdempotencyMiddleware

    def orders(request: Any) -> Any:
        made = json.dumps(effect(request.body, hold="hold" in request.GET))
        response = HttpResponse(made, status=201, content_type="application/json")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    def stream(request: Any) -> Any:
        return StreamingHttpResponse(parts(), content_type="text/plain")

    urls = type(sys)("shop_urls")
    urls.urlpatterns = [path("orders", orders), path("stream", stream)]  # type: ignore[attr-defined]
    sys.modules["shop_urls"] = urls
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="shop_urls", SECRET_KEY="of-a-test-and-of-nothing-else")
    django.setup()
    return IdempotencyMiddleware(WSGIHandler(), **options())


def serve(kind: str, port: int) -> None:
    """Serve until the process ends."""
    framework, _, server = kind.partition("-")
    factory = f"{framework}_app"
    if server == "uvicorn":
        import uvicorn

        uvicorn.run(globals()[factory](), host="127.0.0.1", port=port, log_level="warning")
    elif server == "waitress":
        import waitress

        waitress.serve(globals()[factory](), host="127.0.0.1", port=port, threads=20)
    else:
        here = Path(__file__)
        listen = ["--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "10", "--worker-class", "gthread"]
        sys.argv = ["gunicorn", *listen, "--pythonpath", str(here.parent), f"{here.stem}:{factory}()"]
        runpy.run_module("gunicorn", run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
