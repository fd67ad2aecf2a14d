"""A shard whose server is down fails its own businesses only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from support.calls import batch, item, outcomes_of
from support.service import Api, ServerThread, books, new_codes, refused, settings_for
from support.shards import business_in, make_shards
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres

OF = 2


@dataclass
class Shop:
    """A service with a shard on each of two servers."""

    api: Api
    server: ServerThread
    servers: list[EmbeddedPostgres]
    stack: ExitStack

    def reaches(self, shard: int) -> bool:
        """Whether the service says that it can use the shard."""
        labels = {"shard": f"coupon_{shard:02}"}
        return self.server.registry.get_sample_value("coupon_shard_reaches", labels) == 1

    @property
    def is_serving(self) -> bool:
        """What its health says."""
        with grpc.insecure_channel(self.server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest())
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def shop(server_folder: Path, redis_server_url: str) -> Iterator[Shop]:
    folder = server_folder / f"shards-{uuid4().hex}"
    with ExitStack() as stack:
        servers = [EmbeddedPostgres(folder / str(it), durable=False) for it in range(OF)]
        urls = [stack.enter_context(it).url for it in servers]
        make_shards(*urls, of=OF)
        settings = settings_for(
            urls[0],
            redis_server_url,
            shards=OF,
            shard_urls=SecretStr(",".join(urls)),
            default_business="",
            pool_timeout_ms=300,
        )
        running = stack.enter_context(ServerThread(settings))
        api = Api(running.address)
        stack.callback(api.close)
        yield Shop(api, running, servers, stack)


def test_the_businesses_of_the_other_shard_go_on(shop: Shop) -> None:
    api, businesses = shop.api, [business_in(it, OF) for it in range(OF)]
    names = new_codes(40)
    for shard, business_id in enumerate(businesses):
        api.book(codes=names[shard::OF], business_id=business_id)
    until(lambda: shop.reaches(0) and shop.reaches(1))
    assert shop.is_serving

    shop.servers[1].__exit__(None, None, None)
    for code in names[0:20:OF]:
        api.redeem(code, "ann", business_id=businesses[0])
    with refused("DATABASE_UNAVAILABLE"):
        api.redeem(names[1], "ann", business_id=businesses[1])
    with refused("DATABASE_UNAVAILABLE"):
        api.books.ListCouponBooks(books.ListCouponBooksRequest())
    of_one = books.ListCouponBooksRequest(business_id=businesses[0])
    assert len(api.books.ListCouponBooks(of_one).coupon_books) == 1
    items = [item(names[20 + it], "ann", business_id=businesses[it % OF]) for it in range(4)]
    assert outcomes_of(batch(api, items)) == ["OK", "DATABASE_UNAVAILABLE"] * 2
    with refused("DATABASE_UNAVAILABLE"):
        batch(api, items[1::2])
    until(lambda: not shop.reaches(1))
    assert shop.reaches(0)
    assert shop.is_serving

    shop.servers[1].__enter__()
    shop.stack.callback(shop.servers[1].__exit__, None, None, None)
    until(lambda: shop.reaches(1))
    until(lambda: redeems(api, names[1], businesses[1]))


def redeems(api: Api, code: str, business_id: str) -> bool:
    try:
        api.redeem(code, "ann", business_id=business_id, request_id="again")
    except grpc.RpcError:
        return False
    return True


def test_a_service_whose_shards_are_all_down_does_not_serve(shop: Shop) -> None:
    until(lambda: shop.is_serving)
    for server in shop.servers:
        server.__exit__(None, None, None)
    until(lambda: not shop.is_serving)
    for server in shop.servers:
        server.__enter__()
    until(lambda: shop.is_serving)
