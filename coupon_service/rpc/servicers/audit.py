"""AuditService."""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from coupon_service.audit.checkpoints import Checkpoint, Signer
from coupon_service.audit.seals import Link
from coupon_service.erasure import Eraser
from coupon_service.errors import PermissionDenied, SealNotFound
from coupon_service.rpc.audit_watches import AuditWatches
from coupon_service.rpc.context import current
from coupon_service.rpc.convert import audit as convert
from coupon_service.rpc.convert import erasures as convert_erasures
from coupon_service.rpc.freshness import tell_lag
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.store.ledger_feed import LedgerFeed
from coupon_service.store.ledger_verifier import LedgerVerifier
from coupon_service.store.queries.reads import Reads, event_position
from coupon_service.store.replica import NearReads
from coupon_service.telemetry.metrics import Metrics
from coupon_service.v1 import audit_service_pb2 as pb
from coupon_service.v1.audit_service_pb2_grpc import AuditServiceServicer


class AuditServicer(AuditServiceServicer):
    """Answers with what Reads finds in the ledger, what the Eraser does, and what LedgerVerifier
    proves."""

    def __init__(
        self,
        reads: NearReads[Reads],
        eraser: Eraser,
        page_tokens: PageTokens,
        feed: LedgerFeed,
        watches: AuditWatches,
        verifier: LedgerVerifier,
        signer: Signer,
        metrics: Metrics,
        shard: str,
    ) -> None:
        """`shard`: the name of the one that has the ledger; empty where there is only one."""
        self._reads = reads
        self._eraser = eraser
        self._page_tokens = page_tokens
        self._feed = feed
        self._watches = watches
        self._verifier = verifier
        self._signer = signer
        self._metrics = metrics
        self._shard = shard

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        wanted, page = convert.read_list(request, current(), self._page_tokens)
        if request.oldest_first:
            after = None if page.after is None else convert.ledger_position(page.after)
            followed = await self._feed.page(wanted, page.size, after)
            return convert.oldest_first_message(request, followed, self._page_tokens)
        (events, end), lag_ms = await self._reads.ask(
            lambda reads: reads.audit_events(wanted, page.size, page.after)
        )
        tell_lag(context, lag_ms)
        messages, end = page_within_bounds(events, convert.event_message, end, event_position)
        return pb.ListAuditEventsResponse(
            events=messages, next_page_token=self._page_tokens.token(request, end)
        )

    async def WatchAuditEvents(
        self, request: pb.WatchAuditEventsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAuditEventsResponse]:
        watch = convert.read_watch(request, current(), self._page_tokens)
        async with aclosing(self._watches.messages(watch, current())) as messages:
            async for message in messages:
                yield message

    async def EraseUser(
        self, request: pb.EraseUserRequest, context: Any
    ) -> AsyncIterator[pb.EraseUserResponse]:
        user_id, call = convert_erasures.read_erase(request, current())
        async with aclosing(self._eraser.erase(user_id, call)) as steps:
            async for progress in steps:
                yield convert_erasures.progress_message(progress)

    async def GetErasure(
        self, request: pb.GetErasureRequest, context: Any
    ) -> pb.GetErasureResponse:
        erased = await self._eraser.get(convert_erasures.read_get(request, current()))
        return pb.GetErasureResponse(erasure=convert_erasures.erasure_message(erased))

    async def VerifyAudit(
        self, request: pb.VerifyAuditRequest, context: Any
    ) -> AsyncIterator[pb.VerifyAuditResponse]:
        start_time, end_time = convert.read_verify(request, current(), self._shard)
        if current().business_id:
            raise PermissionDenied
        verified = self._verifier.verify(start_time, end_time)
        async with aclosing(verified):
            async for each in verified:
                for found in each.findings:
                    self._metrics.ledger_found(found.finding.fault.name)
                message = convert.verified_message(each, self._shard)
                if each.is_done:
                    message.checkpoint = await self._newest_checkpoint()
                yield message

    async def _newest_checkpoint(self) -> str:
        """Signed; empty before the first seal."""
        number = (await self._verifier.head()).position.number
        return await self._signed(await self._verifier.link(number)) if number else ""

    async def _signed(self, link: Link) -> str:
        head, seal = await self._verifier.head(), link.seal
        return self._signer.sign(
            Checkpoint(
                head.log_id,
                seal.number,
                link.chain,
                seal.last_sequence,
                seal.seal_time,
                self._shard,
            )
        )

    async def GetAuditProof(
        self, request: pb.GetAuditProofRequest, context: Any
    ) -> pb.GetAuditProofResponse:
        event_id, number = convert.read_proof(request)
        proof, last = await self._verifier.prove(event_id, current().business_id, number)
        message = convert.proof_message(proof)
        message.checkpoint = await self._signed(last)
        message.public_key = self._signer.public_key
        return message

    async def GetAuditCheckpoint(
        self, request: pb.GetAuditCheckpointRequest, context: Any
    ) -> pb.GetAuditCheckpointResponse:
        number = convert.read_checkpoint(request, current(), self._shard)
        number = number or (await self._verifier.head()).position.number
        if not number:
            raise SealNotFound
        return pb.GetAuditCheckpointResponse(
            checkpoint=await self._signed(await self._verifier.link(number)),
            public_key=self._signer.public_key,
        )
