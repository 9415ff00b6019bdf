"""The page on what each store promises names tests that are there, and leaves out no fault."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)+)`")


@functools.cache
def names_in(path: Path) -> set[str]:
    """Return the tests of a module, and its classes with their tests, as pytest names them."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(f"::{node.name}")
        elif isinstance(node, ast.ClassDef):
            inner = [each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"::{node.name}", *(f"::{node.name}::{name}" for name in [*inner, *_cases()])}
    return found


@functools.cache
def _cases() -> set[str]:
    """Return the tests that a module's classes inherit from the suite for stores."""
    return {
        node.name
        for path in (ROOT / "idempo" / "testing").glob("_*_cases.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def tables() -> dict[str, dict[str, str]]:
    """Return, for each store's heading, its rows: what the first column says, and the rest of the line."""
    found: dict[str, dict[str, str]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        rows = re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE)
        if rows:
            found[heading] = {first: rest for first, rest in rows if set(first) - set("-| ") and first != "fault"}
    return found


def faults() -> list[str]:
    """Return the faults that the page explains before its tables."""
    return re.findall(r"^- \*\*(.+?)\*\*", PAGE.read_text(encoding="utf-8").partition("\n## ")[0], re.MULTILINE)


def test_every_test_that_is_named_is_there() -> None:
    """A test that is renamed takes its line with it, on whatever page."""
    assert len(NAMED.findall(PAGE.read_text(encoding="utf-8"))) > 30
    pages = [ROOT / "README.md", *PAGE.parent.glob("*.md")]
    named = [each for page in pages for each in NAMED.findall(page.read_text(encoding="utf-8"))]
    missing = {f"{path}{name}" for path, name in named if name not in names_in(ROOT / path)}
    assert missing == set()


def test_every_store_says_something_of_every_fault() -> None:
    """In the page's own order; and shows it by a test, or says that no test does, or why it cannot happen."""
    stores = tables()
    assert len(faults()) > 10
    assert len(stores) > 3
    for store, rows in stores.items():
        assert list(rows) == faults(), store
        for fault, rest in rows.items():
            shown = NAMED.search(rest) or "no test shows it" in rest or "cannot happen" in rest
            assert shown, f"{store}, {fault}: neither a test, nor a reason"


def test_the_check_sees() -> None:
    """What is compared is really read."""
    here = names_in(Path(__file__))
    assert "::test_the_check_sees" in here
    assert "::test_nothing" not in here
    memory = names_in(ROOT / "tests" / "contract" / "test_memory.py")
    assert {"::TestMemoryStore", "::TestMemoryStore::test_near_answers_completed_records_only"} <= memory
