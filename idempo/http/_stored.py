"""Responses as outcomes: the bytes that a store keeps."""

from __future__ import annotations

import struct
from typing import Any, Final

import attrs

from idempo import JsonCodec
from idempo.errors import CodecError
from idempo.http.requests import Response

_HEAD: Final = struct.Struct("!BHH")  # zero, which no JSON begins with; the status, and how many headers there are
_LENGTH: Final = struct.Struct("!I")


@attrs.frozen
class TooLarge:
    """Stands for a response that is too large to be kept: it becomes a lost outcome."""

    limit: int


class ResponseCodec:
    """Writes responses; and what a declared error of the handler carries, by `JsonCodec`.

    A response is a zero byte, the status and the number of headers (2 bytes each), each name and value behind its
    length (4 bytes), and the body. Numbers are big-endian, text is Latin-1.
    """

    tag: Final = b"http response 1"

    def __init__(self) -> None:
        self._other = JsonCodec()

    def encode(self, value: Any) -> bytes:
        """Return the bytes of a response.

        Raises:
            CodecError: It is one that is too large, or no response and nothing that JsonCodec keeps.
        """
        if type(value) is not Response:
            if type(value) is TooLarge:
                raise CodecError(f"the response is larger than {value.limit} bytes (max_response)")
            return self._other.encode(value)
        parts = [_HEAD.pack(0, value.status, len(value.headers))]
        for pair in value.headers:
            for text in pair:
                encoded = text.encode("latin-1")
                parts += (_LENGTH.pack(len(encoded)), encoded)
        parts.append(value.body)
        return b"".join(parts)

    def decode(self, data: bytes) -> Any:
        """Return the response.

        Raises:
            CodecError: The bytes are none of a response.
        """
        if data[:1] != b"\0":
            return self._other.decode(data)
        try:
            _, status, count = _HEAD.unpack_from(data)
            at = _HEAD.size
            texts: list[str] = []
            for _ in range(2 * count):
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size
                texts.append(data[at : at + length].decode("latin-1"))
                at += length
        except struct.error as error:
            raise CodecError("the stored response is cut short") from error
        if at > len(data):
            raise CodecError("the stored response is cut short")
        return Response(status, tuple(zip(texts[::2], texts[1::2], strict=True)), data[at:])
