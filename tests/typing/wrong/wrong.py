"""What each checker must find, or its silence about ``right/`` means nothing."""

from typing import assert_type

from idempo import Key

key = Key("billing", "order-42")
assert_type(key.value, str)
assert_type(key.value, int)  # MISTAKE: another type
print(key.nothing)  # MISTAKE: no such name
print(key.value)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # MISTAKE: no error here
