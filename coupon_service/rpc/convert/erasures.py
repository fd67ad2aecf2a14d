"""Erasures of users between proto and model."""

from __future__ import annotations

from coupon_service.erasure import ErasureProgress
from coupon_service.errors import PermissionDenied
from coupon_service.model import Call
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.store.erasures import Erased
from coupon_service.v1 import audit_service_pb2 as pb


def read_erase(request: pb.EraseUserRequest, rpc: RequestContext) -> tuple[str, Call]:
    """Which user is to be erased, by whom. Raises PermissionDenied."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    user_id = _user(fields, request.user_id, rpc)
    fields.check()
    return user_id, call


def read_get(request: pb.GetErasureRequest, rpc: RequestContext) -> str:
    """Whose erasure. Raises PermissionDenied."""
    fields = Fields()
    user_id = _user(fields, request.user_id, rpc)
    fields.check()
    return user_id


def _user(fields: Fields, user_id: str, rpc: RequestContext) -> str:
    if rpc.business_id:
        # The users of two businesses may have the same user_id, and only both can know.
        raise PermissionDenied("Only callers who see all businesses erase users.")
    return fields.identifier("user_id", user_id)


def progress_message(progress: ErasureProgress) -> pb.EraseUserResponse:
    """How far it has come."""
    return pb.EraseUserResponse(
        erasure=erasure_message(progress.erased), replayed=progress.replayed
    )


def erasure_message(erased: Erased) -> pb.Erasure:
    """An erasure as a client sees it."""
    return pb.Erasure(
        pseudonym=erased.pseudonym,
        state=pb.ErasureState.ValueType(erased.state),
        begin_time=to_timestamp(erased.begin_time),
        erase_time=to_timestamp(erased.erase_time) if erased.erase_time else None,
        changed_rows=erased.rows,
    )
