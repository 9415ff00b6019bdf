"""Makes any operation safe to repeat: duplicates get the first outcome instead of a second effect."""

from idempo.codecs import JsonCodec, PickleCodec
from idempo.decorator import idempotent
from idempo.errors import (
    CodecError,
    ExpiredTokenError,
    FingerprintError,
    FingerprintMismatchError,
    IdempotencyError,
    InDoubtError,
    InProgressError,
    InvalidKeyError,
    InvalidTokenError,
    LeaseLostError,
    RecordError,
    ReentrantCallError,
    ResultLostError,
    ResultNotStoredError,
    StoreError,
    StoreFullError,
    TokenError,
    UsedTokenError,
    WrongPurposeError,
)
from idempo.fingerprint import Fingerprinter, fingerprint
from idempo.guard import Idempotency
from idempo.guarded import AsyncGuarded, Guarded
from idempo.keys import ALL_ARGUMENTS
from idempo.operation import Operation, current_operation
from idempo.policy import RERUN, UNKNOWN, Policy, Resolved
from idempo.protocols import AsyncStore, Codec, Observer, Seal, Store
from idempo.records import Claim, Event, EventKind, Key, Record, State, Stats
from idempo.stores.memory import MemoryStore

__all__ = [
    "ALL_ARGUMENTS",
    "RERUN",
    "UNKNOWN",
    "AsyncGuarded",
    "AsyncStore",
    "Claim",
    "Codec",
    "CodecError",
    "Event",
    "EventKind",
    "ExpiredTokenError",
    "FingerprintError",
    "FingerprintMismatchError",
    "Fingerprinter",
    "Guarded",
    "Idempotency",
    "IdempotencyError",
    "InDoubtError",
    "InProgressError",
    "InvalidKeyError",
    "InvalidTokenError",
    "JsonCodec",
    "Key",
    "LeaseLostError",
    "MemoryStore",
    "Observer",
    "Operation",
    "PickleCodec",
    "Policy",
    "Record",
    "RecordError",
    "ReentrantCallError",
    "Resolved",
    "ResultLostError",
    "ResultNotStoredError",
    "Seal",
    "State",
    "Stats",
    "Store",
    "StoreError",
    "StoreFullError",
    "TokenError",
    "UsedTokenError",
    "WrongPurposeError",
    "current_operation",
    "fingerprint",
    "idempotent",
]
