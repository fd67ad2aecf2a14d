"""A real server in a thread, and a client with a method for each call that tests make."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar, cast
from uuid import uuid4

import grpc
import pytest
import uvloop
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2  # pyright: ignore[reportMissingTypeStubs]
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from support import citus
from support.secret_scan import SECRETS, Watched, keep_secret
from support.shards import SHARDS, shard_roles
from support.streamed import StreamedStub

from coupon_service.server import Server, utc_now
from coupon_service.settings import Settings
from coupon_service.v1 import (
    assignment_service_pb2 as assignments,
)
from coupon_service.v1 import (
    assignment_service_pb2_grpc,
    audit_service_pb2_grpc,
    coupon_book_service_pb2_grpc,
    coupon_code_service_pb2_grpc,
    redemption_service_pb2_grpc,
)
from coupon_service.v1 import (
    audit_service_pb2 as audit,
)
from coupon_service.v1 import (
    coupon_book_service_pb2 as books,
)
from coupon_service.v1 import (
    coupon_code_service_pb2 as codes,
)
from coupon_service.v1 import (
    money_pb2 as money,
)
from coupon_service.v1 import (
    redemption_service_pb2 as redemptions,
)

__all__ = [
    "Api",
    "Refused",
    "ServerThread",
    "assignments",
    "audit",
    "books",
    "codes",
    "money",
    "pages",
    "redemptions",
    "refused",
    "settings_for",
]

LOCK_TOKEN_SECRET = "only the tests sign with this one"
ERASURE_SECRET = "only the tests make pseudonyms with this one"

T = TypeVar("T")

_numbers = itertools.count(1)


def settings_for(database_url: str, redis_url: str, **changes: object) -> Settings:
    """Settings of a test server: free ports, no drain grace, short intervals."""
    keep_secret(database_url, redis_url, LOCK_TOKEN_SECRET, ERASURE_SECRET)
    values: dict[str, Any] = {
        "port": 0,
        "metrics_port": 0,
        "workers": 1,
        "reflection": True,
        "database_url": SecretStr(database_url),
        "redis_url": SecretStr(redis_url),
        "lock_token_secret": SecretStr(LOCK_TOKEN_SECRET),
        "erasure_secret": SecretStr(ERASURE_SECRET),
        "redis_timeout_ms": 1_000,
        "drain_grace_ms": 0,
        "sweep_interval_ms": 200,
        "stock_interval_ms": 200,
        "seal_interval_ms": 0,
        "default_business": BUSINESS,
        "shards": SHARDS,
    }
    return Settings(_env_file=None, **(values | changes))  # type: ignore[call-arg]


def settings_for_moves(database_url: str, redis_url: str, of: int) -> Settings:
    """As `settings_for`, of a server with so many shards, all at one URL, whose calls wait for a
    shard that is being moved."""
    return settings_for(
        database_url,
        redis_url,
        shards=of,
        shard_urls=SecretStr(database_url),
        default_business="",
        pool_timeout_ms=10_000,
        default_deadline_ms=30_000,
        transaction_attempts_max=10,
    )


@contextmanager
def restricted_settings(
    database_url: str, redis_url: str, of: int = SHARDS, /, **changes: object
) -> Generator[Settings]:
    """As `settings_for`, of a server that runs as a role with the privileges that
    `coupon-service migrate grants` gives: as another one in each of several shards, so that a
    statement which strays fails."""
    with shard_roles(database_url, of=of) as urls:
        if of > 1:
            changes = {"shards": of, "shard_urls": SecretStr(urls), **changes}
            yield settings_for(database_url, redis_url, **changes)
        else:
            yield settings_for(urls, redis_url, **changes)


def lock_grace(grace_ms: int) -> dict[str, int]:
    """Settings under which a lock keeps others out for so much longer than its token says."""
    return {
        "statement_timeout_ms": grace_ms,
        "lock_timeout_ms": grace_ms // 2,
        "clock_tolerance_ms": 0,
    }


SCOPED: Final = SHARDS > 1 or os.environ.get("COUPON_TEST_SCOPES") == "business"
"""Whether codes are unique within their business."""

BUSINESS: Final = "tests" if SCOPED else ""
"""The business of books that name none; empty: each has another. Where codes are unique within
their business, who sees all has to name one unless there is only this one."""


class ServerThread:
    """A server with an event loop of its own, in this process."""

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime] | None = None,
        *,
        owner_url: str | None = None,
    ) -> None:
        """`owner_url`: its database for who owns the tables, when its own role does not."""
        self.settings = settings
        self._owner_url = owner_url
        self.registry = CollectorRegistry()
        self.server = Server(settings, self.registry, now or utc_now)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        self.run(self.server.start())
        if self.settings.shards > 1 and citus.is_used():
            self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _connect(self) -> None:
        """Wait for the connections to all shards, which a node of Citus takes its time for."""
        for shard in self.server.shards:
            self.run(shard.database.pool.wait(25))

    def run(self, work: Any) -> Any:
        """Run a coroutine in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return f"127.0.0.1:{self.server.port}"

    @property
    def database_url(self) -> str:
        """Its PostgreSQL, for who owns the tables."""
        assert self.settings.database_url is not None
        return self._owner_url or self.settings.database_url.get_secret_value()


