"""The canonical text of a value: what a fingerprint is a digest of.

The text is JSON without spaces and with sorted keys, as far as JSON goes. Every other type is written as ``!``, a tag,
and JSON: ``!set[1,2]``, ``!uuid"…"``. No JSON value begins with an exclamation mark, so nothing that a user puts into a
dict or a str can pass for a tag. `docs/fingerprints.md` is the specification.

`Walk` writes any value. `json_text` writes the values that JSON knows, faster, and must write the same.
"""

from __future__ import annotations

import json.encoder
import marshal
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from idempo._canonical_types import LATE_WRITERS, NoFormError, class_text, float_text, int_text, string_text

Hook: TypeAlias = Callable[[Any], Any]
Writer: TypeAlias = Callable[["Walk", Any], str]

MAX_DEPTH: Final = 100
"""How deeply lists, tuples, dicts, sets and instances of classes may be nested in a payload."""

SCALAR_WRITERS: Final[Mapping[type, Callable[[Any], str]]] = MappingProxyType(
    {
        str: string_text,
        int: int_text,
        bool: {False: "false", True: "true"}.__getitem__,
        type(None): {None: "null"}.__getitem__,
        float: float_text,
    }
)
"""From exact types to the function that writes one value of it, as `Fingerprinter.text` would without hooks."""

JSON_TYPES: Final = frozenset({*SCALAR_WRITERS, list, tuple, dict})
"""The exact types that `json_text` writes."""


class Walk:
    """Writes one value, going into whatever it holds. Made for one value, and of no use after an error.

    Args:
        hooks: From classes to the function that gives what to write in place of an instance.
    """

    __slots__ = ("_active", "_hooks")

    def __init__(self, hooks: Mapping[type, Hook]) -> None:
        self._hooks = hooks
        self._active: set[int] = set()

    def write(self, value: Any) -> str:
        """Return the text of a value.

        Raises:
            NoFormError: There is none.
        """
        cls = type(value)
        if self._hooks:
            hook = self._hook_for(cls)
            if hook is not None:
                return self._write_hooked(value, cls, hook)
        return self._write_unhooked(value, cls)

    def _write_unhooked(self, value: Any, cls: type) -> str:
        scalar = SCALAR_WRITERS.get(cls)
        if scalar is not None:
            return scalar(value)
        writer = _writer_for(cls)
        if writer is None:
            raise NoFormError(
                f"a {cls.__qualname__} has no canonical form: leave it out of the payload, "
                "or give its class __idempo_payload__() or a hook"
            )
        return writer(self, value)

    def _hook_for(self, cls: type) -> Hook | None:
        # A hook for object is the last resort: it must not take what has a form of its own.
        for base in cls.__mro__[:-1]:
            if base in self._hooks:
                return self._hooks[base]
        if cls in SCALAR_WRITERS or _writer_for(cls) is not None:
            return None
        return self._hooks.get(object)

    def _write_hooked(self, value: Any, cls: type, hook: Hook) -> str:
        payload = _ask(hook, value, "<hook>")
        if payload is value:
            return class_text(cls, self._write_unhooked(value, cls))
        self._enter(value)
        try:
            # A hook for float that rounds gives a float: asking it again would never end.
            same = type(payload) is cls
            text = self._write_unhooked(payload, cls) if same else self.write(payload)
        except NoFormError as error:
            error.segments.append("<hook>")
            raise
        self._leave(value)
        return class_text(cls, text)

    def write_payload(self, value: Any) -> str:
        """Return the text of an instance whose class says itself what to write."""
        cls = type(value)
        payload = _ask(cls.__idempo_payload__, value, ".__idempo_payload__()")
        self._enter(value)
        try:
            text = self.write(payload)
        except NoFormError as error:
            error.segments.append(".__idempo_payload__()")
            raise
        self._leave(value)
        return class_text(cls, text)

    def write_fields(self, value: Any, names: Iterable[str]) -> str:
        """Return the text of an instance that is its attributes of these names."""
        self._enter(value)
        parts = []
        for name in sorted(names):
            try:
                try:
                    field = getattr(value, name)
                except AttributeError:
                    raise NoFormError("the attribute was never set") from None
                parts.append(f"{string_text(name)}:{self.write(field)}")
            except NoFormError as error:
                error.segments.append("." + name)
                raise
        self._leave(value)
        return class_text(type(value), f"{{{','.join(parts)}}}")

    def write_sequence(self, value: list[Any] | tuple[Any, ...]) -> str:
        """Return the text of a list or a tuple, whatever a subclass makes of iterating over it."""
        base: Any = list if isinstance(value, list) else tuple
        self._enter(value)
        parts: list[str] = []
        try:
            for item in base.__iter__(value):
                parts.append(self.write(item))  # noqa: PERF401  # an error's path needs to know how far it came
        except NoFormError as error:
            error.segments.append(f"[{len(parts)}]")
            raise
        self._leave(value)
        return f"[{','.join(parts)}]"

    def write_set(self, value: set[Any] | frozenset[Any]) -> str:
        """Return the text of a set: its members' texts, sorted."""
        base: Any = set if isinstance(value, set) else frozenset
        self._enter(value)
        try:
            parts = sorted(map(self.write, base.__iter__(value)))
        except NoFormError as error:
            error.segments.append("<member>")
            raise
        self._leave(value)
        return f"!set[{','.join(parts)}]"

    def write_dict(self, value: dict[Any, Any]) -> str:
        """Return the text of a dict: a JSON object where all keys are strings, else a sorted list of pairs."""
        self._enter(value)
        items = list(dict.items(value))
        if all(self._is_string(key) for key, _ in items):
            members = sorted((str.__str__(key), self._write_member(key, member)) for key, member in items)
            text = f"{{{','.join([f'{string_text(key)}:{member}' for key, member in members])}}}"
        else:
            pairs = sorted(f"[{self._write_key(key)},{self._write_member(key, member)}]" for key, member in items)
            text = f"!map[{','.join(pairs)}]"
        self._leave(value)
        return text

    def _is_string(self, key: Any) -> bool:
        cls: type = type(key)
        if cls is not str and _writer_for(cls) is not _write_string:
            return False
        return not self._hooks or self._hook_for(cls) is None

    def _write_key(self, key: Any) -> str:
        try:
            return self.write(key)
        except NoFormError as error:
            error.segments.append("<key>")
            raise

    def _write_member(self, key: Any, member: Any) -> str:
        try:
            return self.write(member)
        except NoFormError as error:
            error.segments.append(self._segment(key))
            raise

    def _segment(self, key: Any) -> str:
        if self._is_string(key) and key.isidentifier() and len(key) <= _MAX_SEGMENT:
            return f".{str.__str__(key)}"
        text = self.write(key)
        return f"[{text if len(text) <= _MAX_SEGMENT else text[:_MAX_SEGMENT] + '…'}]"

    def _enter(self, value: object) -> None:
        if id(value) in self._active:
            raise NoFormError(f"a {type(value).__qualname__} that contains itself has no canonical form")
        if len(self._active) >= MAX_DEPTH:
            raise NoFormError(f"the nesting is deeper than {MAX_DEPTH}")
        self._active.add(id(value))

    def _leave(self, value: object) -> None:
        self._active.discard(id(value))


