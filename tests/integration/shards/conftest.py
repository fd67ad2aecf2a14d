"""A server with four shards in one database, each as a role that has no rights on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from pydantic import SecretStr
from support.service import Api, ServerThread, settings_for
from support.shards import business_in, make_shards, shard_roles

OF = 4


@pytest.fixture(scope="module")
def sharded_database(
    new_empty_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """A database with the shards, for who owns them."""
    with new_empty_database() as url:
        make_shards(url, of=OF)
        yield url


@pytest.fixture(scope="module")
def sharded(sharded_database: str, redis_server_url: str) -> Iterator[ServerThread]:
    """The server."""
    with shard_roles(sharded_database, of=OF) as urls:
        settings = settings_for(
            sharded_database,
            redis_server_url,
            shards=OF,
            shard_urls=SecretStr(urls),
            default_business="",
        )
        with ServerThread(settings, owner_url=sharded_database) as running:
            yield running


@pytest.fixture(params=[0, 1], ids=["call", "stream"])
def shop(request: pytest.FixtureRequest, sharded: ServerThread) -> Iterator[Api]:
    """A client, by calls and by operations of a stream."""
    client = Api(sharded.address, streamed=request.param)
    yield client
    client.close()


@pytest.fixture
def businesses() -> list[str]:
    """A business in each shard, in order."""
    return [business_in(shard, OF) for shard in range(OF)]
