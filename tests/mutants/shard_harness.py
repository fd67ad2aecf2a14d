"""What has to catch the mutants of shards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager

from model.clock import clocked_server
from mutants.harness import Stack
from pydantic import SecretStr
from support.calls import batch, item, outcomes_of
from support.service import Api, assignments, books, new_codes, pages, unique
from support.shards import business_in, make_shards, shard_roles

OF = 4


@contextmanager
def _shop(it: Stack) -> Generator[tuple[Api, list[str]]]:
    """A client of a service with four shards, and a business in each."""
    make_shards(it.database_url, of=OF)
    with (
        shard_roles(it.database_url, of=OF) as urls,
        clocked_server(
            it.database_url,
            it.redis_url,
            it.clock,
            shards=OF,
            shard_urls=SecretStr(urls),
            default_business="",
        ) as server,
        closing(Api(server.address)) as api,
    ):
        yield api, [business_in(shard, OF) for shard in range(OF)]


def batch_over_shards(it: Stack) -> None:
    """Each item redeems the code of its business, where all have a code of this name."""
    names = new_codes(2)
    with _shop(it) as (api, businesses):
        made = [api.book(codes=names, business_id=each).book_id for each in businesses]
        wanted = [(names[n // OF], place) for n, place in enumerate([3, 0, 2, 1, 1, 3, 0, 2])]
        answer = batch(api, [item(code, "ann", business_id=businesses[it]) for code, it in wanted])
        assert outcomes_of(answer) == ["OK"] * len(wanted)
        redeemed = [(each.redemption.code, each.redemption.book_id) for each in answer.results]
        assert redeemed == [(code, made[place]) for code, place in wanted]
    it.conserved()


def lists_over_shards(it: Stack) -> None:
    """Each row is listed once, also when it was made at the time of one in another shard."""
    names, user = new_codes(3), unique("user")
    with _shop(it) as (api, businesses):
        made: list[str] = []
        coupons: list[tuple[str, str]] = []
        for business_id in businesses:
            book_id = api.book(codes=names, business_id=business_id).book_id
            made.append(book_id)
            for code in names:
                api.assign(code, user, book_id=book_id)
                coupons.append((code, book_id))
        for size in (1, 2, 3, 5):
            wanted = assignments.ListUserCouponsRequest(user_id=user, page_size=size)
            found = pages(api.assignments.ListUserCoupons, wanted, "coupons")
            rows = [(x.assignment.code, x.assignment.book_id) for page in found for x in page]
            assert sorted(rows) == sorted(coupons)
            listing = books.ListCouponBooksRequest(page_size=size)
            listed = pages(api.books.ListCouponBooks, listing, "coupon_books")
            assert sorted(x.book_id for page in listed for x in page) == sorted(made)
