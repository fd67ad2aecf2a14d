"""AssignmentService."""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from coupon_service.batching import CommandLanes, LazyCommand
from coupon_service.locks.service import LockService
from coupon_service.locks.transfers import AssignmentTransfers
from coupon_service.model import Assignment, Book, Code, CommandGroup, Done, done_of
from coupon_service.rpc.context import current
from coupon_service.rpc.convert import assignments as convert
from coupon_service.rpc.lazy import lazy_command
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.rules import effective_code_state
from coupon_service.store.queries.assignment_pages import shown_position
from coupon_service.store.queries.reads import Reads, assignment_position
from coupon_service.v1 import assignment_service_pb2 as pb
from coupon_service.v1.assignment_service_pb2_grpc import AssignmentServiceServicer


class AssignmentServicer(AssignmentServiceServicer):
    """Answers with what the rules decide, many calls at a time."""

    def __init__(
        self,
        commands: CommandLanes,
        reads: Reads,
        locks: LockService,
        transfers: AssignmentTransfers,
        page_tokens: PageTokens,
        now: Callable[[], datetime],
    ) -> None:
        self._commands = commands
        self._reads = reads
        self._locks = locks
        self._transfers = transfers
        self._page_tokens = page_tokens
        self._now = now

    async def AssignCode(
        self, request: pb.AssignCodeRequest, context: Any
    ) -> pb.AssignCodeResponse:
        done = await self._carry_out(lazy_command(convert.read_assign, request, current()))
        return pb.AssignCodeResponse(
            assignment=convert.done_assignment(done), replayed=done.replayed
        )

    async def AssignRandomCode(
        self, request: pb.AssignRandomCodeRequest, context: Any
    ) -> pb.AssignRandomCodeResponse:
        done = await self._carry_out(lazy_command(convert.read_assign_random, request, current()))
        return pb.AssignRandomCodeResponse(
            assignment=convert.done_assignment(done), replayed=done.replayed
        )

    async def BatchAssignRandomCodes(
        self, request: pb.BatchAssignRandomCodesRequest, context: Any
    ) -> pb.BatchAssignRandomCodesResponse:
        commands = convert.read_batch(request, current())
        outcomes = await self._commands.submit(CommandGroup(commands))
        return convert.batch_message(commands, outcomes)

    async def RevokeAssignment(
        self, request: pb.RevokeAssignmentRequest, context: Any
    ) -> pb.RevokeAssignmentResponse:
        done = await self._carry_out(lazy_command(convert.read_revoke, request, current()))
        return pb.RevokeAssignmentResponse(
            assignment=convert.done_assignment(done), replayed=done.replayed
        )

    async def TransferAssignment(
        self, request: pb.TransferAssignmentRequest, context: Any
    ) -> pb.TransferAssignmentResponse:
        done = await self._transfers.transfer(*convert.read_transfer(request, current()))
        return pb.TransferAssignmentResponse(
            assignment=convert.done_assignment(done), replayed=done.replayed
        )

    async def ListUserCoupons(
        self, request: pb.ListUserCouponsRequest, context: Any
    ) -> pb.ListUserCouponsResponse:
        user_id, book_id, state, page = convert.read_list(request, current(), self._page_tokens)
        coupons, end = await self._reads.user_coupons(
            user_id, book_id, current().business_id, state, page.size, page.after
        )
        now = self._now()
        locked_out = await self._locks.locked_out([(code, book) for _, code, book in coupons], now)

        def message(coupon: tuple[Assignment, Code, Book]) -> pb.UserCoupon:
            assignment, code, book = coupon
            locked = code.key in locked_out
            state = effective_code_state(
                code, book, now, locked_out=locked, expire_time=assignment.expire_time
            )
            return convert.coupon_message(assignment, code, book, state)

        messages, end = page_within_bounds(
            coupons, message, end, lambda it: assignment_position(it[0])
        )
        return pb.ListUserCouponsResponse(
            coupons=messages, next_page_token=self._page_tokens.token(request, end)
        )

    async def ListAssignments(
        self, request: pb.ListAssignmentsRequest, context: Any
    ) -> pb.ListAssignmentsResponse:
        wanted, page = convert.read_list_of_book(request, self._page_tokens)
        book, found, end = await self._reads.assignments(
            wanted, current().business_id, page.size, page.after
        )
        messages, end = page_within_bounds(
            found, lambda it: convert.assignment_message(*it, book), end, shown_position
        )
        return pb.ListAssignmentsResponse(
            assignments=messages, next_page_token=self._page_tokens.token(request, end)
        )

    async def _carry_out(self, wish: LazyCommand[Any]) -> Done:
        (outcome,) = await self._commands.submit(wish)
        return done_of(outcome)
