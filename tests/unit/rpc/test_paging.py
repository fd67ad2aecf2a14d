"""Page tokens."""

from __future__ import annotations

import string

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.rpc.paging import page_position, page_token
from coupon_service.v1.coupon_book_service_pb2 import ListCouponBooksRequest
from coupon_service.v1.coupon_code_service_pb2 import (
    COUPON_CODE_STATE_ASSIGNED,
    ExportCodesRequest,
    ListCodesRequest,
)

BOOK = "00000000-0000-8000-8000-000000000001"
POSITION = ("2026-01-01T00:00:00+00:00", "Größe", 7)
URL_SAFE = set(string.ascii_letters + string.digits + "-_")

positions = st.lists(st.text() | st.integers(), max_size=4).map(tuple)


def with_token(request: ListCodesRequest, token: str) -> ListCodesRequest:
    following = ListCodesRequest()
    following.CopyFrom(request)
    following.page_token = token
    return following


def test_the_first_page_has_no_position() -> None:
    assert page_position(ListCodesRequest(book_id=BOOK)) is None


def test_the_last_page_has_no_token() -> None:
    assert page_token(ListCodesRequest(book_id=BOOK), None) == ""


@given(positions)
def test_a_token_leads_back_to_its_position(position: tuple[str | int, ...]) -> None:
    request = ListCodesRequest(book_id=BOOK)
    assert page_position(with_token(request, page_token(request, position))) == position


def test_a_token_can_stand_in_a_url() -> None:
    assert set(page_token(ListCodesRequest(book_id=BOOK), POSITION)) <= URL_SAFE


def test_a_token_is_the_same_on_every_page_of_a_query() -> None:
    first = ListCodesRequest(book_id=BOOK)
    second = with_token(first, page_token(first, ("a",)))
    assert page_token(first, POSITION) == page_token(second, POSITION)


def test_the_size_of_the_page_may_change() -> None:
    token = page_token(ListCodesRequest(book_id=BOOK, page_size=10), POSITION)
    request = ListCodesRequest(book_id=BOOK, page_size=20, page_token=token)
    assert page_position(request) == POSITION


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
    token = page_token(other, POSITION)
    with pytest.raises(ValueError, match="expected the next_page_token"):
        page_position(with_token(ListCodesRequest(book_id=BOOK), token))


@given(st.data())
def test_a_token_that_was_altered_is_refused(data: st.DataObject) -> None:
    request = ListCodesRequest(book_id=BOOK)
    token = page_token(request, POSITION)
    index = data.draw(st.integers(0, len(token) - 2))  # the last character has bits to spare
    other = data.draw(st.sampled_from(sorted(URL_SAFE - {token[index]})))
    altered = token[:index] + other + token[index + 1 :]
    with pytest.raises(ValueError, match="expected the next_page_token"):
        page_position(with_token(request, altered))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_a_token_that_was_made_up_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="expected the next_page_token"):
        page_position(with_token(ListCodesRequest(book_id=BOOK), token))
