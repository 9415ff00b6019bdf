"""Responses as outcomes: the bytes that a store keeps."""

from __future__ import annotations

import struct
from typing import Any, Final

import attrs

from idempo.errors import CodecError
from idempo.http.requests import Response

_HEAD: Final = struct.Struct("!HH")  # the status, and how many headers there are
_LENGTH: Final = struct.Struct("!I")


@attrs.frozen
class TooLarge:
    """Stands for a response that is too large to be kept: it becomes a lost outcome."""

    limit: int


class ResponseCodec:
    """Writes responses.

    The status and the number of headers (2 bytes each), each name and value behind its length (4 bytes), and the body.
    Numbers are big-endian, text is Latin-1.
    """

    tag: Final = b"http response 1"

    def encode(self, value: Any) -> bytes:
        """Return the bytes of a response.

        Raises:
            CodecError: It is none, or one that is too large.
        """
        if type(value) is not Response:
            if type(value) is TooLarge:
                raise CodecError(f"the response is larger than {value.limit} bytes (max_response)")
            raise CodecError(f"a {type(value).__qualname__} is no Response")
        parts = [_HEAD.pack(value.status, len(value.headers))]
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
        try:
            status, count = _HEAD.unpack_from(data)
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
