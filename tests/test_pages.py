"""The pages say what the code is: what can be compared is compared."""

from __future__ import annotations

import inspect
import re
import time
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import idempo
from idempo import errors, http, stores, testing, tokens
from idempo.http import asgi, client, wsgi
from idempo.policy import PolicyOptions
from idempo.telling import Teller
from tests.test_layering import HOUSE

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


def stores_modules() -> list[Any]:
    """Return the public modules of stores, whichever there are."""
    names = [each.name for each in iter_modules(stores.__path__) if not each.name.startswith("_")]
    assert {"memory", "sqlalchemy"} <= set(names)
    return [import_module(f"idempo.stores.{name}") for name in names if name != "memory"]  # which idempo gives itself


STORE_PAGES = [
    ("memory", "idempo", "MemoryStore"),
    ("sqlite", "idempo.stores.sqlite", "SqliteStore"),
    ("redis", "idempo.stores.redis", "RedisStore"),
    ("redis", "idempo.stores.redis", "AsyncRedisStore"),
    ("sql", "idempo.stores.sqlalchemy", "SqlAlchemyStore"),
    ("sql", "idempo.stores.sqlalchemy", "AsyncSqlAlchemyStore"),
    ("nats", "idempo.stores.nats", "SyncNatsStore"),
    ("memcached", "idempo.stores.memcached", "MemcachedStore"),
    ("cas", "idempo.stores.cas", "CasStore"),
    ("cas", "idempo.stores.cas", "AsyncCasStore"),
    ("near-cache", "idempo.stores.cached", "CachedStore"),
    ("near-cache", "idempo.stores.cached", "AsyncCachedStore"),
]


def options_of(page: str) -> dict[str, str]:
    """Return the table of a page's section on options: each name, and what stands for its default."""
    section = (DOCS / f"{page}.md").read_text(encoding="utf-8").partition("\n## Options\n")[2].partition("\n## ")[0]
    found: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*?) ?\|", section, re.MULTILINE):
        several = re.findall(r"`(\w+)`", names)
        defaults = default.split(", ") if len(several) > 1 and default else [default] * len(several)
        found |= dict(zip(several, defaults, strict=True))
    return found


def is_written(default: Any, as_what: str) -> bool:
    """Say whether a default is what a page says: in code, or as a number with its unit."""
    if default is None:
        return bool(re.match(r"[a-z]|8,000,000 on MariaDB", as_what))  # in words
    if callable(default):
        return as_what == f"`time.{default.__name__}`" and getattr(time, default.__name__) is default
    if isinstance(default, str | bool):
        return as_what in (f"`{default!r}`", f'`"{default}"`')
    return as_what in (f"{default:,}", f"{default:g} s", f"{default / 2**20:g} MiB")


@pytest.mark.parametrize(("page", "module", "name"), STORE_PAGES)
def test_a_stores_page_has_each_of_its_options_with_its_default(page: str, module: str, name: str) -> None:
    """And no other; a default that is left open there is told on the page that the row names."""
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    written = options_of(page)
    options = {each.name: each.default for each in parameters.values() if each.kind is each.KEYWORD_ONLY}
    assert set(options) - set(written) == set()
    assert set(written) - set(parameters) == set()
    for option, default in options.items():
        assert not written[option] or is_written(default, written[option]), option


def test_every_store_has_a_page() -> None:
    """Each module of stores stands in the list above."""
    assert {module for _, module, _ in STORE_PAGES} == {"idempo", *(each.__name__ for each in stores_modules())}


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
    for module in (stores, *stores_modules(), testing, tokens, http, client, asgi, wsgi):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    public |= {"idempo.seals.Signed", "idempo.seals.Encrypted"}
    assert public - documented == set()
