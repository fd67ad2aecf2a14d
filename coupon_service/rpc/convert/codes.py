"""Codes, and their import, export and generation, between proto and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    Attempt,
    Book,
    Call,
    Code,
    CodeState,
    EventType,
    SetCodeEnabled,
    earlier_attempts,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import CodeFormat, bucket_of
from coupon_service.model.normalization import CODE_LENGTH_MAX
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.books import read_code_format
from coupon_service.rpc.convert.business import business_of, in_business
from coupon_service.rpc.convert.fields import Fields, Page
from coupon_service.rpc.convert.terms import put_terms, read_rows
from coupon_service.rpc.convert.values import INT64_MAX, put_money, put_time
from coupon_service.rpc.paging import PageTokens, Position
from coupon_service.rpc.status import item_error
from coupon_service.rules import book_of
from coupon_service.store.bulk.code_details import CodeDetails
from coupon_service.store.bulk.exports import ExportedPage
from coupon_service.store.bulk.upload_rows import ImportResult, UploadRow
from coupon_service.v1 import coupon_code_service_pb2 as pb

STORED_STATES: Final = (
    CodeState.AVAILABLE,
    CodeState.ASSIGNED,
    CodeState.REDEEMED,
    CodeState.DISABLED,
)

PREVIEW_MAX: Final = 10**9
GENERATE_MAX: Final = 10**8
SAMPLES_MAX: Final = 100
SAMPLES_DEFAULT: Final = 5
CHUNK_ROWS_MAX: Final = 10_000
TERMS_ROWS_MAX: Final = 1_000
"""Of a chunk whose codes have terms or users: they are assigned all at once."""
CHUNK_NUMBER_MAX: Final = 2**31 - 1

# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preview:
    """Codes to think about. Without `code_format`, that of the book, or else the default."""

    code_format: CodeFormat | None
    count: int
    book_id: UUID | None
    samples: int


def read_preview(request: pb.PreviewCodesRequest) -> Preview:
    """What is to be previewed."""
    fields = Fields()
    code_format = None
    if request.HasField("code_format"):
        code_format = read_code_format(fields.within("code_format"), request.code_format)
    count = fields.whole("count", request.count, 1, PREVIEW_MAX)
    book_id = fields.optional_uuid("book_id", request.book_id)
    samples = fields.whole("sample_count", request.sample_count, 0, SAMPLES_MAX)
    fields.check()
    return Preview(code_format, count, book_id, samples or SAMPLES_DEFAULT)


def read_generate(request: pb.GenerateCodesRequest, rpc: RequestContext) -> tuple[UUID, int, Call]:
    """For which book, how many codes."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    book_id = fields.uuid("book_id", request.book_id)
    count = fields.whole("count", request.count, 1, GENERATE_MAX)
    fields.check()
    return book_id, count, call


@dataclass(frozen=True, slots=True)
class ImportTarget:
    """Where the codes of an upload go. `min_code_length`: 0 = what the book says."""

    book_id: UUID
    call: Call
    min_code_length: int
    validate_only: bool


def read_header(request: pb.ImportCodesRequest, rpc: RequestContext) -> ImportTarget:
    """Where the codes of an upload go."""
    fields = Fields()
    if not request.HasField("header"):
        fields.refuse("header", "expected the header in the first message")
    header, inside = request.header, fields.within("header")
    book_id = inside.uuid("book_id", header.book_id)
    if not header.request_id:
        inside.refuse("request_id", "expected one, so that the upload can be resumed")
    call = rpc.call(inside.request_id(header.request_id))
    least = inside.whole("min_code_length", header.min_code_length, 0, CODE_LENGTH_MAX)
    fields.check()
    return ImportTarget(book_id, call, least, header.validate_only)


def read_chunk(
    request: pb.ImportCodesRequest, before: int | None
) -> tuple[int, Sequence[str] | Sequence[UploadRow]]:
    """The number of a chunk, and its rows: as they stand in the file, or with what is said of each.

    `before`: the number of the chunk before it in the stream, None for the first.
    """
    fields = Fields()
    if not request.HasField("chunk"):
        fields.refuse("chunk", "expected a chunk in every message after the first")
        fields.check()
    chunk, inside = request.chunk, fields.within("chunk")
    number = inside.whole("chunk_number", chunk.chunk_number, 1, CHUNK_NUMBER_MAX)
    if before is not None and number != before + 1:
        inside.refuse("chunk_number", f"expected {before + 1}, one more than the chunk before")
    if chunk.rows and chunk.codes:
        inside.refuse("rows", "expected codes or rows, not both")
    elif len(chunk.rows) > TERMS_ROWS_MAX:
        inside.refuse("rows", f"expected 1 to {TERMS_ROWS_MAX:,} rows")
    elif not chunk.rows and not 1 <= len(chunk.codes) <= CHUNK_ROWS_MAX:
        inside.refuse("codes", f"expected 1 to {CHUNK_ROWS_MAX:,} rows")
    fields.check()
    return number, read_rows(chunk.rows) if chunk.rows else chunk.codes


