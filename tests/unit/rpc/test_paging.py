"""Page tokens: made by this service, for one query, with a position of its shape."""

from __future__ import annotations

import string
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.cli.contract import methods
from coupon_service.rpc import paging
from coupon_service.rpc.paging import SHAPES, TOKEN_FIELDS, PageTokens
from coupon_service.v1.assignment_service_pb2 import ListAssignmentsRequest, ListUserCouponsRequest
from coupon_service.v1.audit_service_pb2 import ListAuditEventsRequest, WatchAuditEventsRequest
from coupon_service.v1.coupon_book_service_pb2 import ListCouponBooksRequest
from coupon_service.v1.coupon_code_service_pb2 import (
    COUPON_CODE_STATE_ASSIGNED,
    ExportCodesRequest,
    ListCodesRequest,
)
from coupon_service.v1.redemption_service_pb2 import (
    ListLocksRequest,
    ListRedemptionsRequest,
    ListRefusalsRequest,
)

BOOK = "00000000-0000-8000-8000-000000000001"
POSITION = ("CODE",)
OLD, NEW = b"the secret before", b"the present secret"
TOKENS = PageTokens([NEW])
URL_SAFE = set(string.ascii_letters + string.digits + "-_")


def with_token(request: Any, token: str) -> Any:
    following = type(request)()
    following.CopyFrom(request)
    (field,) = set(TOKEN_FIELDS) & set(request.DESCRIPTOR.fields_by_name)
    setattr(following, field, token)
    return following


def test_the_first_page_has_no_position() -> None:
    assert TOKENS.position(ListCodesRequest(book_id=BOOK)) is None


def test_the_last_page_has_no_token() -> None:
    assert TOKENS.token(ListCodesRequest(book_id=BOOK), None) == ""


@pytest.mark.parametrize(
    ("request_", "position"),
    [
        (ListCouponBooksRequest(), ("2026-01-01T00:00:00.123456+00:00", BOOK)),
        (ListCodesRequest(book_id=BOOK), ("GRÖSSE",)),
        (ExportCodesRequest(book_id=BOOK), ("A" * 64,)),
        (ListUserCouponsRequest(user_id="u"), ("2026-01-01T00:00:00+00:00", "CODE")),
        (ListAssignmentsRequest(book_id=BOOK), ("2026-01-01T00:00:00+00:00", "CODE", "ü")),
        (ListRedemptionsRequest(user_id="u"), ("2026-01-01T00:00:00+00:00", BOOK)),
        (ListRefusalsRequest(), ("2026-01-01T00:00:00+00:00", BOOK)),
        (ListLocksRequest(user_id="u"), ("CODE", BOOK, "ü\u200b", BOOK, 1_800_000_000_000)),
        (ListAuditEventsRequest(), ("2026-01-01T00:00:00+00:00", BOOK)),
        (WatchAuditEventsRequest(), (7, "2026-01-01T00:00:00+00:00", BOOK)),
    ],
    ids=lambda it: type(it).__name__,
)
def test_a_token_leads_back_to_its_position(request_: Any, position: tuple[Any, ...]) -> None:
    token = TOKENS.token(request_, position)
    assert TOKENS.position(with_token(request_, token)) == position


def test_every_request_for_a_page_has_its_shape() -> None:
    paged = {
        it.input_type.name
        for it in methods()
        if not set(TOKEN_FIELDS).isdisjoint(it.input_type.fields_by_name)
    }
    assert set(SHAPES) == paged


def test_a_token_can_stand_in_a_url() -> None:
    assert set(TOKENS.token(ListCodesRequest(book_id=BOOK), POSITION)) <= URL_SAFE


def test_a_token_is_the_same_on_every_page_of_a_query() -> None:
    first = ListCodesRequest(book_id=BOOK)
    second = with_token(first, TOKENS.token(first, ("A",)))
    assert TOKENS.token(first, POSITION) == TOKENS.token(second, POSITION)


def test_the_size_of_the_page_may_change() -> None:
    token = TOKENS.token(ListCodesRequest(book_id=BOOK, page_size=10), POSITION)
    request = ListCodesRequest(book_id=BOOK, page_size=20, page_token=token)
    assert TOKENS.position(request) == POSITION