class Refused:
    """The refusal that `refused` caught."""

    error: grpc.RpcError

    @property
    def status(self) -> grpc.StatusCode:
        """The gRPC status."""
        return self.error.code()  # type: ignore[attr-defined]

    @property
    def reason(self) -> str:
        """The reason in the ErrorInfo, which every error has."""
        return self._info.reason

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ErrorInfo."""
        return dict(self._info.metadata)

    @property
    def fields(self) -> list[str]:
        """The fields of the violations of an INVALID_ARGUMENT, in order."""
        bad = self._detail(error_details_pb2.BadRequest)
        return [violation.field for violation in bad.field_violations] if bad else []

    @property
    def retry_after_s(self) -> float | None:
        """The delay before a retry; None where a retry cannot help."""
        info = self._detail(error_details_pb2.RetryInfo)
        return None if info is None else info.retry_delay.ToTimedelta().total_seconds()

    @property
    def _info(self) -> error_details_pb2.ErrorInfo:
        info = self._detail(error_details_pb2.ErrorInfo)
        assert info is not None, self.error
        assert info.domain == "coupon_service.v1"
        return info

    def _detail(self, kind: type[T]) -> T | None:
        status = cast("Any", rpc_status).from_call(self.error)
        assert status is not None, self.error
        details: list[Any] = list(status.details)
        for detail in details:
            message: Any = kind()
            if detail.Unpack(message):
                return message
        return None


class refused:  # noqa: N801 - reads like pytest.raises
    """Assert that the block is refused: `with refused("REASON", StatusCode.X) as it:`."""

    def __init__(self, reason: str, status: grpc.StatusCode | None = None) -> None:
        self._reason = reason
        self._status = status
        self._caught = Refused()

    def __enter__(self) -> Refused:
        return self._caught

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if error is None:
            pytest.fail(f"not refused; expected {self._reason}")
        if not isinstance(error, grpc.RpcError):
            return False
        self._caught.error = error
        assert self._caught.reason == self._reason, error
        if self._status is not None:
            assert self._caught.status == self._status
        return True


class _Details(NamedTuple):
    """The details of a call that an interceptor may change."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


def with_token(channel: grpc.Channel, token: str) -> grpc.Channel:
    """The channel with a bearer token in each call."""
    keep_secret(token)

    def call(_: object, proceed: Any, details: Any, request: Any) -> Any:
        values: dict[str, Any] = {name: getattr(details, name) for name in _Details._fields}
        values["metadata"] = (*(details.metadata or ()), ("authorization", f"Bearer {token}"))
        return proceed(_Details(**values), request)

    kinds: dict[str, type[Any]] = {
        "intercept_unary_unary": grpc.UnaryUnaryClientInterceptor,
        "intercept_unary_stream": grpc.UnaryStreamClientInterceptor,
        "intercept_stream_stream": grpc.StreamStreamClientInterceptor,
    }
    interceptor: Any = type("Bearer", tuple(kinds.values()), dict.fromkeys(kinds, call))()
    return grpc.intercept_channel(channel, interceptor)


