"""The stream of an import: chunks out, answers in, opened again after a break."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from queue import SimpleQueue

import grpc

from coupon_service.cli.client import BlockingService, Patience
from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import Chunk
from coupon_service.v1.coupon_code_service_pb2 import (
    ImportChunk,
    ImportCodesRequest,
    ImportCodesResponse,
    ImportHeader,
)
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub


def uploaded(
    service: BlockingService, header: ImportHeader, chunks: Iterable[Chunk]
) -> Generator[tuple[Chunk, ImportCodesResponse]]:
    """Each chunk with its answer, from a service that has just answered another call.

    After a break the unanswered chunk is sent again, but not in a dry run: the service remembers
    the codes of earlier chunks only while the stream is open.
    """
    patience = Patience()
    patience.answered()
    upload: Upload | None = None
    try:
        for chunk in chunks:
            answer = None if chunk.rows else ImportCodesResponse()
            while answer is None:
                try:
                    upload = upload or Upload(service, header)
                    answer = upload.send(chunk)
                except grpc.RpcError as error:
                    if upload is not None:
                        upload.cancel()
                    upload = None
                    if header.validate_only:
                        raise
                    patience.wait_after(error)
            patience.answered()
            yield chunk, answer
        if upload is not None:
            upload.finish()
    finally:
        if upload is not None:
            upload.cancel()


class Upload:
    """An open stream of ImportCodes.

    It sends one chunk at a time: with more on the way, a service that waits for us to take its
    answer and we, who wait for it to take a chunk, could wait for ever.
    """

    def __init__(self, service: BlockingService, header: ImportHeader) -> None:
        self._messages: SimpleQueue[ImportCodesRequest | None] = SimpleQueue()
        self._messages.put(ImportCodesRequest(header=header))
        self._answers = CouponCodeServiceStub(service.channel).ImportCodes(
            iter(self._messages.get, None), metadata=service.metadata
        )

    def send(self, chunk: Chunk) -> ImportCodesResponse:
        """The answer to a chunk. Raises CommandError when there is none."""
        message = ImportChunk(
            chunk_number=chunk.number,
            codes=[row.text for row in chunk.rows if row.new is None],
            rows=[row.new for row in chunk.rows if row.new is not None],
        )
        self._messages.put(ImportCodesRequest(chunk=message))
        for answer in self._answers:
            return answer
        raise CommandError("The service ended the upload before its end.")

    def finish(self) -> None:
        """Ends the stream and waits for its status; otherwise the service logs it as CANCELLED."""
        self._messages.put(None)
        with suppress(grpc.RpcError):  # every chunk has been answered
            for _ in self._answers:
                pass

    def cancel(self) -> None:
        """Cancels the stream, if it is open."""
        self._answers.cancel()
        self._messages.put(None)
