"""Locks between proto and model."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from coupon_service.errors import PermissionDenied
from coupon_service.model import (
    Attempt,
    Call,
    EventType,
    Lock,
    LockView,
    earlier_attempts,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.business import in_business
from coupon_service.rpc.convert.fields import TTL_MAX_MS, Fields, Page
from coupon_service.rpc.convert.values import put_time
from coupon_service.rpc.paging import PageTokens
from coupon_service.v1 import redemption_service_pb2 as pb

TTL_MIN_MS: Final = 1_000

# --- requests -----------------------------------------------------------------------------------


def read_lock(request: pb.LockCodeRequest, rpc: RequestContext) -> Lock:
    """The command, still without a lease."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    code = fields.code("code", request.code)
    book_id = fields.optional_uuid("book_id", request.book_id)
    user_id = rpc.user(fields.identifier("user_id", request.user_id))
    ttl_ms = _ttl_ms(fields, request)
    metadata = fields.metadata(request.metadata)
    call = in_business(call, fields, request.business_id, book_id, rpc)
    fields.check()

    def attempt(caller: str, user_id: str) -> Attempt:
        return (
            event_id(bucket_of(code), EventType.LOCKED, caller, call.request_id, code),
            fingerprint(user_id, book_id, ttl_ms, metadata),
        )

    ids, sent = (call.caller, user_id), (call.caller, request.user_id or user_id)
    named, parameters = attempt(*ids)
    return Lock(
        call=call,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, ids, sent),
        user_id=user_id,
        book_id=book_id,
        lock_id=named,
        ttl_ms=ttl_ms,
        metadata=metadata,
    )


def read_extend(request: pb.ExtendLockRequest, rpc: RequestContext) -> tuple[str, int | None, Call]:
    """The token of the lock, and the lifetime that is requested, if any."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    token = _token(fields, request.lock_token)
    ttl_ms = _ttl_ms(fields, request)
    fields.check()
    return token, ttl_ms, call


def read_unlock(
    request: pb.UnlockCodeRequest, rpc: RequestContext
) -> tuple[str | None, UUID | None, Call]:
    """The token of the lock or else its id."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    token: str | None = None
    lock_id: UUID | None = None
    if request.HasField("lock_id"):
        lock_id = fields.uuid("lock_id", request.lock_id)
    elif request.HasField("lock_token"):
        token = _token(fields, request.lock_token)
    else:
        fields.refuse("lock", "expected lock_token or lock_id")
    fields.check()
    return token, lock_id, call


def read_lock_id(request: pb.GetLockRequest) -> UUID:
    """Which lock."""
    fields = Fields()
    lock_id = fields.uuid("lock_id", request.lock_id)
    fields.check()
    return lock_id


def read_list(
    request: pb.ListLocksRequest, rpc: RequestContext, tokens: PageTokens
) -> tuple[str | None, UUID | None, Page]:
    """Locks of which user or of which book, and which page of them. Raises PermissionDenied."""
    fields = Fields()
    user_id: str | None = None
    book_id: UUID | None = None
    if request.HasField("user_id"):
        user_id = rpc.user(fields.identifier("user_id", request.user_id))
    elif rpc.end_user:
        raise PermissionDenied("An end user may only list its own locks, by user_id.")
    elif request.HasField("book_id"):
        book_id = fields.uuid("book_id", request.book_id)
    else:
        fields.refuse("filter", "expected user_id or book_id")
    page = fields.page(request, tokens)
    fields.check()
    return user_id, book_id, page


def _token(fields: Fields, token: str) -> str:
    # What is in it is read where it is verified: LOCK_TOKEN_MISMATCH.
    if not token:
        fields.refuse("lock_token", "expected the token of the lock")
    return token


def _ttl_ms(fields: Fields, request: pb.LockCodeRequest | pb.ExtendLockRequest) -> int | None:
    if not request.HasField("ttl"):
        return None
    return fields.milliseconds("ttl", request.ttl, TTL_MIN_MS, TTL_MAX_MS)


# --- answers ------------------------------------------------------------------------------------


def lock_message(lock: LockView) -> pb.Lock:
    """The lock as a client sees it."""
    message = pb.Lock()
    message.lock_id = str(lock.lock_id)
    message.code = lock.code
    message.book_id = str(lock.book_id)
    message.user_id = lock.user_id
    message.state = pb.LockState.ValueType(lock.state)
    message.fence = lock.fence
    put_time(message.create_time, lock.create_time)
    put_time(message.expire_time, lock.expire_time)
    return message
