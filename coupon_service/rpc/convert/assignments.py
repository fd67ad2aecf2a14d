"""Assignments between proto and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    Assign,
    Assignment,
    AssignmentState,
    AssignRandom,
    Attempt,
    Book,
    Call,
    Code,
    CodeState,
    Done,
    EventType,
    Outcome,
    Revoke,
    Transfer,
    bucket_of_book,
    done_of,
    earlier_attempts,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.business import in_business
from coupon_service.rpc.convert.fields import Fields, Page
from coupon_service.rpc.convert.terms import put_terms
from coupon_service.rpc.convert.values import put_struct, put_time
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.status import item_error
from coupon_service.store.queries.assignment_pages import AssignmentFilter
from coupon_service.v1 import assignment_service_pb2 as pb
from coupon_service.v1 import coupon_code_service_pb2 as codes_pb

STATES: Final = (AssignmentState.ACTIVE, AssignmentState.REDEEMED, AssignmentState.REVOKED)

USERS_MAX: Final = 1_000

# --- requests -----------------------------------------------------------------------------------


def read_assign(request: pb.AssignCodeRequest, rpc: RequestContext) -> Assign:
    """The command to give a code to a user."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    code = fields.code("code", request.code)
    book_id = fields.optional_uuid("book_id", request.book_id)
    user_id = fields.identifier("user_id", request.user_id)
    metadata = fields.metadata(request.metadata)
    call = in_business(call, fields, request.business_id, book_id, rpc)
    fields.check()

    def attempt(caller: str, user_id: str) -> Attempt:
        return (
            event_id(bucket_of(code), EventType.ASSIGNED, caller, call.request_id, code),
            fingerprint(user_id, book_id, metadata),
        )

    ids = call.caller, user_id
    named, parameters = attempt(*ids)
    return Assign(
        call=call,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, ids, (call.caller, request.user_id)),
        user_id=user_id,
        book_id=book_id,
        metadata=metadata,
    )


def read_assign_random(request: pb.AssignRandomCodeRequest, rpc: RequestContext) -> AssignRandom:
    """The command to give any code of a book to a user."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    book_id = fields.uuid("book_id", request.book_id)
    user_id = fields.identifier("user_id", request.user_id)
    metadata = fields.metadata(request.metadata)
    fields.check()
    return _random(call, book_id, bucket_of_book(book_id), user_id, request.user_id, metadata)


def read_batch(
    request: pb.BatchAssignRandomCodesRequest, rpc: RequestContext
) -> tuple[AssignRandom, ...]:
    """The commands to give each of the users any code of the book, in the order of the request."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    book_id = fields.uuid("book_id", request.book_id)
    metadata = fields.metadata(request.metadata)
    users: dict[str, str] = {}
    if not 1 <= len(request.user_ids) <= USERS_MAX:
        fields.refuse("user_ids", f"expected 1 to {USERS_MAX:,} users")
    else:
        for index, sent in enumerate(request.user_ids):
            user_id = fields.identifier(f"user_ids[{index}]", sent)
            if user_id in users:
                fields.refuse(f"user_ids[{index}]", "expected every user once")
            users[user_id] = sent
    fields.check()
    bucket = bucket_of_book(book_id)
    return tuple(_random(call, book_id, bucket, *user, metadata) for user in users.items())


def read_revoke(request: pb.RevokeAssignmentRequest, rpc: RequestContext) -> Revoke:
    """The command to take a code from a user."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    code = fields.code("code", request.code)
    user_id = fields.identifier("user_id", request.user_id, erased=True)
    call = in_business(call, fields, request.business_id, None, rpc)
    fields.check()

    def attempt(caller: str, user_id: str) -> Attempt:
        return (
            event_id(bucket_of(code), EventType.REVOKED, caller, call.request_id, code),
            fingerprint(user_id),
        )

    ids = call.caller, user_id
    named, parameters = attempt(*ids)
    return Revoke(
        call=call,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, ids, (call.caller, request.user_id)),
        user_id=user_id,
    )


def read_transfer(
    request: pb.TransferAssignmentRequest, rpc: RequestContext
) -> tuple[Transfer, str]:
    """The command to hand a code over, without what the lock token says that is with it."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    code = fields.code("code", request.code)
    book_id = fields.optional_uuid("book_id", request.book_id)
    giver = fields.identifier("from_user_id", request.from_user_id)
    receiver = fields.identifier("to_user_id", request.to_user_id)
    if receiver == giver:
        fields.refuse("to_user_id", "expected another user than from_user_id")
    metadata = fields.metadata(request.metadata)
    call = in_business(call, fields, request.business_id, book_id, rpc)
    fields.check()
    command = Transfer(
        call=call,
        code=code,
        event_id=event_id(
            bucket_of(code), EventType.ASSIGNMENT_TRANSFERRED, call.caller, call.request_id, code
        ),
        fingerprint=fingerprint(giver, receiver, book_id, metadata),
        from_user_id=giver,
        to_user_id=receiver,
        book_id=book_id,
        metadata=metadata,
    )
    return command, request.lock_token


