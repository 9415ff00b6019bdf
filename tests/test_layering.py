"""The floors of the house: who may import whom, read from the source of every module of the package.

A module imports from floors below its own. On its own floor it may use the parts of its own room: private modules, and
the other modules of its own package where the package is one room (``testing``, ``demo``). Never in a circle. What
stands under ``if TYPE_CHECKING`` does not run and is not counted; an import inside a function is.
"""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import idempo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(idempo.__file__).parent

# Floor by floor from the ground up.
# A fraction is a step of the stairs within a floor: it may use the steps below it.
HOUSE: tuple[tuple[float, str], ...] = (
    (0, "errors _time _fork _exceptions _showing _owners _secrets"),
    (1, "records"),
    (1.5, "policy guarded"),
    (2, "protocols fingerprint envelope codecs seals"),
    (2, "_canonical _canonical_types _json_classes _json_values _return_types"),
    (3, "decisions stores.memory stores.sqlite stores.cas _checks"),
    (3, "stores.redis"),  # on the user's own client: it imports no library for it
    (3, "stores.cached"),
    (3, "stores.sqlalchemy"),
    (3.4, "stores._opening"),  # makes clients and stores from URLs
    (3, "stores._*"),  # each the private part of one store, or shared by some
    (3.2, "stores.memcached stores.nats"),  # built on stores.cas
    (3.5, "stores"),  # what picks a store by its URL
    (4, "keys _key_text _call_source telling outcomes"),
    (4.2, "terms"),
    (4.4, "flights"),
    (4.6, "operation renewal"),
    (4.7, "hub"),
    (4.8, "answers loops _open_calls"),
    (4.9, "upkeep joined"),
    (5, "driver_sync driver_async"),
    (5.1, "driver_joined driver_joined_async"),
    (5.2, "choosing"),
    (5.5, "blocks wrapping _methods"),
    (5.8, "guard_requests"),
    (6, "guard"),
    (7, "decorator"),
    (7.5, ""),  # the package itself: the door through which users, and the floor above, come in
    (8, "testing.* demo.*"),
    (8, "tokens http.client http.requests"),
    (8, "messages messages._*"),
    (8.1, "http.header http._stored"),
    (8.2, "http.problems"),
    (8.3, "http.core"),
    (8.4, "http._responding"),
    (8.5, "http.asgi http.wsgi http.routes"),
    (8.6, "__main__ http"),
)

# Beside the standard library. Everyone may use the core; each other library stays in the rooms that need it.
CORE = {"attrs", "attr", "cachetools"}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "cryptography": ("idempo.seals",),
    "greenlet": ("idempo.stores._opening",),
    "http_sf": ("idempo.http.header",),
    "hypothesis": ("idempo.testing.*",),
    "itsdangerous": ("idempo.tokens",),
    "nats": ("idempo.stores._nats_*",),
    "asyncmy": ("idempo.stores._sql_engines",),
    "psycopg": ("idempo.stores._sql_psycopg",),
    "pymysql": ("idempo.stores._sql_drivers",),
    "pymemcache": ("idempo.stores.memcached", "idempo.stores._opening"),
    "pytest": ("idempo.testing.*",),
    "redis": ("idempo.stores._opening",),
    "sqlalchemy": ("idempo.stores.sqlalchemy", "idempo.stores._sql_*", "idempo.stores._opening"),
}

ONE_ROOM = ("idempo.testing", "idempo.demo")
DRIVERS = (
    {"idempo.driver_sync", "idempo.driver_joined"},
    {"idempo.driver_async", "idempo.driver_joined_async"},
)


def read_package(root: Path) -> dict[str, str]:
    """Return the source of each module under the root, by its dotted name."""
    sources = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def floor_of(module: str) -> float | None:
    """Return a module's floor, or None where nobody gave it one."""
    for floor, names in HOUSE:
        for name in names.split(" "):  # "" is the package itself
            if _matches(module, f"idempo.{name}" if name else "idempo"):
                return floor
    return None


