"""RedemptionService."""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from coupon_service.batching import LazyCommand
from coupon_service.checkout import Checkout
from coupon_service.errors import CouponServiceError, RefusalsNotKept
from coupon_service.locks.service import LockService
from coupon_service.model import done_of
from coupon_service.model.refused_attempts import AttemptKind
from coupon_service.rpc.checkout_streams import CheckoutStreams
from coupon_service.rpc.context import current
from coupon_service.rpc.convert import locks as convert_locks
from coupon_service.rpc.convert import qualify as convert_qualify
from coupon_service.rpc.convert import redemptions as convert
from coupon_service.rpc.convert import refusals as convert_refusals
from coupon_service.rpc.freshness import tell_lag
from coupon_service.rpc.lazy import lazy_command
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.rpc.refused_attempts import RefusalRecorder, RefusedCodes
from coupon_service.store.queries.reads import Reads, event_position
from coupon_service.store.refusals import refusal_position
from coupon_service.store.replica import NearReads
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceServicer


class RedemptionServicer(RedemptionServiceServicer):
    """Answers with what Checkout and Locks do."""

    def __init__(
        self,
        checkout: Checkout,
        locks: LockService,
        reads: Reads,
        near_reads: NearReads[Reads],
        page_tokens: PageTokens,
        streams: CheckoutStreams,
        now: Callable[[], datetime],
        refused_codes: RefusedCodes,
        refusals: RefusalRecorder | None,
    ) -> None:
        """`refusals` keeps refused attempts; None where none are kept."""
        self._checkout = checkout
        self._locks = locks
        self._reads = reads
        self._near_reads = near_reads
        self._page_tokens = page_tokens
        self._streams = streams
        self._now = now
        self._refused_codes = refused_codes
        self._refusals = refusals

    async def ValidateCode(
        self, request: pb.ValidateCodeRequest, context: Any
    ) -> pb.ValidateCodeResponse:
        command = convert.read_validate(request, current())
        validation = await self._checkout.validate(command, request.lock_token)
        if self._refusals is not None:
            self._refusals.validated(command, validation)
        return convert.validation_message(validation)

    async def QualifyCoupons(
        self, request: pb.QualifyCouponsRequest, context: Any
    ) -> pb.QualifyCouponsResponse:
        wanted = convert_qualify.read_qualify(request, current())
        user_id, business_id = wanted.attempt.user_id, wanted.attempt.call.business_id
        coupons, truncated = await self._reads.live_coupons(
            user_id, business_id, self._now(), convert_qualify.COUPONS_MAX
        )
        trials = convert_qualify.trials(wanted, coupons)
        validations = await self._checkout.qualify([it.command for it in trials])
        return convert_qualify.qualified_message(trials, validations, truncated=truncated)

    async def LockCode(self, request: pb.LockCodeRequest, context: Any) -> pb.LockCodeResponse:
        wish = lazy_command(convert_locks.read_lock, request, current())
        try:
            if request.lock_token:
                wish.group()
                grant = await self._locks.take_over(wish.command, request.lock_token)
            else:
                grant = await self._locks.acquire(wish)
        except CouponServiceError as refusal:
            self._keep(AttemptKind.LOCK_CODE, wish, refusal)
            raise
        return pb.LockCodeResponse(
            lock=convert_locks.lock_message(grant.lock),
            lock_token=grant.token,
            replayed=grant.replayed,
        )

    async def ExtendLock(
        self, request: pb.ExtendLockRequest, context: Any
    ) -> pb.ExtendLockResponse:
        token, ttl_ms, call = convert_locks.read_extend(request, current())
        grant = await self._locks.extend(token, ttl_ms, call)
        return pb.ExtendLockResponse(
            lock=convert_locks.lock_message(grant.lock),
            lock_token=grant.token,
            replayed=grant.replayed,
        )

    async def UnlockCode(
        self, request: pb.UnlockCodeRequest, context: Any
    ) -> pb.UnlockCodeResponse:
        token, lock_id, call = convert_locks.read_unlock(request, current())
        released = await self._locks.release(token, lock_id, call)
        return pb.UnlockCodeResponse(
            lock=convert_locks.lock_message(released.lock), replayed=released.replayed
        )

    async def GetLock(self, request: pb.GetLockRequest, context: Any) -> pb.GetLockResponse:
        lock_id = convert_locks.read_lock_id(request)
        rpc = current()
        lock = await self._locks.get(lock_id, rpc.business_id, rpc.own_user_id)
        return pb.GetLockResponse(lock=convert_locks.lock_message(lock))

    async def ListLocks(self, request: pb.ListLocksRequest, context: Any) -> pb.ListLocksResponse:
        user_id, book_id, page = convert_locks.read_list(request, current(), self._page_tokens)
        locks, end = await self._locks.list(
            user_id, book_id, current().business_id, page.size, page.after
        )
        return pb.ListLocksResponse(
            locks=map(convert_locks.lock_message, locks),
            next_page_token=self._page_tokens.token(request, end),
        )

    async def RedeemCode(
        self, request: pb.RedeemCodeRequest, context: Any
    ) -> pb.RedeemCodeResponse:
        wish = lazy_command(convert.read_redeem, request, current())
        try:
            if request.lock_token:
                wish.group()
                (outcome,) = await self._checkout.redeem([(wish.command, request.lock_token)])
            else:
                outcome = await self._checkout.redeem_without_token(wish)
            done = done_of(outcome)
        except CouponServiceError as refusal:
            self._keep(AttemptKind.REDEEM_CODE, wish, refusal)
            raise
        return convert.redeemed_message(done)

    async def BatchRedeemCodes(
        self, request: pb.BatchRedeemCodesRequest, context: Any
    ) -> pb.BatchRedeemCodesResponse:
        items, atomic = convert.read_batch(request, current())
        outcomes = await self._checkout.redeem(items, atomic=atomic)
        if self._refusals is not None:
            for (command, _), outcome in zip(items, outcomes, strict=True):
                if isinstance(outcome, CouponServiceError):
                    self._refusals.refused(AttemptKind.BATCH_REDEEM_CODES, command, outcome)
        return convert.batch_message(outcomes)

    async def RollbackRedemption(
        self, request: pb.RollbackRedemptionRequest, context: Any
    ) -> pb.RollbackRedemptionResponse:
        redemption_id, call, metadata = convert.read_rollback(request, current())
        redemption, _ = await self._reads.redemption(redemption_id, call.business_id)
        command = convert.rollback_command(redemption, call, metadata)
        done = done_of(await self._checkout.rollback(command))
        return pb.RollbackRedemptionResponse(
            redemption=convert.redemption_message(redemption, done.event),
            counts=convert.counts_message(done.event),
            replayed=done.replayed,
        )

    async def AdjustRedemption(
        self, request: pb.AdjustRedemptionRequest, context: Any
    ) -> pb.AdjustRedemptionResponse:
        wish = convert.read_adjust(request, current())
        redemption, _ = await self._reads.redemption(wish.redemption_id, wish.call.business_id)
        done = done_of(await self._checkout.adjust(wish.command(redemption)))
        return pb.AdjustRedemptionResponse(
            redemption=convert.redemption_message(done.event), replayed=done.replayed
        )

    async def GetRedemption(
        self, request: pb.GetRedemptionRequest, context: Any
    ) -> pb.GetRedemptionResponse:
        redemption_id = convert.read_redemption_id(request)
        rpc = current()
        found = await self._reads.redemption(redemption_id, rpc.business_id, rpc.own_user_id)
        return pb.GetRedemptionResponse(redemption=convert.redemption_message(*found))

    async def ListRedemptions(
        self, request: pb.ListRedemptionsRequest, context: Any
    ) -> pb.ListRedemptionsResponse:
        wanted, page = convert.read_list(request, current(), self._page_tokens)
        found, end = await self._reads.redemptions(wanted, page.size, page.after)
        messages, end = page_within_bounds(
            found, lambda it: convert.redemption_message(*it), end, lambda it: event_position(it[0])
        )
        return pb.ListRedemptionsResponse(
            redemptions=messages, next_page_token=self._page_tokens.token(request, end)
        )

    async def ListRefusals(
        self, request: pb.ListRefusalsRequest, context: Any
    ) -> pb.ListRefusalsResponse:
        wanted, page = convert_refusals.read_list(
            request, current(), self._page_tokens, self._refused_codes
        )
        if self._refusals is None:
            raise RefusalsNotKept
        (found, end), lag_ms = await self._near_reads.ask(
            lambda reads: reads.refusals(wanted, page.size, page.after)
        )
        tell_lag(context, lag_ms)
        messages, end = page_within_bounds(
            found, convert_refusals.refusal_message, end, refusal_position
        )
        return pb.ListRefusalsResponse(
            refusals=messages, next_page_token=self._page_tokens.token(request, end)
        )

    def _keep(self, kind: AttemptKind, wish: LazyCommand[Any], refusal: CouponServiceError) -> None:
        """Keeps a refused attempt, if it came to that."""
        if self._refusals is not None and wish.was_read:
            self._refusals.refused(kind, wish.command, refusal)

    async def Checkout(  # pyright: ignore[reportIncompatibleMethodOverride] - it reads and writes by itself
        self, request_iterator: object, context: Any
    ) -> None:
        await self._streams.serve(context)
