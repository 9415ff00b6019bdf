"""Seals: outcomes in a store that others can write to, or read.

A seal is bound to the key and the fingerprint: a sealed outcome that somebody copies to another key is refused there.
Which one is needed depends on what the others may do: `Signed` when they may read but not forge, `Encrypted` when they
may not read either.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable
from typing import Any, Final

from idempo._secrets import checked_secrets, several
from idempo.errors import RecordError

_SIGNED: Final = b"S1"
_ENCRYPTED: Final = b"E1"
_DIGEST: Final = 32
_NONCE: Final = 12
_TAG: Final = 16
_KEY_SIZES: Final = (16, 24, 32)


class Signed:
    """Signs outcomes with HMAC-SHA-256 (RFC 2104), of the standard library: nothing to install.

    Others can read what is stored; what they change or make up is a `RecordError`. Signed bytes may hold a pickle.

    Args:
        secrets: One secret, or several: the first signs, all are accepted. To replace one, put the new one first and
            take the old one away once ``ttl`` has passed. Text counts as its UTF-8 bytes; at least 16 bytes each. Make
            one with ``python -c "import secrets; print(secrets.token_urlsafe(32))"``.

    Raises:
        TypeError: A secret is neither str nor bytes.
        ValueError: There is none, or one is too short.
    """

    __slots__ = ("_secrets",)

    def __init__(self, secrets: str | bytes | Iterable[str | bytes]) -> None:
        self._secrets = checked_secrets(secrets)

    def __repr__(self) -> str:
        return f"Signed(<{len(self._secrets)} secrets>)"

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """Return the data behind its signature."""
        return _SIGNED + _signature(self._secrets[0], data, context) + data

    def open(self, data: bytes, *, context: bytes) -> bytes:
        """Return what was signed.

        Raises:
            RecordError: No secret of ours signed it for this key and fingerprint, or it was altered.
        """
        if not data.startswith(_SIGNED) or len(data) < len(_SIGNED) + _DIGEST:
            raise RecordError("the outcome was not signed by idempo, or is cut short")
        signature = data[len(_SIGNED) : len(_SIGNED) + _DIGEST]
        body = data[len(_SIGNED) + _DIGEST :]
        for secret in self._secrets:
            if hmac.compare_digest(signature, _signature(secret, body, context)):
                return body
        raise RecordError(
            "the outcome's signature does not fit: it was altered, moved from another key, or signed with a secret that"
            " is not among these"
        )


class Encrypted:
    """Encrypts outcomes with AES-GCM (NIST SP 800-38D), which also finds any change. Needs ``idempo[encryption]``.

    Others learn the size of what is stored and no more. Keys, fingerprints and times of a record are not hidden; give a
    `Fingerprinter` a secret where payloads can be guessed.

    Args:
        keys: One key, or several, of 16, 24 or 32 random bytes each: the first writes, all read. To replace one, put
            the new one first and take the old one away once ``ttl`` has passed. Make one with
            ``python -c "import secrets; print(secrets.token_hex(32))"`` and read it with ``bytes.fromhex``. With random
            nonces, one key is good for 2**32 outcomes (SP 800-38D, 8.3): replace it before.

    Raises:
        ImportError: The package cryptography is not installed.
        TypeError: A key is not bytes.
        ValueError: There is none, or one is of another length.
    """

    __slots__ = ("_ciphers", "_invalid")

    def __init__(self, keys: bytes | Iterable[bytes]) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ImportError("Encrypted needs the package cryptography: pip install cryptography") from error
        if isinstance(keys, str):
            raise TypeError("a key must be bytes, not str: a password is no key; make one with secrets.token_bytes(32)")
        self._ciphers: list[Any] = []
        for key in several(keys, "key"):
            if len(key) not in _KEY_SIZES:
                raise ValueError(
                    f"a key must be 16, 24 or 32 random bytes, not {len(key)}; make one with secrets.token_bytes(32)"
                )
            self._ciphers.append(AESGCM(key))
        self._invalid = InvalidTag

    def __repr__(self) -> str:
        return f"Encrypted(<{len(self._ciphers)} keys>)"

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """Return the data encrypted, behind a new random nonce."""
        nonce = os.urandom(_NONCE)
        return _ENCRYPTED + nonce + bytes(self._ciphers[0].encrypt(nonce, data, _ENCRYPTED + context))

    def open(self, data: bytes, *, context: bytes) -> bytes:
        """Return what was encrypted.

        Raises:
            RecordError: No key of ours encrypted it for this key and fingerprint, or it was altered.
        """
        if not data.startswith(_ENCRYPTED) or len(data) < len(_ENCRYPTED) + _NONCE + _TAG:
            raise RecordError("the outcome was not encrypted by idempo, or is cut short")
        nonce = data[len(_ENCRYPTED) : len(_ENCRYPTED) + _NONCE]
        for cipher in self._ciphers:
            try:
                return bytes(cipher.decrypt(nonce, data[len(_ENCRYPTED) + _NONCE :], _ENCRYPTED + context))
            except self._invalid:
                continue
        raise RecordError(
            "the outcome cannot be decrypted: it was altered, moved from another key, or encrypted with a key that is"
            " not among these"
        )


def _signature(secret: bytes, data: bytes, context: bytes) -> bytes:
    # The length keeps context and data apart: no other pair of them gives the same text.
    return hmac.digest(secret, _SIGNED + len(context).to_bytes(8, "big") + context + data, "sha256")
