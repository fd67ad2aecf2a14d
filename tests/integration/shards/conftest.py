"""Clients of the server with four shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.service import Api, ServerThread


@pytest.fixture(params=[0, 1], ids=["call", "stream"])
def shop(request: pytest.FixtureRequest, sharded: ServerThread) -> Iterator[Api]:
    """A client, by calls and by operations of a stream."""
    client = Api(sharded.address, streamed=request.param)
    yield client
    client.close()
