"""How keys are named and records read in Redis, and what a client's errors mean: shared by both stores, without I/O."""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from struct import Struct
from typing import Any, Final

from idempo._time import LONGEST
from idempo.errors import IdempotencyError, RecordError, StoreError, StoreFullError
from idempo.records import Claim, Key, Record, State

_MICROSECONDS: Final = 1_000_000
_LONGEST_PREFIX: Final = 100
_DIGEST: Final = 32  # hexadecimal digits: 128 bits

# Where things are in a record: see `idempo.stores._redis_scripts`.
_START: Final = 42
_FIXED: Final = Struct(">BIdddIIIII")  # from there to the texts
_HEAD: Final = _FIXED.unpack_from
_TEXTS: Final = _START + _FIXED.size
_CHECKSUM: Final = 4
_R, _C, _F = b"RCF"

_ASIDES: Final = re.compile(r", with args|\.? script: ")  # what follows are arguments of the call, and where it failed

# Reading a member off its class is a call into Python until 3.12.
_RUNNING: Final = State.RUNNING
_STATES: Final = {_R: State.RUNNING, _C: State.COMPLETED, _F: State.RELEASED}


class Names:
    """Gives each key its name in Redis: the prefix, and digests of namespace and value, so that any text will do.

    Args:
        prefix: What every name begins with.

    Raises:
        TypeError: The prefix is no text.
        ValueError: It is empty, too long, or holds what is not printable ASCII.
    """

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a text, not {type(prefix).__name__}")
        if not 0 < len(prefix) <= _LONGEST_PREFIX or not prefix.isascii() or not prefix.isprintable():
            raise ValueError(
                f"prefix must be 1 to {_LONGEST_PREFIX} printable ASCII characters, not {prefix[:_LONGEST_PREFIX]!r}"
            )
        self.prefix = prefix
        self._namespace = functools.lru_cache(maxsize=256)(self._of_namespace)
        # A call asks more than once, and so does one who comes again.
        self._name = functools.lru_cache(maxsize=1024)(self._of)

    def of(self, key: Key) -> bytes:
        """Return the name of a key's record, which is also that of the channel on which its changes are told."""
        return self._name(key.namespace, key.value)

    def pattern(self, namespace: str) -> bytes:
        """Return the glob pattern of the names of a namespace's records."""
        escaped = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self.prefix.encode())
        return escaped + self._namespace(namespace)[len(self.prefix) :] + b"?" * _DIGEST

    def _of(self, namespace: str, value: str) -> bytes:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return self._namespace(namespace) + digest[:_DIGEST].encode()

    def _of_namespace(self, namespace: str) -> bytes:
        digest = hashlib.sha256(namespace.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}{digest[:_DIGEST]}:".encode()


@functools.lru_cache(maxsize=64)  # a policy's few, sent with every call
def microseconds(seconds: float) -> bytes:
    """Return a duration as the scripts take it: whole microseconds, at most a hundred years."""
    return b"%d" % min(max(seconds, 0.0) * _MICROSECONDS, LONGEST * _MICROSECONDS)


def text(value: str) -> bytes:
    """Return an owner, a namespace or a value as bytes; any text has some."""
    return value.encode("utf-8", "surrogatepass")


def optional(value: bytes | None) -> bytes:
    """Return what may be absent so that nothing else is empty."""
    return b"" if value is None else b"=" + value


def overriding(take_over: bool | str) -> bytes:
    """Return whose record in doubt a claim may take."""
    if isinstance(take_over, str):
        return b"=" + text(take_over)
    return b"1" if take_over else b"0"


def sealed(outcome: bytes) -> bytes:
    """Return an outcome behind its checksum."""
    return zlib.crc32(outcome).to_bytes(_CHECKSUM) + outcome


def claim_of(answer: Any, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float) -> Claim:
    """Return what the claim script answered: the token of a new record, or how it went and the record as it stands."""
    if type(answer) is bytes:
        return Claim(True, Record(_RUNNING, fingerprint, 1, int(answer), owner, None, lease, lease + ttl), False)
    code, second, microsecond, blob = answer
    return Claim(code > 0, record_of(key, second, microsecond, blob), code == 2)


def record_of(key: Key, second: bytes, microsecond: bytes, blob: bytes) -> Record:
    """Return a record that a script has found in order.

    Args:
        key: Its key.
        second: The server's time.
        microsecond: What that is more.
        blob: The record.

    Raises:
        RecordError: Its outcome is damaged.
    """
    state, attempt, token, lease, expiry, lo, lf, _, _, lz = _HEAD(blob, _START)
    at = _TEXTS + lo
    outcome = None
    if state == _C:
        crc = len(blob) - lz
        outcome = blob[crc + _CHECKSUM :]
        if int.from_bytes(blob[crc : crc + _CHECKSUM]) != zlib.crc32(outcome):
            raise RecordError("the record cannot be read: its outcome is damaged", key=key)
    now = int(second) * _MICROSECONDS + int(microsecond)
    return Record(
        _STATES[state],
        blob[at + 1 : at + lf] if lf else None,
        attempt,
        int(token),
        blob[_TEXTS:at].decode("utf-8", "surrogatepass"),
        outcome,
        (lease - now) / _MICROSECONDS if state == _R else None,
        (expiry - now) / _MICROSECONDS,
    )


def key_of(blob: bytes) -> Key:
    """Return the key of a record that a script has found in order."""
    lo, lf, ln, lv, _ = _HEAD(blob, _START)[5:]
    at = _TEXTS + lo + lf
    namespace, value = blob[at : at + ln], blob[at + ln : at + ln + lv]
    return Key(namespace.decode("utf-8", "surrogatepass"), value.decode("utf-8", "surrogatepass"))


def translated(error: Exception, key: Key | None) -> IdempotencyError:
    """Return what a client raised as one of ours.

    Servers before 7.0 put an error of a script's into a sentence of their own, so it is looked for anywhere in it.
    """
    if isinstance(error, IdempotencyError):
        return error
    said = _ASIDES.split(str(error))[0]
    if "IDEMPO " in said:
        return RecordError(f"the record cannot be read: {said.rpartition('IDEMPO ')[2]}", key=key)
    if "WRONGTYPE" in said:
        return RecordError("the record cannot be read: it is not even a string", key=key)
    kind = type(error).__name__
    if "OOM " in said or kind == "OutOfMemoryError":
        return StoreFullError(f"the server has reached its maxmemory: {said}", key=key)
    return StoreError(f"the server did not do it: {kind}: {said}", key=key)


def is_unknown_script(error: Exception) -> bool:
    """Say whether the server does not have the script that it was to run."""
    # By name: which library the client is of is nothing that this module needs to know.
    return type(error).__name__ == "NoScriptError" or "NOSCRIPT" in str(error)