STREAMED: Final = int(os.environ.get("COUPON_TEST_STREAMED", "0"))
"""One in so many operations of a client goes over a Checkout stream, unless a test says otherwise.
0: none."""


class Api:
    """The stubs of all services, and one-line calls. `streamed`: see STREAMED."""

    def __init__(self, address: str, token: str | None = None, streamed: int = STREAMED) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        calls = self.channel if token is None else with_token(self.channel, token)
        channel: Any = Watched(calls, SECRETS)
        self.books = coupon_book_service_pb2_grpc.CouponBookServiceStub(channel)
        self.codes = coupon_code_service_pb2_grpc.CouponCodeServiceStub(channel)
        self.assignments = assignment_service_pb2_grpc.AssignmentServiceStub(channel)
        self.redemptions = redemption_service_pb2_grpc.RedemptionServiceStub(channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)
        if streamed:
            over_stream: Any = StreamedStub(self.redemptions, streamed)
            self.redemptions = over_stream

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    # --- books ----------------------------------------------------------------------------------

    def draft(self, **fields: Any) -> books.CouponBook:
        """A book in DRAFT: 10 % off in EUR, single use, bearer, locking off, unless `fields` say
        otherwise."""
        values: dict[str, Any] = {
            "business_id": BUSINESS or unique("business"),
            "name": "A book",
            "currency_code": "EUR",
            "assignment_policy": books.ASSIGNMENT_POLICY_BEARER,
            "lock_policy": books.LOCK_POLICY_OFF,
            **fields,
        }
        values.setdefault(
            "discount", books.Discount(percent_off=books.PercentOff(basis_points=1_000))
        )
        request = books.CreateCouponBookRequest(
            coupon_book=books.CouponBook(**values), request_id=unique("request")
        )
        return self.books.CreateCouponBook(request).coupon_book

    def book(self, *, codes: Sequence[str] | int = (), **fields: Any) -> books.CouponBook:
        """An active book with these codes, or with so many new ones."""
        book = self.draft(**fields)
        if codes:
            self.import_codes(book.book_id, new_codes(codes) if isinstance(codes, int) else codes)
        return self.activate(book.book_id)

    def get_book(self, book_id: str) -> books.CouponBook:
        """The current state of a book."""
        return self.books.GetCouponBook(books.GetCouponBookRequest(book_id=book_id)).coupon_book

    def update(self, book_id: str, *paths: str, etag: str = "", **fields: Any) -> books.CouponBook:
        """Update these fields of a book, or those of `paths`."""
        request = books.UpdateCouponBookRequest(
            coupon_book=books.CouponBook(book_id=book_id, etag=etag, **fields),
            update_mask=FieldMask(paths=paths or fields),
            request_id=unique("request"),
        )
        return self.books.UpdateCouponBook(request).coupon_book

    def activate(self, book_id: str, **fields: Any) -> books.CouponBook:
        """DRAFT or PAUSED → ACTIVE."""
        request = books.ActivateCouponBookRequest(**_with_request_id(fields, book_id=book_id))
        return self.books.ActivateCouponBook(request).coupon_book

    def pause(self, book_id: str, **fields: Any) -> books.CouponBook:
        """ACTIVE → PAUSED."""
        request = books.PauseCouponBookRequest(**_with_request_id(fields, book_id=book_id))
        return self.books.PauseCouponBook(request).coupon_book

    def close_book(self, book_id: str, **fields: Any) -> books.CouponBook:
        """Any state → CLOSED."""
        request = books.CloseCouponBookRequest(**_with_request_id(fields, book_id=book_id))
        return self.books.CloseCouponBook(request).coupon_book

    def code(self, **fields: Any) -> str:
        """The only code of a new active book."""
        (code,) = new_codes(1)
        self.book(codes=[code], **fields)
        return code

    def stats(self, book_id: str) -> books.CouponBookStats:
        """The counters of a book."""
        request = books.GetCouponBookStatsRequest(book_id=book_id)
        return self.books.GetCouponBookStats(request).stats

    # --- codes ----------------------------------------------------------------------------------

    def import_codes(
        self,
        book_id: str,
        *chunks: Iterable[str | codes.NewCode],
        request_id: str = "",
        first: int = 1,
        **fields: Any,
    ) -> list[codes.ImportCodesResponse]:
        """Upload chunks of codes, or of rows, and return the answer to each. `fields`: of the
        header."""
        request_id = request_id or unique("upload")

        def messages() -> Iterable[codes.ImportCodesRequest]:
            header = codes.ImportHeader(book_id=book_id, request_id=request_id, **fields)
            yield codes.ImportCodesRequest(header=header)
            for number, chunk in enumerate(chunks, first):
                rows = list(chunk)
                plain = [it for it in rows if isinstance(it, str)]
                more = [it for it in rows if not isinstance(it, str)]
                yield codes.ImportCodesRequest(
                    chunk=codes.ImportChunk(chunk_number=number, codes=plain, rows=more)
                )

        return list(self.codes.ImportCodes(iter(messages())))

    def get_code(self, code: str) -> codes.CouponCode:
        """The current state of a code."""
        return self.codes.GetCode(codes.GetCodeRequest(code=code)).coupon_code

    def disable(self, code: str, **fields: Any) -> codes.DisableCodeResponse:
        """Disable a code."""
        request = codes.DisableCodeRequest(**_with_request_id(fields, code=code))
        return self.codes.DisableCode(request)

    def enable(self, code: str, **fields: Any) -> codes.EnableCodeResponse:
        """Enable a code."""
        return self.codes.EnableCode(codes.EnableCodeRequest(**_with_request_id(fields, code=code)))

    # --- assignments ----------------------------------------------------------------------------

    def assign(self, code: str, user_id: str, **fields: Any) -> assignments.AssignCodeResponse:
        """Assign a code to a user."""
        return self.assignments.AssignCode(
            assignments.AssignCodeRequest(**_with_request_id(fields, code=code, user_id=user_id))
        )

    def assign_random(
        self, book_id: str, user_id: str, **fields: Any
    ) -> assignments.AssignRandomCodeResponse:
        """Assign any code of a book to a user."""
        return self.assignments.AssignRandomCode(
            assignments.AssignRandomCodeRequest(
                **_with_request_id(fields, book_id=book_id, user_id=user_id)
            )
        )

    def revoke(
        self, code: str, user_id: str, **fields: Any
    ) -> assignments.RevokeAssignmentResponse:
        """Revoke the assignment of a code to a user."""
        return self.assignments.RevokeAssignment(
            assignments.RevokeAssignmentRequest(
                **_with_request_id(fields, code=code, user_id=user_id)
            )
        )

    def transfer(
        self, code: str, giver: str, receiver: str, **fields: Any
    ) -> assignments.TransferAssignmentResponse:
        """Hand the code of a user over to another."""
        return self.assignments.TransferAssignment(
            assignments.TransferAssignmentRequest(
                **_with_request_id(fields, code=code, from_user_id=giver, to_user_id=receiver)
            )
        )

    # --- redemptions ----------------------------------------------------------------------------

    def redeem_request(self, code: str, user_id: str, **fields: Any) -> Any:
        """A RedeemCodeRequest with a request_id of its own."""
        return redemptions.RedeemCodeRequest(**_with_request_id(fields, code=code, user_id=user_id))

    def redeem(self, code: str, user_id: str, **fields: Any) -> redemptions.RedeemCodeResponse:
        """Redeem a code."""
        return self.redemptions.RedeemCode(self.redeem_request(code, user_id, **fields))

    def rollback(self, redemption_id: str, **fields: Any) -> redemptions.RollbackRedemptionResponse:
        """Roll a redemption back."""
        return self.redemptions.RollbackRedemption(self.rollback_request(redemption_id, **fields))

    def rollback_request(self, redemption_id: str, **fields: Any) -> Any:
        """A RollbackRedemptionRequest with a request_id of its own."""
        return redemptions.RollbackRedemptionRequest(
            **_with_request_id(fields, redemption_id=redemption_id)
        )

    def adjust(
        self, redemption_id: str, amount: money.Money, **fields: Any
    ) -> redemptions.AdjustRedemptionResponse:
        """Give the order of a redemption another amount."""
        fields |= {"redemption_id": redemption_id, "order_amount": amount}
        return self.redemptions.AdjustRedemption(
            redemptions.AdjustRedemptionRequest(**_with_request_id(fields))
        )

    def validate(self, code: str, user_id: str, **fields: Any) -> redemptions.ValidateCodeResponse:
        """A dry run of `redeem`."""
        return self.redemptions.ValidateCode(
            redemptions.ValidateCodeRequest(code=code, user_id=user_id, **fields)
        )

    def qualify(
        self, user_id: str, *codes: str, **fields: Any
    ) -> redemptions.QualifyCouponsResponse:
        """Which coupons of a user, and which of these codes, fit."""
        return self.redemptions.QualifyCoupons(
            redemptions.QualifyCouponsRequest(user_id=user_id, codes=codes, **fields)
        )

    def lock(
        self, code: str, user_id: str, *, ttl_s: float | None = None, **fields: Any
    ) -> redemptions.LockCodeResponse:
        """Lock a code."""
        request = redemptions.LockCodeRequest(
            **_with_request_id(fields, code=code, user_id=user_id)
        )
        if ttl_s is not None:
            request.ttl.FromTimedelta(timedelta(seconds=ttl_s))
        return self.redemptions.LockCode(request)

    def unlock(self, lock_token: str) -> redemptions.UnlockCodeResponse:
        """Release a lock."""
        return self.redemptions.UnlockCode(
            redemptions.UnlockCodeRequest(lock_token=lock_token, request_id=unique("request"))
        )

    # --- the ledger -----------------------------------------------------------------------------

    def events(self, **filters: Any) -> list[audit.AuditEvent]:
        """All events that match, oldest first."""
        found: list[audit.AuditEvent] = []
        token = ""
        while True:
            page = self.audit.ListAuditEvents(
                audit.ListAuditEventsRequest(page_size=1_000, page_token=token, **filters)
            )
            found += page.events
            token = page.next_page_token
            if not token:
                return found[::-1]

    def event_names(self, **filters: Any) -> list[str]:
        """The types of all events that match, oldest first, without prefix."""
        return [
            audit.AuditEventType.Name(event.type).removeprefix("AUDIT_EVENT_TYPE_")
            for event in self.events(**filters)
        ]


