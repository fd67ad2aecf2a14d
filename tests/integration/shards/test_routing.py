"""Each call goes to the shard of its business, whatever names that."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from support.calls import (
    ALL_OR_NOTHING,
    batch,
    coupons,
    extend,
    get_lock,
    item,
    outcomes_of,
    redemption,
)
from support.service import (
    Api,
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    euros,
    new_codes,
    pages,
    redemptions,
    refused,
    unique,
)
from support.waiting import until

OPTIONAL = books.LOCK_POLICY_OPTIONAL


def rows(server: ServerThread, table: str, book_id: str) -> list[int]:
    """How many rows of the book each shard has."""
    count = sql.SQL("SELECT count(*) FROM {} WHERE book_id = %s")
    found: list[int] = []
    with psycopg.connect(server.database_url) as connection:
        for shard in range(server.settings.shards):
            name = sql.Identifier(f"coupon_{shard:02}", table)
            row = connection.execute(count.format(name), [book_id]).fetchone()
            found.append(row[0] if row else 0)
    return found


def test_everything_of_a_business_is_in_its_shard(
    shop: Api, sharded: ServerThread, businesses: list[str]
) -> None:
    for shard, business_id in enumerate(businesses):
        code, other = new_codes(2)
        book = shop.book(
            codes=[code, other],
            business_id=business_id,
            lock_policy=OPTIONAL,
            limits=books.BookLimits(max_redemptions_per_user=5, max_redemptions=10),
        )
        named: dict[str, Any] = {"business_id": business_id}
        shop.assign(code, "ann", **named)
        shop.redeem(code, "ann", order_id=unique("order"), order_amount=euros(900), **named)
        shop.lock(other, "bob", **named)
        for table in (
            "coupon_books",
            "coupon_codes",
            "coupon_assignments",
            "coupon_user_counters",
            "coupon_book_totals",
            "redemption_audit",
        ):
            found = rows(sharded, table, book.book_id)
            assert found[shard], table
            assert sum(found) == found[shard], table


def test_a_code_of_one_name_in_each_shard_is_redeemed_in_the_one_that_is_named(
    shop: Api, businesses: list[str]
) -> None:
    (code,) = new_codes(1)
    made = [shop.book(codes=[code], business_id=it) for it in businesses]
    for number, (business_id, book) in enumerate(zip(businesses, made, strict=True)):
        named: dict[str, Any] = {"book_id": book.book_id} if number % 2 else {}
        named = named or {"business_id": business_id}
        assert shop.redeem(code, "ann", **named).redemption.book_id == book.book_id
        with refused("CODE_ALREADY_REDEEMED"):
            shop.redeem(code, "bob", **named)


def test_a_call_that_names_no_business_is_told_what_it_needs(shop: Api) -> None:
    (code,) = new_codes(1)
    with refused("BUSINESS_REQUIRED") as it:
        shop.redeem(code, "ann")
    assert "business_id" in it.error.details()  # type: ignore[attr-defined]
    assert "book_id" in it.error.details()  # type: ignore[attr-defined]
    for call in (
        lambda: shop.get_code(code),
        lambda: shop.assign(code, "ann"),
        lambda: shop.disable(code),
        lambda: shop.lock(code, "ann"),
        lambda: shop.validate(code, "ann"),
        lambda: shop.qualify("ann"),
    ):
        with refused("BUSINESS_REQUIRED"):
            call()


def test_the_business_of_a_code_may_be_named_by_its_book(shop: Api, businesses: list[str]) -> None:
    for business_id in businesses:
        first, second = new_codes(2)
        book = shop.book(codes=[first, second], business_id=business_id, lock_policy=OPTIONAL)
        assert shop.validate(first, "ann", book_id=book.book_id).valid
        token = shop.lock(first, "ann", book_id=book.book_id).lock_token
        with refused("BUSINESS_REQUIRED"):
            shop.redeem(first, "ann", lock_token=token)
        shop.redeem(first, "ann", lock_token=token, book_id=book.book_id)
        shop.assign(second, "bob", book_id=book.book_id)


def test_ids_of_redemptions_and_locks_lead_to_their_shard(shop: Api, businesses: list[str]) -> None:
    for business_id in businesses:
        first, second = new_codes(2)
        book = shop.book(codes=[first, second], business_id=business_id, lock_policy=OPTIONAL)
        redeemed = shop.redeem(first, "ann", book_id=book.book_id, order_amount=euros(900))
        redemption_id = redeemed.redemption.redemption_id
        assert redemption(shop, redemption_id).code == first
        shop.adjust(redemption_id, euros(500))
        rolled_back = shop.rollback(redemption_id).redemption
        assert rolled_back.state == redemptions.REDEMPTION_STATE_ROLLED_BACK
        granted = shop.lock(second, "ann", book_id=book.book_id)
        assert get_lock(shop, granted.lock.lock_id).code == second
        token = extend(shop, granted.lock_token).lock_token
        assert shop.unlock(token).lock.state == redemptions.LOCK_STATE_RELEASED
        again = shop.lock(second, "ann", book_id=book.book_id)
        shop.redemptions.UnlockCode(redemptions.UnlockCodeRequest(lock_id=again.lock.lock_id))


def test_ids_that_no_shard_gave_out_are_not_found(shop: Api) -> None:
    for unknown in (str(uuid4()), "b0" + uuid4().hex[2:8] + str(uuid4())[8:]):
        with refused("BOOK_NOT_FOUND"):
            shop.get_book(unknown)
        with refused("REDEMPTION_NOT_FOUND"):
            redemption(shop, unknown)
        with refused("LOCK_NOT_FOUND"):
            get_lock(shop, unknown)
    with refused("INVALID_ARGUMENT") as it:
        shop.get_book("no id")
    assert it.fields == ["book_id"]
    with refused("LOCK_TOKEN_MISMATCH"):
        shop.unlock("no token")


def test_codes_of_a_book_are_made_listed_and_changed_in_its_shard(
    shop: Api, businesses: list[str]
) -> None:
    for business_id in businesses:
        book = shop.book(business_id=business_id)
        request = codes.GenerateCodesRequest(book_id=book.book_id, count=30)
        *_, last = shop.codes.GenerateCodes(request)
        assert last.generated_count == 30
        shop.import_codes(book.book_id, new_codes(3), new_codes(2))
        listing = codes.ListCodesRequest(book_id=book.book_id, page_size=20)
        listed = [it.code for each in pages(shop.codes.ListCodes, listing, "codes") for it in each]
        assert len(listed) == 35
        export = codes.ExportCodesRequest(book_id=book.book_id)
        exported = [it for page in shop.codes.ExportCodes(export) for it in page.codes]
        assert len(exported) == 35
        change = codes.ChangeCodesRequest(
            book_id=book.book_id,
            request_id=unique("change"),
            change=codes.CODE_CHANGE_DISABLE,
            list=codes.CodeList(codes=listed[:5]),
        )
        *_, done = shop.codes.ChangeCodes(change)
        assert done.total_changed_count == 5
        assert shop.stats(book.book_id).disabled_count == 5
        shop.enable(listed[0], business_id=business_id)


def test_an_upload_without_a_header_is_refused_as_with_one_shard(shop: Api) -> None:
    chunk = codes.ImportCodesRequest(chunk=codes.ImportChunk(chunk_number=1, codes=["A"]))
    for messages in ([], [chunk]):
        with refused("INVALID_ARGUMENT") as it:
            list(shop.codes.ImportCodes(iter(messages)))
        assert it.fields[0] == "header"


class TestBatches:
    def test_items_of_several_shards_come_back_in_their_order(
        self, shop: Api, businesses: list[str]
    ) -> None:
        names = new_codes(9)
        for number, business_id in enumerate(businesses):
            shop.book(codes=names[number::4], business_id=business_id)
        items = [
            item(code, "ann", business_id=businesses[number % 4])
            for number, code in enumerate(names)
        ]
        items.insert(3, item(names[0], "bob", business_id=businesses[1]))
        items.insert(6, item("NO-BUSINESS", "ann"))
        response = batch(shop, items, request_id="once")
        expected = ["OK"] * 11
        expected[3], expected[6] = "CODE_NOT_FOUND", "BUSINESS_REQUIRED"
        assert outcomes_of(response) == expected
        found = [it.redemption.code for it in response.results if it.HasField("redemption")]
        assert found == names
        assert response.redeemed_count == 9
        again = outcomes_of(batch(shop, items, request_id="once"))
        assert again == ["REPLAYED" if it == "OK" else it for it in expected]

    def test_all_or_nothing_is_for_one_business(self, shop: Api, businesses: list[str]) -> None:
        names = new_codes(4)
        for number in (0, 1):
            shop.book(codes=names[number::2], business_id=businesses[number])
        own = [item(it, "ann", business_id=businesses[0]) for it in names[::2]]
        other = item(names[1], "ann", business_id=businesses[1])
        with refused("SEVERAL_BUSINESSES"):
            batch(shop, [*own, other], mode=ALL_OR_NOTHING)
        assert outcomes_of(batch(shop, own, mode=ALL_OR_NOTHING)) == ["OK", "OK"]

    def test_what_is_bad_is_named_by_its_place_in_the_whole(
        self, shop: Api, businesses: list[str]
    ) -> None:
        items = [item("A1", "ann", business_id=it) for it in businesses]
        items[2].user_id = " "
        with refused("INVALID_ARGUMENT") as it:
            batch(shop, items)
        assert it.fields == ["items[2].user_id"]


class TestListsOverAll:
    def test_books_are_merged_newest_first_page_by_page(
        self, shop: Api, businesses: list[str]
    ) -> None:
        made = [shop.draft(business_id=it).book_id for _ in range(3) for it in businesses]
        request = books.ListCouponBooksRequest(page_size=5)
        found = pages(shop.books.ListCouponBooks, request, "coupon_books")
        assert all(len(page) == 5 for page in found[:-1])
        ids = [it.book_id for page in found for it in page]
        assert len(ids) == len(set(ids))
        assert [it for it in ids if it in made] == made[::-1]
        of_one = books.ListCouponBooksRequest(business_id=businesses[2])
        listed = shop.books.ListCouponBooks(of_one).coupon_books
        assert [it.book_id for it in listed] == made[2::4][::-1]

    def test_a_users_coupons_redemptions_events_and_locks_are_those_of_all_shards(
        self, shop: Api, businesses: list[str]
    ) -> None:
        user = unique("user")
        own: list[str] = []
        made: list[str] = []
        for business_id in (*businesses, *businesses):
            code, locked = new_codes(2)
            book = shop.book(codes=[code, locked], business_id=business_id, lock_policy=OPTIONAL)
            shop.assign(code, user, book_id=book.book_id)
            made.append(shop.redeem(code, user, book_id=book.book_id).redemption.redemption_id)
            own.append(code)
            if len(own) <= 5:
                shop.lock(locked, user, book_id=book.book_id)
        assert [it.assignment.code for it in coupons(shop, user)] == own[::-1]
        lists: list[tuple[Any, Any, str]] = [
            (
                shop.assignments.ListUserCoupons,
                assignments.ListUserCouponsRequest(user_id=user, page_size=3),
                "coupons",
            ),
            (
                shop.redemptions.ListRedemptions,
                redemptions.ListRedemptionsRequest(user_id=user, page_size=3),
                "redemptions",
            ),
            (
                shop.audit.ListAuditEvents,
                audit.ListAuditEventsRequest(user_id=user, page_size=4),
                "events",
            ),
            (
                shop.redemptions.ListLocks,
                redemptions.ListLocksRequest(user_id=user, page_size=2),
                "locks",
            ),
        ]
        found = [[it for page in pages(*each) for it in page] for each in lists]
        assert [it.assignment.code for it in found[0]] == own[::-1]
        assert [it.redemption_id for it in found[1]] == made[::-1]
        times = [it.event_time.ToNanoseconds() for it in found[2]]
        assert times == sorted(times, reverse=True)
        assert len({it.event_id for it in found[2]}) == len(times) == 21
        assert len({it.lock_id for it in found[3]}) == len(found[3]) == 5

    def test_events_oldest_first_are_merged_page_by_page(
        self, shop: Api, businesses: list[str]
    ) -> None:
        user = unique("user")
        names = new_codes(10)
        for number, business_id in enumerate(businesses):
            shop.book(codes=names[number::4], business_id=business_id)
        for number, code in enumerate(names):
            shop.redeem(code, user, business_id=businesses[number % 4])
        request = audit.ListAuditEventsRequest(user_id=user, oldest_first=True, page_size=3)

        def listed() -> list[audit.ListAuditEventsResponse]:
            found = [shop.audit.ListAuditEvents(request)]
            while token := found[-1].next_page_token:
                request.page_token = token
                found.append(shop.audit.ListAuditEvents(request))
            request.page_token = ""
            return found

        until(lambda: sum(len(it.events) for it in listed()) == len(names))
        *before, last = listed()
        assert [it.code for page in (*before, last) for it in page.events] == names
        assert all(len(it.events) <= 3 for it in before)
        assert last.HasField("complete_time")
        assert not any(it.HasField("complete_time") for it in before)
        request.page_token = before[0].next_page_token
        changes: list[dict[str, Any]] = [
            {"business_id": businesses[0]},
            {"page_token": request.page_token.rpartition(".")[0]},
            {"user_id": "another"},
        ]
        for changed in changes:
            other = audit.ListAuditEventsRequest()
            other.CopyFrom(request)
            other.MergeFrom(audit.ListAuditEventsRequest(**changed))
            with refused("INVALID_ARGUMENT") as it:
                shop.audit.ListAuditEvents(other)
            assert it.fields == ["page_token"]

    def test_a_page_token_is_for_its_own_query(self, shop: Api) -> None:
        for name in ("one", "two"):
            shop.draft(business_id=unique(name))
        page = shop.books.ListCouponBooks(books.ListCouponBooksRequest(page_size=1))
        token = page.next_page_token
        request = books.ListCouponBooksRequest(
            page_token=token, state=books.COUPON_BOOK_STATE_ACTIVE
        )
        with refused("INVALID_ARGUMENT") as it:
            shop.books.ListCouponBooks(request)
        assert it.fields == ["page_token"]


def test_a_user_may_lock_as_many_codes_in_each_business(shop: Api, businesses: list[str]) -> None:
    user = unique("user")
    for business_id in businesses[:2]:
        names = new_codes(6)
        shop.book(codes=names, business_id=business_id, lock_policy=OPTIONAL)
        for code in names[:5]:
            shop.lock(code, user, business_id=business_id)
        with refused("LOCK_LIMIT_EXCEEDED"):
            shop.lock(names[5], user, business_id=business_id)


@pytest.mark.parametrize("shard", range(4))
def test_locks_that_expired_are_recorded_in_their_shard(
    shop: Api, businesses: list[str], shard: int
) -> None:
    (code,) = new_codes(1)
    book = shop.book(codes=[code], business_id=businesses[shard], lock_policy=OPTIONAL)
    shop.lock(code, "ann", book_id=book.book_id, ttl_s=1)
    until(lambda: "LOCK_EXPIRED" in shop.event_names(book_id=book.book_id))


def test_a_user_is_erased_in_every_shard(shop: Api, businesses: list[str]) -> None:
    user = unique("user")
    for business_id in businesses[:3]:
        (code,) = new_codes(1)
        shop.book(codes=[code], business_id=business_id)
        shop.redeem(code, user, business_id=business_id)
    of_user = audit.GetErasureRequest(user_id=user)
    with refused("ERASURE_NOT_FOUND"):
        shop.audit.GetErasure(of_user)
    request = audit.EraseUserRequest(user_id=user, request_id=unique("erase"))
    *before, last = shop.audit.EraseUser(request)
    assert all(it.erasure.state != audit.ERASURE_STATE_ERASED for it in before)
    assert last.erasure.state == audit.ERASURE_STATE_ERASED
    assert shop.audit.GetErasure(of_user).erasure == last.erasure
    assert not shop.events(user_id=user)
    names = shop.event_names(user_id=last.erasure.pseudonym)
    assert names.count("REDEEMED") == 3
    *_, again = shop.audit.EraseUser(request)
    assert again.replayed
    assert again.erasure.changed_rows == last.erasure.changed_rows


class TestWatches:
    def watched(self, shop: Api, **fields: Any) -> list[audit.WatchAuditEventsResponse]:
        request = audit.WatchAuditEventsRequest(stop_at_end=True, **fields)
        return list(shop.audit.WatchAuditEvents(request))

    def test_events_of_all_shards_come_once_and_resume_where_they_ended(
        self, shop: Api, businesses: list[str]
    ) -> None:
        user = unique("user")
        names = new_codes(8)
        for number, business_id in enumerate(businesses):
            shop.book(codes=names[number::4], business_id=business_id)
        for number, code in enumerate(names[:4]):
            shop.redeem(code, user, business_id=businesses[number])
        first = self.watched(shop, user_id=user)
        assert sorted(it.code for each in first for it in each.events) == sorted(names[:4])
        for number, code in enumerate(names[4:]):
            shop.redeem(code, user, business_id=businesses[number])
        rest = self.watched(shop, user_id=user, resume_token=first[-1].resume_token)
        assert sorted(it.code for each in rest for it in each.events) == sorted(names[4:])
        assert rest[-1].HasField("complete_time")

    def test_those_of_one_business_are_in_their_order(
        self, shop: Api, businesses: list[str]
    ) -> None:
        names = new_codes(5)
        shop.book(codes=names, business_id=businesses[1])
        for code in names:
            shop.redeem(code, "ann", business_id=businesses[1])
        found = self.watched(
            shop, business_id=businesses[1], types=[audit.AUDIT_EVENT_TYPE_REDEEMED]
        )
        assert [it.code for each in found for it in each.events] == names

    def test_a_token_of_one_shard_is_none_of_all(self, shop: Api, businesses: list[str]) -> None:
        shop.draft(business_id=businesses[0])
        *_, last = self.watched(shop, business_id=businesses[0])
        with refused("INVALID_ARGUMENT") as it:
            self.watched(shop, resume_token=last.resume_token)
        assert it.fields == ["resume_token"]