_MAX_SEGMENT: Final = 60  # of a path in an error's text, in characters


def _ask(function: Hook, value: Any, name: str) -> Any:
    try:
        return function(value)
    except RecursionError:
        raise
    except Exception as error:
        raise NoFormError(f"it raised {type(error).__name__}", name) from error


def _write_string(_walk: Walk, value: str) -> str:
    return string_text(value)


def _write_enum(_walk: Walk, member: Any) -> str:
    import enum

    # A Flag's combinations have names that some versions of Python spell differently, and zero has none.
    if isinstance(member, enum.Flag):
        return class_text(type(member), int_text(member.value))
    return class_text(type(member), string_text(member.name))


def _write_named_tuple(walk: Walk, value: Any) -> str:
    return walk.write_fields(value, type(value)._fields)


def _write_attrs(walk: Walk, value: Any) -> str:
    # What two instances are not compared by is no part of what they are: caches, locks, clocks.
    return walk.write_fields(value, [field.name for field in type(value).__attrs_attrs__ if field.eq])


def _write_dataclass(walk: Walk, value: Any) -> str:
    import dataclasses

    return walk.write_fields(value, [field.name for field in dataclasses.fields(value) if field.compare])


_BASE_WRITERS: Final[Mapping[type, Writer]] = {
    str: _write_string,
    int: lambda _walk, value: int_text(value),
    float: lambda _walk, value: float_text(value),
    bytes: lambda _walk, value: f'!bytes"{bytes.hex(value)}"',
    bytearray: lambda _walk, value: f'!bytes"{bytearray.hex(value)}"',
    list: Walk.write_sequence,
    tuple: Walk.write_sequence,
    dict: Walk.write_dict,
    set: Walk.write_set,
    frozenset: Walk.write_set,
}


