"""Each part that needs servers, in tiny sizes: that all of them run, against the servers that the tests start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import servers as found_servers
from benchmarks.contenders import peers
from benchmarks.measuring import QUICK
from benchmarks.sampling import is_ours, sampling
from benchmarks.servers import Servers
from benchmarks.single_calls import new_orders
from benchmarks.stored import NETWORKED
from idempo import idempotent


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as found:
        yield found


@pytest.mark.parametrize("part", command.STORES)
def test_a_part_runs(part: str, servers: Servers) -> None:
    """It finds figures; where there is no server for it, the reason is told."""
    figures = list(command.STORES[part](QUICK, peers(), servers))
    if not figures:
        pytest.skip(f"{part} is not measured: {servers.missing}")
    assert len({figure.name for figure in figures}) == len(figures)
    assert all(figure.ours >= 0 for figure in figures)


def test_what_is_counted_is_met_in_tiny_sizes_too(servers: Servers) -> None:
    """Round trips do not depend on how quiet the machine is."""
    figures = list(command.STORES["round-trips"](QUICK, peers(), servers))
    here = [stored.name for stored in NETWORKED if servers.url(stored.server) is not None]
    if not here:
        pytest.skip(str(servers.missing))
    assert [figure.name.partition(":")[0] for figure in figures] == [name for name in here for _ in ("fresh", "replay")]
    assert [figure.name for figure in figures if not figure.met] == []


def test_a_server_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The part is left out and the run goes on; where all servers are demanded, it does not."""

    def nowhere(*_: Any) -> str:
        raise LookupError("no server of the Redis family is installed")

    monkeypatch.setattr(Servers, "_find", nowhere)
    monkeypatch.delenv("IDEMPO_REQUIRE_SERVERS", raising=False)
    assert command.main(["--quick", "redis"]) == 0
    shown = capsys.readouterr().out
    assert "redis is not measured, since there is none here: no server of the Redis family is installed" in shown
    monkeypatch.setenv("IDEMPO_REQUIRE_SERVERS", "1")
    with pytest.raises(LookupError, match="no server of the Redis family"):
        command.main(["--quick", "redis"])


def test_an_address_that_is_given_is_used(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started then."""
    url = servers.url("redis")
    if url is None:
        pytest.skip(servers.missing["redis"])
    monkeypatch.setenv("IDEMPO_TEST_REDIS_URL", url)
    monkeypatch.setattr(found_servers.Servers, "_start", lambda *_: pytest.fail("a server was started"))
    with Servers() as others:
        assert others.url("redis") == url


def test_samples_tell_whose_the_time_is() -> None:
    """A frame of idempo's is idempo's, also below the standard library; what a client library does is not."""
    seen: list[tuple[str, bool]] = []

    class Frame:
        def __init__(self, *places: str) -> None:
            self.f_code = type("Code", (), {"co_filename": places[0]})
            self.f_back = Frame(*places[1:]) if places[1:] else None

    import idempo

    house = idempo.__file__
    standard, client = threading.__file__, pytest.__file__
    for name, places in {
        "its own": (house,),
        "json for idempo": (standard, house),
        "generated for idempo": ("<attrs generated init>", house),
        "a client, for idempo": (client, house),
        "a socket, for a client": (standard, client, house),
        "the event loop": (standard, __file__),
    }.items():
        frame: FrameType = Frame(*places)  # type: ignore[assignment]
        seen.append((name, is_ours(frame)))
    assert [name for name, ours in seen if ours] == ["its own", "json for idempo", "generated for idempo"]


def test_samples_are_taken() -> None:
    @idempotent(key="order_id")
    def charge(order_id: str, amount: int, currency: str) -> str:
        return order_id

    with sampling() as samples:
        while samples.all < 20:
            charge(*new_orders(1)[0])
    assert 0 < samples.share <= 1
