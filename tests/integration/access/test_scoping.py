"""A caller of one business: what belongs to another is, in every method, as if it did not exist."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from support.calls import reason_name
from support.service import (
    Api,
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    euros,
    from_now,
    new_codes,
    pages,
    redemptions,
    refused,
    unique,
)
from support.streamed import Stream
from support.token_clients import caller

from coupon_service.cli.contract import methods
from coupon_service.locks.token import sign
from coupon_service.model import LockClaims
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.rpc.paging import MAC_BYTES

LIMITS = books.BookLimits(
    max_redemptions_per_code=3,
    max_redemptions_per_user=50,
    max_assignments_per_user=50,
    max_redemptions=1_000,
)


@dataclass(frozen=True)
class Things:
    """What a business has, or names of things that nobody has."""

    business: str
    user: str
    book: str
    code: str
    locked_code: str
    redeemed_code: str
    lock_id: str
    lock_token: str
    redemption_id: str
    order: str


def made_by(api: Api, business: str) -> Things:
    free, locked, redeemed = new_codes(3)
    user = unique("user")
    book = api.book(
        codes=[free, locked, redeemed],
        business_id=business,
        limits=LIMITS,
        lock_policy=books.LOCK_POLICY_OPTIONAL,
    )
    api.assign(free, user, business_id=business)
    lock = api.lock(locked, user, business_id=business)
    order = unique("order")
    redemption = api.redeem(redeemed, user, order_id=order, business_id=business).redemption
    return Things(
        business,
        user,
        book.book_id,
        free,
        locked,
        redeemed,
        lock.lock.lock_id,
        lock.lock_token,
        redemption.redemption_id,
        order,
    )


def of_nobody(server: ServerThread) -> Things:
    free, locked, redeemed = new_codes(3)
    user = unique("user")
    secret = server.settings.lock_token_secret
    assert secret is not None
    claims = LockClaims(uuid4(), locked, uuid4(), user, 1, 2**42)
    return Things(
        unique("business"),
        user,
        str(uuid4()),
        free,
        locked,
        redeemed,
        str(claims.lock_id),
        sign(claims, secret.get_secret_value().encode()),
        str(UUID(bytes=b"\1" + uuid4().bytes[1:])),
        unique("order"),
    )


@pytest.fixture(scope="module")
def root(guarded: ServerThread) -> Iterator[Api]:
    with caller(guarded.address, "admin", sub="root") as api:
        yield api


@pytest.fixture(scope="module")
def ours(guarded: ServerThread) -> Iterator[Api]:
    """A caller with all rights, in its business."""
    with caller(guarded.address, "admin", business=unique("ours")) as api:
        yield api


@pytest.fixture(scope="module")
def theirs(root: Api) -> Things:
    return made_by(root, unique("theirs"))


@pytest.fixture(scope="module")
def nothing(guarded: ServerThread) -> Things:
    return of_nobody(guarded)


def chunks(book_id: str) -> Iterator[codes.ImportCodesRequest]:
    header = codes.ImportHeader(book_id=book_id, request_id=unique("upload"))
    yield codes.ImportCodesRequest(header=header)
    yield codes.ImportCodesRequest(chunk=codes.ImportChunk(chunk_number=1, codes=new_codes(2)))


def change(api: Api, book_id: str, *, names: Sequence[str] = (), prefix: str = "") -> Any:
    """Disables codes of a list, or of a filter."""
    request = codes.ChangeCodesRequest(
        book_id=book_id, change=codes.CODE_CHANGE_DISABLE, request_id=unique("request")
    )
    if names:
        request.list.codes.extend(names)
    else:
        request.filter.prefix = prefix
    return list(api.codes.ChangeCodes(request))


def watched(api: Api, **fields: Any) -> list[audit.AuditEvent]:
    """The events of a stream to its end."""
    request = audit.WatchAuditEventsRequest(**fields, stop_at_end=True)
    return [event for message in api.audit.WatchAuditEvents(request) for event in message.events]


REFUSED: dict[str, Callable[[Api, Things], Any]] = {
    "GetAuditProof": lambda api, it: api.audit.GetAuditProof(
        audit.GetAuditProofRequest(event_id=it.redemption_id)
    ),
    "GetAuditCheckpoint of a seal": lambda api, _: api.audit.GetAuditCheckpoint(
        audit.GetAuditCheckpointRequest(number=2**60)  # one that is there tells of all businesses
    ),
    "GetCouponBook": lambda api, it: api.get_book(it.book),
    "UpdateCouponBook": lambda api, it: api.books.UpdateCouponBook(
        books.UpdateCouponBookRequest(
            coupon_book=books.CouponBook(book_id=it.book, name="x"),
            update_mask=FieldMask(paths=["name"]),
        )
    ),
    "ActivateCouponBook": lambda api, it: api.activate(it.book),
    "PauseCouponBook": lambda api, it: api.pause(it.book),
    "CloseCouponBook": lambda api, it: api.close_book(it.book),
    "GetCouponBookStats": lambda api, it: api.stats(it.book),
    "PreviewCodes": lambda api, it: api.codes.PreviewCodes(
        codes.PreviewCodesRequest(book_id=it.book, count=5)
    ),
    "GenerateCodes": lambda api, it: list(
        api.codes.GenerateCodes(codes.GenerateCodesRequest(book_id=it.book, count=5))
    ),
    "ImportCodes": lambda api, it: list(api.codes.ImportCodes(chunks(it.book))),
    "ExportCodes": lambda api, it: list(
        api.codes.ExportCodes(codes.ExportCodesRequest(book_id=it.book))
    ),
    "GetCode": lambda api, it: api.get_code(it.code),
    "GetCode in its book": lambda api, it: api.codes.GetCode(
        codes.GetCodeRequest(code=it.code, book_id=it.book)
    ),
    "ListCodes": lambda api, it: api.codes.ListCodes(codes.ListCodesRequest(book_id=it.book)),
    "DisableCode": lambda api, it: api.disable(it.code),
    "EnableCode": lambda api, it: api.enable(it.code),
    "ChangeCodes": lambda api, it: change(api, it.book, names=[it.code]),
    "ChangeCodes by a filter": lambda api, it: change(api, it.book, prefix=it.code[:3]),
    "AssignCode": lambda api, it: api.assign(it.code, "bob"),
    "AssignCode in its book": lambda api, it: api.assign(it.code, "bob", book_id=it.book),
    "AssignRandomCode": lambda api, it: api.assign_random(it.book, "bob"),
    "RevokeAssignment": lambda api, it: api.revoke(it.code, it.user),
    "ListAssignments": lambda api, it: api.assignments.ListAssignments(
        assignments.ListAssignmentsRequest(book_id=it.book)
    ),
    "TransferAssignment": lambda api, it: api.transfer(it.code, it.user, "bob"),
    "TransferAssignment in its book": lambda api, it: api.transfer(
        it.code, it.user, "bob", book_id=it.book
    ),
    "LockCode": lambda api, it: api.lock(it.code, "bob"),
    "LockCode in its book": lambda api, it: api.lock(it.code, "bob", book_id=it.book),
    "ExtendLock": lambda api, it: api.redemptions.ExtendLock(
        redemptions.ExtendLockRequest(lock_token=it.lock_token)
    ),
    "UnlockCode": lambda api, it: api.unlock(it.lock_token),
    "UnlockCode by id": lambda api, it: api.redemptions.UnlockCode(
        redemptions.UnlockCodeRequest(lock_id=it.lock_id)
    ),
    "GetLock": lambda api, it: api.redemptions.GetLock(
        redemptions.GetLockRequest(lock_id=it.lock_id)
    ),
    "RedeemCode": lambda api, it: api.redeem(it.code, it.user),
    "RedeemCode in its book": lambda api, it: api.redeem(it.code, it.user, book_id=it.book),
    "RedeemCode with its lock": lambda api, it: api.redeem(
        it.locked_code, it.user, lock_token=it.lock_token
    ),
    "RollbackRedemption": lambda api, it: api.rollback(it.redemption_id),
    "AdjustRedemption": lambda api, it: api.adjust(it.redemption_id, euros(1)),
    "GetRedemption": lambda api, it: api.redemptions.GetRedemption(
        redemptions.GetRedemptionRequest(redemption_id=it.redemption_id)
    ),
    "Checkout": lambda api, it: (
        Stream(api.redemptions.Checkout)
        .begin("RollbackRedemption", api.rollback_request(it.redemption_id))
        .result()
    ),
}
"""Calls that name one thing. By method, and in what way where there are several."""

FORBIDDEN: dict[str, Callable[[Api, Things], Any]] = {
    "VerifyAudit": lambda api, _: list(api.audit.VerifyAudit(audit.VerifyAuditRequest())),
    "EraseUser": lambda api, it: list(api.audit.EraseUser(audit.EraseUserRequest(user_id=it.user))),
    "GetErasure": lambda api, it: api.audit.GetErasure(audit.GetErasureRequest(user_id=it.user)),
}
"""Calls that are only for those who see all businesses."""

HAS_NOTHING_YET = {"ActivateCouponBook", "EnableCode", "GetAuditProof", "GetAuditCheckpoint"}
"""What is not done to what is made here: it is in another state, or nothing is sealed."""

ANSWERED: dict[str, Callable[[Api, Things], Any]] = {
    "ValidateCode": lambda api, it: api.validate(it.code, it.user),
    "ValidateCode in its book": lambda api, it: api.validate(it.code, it.user, book_id=it.book),
    "ValidateCode with its lock": lambda api, it: api.validate(
        it.locked_code, it.user, lock_token=it.lock_token
    ),
    "QualifyCoupons": lambda api, it: [  # the answer repeats the code
        list(coupon.problems) for coupon in api.qualify(it.user, it.code).coupons
    ],
    "BatchAssignRandomCodes": lambda api, it: api.assignments.BatchAssignRandomCodes(
        assignments.BatchAssignRandomCodesRequest(book_id=it.book, user_ids=["bob", "carol"])
    ),
    "BatchRedeemCodes": lambda api, it: api.redemptions.BatchRedeemCodes(
        redemptions.BatchRedeemCodesRequest(
            items=[
                redemptions.RedeemItem(code=it.code, user_id=it.user),
                redemptions.RedeemItem(
                    code=it.locked_code, user_id=it.user, lock_token=it.lock_token
                ),
            ]
        )
    ),
    "BatchRedeemCodes all or nothing": lambda api, it: api.redemptions.BatchRedeemCodes(
        redemptions.BatchRedeemCodesRequest(
            items=[redemptions.RedeemItem(code=it.code, user_id=it.user)],
            mode=redemptions.BATCH_MODE_ALL_OR_NOTHING,
        )
    ),
    "ListCouponBooks": lambda api, _: api.books.ListCouponBooks(books.ListCouponBooksRequest()),
    "ListUserCoupons": lambda api, it: api.assignments.ListUserCoupons(
        assignments.ListUserCouponsRequest(user_id=it.user)
    ),
    "ListUserCoupons of its book": lambda api, it: api.assignments.ListUserCoupons(
        assignments.ListUserCouponsRequest(user_id=it.user, book_id=it.book)
    ),
    "ListLocks": lambda api, it: api.redemptions.ListLocks(
        redemptions.ListLocksRequest(user_id=it.user, page_size=1)
    ),
    "ListLocks of its book": lambda api, it: api.redemptions.ListLocks(
        redemptions.ListLocksRequest(book_id=it.book, page_size=1)
    ),
    "ListRedemptions": lambda api, it: api.redemptions.ListRedemptions(
        redemptions.ListRedemptionsRequest(user_id=it.user)
    ),
    "ListRedemptions of its book": lambda api, it: api.redemptions.ListRedemptions(
        redemptions.ListRedemptionsRequest(book_id=it.book)
    ),
    "ListRedemptions of its code": lambda api, it: api.redemptions.ListRedemptions(
        redemptions.ListRedemptionsRequest(code=it.redeemed_code)
    ),
    "ListRedemptions of its order": lambda api, it: api.redemptions.ListRedemptions(
        redemptions.ListRedemptionsRequest(order_id=it.order)
    ),
    "ListRedemptions since a time": lambda api, _: api.redemptions.ListRedemptions(
        redemptions.ListRedemptionsRequest(start_time=to_timestamp(from_now(hours=-1)))
    ),
    "ListAuditEvents": lambda api, _: api.audit.ListAuditEvents(audit.ListAuditEventsRequest()),
    "ListAuditEvents of its book": lambda api, it: api.audit.ListAuditEvents(
        audit.ListAuditEventsRequest(book_id=it.book)
    ),
    "ListAuditEvents of its code": lambda api, it: api.audit.ListAuditEvents(
        audit.ListAuditEventsRequest(code=it.code)
    ),
    "ListAuditEvents of its order": lambda api, it: api.audit.ListAuditEvents(
        audit.ListAuditEventsRequest(order_id=it.order)
    ),
    "ListAuditEvents of its user": lambda api, it: api.audit.ListAuditEvents(
        audit.ListAuditEventsRequest(user_id=it.user)
    ),
    "WatchAuditEvents of its book": lambda api, it: watched(api, book_id=it.book),
    "WatchAuditEvents of its code": lambda api, it: watched(api, code=it.code),
    "WatchAuditEvents of its order": lambda api, it: watched(api, order_id=it.order),
    "WatchAuditEvents of its user": lambda api, it: watched(api, user_id=it.user),
}
"""Calls that are answered, with nothing or with what is wrong with each item."""


def everything(root: Api, things: Things, server: ServerThread) -> list[Any]:
    """All that is stored of a business."""
    with psycopg.connect(server.database_url) as connection:
        users = connection.execute(
            "SELECT user_id, redemptions, assignments FROM coupon_user_counters"
            " WHERE book_id = %s ORDER BY user_id",
            [things.book],
        ).fetchall()
    return [
        root.get_book(things.book),
        root.stats(things.book),
        list(root.codes.ExportCodes(codes.ExportCodesRequest(book_id=things.book))),
        root.events(book_id=things.book),
        root.redemptions.GetLock(redemptions.GetLockRequest(lock_id=things.lock_id)),
        root.redemptions.ListLocks(redemptions.ListLocksRequest(book_id=things.book)),
        users,
    ]


def refusal(call: Callable[[Api, Things], Any], api: Api, things: Things) -> tuple[Any, ...]:
    """All that a caller is told."""
    with pytest.raises(grpc.RpcError) as caught:
        call(api, things)
    error: Any = caught.value
    metadata = [(key, value) for key, value in error.trailing_metadata() or ()]
    return error.code(), error.details(), metadata


def test_every_method_is_tried() -> None:
    tried = {name.split()[0] for name in (*REFUSED, *FORBIDDEN, *ANSWERED)} | {"CreateCouponBook"}
    tried |= {"ListRefusals"}  # has what these calls tried themselves: test_refusals.py
    assert tried == {it.name for it in methods() if it.containing_service.name != "Health"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_named_does_not_exist(
    name: str, root: Api, ours: Api, theirs: Things, nothing: Things, guarded: ServerThread
) -> None:
    before = everything(root, theirs, guarded)
    answer = refusal(REFUSED[name], ours, theirs)
    assert answer == refusal(REFUSED[name], ours, nothing)
    assert answer[0] is grpc.StatusCode.NOT_FOUND
    assert everything(root, theirs, guarded) == before


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_for_all_businesses_is_denied(
    name: str, root: Api, ours: Api, theirs: Things, nothing: Things, guarded: ServerThread
) -> None:
    before = everything(root, theirs, guarded)
    answer = refusal(FORBIDDEN[name], ours, theirs)
    assert answer == refusal(FORBIDDEN[name], ours, nothing)
    assert answer[0] is grpc.StatusCode.PERMISSION_DENIED
    assert everything(root, theirs, guarded) == before


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_listed_or_tried_does_not_exist(
    name: str, root: Api, ours: Api, theirs: Things, nothing: Things, guarded: ServerThread
) -> None:
    before = everything(root, theirs, guarded)
    answer = ANSWERED[name](ours, theirs)
    assert answer == ANSWERED[name](ours, nothing)
    assert everything(root, theirs, guarded) == before
    if name.startswith("List"):
        assert answer == type(answer)()  # not even a next page
    for result in getattr(answer, "results", ()):
        assert result.WhichOneof("result") == "error"
        assert reason_name(result.error) in {"CODE_NOT_FOUND", "BOOK_NOT_FOUND"}


def test_the_same_calls_reach_what_is_the_callers_own(guarded: ServerThread, root: Api) -> None:
    business = unique("mine")
    with caller(guarded.address, "admin", business=business) as mine:
        for name, call in REFUSED.items():
            if name.split()[0] not in HAS_NOTHING_YET:
                call(mine, made_by(root, business))
        for name, call in ANSWERED.items():
            answer = call(mine, made_by(root, business))
            assert answer != type(answer)(), name


class TestBooks:
    def test_they_are_made_and_listed_in_the_callers_business_alone(
        self, guarded: ServerThread, theirs: Things
    ) -> None:
        business = unique("mine")
        with caller(guarded.address, "issuer", business=business) as api:
            with refused("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED):
                api.draft(business_id=theirs.business)
            with refused("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED):
                api.books.ListCouponBooks(books.ListCouponBooksRequest(business_id=theirs.business))
            made = [api.draft(business_id=business).book_id for _ in range(3)]
            for request in (
                books.ListCouponBooksRequest(page_size=2),
                books.ListCouponBooksRequest(page_size=2, business_id=business),
            ):
                found = pages(api.books.ListCouponBooks, request, "coupon_books")
                assert [book.book_id for page in found for book in page] == made[::-1]

    def test_a_code_of_theirs_is_not_in_a_book_of_ours(
        self, guarded: ServerThread, theirs: Things, nothing: Things
    ) -> None:
        business = unique("mine")
        with caller(guarded.address, "admin", business=business) as api:
            book = api.book(business_id=business)
            answers = [
                refusal(lambda api, it: api.redeem(it.code, "ann", book_id=book.book_id), api, it)
                for it in (theirs, nothing)
            ]
            assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def user() -> str:
    return unique("user")


@pytest.fixture(scope="module")
def business(root: Api, user: str) -> str:
    """A business whose user has coupons, redemptions and locks, in turns with its namesake in
    another one.
    """
    shops = {unique("mine"): new_codes(2), unique("other"): new_codes(2)}
    for business, names in shops.items():
        limits = books.BookLimits(max_redemptions_per_code=2)
        policy = books.LOCK_POLICY_OPTIONAL
        root.book(codes=names, business_id=business, lock_policy=policy, limits=limits)
    for turn in zip(*shops.values(), strict=True):
        for business, code in zip(shops, turn, strict=True):
            root.assign(code, user, business_id=business)
            root.redeem(code, user, business_id=business)
            root.lock(code, user, ttl_s=600, business_id=business)
    return next(iter(shops))


class TestPages:
    """A page token says where to go on; it opens nothing, and tells nothing of others."""

    @pytest.mark.parametrize(
        ("service", "method", "request_type", "items"),
        [
            ("assignments", "ListUserCoupons", assignments.ListUserCouponsRequest, "coupons"),
            ("redemptions", "ListRedemptions", redemptions.ListRedemptionsRequest, "redemptions"),
            ("redemptions", "ListLocks", redemptions.ListLocksRequest, "locks"),
            ("audit", "ListAuditEvents", audit.ListAuditEventsRequest, "events"),
        ],
    )
    def test_a_list_goes_on_with_what_is_ours(
        self,
        service: str,
        method: str,
        request_type: Any,
        items: str,
        guarded: ServerThread,
        root: Api,
        business: str,
        user: str,
    ) -> None:
        with caller(guarded.address, "admin", business=business) as api:
            own_books = {
                book.book_id
                for book in api.books.ListCouponBooks(books.ListCouponBooksRequest()).coupon_books
            }
            request = request_type(user_id=user, page_size=1)
            list_ours = getattr(getattr(api, service), method)
            list_all = getattr(getattr(root, service), method)
            found = pages(list_ours, request, items)
            assert all(len(page) == 1 for page in found)
            ours = [page[0] for page in found]
            everyones = [item for page in pages(list_all, request, items) for item in page]
            assert ours == [item for item in everyones if book_of(item) in own_books]
            assert len(everyones) == 2 * len(ours) >= 4

            # A token of somebody who sees more, wherever it leads.
            asked = request_type(user_id=user, page_size=1)
            for _ in everyones[:-1]:
                asked.page_token = list_all(asked).next_page_token
                answer = list_ours(asked)
                assert {book_of(it) for it in getattr(answer, items)} <= own_books
                if answer.next_page_token:
                    assert position_of(answer.next_page_token) in [
                        position_of(it.next_page_token) for it in self.answers(list_ours, request)
                    ]

    def answers(self, list_rpc: Callable[[Any], Any], request: Any) -> list[Any]:
        asked = type(request)()
        asked.CopyFrom(request)
        found = [list_rpc(asked)]
        while found[-1].next_page_token:
            asked.page_token = found[-1].next_page_token
            found.append(list_rpc(asked))
        return [it for it in found if it.next_page_token]


def book_of(item: Any) -> str:
    return (item.assignment if hasattr(item, "assignment") else item).book_id


def position_of(page_token: str) -> Any:
    """The row after which a page begins."""
    return json.loads(urlsafe_b64decode(page_token + "=" * (-len(page_token) % 4))[MAC_BYTES:])


class TestRepeats:
    """A `request_id` is its caller's: nobody is shown what another one was answered."""

    def test_two_callers_never_see_each_others_answers(self, guarded: ServerThread) -> None:
        business, request_id = unique("business"), unique("request")
        with (
            caller(guarded.address, "admin", sub="one", business=business) as one,
            caller(guarded.address, "admin", sub="two", business=business) as two,
        ):
            limits = books.BookLimits(max_redemptions_per_code=2)
            code = one.code(business_id=business, limits=limits)
            first = one.redeem(code, "ann", request_id=request_id)
            other = two.redeem(code, "ann", request_id=request_id)
            assert not other.replayed
            assert other.redemption.redemption_id != first.redemption.redemption_id
            for api, answer in ((one, first), (two, other)):
                again = api.redeem(code, "ann", request_id=request_id)
                assert again.replayed
                assert again.redemption == answer.redemption
            with refused("REQUEST_ID_REUSED"):
                two.redeem(code, "bob", request_id=request_id)

    def test_the_same_caller_in_another_business_is_another(self, guarded: ServerThread) -> None:
        request_id = unique("request")
        made: set[str] = set()
        for business in (unique("business"), unique("business")):
            with caller(guarded.address, "issuer", sub="shop", business=business) as api:
                request = books.CreateCouponBookRequest(
                    coupon_book=books.CouponBook(
                        business_id=business,
                        name="A book",
                        currency_code="EUR",
                        discount=books.Discount(percent_off=books.PercentOff(basis_points=1)),
                    ),
                    request_id=request_id,
                )
                answer = api.books.CreateCouponBook(request)
                assert not answer.replayed
                made.add(answer.coupon_book.book_id)
        assert len(made) == 2

    def test_the_ledger_has_the_subject_of_the_token(self, guarded: ServerThread) -> None:
        business = unique("business")
        with caller(guarded.address, "admin", sub="till 7", business=business) as api:
            code = api.code(business_id=business)
            api.redeem(code, "ann")
            assert {event.caller for event in api.events(code=code)} == {"till 7"}


def test_unknown_codes_of_one_business_do_not_stop_the_users_of_another(
    guarded: ServerThread,
) -> None:
    mine, other, user = unique("mine"), unique("other"), unique("user")
    settings = guarded.settings.model_copy(update={"guess_limit_end_users": "2/hour"})
    with (
        ServerThread(settings) as server,
        caller(server.address, "admin", business=mine) as api,
        caller(server.address, "admin", business=other) as others,
    ):
        for reason in ("CODE_NOT_FOUND", "CODE_NOT_FOUND", "RATE_LIMITED"):
            with refused(reason):
                others.redeem(new_codes(1)[0], user)
        api.redeem(api.code(business_id=mine), user)