def _structure_writer(cls: type) -> Writer | None:
    """Return how to write a class that is made of fields."""
    if issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        return _write_named_tuple
    structure: Writer | None = None
    if hasattr(cls, "__attrs_attrs__"):
        structure = _write_attrs
    elif hasattr(cls, "__dataclass_fields__"):
        structure = _write_dataclass
    if structure is not None and _base_writer(cls) is not None:
        return _refuse_hybrid
    return structure


def _refuse_hybrid(_walk: Walk, value: Any) -> str:
    raise NoFormError(
        f"a {type(value).__qualname__} has fields, but also the value of a built-in type: "
        "give its class __idempo_payload__() or a hook"
    )


def _base_writer(cls: type) -> Writer | None:
    """Return how to write a class that is, or derives from, one of those with a form of their own."""
    for base in cls.__mro__:
        writer = _BASE_WRITERS.get(base)
        if writer is not None:
            return writer
    # Whoever has a Decimal has imported its module; whoever has none is spared the import.
    for module, name, late in LATE_WRITERS:
        late_base = getattr(sys.modules.get(module), name, None)
        if late_base is not None and issubclass(cls, late_base):
            return lambda _walk, value: late(value)
    return None


@lru_cache(maxsize=1024)
def _writer_for(cls: type) -> Writer | None:
    """Return how to write instances of a class, None where they have no canonical form."""
    if hasattr(cls, "__idempo_payload__"):
        return Walk.write_payload
    enum = sys.modules.get("enum")
    if enum is not None and issubclass(cls, enum.Enum):
        return _write_enum
    return _structure_writer(cls) or _base_writer(cls)


# The C encoder writes {1: x} as {"1": x}, but it also sorts the keys, which raises TypeError where some are str and
# some are not. So only a first key needs to be looked at: in marshal's format, the type code after an opening brace.
# A str that happens to hold these characters costs the slower walk, and nothing else.
_FIRST_KEY_IS_NO_STR: Final = re.compile(rb"\{[NTFilg]").search

_MAKE_ENCODER: Final[Any] = getattr(json.encoder, "c_make_encoder", None)
_ENCODE: Final = _MAKE_ENCODER and _MAKE_ENCODER(None, None, string_text, None, ":", ",", True, False, True)


# How deeply the C encoder may go on the C stack, of which 10,000 levels take 2 MB. From Python 3.12 on it sees to that
# by itself; before, only the recursion limit stops it, and some programs raise that beyond all bounds.
_SAFE_RECURSION_LIMIT: Final = 10_000 if sys.version_info < (3, 12) else sys.maxsize


def json_text(value: Any) -> str | None:
    """Return the text of a value made of exact JSON types alone, or None: it is not, or cannot be told quickly."""
    if sys.getrecursionlimit() > _SAFE_RECURSION_LIMIT:
        return None
    try:
        # In this order: the encoder refuses sets, and on nested ones marshal's time doubles with every level.
        text = "".join(_ENCODE(value, 0))
        # marshal refuses whatever is no exact built-in; its version 2 has no back references.
        if _FIRST_KEY_IS_NO_STR(marshal.dumps(value, 2)):
            return None
        if len(text) > 2 * MAX_DEPTH and _is_deep(text, value):
            return None
    except Exception:  # noqa: BLE001  # a dict's subclass may do anything when it is asked for its items
        return None
    return text


_ALL_BUT_QUOTES_AND_BRACKETS: Final = bytes(set(range(256)) - set(b'"[]{}'))
_ONE_KIND_OF_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
_CONTAINERS: Final = frozenset({dict, list, tuple})


def _is_deep(text: str, value: Any) -> bool:
    """Tell whether a value is nested more deeply than is allowed: from its JSON text where that can be told quickly."""
    if "\\" in text:  # quotes may stand inside of strings
        return _has_deep_parts(value)
    data = text.encode("latin-1", "replace")  # the quickest; what it replaces is neither bracket nor quote
    brackets = data.translate(_ONE_KIND_OF_BRACKET, _ALL_BUT_QUOTES_AND_BRACKETS).replace(b'""', b"")
    if b'"' in brackets:  # brackets do
        return _has_deep_parts(value)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _has_deep_parts(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in _CONTAINERS
        ]
    return bool(level)
