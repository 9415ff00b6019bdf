"""The middlewares in the frameworks and on the servers that people run, asked over real sockets."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import idempo
from tests.interrupting import until
from tests.servers.process import Server

for _needed in ("starlette", "fastapi", "uvicorn", "flask", "django", "gunicorn", "waitress"):
    pytest.importorskip(_needed)

KINDS = ["starlette-uvicorn", "fastapi-uvicorn", "flask-gunicorn", "flask-waitress", "django-gunicorn"]
SERVED = Path(__file__).with_name("served.py")
PATIENCE = 60.0


class Shop:
    """A server, and what its handler did."""

    def __init__(self, kind: str, folder: Path, in_doubt: str = "rerun") -> None:
        self.kind = kind
        self.folder = folder
        environment = {
            "IDEMPO_TEST_FOLDER": str(folder),
            "IDEMPO_TEST_IN_DOUBT": in_doubt,
            "PYTHONPATH": str(Path(idempo.__file__).parents[1]),  # the package that is tested here
        }
        self.server = Server(
            kind,
            lambda _, port: [sys.executable, str(SERVED), kind, str(port)],
            lambda server: socket.create_connection((server.host, server.port), 5).close(),
            url="http://{host}:{port}",
            environment=environment,
        )

    def ask(self, key: str = '"k-1"', body: Any = b"tea", *, path: str = "/orders", user: str = "ann") -> Any:
        """Send a request on a connection of its own, and return the response, read."""
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=PATIENCE)
        try:
            headers = {"Idempotency-Key": key, "X-User": user, "Content-Type": "text/plain"}
            connection.request("POST", path, body=body, headers=headers, encode_chunked=not isinstance(body, bytes))
            response = connection.getresponse()
            response.whole = response.read()  # type: ignore[attr-defined]
            return response
        finally:
            connection.close()

    @property
    def effects(self) -> int:
        """How often the handler ran."""
        path = self.folder / "effects"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def begun(self) -> None:
        """Wait until a handler that is held has begun."""
        until((self.folder / "begun").exists, PATIENCE)

    def go_on(self) -> None:
        """Let those that are held end."""
        (self.folder / "go").touch()


@pytest.fixture(params=KINDS, scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A server for all the tests, whose keys are their own."""
    shop = Shop(request.param, tmp_path_factory.mktemp("shop"))
    shop.server.start()
    yield shop
    shop.server.close()


@pytest.fixture
def shop(served: Shop) -> Shop:
    for name in ("effects", "begun", "go"):
        (served.folder / name).unlink(missing_ok=True)
    return served


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f'"{os.urandom(8).hex()}"'


def test_duplicates_at_once_run_once(shop: Shop, key: str) -> None:
    """Behaviours 56, 57: of many connections at once one runs, the others are told, and later have its response."""
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(shop.ask(key, path="/orders?hold=1"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) == 7, PATIENCE)  # all but the one that is held
    assert {one.status for one in answers} == {409}
    assert {one.getheader("Content-Type") for one in answers} == {"application/problem+json"}
    assert {one.getheader("Retry-After") for one in answers} <= {"1", "2"}
    shop.go_on()
    for thread in threads:
        thread.join(PATIENCE)
    first = answers[7]
    assert first.status == 201
    again = [shop.ask(key, path="/orders?hold=1") for _ in range(3)]
    assert {(one.status, one.whole, one.getheader("Idempotent-Replayed")) for one in again} == {
        (201, first.whole, "true")
    }
    assert shop.effects == 1


def test_a_client_that_goes_away_ends_nothing(shop: Shop, key: str) -> None:
    """Behaviour 62: the run ends, is stored, and its client may come again."""
    with socket.create_connection((shop.server.host, shop.server.port), PATIENCE) as client:
        head = f"POST /orders?hold=1 HTTP/1.1\r\nHost: {shop.server.host}:{shop.server.port}\r\nX-User: ann\r\n"
        client.sendall(f"{head}Idempotency-Key: {key}\r\nContent-Length: 3\r\n\r\ntea".encode())
        shop.begun()
    assert shop.ask(key, path="/orders?hold=1").status == 409
    shop.go_on()
    until(lambda: shop.ask(key, path="/orders?hold=1").status == 201, PATIENCE)
    assert shop.ask(key, path="/orders?hold=1").getheader("Idempotent-Replayed") == "true"
    assert shop.effects == 1


