"""Codes of a CLOSED book are made again for another book of the same business."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from support.invariants import assert_adds_up
from support.person import erase
from support.service import (
    BUSINESS,
    Api,
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    euros,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.token_clients import caller
from support.token_issuers import ASKED_FOR
from support.work_done import work_done

from coupon_service.store import finishing

NewDatabase = Callable[[], AbstractContextManager[str]]

OPTIONAL = {"lock_policy": books.LOCK_POLICY_OPTIONAL}
LIMITED = {
    "limits": books.BookLimits(
        max_redemptions=5,
        max_redemptions_per_code=2,
        max_redemptions_per_user_per_code=1,
        max_redemptions_per_user=3,
        max_discount_minor=10_000,
    )
}


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
def api(server: ServerThread) -> Iterator[Api]:
    with caller(server.address, "admin", sub="shop", business="ours") as ours:
        yield ours


@pytest.fixture(scope="module")
def theirs(server: ServerThread) -> Iterator[Api]:
    """Of another business, and of the same name."""
    with caller(server.address, "admin", sub="shop", business="theirs") as api:
        api.book(business_id="theirs")
        yield api


def book_of(api: Api, *names: str, **fields: Any) -> str:
    """An active book with these codes."""
    return api.book(codes=names, business_id="ours", **fields).book_id


def reuse(api: Api, book_id: str, *names: str, **fields: Any) -> str:
    """Closes the book and gives codes of it to another one, which is returned."""
    api.close_book(book_id)
    return book_of(api, *names, **fields)


def code_in(api: Api, code: str, book_id: str) -> codes.CouponCode:
    return api.codes.GetCode(codes.GetCodeRequest(code=code, book_id=book_id)).coupon_code


def listed(api: Api, book_id: str, **fields: Any) -> list[codes.CouponCode]:
    request = codes.ListCodesRequest(book_id=book_id, **fields)
    return list(api.codes.ListCodes(request).codes)


def reused_by(api: Api, book_id: str) -> list[dict[str, Any]]:
    """What the ledger says of uploads to the book that took codes of CLOSED books."""
    found = [MessageToDict(it.metadata) for it in api.events(book_id=book_id)]
    return [it["reused"] for it in found if "reused" in it]


def delete(api: Api, book_id: str, *names: str) -> None:
    """Deletes those of the codes of the book that can be."""
    request = codes.ChangeCodesRequest(
        book_id=book_id,
        change=codes.CODE_CHANGE_DELETE,
        list=codes.CodeList(codes=names),
        request_id=unique("request"),
    )
    list(api.codes.ChangeCodes(request))


class TestImports:
    def test_codes_of_a_closed_book_are_imported_again(self, api: Api) -> None:
        names = new_codes(5)
        before = book_of(api, *names[:3])
        api.redeem(names[0], "ann")
        api.disable(names[1])
        after = reuse(api, before, *names)
        (result,) = api.import_codes(after, names)
        assert (result.created_count, result.existing_count) == (0, 5)
        for name in names:
            found = api.get_code(name)
            assert (found.book_id, found.redemption_count) == (after, 0)
            assert found.state == codes.COUPON_CODE_STATE_AVAILABLE
        assert api.redeem(names[0], "ann").redemption.book_id == after
        assert reused_by(api, after) == [{before: 3}]

    @pytest.mark.parametrize("state", ["DRAFT", "ACTIVE", "PAUSED"])
    def test_codes_of_other_books_are_not(self, api: Api, state: str) -> None:
        (name,) = new_codes(1)
        before = api.draft(business_id="ours").book_id
        api.import_codes(before, [name])
        if state != "DRAFT":
            api.activate(before)
        if state == "PAUSED":
            api.pause(before)
        (result,) = api.import_codes(book_of(api), [name])
        assert (result.created_count, result.existing_count) == (0, 1)
        assert api.get_code(name).book_id == before

    def test_those_of_other_businesses_stay_theirs(self, api: Api, theirs: Api) -> None:
        (name,) = new_codes(1)
        closed = theirs.book(codes=[name], business_id="theirs").book_id
        theirs.close_book(closed)
        book_of(api, name)
        assert theirs.get_code(name).book_id == closed

    def test_the_closed_book_keeps_its_counts(self, api: Api) -> None:
        names = new_codes(4)
        before = book_of(api, *names)
        api.redeem(names[0], "ann")
        api.assign(names[1], "bob")
        api.disable(names[2])
        stats = api.stats(before)
        states = {it.code: it.state for it in listed(api, before)}
        after = reuse(api, before, *names)
        assert api.stats(before) == stats
        assert {it.code: it.state for it in listed(api, before)} == states
        redeemed = codes.COUPON_CODE_STATE_REDEEMED
        assert [it.code for it in listed(api, before, state=redeemed)] == [names[0]]
        assert api.stats(after).code_count == api.stats(after).available_count == 4

    def test_a_page_goes_on_where_codes_went(self, api: Api) -> None:
        names = new_codes(6)
        before = book_of(api, *names)
        request = codes.ListCodesRequest(book_id=before, page_size=2)
        page = api.codes.ListCodes(request)
        found = [it.code for it in page.codes]
        reuse(api, before, *names[::2])
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = api.codes.ListCodes(request)
            found += [it.code for it in page.codes]
        assert sorted(found) == sorted(names)

    def test_an_export_has_them_all(self, api: Api) -> None:
        names = new_codes(4)
        before = book_of(api, *names)
        api.redeem(names[0], "ann")
        reuse(api, before, *names[:2])
        request = codes.ExportCodesRequest(book_id=before)
        exported = [it for page in api.codes.ExportCodes(request) for it in page.codes]
        assert sorted(it.code for it in exported) == sorted(names)
        (used,) = (it for it in exported if it.redemption_count)
        assert used.code == names[0]

    def test_each_book_has_its_own_spelling_and_terms(self, api: Api) -> None:
        (name,) = new_codes(1)
        shown = f"{name[:4]}-{name[4:]}", f"{name[:6]}-{name[6:]}"
        before, after = (api.draft(business_id="ours").book_id for _ in range(2))
        for book_id, text, uses in ((before, shown[0], 3), (after, shown[1], 7)):
            terms = codes.CodeTerms(max_redemptions=uses)
            api.import_codes(book_id, [codes.NewCode(code=text, terms=terms)])
            api.activate(book_id)
            if book_id == before:
                api.assign(name, "ann")
                api.close_book(before)
        assert api.get_code(name).display_code == shown[1]
        assert api.get_code(name).terms.max_redemptions == 7
        assert code_in(api, name, before).display_code == shown[0]
        assert code_in(api, name, before).terms.max_redemptions == 3
        (old,) = listed(api, before)
        assert (old.display_code, old.terms.max_redemptions) == (shown[0], 3)
        request = assignments.ListAssignmentsRequest(book_id=before)
        (given,) = api.assignments.ListAssignments(request).assignments
        assert given.display_code == shown[0]

    def test_a_plain_code_has_no_spelling_of_before(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = api.draft(business_id="ours").book_id
        api.import_codes(before, [f"{name[:4]}-{name[4:]}"])
        reuse(api, before, name)
        assert api.get_code(name).display_code == name

    def test_they_are_assigned_to_the_users_of_the_rows(self, api: Api) -> None:
        names = new_codes(3)
        before = book_of(api, *names[:2])
        api.assign(names[0], "ann")
        api.close_book(before)
        after = book_of(api)
        rows = [codes.NewCode(code=it, user_id="bob") for it in names]
        (result,) = api.import_codes(after, rows)
        assert (result.created_count, result.assigned_count) == (3, 3)
        for name in names:
            assert api.get_code(name).state == codes.COUPON_CODE_STATE_ASSIGNED
        coupons = api.assignments.ListUserCoupons(
            assignments.ListUserCouponsRequest(user_id="ann", book_id=before)
        ).coupons
        assert [it.assignment.code for it in coupons] == [names[0]]

    def test_who_cannot_have_one_leaves_it_where_it_is(self, api: Api) -> None:
        names = new_codes(2)
        before = book_of(api, *names)
        api.close_book(before)
        one = books.BookLimits(max_redemptions_per_code=1, max_assignments_per_user=1)
        after = book_of(api, limits=one)
        user = unique("user")
        (result,) = api.import_codes(after, [codes.NewCode(code=it, user_id=user) for it in names])
        assert (result.created_count, result.not_assigned_count) == (1, 1)
        assert sorted(api.get_code(it).book_id for it in names) == sorted((before, after))

    def test_a_request_id_names_one_assignment_of_a_code(self, api: Api) -> None:
        (name,), once = new_codes(1), unique("upload")
        before, after = book_of(api), book_of(api)
        rows = [codes.NewCode(code=name, user_id="ann")]
        api.import_codes(before, rows, request_id=once)
        api.close_book(before)
        for dry in (True, False):
            (result,) = api.import_codes(after, rows, request_id=once, validate_only=dry)
            assert (result.created_count, result.not_assigned_count) == (0, 1)
            assert "REQUEST_ID_REUSED" in str(result.rejected_rows[0].error)
        assert api.get_code(name).book_id == before
        (result,) = api.import_codes(after, rows)
        assert (result.created_count, result.assigned_count) == (1, 1)

    def test_a_dry_run_says_so(self, api: Api) -> None:
        names = new_codes(3)
        before = book_of(api, *names[:2])
        api.close_book(before)
        after = api.draft(business_id="ours").book_id
        (result,) = api.import_codes(after, names, validate_only=True)
        assert (result.created_count, result.existing_count) == (3, 0)
        assert api.get_code(names[0]).book_id == before

    def test_a_code_comes_once_in_an_upload(self, api: Api) -> None:
        (name,) = new_codes(1)
        api.close_book(book_of(api, name))
        after = api.draft(business_id="ours").book_id
        first, second = api.import_codes(after, [name], [name])
        assert (first.created_count, second.duplicate_count) == (1, 1)

    def test_a_chunk_is_answered_again(self, api: Api) -> None:
        (name,) = new_codes(1)
        api.close_book(book_of(api, name))
        after, upload = api.draft(business_id="ours").book_id, unique("upload")
        for replayed in (False, True):
            (result,) = api.import_codes(after, [name], request_id=upload)
            assert (result.created_count, result.replayed) == (1, replayed)

    def test_a_code_is_used_again_and_again(self, api: Api) -> None:
        (name,) = new_codes(1)
        made, done = list[str](), list[str]()
        for user in ("ann", "bob", "cid"):
            made.append(reuse(api, made[-1], name) if made else book_of(api, name))
            done.append(api.redeem(name, user).redemption.redemption_id)
        for book_id, user, redemption_id in zip(made, ("ann", "bob", "cid"), done, strict=True):
            assert code_in(api, name, book_id).redemption_count == 1
            rolled_back = api.rollback(redemption_id)
            assert rolled_back.redemption.book_id == book_id
            assert rolled_back.redemption.user_id == user
            assert code_in(api, name, book_id).redemption_count == 0

    def test_small_formats_are_filled_again(self, api: Api) -> None:
        tiny = books.CodeFormat(length=4, alphabet="2345", prefix="REUSED")
        made = list[str]()
        for _ in range(3):
            made.append(api.draft(business_id="ours", code_format=tiny).book_id)
            request = codes.GenerateCodesRequest(
                book_id=made[-1], count=120, request_id=unique("request")
            )
            *_, last = api.codes.GenerateCodes(request)
            assert last.generated_count == 120
            api.close_book(made[-1])
        for book_id in made:
            assert len(listed(api, book_id, page_size=200)) == 120
            assert api.stats(book_id).code_count == 120


class TestTheClosedBook:
    def test_what_was_redeemed_is_rolled_back_on_its_counts(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name, **LIMITED)
        done = api.redeem(name, "ann", order_amount=euros(1_000)).redemption
        after = reuse(api, before, name, **LIMITED)
        api.redeem(name, "ann", order_amount=euros(1_000))
        answer = api.rollback(done.redemption_id)
        assert answer.redemption.book_id == before
        assert answer.redemption.state == redemptions.REDEMPTION_STATE_ROLLED_BACK
        assert code_in(api, name, before).redemption_count == 0
        assert api.get_code(name).redemption_count == 1
        assert api.stats(before).rollback_count == 1
        assert api.stats(after).rollback_count == 0
        with refused("ALREADY_ROLLED_BACK"):
            api.rollback(done.redemption_id)

    def test_a_smaller_order_is_adjusted(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name, **LIMITED)
        done = api.redeem(name, "ann", order_amount=euros(1_000)).redemption
        after = reuse(api, before, name, **LIMITED)
        answer = api.adjust(done.redemption_id, euros(500))
        assert answer.redemption.discount.amount_minor == 50
        assert api.stats(before).discount_given.amount_minor == 50
        assert api.stats(after).discount_given.amount_minor == 0
        with refused("BOOK_NOT_ACTIVE"):
            api.adjust(done.redemption_id, euros(5_000))

    def test_it_redeems_nothing(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name)
        reuse(api, before, name)
        for call in (api.redeem, api.assign):
            with refused("BOOK_NOT_ACTIVE"):
                call(name, "ann", book_id=before)
        assert api.validate(name, "ann", book_id=before).problems
        assert not api.validate(name, "ann").problems

    def test_a_code_that_it_never_had_is_unknown(self, api: Api) -> None:
        name, other = new_codes(2)
        before = book_of(api, name)
        reuse(api, before, other)
        with refused("CODE_NOT_FOUND"):
            api.redeem(other, "ann", book_id=before)
        with refused("CODE_NOT_FOUND"):
            code_in(api, other, before)

    def test_its_assignments_and_redemptions_are_listed(self, api: Api) -> None:
        (name,), user = new_codes(1), unique("user")
        before = book_of(api, name)
        api.assign(name, user)
        api.redeem(name, user)
        after = reuse(api, before, name)
        api.assign(name, user)
        coupons = api.assignments.ListUserCoupons(
            assignments.ListUserCouponsRequest(user_id=user)
        ).coupons
        assert [it.assignment.book_id for it in coupons] == [after, before]
        found = api.redemptions.ListRedemptions(
            redemptions.ListRedemptionsRequest(code=name)
        ).redemptions
        assert [it.book_id for it in found] == [before]
        events = api.audit.ListAuditEvents(audit.ListAuditEventsRequest(code=name)).events
        assert {it.book_id for it in events} == {before, after}

    def test_the_other_book_counts_from_nothing(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name, **LIMITED)
        order = {"order_id": unique("order"), "order_amount": euros(1_000)}
        api.redeem(name, "ann", **order)
        with refused("ORDER_ALREADY_REDEEMED"):
            api.redeem(name, "ann", **order)
        after = reuse(api, before, name, **LIMITED)
        answer = api.redeem(name, "ann", **order)
        assert answer.redemption.book_id == after
        assert answer.counts.user_code_redemption_count == 1

    def test_a_user_is_erased_from_it(self, server: ServerThread, api: Api) -> None:
        names, user = new_codes(2), unique("user")
        before = book_of(api, *names, **OPTIONAL)
        done = api.redeem(names[0], user).redemption
        api.assign(names[1], user)
        api.lock(names[1], user)
        reuse(api, before, *names, **OPTIONAL)
        api.assign(names[1], user)
        with caller(server.address, "admin", sub="root") as root:
            erase(root, user)
            assert root.rollback(done.redemption_id).redemption.book_id == before
        for get in (api.get_code, partial(code_in, api, book_id=before)):
            assert get(names[1]).assignment_count == 0

    def test_codes_are_not_its_own_for_bulk_jobs(self, api: Api) -> None:
        names = new_codes(2)
        before = book_of(api, *names)
        after = reuse(api, before, names[0])
        request = codes.ChangeCodesRequest(
            book_id=before,
            change=codes.CODE_CHANGE_DISABLE,
            list=codes.CodeList(codes=names),
            request_id=unique("request"),
        )
        answers = list(api.codes.ChangeCodes(request))
        assert answers[-1].changed_count == 1
        assert code_in(api, names[0], after).state == codes.COUPON_CODE_STATE_AVAILABLE
        assert code_in(api, names[1], before).state == codes.COUPON_CODE_STATE_DISABLED

    def test_a_wrong_upload_gives_them_back(self, api: Api) -> None:
        names, once = new_codes(3), unique("request")
        before = api.draft(business_id="ours").book_id
        api.import_codes(before, [f"{names[0][:4]}-{names[0][4:]}", *names[1:]])
        api.activate(before)
        done = api.redeem(names[0], "ann", request_id=once).redemption
        api.assign(names[1], "bob")
        first = reuse(api, before, *names)
        after = reuse(api, first, *names[:2], "wrong" + names[2])
        delete(api, after, *names, "wrong" + names[2])
        assert api.get_code(names[0]).book_id == first
        assert code_in(api, names[0], before).display_code == f"{names[0][:4]}-{names[0][4:]}"
        again = reuse(api, after, *names)
        assert api.redeem(names[0], "ann", request_id=once).redemption == done
        api.redeem(names[0], "ann")
        delete(api, again, *names)
        assert api.get_code(names[0]).book_id == again  # it was redeemed
        assert api.get_code(names[1]).book_id == first
        assert api.stats(before).code_count == api.stats(first).code_count == 3
        assert api.stats(after).code_count == 0
        assert api.stats(again).code_count == 1
        assert api.rollback(done.redemption_id).redemption.book_id == before

    def test_a_code_that_came_back_is_as_it_was(self, api: Api) -> None:
        (name,) = new_codes(1)
        shown = f"{name[:4]}-{name[4:]}"
        before = api.draft(business_id="ours", limits=books.BookLimits(max_redemptions_per_code=3))
        before = before.book_id
        api.import_codes(before, [shown])
        api.activate(before)
        api.redeem(name, "ann")
        api.assign(name, "bob")
        was = code_in(api, name, before)
        api.close_book(before)
        closed = code_in(api, name, before)
        assert (closed.display_code, closed.redemption_count) == (shown, was.redemption_count)
        delete(api, book_of(api, name), name)
        assert api.get_code(name) == closed


class TestRepeats:
    def test_a_redemption_is_answered_again(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name)
        once = unique("request")
        done = api.redeem(name, "ann", request_id=once)
        after = reuse(api, before, name)
        again = api.redeem(name, "ann", request_id=once)
        assert again.replayed
        assert again.redemption == done.redemption
        with refused("REQUEST_ID_REUSED"):
            api.redeem(name, "bob", request_id=once)
        with refused("REQUEST_ID_REUSED"):
            api.redeem(name, "ann", request_id=once, book_id=after)
        assert api.get_code(name).redemption_count == 0
        api.rollback(done.redemption.redemption_id)
        with refused("ALREADY_ROLLED_BACK"):
            api.redeem(name, "ann", request_id=once)

    def test_one_that_named_the_book(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name)
        once = unique("request")
        api.redeem(name, "ann", request_id=once, book_id=before)
        reuse(api, before, name)
        again = api.redeem(name, "ann", request_id=once, book_id=before)
        assert again.replayed
        assert again.redemption.book_id == before

    def test_of_an_earlier_book_but_the_last(self, api: Api) -> None:
        (name,) = new_codes(1)
        first, once = book_of(api, name), unique("request")
        api.redeem(name, "ann", request_id=once)
        second = reuse(api, first, name)
        api.redeem(name, "ann")
        reuse(api, second, name)
        again = api.redeem(name, "ann", request_id=once)
        assert again.replayed
        assert again.redemption.book_id == first

    def test_a_batch_is_answered_again(self, api: Api) -> None:
        names = new_codes(2)
        before = book_of(api, *names)
        request = redemptions.BatchRedeemCodesRequest(
            items=[redemptions.RedeemItem(code=it, user_id="ann") for it in names],
            mode=redemptions.BATCH_MODE_ALL_OR_NOTHING,
            request_id=unique("request"),
        )
        done = api.redemptions.BatchRedeemCodes(request)
        reuse(api, before, names[0])
        again = api.redemptions.BatchRedeemCodes(request)
        assert [it.redemption for it in again.results] == [it.redemption for it in done.results]
        assert api.get_code(names[0]).redemption_count == 0

    def test_assignments_and_what_ended_them(self, api: Api) -> None:
        names = new_codes(2)
        before = book_of(api, *names)
        given, taken, off, random = (unique("request") for _ in range(4))
        api.assign(names[0], "ann", request_id=given)
        api.revoke(names[0], "ann", request_id=taken)
        api.disable(names[0], request_id=off)
        picked = api.assign_random(before, "bob", request_id=random).assignment
        assert picked.code == names[1]
        reuse(api, before, *names)
        with refused("ASSIGNMENT_NOT_ACTIVE"):
            api.assign(names[0], "ann", request_id=given)
        again = api.revoke(names[0], "ann", request_id=taken)
        assert (again.replayed, again.assignment.book_id) == (True, before)
        assert api.disable(names[0], request_id=off).replayed
        assert api.get_code(names[0]).state == codes.COUPON_CODE_STATE_AVAILABLE
        assert api.assign_random(before, "bob", request_id=random).replayed
        assert api.get_code(names[1]).assignment_count == 0

    def test_one_of_another_business_is_its_own(self, api: Api, theirs: Api) -> None:
        (name,) = new_codes(1)
        before, once = book_of(api, name), unique("request")
        api.redeem(name, "ann", request_id=once)
        theirs.book(codes=[name], business_id="theirs")
        reuse(api, before, name)
        assert not theirs.redeem(name, "ann", request_id=once).replayed
        assert api.redeem(name, "ann", request_id=once).replayed


class TestLocks:
    def test_a_lock_holds_only_for_its_book(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name, **OPTIONAL)
        lock = api.lock(name, "ann")
        after = reuse(api, before, name, **OPTIONAL)
        with refused("LOCK_TOKEN_MISMATCH"):
            api.redeem(name, "ann", lock_token=lock.lock_token)
        with refused("BOOK_NOT_ACTIVE"):
            api.redeem(name, "ann", lock_token=lock.lock_token, book_id=before)
        assert api.redeem(name, "bob").redemption.book_id == after
        assert api.unlock(lock.lock_token).lock.book_id == before

    def test_it_keeps_nobody_from_a_lock(self, api: Api) -> None:
        (name,) = new_codes(1)
        before = book_of(api, name, **OPTIONAL)
        api.lock(name, "ann")
        reuse(api, before, name, **OPTIONAL)
        lock = api.lock(name, "bob")
        with refused("CODE_LOCKED"):
            api.redeem(name, "ann")
        api.redeem(name, "bob", lock_token=lock.lock_token)

    def test_one_that_was_asked_for_again_is_the_one_of_before(self, api: Api) -> None:
        (name,) = new_codes(1)
        before, once = book_of(api, name, **OPTIONAL), unique("request")
        lock = api.lock(name, "ann", request_id=once)
        reuse(api, before, name, **OPTIONAL)
        again = api.lock(name, "ann", request_id=once)
        assert again.replayed
        assert again.lock.lock_id == lock.lock.lock_id
        api.unlock(lock.lock_token)
        with refused("LOCK_EXPIRED"):
            api.lock(name, "ann", request_id=once)
        assert api.lock(name, "ann").lock.book_id != before


class TestBooksOfBefore:
    @pytest.fixture
    def upgraded(
        self, new_database: NewDatabase, redis_server_url: str
    ) -> Iterator[tuple[Api, Callable[[], None]]]:
        """A client of a running service, and what makes codes of new books unique within their
        business."""
        with new_database() as database_url:
            settings = settings_for(database_url, redis_server_url, default_business="")
            with ServerThread(settings) as running, closing(Api(running.address)) as api:
                yield api, partial(finished, database_url)
                with psycopg.connect(database_url) as connection:
                    assert_adds_up(connection)

    def test_their_codes_are_used_again(self, upgraded: tuple[Api, Callable[[], None]]) -> None:
        api, finish = upgraded
        name, once, other = new_codes(1)[0], unique("request"), unique("request")
        before = book_of(api, name, **LIMITED, **OPTIONAL)
        amount = {"order_amount": euros(1_000)}
        done = api.redeem(name, "ann", request_id=once, **amount)
        by_name = {"book_id": before, "request_id": other, **amount}
        api.redeem(name, "bob", lock_token=api.lock(name, "bob").lock_token, **by_name)
        finish()
        after = reuse(api, before, name, **LIMITED, **OPTIONAL)
        for _ in range(2):
            again = api.redeem(name, "ann", request_id=once, **amount)
            assert (again.replayed, again.redemption) == (True, done.redemption)
            assert api.redeem(name, "bob", **by_name).replayed
        assert api.redeem(name, "ann", **amount).redemption.book_id == after
        assert code_in(api, name, before).redemption_count == 2
        assert api.rollback(done.redemption.redemption_id).redemption.book_id == before
        assert code_in(api, name, before).redemption_count == 1
        assert api.get_code(name).redemption_count == 1

    def test_other_businesses_are_free_of_them(
        self, upgraded: tuple[Api, Callable[[], None]]
    ) -> None:
        api, finish = upgraded
        name, once = new_codes(1)[0], unique("request")
        before = book_of(api, name)
        api.redeem(name, "ann", request_id=once)
        finish()
        theirs = api.book(codes=[name], business_id="theirs").book_id
        after = reuse(api, before, name)
        done = api.redeem(name, "ann", request_id=once, business_id="theirs")
        assert (done.replayed, done.redemption.book_id) == (False, theirs)
        assert api.redeem(name, "ann", request_id=once, business_id="ours").replayed
        named = api.redeem(name, "ann", business_id="ours").redemption
        assert named.book_id == after

    @pytest.mark.skipif(bool(BUSINESS), reason="there are no books of before")
    def test_books_of_before_get_none(self, upgraded: tuple[Api, Callable[[], None]]) -> None:
        api, finish = upgraded
        (name,) = new_codes(1)
        closed, other = book_of(api, name), api.draft(business_id="ours").book_id
        finish()
        api.close_book(closed)
        (result,) = api.import_codes(other, [name])
        assert result.existing_count == 1


class TestWork:
    def test_a_redemption_takes_not_one_statement_more(
        self, server: ServerThread, api: Api
    ) -> None:
        first, second = new_codes(2)
        after = reuse(api, book_of(api, first), first, second)
        api.redeem(second, "ann")
        api.close_book(after)
        third, fourth = new_codes(2)
        reuse(api, book_of(api, third), first, third, fourth)

        def steps(name: str) -> list[str]:
            with work_done(server) as work:
                return work.of(partial(api.redeem, name, "ann"))[1]

        assert steps(first) == steps(third) == steps(fourth)

    def test_a_hidden_code_takes_as_much_as_an_unknown_one(
        self, server: ServerThread, api: Api
    ) -> None:
        there, gone, unknown = new_codes(3)
        before = book_of(api, there, gone)
        reuse(api, before, gone)
        with caller(server.address, "self", sub="ann", business="ours") as ann:
            requests = [
                ann.redeem_request(it, "ann", book_id=before) for it in (there, gone, unknown)
            ]
            with work_done(server) as work:
                done = [work.of(partial(ann.redemptions.RedeemCode, it)) for it in requests]
        # Whoever names a book has it read, and that of the code or any other.
        steps = [(told, [it for it in all_done if it != "book"]) for told, all_done in done]
        assert steps[0] == steps[1] == steps[2]
