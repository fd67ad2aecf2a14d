"""Methods of CouponCodeService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from coupon_service.client.rpc import listing, unary, upload
from coupon_service.client.values import new_request_id, timestamp
from coupon_service.v1 import coupon_book_service_pb2 as books
from coupon_service.v1 import coupon_code_service_pb2 as pb

CHUNK_ROWS_MAX: Final = 10_000
TERMS_ROWS_MAX: Final = 1_000
CHUNK_MAX_BYTES: Final = 900_000
"""Of the codes of a chunk; with what a message adds to each it may have 1 MiB."""


class CouponCodeMethods:
    """The codes of a book."""

    @unary(pb.PreviewCodesResponse)
    @staticmethod
    def preview_codes(
        count: int,
        *,
        code_format: books.CodeFormat | None = None,
        book_id: str = "",
        sample_count: int = 0,
    ) -> pb.PreviewCodesRequest:
        """Whether a format has enough codes, and samples. Changes nothing."""
        return pb.PreviewCodesRequest(
            count=count, code_format=code_format, book_id=book_id, sample_count=sample_count
        )

    @listing(pb.GenerateCodesResponse, lambda progress: (progress,))
    @staticmethod
    def generate_codes(
        book_id: str, count: int, *, request_id: str = ""
    ) -> pb.GenerateCodesRequest:
        """Generate random codes, with a message after each committed chunk. It is done when the
        iterator ends. One that was abandoned goes on where it was with the same `request_id`.
        """
        return pb.GenerateCodesRequest(
            book_id=book_id, count=count, request_id=request_id or new_request_id()
        )

    @upload(pb.ImportCodesResponse)
    @staticmethod
    def import_codes(
        book_id: str,
        codes: Iterable[str | pb.NewCode],
        *,
        request_id: str = "",
        min_code_length: int = 0,
    ) -> Iterator[Sequence[pb.ImportCodesRequest]]:
        """Upload codes in chunks, with the answer to each, which names the rows that did not become
        codes. Those that say something for themselves, or are for a user, are given as NewCode. It
        is done when the iterator ends. `index` in an answer counts from the start of its
        chunk; `chunk_number` and the order of the answers tell which one it is.
        """
        header = pb.ImportHeader(
            book_id=book_id,
            request_id=request_id or new_request_id(),
            min_code_length=min_code_length,
        )
        for number, chunk in enumerate(_chunks(codes), 1):
            chunk.chunk_number = number
            yield pb.ImportCodesRequest(header=header), pb.ImportCodesRequest(chunk=chunk)

    @listing(pb.ExportCodesResponse, lambda message: message.codes)
    @staticmethod
    def export_codes(
        book_id: str,
        *,
        state: pb.CouponCodeState.ValueType = pb.COUPON_CODE_STATE_UNSPECIFIED,
        with_details: bool = False,
    ) -> pb.ExportCodesRequest:
        """All codes of a book, or those in one stored state. `with_details`: each with its user and
        its last redemption."""
        return pb.ExportCodesRequest(book_id=book_id, state=state, with_details=with_details)

    @unary(pb.GetCodeResponse)
    @staticmethod
    def get_code(code: str, *, book_id: str = "", business_id: str = "") -> pb.GetCodeRequest:
        """A code with its derived state."""
        return pb.GetCodeRequest(code=code, book_id=book_id, business_id=business_id)

    @listing(pb.ListCodesResponse, lambda page: page.codes)
    @staticmethod
    def list_codes(
        book_id: str,
        *,
        state: pb.CouponCodeState.ValueType = pb.COUPON_CODE_STATE_UNSPECIFIED,
        page_size: int = 0,
    ) -> pb.ListCodesRequest:
        """Codes of a book, in a stable order without meaning. For all of them: export_codes."""
        return pb.ListCodesRequest(book_id=book_id, state=state, page_size=page_size)

    @unary(pb.DisableCodeResponse)
    @staticmethod
    def disable_code(
        code: str, *, business_id: str = "", request_id: str = ""
    ) -> pb.DisableCodeRequest:
        """Make a code unusable until enable_code."""
        return pb.DisableCodeRequest(
            code=code, business_id=business_id, request_id=request_id or new_request_id()
        )

    @unary(pb.EnableCodeResponse)
    @staticmethod
    def enable_code(
        code: str, *, business_id: str = "", request_id: str = ""
    ) -> pb.EnableCodeRequest:
        """Revert disable_code."""
        return pb.EnableCodeRequest(
            code=code, business_id=business_id, request_id=request_id or new_request_id()
        )

    @listing(pb.ChangeCodesResponse, lambda progress: (progress,))
    @staticmethod
    def change_codes(
        book_id: str,
        change: pb.CodeChange.ValueType,
        *,
        codes: Iterable[str] | None = None,
        state: pb.CouponCodeState.ValueType = pb.COUPON_CODE_STATE_UNSPECIFIED,
        upload_request_id: str = "",
        upload_caller: str = "",
        assigned_before: datetime | None = None,
        prefix: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> pb.ChangeCodesRequest:
        """Disable, enable, delete or revoke up to 1,000 `codes` of a book, or without a list all
        that match the filter, with a message after each committed chunk. It is done when the
        iterator ends. One that was abandoned goes on where it was with the same `request_id`.
        """
        request = pb.ChangeCodesRequest(
            book_id=book_id,
            change=change,
            validate_only=validate_only,
            request_id=request_id or new_request_id(),
        )
        if codes is not None:
            request.list.codes.extend(codes)
        else:
            wanted = pb.CodeFilter(
                state=state,
                upload_request_id=upload_request_id,
                upload_caller=upload_caller,
                assigned_before=timestamp(assigned_before),
                prefix=prefix,
            )
            request.filter.CopyFrom(wanted)
        return request


def _chunks(codes: Iterable[str | pb.NewCode]) -> Iterator[pb.ImportChunk]:
    """The codes, in as many at a time as one message takes."""
    chunk, size = pb.ImportChunk(), 0
    for code in codes:
        plain = isinstance(code, str)
        added = len(code.encode()) + 4 if plain else code.ByteSize() + 4
        other, rows = (chunk.rows, chunk.codes) if plain else (chunk.codes, chunk.rows)
        rows_max = CHUNK_ROWS_MAX if plain else TERMS_ROWS_MAX
        if other or len(rows) == rows_max or (rows and size + added > CHUNK_MAX_BYTES):
            yield chunk
            chunk, size = pb.ImportChunk(), 0
        if plain:
            chunk.codes.append(code)
        else:
            chunk.rows.append(code)
        size += added
    if chunk.codes or chunk.rows:
        yield chunk