def read_list(
    request: pb.ListUserCouponsRequest, rpc: RequestContext, tokens: PageTokens
) -> tuple[str, UUID | None, AssignmentState | None, Page]:
    """Whose codes, of which book, in which state, and which page. Raises PermissionDenied."""
    fields = Fields()
    user_id = rpc.user(fields.identifier("user_id", request.user_id))
    book_id = fields.optional_uuid("book_id", request.book_id)
    state = fields.choice("state", request.state, STATES, None)
    page = fields.page(request, tokens)
    fields.check()
    return user_id, book_id, state, page


def read_list_of_book(
    request: pb.ListAssignmentsRequest, tokens: PageTokens
) -> tuple[AssignmentFilter, Page]:
    """Which assignments of which book, and which page of them."""
    fields = Fields()
    wanted = AssignmentFilter(
        book_id=fields.uuid("book_id", request.book_id),
        state=fields.choice("state", request.state, STATES, None),
        start_time=fields.optional_time(request, "start_time"),
        end_time=fields.optional_time(request, "end_time"),
    )
    page = fields.page(request, tokens)
    fields.check()
    return wanted, page


def _random(
    call: Call, book_id: UUID, bucket: int, user_id: str, sent: str, metadata: str | None
) -> AssignRandom:
    def attempt(caller: str, user_id: str) -> Attempt:
        return (
            event_id(bucket, EventType.ASSIGNED, caller, call.request_id, book_id, user_id),
            fingerprint(metadata),
        )

    ids = call.caller, user_id
    named, parameters = attempt(*ids)
    return AssignRandom(
        call=call,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, ids, (call.caller, sent)),
        user_id=user_id,
        book_id=book_id,
        metadata=metadata,
    )


# --- answers ------------------------------------------------------------------------------------


def _put_assignment(
    message: pb.Assignment, assignment: Assignment, spelling: str, book: Book
) -> None:
    message.code = assignment.code
    message.display_code = spelling or book.code_format.display(assignment.code)
    message.book_id = str(assignment.book_id)
    message.user_id = assignment.user_id
    message.state = pb.AssignmentState.ValueType(assignment.state)
    message.redemption_count = assignment.redemptions
    if assignment.assign_time is not None:
        put_time(message.assign_time, assignment.assign_time)
    if assignment.expire_time is not None:
        put_time(message.expire_time, assignment.expire_time)
    if assignment.metadata is not None:
        put_struct(message.metadata, assignment.metadata)


def done_assignment(done: Done) -> pb.Assignment:
    """The assignment that a command was about."""
    if done.assignment is None or done.code is None:
        raise AssertionError("a command about an assignment came back without one")
    message = pb.Assignment()
    _put_assignment(message, done.assignment, done.code.spelling, done.book)
    return message


def assignment_message(assignment: Assignment, spelling: str, book: Book) -> pb.Assignment:
    """An assignment of the book. `spelling`: of its code, as it was uploaded, if it was."""
    message = pb.Assignment()
    _put_assignment(message, assignment, spelling, book)
    return message


def batch_message(
    commands: Sequence[AssignRandom], outcomes: Sequence[Outcome]
) -> pb.BatchAssignRandomCodesResponse:
    """What each user got."""
    results = map(_batch_result, commands, outcomes)
    return pb.BatchAssignRandomCodesResponse(results=results)


def _batch_result(command: AssignRandom, outcome: Outcome) -> pb.BatchAssignResult:
    if isinstance(outcome, CouponServiceError):
        return pb.BatchAssignResult(user_id=command.user_id, error=item_error(outcome))
    done = done_of(outcome)
    assignment = done_assignment(done)
    # A thousand copies of what the caller has sent would be more than a client takes.
    assignment.ClearField("metadata")
    return pb.BatchAssignResult(
        user_id=command.user_id, assignment=assignment, replayed=done.replayed
    )


def coupon_message(
    assignment: Assignment, code: Code, book: Book, effective_state: CodeState
) -> pb.UserCoupon:
    """A user's code as the user would see it; no state where it was taken back."""
    coupon = pb.UserCoupon()
    _put_assignment(coupon.assignment, assignment, code.spelling, book)
    if assignment.state is AssignmentState.REDEEMED:
        coupon.effective_state = codes_pb.COUPON_CODE_STATE_REDEEMED
    elif assignment.state is not AssignmentState.REVOKED:
        coupon.effective_state = codes_pb.CouponCodeState.ValueType(effective_state)
    if code.terms is not None:
        put_terms(coupon.terms, code.terms)
    return coupon
