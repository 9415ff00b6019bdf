"""Records, as who writes a store sees them."""

from typing import assert_type

from idempo import Claim, Key, Record, State

record = Record(
    state=State.RUNNING,
    fingerprint=None,
    attempt=1,
    token=1,
    owner="me",
    outcome=None,
    lease_left=15.0,
    expires_in=60.0,
)
assert_type(record.fingerprint, bytes | None)
assert_type(record.lease_left, float | None)
assert_type(Claim(True, record, False).record, Record)

Key("billing")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Key("billing", 42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
record.attempt = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
