"""Mutants of how calls find their shard, and of how what shards answer is put together."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any
from unittest import mock

from coupon_service.rpc.shards import merged_lists, parted_batches, router
from coupon_service.rpc.shards.merged_lists import MergedList
from coupon_service.rpc.shards.parted_batches import PartedBatch
from coupon_service.rpc.shards.places import Places

Mutant = Any


def items_sent_to_another_shard() -> Mutant:
    """An item of a batch goes to the shard of the item before it."""
    real = PartedBatch._redeem_parts

    def shifted(self: Any, request: Any, context: Any, shards: Any) -> Any:
        return real(self, request, context, [shards[-1], *shards[:-1]])

    return mock.patch.object(PartedBatch, "_redeem_parts", shifted)


def results_in_the_order_of_shards() -> Mutant:
    """What became of an item is told of another."""

    def in_order(places: Any, answers: Any) -> dict[int, Any]:
        return dict(enumerate(it for answer in answers for it in answer.results))

    return mock.patch.object(parted_batches, "_results", in_order)


def rows_of_one_key_parted() -> Mutant:
    """A page may end between two rows of one key, after which the next page begins."""

    def end(_: Any, size: int) -> int:
        return size

    return mock.patch.object(merged_lists, "_end_of_page", end)


def other_shards_started_over() -> Mutant:
    """A page token is for the first shard; the others begin with their first row each time."""
    real = MergedList.answer

    def from_the_start(behavior: Any) -> Any:
        def answer(request: Any, context: Any) -> Any:
            first = type(request)()
            first.CopyFrom(request)
            first.page_token = ""
            return behavior(first, context)

        return answer

    def answer(self: Any, behaviors: Any, *rest: Any) -> Any:
        first, *others = behaviors
        return real(self, [first, *map(from_the_start, others)], *rest)

    return mock.patch.object(MergedList, "answer", answer)


def books_beside_their_business() -> Mutant:
    """A new book goes to the shard after that of its business."""
    real = Places.of_new_book

    def beside(self: Any, request: Any, rpc: Any) -> int:
        return (real(self, request, rpc) + 1) % self.shards

    routes: Any = router.ROUTES
    return mock.patch.dict(routes, {"CouponBookService/CreateCouponBook": router._to(beside)})
