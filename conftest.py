"""Every Python example in README.md, docs/ and the package's docstrings runs as a test, against the installed package.

An example is a fenced block of ``python``, which asserts what it shows, or one of ``pycon``, or lines that begin with
``>>>`` in a docstring, whose output is compared. The examples of one page, or of one module's docstrings, share a
namespace from top to bottom, and import what they use. ``<!-- skip: next -->`` leaves the next block of a page out;
``.. skip: next`` does in a docstring.
"""

from __future__ import annotations

import sys
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from sybil import Document, Sybil
from sybil.document import PythonDocStringDocument
from sybil.integration.pytest import SybilItem
from sybil.parsers import myst, rest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sybil.typing import Evaluator, Parser

ROOT = Path(__file__).parent


def _stage(path: str) -> ModuleType:
    """Make the module in which the examples of one file run: a real one, so that their classes can be pickled."""
    name = "_".join(("example", *Path(path).relative_to(ROOT).with_suffix("").parts)).lower().replace("-", "_")
    return sys.modules.setdefault(name, ModuleType(name))


class Page(Document):
    """A page of the documentation."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text, path)
        self.namespace = _stage(path).__dict__


class Docstrings(PythonDocStringDocument):
    """A module of the checkout, read for its docstrings only: what the examples import is the installed package."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text, path)
        self.namespace = _stage(path).__dict__
        self.evaluators.clear()  # the inherited one imports the file itself


class Consoles(myst.PythonCodeBlockParser):
    """Blocks of ``pycon``."""

    @staticmethod
    def codeblock_parser_class(_language: str, evaluator: Evaluator) -> Parser:
        """Find the blocks; called where the base class would look for blocks of ``python``."""
        return myst.CodeBlockParser("pycon", evaluator)


_FLAGS = ELLIPSIS | NORMALIZE_WHITESPACE

_pages = Sybil(
    parsers=[
        myst.PythonCodeBlockParser(doctest_optionflags=_FLAGS),
        Consoles(doctest_optionflags=_FLAGS),
        myst.SkipParser(),
    ],
    patterns=["README.md", "docs/*.md"],
    excludes=["docs/_build/*"],
    document_types={".md": Page},
)
_docstrings = Sybil(
    parsers=[rest.DocTestParser(optionflags=_FLAGS), rest.PythonCodeBlockParser(), rest.SkipParser()],
    patterns=["idempo/*.py"],
    document_types={".py": Docstrings},
)
pytest_collect_file = (_pages + _docstrings).pytest()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Keep the examples of a page in the order in which they are read, whatever order the other tests are given."""
    yield
    examples = [item for item in items if isinstance(item, SybilItem)]
    items[:] = [item for item in items if not isinstance(item, SybilItem)]
    items += sorted(examples, key=lambda item: (item.path, item.example.line))
