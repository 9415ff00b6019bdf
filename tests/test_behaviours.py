"""Every behaviour that the core promises has a test that says so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent

# The numbers of the core's behaviours: of those between, 19 needs a server that can lose a notification.
NUMBERS = {*range(1, 19), *range(20, 46), 51, 52}

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


def test_every_behaviour_is_named_by_a_test() -> None:
    """The list stands here; a number in a comment, or on what is no test, does not count."""
    named: set[int] = set()
    for path in HERE.rglob("test_*.py"):
        for docstring in docstrings_of(path.read_text(encoding="utf-8")):
            named |= numbers_in(docstring)
    assert NUMBERS - named == set()


def test_what_names_a_behaviour() -> None:
    """Alone, in a list, as a range; on tests only."""
    assert numbers_in("Behaviour 7: so. Behaviours 21-23, 27 and 34 (real), in 10 steps.") == {7, 21, 22, 23, 27, 34}
    assert numbers_in("After 7 tries; behaviour of 8.") == set()
    helper = 'def helper():\n    """Behaviour 1."""\n'
    tests = 'class TestX:\n    """Behaviour 2."""\n    def test_y(self):\n        """Z."""\n'
    assert docstrings_of(helper + tests) == ["Behaviour 2.", "Z."]
