"""Statements that are prepared on a connection: whatever happens on it, the next batch goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing

from service import Api, ServerThread, refused, settings_for, unique


def test_a_transaction_that_is_rolled_back_leaves_its_connection_as_good_as_it_was(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    with new_database() as database_url:
        settings = settings_for(
            database_url, redis_url, pool_min_size=1, pool_max_size=1, batches_in_flight=1
        )
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            book = api.book(codes=3)
            first, second, third = (
                event.code
                for event in [api.assign_random(book.book_id, u).assignment for u in "abc"]
            )
            api.redeem(first, "a")
            for _ in range(2):
                with refused("CONCURRENT_MODIFICATION"):
                    api.update(book.book_id, name=unique("name"), etag="7")
            api.redeem(second, "b")
            assert api.stats(book.book_id).redemption_count == 2
            api.redeem(third, "c")
