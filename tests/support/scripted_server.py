"""A gRPC server whose RedeemCode answers as a test says, try by try, also over Checkout streams."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_status import rpc_status

from coupon_service.errors import CouponServiceError, StreamEnded
from coupon_service.rpc.status import operation_error, to_status
from coupon_service.v1 import redemption_service_pb2 as pb

Outcome = CouponServiceError | grpc.StatusCode | float | None
"""An error, a bare status, an answer after so many seconds, or an answer at once."""


@dataclass
class Script:
    """The outcomes of the next tries, and what has come. Without an outcome a try is answered."""

    outcomes: deque[Outcome] = field(default_factory=deque[Outcome])
    requests: list[pb.RedeemCodeRequest] = field(default_factory=list[pb.RedeemCodeRequest])
    times_s: list[float] = field(default_factory=list[float])
    tokens: list[str] = field(default_factory=list[str])
    peers: set[str] = field(default_factory=set[str])
    messages: list[pb.CheckoutRequest] = field(default_factory=list[pb.CheckoutRequest])
    streams: list[str] = field(default_factory=list[str])
    """The tokens of all streams."""

    def redeem_code(self, request: pb.RedeemCodeRequest, context: Any) -> pb.RedeemCodeResponse:
        """Answers as the script says."""
        self.requests.append(request)
        self.times_s.append(time.monotonic())
        self.peers.add(context.peer())
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        outcome = self.outcomes.popleft() if self.outcomes else None
        match outcome:
            case CouponServiceError():
                to_call: Any = rpc_status
                context.abort_with_status(to_call.to_status(to_status(outcome)))
            case grpc.StatusCode():
                context.abort(outcome, "as the test says")
            case None:
                pass
            case _:
                time.sleep(outcome)
        return pb.RedeemCodeResponse(redemption=pb.Redemption(code=request.code))

    def checkout(
        self, requests: Iterator[pb.CheckoutRequest], context: Any
    ) -> Iterator[pb.CheckoutResponse]:
        """Answers operations as the script says. A bare status and StreamEnded end the stream."""
        self.peers.add(context.peer())
        self.streams.append(dict(context.invocation_metadata()).get("authorization", ""))
        for request in requests:
            self.messages.append(request)
            for operation in request.operations:
                yield pb.CheckoutResponse(results=[self._result(operation, context)])

    def _result(self, operation: pb.CheckoutOperation, context: Any) -> pb.CheckoutResult:
        outcome = self.outcomes.popleft() if self.outcomes else None
        match outcome:
            case StreamEnded():
                to_call: Any = rpc_status
                context.abort_with_status(to_call.to_status(to_status(outcome)))
            case CouponServiceError():
                return pb.CheckoutResult(tag=operation.tag, error=operation_error(outcome))
            case grpc.StatusCode():
                context.abort(outcome, "as the test says")
            case None:
                pass
            case _:
                time.sleep(outcome)
        redemption = pb.Redemption(code=operation.redeem_code.code)
        answer = pb.RedeemCodeResponse(redemption=redemption)
        return pb.CheckoutResult(tag=operation.tag, redeem_code=answer)


@contextmanager
def scripted_server(*outcomes: Outcome) -> Generator[tuple[str, Script]]:
    """A server with this script, and its address."""
    script = Script(deque(outcomes))
    server = grpc.server(ThreadPoolExecutor(8))
    handler = grpc.unary_unary_rpc_method_handler(
        script.redeem_code,
        request_deserializer=pb.RedeemCodeRequest.FromString,
        response_serializer=pb.RedeemCodeResponse.SerializeToString,
    )
    checkout = grpc.stream_stream_rpc_method_handler(
        script.checkout,
        request_deserializer=pb.CheckoutRequest.FromString,
        response_serializer=pb.CheckoutResponse.SerializeToString,
    )
    service = pb.DESCRIPTOR.services_by_name["RedemptionService"].full_name
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service, {"RedeemCode": handler, "Checkout": checkout}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", script
    finally:
        server.stop(0).wait()
