"""What an archived book has on orders goes on to bind, and is erased with its user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import grpc
import pytest
from support.archives import OF_BUSINESS, Stage, archivist, findings
from support.person import COMBINABLE, erase, pseudonym_of
from support.sealed_now import seal_ledger
from support.service import audit, books, euros, new_codes, refused, unique
from support.traces import traces_in

from coupon_service import erasure
from coupon_service.errors import DatabaseUnavailable
from coupon_service.store.archiving import archive as archiving
from coupon_service.store.archiving import restore as restoring
from coupon_service.store.archiving.records import CannotArchiveError
from coupon_service.store.archiving.restore import restore

SIXTY = books.Discount(percent_off=books.PercentOff(basis_points=6_000))


@pytest.fixture(scope="module")
def stage(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    with archivist(new_database, redis_server_url, tmp_path_factory.mktemp("archives")) as made:
        yield made


def book(stage: Stage, count: int, **fields: Any) -> tuple[str, list[str]]:
    """A book that takes 60 % off, and its codes."""
    names = new_codes(count)
    given = {"order_policy": COMBINABLE, "discount": SIXTY, **OF_BUSINESS, **fields}
    return stage.api.book(codes=names, **given).book_id, names


class Shared:
    """An order that has coupons of a book that is closed, and of one that is not; on another order
    one was rolled back."""

    def __init__(self, stage: Stage) -> None:
        self.api = api = stage.api
        self.user, self.friend = unique("erika"), unique("friend")
        self.order, self.undone_order = unique("order"), unique("order")
        self.gone, gone_codes = book(stage, 3)
        self.live, self.codes = book(stage, 6)
        self.redeemed = self.redeem(gone_codes[0], self.user)
        undone = self.redeem(gone_codes[1], self.user, self.undone_order)
        api.rollback(undone.redemption_id)
        api.close_book(self.gone)

    @property
    def names(self) -> list[str]:
        return [self.user, self.order, self.undone_order]

    def redeem(self, code: str, user: str, order: str = "") -> Any:
        wish: dict[str, Any] = {"order_id": order or self.order, "order_amount": euros(10_000)}
        return self.api.redeem(code, user, **wish).redemption

    def discount(self, user: str = "") -> int:
        """What another coupon takes off the order."""
        return self.redeem(self.codes.pop(), user or self.friend).discount.amount_minor


@pytest.fixture
def shared(stage: Stage) -> Iterator[Shared]:
    yield Shared(stage)
    stage.adds_up()
    assert findings(stage.api) == []


def traces(stage: Stage, names: list[str]) -> list[str]:
    redis_url = stage.server.settings.redis_url
    assert redis_url is not None
    return traces_in(stage.url, redis_url.get_secret_value(), names)


def test_an_order_is_bound_by_archived_coupons(stage: Stage, shared: Shared) -> None:
    _, (exclusive,) = book(stage, 1, order_policy=books.ORDER_POLICY_EXCLUSIVE)
    (file,) = stage.archive(shared.gone)
    stage.adds_up()
    assert shared.discount() == 4_000
    with refused("COUPONS_NOT_COMBINABLE"):
        shared.redeem(exclusive, shared.friend)
    with refused("ORDER_FULLY_DISCOUNTED"):
        shared.redeem(shared.codes[0], shared.friend)
    stage.restore(file)
    stage.adds_up()
    shared.api.rollback(shared.redeemed.redemption_id)
    assert shared.discount() == 6_000


def test_orders_of_archived_books_are_erased_and_go_on_to_bind(
    stage: Stage, shared: Shared
) -> None:
    (file,) = stage.archive(shared.gone)
    assert {it.split(" in ")[0] for it in traces(stage, shared.names)} == set(shared.names)
    last = erase(stage.api, shared.user)[-1].erasure
    assert last.state == audit.ERASURE_STATE_ERASED
    assert traces(stage, shared.names) == []
    assert last.changed_rows["coupon_archived_orders"] == 2
    stage.adds_up()
    assert shared.discount() == 4_000
    stage.restore(file)
    stage.adds_up()
    assert findings(stage.api) == []
    shared.api.rollback(shared.redeemed.redemption_id)
    assert shared.discount() == 6_000
    with refused("ORDER_FULLY_DISCOUNTED"):
        shared.redeem(shared.codes[0], shared.friend)
    seal_ledger(stage.url)


def test_what_others_redeemed_for_the_same_order_stays_theirs(stage: Stage, shared: Shared) -> None:
    assert shared.discount() == 4_000
    stage.archive(shared.gone)
    erase(stage.api, shared.user)
    kept = f"SELECT discount_minor FROM coupon_orders WHERE order_id = '{shared.order}'"
    assert stage.rows(kept) == [(4_000,)]
    with refused("ORDER_FULLY_DISCOUNTED"):
        shared.redeem(shared.codes[0], shared.friend)


def test_what_was_erased_before_is_archived_and_restored_as_it_is(
    stage: Stage, shared: Shared
) -> None:
    erase(stage.api, shared.user)
    seal_ledger(stage.url)
    before = stage.dump()
    (file,) = stage.archive(shared.gone)
    stage.adds_up()
    stage.restore(file)
    assert stage.dump() == before
    assert shared.discount() == 4_000


@pytest.mark.parametrize("step", ["deleted", "restored"])
def test_users_are_erased_at_any_moment_of_an_archive(
    stage: Stage, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "CHUNK", 1)
    monkeypatch.setattr(restoring, "CHUNK", 1)
    gone, names = book(stage, 5)
    users, orders = [unique("user") for _ in names], [unique("order") for _ in names]
    for code, user, order in zip(names, users, orders, strict=True):
        stage.api.redeem(code, user, order_id=order, order_amount=euros(1_000))
    stage.api.close_book(gone)
    seal_ledger(stage.url, rows_of_seal=1)
    # The next of those that are there comes before and after its events have moved.
    waiting = [users[it] for it in (2, 1, 4, 0, 3)]

    def report(what: str, _done: int, _count: int) -> None:
        if what == step and waiting:
            erase(stage.api, waiting.pop())
            stage.adds_up()

    (file,) = stage.archive(gone, report=report)
    with file.open("rb") as opened:
        restore(stage.url, opened, report)
    assert waiting == []
    assert traces(stage, [*users, *orders]) == []
    stage.adds_up()
    assert findings(stage.api) == []


def test_an_erasure_that_was_cut_off_past_the_orders_is_gone_on_with(
    stage: Stage, shared: Shared
) -> None:
    (file,) = stage.archive(shared.gone)
    real, done = erasure.erase_chunk, False

    async def cut_off(*given: Any) -> Any:
        nonlocal done
        if done:
            raise DatabaseUnavailable
        rows = await real(*given)
        done = "coupon_archived_orders" in rows
        return rows

    with mock.patch.object(erasure, "erase_chunk", cut_off), pytest.raises(grpc.RpcError):
        erase(stage.api, shared.user)
    with pytest.raises(CannotArchiveError, match="being erased"):
        stage.restore(file)
    assert traces(stage, [shared.order]) == []
    erase(stage.api, shared.user)
    stage.restore(file)
    assert traces(stage, shared.names) == []
    stage.adds_up()
    shared.api.rollback(shared.redeemed.redemption_id)
    assert pseudonym_of(stage.api, shared.user)
    assert shared.discount() == 6_000
