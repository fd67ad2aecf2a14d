"""Metrics and access log of the calls that have ended, with a line for each.

They are flushed together, a moment later: what is done for many calls in turn finds its code in the
processor's caches, and needs no system call for each line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from structlog.typing import FilteringBoundLogger

from coupon_service.batching import BatchingSettings, FlushBuffer
from coupon_service.errors import CouponServiceError
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.status import Internal, kind_of, known
from coupon_service.telemetry.logs import EACH

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer


class RpcObserver(Protocol):
    """Who is notified of every RPC that has ended."""

    def rpcs_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        """Some that ended alike, each after so many seconds.

        `status` is the name of a gRPC status, `reason` of an ErrorReason, empty for OK.
        """
        ...

    def operations_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        """As `rpcs_finished`, of operations that came over streams."""
        ...


_Finished = Callable[[str, str, str, Sequence[float]], None]


@dataclass(slots=True)  # frozen, it would take three times as long to make
class _Ended:
    method: str
    rpc: RequestContext
    status: str
    reason: str
    seconds: float
    trace_id: str


class CallRecorder:
    """Gathers the calls that have ended, for the metrics and the access log."""

    def __init__(
        self,
        log: FilteringBoundLogger,
        observer: RpcObserver,
        tracer: Tracer | None,
        batching: BatchingSettings,
    ) -> None:
        self._log = log
        self._observer = observer
        self._tracer = tracer
        self._ended = FlushBuffer(self._record, batching.access_log_delay_ms)

    def add(
        self,
        method: str,
        rpc: RequestContext,
        status: str,
        reason: str,
        started: float,
        answer: CouponServiceError | None = None,
        error: BaseException | None = None,
    ) -> None:
        """A call ended that began at `started` (of time.perf_counter): with the `answer` that the
        `error` became, where it has one. An error whose cause is logged is flushed at once.
        """
        seconds = perf_counter() - started
        trace_id = ""
        if self._tracer is not None and rpc.span is not None:
            trace_id = self._tracer.call_finished(rpc.span, status, reason)
        ended = _Ended(method, rpc, status, reason, seconds, trace_id)
        if isinstance(answer, Internal) or (error is not None and error.__cause__ is not None):
            self.flush()
            self._observer_of(rpc)(method, status, reason, [seconds])
            if isinstance(answer, Internal):
                self._log.error("rpc", **_line(ended), **answer.metadata, exc_info=error)
            elif error is not None:
                self._log.warning("rpc", **_line(ended), cause=repr(error.__cause__))
            return
        self._ended.add(ended)

    def add_error(
        self, method: str, rpc: RequestContext, error: BaseException, started: float
    ) -> CouponServiceError:
        """As `add`, of a call that an error ended: what that is to its client, a `known` one."""
        answer = known(error)
        kind = kind_of(answer)
        self.add(method, rpc, kind.code.name, kind.name, started, answer, error)
        return answer

    def flush(self) -> None:
        """Counts and logs those that have not been yet."""
        self._ended.flush()

    def _record(self, ended: Sequence[_Ended]) -> None:
        alike: defaultdict[tuple[_Finished, str, str, str], list[float]] = defaultdict(list)
        for it in ended:
            alike[self._observer_of(it.rpc), it.method, it.status, it.reason].append(it.seconds)
        for (finished, method, status, reason), seconds in alike.items():
            finished(method, status, reason, seconds)
        self._log.info("rpc", **{EACH: list(map(_line, ended))})

    def _observer_of(self, rpc: RequestContext) -> _Finished:
        observer = self._observer
        return observer.operations_finished if rpc.stream else observer.rpcs_finished


def _line(ended: _Ended) -> dict[str, object]:
    rpc = ended.rpc
    line: dict[str, object] = {
        "method": ended.method,
        "status": ended.status,
        "reason": ended.reason,
        "duration_ms": round(ended.seconds * 1000, 2),
        "request_id": rpc.request_id,
        "caller": rpc.caller,
        "peer": rpc.peer,
    }
    if rpc.stream:
        line["stream"] = rpc.stream
    if ended.trace_id:
        line["trace_id"] = ended.trace_id
    return line
