"""What the package exports, and what importing it may cost."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import attrs
import pytest

import idempo
import idempo.errors
import idempo.stores

REFERENCE = Path(__file__).parent.parent / "docs" / "api.md"
WITH_ALL = (
    "idempo",
    "idempo.stores",
    *(f"idempo.stores.{each.name}" for each in iter_modules(idempo.stores.__path__) if not each.name.startswith("_")),
    "idempo.http",
    "idempo.http.asgi",
    "idempo.http.wsgi",
    "idempo.messages",
    "idempo.testing",
    "idempo.tokens",
    "idempo.http.client",
)

PROBE = """
import sys
sys.path.insert(0, {root!r})
before = set(sys.modules)
import idempo
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names))
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "idempo"))
print(*sorted(name for name in {unwanted!r} if name in sys.modules))
"""
# Imported when first needed, and expensive or meant for somebody else.
UNWANTED = ("asyncio", "sqlite3", "decimal", "uuid", "pytest", "hypothesis", "cryptography", "itsdangerous")


def exported(module: ModuleType) -> set[str]:
    """Return the public names that a module really has, but the modules among them."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }


@pytest.mark.parametrize(
    ("module", "plain", "coroutines"),
    [
        ("redis", "RedisStore", "AsyncRedisStore"),
        ("sqlalchemy", "SqlAlchemyStore", "AsyncSqlAlchemyStore"),
        ("nats", "SyncNatsStore", "NatsStore"),
    ],
)
def test_stores_are_closed_by_the_same_names(module: str, plain: str, coroutines: str) -> None:
    """`close` and `with` for plain code, `aclose` and `async with` for coroutines, and neither has the other's."""
    found = import_module(f"idempo.stores.{module}")
    ours, theirs = {"close", "__enter__", "__exit__"}, {"aclose", "__aenter__", "__aexit__"}
    for name, has, has_not in ((plain, ours, theirs), (coroutines, theirs, ours)):
        names = set(dir(getattr(found, name)))
        assert has <= names, name
        assert not has_not & names, name


def test_all_of_the_package_is_what_is_really_exported() -> None:
    """`__all__` names each public name of `idempo` and no other, sorted so that a reader finds it."""
    assert set(idempo.__all__) == exported(idempo) - {"TYPE_CHECKING"}
    assert len(set(idempo.__all__)) == len(idempo.__all__)


@pytest.mark.parametrize("name", WITH_ALL)
def test_every_name_of_all_is_there(name: str) -> None:
    """What a public module lists can be imported from it."""
    module = import_module(name)
    for exported_name in module.__all__:
        assert getattr(module, exported_name) is not None, exported_name


@pytest.mark.parametrize("name", idempo.__all__)
def test_every_name_is_documented(name: str) -> None:
    """Each public class and function says what it is, and each name stands in the reference."""
    value = getattr(idempo, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__doc__, f"{name} has no docstring"
    in_errors = name in vars(idempo.errors)  # documented as a whole module
    assert in_errors or re.search(rf"^\.\. auto\w+:: idempo\.{name}(\(\))?$", REFERENCE.read_text(), re.MULTILINE), name


@pytest.mark.parametrize("name", idempo.__all__)
def test_every_class_and_constant_can_be_pickled_by_name(name: str) -> None:
    """Public classes, functions and constants keep their identity across processes."""
    value = getattr(idempo, name)
    if inspect.isclass(value) or inspect.isfunction(value) or name.isupper():
        assert pickle.loads(pickle.dumps(value)) is value


def test_no_signature_shows_an_object_that_nobody_can_write() -> None:
    """A default that stands for "not given" is shown as ``...``, not as ``<object object at 0x...>``."""
    for name in idempo.__all__:
        for member in vars(getattr(idempo, name)).values() if isinstance(getattr(idempo, name), type) else ():
            if inspect.isfunction(member):
                assert "<object" not in str(inspect.signature(member)), member
    assert "payload: 'Any' = ...," in str(inspect.signature(idempo.Idempotency.run))


def test_every_error_is_exported_and_has_one_root() -> None:
    """One `except IdempotencyError` catches whatever the library itself has to say."""
    errors = {name for name, value in vars(idempo.errors).items() if inspect.isclass(value) and name.endswith("Error")}
    errors = {name for name in errors if not name.startswith("_")}
    assert errors <= set(idempo.__all__)
    assert all(issubclass(getattr(idempo, name), idempo.IdempotencyError) for name in errors)


def test_records_are_frozen() -> None:
    """Nobody can change what a store answered or an observer was told."""
    key = idempo.Key("billing", "order-42")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        key.value = "order-43"


def test_importing_loads_the_core_dependencies_and_nothing_else() -> None:
    """`import idempo` loads attrs, cachetools and itself, and not asyncio, nor any optional library or store."""
    root = str(Path(idempo.__file__).parent.parent)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}
    probe = PROBE.format(root=root, unwanted=UNWANTED)
    command = [sys.executable, "-I", "-c", probe]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert answer.stderr == ""
    libraries, rooms, unwanted = answer.stdout.splitlines()
    assert set(libraries.split()) == {"attr", "attrs", "cachetools", "idempo"}
    assert not {"idempo.testing", "idempo.driver_async", "idempo.stores.sqlite", "idempo.demo"} & set(rooms.split())
    assert unwanted == ""


def test_the_probe_sees_what_is_loaded() -> None:
    """The check above can fail: it names a library and an unwanted module that an import brings in."""
    probe = PROBE.replace("import idempo\n", "import pytest, asyncio\n").format(root="", unwanted=UNWANTED)
    answer = subprocess.run([sys.executable, "-I", "-c", probe], capture_output=True, text=True, check=True)
    libraries, _, unwanted = answer.stdout.splitlines()
    assert "pytest" in libraries.split()
    assert {"asyncio", "pytest"} <= set(unwanted.split())
