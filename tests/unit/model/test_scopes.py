"""Scopes of codes, and the ids that carry them, which can never change."""

from __future__ import annotations

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from coupon_service.model import EventType, bucket_of_event, event_id
from coupon_service.model.scopes import (
    ALL_BUSINESSES,
    FIRST_SCOPED_BOOK,
    LAST_SCOPED_BOOK,
    SCOPE_BITS,
    bucket_of_scope,
    is_scoped_event,
    name_of_locks,
    scope_of_book,
    scope_of_business,
    scoped_book_id,
    scoped_event_id,
)

ATTEMPT = event_id(5, EventType.BOOK_CREATED, "shop", "r1", "ours")
businesses = st.text(min_size=1, max_size=128).filter(lambda it: it.isprintable())


def test_ids_of_a_business_stay_the_same() -> None:
    scope = scope_of_business("ours")
    assert scope == 0x526CAD849D999C
    assert bucket_of_scope(scope) == 0x52
    assert str(scoped_book_id(ATTEMPT, "ours")) == "b0526cad-849d-8999-b291-3d81c187ddbd"
    assert str(scoped_event_id(ATTEMPT, scope)) == "4552d733-3da9-815a-b0e6-c268904ad8ac"


@given(businesses)
def test_a_book_leads_to_its_business(business_id: str) -> None:
    scope = scope_of_business(business_id)
    book_id = scoped_book_id(ATTEMPT, business_id)
    assert 0 < scope < 1 << SCOPE_BITS
    assert scope_of_book(book_id) == scope
    assert book_id.bytes[1] == bucket_of_scope(scope)
    assert FIRST_SCOPED_BOOK <= book_id <= LAST_SCOPED_BOOK
    assert book_id.variant == "specified in RFC 4122"
    assert book_id.version == 8


@given(st.uuids(), businesses)
def test_another_attempt_makes_another_book(attempt: UUID, business_id: str) -> None:
    assert (scoped_book_id(attempt, business_id) == scoped_book_id(ATTEMPT, business_id)) is (
        attempt.int & ((1 << 58) - 1) == ATTEMPT.int & ((1 << 58) - 1)
    )


@given(st.integers(0, 63), st.text())
def test_books_of_before_are_of_all_businesses(bucket: int, request_id: str) -> None:
    book_id = event_id(bucket, EventType.BOOK_CREATED, "shop", request_id, "ours")
    assert scope_of_book(book_id) == ALL_BUSINESSES
    assert not is_scoped_event(book_id)


def test_other_ids_are_of_all_businesses() -> None:
    assert scope_of_book(UUID(int=1)) == ALL_BUSINESSES
    assert all(scope_of_book(uuid4()) == ALL_BUSINESSES for _ in range(1_000))


@given(st.integers(0, 63), businesses)
def test_a_scoped_event_has_the_bucket_of_its_code(bucket: int, business_id: str) -> None:
    plain = event_id(bucket, EventType.REDEEMED, "shop", "r1", "CODE")
    scope = scope_of_business(business_id)
    scoped = scoped_event_id(plain, scope)
    assert is_scoped_event(scoped)
    assert not is_scoped_event(plain)
    assert bucket_of_event(scoped) == bucket_of_event(plain) == bucket
    assert scoped.bytes[1] == bucket_of_scope(scope)
    assert scoped != scoped_event_id(plain, scope_of_business(business_id + "x"))


def test_locks_of_a_code_of_a_scoped_book_carry_the_book() -> None:
    before, scoped = str(ATTEMPT), str(scoped_book_id(ATTEMPT, "ours"))
    assert name_of_locks("CODE", before) == "CODE"
    assert name_of_locks("CODE", scoped) == f"CODE/{scoped}"
    assert name_of_locks("CODE", "b0" + before[2:]) != "CODE"
    assert name_of_locks("CODE", "") == "CODE"
