"""What a store's own connections do about a claim whose answer was lost."""

from __future__ import annotations

import pytest

from idempo import Key, StoreError
from idempo.stores._sql_connections import refuse_late


def test_a_claim_is_not_sent_again_when_its_lease_may_be_over() -> None:
    """Behaviours 21, 34: it would be another claim, which could take over what came between."""
    key = Key("connections", "order-42")
    claim = (key, "an owner", None, 0.5, 60.0, True)
    refuse_late(claim, 0.4)
    with pytest.raises(StoreError, match="the answer") as caught:
        refuse_late(claim, 0.5)
    assert caught.value.key == key
    refuse_late((key, "an owner", 0.5, 60.0), 1.0)  # a renewal is the same however late
