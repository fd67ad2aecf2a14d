"""Which shard a request leads to."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from support.shards import business_in

from coupon_service.errors import BusinessRequired
from coupon_service.locks.token import LockTokens, sign
from coupon_service.model import LockClaims
from coupon_service.model.scopes import (
    bucket_of_scope,
    scope_of_business,
    scoped_book_id,
    scoped_event_id,
    shard_of_scope,
)
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.methods import METHODS
from coupon_service.rpc.shards.places import Places
from coupon_service.rpc.shards.router import ROUTES
from coupon_service.v1 import coupon_book_service_pb2 as books
from coupon_service.v1 import redemption_service_pb2 as redemptions

OF = 4
SECRET = b"a secret of the tests, long enough"
BUSINESSES = [business_in(shard, OF) for shard in range(OF)]
BOOKS = [str(scoped_book_id(uuid4(), it)) for it in BUSINESSES]
ANYBODY = RequestContext()


@pytest.fixture
def places() -> Places:
    return Places(OF, LockTokens([SECRET]))


def redeem(**fields: str) -> redemptions.RedeemCodeRequest:
    return redemptions.RedeemCodeRequest(code="A", user_id="ann", **fields)  # type: ignore[arg-type]


def lock_token(book_id: str) -> str:
    claims = LockClaims(
        lock_id=uuid4(), code="A", book_id=UUID(book_id), user_id="ann", fence=1, expire_ms=1
    )
    return sign(claims, SECRET)


def test_every_method_says_to_which_shard_its_requests_go() -> None:
    assert list(ROUTES) == list(METHODS), "a method needs a row in rpc/shards/router.py as well"


def test_buckets_are_shared_as_evenly_as_can_be() -> None:
    for shards in range(1, 65):
        found = [shard_of_scope(bucket << 48, shards) for bucket in range(256)]
        assert found == sorted(found)
        assert set(found) == set(range(shards))
        sizes = {found.count(it) for it in range(shards)}
        assert max(sizes) - min(sizes) <= 1


def test_a_code_is_in_the_shard_of_its_business(places: Places) -> None:
    for shard, business_id in enumerate(BUSINESSES):
        other = BUSINESSES[shard - 1]
        of_token = RequestContext(business_id=business_id)
        default = RequestContext(default_business=business_id)
        assert places.of_code(redeem(business_id=business_id), ANYBODY) == shard
        assert places.of_code(redeem(book_id=BOOKS[shard]), ANYBODY) == shard
        assert places.of_code(redeem(), of_token) == shard
        assert places.of_code(redeem(business_id=other), of_token) == shard
        assert places.of_code(redeem(), default) == shard
        assert places.of_code(redeem(business_id=other), default) == (shard - 1) % OF
        assert places.of_code(redeem(book_id=BOOKS[shard - 1]), default) == (shard - 1) % OF


def test_who_names_nothing_is_told_what_to_name(places: Places) -> None:
    with pytest.raises(BusinessRequired, match="business_id"):
        places.of_code(redeem(), ANYBODY)


def test_both_spellings_of_a_business_are_one(places: Places) -> None:
    composed = "Caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    decomposed = "Cafe\N{COMBINING ACUTE ACCENT}"
    found = {places.of_code(redeem(business_id=it), ANYBODY) for it in (composed, decomposed)}
    assert found == {shard_of_scope(scope_of_business(composed), OF)}


def test_an_id_leads_to_the_shard_that_gave_it_out(places: Places) -> None:
    for shard, business_id in enumerate(BUSINESSES):
        scope = scope_of_business(business_id)
        event_id = scoped_event_id(uuid4(), scope)
        assert event_id.bytes[1] == bucket_of_scope(scope)
        found = redemptions.GetRedemptionRequest(redemption_id=str(event_id))
        assert places.of_redemption(found, ANYBODY) == shard
        lock = redemptions.GetLockRequest(lock_id=str(event_id))
        assert places.of_lock(lock, ANYBODY) == shard
        by_token = redemptions.UnlockCodeRequest(lock_token=lock_token(BOOKS[shard]))
        assert places.of_lock(by_token, ANYBODY) == shard
        book = books.GetCouponBookRequest(book_id=BOOKS[shard])
        assert places.of_book(book, ANYBODY) == shard


@pytest.mark.parametrize("foreign", ["", "no id", str(UUID(int=5)), "b" * 300, "\0"])
def test_what_no_shard_gave_out_is_left_to_the_first(places: Places, foreign: str) -> None:
    assert places.of_book(books.GetCouponBookRequest(book_id=foreign), ANYBODY) == 0
    redemption = redemptions.GetRedemptionRequest(redemption_id=foreign)
    assert places.of_redemption(redemption, ANYBODY) == 0
    unlock = redemptions.UnlockCodeRequest(lock_token=foreign or "x")
    assert places.of_lock(unlock, ANYBODY) == 0


def test_a_list_of_one_business_or_book_is_of_one_shard(places: Places) -> None:
    for shard, business_id in enumerate(BUSINESSES):
        request = redemptions.ListRedemptionsRequest(business_id=business_id)
        assert places.of_list(request, ANYBODY) == shard
        of_book = redemptions.ListRedemptionsRequest(book_id=BOOKS[shard])
        assert places.of_list(of_book, ANYBODY) == shard
        everything = books.ListCouponBooksRequest()
        assert places.of_list(everything, RequestContext(business_id=business_id)) == shard
        assert places.of_list(everything, RequestContext(default_business=business_id)) is None


def test_an_extension_without_a_token_is_read_by_any_shard(places: Places) -> None:
    assert places.of_lock(redemptions.ExtendLockRequest(), ANYBODY) == 0
