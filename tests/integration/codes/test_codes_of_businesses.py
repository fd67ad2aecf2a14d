"""Codes are unique within their business, once `migrate finish` has said so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from support.invariants import assert_adds_up
from support.service import (
    BUSINESS,
    Api,
    ServerThread,
    all_at_once,
    audit,
    books,
    codes,
    from_now,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.store import call
from support.token_clients import caller
from support.token_issuers import ASKED_FOR
from support.two_businesses import new_shop
from support.work_done import work_done

from coupon_service.model import EventType, Redeem, State, event_id
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import bucket_of_scope, scope_of_book, scope_of_business
from coupon_service.store import finishing
from coupon_service.store.commands.load import load
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.scopes import LoadMemory

NewDatabase = Callable[[], AbstractContextManager[str]]


def finished(database_url: str) -> None:
    list(finishing.finish(database_url))


@pytest.fixture(scope="module")
def server(new_database: NewDatabase, redis_server_url: str) -> Iterator[ServerThread]:
    unlimited = {"rate_limit_end_users": "none", "guess_limit_end_users": "none"}
    with new_database() as database_url:
        finished(database_url)
        settings = settings_for(
            database_url, redis_server_url, **ASKED_FOR, **unlimited, default_business=""
        )
        with ServerThread(settings) as running:
            yield running
            with psycopg.connect(database_url) as connection:
                assert_adds_up(connection)


@pytest.fixture(scope="module")
def root(server: ServerThread) -> Iterator[Api]:
    """A caller that sees every business."""
    with caller(server.address, "admin", sub="root") as api:
        yield api


@pytest.fixture(scope="module")
def ours(server: ServerThread) -> Iterator[Api]:
    with caller(server.address, "admin", sub="shop", business="ours") as api:
        api.book(business_id="ours")
        yield api


@pytest.fixture(scope="module")
def theirs(server: ServerThread) -> Iterator[Api]:
    """Of another business, and of the same name."""
    with caller(server.address, "admin", sub="shop", business="theirs") as api:
        api.book(business_id="theirs")
        yield api


def both(ours: Api, theirs: Api, **fields: Any) -> tuple[str, str, str]:
    """A code that both have, and the book of each."""
    (code,) = new_codes(1)
    made = [
        api.book(codes=[code], business_id=business, **fields).book_id
        for api, business in ((ours, "ours"), (theirs, "theirs"))
    ]
    return code, made[0], made[1]


LOCKABLE = {"lock_policy": books.LOCK_POLICY_OPTIONAL}


class TestTheSameCode:
    def test_a_new_book_carries_the_bucket_of_its_business(self, ours: Api) -> None:
        scope = scope_of_business("ours")
        book_id = UUID(ours.book(business_id="ours").book_id)
        assert scope_of_book(book_id) == scope
        assert book_id.bytes[1] == bucket_of_scope(scope)

    def test_each_finds_its_own(self, ours: Api, theirs: Api) -> None:
        code, our_book, their_book = both(ours, theirs)
        assert ours.get_code(code).book_id == our_book
        assert theirs.get_code(code).book_id == their_book
        assert ours.validate(code, "ann").book_id == our_book

    def test_each_redeems_and_rolls_back_its_own(self, ours: Api, theirs: Api) -> None:
        code, our_book, their_book = both(ours, theirs)
        mine = ours.redeem(code, "ann", order_id="1").redemption
        assert mine.book_id == our_book
        assert theirs.redeem(code, "ann", order_id="1").redemption.book_id == their_book
        ours.rollback(mine.redemption_id)
        assert ours.get_code(code).redemption_count == 0
        assert theirs.get_code(code).redemption_count == 1
        ours.redeem(code, "ann", order_id="1")

    def test_a_request_id_names_an_attempt_in_each(self, ours: Api, theirs: Api) -> None:
        code, *_ = both(ours, theirs)
        once, other = unique("request"), unique("request")
        for api in (ours, theirs):
            assert not api.redeem(code, "ann", request_id=once).replayed
            assert not api.disable(code, request_id=other).replayed
        for api in (ours, theirs):
            assert api.redeem(code, "ann", request_id=once).replayed
            assert api.disable(code, request_id=other).replayed
        with refused("REQUEST_ID_REUSED"):
            ours.redeem(code, "bob", request_id=once)

    def test_each_assigns_and_revokes_its_own(self, ours: Api, theirs: Api) -> None:
        code, our_book, their_book = both(ours, theirs)
        first = ours.assign(code, "ann", request_id="assign").assignment
        second = theirs.assign(code, "ann", request_id="assign").assignment
        assert (first.book_id, second.book_id) == (our_book, their_book)
        ours.revoke(code, "ann", request_id="revoke")
        assert ours.get_code(code).assignment_count == 0
        assert theirs.get_code(code).assignment_count == 1
        assert theirs.revoke(code, "ann", request_id="revoke").assignment.book_id == their_book

    def test_each_switches_its_own_off(self, ours: Api, theirs: Api) -> None:
        code, *_ = both(ours, theirs)
        ours.disable(code)
        with refused("CODE_DISABLED"):
            ours.redeem(code, "ann")
        theirs.redeem(code, "ann")

    def test_each_hands_out_its_own_at_random(self, ours: Api, theirs: Api) -> None:
        code, our_book, their_book = both(ours, theirs)
        assert ours.assign_random(our_book, "ann").assignment.code == code
        assert theirs.assign_random(their_book, "ann").assignment.code == code

    def test_each_has_its_own_spelling(self, ours: Api, theirs: Api) -> None:
        (code,) = new_codes(1)
        shown = {ours: f"{code[:4]}-{code[4:]}", theirs: f"{code[:6]}-{code[6:]}"}
        for api, business in ((ours, "ours"), (theirs, "theirs")):
            api.book(codes=[shown[api]], business_id=business)
        for api, spelling in shown.items():
            assert api.get_code(code).display_code == spelling

    def test_lists_show_each_its_own(self, ours: Api, theirs: Api) -> None:
        code, our_book, _ = both(ours, theirs)
        user = unique("user")
        ours.assign(code, user)
        theirs.assign(code, user)
        ours.redeem(code, user)
        (listed,) = ours.redemptions.ListRedemptions(
            redemptions.ListRedemptionsRequest(code=code)
        ).redemptions
        assert listed.book_id == our_book
        events = ours.audit.ListAuditEvents(audit.ListAuditEventsRequest(code=code)).events
        assert {it.book_id for it in events} == {our_book}

    def test_one_batch_has_both(self, root: Api, ours: Api, theirs: Api) -> None:
        code, our_book, their_book = both(ours, theirs)
        answer = root.redemptions.BatchRedeemCodes(
            redemptions.BatchRedeemCodesRequest(
                items=[
                    redemptions.RedeemItem(code=code, user_id="ann", business_id="ours"),
                    redemptions.RedeemItem(code=code, user_id="ann", business_id="theirs"),
                ],
                mode=redemptions.BATCH_MODE_ALL_OR_NOTHING,
                request_id=unique("request"),
            )
        )
        assert [it.redemption.book_id for it in answer.results] == [our_book, their_book]


class TestLocks:
    def test_both_are_locked_at_once(self, ours: Api, theirs: Api) -> None:
        code, *_ = both(ours, theirs, **LOCKABLE)
        mine, yours = ours.lock(code, "ann"), theirs.lock(code, "bob")
        assert mine.lock.lock_id != yours.lock.lock_id
        for api in (ours, theirs):
            with refused("CODE_LOCKED"):
                api.redeem(code, "cid")
        ours.redeem(code, "ann", lock_token=mine.lock_token)
        theirs.redeem(code, "bob", lock_token=yours.lock_token)

    def test_a_lock_keeps_nobody_out_elsewhere(self, ours: Api, theirs: Api) -> None:
        code, *_ = both(ours, theirs, **LOCKABLE)
        ours.lock(code, "ann")
        assert ours.get_code(code).effective_state == codes.COUPON_CODE_STATE_LOCKED
        assert theirs.get_code(code).effective_state == codes.COUPON_CODE_STATE_AVAILABLE
        theirs.redeem(code, "bob")

    def test_a_token_holds_only_for_its_book(self, root: Api, ours: Api, theirs: Api) -> None:
        code, *_ = both(ours, theirs, **LOCKABLE)
        lock = ours.lock(code, "ann")
        with refused("LOCK_TOKEN_MISMATCH"):
            root.redeem(code, "ann", lock_token=lock.lock_token, business_id="theirs")
        root.redeem(code, "ann", lock_token=lock.lock_token, business_id="ours")

    def test_a_request_id_names_a_lock_in_each(self, ours: Api, theirs: Api) -> None:
        code, *_ = both(ours, theirs, **LOCKABLE)
        once = unique("request")
        mine, yours = (api.lock(code, "ann", request_id=once) for api in (ours, theirs))
        assert mine.lock.lock_id != yours.lock.lock_id
        assert not yours.replayed
        assert ours.lock(code, "ann", request_id=once).lock.lock_id == mine.lock.lock_id
        ours.unlock(mine.lock_token)
        assert theirs.lock(code, "ann", request_id=once).replayed


class TestWhoNamesNone:
    def test_has_to_name_a_business_whatever_the_code(
        self, root: Api, ours: Api, theirs: Api
    ) -> None:
        code, our_book, _ = both(ours, theirs)
        (ours_alone,) = new_codes(1)
        ours.import_codes(our_book, [ours_alone])
        (unknown,) = new_codes(1)
        for each in (code, ours_alone, unknown):
            with refused("BUSINESS_REQUIRED"):
                root.redeem(each, "ann")
            with refused("BUSINESS_REQUIRED"):
                root.get_code(each)
            with refused("BUSINESS_REQUIRED"):
                root.assign(each, "ann")
            with refused("BUSINESS_REQUIRED"):
                root.lock(each, "ann")
        (problem,) = root.validate(code, "ann").problems
        assert problem.reason == 100

    def test_may_name_the_book(self, root: Api, ours: Api, theirs: Api) -> None:
        code, our_book, their_book = both(ours, theirs)
        assert root.redeem(code, "ann", book_id=our_book).redemption.book_id == our_book
        assert root.redeem(code, "ann", book_id=their_book).redemption.book_id == their_book

    def test_need_not_while_there_is_only_one(
        self, new_database: NewDatabase, redis_server_url: str
    ) -> None:
        with new_database() as database_url:
            finished(database_url)
            settings = settings_for(database_url, redis_server_url, default_business="")
            with ServerThread(settings) as running:
                api = Api(running.address)
                first, second = new_codes(2)
                api.book(codes=[first, second], business_id="only")
                api.redeem(first, "ann")
                api.draft(business_id="another")
                with refused("BUSINESS_REQUIRED"):
                    api.redeem(second, "ann")
                api.redeem(second, "ann", business_id="only")
                api.close()


class TestUploads:
    def test_nobody_learns_what_others_have(self, ours: Api, theirs: Api) -> None:
        uploaded = new_codes(20)
        ours.book(codes=uploaded, business_id="ours")
        book_id = theirs.draft(business_id="theirs").book_id
        (result,) = theirs.import_codes(book_id, uploaded)
        assert result.created_count == 20

    def test_a_business_has_a_code_once(self, ours: Api) -> None:
        uploaded = new_codes(20)
        ours.book(codes=uploaded, business_id="ours")
        book_id = ours.draft(business_id="ours").book_id
        (result,) = ours.import_codes(book_id, uploaded)
        assert (result.created_count, result.existing_count) == (0, 20)

    def test_of_a_hundred_who_upload_a_code_one_has_it(self, ours: Api, theirs: Api) -> None:
        (code,) = new_codes(1)
        targets = [
            (api, api.draft(business_id=business).book_id)
            for api, business in [(ours, "ours"), (theirs, "theirs")] * 5
        ]

        def upload(api: Api, book_id: str) -> int:
            (result,) = api.import_codes(book_id, [code])
            return result.created_count

        calls = [partial(upload, *it) for it in targets * 10]
        assert sum(all_at_once(calls)) == 2
        assert ours.get_code(code).book_id != theirs.get_code(code).book_id

    def test_small_formats_are_filled_by_each(self, ours: Api, theirs: Api) -> None:
        for api, business in ((ours, "ours"), (theirs, "theirs")):
            book = api.draft(
                business_id=business,
                code_format=books.CodeFormat(length=4, alphabet="23456789", prefix="SMALL"),
            )
            request = codes.GenerateCodesRequest(
                book_id=book.book_id, count=2_000, request_id=unique("request")
            )
            *_, last = api.codes.GenerateCodes(request)
            assert last.generated_count == 2_000


class TestBooksOfBefore:
    @pytest.fixture
    def upgraded(
        self, new_database: NewDatabase, redis_server_url: str
    ) -> Iterator[tuple[Api, Callable[[], None]]]:
        """A client of a running service, and what switches it over."""
        with new_database() as database_url:
            settings = settings_for(database_url, redis_server_url, default_business="")
            with ServerThread(settings) as running:
                api = Api(running.address)
                yield api, lambda: finished(database_url)
                api.close()
                with psycopg.connect(database_url) as connection:
                    assert_adds_up(connection)

    def test_a_redemption_of_before_is_repeated(
        self, upgraded: tuple[Api, Callable[[], None]]
    ) -> None:
        api, finish = upgraded
        first, second = new_codes(2)
        book_id = api.book(codes=[first, second], business_id="ours").book_id
        done = api.redeem(first, "ann", request_id="r1")
        finish()
        again = api.redeem(first, "ann", request_id="r1")
        assert again.replayed
        assert again.redemption == done.redemption
        api.draft(business_id="theirs")
        assert api.redeem(first, "ann", request_id="r1", business_id="ours").replayed
        with refused("REQUEST_ID_REUSED"):
            api.redeem(first, "ann", request_id="r1", book_id=book_id)
        api.rollback(done.redemption.redemption_id)

    def test_a_lock_of_before_is_honoured(self, upgraded: tuple[Api, Callable[[], None]]) -> None:
        api, finish = upgraded
        (code,) = new_codes(1)
        api.book(codes=[code], business_id="ours", **LOCKABLE)
        lock = api.lock(code, "ann")
        finish()
        with refused("CODE_LOCKED"):
            api.redeem(code, "bob")
        api.redeem(code, "ann", lock_token=lock.lock_token)

    @pytest.mark.skipif(bool(BUSINESS), reason="there are no books of before")
    def test_their_codes_stay_unique(self, upgraded: tuple[Api, Callable[[], None]]) -> None:
        api, finish = upgraded
        (code,) = new_codes(1)
        api.book(codes=[code], business_id="ours")
        before = api.draft(business_id="theirs").book_id
        finish()
        (result,) = api.import_codes(before, [code])
        assert result.existing_count == 1
        same_business = api.draft(business_id="ours").book_id
        (result,) = api.import_codes(same_business, [code])
        assert result.existing_count == 1
        later = api.book(codes=[code], business_id="theirs").book_id
        assert api.redeem(code, "ann", business_id="theirs").redemption.book_id == later
        assert api.redeem(code, "ann", business_id="ours").redemption.book_id != later

    def test_they_do_not_get_what_later_books_have(
        self, upgraded: tuple[Api, Callable[[], None]]
    ) -> None:
        api, finish = upgraded
        before = api.draft(business_id="ours").book_id
        finish()
        (code,) = new_codes(1)
        api.book(codes=[code], business_id="ours")
        (result,) = api.import_codes(before, [code])
        assert result.existing_count == 1

    def test_a_book_that_is_made_again_is_the_one_of_before(
        self, upgraded: tuple[Api, Callable[[], None]]
    ) -> None:
        api, finish = upgraded
        message = books.CouponBook(
            business_id="ours",
            name="once",
            currency_code="EUR",
            discount=books.Discount(percent_off=books.PercentOff(basis_points=1_000)),
        )
        request = books.CreateCouponBookRequest(coupon_book=message, request_id="create")
        made = api.books.CreateCouponBook(request)
        finish()
        again = api.books.CreateCouponBook(request)
        assert again.replayed
        assert again.coupon_book.book_id == made.coupon_book.book_id


class TestWork:
    def test_a_redemption_takes_not_one_statement_more(
        self, server: ServerThread, ours: Api, new_database: NewDatabase, redis_server_url: str
    ) -> None:
        def steps(api: Api, running: ServerThread) -> list[str]:
            first, second = new_codes(2)
            api.book(codes=[first, second], business_id="ours")
            api.redeem(first, "ann")  # from then on the worker knows
            with work_done(running) as work:
                _, done = work.of(lambda: api.redeem(second, "ann"))
            return done

        with new_database() as database_url:
            settings = settings_for(database_url, redis_server_url, default_business="")
            with ServerThread(settings) as before, closing(Api(before.address)) as api:
                assert steps(ours, server) == steps(api, before)

    def test_a_hidden_code_takes_as_much_as_an_unknown_one(
        self, server: ServerThread, ours: Api, theirs: Api
    ) -> None:
        disabled, their_own, unknown = new_codes(3)
        ours.book(codes=[disabled], business_id="ours")
        theirs.book(codes=[their_own], business_id="theirs")
        ours.disable(disabled)
        with caller(server.address, "self", sub="ann", business="ours") as ann:
            requests = [ann.redeem_request(it, "ann") for it in (disabled, their_own, unknown)]
            with work_done(server) as work:
                done = [
                    work.of(partial(ann.redemptions.RedeemCode, request)) for request in requests
                ]
        assert done[0] == done[1] == done[2]


async def test_what_is_new_is_found_by_all_who_looked_at_the_same_time(database_url: str) -> None:
    finished(database_url)
    async with new_shop(database_url) as shop:
        await shop.codes(shop.book, "ONE")
        memory, both = LoadMemory(), asyncio.Barrier(2)
        attempt = event_id(bucket_of("ONE"), EventType.REDEEMED, "ONE")
        command = Redeem(
            call=call("r", business_id="bakery"),
            code="ONE",
            event_id=attempt,
            fingerprint=1,
            user_id="ann",
            order_id="",
        )

        async def look(connection: Connection) -> State:
            await both.wait()
            pipeline, now = Pipeline(connection), from_now()
            return await load(pipeline, [command], now, lock=False, memory=memory)

        states = await asyncio.gather(
            *(shop.database.read_at_once("preview", look) for _ in range(2))
        )
    assert [set(it.names) for it in states] == [{"ONE"}, {"ONE"}]
