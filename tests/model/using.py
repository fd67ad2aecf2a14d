"""Steps of random programs: locks, redemptions, and the time that passes."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock
from uuid import UUID

from model.compare import refused_with
from model.draws import (
    ALONE,
    AMOUNTS,
    ITEMS,
    METADATA,
    PER_MILLE,
    REQUEST_IDS,
    TIMES,
    TTLS,
    USERS,
    WAITS,
    any_of,
    some_of,
    step,
)
from model.issuing import Issuing
from model.opening_hours import changes
from model.periods import next_period
from model.state import Message
from support.service import redemptions, struct

from coupon_service.v1.money_pb2 import Money

DAY_MS = 86_400_000


class Using(Issuing):
    """Programs that lock and redeem what they have given out."""

    # --- locks ----------------------------------------------------------------------------------

    @step(
        14,
        which=PER_MILLE,
        name=USERS,
        ttl=TTLS,
        metadata=METADATA,
        request_id=REQUEST_IDS,
        alone=ALONE,
        kind=any_of([0] * 8 + [9, 9, 10, 11]),
    )
    def lock(
        self,
        which: int,
        name: str,
        ttl: int,
        metadata: Message,
        request_id: str,
        *,
        alone: bool,
        kind: int,
    ) -> None:
        code, (user, sent) = self.code(which), self.user(name)
        book_id, request_id = self.within(code, which), self.fresh(request_id)
        token, text = self.token(code, "", kind)
        request = redemptions.LockCodeRequest(
            code=self.typed(code, which),
            book_id=book_id,
            user_id=sent,
            metadata=struct(**metadata),
            request_id=request_id,
            lock_token=text,
        )
        if ttl:
            request.ttl.FromMilliseconds(ttl)
        self.call(
            self.api.redemptions.LockCode,
            request,
            lambda _: self.world.lock(code, book_id, user, ttl, token, metadata, request_id),
            sent if alone else "",
        )

    @step(5, which=any_of(range(3, 12)), code=PER_MILLE, ttl=TTLS, request_id=REQUEST_IDS)
    def extend(self, which: int, code: int, ttl: int, request_id: str) -> None:
        token, text = self.token_of_any(which, code)
        if token is None:
            return
        request_id = self.fresh(request_id)
        request = redemptions.ExtendLockRequest(lock_token=text, request_id=request_id)
        if ttl:
            request.ttl.FromMilliseconds(ttl)
        self.call(
            self.api.redemptions.ExtendLock,
            request,
            lambda _: self.world.extend(token, ttl, request_id),
        )

    @step(4, which=any_of(range(1, 12)), code=PER_MILLE, request_id=REQUEST_IDS)
    def unlock(self, which: int, code: int, request_id: str) -> None:
        request_id, locks = self.fresh(request_id), self.world.locks
        request = redemptions.UnlockCodeRequest(request_id=request_id)
        token, text = self.token_of_any(which, code)
        if token is None:
            number = code % len(locks) if locks and code < 980 else -1
            request.lock_id = (
                str(UUID(int=code)) if number < 0 else locks[number].message["lock_id"].value
            )
            reason = "LOCK_NOT_FOUND"
        else:
            request.lock_token, number, reason = text, token.lock, "LOCK_TOKEN_MISMATCH"
        self.call(
            self.api.redemptions.UnlockCode,
            request,
            lambda _: self.world.unlock(number, request_id, reason),
        )

    @step(8, by=WAITS, edge=any_of(range(-1, 6)), which=PER_MILLE)
    def wait(self, by: int, edge: int, which: int) -> None:
        """Lets time pass: so long, or until just before, at or after something ends."""
        world = self.world
        ends = [it.message["expire_time"] for it in world.locks]
        ends += [end + world.grace for end in ends]
        ends += [book[name] for book in world.books.values() for name in TIMES]
        ends += [book.get("_locks_until", 0) for book in world.books.values()]
        over = [it.given.get("expire_time", 0) for it in world.assignments.values()]
        ends += over + [end + world.ttl_max + world.grace for end in over if end]
        ends += [it for book in world.books.values() for it in changes(book, world.now, DAY_MS)]
        ends += [
            next_period(book, world.now) for book in world.books.values() if book["period_limits"]
        ]
        ahead = sorted(it for it in ends if it > world.now + 2)
        if ahead and edge <= 2:
            # The next call comes a millisecond later.
            by = ahead[which % min(3, len(ahead))] - world.now - 1 + min(edge, 1)
        self.let_pass(by)

    @step(2)
    def sweep(self) -> None:
        for shard in self.server.server.shards:
            sweeper = shard.lock_sweeper
            with mock.patch.object(sweeper._reads, "my_turn", return_value=True):
                self.server.run(sweeper.sweep())
        for book_id in self.book_ids:
            self.world.sweep(book_id)
        self.return_to_pool()

    @step(3)
    def return_to_pool(self) -> None:
        for shard in self.server.server.shards:
            sweeper = shard.pool_sweeper
            with mock.patch.object(sweeper._reads, "my_turn", return_value=True):
                self.server.run(sweeper.sweep())
        for book_id in self.book_ids:
            self.world.return_to_pool(book_id)

    # --- redemptions ----------------------------------------------------------------------------

    @step(16, drawn=ITEMS, metadata=METADATA)
    def redeem(self, drawn: Message, metadata: Message) -> None:
        item, fields = self.item(drawn)
        if metadata:
            item = replace(item, metadata=metadata)
            fields["metadata"] = struct(**metadata)
        request = redemptions.RedeemCodeRequest(**fields, request_id=item.request_id)

        def redeemed(_: Any) -> Any:
            (answer,) = self.world.redeem([item])
            return refused_with(answer["error"]) if "error" in answer else answer

        user = fields["user_id"] if drawn["alone"] else ""
        self.call(self.api.redemptions.RedeemCode, request, redeemed, user)

    @step(
        12,
        drawn=some_of(ITEMS, 1, 4),
        mode=any_of(["BEST_EFFORT", "ALL_OR_NOTHING"]),
        request_id=REQUEST_IDS,
    )
    def redeem_many(self, drawn: list[Message], mode: str, request_id: str) -> None:
        made = [self.item({**it, "request_id": it["request_id"] or "new"}) for it in drawn]
        if len({(it.code, it.request_id) for it, _ in made}) < len(made):
            return
        request = redemptions.BatchRedeemCodesRequest(
            items=[
                redemptions.RedeemItem(**fields, request_id=it.request_id) for it, fields in made
            ],
            mode=getattr(redemptions, f"BATCH_MODE_{mode}"),
            request_id=self.fresh(request_id),
        )

        def redeemed(_: Any) -> Any:
            items = [it for it, _ in made]
            results = self.world.redeem(items, atomic=mode == "ALL_OR_NOTHING")
            done = sum("redemption" in it for it in results)
            return {"results": results, "redeemed_count": done}

        self.call(self.api.redemptions.BatchRedeemCodes, request, redeemed)

    @step(
        6,
        which=PER_MILLE,
        money=AMOUNTS,
        kind=any_of(range(6)),
        metadata=METADATA,
        request_id=REQUEST_IDS,
    )
    def adjust(
        self, which: int, money: tuple[int, str], kind: int, metadata: Message, request_id: str
    ) -> None:
        """Gives an order another amount, now and then with an etag, which may be another's."""
        if not self.world.redemptions or not money[1]:
            return
        redemption = self.world.redemptions[which % len(self.world.redemptions)]
        amount: Message = dict(zip(("amount_minor", "currency_code"), money, strict=True))
        redemption_id = redemption["redemption_id"].value if which < 980 else str(UUID(int=which))
        etag = {0: redemption["etag"], 1: "a1"}.get(kind, "")
        request_id = self.fresh(request_id)
        request = redemptions.AdjustRedemptionRequest(
            redemption_id=redemption_id,
            order_amount=Money(**amount),
            etag=etag,
            metadata=struct(**metadata),
            request_id=request_id,
        )
        self.call(
            self.api.redemptions.AdjustRedemption,
            request,
            lambda _: self.world.adjust(redemption_id, amount, etag, metadata, request_id),
        )

    @step(8, which=PER_MILLE, metadata=METADATA, request_id=REQUEST_IDS)
    def roll_back(self, which: int, metadata: Message, request_id: str) -> None:
        if not self.world.redemptions:
            return
        known = [it for it in self.world.redemptions if it["state"] == "SUCCEEDED"]
        known = known if known and which % 4 else self.world.redemptions
        which_id = str(UUID(int=which))
        if which < 980:
            which_id = known[which % len(known)]["redemption_id"].value
        request_id = self.fresh(request_id)
        request = redemptions.RollbackRedemptionRequest(
            redemption_id=which_id, metadata=struct(**metadata), request_id=request_id
        )
        self.call(
            self.api.redemptions.RollbackRedemption,
            request,
            lambda _: self.world.rollback(which_id, metadata, request_id),
        )