def test_chunked_and_large_bodies(shop: Shop, key: str) -> None:
    """Behaviour 61: a body counts as a whole, however it comes; one over the limit is refused before the run."""

    def chunks(*parts: bytes) -> Iterator[bytes]:
        yield from parts

    first = shop.ask(key, chunks(b"x" * 40_000, b"y" * 40_000))
    second = shop.ask(key, b"x" * 40_000 + b"y" * 40_000)
    assert (first.status, second.status, second.getheader("Idempotent-Replayed")) == (201, 201, "true")
    assert b'"length": 80000' in first.whole.replace(b'"length":80000', b'"length": 80000')
    assert shop.ask(key, b"other").status == 422
    for body in (b"x" * 100_001, chunks(b"x" * 60_000, b"x" * 60_000)):
        assert shop.ask(f'"big-{key[1:]}', body).status == 413
    assert shop.effects == 1


def test_streams(shop: Shop, key: str) -> None:
    """Behaviour 62: a response in parts is kept as a whole."""
    first, second = shop.ask(key, path="/stream"), shop.ask(key, path="/stream")
    assert (first.status, first.whole) == (200, b"one,two,three")
    assert (second.status, second.whole, second.getheader("Idempotent-Replayed")) == (200, b"one,two,three", "true")
    assert (second.getheader("Content-Length"), shop.effects) == ("13", 1)


def test_cookies_are_the_first_clients_alone(shop: Shop, key: str) -> None:
    """Behaviour 59."""
    first, second = shop.ask(key), shop.ask(key)
    assert len(first.msg.get_all("Set-Cookie")) == 2
    assert second.getheader("Idempotent-Replayed") == "true"
    assert second.msg.get_all("Set-Cookie") is None
    assert first.whole == second.whole


def test_two_principals_with_one_key(shop: Shop, key: str) -> None:
    """Behaviour 60."""
    answers = [shop.ask(key, user=user) for user in ("ann", "bob", "ann", "bob")]
    assert [one.getheader("Idempotent-Replayed") for one in answers] == [None, None, "true", "true"]
    assert answers[0].whole == answers[2].whole != answers[1].whole == answers[3].whole
    assert shop.effects == 2


@pytest.mark.realtime
@pytest.mark.parametrize(("in_doubt", "status"), [("rerun", 201), ("raise", 409)])
@pytest.mark.parametrize("kind", ["starlette-uvicorn", "flask-gunicorn"])
def test_a_worker_that_is_killed_leaves_doubt(tmp_path: Path, kind: str, in_doubt: str, status: int) -> None:
    """Behaviours 1, 13: until its lease is over its key is in progress; then it runs again, or is refused."""
    shop = Shop(kind, tmp_path, in_doubt)

    def ask() -> bytes:
        with suppress(OSError, http.client.HTTPException):  # whose server was killed, or its socket outlived it a while
            whole: bytes = shop.ask(path="/orders?hold=1").whole
            return whole
        return b"in-progress"

    try:
        shop.server.start()
        asking = threading.Thread(target=ask)
        asking.start()
        shop.begun()
        shop.server.kill()
        asking.join(PATIENCE)
        shop.go_on()
        shop.server.start()
        until(lambda: b"in-progress" not in ask(), PATIENCE)
        answer = shop.ask(path="/orders?hold=1")
        assert answer.status == status
        assert (b"in-doubt" in answer.whole) is (in_doubt == "raise")
        assert shop.effects == (2 if in_doubt == "rerun" else 1)
    finally:
        shop.server.close()
