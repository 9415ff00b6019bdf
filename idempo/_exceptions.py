"""Exceptions taken apart and put together again, without calling their classes.

An exception class may take any arguments at all, so calling it again with ``args`` is a guess that is often wrong and
runs user code. What every exception has is a built-in class underneath: that one is built, as the user's class, and
given the attributes that the original had.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, TypeAlias

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, not compiled into the interpreter

# Kept by nobody: what an AttributeError or NameError was about is any live object, and pickle leaves it behind too.
_NOT_KEPT: Final = frozenset({"obj"})

Members: TypeAlias = dict[str, Any]
_UNSET: Final = object()


def name_of(cls: type) -> str:
    """Return the name under which an exception class is written down."""
    return f"{cls.__module__}:{cls.__qualname__}"


def find(name: str, declared: tuple[type[BaseException], ...]) -> type[BaseException] | None:
    """Return the declared class, or loaded subclass of one, that has this name; nothing is imported.

    Of several with one name a declared one comes first, then the youngest: a decorator that replaces a class (as attrs
    does for slots) leaves the first one behind for a while.
    """
    for cls in declared:
        if name_of(cls) == name:
            return cls
    found = None
    seen: set[type] = set(declared)
    queue = list(declared)
    while queue:
        for cls in queue.pop().__subclasses__():
            if cls not in seen:
                seen.add(cls)
                queue.append(cls)
                if name_of(cls) == name:
                    found = cls
    return found


def take_apart(error: BaseException) -> tuple[tuple[Any, ...], Members]:
    """Return the arguments of an exception and those attributes that its arguments alone do not give.

    Raises:
        Exception: Whatever the built-in class says when the exception cannot be rebuilt.
    """
    cls = type(error)
    bare = _build(cls, error.args)
    members = {
        name: value
        for name, descriptor in _members(cls)
        if (value := _get(descriptor, error)) is not _UNSET and not _same(value, _get(descriptor, bare))
    }
    members.update(vars(error))
    if not _equal(error, put_together(cls, error.args, members)):
        raise ValueError(f"{cls.__qualname__} cannot be rebuilt with the attributes that it has")
    return error.args, members


def put_together(cls: type[BaseException], args: tuple[Any, ...], members: Members) -> BaseException:
    """Return an exception of the class with these arguments and attributes; no code of the class runs.

    Raises:
        Exception: Whatever the built-in class says when arguments or attributes do not fit it.
    """
    error = _build(cls, args)
    descriptors = dict(_members(cls))
    for name, value in members.items():
        descriptor = descriptors.get(name)
        if descriptor is None:
            vars(error)[name] = value
        else:
            descriptor.__set__(error, value)
    return error


def _build(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    base: Any = cls
    while base.__flags__ & _HEAP_TYPE:
        base = base.__base__  # the one whose layout the instances have; the next in the MRO may have another
    error: BaseException = base.__new__(cls, *args)
    base.__init__(error, *args)
    error.args = args
    return error


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that are kept outside ``__dict__``: of built-in exceptions, and slots."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner in (BaseException, object):
            continue
        for name, descriptor in vars(owner).items():
            is_stored = isinstance(descriptor, MemberDescriptorType | GetSetDescriptorType)
            if is_stored and name not in seen and name not in _NOT_KEPT and not name.startswith("__"):
                seen.add(name)
                yield name, descriptor


def _get(descriptor: Any, error: BaseException) -> Any:
    try:
        return descriptor.__get__(error, type(error))
    except (AttributeError, TypeError):  # an empty slot; a UnicodeError whose arguments were never set
        return _UNSET


def _same(one: Any, other: Any) -> bool:
    # By identity and, for the small values that built-in exceptions compute from their arguments, by equality; never by
    # the __eq__ of a class that is not built in.
    return one is other or (type(one) is type(other) and type(one) in (int, str, bytes, tuple) and one == other)


def _equal(one: BaseException, other: BaseException) -> bool:
    return (
        one.args is other.args
        and vars(one).keys() == vars(other).keys()
        and all(_same(_get(member, one), _get(member, other)) for _, member in _members(type(one)))
    )
