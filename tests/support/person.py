"""Somebody who did everything there is, to be erased."""

from __future__ import annotations

from typing import Any

from support.calls import tried
from support.service import (
    Api,
    audit,
    books,
    codes,
    euros,
    new_codes,
    struct,
    unique,
)
from support.time_zones import zone_at_noon

ERASED = audit.ERASURE_STATE_ERASED
COMBINABLE = books.ORDER_POLICY_COMBINABLE
OPTIONAL = books.LOCK_POLICY_OPTIONAL
MANY = books.BookLimits(max_redemptions_per_code=100)


def erase(api: Api, user_id: str, request_id: str = "") -> list[audit.EraseUserResponse]:
    request = audit.EraseUserRequest(user_id=user_id, request_id=request_id or unique("ticket"))
    return list(api.audit.EraseUser(request))


def pseudonym_of(api: Api, user_id: str) -> str:
    return api.audit.GetErasure(audit.GetErasureRequest(user_id=user_id)).erasure.pseudonym


class Person:
    """A user who did everything there is, with what names it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.user_id, self.friend = unique("erika"), unique("friend")
        self.orders = [unique("order") for _ in range(3)]
        self.words = [unique("secret") for _ in range(4)]
        self.book_ids: list[str] = []
        self.redemption_ids: list[str] = []

    @property
    def names(self) -> list[str]:
        return [self.user_id, *self.orders, *self.words]

    def book(self, count: int, **rules: Any) -> list[str]:
        names = new_codes(count)
        book = self.api.book(codes=names, **rules)
        self.book_ids.append(book.book_id)
        return names

    def live(self) -> None:
        """Assigns, locks, hands over, redeems, adjusts, rolls back, imports and guesses."""
        api, user = self.api, self.user_id
        limits = books.BookLimits(
            max_redemptions_per_code=5,
            max_redemptions_per_user=9,
            max_redemptions_per_user_per_code=2,
            max_assignments_per_user=9,
        )
        first = self.book(
            6,
            limits=limits,
            lock_policy=OPTIONAL,
            period_limits=books.PeriodLimits(
                period=books.PERIOD_DAY, time_zone=zone_at_noon(), max_redemptions_per_user=8
            ),
        )
        api.assign(first[0], user, metadata=struct(note=self.words[0]))
        api.assign(first[1], user)
        api.assign(first[2], self.friend)
        api.transfer(first[1], user, self.friend, metadata=struct(note=self.words[1]))
        api.transfer(first[2], self.friend, user)
        api.lock(first[0], user, metadata=struct(note=self.words[2]))
        ended = api.lock(first[3], user)
        api.unlock(ended.lock_token)
        used = api.lock(first[4], user)
        self._redeem(first[4], lock_token=used.lock_token, order_id=self.orders[0])
        self._redeem(first[2], metadata=struct(note=self.words[3]))
        together = self.book(3, order_policy=COMBINABLE, limits=MANY)
        for code in together[:2]:
            self._redeem(code, order_id=self.orders[1], order_amount=euros(10_000))
        api.redeem(together[2], self.friend, order_id=self.orders[2], order_amount=euros(10_000))
        undone = self._redeem(together[2], order_id=self.orders[0], order_amount=euros(5_000))
        api.rollback(undone)
        api.adjust(self.redemption_ids[-2], euros(8_000))
        row = codes.NewCode(code=new_codes(1)[0], user_id=user)
        (answer,) = api.import_codes(self.book_ids[0], [row])
        assert answer.assigned_count == 1
        for _ in range(2):
            tried(lambda: api.redeem(unique("NONE").replace("-", ""), user))

    def _redeem(self, code: str, **fields: Any) -> str:
        redeemed = self.api.redeem(code, self.user_id, **fields).redemption
        self.redemption_ids.append(redeemed.redemption_id)
        return redeemed.redemption_id

    def keep_what_is_the_friends(self) -> list[str]:
        """Takes an order of the friend, and the note with what the friend was given, out of the
        names."""
        return [self.orders.pop(), self.words.pop(1)]
