"""Requests and answers of RedemptionService about redemptions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.ledger_rows import ID, NOW, REDEEMED
from support.page_tokens import PAGES
from support.violations import bad_fields

from coupon_service.checkout import Validation
from coupon_service.errors import CodeAlreadyRedeemed, CodeNotFound, PermissionDenied
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Benefit,
    Book,
    BookLimits,
    Code,
    CodeState,
    Done,
    EventType,
    Money,
    Redeem,
    bucket_of_event,
    event_id,
)
from coupon_service.model.codes import bucket_of
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import redemptions
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.store.queries.reads import AuditFilter
from coupon_service.v1 import error_reason_pb2 as reasons
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money as MoneyMessage

EUR_10 = MoneyMessage(amount_minor=1_000, currency_code="EUR")
ONE_CENT = MoneyMessage(amount_minor=1, currency_code="EUR")
TOO_LONG = "x" * 129


def rpc(caller: str = "shop") -> RequestContext:
    return RequestContext(
        (("user-agent", "test/1"),), peer="ipv4:1.2.3.4:5", caller=caller, business_id="acme"
    )


def request(**values: Any) -> pb.RedeemCodeRequest:
    message = pb.RedeemCodeRequest(code="ab-cd", user_id="u", request_id="r")
    message.MergeFrom(pb.RedeemCodeRequest(**values))
    return message


def redeem(caller: str = "shop", **values: Any) -> Redeem:
    return redemptions.read_redeem(request(**values), rpc(caller))


# --- redeem -------------------------------------------------------------------------------------


def test_a_redemption_takes_everything_from_the_request() -> None:
    message = request(book_id=str(ID), order_id="o", order_amount=EUR_10, lock_token="token")
    message.metadata.update({"a": 1})
    command = redemptions.read_redeem(message, rpc())
    assert command == Redeem(
        call=command.call,
        code="ABCD",
        event_id=event_id(bucket_of("ABCD"), EventType.REDEEMED, "shop", "r", "ABCD"),
        fingerprint=command.fingerprint,
        user_id="u",
        book_id=ID,
        order_id="o",
        order_amount=Money(1_000, "EUR"),
        metadata='{"a":1}',
    )


def test_the_ledger_will_know_who_asked_from_where_with_what() -> None:
    call = redeem().call
    assert (call.caller, call.request_id, call.peer, call.user_agent, call.business_id) == (
        "shop",
        "r",
        "ipv4:1.2.3.4:5",
        "test/1",
        "acme",
    )


def test_the_log_will_know_the_request_id_also_of_one_that_was_made_up() -> None:
    context = rpc()
    command = redemptions.read_redeem(pb.RedeemCodeRequest(code="A", user_id="u"), context)
    assert context.request_id == command.call.request_id != ""


def test_an_attempt_is_named_by_caller_request_id_and_code() -> None:
    assert redeem().event_id == redeem(code="AB CD").event_id
    others = (redeem(code="abce"), redeem(request_id="s"), redeem("other"))
    assert redeem().event_id not in {other.event_id for other in others}


@pytest.mark.parametrize(
    "values",
    [
        {"user_id": "v"},
        {"book_id": str(ID)},
        {"order_id": "o"},
        {"order_amount": EUR_10},
        {"order_amount": MoneyMessage(amount_minor=1, currency_code="USD")},
    ],
    ids=["user", "book", "order", "amount", "currency"],
)
def test_other_parameters_under_the_same_request_id_are_a_reuse(values: dict[str, Any]) -> None:
    base = redeem(order_amount=ONE_CENT)
    other = redeem("shop", **{"order_amount": ONE_CENT, **values})
    assert other.event_id == base.event_id
    assert other.fingerprint != base.fingerprint


def test_other_metadata_are_a_reuse_and_another_token_is_not() -> None:
    message = request()
    message.metadata.update({"a": 1})
    assert redemptions.read_redeem(message, rpc()).fingerprint != redeem().fingerprint
    assert redeem(lock_token="renewed").fingerprint == redeem().fingerprint


def test_a_bad_redemption_names_every_field() -> None:
    message = pb.RedeemCodeRequest(
        code="😀" * 129,
        book_id="x",
        user_id="   ",
        order_id=TOO_LONG,
        order_amount=MoneyMessage(amount_minor=-5),
        request_id="a b",
    )
    message.metadata.update({"a": {"b": {"c": {"d": {"e": {}}}}}})
    assert bad_fields(lambda: redemptions.read_redeem(message, rpc())) == [
        "request_id",
        "code",
        "book_id",
        "user_id",
        "order_id",
        "order_amount.amount_minor",
        "order_amount.currency_code",
        "metadata",
    ]


def test_an_amount_of_nothing_is_another_than_no_amount() -> None:
    zero = redeem(order_amount=MoneyMessage(currency_code="EUR"))
    assert zero.order_amount == Money(0, "EUR")
    assert redeem().order_amount is None
    assert zero.fingerprint != redeem().fingerprint


def test_a_dry_run_is_checked_like_the_real_one() -> None:
    good = pb.ValidateCodeRequest(code="ab-cd", user_id="u", lock_token="t")
    command = redemptions.read_validate(good, rpc())
    assert (command.code, command.user_id) == ("ABCD", "u")
    assert bad_fields(lambda: redemptions.read_validate(pb.ValidateCodeRequest(), rpc())) == [
        "code",
        "user_id",
    ]


# --- batches ------------------------------------------------------------------------------------


def read_batch(*items: pb.RedeemItem, mode: int = 0, request_id: str = "r") -> Any:
    message = pb.BatchRedeemCodesRequest(
        items=items, mode=pb.BatchMode.ValueType(mode), request_id=request_id
    )
    return redemptions.read_batch(message, rpc())


def item(code: str = "ab-cd", **values: Any) -> pb.RedeemItem:
    return pb.RedeemItem(code=code, user_id="u", **values)


def test_an_item_is_the_same_attempt_as_the_code_alone() -> None:
    commands, atomic = read_batch(item(lock_token="t"), item("x1"))
    assert commands == [(redeem(), "t"), (redeem(code="x1"), "")]
    assert not atomic


def test_all_or_nothing_has_to_be_asked_for() -> None:
    assert read_batch(item(), mode=pb.BATCH_MODE_ALL_OR_NOTHING)[1]
    assert not read_batch(item(), mode=pb.BATCH_MODE_BEST_EFFORT)[1]
    assert bad_fields(lambda: read_batch(item(), mode=7)) == ["mode"]


def test_items_share_the_request_id_of_the_call_unless_they_have_one() -> None:
    commands, _ = read_batch(item(), item("x1", request_id="own"))
    assert [command.call.request_id for command, _ in commands] == ["r", "own"]


def test_items_of_a_call_without_request_id_share_one_that_is_made_up() -> None:
    commands, _ = read_batch(item(), item("x1"), request_id="")
    assert len({command.call.request_id for command, _ in commands}) == 1


def test_the_same_code_twice_needs_different_request_ids() -> None:
    assert bad_fields(lambda: read_batch(item("ab-cd"), item("x1"), item("ABCD"))) == [
        "items[2].code"
    ]
    assert bad_fields(lambda: read_batch(item(), item(request_id="r"))) == ["items[1].code"]
    assert len(read_batch(item(), item(request_id="s"))[0]) == 2


def test_bad_items_are_named_by_their_index() -> None:
    bad = item(order_amount=MoneyMessage(amount_minor=-1, currency_code="EUR"), request_id="a b")
    assert bad_fields(lambda: read_batch(item("x1"), bad, pb.RedeemItem())) == [
        "items[1].request_id",
        "items[1].order_amount.amount_minor",
        "items[2].code",
        "items[2].user_id",
    ]


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_is_of_one_to_a_thousand_items(count: int) -> None:
    items = [item(f"c{number}") for number in range(count)]
    assert bad_fields(lambda: read_batch(*items)) == ["items"]


def test_a_thousand_items_are_taken() -> None:
    assert len(read_batch(*(item(f"c{number}") for number in range(1_000)))[0]) == 1_000


# --- roll-back, get, list -----------------------------------------------------------------------

ROLLED_BACK = replace(
    REDEEMED,
    type=EventType.ROLLED_BACK,
    event_time=NOW + timedelta(hours=1),
    redemption_id=REDEEMED.event_id,
    code_redemptions=1,
)


def test_a_redemption_is_rolled_back_by_the_same_attempt_whoever_asks() -> None:
    def command(caller: str, request_id: str) -> Any:
        message = pb.RollbackRedemptionRequest(
            redemption_id=str(REDEEMED.event_id), request_id=request_id
        )
        redemption_id, call, metadata = redemptions.read_rollback(message, rpc(caller))
        assert redemption_id == REDEEMED.event_id
        return redemptions.rollback_command(REDEEMED, call, metadata)

    first, other = command("shop", "r"), command("other", "s")
    assert first.event_id == other.event_id != REDEEMED.event_id
    assert bucket_of_event(first.event_id) == bucket_of("ABCD")
    assert (first.code, first.user_id, first.redemption) == ("ABCD", "u", REDEEMED)


def test_redemptions_are_named_by_uuids() -> None:
    rollback = pb.RollbackRedemptionRequest(redemption_id="x", request_id="\0")
    assert bad_fields(lambda: redemptions.read_rollback(rollback, rpc())) == [
        "request_id",
        "redemption_id",
    ]
    get = pb.GetRedemptionRequest()
    assert bad_fields(lambda: redemptions.read_redemption_id(get)) == ["redemption_id"]
    get.redemption_id = str(ID)
    assert redemptions.read_redemption_id(get) == ID


@pytest.mark.parametrize(
    "values",
    [
        {"user_id": "u"},
        {"book_id": str(ID)},
        {"code": "ab-cd"},
        {"order_id": "o"},
        {"business_id": "acme"},
        {"start_time": to_timestamp(NOW)},
        {"end_time": to_timestamp(NOW)},
    ],
)
def test_redemptions_are_listed_by_any_one_filter(values: dict[str, Any]) -> None:
    wanted, page = redemptions.read_list(
        pb.ListRedemptionsRequest(**values, page_size=7), rpc(), PAGES
    )
    none = AuditFilter(business_id="acme", types=(EventType.REDEEMED,))
    ((name, value),) = values.items()
    typed = {"book_id": ID, "code": "ABCD", "start_time": NOW, "end_time": NOW}.get(name, value)
    assert wanted == replace(none, **{name: typed})
    assert page.size == 7


def test_redemptions_of_another_business_cannot_be_listed() -> None:
    with pytest.raises(PermissionDenied):
        redemptions.read_list(pb.ListRedemptionsRequest(business_id="b"), rpc(), PAGES)


def test_all_redemptions_cannot_be_listed() -> None:
    bad = pb.ListRedemptionsRequest(page_size=-1)
    assert bad_fields(lambda: redemptions.read_list(bad, rpc(), PAGES)) == [
        "user_id",
        "page_size",
    ]


def test_a_redemption_is_shown_as_the_ledger_has_it() -> None:
    message = redemptions.redeemed_message(Done(REDEEMED, book(), None, replayed=True))
    expected = pb.Redemption(
        redemption_id=str(REDEEMED.event_id),
        code="ABCD",
        book_id=str(ID),
        user_id="u",
        order_id="o",
        state=pb.REDEMPTION_STATE_SUCCEEDED,
        order_amount=EUR_10,
        discount=MoneyMessage(amount_minor=150, currency_code="EUR"),
        lock_id=str(ID),
        redeem_time=to_timestamp(NOW),
        etag="a0",
    )
    expected.metadata.update({"a": 1})
    counts = pb.RedemptionCounts(
        code_redemption_count=2,
        code_max_redemptions=2,
        used_up=True,
        user_code_redemption_count=1,
    )
    assert message == pb.RedeemCodeResponse(redemption=expected, counts=counts, replayed=True)


def test_what_a_redemption_does_not_have_is_not_set() -> None:
    event = replace(
        REDEEMED,
        order_id=None,
        order_amount_minor=None,
        discount_minor=None,
        lock_id=None,
        metadata=None,
        benefit="a gift",
    )
    message = redemptions.redemption_message(event)
    names = {field.name for field, _ in message.ListFields()}
    assert names.isdisjoint({"order_id", "order_amount", "discount", "lock_id", "metadata"})
    assert message.benefit == "a gift"


def test_a_discount_of_nothing_is_shown() -> None:
    message = redemptions.redemption_message(replace(REDEEMED, discount_minor=0))
    assert message.discount == MoneyMessage(amount_minor=0, currency_code="EUR")


def test_a_redemption_that_was_rolled_back_says_when() -> None:
    message = redemptions.redemption_message(REDEEMED, ROLLED_BACK)
    assert message.state == pb.REDEMPTION_STATE_ROLLED_BACK
    assert message.redeem_time == to_timestamp(NOW)
    assert message.rollback_time == to_timestamp(ROLLED_BACK.event_time)


@pytest.mark.parametrize(
    ("count", "limit", "used_up"), [(1, 2, False), (2, 2, True), (7, 0, False), (0, 1, False)]
)
def test_a_code_is_used_up_when_it_has_a_limit_and_is_there(
    count: int, limit: int, used_up: bool
) -> None:
    event = replace(REDEEMED, code_redemptions=count, code_redemption_limit=limit)
    assert redemptions.counts_message(event).used_up is used_up


def test_every_item_of_a_batch_gets_a_result_of_its_own() -> None:
    outcomes = [CodeAlreadyRedeemed(item=0), Done(REDEEMED, book(), None, replayed=True)]
    message = redemptions.batch_message(outcomes)
    first, second = message.results
    assert first.error.reason == reasons.ERROR_REASON_CODE_ALREADY_REDEEMED
    assert first.error.metadata == {"item": "0"}
    assert not first.HasField("counts")
    assert (second.redemption.code, second.counts.code_redemption_count) == ("ABCD", 2)
    assert second.replayed
    assert message.redeemed_count == 1


def book() -> Book:
    return Book(
        book_id=ID,
        business_id="acme",
        name="Spring",
        discount=Benefit("a gift"),
        limits=BookLimits(max_redemptions_per_code=3),
        create_time=NOW,
        update_time=NOW,
    )


def test_a_dry_run_has_the_discount_and_the_counts_also_with_problems() -> None:
    validation = Validation(
        problems=[CodeAlreadyRedeemed()],
        book=book(),
        code=Code("ABCD", ID, CodeState.REDEEMED, 3, 1),
        assignment=Assignment("ABCD", "u", ID, AssignmentState.REDEEMED, redemptions=2),
        discount=Money(0, "EUR"),
    )
    message = redemptions.validation_message(validation)
    assert not message.valid
    assert [it.reason for it in message.problems] == [reasons.ERROR_REASON_CODE_ALREADY_REDEEMED]
    assert message.book_id == str(ID)
    assert message.discount == MoneyMessage(currency_code="EUR")
    assert message.counts == pb.RedemptionCounts(
        code_redemption_count=3,
        code_max_redemptions=3,
        used_up=True,
        user_code_redemption_count=2,
    )


def test_a_dry_run_of_a_code_that_is_not_there_has_that_alone() -> None:
    message = redemptions.validation_message(Validation([CodeNotFound()]))
    assert {field.name for field, _ in message.ListFields()} == {"problems"}


def test_a_code_that_passes_is_valid() -> None:
    code = Code("ABCD", ID, CodeState.AVAILABLE, 0, 0)
    message = redemptions.validation_message(Validation([], book(), code, benefit="a gift"))
    assert message.valid
    assert message.benefit == "a gift"
