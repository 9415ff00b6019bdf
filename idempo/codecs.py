"""Codecs: results as bytes and back, equal and of the same types."""

from __future__ import annotations

from typing import Any, Final

from idempo.errors import CodecError


class PickleCodec:
    """Pickle: keeps whatever pickle keeps. For stores whose bytes nobody else can write.

    Unpickling runs whatever the bytes say, so a store that other processes can write to takes this codec only behind a
    seal. The memory store's bytes never leave the process; there it is the default.
    """

    tag: Final = b"pickle"
    safe_in_shared_store: Final = False

    __slots__ = ("_dumps", "_loads", "_protocol")

    def __init__(self) -> None:
        import pickle  # noqa: PLC0415  # not needed before a guard is made

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
