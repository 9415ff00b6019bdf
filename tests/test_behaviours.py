"""Every behaviour that the core promises has a test that says so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
KIT = HERE.parent / "idempo" / "testing"
PAGE = HERE.parent / "docs" / "behaviours.md"

_LIST = re.compile(r"Behaviours? ((?:\d+(?:-\d+)?(?:, (?:and )?| and )?)+)")


def numbers_in(text: str) -> set[int]:
    """Return the behaviours that a docstring names: ``Behaviour 7``, ``Behaviours 21-23, 27 and 34``."""
    found: set[int] = set()
    for listed in _LIST.findall(text):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
            found.update(range(int(first), int(last or first) + 1))
    return found


def docstrings_of(source: str) -> list[str]:
    """Return the docstrings of the test functions and classes of a module."""
    return [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name.lower().startswith("test")
    ]


def numbers_on_the_page() -> list[int]:
    """Return the numbers that the page explains, in its order."""
    return [int(number) for number in re.findall(r"^- \*\*(\d+)\*\* ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]


def test_every_behaviour_is_named_by_a_test() -> None:
    """Here, or in the suite for stores; a number in a comment, or on what is no test, does not count."""
    named: set[int] = set()
    for path in [*HERE.rglob("test_*.py"), *KIT.rglob("*.py")]:
        for docstring in docstrings_of(path.read_text(encoding="utf-8")):
            named |= numbers_in(docstring)
    assert set(numbers_on_the_page()) - named == set()


def test_every_number_that_is_cited_is_on_the_page() -> None:
    """Wherever it is cited, in the tests or in the test kit; each stands there once, in order."""
    cited: set[int] = set()
    for path in [*HERE.rglob("*.py"), *KIT.rglob("*.py")]:
        cited |= numbers_in(path.read_text(encoding="utf-8"))
    on_the_page = numbers_on_the_page()
    assert cited - set(on_the_page) == set()
    assert on_the_page == sorted(set(on_the_page))


def test_what_names_a_behaviour() -> None:
    """Alone, in a list, as a range; on tests only."""
    assert numbers_in("Behaviour 7: so. Behaviours 21-23, 27 and 34 (real), in 10 steps.") == {7, 21, 22, 23, 27, 34}
    assert numbers_in("After 7 tries; behaviour of 8.") == set()
    helper = 'def helper():\n    """Behaviour 1."""\n'
    tests = 'class TestX:\n    """Behaviour 2."""\n    def test_y(self):\n        """Z."""\n'
    assert docstrings_of(helper + tests) == ["Behaviour 2.", "Z."]