@pytest.mark.parametrize(
    "other",
    [
        ListCodesRequest(book_id=BOOK[:-1] + "2"),
        ListCodesRequest(book_id=BOOK, state=COUPON_CODE_STATE_ASSIGNED),
        ListCodesRequest(),
        ExportCodesRequest(book_id=BOOK),
        ListCouponBooksRequest(business_id=BOOK),
    ],
    ids=["other book", "one state", "no book", "other method", "other service"],
)
def test_a_token_of_another_query_is_refused(other: Message) -> None:
    token = TOKENS.token(other, POSITION)
    with pytest.raises(ValueError, match="expected the next_page_token"):
        TOKENS.position(with_token(ListCodesRequest(book_id=BOOK), token))


@given(st.data())
def test_a_token_that_was_altered_is_refused(data: st.DataObject) -> None:
    request = ListCodesRequest(book_id=BOOK)
    token = TOKENS.token(request, POSITION)
    index = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(sorted(URL_SAFE - {token[index]})))
    altered = token[:index] + other + token[index + 1 :]
    with pytest.raises(ValueError, match="expected the next_page_token"):
        TOKENS.position(with_token(request, altered))


@pytest.mark.parametrize("more", ["=", "==", "\n", " ", "A"])
def test_a_token_has_one_spelling(more: str) -> None:
    request = ListCodesRequest(book_id=BOOK)
    token = TOKENS.token(request, POSITION)
    with pytest.raises(ValueError, match="expected the next_page_token"):
        TOKENS.position(with_token(request, token + more))


def test_a_token_of_another_secret_is_refused() -> None:
    request = ListCodesRequest(book_id=BOOK)
    token = PageTokens([OLD]).token(request, POSITION)
    with pytest.raises(ValueError, match="expected the next_page_token"):
        TOKENS.position(with_token(request, token))


def test_secrets_are_changed_without_a_refused_page() -> None:
    request = ListCodesRequest(book_id=BOOK)
    before, between, after = PageTokens([OLD, NEW]), PageTokens([NEW, OLD]), PageTokens([NEW])
    for signs, reads in ((before, before), (before, between), (between, before), (between, after)):
        assert reads.position(with_token(request, signs.token(request, POSITION))) == POSITION


TIME = "2026-01-01T00:00:00+00:00"

PAYLOADS = (
    *("", "1", "null", "{}", "[", "[" * 40_000, "[]", "[NaN]", "[1e999]", '"ab"', '["x", "y"]'),
    *('["\\ud800"]', '["\\u0000"]', '[["x"]]', "[true]", "[7]", '[""]', "9" * 5_000, "\xff"),
    f'["9999-12-31T23:59:59-14:00", "{BOOK}"]',
    f'["0001-01-01T00:00:00+14:00", "{BOOK}"]',
    f'["2026-01-01T00:00:00", "{BOOK}"]',
    f'["{TIME}", "{BOOK}", 1]',
    f'["{TIME}", "/"]',
    f'["{TIME}", 7]',
    f'["CODE", "{BOOK}", "u", "{BOOK}", "1"]',
    f'["CODE", "{BOOK}", "u", "{BOOK}", 1.5]',
    f'["CODE", "{BOOK}", "u", "{BOOK}", true]',
    f'["CODE", "{BOOK}", "u", "{BOOK}", -1]',
    f'["CODE", "{BOOK}", "u", "{BOOK}", {10**30}]',
    f'["CODE", "{BOOK}", "u\\u0000", "{BOOK}", 1]',
    f'["CODE", "{BOOK}", "\\ud800", "{BOOK}", 1]',
    f'["CODE", "x", "u", "{BOOK}", 1]',
)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_position_of_another_shape_is_refused_even_when_it_is_signed(payload: str) -> None:
    for request in (
        ListCouponBooksRequest(),
        ListCodesRequest(book_id=BOOK),
        ListUserCouponsRequest(user_id="u"),
        ListAssignmentsRequest(book_id=BOOK),
        ListRedemptionsRequest(user_id="u"),
        ListLocksRequest(user_id="u"),
        ListAuditEventsRequest(),
    ):
        token = paging._seal(request, payload.encode("latin-1"), NEW)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(ValueError, match="expected the next_page_token"):
            TOKENS.position(with_token(request, token.decode()))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_a_token_that_was_made_up_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="expected the next_page_token"):
        TOKENS.position(with_token(ListCodesRequest(book_id=BOOK), token))
