"""What is stored, hashed or handed out by name: a renamed class or module changes none of it.

A value that differs here is one that running services and their databases no longer find.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.struct_pb2 import Struct

from coupon_service.leases.results import LeaseKey
from coupon_service.leases.scripts import (
    LOCKING_BOOKS,
    LeaseScripts,
    book_index,
    index_member,
    user_index,
)
from coupon_service.locks.token import sign
from coupon_service.model import (
    CodeCommand,
    EventType,
    LockClaims,
    bucket_of_book,
    bucket_of_user,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.ratelimit.callers import read_limits, user_identity
from coupon_service.ratelimit.limiter import RateClass
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import assignments, books, codes, locks, redemptions
from coupon_service.rpc.paging import PageTokens
from coupon_service.v1 import assignment_service_pb2 as assignment_pb
from coupon_service.v1 import coupon_book_service_pb2 as book_pb
from coupon_service.v1 import coupon_code_service_pb2 as code_pb
from coupon_service.v1 import redemption_service_pb2 as redemption_pb
from coupon_service.v1.money_pb2 import Money

BOOK = UUID("a1000000-0000-8000-8000-000000000001")
LOCK = UUID("07000000-0000-8000-8000-000000000002")
RPC = RequestContext(caller="till", business_id="shop")
METADATA = Struct()
METADATA.update({"b": 1, "a": "x"})


def ids(command: CodeCommand) -> tuple[str, int]:
    """What a repeat of the command is recognised by."""
    return command.event_id.hex, command.fingerprint


def test_events_keep_their_names_and_numbers() -> None:
    assert {it.name: it.value for it in EventType} == {
        "BOOK_CREATED": 1,
        "BOOK_UPDATED": 2,
        "BOOK_ACTIVATED": 3,
        "BOOK_PAUSED": 4,
        "BOOK_CLOSED": 5,
        "CODES_GENERATED": 6,
        "CODES_IMPORTED": 7,
        "CODE_DISABLED": 8,
        "CODE_ENABLED": 9,
        "ASSIGNED": 10,
        "REVOKED": 11,
        "LOCKED": 12,
        "LOCK_EXTENDED": 13,
        "UNLOCKED": 14,
        "LOCK_EXPIRED": 15,
        "REDEEMED": 16,
        "ROLLED_BACK": 17,
        "BOOK_RUNNING_LOW": 18,
        "BOOK_USED_UP": 19,
        "ASSIGNMENT_EXPIRED": 20,
        "ASSIGNMENT_TRANSFERRED": 21,
        "CODES_DELETED": 23,
        "CODES_CHANGED": 24,
        "USER_ERASED": 40,
        "ADJUSTED": 22,
        "BOOK_ARCHIVED": 43,
        "BOOK_RESTORED": 44,
    }


def test_a_repeat_of_a_transfer_is_recognised() -> None:
    request = assignment_pb.TransferAssignmentRequest(
        request_id="r-1",
        code="summer-25",
        from_user_id="ü",
        to_user_id="bob",
        book_id=str(BOOK),
        metadata=METADATA,
    )
    command, _ = assignments.read_transfer(request, RPC)
    assert ids(command) == ("1566ad3cea518b1bb93fdc6bd3d9ca3d", -4314038656095051882)


def test_hashes_stay() -> None:
    assert (
        event_id(33, EventType.REDEEMED, "till", "r-1", "CODE").hex
        == "21498f60f1a78ba8aaa19c6c4b97ee73"
    )
    assert fingerprint("till", None, 7, BOOK) == 476719772552765996
    assert (bucket_of("CODE"), bucket_of_book(BOOK), bucket_of_user("ü")) == (44, 10, 21)


def test_a_repeat_of_a_redemption_is_recognised() -> None:
    request = redemption_pb.RedeemCodeRequest(
        request_id="r-1",
        code="summer-25",
        user_id="ü",
        book_id=str(BOOK),
        order_id="o",
        order_amount=Money(amount_minor=4000, currency_code="EUR"),
        metadata=METADATA,
    )
    assert ids(redemptions.read_redeem(request, RPC)) == (
        "15df08d6bbf48c8fb5cd17019d33a00e",
        4569283281104100144,
    )


def test_a_repeat_of_a_lock_is_recognised() -> None:
    request = redemption_pb.LockCodeRequest(
        request_id="r-1", code="summer-25", user_id="ü", book_id=str(BOOK), metadata=METADATA
    )
    assert ids(locks.read_lock(request, RPC)) == (
        "155a6987a93981e4b45227bacc2e4ee8",
        -5323665126088686712,
    )


def test_a_repeat_of_an_assignment_is_recognised() -> None:
    request = assignment_pb.AssignCodeRequest(
        request_id="r-1", code="summer-25", user_id="ü", book_id=str(BOOK), metadata=METADATA
    )
    assert ids(assignments.read_assign(request, RPC)) == (
        "154f9ef767628f549d6ac4ba67f2c4ef",
        -6668078858552199046,
    )
    random = assignment_pb.AssignRandomCodeRequest(
        request_id="r-1", book_id=str(BOOK), user_id="ü", metadata=METADATA
    )
    found = assignments.read_assign_random(random, RPC)
    assert (found.event_id.hex, found.fingerprint) == (
        "0ad0e50ea1f78a3d9badaeab7daf4e69",
        -8388540972532516941,
    )


def test_a_repeat_of_a_change_of_a_code_is_recognised() -> None:
    request = code_pb.DisableCodeRequest(request_id="r-1", code="summer-25")
    assert ids(codes.read_set_enabled(request, EventType.CODE_DISABLED, RPC)) == (
        "156c208187c98a1aba097e3207094dfe",
        -1970711489451281740,
    )


def test_a_repeat_of_a_new_book_is_recognised_whatever_fields_came_later() -> None:
    book = book_pb.CouponBook(
        business_id="shop",
        name="n",
        discount=book_pb.Discount(benefit=book_pb.Benefit(description="d")),
        metadata=METADATA,
    )
    request = book_pb.CreateCouponBookRequest(request_id="r-1", coupon_book=book)
    made, _, found, _ = books.read_create(request, RPC, datetime(2027, 1, 1, tzinfo=UTC))
    assert (made.book_id.hex, found) == (
        "34c4bc40a348856499507513e5871ed5",
        -6192263809163076043,
    )


def test_a_repeat_of_a_change_of_a_book_is_recognised() -> None:
    request = book_pb.UpdateCouponBookRequest(
        request_id="r-1", coupon_book=book_pb.CouponBook(book_id=str(BOOK), name="n")
    )
    request.update_mask.paths.append("name")
    assert books.read_update(request, RPC).fingerprint == 2228789750514555622


def test_redis_keys_stay() -> None:
    built = LeaseScripts()
    assert built.acquire(LeaseKey("C", "b", "u", "l"), grace_ms=1)[2:7] == (
        4,
        "coupon:{C}:places",
        "coupon:{C}:locks",
        "coupon:{C}:gone:l:u",
        "coupon:{C}:redeeming:u",
    )
    assert (LOCKING_BOOKS, user_index("u"), book_index("b")) == (
        "coupon:locking-books",
        "coupon:user:{u}:locks",
        "coupon:book:{b}:locks",
    )
    assert index_member(LeaseKey("C", "b", "u", "l")) == "C\0b\0u\0l"


def test_keys_of_limits_stay() -> None:
    (item,) = read_limits("10/minute")
    assert (
        item.key_for("calls", f"{RateClass.TILL}/{user_identity('a/b', 'u')}")
        == "LIMITER/calls/till/user/a%2Fb/u/10/1/minute"
    )


def test_tokens_stay() -> None:
    claims = LockClaims(
        lock_id=LOCK, code="CODE", book_id=BOOK, user_id="ü", fence=7, expire_ms=1_800_000_000_000
    )
    assert sign(claims, b"a secret of the test") == (
        "bG9jazEAQ09ERQBhMTAwMDAwMDAwMDA4MDAwODAwMDAwMDAwMDAwMDAwMQDDvAAwNzAwMDAwMDAwMDA4"
        "MDAwODAwMDAwMDAwMDAwMDAwMgA3ADE4MDAwMDAwMDAwMDC7zDHCsxuhwbP6fXaeRmVbbOCsP--khZax"
        "YuO_YKgoSg"
    )
    request = code_pb.ListCodesRequest(book_id=str(BOOK))
    pages = PageTokens([b"a secret of the test"])
    assert pages.token(request, ("CODE",)) == "2j9Ex7owTrnb8kwzapdv-1siQ09ERSJd"
