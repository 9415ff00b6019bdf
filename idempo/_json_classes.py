"""The classes that a JSON codec was told of: how their instances are taken apart and rebuilt without calling them.

What is kept is what the instance *stores* (its slots and its ``__dict__``), field by field, and it is put back where it
was. So nothing that a class does when it is made happens again on a replay: no ``__init__``, no ``__post_init__``, no
converter, validator or hook, and a frozen class is no obstacle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from types import MemberDescriptorType
from typing import Any, Final

import attrs

_UNSET: Final = object()
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, not compiled into the interpreter

# Where attrs keeps the hash of an instance (``cache_hash=True``). Its place must be there, and empty: a hash of text is
# another one in every process.
_ATTRS_HASH: Final = "_attrs_cached_hash"

Encode = Callable[[Any], Any]


class Refused(Exception):  # noqa: N818  # never leaves the codec
    """A value cannot be kept. The path to it grows on the way out, innermost part first."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.path: list[str] = []

    def at(self, part: str) -> Refused:
        """Add the part of the path that leads to where this was raised."""
        self.path.append(part)
        return self


def is_namedtuple(cls: type) -> bool:
    """Say whether a class is a namedtuple, however it was made."""
    fields = getattr(cls, "_fields", None)
    return (
        issubclass(cls, tuple)
        and cls is not tuple
        and isinstance(fields, tuple)
        and all(isinstance(name, str) for name in fields)
    )


def kind_of(cls: Any) -> type[Kept] | None:
    """Return how instances of a class can be kept, or None where they cannot, or it is no class."""
    if not isinstance(cls, type):
        return None
    if issubclass(cls, enum.Enum):
        return KeptFlag if issubclass(cls, enum.Flag) else KeptEnum
    if is_namedtuple(cls):
        return KeptNamedtuple
    base: type = cls
    while base.__flags__ & _HEAP_TYPE and base.__base__ is not None:
        base = base.__base__
    # Over any base but object, an instance holds more than its fields, such as the items of a dict.
    if base is object and (attrs.has(cls) or dataclasses.is_dataclass(cls)):
        return KeptFields
    return None


class Kept:
    """One class, and how its instances become JSON and come back.

    Attributes:
        cls: The class.
        field_names: The names of its fields, in order.
    """

    __slots__ = ("cls", "field_names")

    tag = "$object"

    def __init__(self, cls: type, field_names: tuple[str, ...] = ()) -> None:
        self.cls = cls
        self.field_names = field_names

    def take_apart(self, value: Any, encode: Encode) -> Any:
        """Return what is stored of an instance, as plain JSON."""
        raise NotImplementedError  # pragma: no cover  # each kind has its own

    def put_together(self, state: Any) -> Any:
        """Return an instance with that state, whose values are decoded already."""
        raise NotImplementedError  # pragma: no cover  # each kind has its own


class KeptEnum(Kept):
    """An Enum: a member by its name."""

    __slots__ = ()

    tag = "$enum"

    def __init__(self, cls: type) -> None:
        super().__init__(cls)

    def take_apart(self, value: Any, encode: Encode) -> Any:  # noqa: ARG002  # a name is plain
        """Return the name of a member."""
        name = value._name_
        if self.cls.__dict__["_member_map_"].get(name) is not value:
            raise Refused(f"{self.cls.__qualname__} has a member that it does not list")
        return name

    def put_together(self, state: Any) -> Any:
        """Return the member of that name."""
        return self.cls.__dict__["_member_map_"][state]


class KeptFlag(Kept):
    """A Flag: a member, or several together, by value."""

    __slots__ = ()

    tag = "$flag"

    def __init__(self, cls: type) -> None:
        super().__init__(cls)

    def take_apart(self, value: Any, encode: Encode) -> Any:
        """Return the value of a flag."""
        bits = value._value_
        if type(bits) is not int or self.cls(bits) is not value:
            raise Refused(f"{self.cls.__qualname__} has a value that does not lead back to it")
        return encode(bits)

    def put_together(self, state: Any) -> Any:
        """Return the flag of that value."""
        if type(state) is not int:
            raise ValueError("a flag's value is an int")
        return self.cls(state)


