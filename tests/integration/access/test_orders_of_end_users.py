"""An order that an end user names is one of its own: it stands in the way of no other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import psycopg
import pytest
from support.calls import reason_or_ok, reasons_of, tried
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    books,
    euros,
    new_codes,
    redemptions,
    refused,
    unique,
)
from support.token_clients import caller

from coupon_service.v1.error_reason_pb2 import ErrorReason

UNLIMITED = books.BookLimits(max_redemptions_per_code=0)
TAKEN = "ORDER_ALREADY_REDEEMED"


class Shop:
    """A business with an admin, a service and its users, on a server that asks for tokens."""

    def __init__(self, server: ServerThread, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        self.business = unique("business")
        self.admin = self.client("admin", sub="root")
        self.service = self.client("redeemer", sub="till")

    def client(self, role: str, sub: str) -> Api:
        """Somebody with a token of this business."""
        return self._stack.enter_context(
            caller(self._server.address, role, sub=sub, business=self.business)
        )

    def user(self, name: str) -> Api:
        """An app that calls with a user's own token."""
        return self.client("self", sub=name)

    def code(self, **fields: Any) -> str:
        """A new code that anybody can use as often as they like."""
        values: dict[str, Any] = {"business_id": self.business, "limits": UNLIMITED}
        return self.admin.code(**(values | fields))


@pytest.fixture
def shop(guarded: ServerThread) -> Iterator[Shop]:
    with ExitStack() as stack:
        yield Shop(guarded, stack)


@pytest.fixture
def limiting_shop(limiting_server: ServerThread) -> Iterator[Shop]:
    """The same where who guesses codes is refused."""
    with ExitStack() as stack:
        yield Shop(limiting_server, stack)


def test_users_have_orders_of_the_same_name(shop: Shop) -> None:
    code = shop.code()
    for name in ("ann", "bob", "cyd"):
        user = shop.user(name)
        for number in range(3):
            assert user.validate(code, name, order_id=f"ord-{number}").valid
            assert not user.redeem(code, name, order_id=f"ord-{number}").replayed
    assert shop.admin.get_code(code).redemption_count == 9


def test_nobody_is_kept_from_guessing_by_the_orders_of_others(limiting_shop: Shop) -> None:
    shop, code = limiting_shop, limiting_shop.code()
    ann, bob = unique("ann"), unique("bob")
    first, second = shop.user(ann), shop.user(bob)
    for number in range(11):
        first.redeem(code, ann, order_id=f"ord-{number}")
    for number in range(11):
        second.redeem(code, bob, order_id=f"ord-{number}")
    assert second.validate(code, bob).valid


ASKED: dict[str, Callable[[Api, str, str], object]] = {
    "RedeemCode": lambda api, code, user: tried(lambda: api.redeem(code, user, order_id="o")),
    "ValidateCode": lambda api, code, user: reasons_of(api.validate(code, user, order_id="o")),
}


@pytest.mark.parametrize("uses", [0, 1, 5])
@pytest.mark.parametrize("by", ["the user", "a service"])
@pytest.mark.parametrize("method", ASKED)
def test_an_order_of_their_own_that_is_redeemed_is_reported_and_is_no_guess(
    limiting_shop: Shop, method: str, by: str, uses: int
) -> None:
    shop, ann = limiting_shop, unique("ann")
    code = shop.code(limits=books.BookLimits(max_redemptions_per_code=uses))
    user = shop.user(ann)
    (user if by == "the user" else shop.service).redeem(code, ann, order_id="o")
    for _ in range(12):
        answer = ASKED[method](user, code, ann)
        assert answer == TAKEN or (isinstance(answer, list) and answer[0] == TAKEN)
    assert user.validate(shop.code(), ann).valid


def test_what_is_hidden_with_one_order_is_not_with_another_at_the_same_time(shop: Shop) -> None:
    code, user = shop.code(limits=books.BookLimits(max_redemptions_per_code=1)), shop.user("ann")
    user.redeem(code, "ann", order_id="o1")
    asked = [
        redemptions.CheckoutOperation(
            tag=tag, redeem_code=user.redeem_request(code, "ann", order_id=f"o{tag}")
        )
        for tag in (1, 2)
    ]
    request = redemptions.CheckoutRequest(operations=asked)
    results = [it for answer in user.redemptions.Checkout(iter([request])) for it in answer.results]
    reasons = {it.tag: ErrorReason.Name(it.error.error.reason) for it in results}
    assert reasons == {1: f"ERROR_REASON_{TAKEN}", 2: "ERROR_REASON_CODE_NOT_FOUND"}


def test_coupons_on_an_order_of_a_user_are_apart_from_those_of_others(shop: Shop) -> None:
    code = shop.code(order_policy=books.ORDER_POLICY_EXCLUSIVE)
    other = shop.code(order_policy=books.ORDER_POLICY_EXCLUSIVE)
    for name in ("ann", "bob"):
        user = shop.user(name)
        user.redeem(code, name, order_id="o")
        with refused("COUPONS_NOT_COMBINABLE"):
            user.redeem(other, name, order_id="o")
    shop.service.redeem(other, "cyd", order_id="o")


