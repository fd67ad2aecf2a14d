"""A transaction that is rolled back leaves its connection as good as new."""

from __future__ import annotations

from contextlib import closing

import psycopg
from grpc import StatusCode
from service import Api, ServerThread, books, refused, settings_for
from steps import tried, until


def test_whoever_comes_after_a_lock_timeout_on_the_same_connection_is_served(
    database_url: str, redis_url: str
) -> None:
    settings = settings_for(
        database_url,
        redis_url,
        pool_min_size=1,
        pool_max_size=1,
        pool_timeout_ms=10_000,
        sweep_interval_ms=3_600_000,
        batches_in_flight=1,
        lock_timeout_ms=50,
        transaction_attempts_max=1,
    )
    with ServerThread(settings) as server, closing(Api(server.address)) as api:
        until(lambda: tried(api.draft) == "OK")
        code = api.code(limits=books.BookLimits(max_redemptions_per_code=0))
        api.redeem(code, "ann")
        api.get_code(code)
        with closing(psycopg.connect(database_url)) as holder:
            holder.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])
            with refused("CONTENTION", StatusCode.ABORTED):
                api.redeem(code, "bob")
        api.redeem(code, "cid")
        assert api.get_code(code).redemption_count == 2
