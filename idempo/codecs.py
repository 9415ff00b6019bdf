"""Codecs: results as bytes and back, equal and of the same types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from idempo.errors import CodecError

if TYPE_CHECKING:
    from idempo._json_classes import Kept


class PickleCodec:
    """Pickle: keeps whatever pickle keeps. For stores whose bytes nobody else can write.

    Unpickling runs whatever the bytes say, so a store that other processes can write to takes this codec only behind a
    seal. The memory store's bytes never leave the process; there it is the default.
    """

    tag: Final = b"pickle"
    safe_in_shared_store: Final = False

    __slots__ = ("_dumps", "_loads", "_protocol")

    def __init__(self) -> None:
        import pickle  # not needed before a guard is made

        self._dumps = pickle.dumps
        self._loads = pickle.loads
        self._protocol = pickle.HIGHEST_PROTOCOL

    def __repr__(self) -> str:
        return "PickleCodec()"

    def encode(self, value: Any) -> bytes:
        """Return the value pickled.

        Raises:
            CodecError: The value, or something inside it, cannot be pickled.
        """
        try:
            return self._dumps(value, self._protocol)
        except Exception as error:  # classes pickle themselves, with code of their own
            raise CodecError(
                f"a {type(value).__qualname__} cannot be pickled ({type(error).__name__}); return plain data, or give"
                " codec= one that knows the class"
            ) from error

    def decode(self, data: bytes) -> Any:
        """Return the value that was pickled.

        Raises:
            CodecError: The bytes are no pickle, or their classes cannot be found or rebuilt.
        """
        try:
            return self._loads(data)
        except Exception as error:
            raise CodecError(f"the bytes cannot be unpickled ({type(error).__name__})") from error


class JsonCodec:
    """Plain JSON that keeps types: what comes back is equal to what was given, and of the same types throughout.

    Kept are None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, Decimal,
    Fraction, UUID, datetime, date, time and timedelta, and the classes that it was told of: attrs classes,
    dataclasses, namedtuples and Enums. Anything else, a subclass of one of these included, is refused and never turned
    into something like it. Decoding imports nothing and calls no class: instances get their fields back as they were
    stored, without ``__init__``, ``__post_init__`` or converters.

    Args:
        types: Classes to keep, with the classes of their fields. A guarded function's return annotation adds to them.

    Raises:
        TypeError: A class is none that can be kept, or a field of one is annotated with something that cannot.

    >>> from idempo import JsonCodec
    >>> codec = JsonCodec()
    >>> codec.encode({"paid": (1, 2)})
    b'{"paid":{"$tuple":[1,2]}}'
    >>> codec.decode(b'{"paid":{"$tuple":[1,2]}}')
    {'paid': (1, 2)}
    """

    tag: Final = b"json"

    __slots__ = ("_decode", "_encode", "_kept", "_names", "types")

    def __init__(self, *, types: Iterable[type] = ()) -> None:
        from idempo import _json_values  # only here: decimal and zoneinfo are slow to import

        self._encode: Callable[..., bytes] = _json_values.encode
        self.types = _with_fields(types)
        self._kept, self._names, known = _tables(self.types)
        self._decode: Callable[[bytes], Any] = _json_values.decoder(known)

    def __repr__(self) -> str:
        names = ", ".join(cls.__qualname__ for cls in self.types)
        return f"JsonCodec(types=[{names}])" if names else "JsonCodec()"

    def encode(self, value: Any) -> bytes:
        """Return the value as JSON text in UTF-8.

        Raises:
            CodecError: Something in the value cannot be kept; the text names its class and the path to it.
        """
        return self._encode(value, self._kept, self._names)

    def decode(self, data: bytes) -> Any:
        """Return the value that was encoded.

        Raises:
            CodecError: The bytes are not of this codec, or name a class that it was not told of.
        """
        return self._decode(data)

    def for_return_type(self, annotation: Any) -> JsonCodec:
        """Return a codec that also keeps the classes in a return annotation, nested fields included.

        Args:
            annotation: What ``return_annotation`` gives for the function.

        Raises:
            TypeError: A value of that annotation cannot be kept; the text says which class, and where it was found.
        """
        from idempo import _return_types  # needed at decoration only

        found = _return_types.classes_in(annotation, self.types)
        return self if set(found) <= set(self.types) else JsonCodec(types=[*self.types, *found])


def return_annotation(function: Callable[..., Any]) -> Any:
    """Return a function's return annotation for `JsonCodec.for_return_type`, with its names resolved where possible."""
    from idempo import _return_types  # needed at decoration only

    return _return_types.return_annotation(function)


def _with_fields(types: Iterable[type]) -> tuple[type, ...]:
    """Return the classes and those of their fields, each once."""
    given = tuple(types)
    if not given:
        return ()
    from idempo import _json_classes, _return_types  # needed at decoration only

    for cls in given:
        if _json_classes.kind_of(cls) is None:
            raise TypeError(
                f"types= takes attrs classes, dataclasses, namedtuples and Enums, on no built-in base, not {cls!r}"
            )
    found: dict[type, None] = dict.fromkeys(given)
    for cls in given:
        found.update(dict.fromkeys(_return_types.classes_in(cls, given, where="types=")))
    return tuple(found)


def _tables(types: tuple[type, ...]) -> tuple[dict[type, Kept], dict[type, str], dict[str, Kept]]:
    """Return how each class is kept, the name that it is written under, and the names that are read.

    A class goes by its qualified name alone, so that it can move to another module while records live, unless two share
    it. The longer name is always read.
    """
    if not types:
        return {}, {}, {}
    from idempo import _json_classes  # needed at decoration only

    kept: dict[type, Kept] = {}
    names: dict[type, str] = {}
    known: dict[str, Kept] = {}
    short = [cls.__qualname__ for cls in types]
    for cls in types:
        kind: Any = _json_classes.kind_of(cls)
        kept[cls] = kind(cls)
        full = f"{cls.__module__}:{cls.__qualname__}"
        if full in known:
            raise TypeError(f"two classes are called {full}; a record could not say which one it holds")
        known[full] = kept[cls]
        names[cls] = full
        if short.count(cls.__qualname__) == 1:
            known[cls.__qualname__] = kept[cls]
            names[cls] = cls.__qualname__
    return kept, names, known
