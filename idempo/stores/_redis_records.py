"""How keys are named and records read in Redis, and what a client's errors mean: shared by both stores, without I/O."""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from typing import Any, Final

from idempo._time import LONGEST
from idempo.errors import IdempotencyError, RecordError, StoreError, StoreFullError
from idempo.records import Claim, Key, Record, State

_MICROSECONDS: Final = 1_000_000
_LONGEST_PREFIX: Final = 100
_DIGEST: Final = 32  # hexadecimal digits: 128 bits
_CHECKSUM: Final = 8

# Reading a member off its class is a call into Python until 3.12.
_RUNNING: Final = State.RUNNING
_COMPLETED: Final = State.COMPLETED
_STATES: Final = {b"R": _RUNNING, b"C": _COMPLETED, b"F": State.RELEASED}


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
        # Namespaces are few.
        self._namespace = functools.lru_cache(maxsize=256)(self._of_namespace)

    def of(self, key: Key) -> bytes:
        """Return the name of a key's record, which is also that of the channel on which its changes are told."""
        digest = hashlib.sha256(key.value.encode("utf-8", "surrogatepass")).hexdigest()
        return self._namespace(key.namespace) + digest[:_DIGEST].encode()

    def pattern(self, namespace: str) -> bytes:
        """Return the glob pattern of the names of a namespace's records."""
        escaped = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self.prefix.encode())
        return escaped + self._namespace(namespace)[len(self.prefix) :] + b"?" * _DIGEST

    def _of_namespace(self, namespace: str) -> bytes:
        digest = hashlib.sha256(namespace.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.prefix}{digest[:_DIGEST]}:".encode()


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
    return b"%08x" % zlib.crc32(outcome) + outcome


def claim_of(answer: Any, key: Key, owner: str, fingerprint: bytes | None, lease: float, ttl: float) -> Claim:
    """Return what the claim script answered: the token of a new record, or how it went and the record as it stands."""
    if type(answer) is bytes:
        return Claim(True, Record(_RUNNING, fingerprint, 1, int(answer), owner, None, lease, lease + ttl), False)
    code, now, blob = answer
    return Claim(code > 0, record_of(key, now, blob), code == 2)


def record_of(key: Key, now: bytes, blob: bytes) -> Record:
    """Return a record that a script has found in order.

    Raises:
        RecordError: Its outcome is damaged.
    """
    line, _, sections = blob.partition(b"\n")
    _, _, state, attempt, token, lease, expiry, lo, lf, ln, lv, _ = line.split(b" ")
    clock = int(now)
    owner = int(lo)
    names = owner + int(lf)
    fingerprint = None if names == owner else sections[owner + 1 : names]
    known = _STATES[state]
    outcome = None
    if known is _COMPLETED:
        start = names + int(ln) + int(lv)
        outcome = sections[start + _CHECKSUM :]
        if b"%08x" % zlib.crc32(outcome) != sections[start : start + _CHECKSUM]:
            raise RecordError("the record cannot be read: its outcome is damaged", key=key)
    return Record(
        known,
        fingerprint,
        int(attempt),
        int(token),
        sections[:owner].decode("utf-8", "surrogatepass"),
        outcome,
        (int(lease) - clock) / _MICROSECONDS if known is _RUNNING else None,
        (int(expiry) - clock) / _MICROSECONDS,
    )


def key_of(blob: bytes) -> Key:
    """Return the key of a record that a script has found in order."""
    line, _, sections = blob.partition(b"\n")
    lo, lf, ln, lv = (int(length) for length in line.split(b" ")[7:11])
    start, end = lo + lf, lo + lf + ln
    namespace, value = sections[start:end], sections[end : end + lv]
    return Key(namespace.decode("utf-8", "surrogatepass"), value.decode("utf-8", "surrogatepass"))


def translated(error: Exception, key: Key | None) -> IdempotencyError:
    """Return what a client raised as one of ours.

    Servers before 7.0 put an error of a script's into a sentence of their own, so it is looked for anywhere in it.
    """
    if isinstance(error, IdempotencyError):
        return error
    # What follows that are the arguments of the call.
    said = str(error).partition(", with args")[0]
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