def imports_of(module: str, source: str, modules: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import that can run: ``from a import b`` is ``a.b`` where that is a module."""
    is_package = any(other.startswith(f"{module}.") for other in modules)
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                pending.extend(node.orelse)
                continue
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                base = _absolute(module, name, level, is_package=is_package)
                for alias in names:
                    within = f"{base}.{alias.name}"
                    yield node.lineno, within if within in modules else base
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name
        pending.extend(ast.iter_child_nodes(node))


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a package, one line per fault."""
    found = []
    beside: dict[str, set[str]] = {}
    for module, source in sources.items():
        if floor_of(module) is None:
            found.append(f"{module} has no floor: give it one in HOUSE")
            continue
        for line, target in imports_of(module, source, sources):
            fault = _fault(module, target)
            if fault:
                found.append(f"{module}:{line} imports {target}: {fault}")
            elif floor_of(module) == floor_of(target):
                beside.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(beside).prepare()
    except CycleError as error:
        found.append(f"imports in a circle: {' -> '.join(error.args[1])}")
    return found


def _fault(module: str, target: str) -> str | None:
    top = target.partition(".")[0]
    if top != "idempo":
        if top in sys.stdlib_module_names or top in CORE:
            return None
        rooms = OPTIONAL.get(top, ())
        return None if any(_matches(module, room) for room in rooms) else "not a library for this room"
    here, there = floor_of(module), floor_of(target)
    if there is None:
        return "no such module, or one without a floor"
    if any(module in one and target in other for one, other in permutations(DRIVERS)):
        return "the two drivers never import each other"
    if _room(target) == "idempo.testing" and _room(module) != "idempo.testing":
        return "nothing imports the test kit"
    assert here is not None
    if there < here:
        return None
    private = target.rpartition(".")[2].startswith("_") and not target.endswith("__main__")
    if there == here and (private or _room(module) == _room(target)):
        return None
    return f"floor {there:g} is not below floor {here:g}"


def _room(module: str) -> str:
    return next((room for room in ONE_ROOM if _matches(module, f"{room}.*")), module)


def _matches(module: str, pattern: str) -> bool:
    return fnmatchcase(module, pattern) or (pattern.endswith(".*") and module == pattern.removesuffix(".*"))


def _absolute(module: str, name: str | None, level: int, *, is_package: bool) -> str:
    if not level:
        assert name
        return name
    parts = module.split(".")
    base = parts[: len(parts) - level + is_package]
    return ".".join([*base, *([name] if name else [])])


def test_every_module_imports_only_from_floors_below() -> None:
    """The package stands as the architecture page draws it."""
    assert faults(read_package(PACKAGE)) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("idempo.errors", "from idempo.records import Key", "floor 1 is not below floor 0"),
        ("idempo.errors", "import idempo.records", "floor 1 is not below floor 0"),
        ("idempo.errors", "from .records import Key", "floor 1 is not below floor 0"),
        ("idempo.errors", "from . import records", "floor 1 is not below floor 0"),
        ("idempo.errors", "from idempo import records", "floor 1 is not below floor 0"),
        ("idempo.stores.memory", "from ..guard import Idempotency", "floor 6 is not below floor 3"),
        ("idempo.stores", "from .memory import MemoryStore", None),
        ("idempo.records", "from idempo.policy import Policy", "floor 1.5 is not below floor 1"),
        ("idempo.stores.sqlite", "from idempo.stores.memory import MemoryStore", "floor 3 is not below floor 3"),
        ("idempo.stores.sqlite", "from idempo.stores._sqlite_table import Table", None),
        ("idempo.errors", "def f():\n    from idempo.guard import Idempotency", "floor 6 is not below floor 0"),
        ("idempo.errors", "import importlib\nimportlib.import_module('idempo.guard')", "floor 6 is not below floor 0"),
        ("idempo.errors", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import idempo.guard", None),
        ("idempo.errors", "import typing\nif typing.TYPE_CHECKING:\n    import idempo.guard", None),
        (
            "idempo.errors",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import idempo.guard",
            "floor 6 is not below floor 0",
        ),
        ("idempo.driver_async", "from idempo.driver_sync import run", "the two drivers never import each other"),
        ("idempo.driver_sync", "import idempo.driver_async", "the two drivers never import each other"),
        ("idempo.driver_joined", "import idempo.driver_async", "the two drivers never import each other"),
        ("idempo.guard", "import idempo.driver_async, idempo.driver_sync", None),
        ("idempo.demo.run", "from idempo.testing import FakeClock", "nothing imports the test kit"),
        ("idempo.guard", "import idempo.testing.clock", "nothing imports the test kit"),
        ("idempo.testing.clock", "from idempo.testing import contract", None),
        ("idempo.testing.clock", "from idempo import Idempotency", None),
        ("idempo.guard", "from idempo import Idempotency", "floor 7.5 is not below floor 6"),
        ("idempo.guard", "import cryptography.fernet", "not a library for this room"),
        ("idempo.guard", "def f():\n    import hypothesis", "not a library for this room"),
        ("idempo.guard", "import redis", "not a library for this room"),
        ("idempo.seals", "from cryptography.hazmat import primitives", None),
        ("idempo.testing.machine", "import hypothesis.stateful, pytest", None),
        ("idempo.guard", "import asyncio, attrs, cachetools", None),
        ("idempo.cupboard", "", "idempo.cupboard has no floor"),
        ("idempo.guard", "import idempo.cupboard", "no such module, or one without a floor"),
    ],
)
def test_the_check_sees(module: str, source: str, fault: str | None) -> None:
    """Each rule can fail, on made-up sources, and what is allowed passes."""
    package = dict.fromkeys(("idempo", "idempo.records", "idempo.stores", "idempo.stores.memory", "idempo.testing"), "")
    package |= dict.fromkeys(("idempo.testing.contract", "idempo.guard"), "")
    found = faults(package | {module: source})
    if fault is None:
        assert found == []
    else:
        assert len(found) == 1
        assert fault in found[0]


def test_the_check_sees_a_circle() -> None:
    """Private parts of one floor may use each other, but not in a circle."""
    table, connections = "idempo.stores._sqlite_table", "idempo.stores._sqlite_connections"
    circle = {"idempo.stores": "", table: f"import {connections}", connections: f"import {table}"}
    assert [fault.partition(":")[0] for fault in faults(circle)] == ["imports in a circle"]


def test_the_house_has_no_empty_rooms() -> None:
    """Every room that is named stands: a module that was renamed takes its floor with it."""
    modules = read_package(PACKAGE)
    for _, names in HOUSE:
        for name in names.split():
            assert any(_matches(module, f"idempo.{name}") for module in modules), f"no module idempo.{name}"
