"""Outcomes: the end of an operation as the bytes that a store keeps, and back.

One path each way: value → codec → envelope → seal → bytes. The body of a value or an error begins with its codec's tag,
so that bytes which another codec wrote are never given to this one.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from idempo import _exceptions
from idempo.envelope import Kind, pack, unpack
from idempo.errors import CodecError, RecordError
from idempo.protocols import Codec, Seal

_VALUE: Final = Kind.VALUE  # reading a member off its class is a call into Python until 3.12
_LOST: Final = Kind.LOST

_LONGEST_REASON: Final = 500
_LONGEST_TAG: Final = 255


def _prefix(codec: Codec) -> bytes:
    """Return what the bodies of a codec begin with: its ``tag``, or else the name of its class, behind a length."""
    tag = getattr(codec, "tag", None)
    if tag is None:
        tag = type(codec).__qualname__.encode()[-_LONGEST_TAG:]
    if not isinstance(tag, bytes) or not 0 < len(tag) <= _LONGEST_TAG:
        raise TypeError(f"the tag of a codec must be 1 to {_LONGEST_TAG} bytes, not {tag!r}")
    return bytes([len(tag)]) + tag


def _context(namespace: str, key_value: str, fingerprint: bytes | None) -> bytes:
    """Return key and fingerprint as bytes that no other key and fingerprint give: each part behind its length."""
    parts = [
        b"idempo outcome 1",
        namespace.encode("utf-8", "surrogatepass"),
        key_value.encode("utf-8", "surrogatepass"),
    ]
    if fingerprint is not None:
        parts.append(fingerprint)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _undecodable(error: Exception) -> RecordError:
    what = str(error) if isinstance(error, CodecError) else type(error).__name__
    return RecordError(f"the stored outcome cannot be decoded: {what}")


class Outcomes:
    """Writes and reads the outcomes of one guarded function.

    Every method takes the namespace and value of the key and the fingerprint *of the record*, to which a seal binds the
    outcome. Without a seal they are not looked at.

    Args:
        codec: Turns values into bytes.
        seal: Protects the envelope, if the store can be written by others.
        max_result: The largest encoded value or error, in bytes.
        largest: The largest outcome that the store takes, envelope and seal included, in bytes; None for any.
        replay_errors: The exception classes that, with their subclasses, may be read back.
    """

    __slots__ = (
        "_codec",
        "_decode",
        "_encode",
        "_errors",
        "_known",
        "_largest",
        "_max_result",
        "_prefix",
        "_seal",
        "_skip",
    )

    def __init__(
        self,
        codec: Codec,
        seal: Seal | None = None,
        *,
        max_result: int,
        largest: int | None = None,
        replay_errors: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._codec = codec
        self._encode = codec.encode
        self._decode = codec.decode
        self._prefix = _prefix(codec)
        self._skip = len(self._prefix)
        self._seal = seal
        self._max_result = max_result
        self._largest = sys.maxsize if largest is None else largest
        self._errors = replay_errors
        self._known: dict[str, type[BaseException]] = {}

    def encode_value(self, value: Any, namespace: str, key_value: str, fingerprint: bytes | None) -> bytes:
        """Return the outcome of an operation that returned.

        Raises:
            CodecError: The codec cannot keep the value, its bytes are more than ``max_result`` or than the store takes,
                or the seal fails.
        """
        try:
            encoded = self._encode(value)
            if not isinstance(encoded, bytes):
                raise self._no_bytes(encoded)
            if len(encoded) > self._max_result:
                raise self._too_large("result", encoded)
            packed = pack(_VALUE, self._prefix + encoded)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"a {type(value).__qualname__} cannot be encoded ({type(error).__name__})") from error
        if self._seal is not None:
            packed = self._sealed(packed, namespace, key_value, fingerprint)
        if len(packed) > self._largest:
            raise self._too_large_for_store(packed)
        return packed

    def encode_error(self, error: BaseException, namespace: str, key_value: str, fingerprint: bytes | None) -> bytes:
        """Return the outcome of an operation that raised a declared error: its class, arguments and attributes.

        Cause, context and traceback are not kept.

        Raises:
            CodecError: It is of no declared class, cannot be rebuilt equal, the codec cannot keep what it carries, or
                its bytes are more than ``max_result`` or than the store takes, or the seal fails.
        """
        cls = type(error)
        name = _exceptions.name_of(cls)
        if _exceptions.find(name, self._errors) is not cls:
            raise CodecError(f"{name} is no class of replay_errors, or shares its name with another class")
        try:
            encoded = self._encode(list(_exceptions.take_apart(error)))
            if not isinstance(encoded, bytes):
                raise self._no_bytes(encoded)
        except CodecError as refused:
            raise CodecError(f"what a {name} carries cannot be encoded: {refused}") from refused
        except Exception as reason:
            raise CodecError(f"a {name} cannot be encoded ({type(reason).__name__})") from reason
        if len(encoded) > self._max_result:
            raise self._too_large("error", encoded)
        self._known[name] = cls
        label = name.encode("utf-8", "surrogatepass")
        outcome = self._sealed(
            pack(Kind.ERROR, self._prefix + len(label).to_bytes(2, "big") + label + encoded),
            namespace,
            key_value,
            fingerprint,
        )
        if len(outcome) > self._largest:
            raise self._too_large_for_store(outcome)
        return outcome

    def encode_lost(self, reason: str, namespace: str, key_value: str, fingerprint: bytes | None) -> bytes:
        """Return the outcome of an operation that ran and whose end cannot be kept.

        Args:
            reason: Why, for people: names of classes and sizes, nothing of the result. Cut after 500 characters.
            namespace: Of the key.
            key_value: Of the key.
            fingerprint: Of the record.

        Raises:
            CodecError: The seal fails.
        """
        body = reason[:_LONGEST_REASON].encode("utf-8", "backslashreplace")
        return self._sealed(pack(Kind.LOST, body), namespace, key_value, fingerprint)

    def read(self, outcome: bytes, namespace: str, key_value: str, fingerprint: bytes | None) -> tuple[Kind, Any]:
        """Return what a stored outcome says.

        Returns:
            VALUE and the value, ERROR and a new exception, or LOST and the reason. An error whose class is declared no
            more, or cannot be rebuilt, is lost.

        Raises:
            RecordError: The outcome is damaged, was written by another codec, was not sealed for this key and
                fingerprint, or its codec cannot decode it.
        """
        if self._seal is not None:
            outcome = self._seal.open(outcome, context=_context(namespace, key_value, fingerprint))
        kind, body = unpack(outcome)
        if kind is _LOST:
            return kind, body.decode("utf-8", "replace")
        if not body.startswith(self._prefix):
            raise RecordError(self._foreign(body))
        encoded = body[self._skip :]
        if kind is not _VALUE:
            return self._read_error(encoded)
        try:
            return kind, self._decode(encoded)
        except Exception as error:
            raise _undecodable(error) from error

    def _read_error(self, body: bytes) -> tuple[Kind, Any]:
        length = int.from_bytes(body[:2], "big")
        name = body[2 : 2 + length].decode("utf-8", "surrogatepass")
        cls = self._known.get(name) or _exceptions.find(name, self._errors)
        if cls is None:
            return Kind.LOST, f"the operation raised {name}, which replay_errors does not declare here"
        self._known[name] = cls
        try:
            parts = self._decode(body[2 + length :])
        except Exception as error:
            raise _undecodable(error) from error
        try:
            args, members = parts
            return Kind.ERROR, _exceptions.put_together(cls, args, members)
        except Exception as reason:  # noqa: BLE001  # told in the outcome
            return Kind.LOST, f"the operation raised {name}, which cannot be rebuilt ({type(reason).__name__})"

    def _sealed(self, packed: bytes, namespace: str, key_value: str, fingerprint: bytes | None) -> bytes:
        if self._seal is None:
            return packed
        try:
            sealed: object = self._seal.seal(packed, context=_context(namespace, key_value, fingerprint))
        except Exception as error:
            raise CodecError(f"the outcome cannot be sealed ({type(error).__name__})") from error
        if not isinstance(sealed, bytes):
            raise CodecError(f"the seal made of the outcome a {type(sealed).__name__}, not bytes")
        return sealed

    def _no_bytes(self, encoded: object) -> CodecError:
        return CodecError(f"{type(self._codec).__qualname__} encoded it as a {type(encoded).__name__}, not bytes")

    def _too_large(self, what: str, encoded: bytes) -> CodecError:
        return CodecError(f"the {what} takes {len(encoded)} bytes, over the limit of {self._max_result} (max_result)")

    def _too_large_for_store(self, outcome: bytes) -> CodecError:
        return CodecError(f"the outcome takes {len(outcome)} bytes, and the store takes {self._largest} at most")

    def _foreign(self, body: bytes) -> str:
        tag = body[1 : 1 + body[0]] if body else b""
        return (
            f"the outcome was written by the codec {tag.decode('ascii', 'backslashreplace')!r}, and is not given to"
            f" {self._codec!r}; read it with the codec that wrote it"
        )