def test_a_user_is_not_told_what_is_left_of_a_budget_and_does_not_guess(
    limiting_shop: Shop,
) -> None:
    shop, ann = limiting_shop, unique("ann")
    limits = books.BookLimits(max_redemptions_per_code=0, max_discount_minor=1)
    code, user = shop.code(limits=limits), shop.user(ann)
    for _ in range(12):
        with refused("BUDGET_EXCEEDED") as it:
            user.redeem(code, ann, order_amount=euros(1_000))
        assert it.metadata == {}
    assert user.validate(shop.code(), ann).valid


def test_orders_of_users_do_not_stand_in_the_way_of_services(shop: Shop) -> None:
    code = shop.code()
    shop.user("ann").redeem(code, "ann", order_id="o")
    assert not shop.service.redeem(code, "bob", order_id="o").replayed
    assert reasons_of(shop.service.validate(code, "cyd", order_id="o")) == [TAKEN]  # bob's


def test_orders_of_services_do_not_stand_in_the_way_of_users(shop: Shop) -> None:
    code = shop.code()
    shop.service.redeem(code, "bob", order_id="o")
    assert not shop.user("ann").redeem(code, "ann", order_id="o").replayed


def test_of_one_user_both_are_the_same_order(shop: Shop) -> None:
    for first, second in ("user", "service"), ("service", "user"):
        code = shop.code()
        clients = {"user": shop.user("ann"), "service": shop.service}
        done = clients[first].redeem(code, "ann", order_id="o").redemption
        with refused(TAKEN, grpc.StatusCode.FAILED_PRECONDITION) as it:
            clients[second].redeem(code, "ann", order_id="o")
        assert it.metadata == {"redemption_id": done.redemption_id}
        shop.service.rollback(done.redemption_id)
        assert not clients[second].redeem(code, "ann", order_id="o").replayed


def test_an_order_of_a_service_redeems_a_code_once_whoever_the_user_is(shop: Shop) -> None:
    code = shop.code()
    shop.user("ann").redeem(code, "ann", order_id="o")
    shop.service.redeem(code, "bob", order_id="o")
    with refused(TAKEN):
        shop.service.redeem(code, "cyd", order_id="o")
    with refused(TAKEN):
        shop.client("redeemer", sub="ann").redeem(code, "cyd", order_id="o")


def test_a_service_that_is_called_like_a_user_is_no_end_user(shop: Shop) -> None:
    code = shop.code()
    shop.client("redeemer", sub="ann").redeem(code, "ann", order_id="o")
    with refused(TAKEN):
        shop.service.redeem(code, "bob", order_id="o")


def test_an_order_of_a_user_that_was_rolled_back_is_free_for_that_user(shop: Shop) -> None:
    code = shop.code()
    ann, bob = shop.user("ann"), shop.user("bob")
    undone = ann.redeem(code, "ann", order_id="o").redemption.redemption_id
    other = bob.redeem(code, "bob", order_id="o").redemption.redemption_id
    shop.service.rollback(undone)
    assert not ann.redeem(code, "ann", order_id="o").replayed
    for user in ("ann", "bob"):
        with refused(TAKEN):
            shop.service.redeem(code, user, order_id="o")
    shop.service.rollback(other)
    assert not shop.service.redeem(code, "bob", order_id="o").replayed


def test_of_many_at_once_each_user_redeems_the_order_once(
    shop: Shop, guarded: ServerThread
) -> None:
    (code,) = new_codes(1)
    book = shop.admin.book(codes=[code], business_id=shop.business, limits=UNLIMITED)
    users = [f"user-{number}" for number in range(6)]
    clients = [shop.user(user) for user in users]
    calls: list[Callable[[], object]] = [
        lambda user=user, client=client: client.redeem(code, user, order_id="o")
        for user, client in zip(users, clients, strict=True)
    ]
    found = list(map(reason_or_ok, all_at_once(calls * 3)))
    assert sorted(found) == ["OK"] * 6 + [TAKEN] * 12
    services: list[Callable[[], object]] = [
        lambda n=n: shop.service.redeem(code, f"guest-{n}", order_id="o") for n in range(12)
    ]
    found = list(map(reason_or_ok, all_at_once(services)))
    assert sorted(found) == ["OK"] + [TAKEN] * 11
    with psycopg.connect(guarded.database_url) as connection:
        assert_adds_up(connection, [book.book_id])


def test_lists_by_order_show_services_all_and_users_their_own(shop: Shop) -> None:
    code, order = shop.code(), unique("order")
    for user in ("ann", "bob"):
        shop.user(user).redeem(code, user, order_id=order, order_amount=euros(100))
    shop.service.redeem(code, "cyd", order_id=order)
    request = redemptions.ListRedemptionsRequest(order_id=order)

    def listed(api: Api) -> list[str]:
        return sorted(it.user_id for it in api.redemptions.ListRedemptions(request).redemptions)

    assert listed(shop.service) == ["ann", "bob", "cyd"]
    assert listed(shop.user("ann")) == ["ann"]
    assert listed(shop.user("cyd")) == ["cyd"]
    assert listed(shop.user("dan")) == []
