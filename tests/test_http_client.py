"""What clients need: a key, its header, and one key for all tries of one logical call."""

from __future__ import annotations

import copy
import json
import pickle
import re
import socket
import string
import struct
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.http import client as module
from idempo.http.client import HEADER, KeptKey, format_key, new_key

PAGE = Path(__file__).parents[1] / "docs" / "http-client.md"
PATIENCE = 60.0
PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "
keys = st.text(alphabet=PRINTABLE, min_size=1, max_size=255)


@given(keys)
def test_a_formatted_key_is_a_string_of_structured_fields(key: str) -> None:
    """As RFC 9651 has it in section 3.3.3; read back by hand, it is the key."""
    value = format_key(key)
    assert re.fullmatch(r'"(?:[ !#-\[\]-~]|\\["\\])*"', value)
    assert re.sub(r'\\(["\\])', r"\1", value[1:-1]) == key


@given(keys)
def test_a_parser_of_structured_fields_reads_it(key: str) -> None:
    """And so does one that somebody else wrote."""
    parser = pytest.importorskip("http_sf")
    assert parser.parse(format_key(key).encode(), tltype="item")[0] == key


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", ValueError),
        ("x" * 256, ValueError),
        ("ü", ValueError),
        ("a\nb", ValueError),
        ("a\x7f", ValueError),
        (None, TypeError),
        (7, TypeError),
        (b"key", TypeError),
    ],
    ids=repr,
)
def test_what_cannot_stand_in_the_header_is_refused(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="a key must"):
        format_key(key)
    if key is not None:
        with pytest.raises(error, match="a key must"):
            KeptKey(key)


def test_new_keys_are_random_uuids() -> None:
    assert {uuid.UUID(new_key()).version for _ in range(10)} == {4}
    assert len({new_key() for _ in range(1000)}) == 1000


def test_a_kept_key_is_a_mapping_of_one_header() -> None:
    headers = KeptKey('a "b"')
    assert dict(headers) == {"Idempotency-Key": r'"a \"b\""'}
    assert (len(headers), headers["idempotency-key"], headers.key) == (1, headers[HEADER], 'a "b"')
    assert "Accept" not in headers
    assert 7 not in headers
    assert repr(headers) == "KeptKey('a \"b\"')"
    for other in (copy.copy(headers), pickle.loads(pickle.dumps(headers))):
        assert dict(other) == dict(headers)
    assert dict(KeptKey()) != dict(KeptKey())


def test_a_bare_key_has_no_quotes() -> None:
    assert KeptKey("order-42", bare=True)[HEADER] == "order-42"
    for key in (" a", "a "):
        with pytest.raises(ValueError, match="no space at its ends"):
            KeptKey(key, bare=True)


def test_the_module_needs_the_standard_library_alone() -> None:
    """Loaded from its file, without the package around it."""
    code = (
        "import sys, runpy; before = set(sys.modules); runpy.run_path(sys.argv[1]); print(*set(sys.modules) - before)"
    )
    command = [sys.executable, "-I", "-c", code, str(module.__file__)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} <= set(sys.stdlib_module_names)


class Shop:
    """A server that carries out each key once, and drops some of its answers."""

    def __init__(self) -> None:
        self.drops = 1
        self.received: list[str | None] = []
        self.orders: dict[str | None, str] = {}
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                key = self.headers["Idempotency-Key"]
                shop.received.append(key)
                shop.orders.setdefault(key, json.loads(body)["item"])
                if len(shop.received) <= shop.drops:
                    # With a reset, not an end: the order was taken, and the client cannot know.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def finish(self) -> None:
                with suppress(OSError, ValueError):  # it may be closed already
                    super().finish()

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The code of the page."""
    for library in ("httpx", "stamina", "tenacity"):
        pytest.importorskip(library)
    blocks = re.findall(r"<!-- recipe: clients -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("name", ["order", "order_with_stamina", "order_with_tenacity"])
@pytest.mark.parametrize("drops", [0, 1, 2])
def test_every_try_of_a_call_has_one_key(shop: Shop, recipe: dict[str, Any], name: str, drops: int) -> None:
    """The answers that come first are lost; what arrives is one order, and the next call is another."""
    shop.drops = drops
    with recipe["new_client"](shop.url) as client:
        assert recipe[name](client, "tea").text == "ok"
        assert len(shop.received) == drops + 1
        assert len(set(shop.received)) == 1
        assert recipe[name](client, "milk").text == "ok"
    assert list(shop.orders.values()) == ["tea", "milk"]


@pytest.mark.parametrize("name", ["order", "order_with_stamina", "order_with_tenacity"])
def test_the_last_try_tells_its_error(shop: Shop, recipe: dict[str, Any], name: str) -> None:
    shop.drops = 9
    with recipe["new_client"](shop.url) as client, pytest.raises(recipe["httpx"].TransportError):
        recipe[name](client, "tea")
    assert len(shop.received) == 3
    assert len(set(shop.received)) == 1


def test_any_client_takes_the_headers(shop: Shop) -> None:
    """That of the standard library, too; and every try sends the same bytes."""
    headers = KeptKey('order "42"')
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def send() -> bytes:
        request = urllib.request.Request(f"{shop.url}/orders", b'{"item": "tea"}', headers=headers)
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.read()

    with pytest.raises(OSError):
        send()
    assert send() == b"ok"
    assert shop.received == [r'"order \"42\""'] * 2
    assert shop.orders == {r'"order \"42\""': "tea"}
