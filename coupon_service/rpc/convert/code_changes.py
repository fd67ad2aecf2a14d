"""Changes of many codes between proto and model."""

from __future__ import annotations

import json
from typing import Final

from coupon_service.model import CodeChange, fingerprint
from coupon_service.model.normalization import NO_CODE
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.codes import STORED_STATES
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.status import item_error
from coupon_service.store.bulk.change_progress import ChangeProgress, CodeChanges
from coupon_service.store.bulk.code_filter import CodeFilter
from coupon_service.v1 import coupon_code_service_pb2 as pb

CODES_MAX: Final = 1_000


def read_changes(request: pb.ChangeCodesRequest, rpc: RequestContext) -> CodeChanges:
    """What is to be done to which codes."""
    fields = Fields()
    book_id = fields.uuid("book_id", request.book_id)
    if not (request.request_id or request.validate_only):
        fields.refuse("request_id", "expected one, so that the call can be resumed")
    call = rpc.call(fields.request_id(request.request_id))
    change = fields.choice("change", request.change, CodeChange, None)
    if change is None and not request.change:
        fields.refuse("change", "expected a change")
    listed, wanted = None, CodeFilter()
    match request.WhichOneof("target"):
        case "list":
            listed = _read_list(fields.within("list"), request.list)
        case "filter":
            wanted = _read_filter(fields.within("filter"), request.filter)
            if wanted.is_empty:
                fields.refuse("filter", "expected a filter, so that not all codes are changed")
        case _:
            fields.refuse("filter", "expected a list or a filter")
    fields.check()
    asked = json.dumps(request.filter.SerializeToString(deterministic=True).hex())
    if listed is not None:
        asked = json.dumps([code for _, code in listed])
    return CodeChanges(
        call=call,
        book_id=book_id,
        change=change or CodeChange.DISABLE,
        listed=listed,
        wanted=wanted,
        fingerprint=fingerprint(int(change or 0), asked),
        validate_only=request.validate_only,
    )


def _read_list(fields: Fields, message: pb.CodeList) -> list[tuple[str, str]]:
    """Each code as it was sent and as it is stored, once."""
    if not 1 <= len(message.codes) <= CODES_MAX:
        fields.refuse("codes", f"expected 1 to {CODES_MAX:,} codes")
        return []
    codes: dict[str, tuple[str, str]] = {}
    for index, sent in enumerate(message.codes):
        code = fields.code(f"codes[{index}]", sent)
        known_as = sent if code == NO_CODE else code
        codes.setdefault(known_as, (sent.replace("\0", "\N{REPLACEMENT CHARACTER}"), code))
    return list(codes.values())


def _read_filter(fields: Fields, message: pb.CodeFilter) -> CodeFilter:
    assigned_before = fields.optional_time(message, "assigned_before")
    prefix = fields.code("prefix", message.prefix) if message.prefix else ""
    if prefix == NO_CODE:
        fields.refuse("prefix", "expected how codes begin")
    upload = message.upload_request_id
    if message.upload_caller and not upload:
        fields.refuse("upload_caller", "expected an upload_request_id beside it")
    return CodeFilter(
        state=fields.choice("state", message.state, STORED_STATES, None),
        upload_request_id=fields.request_id(upload, field="upload_request_id") if upload else "",
        upload_caller=fields.identifier("upload_caller", message.upload_caller, optional=True),
        assigned_before=assigned_before,
        prefix=prefix,
    )


def progress_message(progress: ChangeProgress) -> pb.ChangeCodesResponse:
    """What became of a chunk."""
    return pb.ChangeCodesResponse(
        chunk_number=progress.number if progress.is_chunk else 0,
        changed_count=progress.changed,
        refused=[
            pb.RefusedCode(code=sent, error=item_error(error)) for sent, error in progress.refusals
        ],
        total_changed_count=progress.total_changed,
        total_refused_count=progress.total_refused,
        total_examined_count=progress.examined,
        replayed=progress.replayed,
        done=progress.done,
    )
