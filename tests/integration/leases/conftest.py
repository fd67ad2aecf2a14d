"""The tests of leases run on one server and on a cluster of three masters."""

from __future__ import annotations

import pytest
from support.redis_clients import flush


@pytest.fixture(params=["server", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """An empty Redis of this test alone."""
    url: str = request.getfixturevalue(f"redis_{request.param}_url")
    flush(url)
    return url
