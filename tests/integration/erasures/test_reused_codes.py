"""Codes of a CLOSED book that another book has by now: what an erased user had of both ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing

import psycopg
from support.invariants import assert_adds_up
from support.person import erase
from support.service import Api, ServerThread, new_codes, settings_for, unique
from support.traces import traces_in

from coupon_service.store import finishing


def test_assignments_in_both_books_are_revoked(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    user, names = unique("user"), new_codes(2)
    with new_database() as database_url:
        list(finishing.finish(database_url))
        with (
            ServerThread(settings_for(database_url, redis_url)) as server,
            closing(Api(server.address)) as api,
        ):
            before = api.book(business_id="ours", codes=names).book_id
            for code in names:
                api.assign(code, user)
            redeemed = api.redeem(names[1], user).redemption.redemption_id
            api.close_book(before)
            after = api.book(business_id="ours", codes=names).book_id
            assert api.get_code(names[0]).book_id == after
            api.assign(names[0], user)
            erase(api, user)
            assert api.event_names(code=names[0]).count("REVOKED") == 2
            assert traces_in(database_url, redis_url, [user]) == []
            api.rollback(redeemed)
        with psycopg.connect(database_url) as connection:
            assert_adds_up(connection)