class KeptNamedtuple(Kept):
    """A namedtuple: its items by name."""

    __slots__ = ("_defaults",)

    tag = "$namedtuple"

    def __init__(self, cls: Any) -> None:
        super().__init__(cls, cls._fields)
        self._defaults: dict[str, Any] = getattr(cls, "_field_defaults", {})

    def take_apart(self, value: Any, encode: Encode) -> Any:
        """Return the items by name."""
        if tuple.__len__(value) != len(self.field_names):
            raise Refused(f"a {self.cls.__qualname__} does not have as many items as fields")
        if getattr(value, "__dict__", None):
            raise Refused(f"a {self.cls.__qualname__} has attributes beside its items, which would be lost")
        return _encoded(zip(self.field_names, tuple.__iter__(value), strict=True), encode)

    def put_together(self, state: Any) -> Any:
        """Return the tuple of those items; one that the record does not know takes its default."""
        _check_names(state, self.field_names)
        items = [state[name] if name in state else self._defaults[name] for name in self.field_names]
        return tuple.__new__(self.cls, items)


class KeptFields(Kept):
    """An attrs class or a dataclass: its fields by name."""

    __slots__ = ("_cached", "_defaults", "_has_dict", "_hash_in_dict", "_slots")

    def __init__(self, cls: type) -> None:
        defaults = _fields(cls)
        super().__init__(cls, tuple(defaults))
        self._slots: dict[str, Any] = {}
        # What can be computed again is left behind: cached properties, however they are stored.
        self._cached = {_ATTRS_HASH}
        for owner in reversed(cls.__mro__):
            # Where attrs makes the slots, it makes one for each cached property too, behind a __getattr__ of its own.
            by_attrs = "__attrs_attrs__" in vars(owner) and "__getattr__" in vars(owner)
            for name, item in vars(owner).items():
                if isinstance(item, MemberDescriptorType):
                    self._slots[name] = item
                if isinstance(item, functools.cached_property) or (
                    by_attrs and isinstance(item, MemberDescriptorType) and name not in defaults
                ):
                    self._cached.add(name)
        self._has_dict = bool(cls.__dictoffset__)
        # A plain dataclass finds a default on its class; the others store it in the instance.
        self._defaults = {
            name: default
            for name, default in defaults.items()
            if default is not _UNSET and (name in self._slots or attrs.has(cls))
        }
        code = getattr(cls.__hash__, "__code__", None)
        self._hash_in_dict = code is not None and _ATTRS_HASH in code.co_names and _ATTRS_HASH not in self._slots

    def _stored(self, value: Any) -> Iterator[tuple[str, Any]]:
        if self._has_dict:
            yield from value.__dict__.items()
        for name, slot in self._slots.items():
            with contextlib.suppress(AttributeError):  # an empty slot
                yield name, slot.__get__(value, self.cls)

    def take_apart(self, value: Any, encode: Encode) -> Any:
        """Return the fields that are set, by name."""
        stored = {name: item for name, item in self._stored(value) if name not in self._cached}
        for name in stored:
            if name not in self.field_names:
                raise Refused(f"a {self.cls.__qualname__} has the attribute {name!r}, which is no field of its class")
        for name in self._defaults:
            if name not in stored:
                raise Refused(
                    f"a {self.cls.__qualname__} has no {name!r}, and would have its default when it came back"
                )
        return _encoded(stored.items(), encode)

    def put_together(self, state: Any) -> Any:
        """Return an instance with those fields; one that the record does not know takes its default."""
        _check_names(state, self.field_names)
        value: Any = object.__new__(self.cls)
        for name in self.field_names:
            item = state.get(name, self._defaults.get(name, _UNSET))
            if item is _UNSET:
                continue
            slot = self._slots.get(name)
            if slot is None:
                value.__dict__[name] = item
            else:
                slot.__set__(value, item)
        if _ATTRS_HASH in self._slots:
            self._slots[_ATTRS_HASH].__set__(value, None)
        elif self._hash_in_dict:
            value.__dict__[_ATTRS_HASH] = None
        return value


def _encoded(items: Any, encode: Encode) -> dict[str, Any]:
    result = {}
    name = ""
    try:
        for name, item in items:
            result[name] = encode(item)
    except Refused as refused:
        raise refused.at(f".{name}") from None
    return result


def _check_names(state: Any, known: tuple[str, ...]) -> None:
    if type(state) is not dict or not state.keys() <= set(known):
        raise ValueError("the record has fields that the class does not have")


def _fields(cls: Any) -> dict[str, Any]:
    """Return the fields of a class, each with its default where that is a plain value."""
    if attrs.has(cls):
        return {
            field.name: _UNSET
            if field.default is attrs.NOTHING or hasattr(field.default, "takes_self")
            else field.default
            for field in attrs.fields(cls)
        }
    return {
        field.name: _UNSET if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(cls)
    }