def read_export(
    request: pb.ExportCodesRequest, tokens: PageTokens
) -> tuple[UUID, CodeState | None, Position | None]:
    """Which codes of which book, and after which one to go on."""
    fields = Fields()
    book_id = fields.uuid("book_id", request.book_id)
    state = fields.choice("state", request.state, STORED_STATES, None)
    after = fields.position(request, tokens)
    fields.check()
    return book_id, state, after


def read_get(request: pb.GetCodeRequest, rpc: RequestContext) -> tuple[str, UUID | None, str]:
    """Which code, in which book it has to be, and in which business. Raises PermissionDenied."""
    fields = Fields()
    code = fields.code("code", request.code)
    book_id = fields.optional_uuid("book_id", request.book_id)
    business_id = business_of(fields, request.business_id, book_id, rpc)
    fields.check()
    return code, book_id, business_id


def read_list(
    request: pb.ListCodesRequest, tokens: PageTokens
) -> tuple[UUID, CodeState | None, Page]:
    """Which codes of which book, and which page of them."""
    fields = Fields()
    book_id = fields.uuid("book_id", request.book_id)
    state = fields.choice("state", request.state, STORED_STATES, None)
    page = fields.page(request, tokens)
    fields.check()
    return book_id, state, page


def read_set_enabled(
    request: pb.DisableCodeRequest | pb.EnableCodeRequest, event: EventType, rpc: RequestContext
) -> SetCodeEnabled:
    """The command to disable or enable a code: `event` says which."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    code = fields.code("code", request.code)
    call = in_business(call, fields, request.business_id, None, rpc)
    fields.check()

    def attempt(caller: str) -> Attempt:
        return event_id(bucket_of(code), event, caller, call.request_id, code), fingerprint()

    named, parameters = attempt(call.caller)
    return SetCodeEnabled(
        call=call,
        type=event,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, (call.caller,)),
    )


# --- answers ------------------------------------------------------------------------------------


def code_message(code: Code, book: Book, effective_state: CodeState | None) -> pb.CouponCode:
    """The code as a client sees it; without `effective_state` where that is not told."""
    message = pb.CouponCode(
        code=code.code,
        display_code=code.spelling or book.code_format.display(code.code),
        book_id=str(code.book_id),
        state=pb.CouponCodeState.ValueType(code.state),
        effective_state=pb.CouponCodeState.ValueType(effective_state or 0),
        redemption_count=code.redemptions,
        max_redemptions=book_of(code, book).limits.max_redemptions_per_code,
        assignment_count=code.assignments,
    )
    if code.terms is not None:
        put_terms(message.terms, code.terms)
    return message


def page_message(page: ExportedPage) -> pb.ExportCodesResponse:
    """Codes of an export, with their details."""
    messages = [code_message(code, page.book, None) for code in page.codes]
    for message in messages if page.details else ():
        if (details := page.details.get(message.code)) is not None:
            _put_details(message.details, details)
    return pb.ExportCodesResponse(codes=messages)


def _put_details(message: pb.CodeDetails, details: CodeDetails) -> None:
    message.user_id = details.user_id
    if details.assign_time is not None:
        put_time(message.assign_time, details.assign_time)
    if details.expire_time is not None:
        put_time(message.assignment_expire_time, details.expire_time)
    if details.redemption_id is None or details.redeem_time is None:
        return
    message.redemption_id = str(details.redemption_id)
    put_time(message.redeem_time, details.redeem_time)
    message.redeem_user_id = details.redeem_user_id
    message.order_id = details.order_id
    if details.discount_minor is not None:
        put_money(message.discount, details.discount_minor, details.currency_code)


def preview_message(
    code_format: CodeFormat, problem: CouponServiceError | None, samples: Sequence[str]
) -> pb.PreviewCodesResponse:
    """What a format can do; `problem`: why it cannot make the codes that were asked for."""
    return pb.PreviewCodesResponse(
        feasible=problem is None,
        problem=item_error(problem) if problem else None,
        capacity=min(code_format.capacity, INT64_MAX),
        entropy_bits=code_format.entropy_bits,
        sample_codes=[code_format.display(code) for code in samples],
    )


def import_message(number: int, result: ImportResult) -> pb.ImportCodesResponse:
    """What became of the rows of a chunk, without those that were rejected."""
    return pb.ImportCodesResponse(
        chunk_number=number,
        created_count=result.created,
        duplicate_count=result.duplicates,
        existing_count=result.existing,
        invalid_count=result.invalid,
        not_assigned_count=len(result.of_rows.refused),
        assigned_count=result.of_rows.assigned,
        replayed=result.replayed,
    )


def rejected_row(index: int, outcome: int, error: CouponServiceError) -> pb.ImportRow:
    """A row of a chunk that was not created, and why not."""
    return pb.ImportRow(
        index=index, outcome=pb.ImportOutcome.ValueType(outcome), error=item_error(error)
    )
