"""Every Python example in README.md, docs/ and the package's docstrings runs as a test, against the installed package.

An example is a fenced block of ``python``, which asserts what it shows, or one of ``pycon``, or lines that begin with
``>>>`` in a docstring, whose output is compared. The examples of one page, or of one module's docstrings, share a
namespace from top to bottom, and import what they use. ``<!-- skip: next -->`` leaves the next block of a page out;
``.. skip: next`` does in a docstring.

Where an example names a server by its usual address, it runs against the one that the tests start; where there is none,
it is skipped, and so are those that come after it on its page.
"""

from __future__ import annotations

import sys
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest
from sybil import Document, Sybil
from sybil.document import PythonDocStringDocument
from sybil.integration.pytest import SybilItem
from sybil.parsers import myst, rest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sybil.typing import Evaluator, Parser

ROOT = Path(__file__).parent

# The tests' helpers are imported as `tests.name`, and the checkout itself is not on the path: `import idempo` must find
# what is installed.
_tests = sys.modules.setdefault("tests", ModuleType("tests"))
_tests.__path__ = [str(ROOT / "tests")]
pytest_plugins = ["tests.servers.fixtures"]

# What stands in the examples, and the fixture that gives the tests' own address instead.
ADDRESSES = (
    ("redis://localhost:6379", "redis_url"),
    ("postgresql+psycopg://localhost/app", "postgres_url"),
    ("mysql+pymysql://localhost/app", "mysql_url"),
    ("mysql+asyncmy://localhost/app", "mysql_url"),
    ("memcached://localhost:11211", "memcached_url"),
    ('("localhost", 11211)', "memcached_url"),
    ("nats://localhost:4222", "nats_url"),
    ("amqp://localhost:5672", "rabbitmq_url"),
)


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
    patterns=["idempo/*.py", "idempo/http/*.py"],
    document_types={".py": Docstrings},
)
pytest_collect_file = (_pages + _docstrings).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Put the addresses of the tests' servers into an example."""
    if not isinstance(item, SybilItem) or not isinstance(item.example.parsed, str):
        return
    namespace = item.example.namespace
    if "_without_server" in namespace:
        pytest.skip(namespace["_without_server"])
    text = item.example.parsed
    for address, fixture in ADDRESSES:
        if address not in text:
            continue
        try:
            url: str = item._request.getfixturevalue(fixture)
        except pytest.skip.Exception as skipped:
            namespace["_without_server"] = str(skipped)
            raise
        text = text.replace(address, _as_written(address, url))
    if text != item.example.parsed:
        lexeme = item.example.parsed
        item.example.parsed = type(lexeme)(text, lexeme.offset, lexeme.line_offset)


def _as_written(address: str, url: str) -> str:
    """Return a server's address in the form in which the example has it."""
    parts = urlsplit(url)
    if address.startswith("("):
        return repr((parts.hostname, parts.port))
    if address.startswith("redis://"):
        return f"redis://{parts.netloc}"
    return urlunsplit(parts._replace(scheme=urlsplit(address).scheme))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Keep the examples of a page in the order in which they are read, whatever order the other tests are given."""
    yield
    examples = [item for item in items if isinstance(item, SybilItem)]
    items[:] = [item for item in items if not isinstance(item, SybilItem)]
    items += sorted(examples, key=lambda item: (item.path, item.example.line))
