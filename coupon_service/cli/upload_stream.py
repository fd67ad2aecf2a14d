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
    """Each chunk with its answer, of a service that was there a moment ago.

    After a break the chunk that was not answered is sent again; not in a dry run, since the service
    forgets with the stream what it has seen in it.
    """
    patience = Patience()
    patience.answered()
    upload: Upload | None = None
    try:
        for chunk in chunks:
            answer: ImportCodesResponse | None = None
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
        message = ImportChunk(chunk_number=chunk.number, codes=[row.text for row in chunk.rows])
        self._messages.put(ImportCodesRequest(chunk=message))
        for answer in self._answers:
            return answer
        raise CommandError("The service ended the upload before its end.")

    def finish(self) -> None:
        """There is no further chunk. Waits for the status: the call would be cancelled else."""
        self._messages.put(None)
        with suppress(grpc.RpcError):  # every chunk has been answered
            for _ in self._answers:
                pass

    def cancel(self) -> None:
        """Ends the stream, if it has not ended."""
        self._answers.cancel()
        self._messages.put(None)
