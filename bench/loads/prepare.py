"""Books, codes, assignments and locks for the benchmark, created through the public API."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from bench.loads.caller import metadata
from coupon_service.cli.client import RETRIES
from coupon_service.v1.assignment_service_pb2 import BatchAssignRandomCodesRequest
from coupon_service.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from coupon_service.v1.coupon_book_service_pb2 import (
    ASSIGNMENT_POLICY_BEARER,
    LOCK_POLICY_OFF,
    ActivateCouponBookRequest,
    BookLimits,
    CouponBook,
    CreateCouponBookRequest,
    Discount,
    PercentOff,
)
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub
from coupon_service.v1.coupon_code_service_pb2 import (
    GenerateCodesRequest,
    ImportChunk,
    ImportCodesRequest,
    ImportHeader,
)
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub
from coupon_service.v1.money_pb2 import Money
from coupon_service.v1.redemption_service_pb2 import (
    BatchRedeemCodesRequest,
    LockCodeRequest,
    RedeemItem,
)
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

CHUNK_SIZE: Final = 10_000
BATCH_SIZE: Final = 1_000
LOCKERS: Final = 32
"""Concurrent clients that lock codes."""


def make_book(
    channel: grpc.Channel,
    name: str,
    codes: Sequence[str] | int,
    *,
    uses: int = 0,
    **fields: Any,
) -> str:
    """Create an active book with these codes, or with so many generated ones; returns its id.

    10 % off in EUR, each code for `uses` redemptions (0: any number), for bearers and without
    locking, unless `fields` say otherwise.
    """
    books = CouponBookServiceStub(channel)
    values: dict[str, Any] = {
        "business_id": "bench",
        "name": name,
        "currency_code": "EUR",
        "discount": Discount(percent_off=PercentOff(basis_points=1_000)),
        "limits": BookLimits(max_redemptions_per_code=uses),
        "assignment_policy": ASSIGNMENT_POLICY_BEARER,
        "lock_policy": LOCK_POLICY_OFF,
        **fields,
    }
    request_id = f"bench-{name}"
    created = books.CreateCouponBook(
        CreateCouponBookRequest(coupon_book=CouponBook(**values), request_id=request_id)
    )
    book_id = created.coupon_book.book_id
    if isinstance(codes, int):
        request = GenerateCodesRequest(book_id=book_id, count=codes, request_id=request_id)
        for _ in CouponCodeServiceStub(channel).GenerateCodes(request):
            pass
    else:
        upload = _upload(book_id, request_id, codes)
        for answer in CouponCodeServiceStub(channel).ImportCodes(upload):
            assert not answer.rejected_rows, answer
    books.ActivateCouponBook(ActivateCouponBookRequest(book_id=book_id, request_id=request_id))
    return book_id


def _upload(book_id: str, request_id: str, codes: Sequence[str]) -> Iterator[ImportCodesRequest]:
    yield ImportCodesRequest(header=ImportHeader(book_id=book_id, request_id=request_id))
    for number, start in enumerate(range(0, len(codes), CHUNK_SIZE), start=1):
        chunk = ImportChunk(chunk_number=number, codes=codes[start : start + CHUNK_SIZE])
        yield ImportCodesRequest(chunk=chunk)


def assign_codes(channel: grpc.Channel, book_id: str, users: Sequence[str]) -> None:
    """Assign a random code of the book to each user."""
    stub = AssignmentServiceStub(channel)
    for start in range(0, len(users), BATCH_SIZE):
        answer = stub.BatchAssignRandomCodes(
            BatchAssignRandomCodesRequest(
                book_id=book_id,
                user_ids=users[start : start + BATCH_SIZE],
                request_id=uuid.uuid4().hex,
            )
        )
        assert not any(result.HasField("error") for result in answer.results), answer


def batch_request(start: int) -> BatchRedeemCodesRequest:
    """A request to redeem 1,000 codes BENCHBATCH…, starting with number `start`."""
    return _redeem_request([f"BENCHBATCH{start + number}" for number in range(BATCH_SIZE)])


def _redeem_request(codes: Sequence[str]) -> BatchRedeemCodesRequest:
    order_id = uuid.uuid4().hex
    items = [
        RedeemItem(
            code=code,
            user_id=f"user-{code}",
            order_id=order_id,
            order_amount=Money(amount_minor=4_000, currency_code="EUR"),
        )
        for code in codes
    ]
    return BatchRedeemCodesRequest(items=items, request_id=order_id)


def redeem_codes(channel: grpc.Channel, codes: Sequence[str]) -> list[str]:
    """Redeem each code once; returns the redemption ids, in the order of the codes."""
    stub = RedemptionServiceStub(channel)
    redemption_ids: list[str] = []
    for start in range(0, len(codes), BATCH_SIZE):
        answer = stub.BatchRedeemCodes(_redeem_request(codes[start : start + BATCH_SIZE]))
        assert not any(result.HasField("error") for result in answer.results), answer
        redemption_ids += [result.redemption.redemption_id for result in answer.results]
    return redemption_ids


async def lock_codes(address: str, users: Mapping[str, str]) -> list[str]:
    """Lock each code for its user; returns the lock tokens, in the order of the codes."""
    tokens: dict[str, str] = {}
    left = iter(users.items())
    options = (("grpc.enable_http_proxy", 0), ("grpc.service_config", RETRIES))
    async with grpc.aio.insecure_channel(address, options) as channel:
        stub = RedemptionServiceStub(channel)
        authentication = metadata()

        async def locker() -> None:
            for code, user_id in left:
                request = LockCodeRequest(code=code, user_id=user_id, request_id=uuid.uuid4().hex)
                request.ttl.FromSeconds(600)
                lock = await stub.LockCode(request, metadata=authentication)
                tokens[code] = lock.lock_token

        async with asyncio.TaskGroup() as lockers:
            for _ in range(LOCKERS):
                lockers.create_task(locker())
    return [tokens[code] for code in users]
