"""CouponCodeService."""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from itertools import islice, starmap
from typing import Any, Final

from coupon_service.batching import CommandLanes
from coupon_service.errors import CodeSpaceExhausted
from coupon_service.locks.service import LockService
from coupon_service.model import CommandGroup, EventType, SetCodeEnabled, done_of
from coupon_service.model.codes import CodeFormat, check_capacity, generate
from coupon_service.rpc.context import current
from coupon_service.rpc.convert import code_changes as convert_changes
from coupon_service.rpc.convert import codes as convert
from coupon_service.rpc.freshness import tell_lag
from coupon_service.rpc.paging import PageTokens
from coupon_service.rules import effective_code_state
from coupon_service.store.books import Books
from coupon_service.store.bulk.code_changes import CodeChanger
from coupon_service.store.bulk.dry_runs import DryRuns
from coupon_service.store.bulk.exports import CodeExporter
from coupon_service.store.bulk.generation import CodeGenerator
from coupon_service.store.bulk.imports import CodeImporter
from coupon_service.store.bulk.upload_rows import ImportResult
from coupon_service.store.queries.reads import Reads
from coupon_service.v1 import coupon_code_service_pb2 as pb
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceServicer

ROWS_STEP: Final = 200
"""Rejected rows that become messages in one turn of the event loop."""


class CouponCodeServicer(CouponCodeServiceServicer):
    """Answers with what Reads, the rules, and those who make codes do."""

    def __init__(
        self,
        books: Books,
        reads: Reads,
        generator: CodeGenerator,
        importer: CodeImporter,
        exporter: CodeExporter,
        changer: CodeChanger,
        commands: CommandLanes,
        locks: LockService,
        page_tokens: PageTokens,
        now: Callable[[], datetime],
    ) -> None:
        self._books = books
        self._reads = reads
        self._generator = generator
        self._importer = importer
        self._exporter = exporter
        self._changer = changer
        self._commands = commands
        self._locks = locks
        self._page_tokens = page_tokens
        self._now = now
        self._dry_runs = DryRuns()

    async def PreviewCodes(
        self, request: pb.PreviewCodesRequest, context: Any
    ) -> pb.PreviewCodesResponse:
        preview = convert.read_preview(request)
        code_format, existing = preview.code_format or CodeFormat(), 0
        if preview.book_id is not None:
            book, existing = await self._books.codes_taken(
                preview.book_id, current().business_id, preview.code_format
            )
            code_format = book.code_format
        samples = generate(code_format, min(preview.samples, code_format.capacity // 2))
        problem = None
        try:
            check_capacity(code_format, existing, preview.count)
        except CodeSpaceExhausted as error:
            problem = error
        return convert.preview_message(code_format, problem, samples)

    async def GenerateCodes(
        self, request: pb.GenerateCodesRequest, context: Any
    ) -> AsyncIterator[pb.GenerateCodesResponse]:
        book_id, count, call = convert.read_generate(request, current())
        async with aclosing(self._generator.generate(book_id, count, call)) as chunks:
            async for progress in chunks:
                yield pb.GenerateCodesResponse(
                    generated_count=progress.generated,
                    count=progress.count,
                    replayed=progress.replayed,
                )

    async def ImportCodes(
        self, request_iterator: AsyncIterator[pb.ImportCodesRequest], context: Any
    ) -> AsyncIterator[pb.ImportCodesResponse]:
        header = await anext(request_iterator, pb.ImportCodesRequest())
        to = convert.read_header(header, current())
        await self._books.get(to.book_id, to.call.business_id)
        number: int | None = None
        with self._dry_runs.begin() as dry_run:
            async for request in request_iterator:
                number, rows = convert.read_chunk(request, before=number)
                chunk = to.book_id, number, rows, to.call, to.min_code_length
                if to.validate_only:
                    result = await self._importer.try_chunk(*chunk, dry_run)
                else:
                    result = await self._importer.import_chunk(*chunk)
                yield await _import_message(number, result)

    async def ExportCodes(
        self, request: pb.ExportCodesRequest, context: Any
    ) -> AsyncIterator[pb.ExportCodesResponse]:
        book_id, state, after = convert.read_export(request, self._page_tokens)
        business_id = current().business_id
        pages = self._exporter.pages(
            book_id, business_id, state, after, with_details=request.with_details
        )
        lag_ms: int | None = None
        async with aclosing(pages):
            async for page in pages:
                message = convert.page_message(page)
                message.next_page_token = self._page_tokens.token(request, page.after)
                if page.lag_ms is not None and page.lag_ms > (lag_ms or 0):
                    lag_ms = page.lag_ms
                    tell_lag(context, lag_ms)
                yield message

    async def GetCode(self, request: pb.GetCodeRequest, context: Any) -> pb.GetCodeResponse:
        wanted, book_id, business_id = convert.read_get(request, current())
        code, book = await self._reads.code(wanted, book_id, business_id)
        now = self._now()
        locked_out = code.key in await self._locks.locked_out([(code, book)], now)
        state = effective_code_state(code, book, now, locked_out=locked_out)
        return pb.GetCodeResponse(coupon_code=convert.code_message(code, book, state))

    async def ListCodes(self, request: pb.ListCodesRequest, context: Any) -> pb.ListCodesResponse:
        book_id, state, page = convert.read_list(request, self._page_tokens)
        book, codes, end = await self._reads.codes(
            book_id, current().business_id, state, page.size, page.after
        )
        now = self._now()
        return pb.ListCodesResponse(
            codes=[
                convert.code_message(code, book, effective_code_state(code, book, now))
                for code in codes
            ],
            next_page_token=self._page_tokens.token(request, end),
        )

    async def DisableCode(
        self, request: pb.DisableCodeRequest, context: Any
    ) -> pb.DisableCodeResponse:
        command = convert.read_set_enabled(request, EventType.CODE_DISABLED, current())
        message, replayed = await self._set_enabled(command)
        return pb.DisableCodeResponse(coupon_code=message, replayed=replayed)

    async def EnableCode(
        self, request: pb.EnableCodeRequest, context: Any
    ) -> pb.EnableCodeResponse:
        command = convert.read_set_enabled(request, EventType.CODE_ENABLED, current())
        message, replayed = await self._set_enabled(command)
        return pb.EnableCodeResponse(coupon_code=message, replayed=replayed)

    async def ChangeCodes(
        self, request: pb.ChangeCodesRequest, context: Any
    ) -> AsyncIterator[pb.ChangeCodesResponse]:
        changes = convert_changes.read_changes(request, current())
        async with aclosing(self._changer.change(changes)) as chunks:
            async for progress in chunks:
                yield convert_changes.progress_message(progress)

    async def _set_enabled(self, command: SetCodeEnabled) -> tuple[pb.CouponCode, bool]:
        (outcome,) = await self._commands.submit(CommandGroup((command,)))
        done = done_of(outcome)
        if done.code is None:
            raise AssertionError("a code was changed and not returned")
        state = effective_code_state(done.code, done.book, self._now())
        return convert.code_message(done.code, done.book, state), done.replayed


async def _import_message(number: int, result: ImportResult) -> pb.ImportCodesResponse:
    message, verdicts = convert.import_message(number, result), result.verdicts()
    while rows := list(starmap(convert.rejected_row, islice(verdicts, ROWS_STEP))):
        message.rejected_rows.extend(rows)
        await asyncio.sleep(0)
    return message
