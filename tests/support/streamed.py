"""RedemptionService over a Checkout stream, with the interface of its stub."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from coupon_service.rpc.convert.checkout import METHODS
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.error_reason_pb2 import ErrorReason

FIELDS: Final = {method.partition("/")[2]: field for field, method in METHODS.items()}
"""The field of each method that a stream carries."""

CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class OperationError(grpc.RpcError):
    """The error of an operation, with the interface of that of a call."""

    def __init__(self, error: pb.CheckoutError) -> None:
        super().__init__(error.error.message)
        reason = ErrorReason.Name(error.error.reason).removeprefix("ERROR_REASON_")
        status = Status(code=error.code, message=error.error.message)
        info = ErrorInfo(domain="coupon_service.v1", reason=reason, metadata=error.error.metadata)
        status.details.add().Pack(info)
        if error.HasField("retry_delay"):
            status.details.add().Pack(RetryInfo(retry_delay=error.retry_delay))
        if error.field_violations:
            bad = BadRequest()
            for it in error.field_violations:
                bad.field_violations.add(field=it.field, description=it.description)
            status.details.add().Pack(bad)
        self.status = status

    def code(self) -> grpc.StatusCode:
        """The gRPC status."""
        return CODES[self.status.code]

    def details(self) -> str:
        """The description."""
        return self.status.message

    def trailing_metadata(self) -> Any:
        """The details, where grpc_status looks for them."""
        return [("grpc-status-details-bin", self.status.SerializeToString())]


class Stream:
    """A Checkout stream, whose operations are sent in messages of their own."""

    def __init__(self, checkout: Callable[..., Any], **call: Any) -> None:
        self._requests: queue.SimpleQueue[pb.CheckoutRequest | None] = queue.SimpleQueue()
        self._tags = itertools.count(1)
        self._waiting: dict[int, tuple[str, Future[Any]]] = {}
        self._lock = threading.Lock()
        self.error: grpc.RpcError | None = None
        """Why it ended, once it has, unless with OK."""
        self.call: Any = checkout(iter(self._requests.get, None), **call)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, method: str, request: Any, timeout: float | None = None) -> Future[Any]:
        """Send an operation; the response, or the error of the operation or the stream."""
        operation = pb.CheckoutOperation(tag=next(self._tags), **{FIELDS[method]: request})
        if timeout is not None:
            operation.timeout.CopyFrom(Duration(nanos=1))
            operation.timeout.FromNanoseconds(int(timeout * 1e9))
        answer: Future[Any] = Future()
        with self._lock:
            if self.error is not None:
                answer.set_exception(self.error)
                return answer
            self._waiting[operation.tag] = FIELDS[method], answer
        self._requests.put(pb.CheckoutRequest(operations=[operation]))
        return answer

    @property
    def ended(self) -> bool:
        """Whether no more results come."""
        return self.error is not None or not self._reader.is_alive()

    def close(self) -> None:
        """Half-close, and wait for the last results."""
        self._requests.put(None)
        self._reader.join()

    def _read(self) -> None:
        try:
            for result in self._results():
                with self._lock:
                    field, answer = self._waiting.pop(result.tag)
                if result.HasField("error"):
                    answer.set_exception(OperationError(result.error))
                else:
                    assert result.WhichOneof("result") == field
                    answer.set_result(getattr(result, field))
        except grpc.RpcError as error:
            with self._lock:
                self.error = error
                left, self._waiting = self._waiting, {}
            for _, answer in left.values():
                answer.set_exception(error)

    def _results(self) -> Iterator[pb.CheckoutResult]:
        for response in self.call:
            yield from response.results


class StreamedStub:
    """A stub whose operations go over a stream, the next one when it has ended.

    `share`: one in so many operations; the others are calls.
    """

    def __init__(self, stub: Any, share: int = 1) -> None:
        self._stub = stub
        self._share = share
        self._counter = itertools.count()
        self._lock = threading.Lock()
        self._stream: Stream | None = None

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)
        return _Method(self, method, call) if method in FIELDS else call

    def begin(self, method: str, call: Any, request: Any, timeout: float | None, **how: Any) -> Any:
        """Begin an operation, or a call. `how`: for a stream that has to be opened, or the call."""
        with self._lock:
            if next(self._counter) % self._share:
                return call.future(request, timeout=timeout, **how)
            if self._stream is None or self._stream.ended:
                self._stream = Stream(self._stub.Checkout, **how)
            return self._stream.begin(method, request, timeout)


class _Method:
    """A method of the stub."""

    def __init__(self, stub: StreamedStub, name: str, call: Any) -> None:
        self._stub = stub
        self._name = name
        self._call = call

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = (), **how: Any
    ) -> Any:
        if metadata:  # a stream has its own
            return self._call(request, timeout=timeout, metadata=metadata, **how)
        return self.future(request, timeout, **how).result()

    def future(self, request: Any, timeout: float | None = None, **how: Any) -> Any:
        """Begin, and wait for nothing."""
        return self._stub.begin(self._name, self._call, request, timeout, **how)
