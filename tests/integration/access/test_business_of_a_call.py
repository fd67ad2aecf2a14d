"""Whose code a call means: its token, its request, its book, or a setting says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from support.service import (
    Api,
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.token_clients import caller
from support.token_issuers import ASKED_FOR

CALLS: dict[str, Callable[[Api, str, dict[str, Any]], object]] = {
    "GetCode": lambda api, code, more: api.codes.GetCode(codes.GetCodeRequest(code=code, **more)),
    "DisableCode": lambda api, code, more: api.disable(code, **more),
    "EnableCode": lambda api, code, more: api.enable(code, **more),
    "AssignCode": lambda api, code, more: api.assign(code, "ann", **more),
    "RevokeAssignment": lambda api, code, more: api.revoke(code, "ann", **more),
    "LockCode": lambda api, code, more: api.lock(code, "ann", **more),
    "RedeemCode": lambda api, code, more: api.redeem(code, "ann", **more),
}
"""Calls that take a code, in an order in which each of them succeeds."""


@pytest.fixture(scope="module")
def root(guarded: ServerThread) -> Iterator[Api]:
    """A caller that sees every business."""
    with caller(guarded.address, "admin", sub="root") as api:
        yield api


def code_of(api: Api, business: str) -> str:
    (code,) = new_codes(1)
    policy = books.LOCK_POLICY_OPTIONAL
    api.book(codes=[code], business_id=business, lock_policy=policy)
    return code


def test_a_request_names_the_business(root: Api) -> None:
    ours, theirs = unique("ours"), unique("theirs")
    code = code_of(root, ours)
    for call in CALLS.values():
        with refused("CODE_NOT_FOUND"):
            call(root, code, {"business_id": theirs})
        call(root, code, {"business_id": ours})


def test_a_validation_names_the_business(root: Api) -> None:
    ours, theirs = unique("ours"), unique("theirs")
    code = code_of(root, ours)
    assert root.validate(code, "ann", business_id=ours).valid
    assert not root.validate(code, "ann", business_id=theirs).book_id


@pytest.mark.parametrize("name", CALLS)
def test_a_token_of_a_business_names_no_other(name: str, guarded: ServerThread) -> None:
    ours = unique("ours")
    with caller(guarded.address, "admin", business=ours) as api:
        code = code_of(api, ours)
        with refused("PERMISSION_DENIED"):
            CALLS[name](api, code, {"business_id": unique("theirs")})


@pytest.mark.parametrize("name", CALLS)
def test_a_business_has_a_proper_name(name: str, root: Api) -> None:
    with refused("INVALID_ARGUMENT") as refusal:
        CALLS[name](root, "ANYCODE", {"business_id": " "})
    assert refusal.fields == ["business_id"]


def test_a_batch_has_items_of_several_businesses(root: Api) -> None:
    ours, theirs = unique("ours"), unique("theirs")
    our_code, their_code = code_of(root, ours), code_of(root, theirs)
    answer = root.redemptions.BatchRedeemCodes(
        redemptions.BatchRedeemCodesRequest(
            items=[
                redemptions.RedeemItem(code=our_code, user_id="ann"),
                redemptions.RedeemItem(code=their_code, user_id="ann", business_id=theirs),
                redemptions.RedeemItem(code=their_code, user_id="ann", request_id="other"),
            ],
            business_id=ours,
            request_id=unique("request"),
        )
    )
    assert [it.WhichOneof("result") for it in answer.results] == [
        "redemption",
        "redemption",
        "error",
    ]


def test_lists_are_of_the_business(root: Api) -> None:
    ours, theirs = unique("ours"), unique("theirs")
    code = code_of(root, ours)
    root.redeem(code, "ann", business_id=ours)

    def listed(business: str) -> tuple[int, int]:
        done = root.redemptions.ListRedemptions(
            redemptions.ListRedemptionsRequest(code=code, business_id=business)
        )
        events = root.audit.ListAuditEvents(
            audit.ListAuditEventsRequest(code=code, business_id=business)
        )
        return len(done.redemptions), len(events.events)

    assert listed(ours) == listed("") == (1, 1)
    assert listed(theirs) == (0, 0)


class TestDefaultBusiness:
    @pytest.fixture(scope="class")
    @classmethod
    def api(
        cls, new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
    ) -> Iterator[Api]:
        with new_database() as database_url:
            settings = settings_for(
                database_url, redis_server_url, **ASKED_FOR, default_business="acme"
            )
            with (
                ServerThread(settings) as running,
                caller(running.address, "admin", sub="root") as root,
            ):
                yield root

    @pytest.mark.parametrize("name", CALLS)
    def test_it_is_meant_by_who_names_none(self, name: str, api: Api) -> None:
        with refused("CODE_NOT_FOUND"):
            CALLS[name](api, code_of(api, "other"), {})

    def test_its_codes_are_found(self, api: Api) -> None:
        code = code_of(api, "acme")
        for call in CALLS.values():
            call(api, code, {})

    def test_a_book_or_a_name_counts_more(self, api: Api) -> None:
        code = code_of(api, "other")
        api.redeem(code, "ann", business_id="other")
        book_id = api.codes.GetCode(
            codes.GetCodeRequest(code=code, business_id="other")
        ).coupon_code.book_id
        assert api.codes.GetCode(codes.GetCodeRequest(code=code, book_id=book_id))

    def test_it_does_not_narrow_what_is_named_by_its_book(self, api: Api) -> None:
        code = code_of(api, "other")
        request = assignments.AssignCodeRequest(code=code, user_id="ann")
        request.book_id = api.codes.GetCode(
            codes.GetCodeRequest(code=code, business_id="other")
        ).coupon_code.book_id
        assert api.assignments.AssignCode(request).assignment.code == code
