"""The form of the page on tokens, in Flask, over HTTP."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from idempo.tokens import TokenIssuer

flask = pytest.importorskip("flask")

PAGE = Path(__file__).parents[1] / "docs" / "tokens.md"
PATIENCE = 60.0


class Site:
    """The recipe, served."""

    def __init__(self, names: dict[str, Any], port: int) -> None:
        self.names = names
        self._port = port

    def ask(self, method: str, **form: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request(method, "/order", urlencode(form), headers if form else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def token(self) -> str:
        found = re.search(r'name="token" value="([^"]+)"', self.ask("GET")[1])
        assert found
        return found[1]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    from werkzeug.serving import make_server

    monkeypatch.setenv("TOKENS_DB", str(tmp_path / "tokens.db"))
    code = PAGE.read_text(encoding="utf-8").partition("<!-- recipe: flask -->\n```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, str(PAGE), "exec"), names)
    server = make_server("127.0.0.1", 0, names["app"], threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Site(names, server.server_port)
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()
        names["issuer"].guard.store.close()


def test_a_form_that_is_sent_again_is_one_order(site: Site) -> None:
    """Behaviour 68: and each form that was loaded is one of its own."""
    token = site.token()
    assert site.ask("POST", token=token, item="tea") == (200, "Thank you for your order.")
    assert site.ask("POST", token=token, item="tea") == (200, "We have your order.")
    assert site.ask("POST", token=site.token(), item="tea") == (200, "Thank you for your order.")
    assert site.names["orders"] == ["tea", "tea"]


def test_clicks_at_once_are_one_order(site: Site) -> None:
    """Behaviour 68: the second waits for the first, and says that it is there."""
    token, clicks = site.token(), 6
    with ThreadPoolExecutor(clicks) as pool:
        answers = list(pool.map(lambda _: site.ask("POST", token=token, item="tea"), range(clicks)))
    assert answers.count((200, "Thank you for your order.")) == 1
    assert answers.count((200, "We have your order.")) == clicks - 1
    assert site.names["orders"] == ["tea"]


def test_a_form_that_failed_can_be_sent_again(site: Site) -> None:
    """Behaviour 68: with the token that it has."""
    token = site.token()
    assert site.ask("POST", token=token, item="gold")[0] == 503
    assert site.ask("POST", token=token, item="tea") == (200, "Thank you for your order.")
    assert site.names["orders"] == ["tea"]


def test_a_form_that_is_not_ours_is_refused(site: Site) -> None:
    """Behaviour 68: without a token, with an altered one, with one of somebody else."""
    issuer: TokenIssuer = site.names["issuer"]
    for token in ("", site.token()[:-2] + "xx", issuer.issue("order", "user-8"), issuer.issue("refund", "user-7")):
        assert site.ask("POST", token=token, item="tea") == (400, "Please load the form again.")
    assert site.ask("POST", item="tea")[0] == 400
    assert site.names["orders"] == []


def test_a_form_that_nobody_knows_of_is_looked_into(site: Site) -> None:
    """Behaviour 68: what a process that died leaves behind."""
    token = site.token()
    issuer: TokenIssuer = site.names["issuer"]
    with pytest.raises(KeyboardInterrupt), issuer.redeeming(token, "order", "user-7"):
        raise KeyboardInterrupt
    assert site.ask("POST", token=token, item="tea") == (409, "We are looking into your order.")
    assert site.names["orders"] == []
