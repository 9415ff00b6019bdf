"""The pages say what the code is: what can be compared is compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import idempo
from idempo import errors, stores, testing, tokens
from idempo.policy import PolicyOptions
from idempo.stores import cached, cas, memcached, nats, redis, sqlite
from idempo.telling import Teller
from tests.test_layering import HOUSE

if TYPE_CHECKING:
    import pytest

DOCS = Path(__file__).parents[1] / "docs"


def picture_of_the_floors() -> dict[str, float]:
    """Return the rooms of the architecture page's picture, each with its floor."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    lines = page.partition("```text\n")[2].partition("```")[0].splitlines()
    rooms: dict[str, float] = {}
    floor = -1.0
    for line in lines:
        begins = re.match(r" (\d(?:\.\d)?)  ", line)
        floor = float(begins[1]) if begins else floor
        rooms |= dict.fromkeys(re.findall(r"[\w.*]+", line[6:42]), floor)
    return rooms


def test_the_picture_of_the_floors_is_the_house() -> None:
    """Every room but the private ones, each on its floor, and no other."""
    house = {name or "idempo": floor for floor, names in HOUSE for name in names.split(" ")}
    public = {
        name: floor for name, floor in house.items() if name == "__main__" or not name.split(".")[-1].startswith("_")
    }
    assert picture_of_the_floors() == public


def rows_of(page: str) -> list[str]:
    """Return what stands in code in the first column of a page's tables."""
    return re.findall(r"^\| `(\w+)`", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_on_policy_has_every_option() -> None:
    assert rows_of("policy.md") == list(PolicyOptions.__annotations__)


def test_the_page_on_errors_has_every_error() -> None:
    public = {name for name in idempo.__all__ if name.endswith("Error")} - {"IdempotencyError"}
    assert set(rows_of("errors.md")) == public


def test_the_page_on_observing_has_every_event_and_its_level(caplog: pytest.LogCaptureFixture) -> None:
    page = (DOCS / "observing.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|$", page, re.MULTILINE))
    teller = Teller()
    with caplog.at_level("DEBUG", logger="idempo"):
        for kind in idempo.EventKind:
            teller.tell(kind, idempo.Key("pages", "key"))
    assert written == {record.getMessage().partition(":")[0]: record.levelname for record in caplog.records}


def test_every_link_between_pages_leads_somewhere() -> None:
    """Also from the README, which is read where no documentation is built."""
    for page in [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|svg))\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reference_has_every_public_name() -> None:
    """What the package, its stores, seals and test kit give; the errors come in one piece."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^ *\.\. auto\w+:: ([\w.]+)", page, re.MULTILINE))
    assert "idempo.errors" in documented
    public = {f"idempo.{name}" for name in idempo.__all__ if not hasattr(errors, name)}
    for module in (stores, sqlite, cas, redis, memcached, nats, cached, testing, tokens):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    public |= {"idempo.seals.Signed", "idempo.seals.Encrypted"}
    assert public - documented == set()