def pages(list_rpc: Callable[[Any], Any], request: Any, items: str) -> list[list[Any]]:
    """The pages of a list, in order. `items`: the field of the answer."""
    found: list[list[Any]] = []
    tokens: set[str] = set()
    asked = type(request)()
    asked.CopyFrom(request)
    while True:
        answer = list_rpc(asked)
        found.append(list(getattr(answer, items)))
        asked.page_token = answer.next_page_token
        if not asked.page_token:
            return found
        assert asked.page_token not in tokens, "the list does not end"
        tokens.add(asked.page_token)


def unique(what: str) -> str:
    """A name that no other test uses."""
    return f"{what}-{uuid4().hex[:12]}-{next(_numbers)}"


def new_codes(count: int) -> list[str]:
    """Codes that no other test uses."""
    stem = uuid4().hex[:12].upper()
    return [f"T{stem}{number:06d}" for number in range(count)]


def struct(**values: Any) -> Struct:
    """A metadata object."""
    message = Struct()
    message.update(values)
    return message


def euros(amount_minor: int) -> money.Money:
    """An amount in EUR."""
    return money.Money(amount_minor=amount_minor, currency_code="EUR")


def from_now(**duration: float) -> datetime:
    """The time after this duration from now."""
    return datetime.now(UTC) + timedelta(**duration)


def all_at_once(calls: Sequence[Callable[[], object]]) -> list[Any]:
    """Make all calls concurrently; returns the answer or the error of each."""

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except grpc.RpcError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def reason_of(error: grpc.RpcError) -> str:
    """The reason of an error."""
    caught = Refused()
    caught.error = error
    return caught.reason


def _with_request_id(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"request_id": unique("request"), **more, **fields}
