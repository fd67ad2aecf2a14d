"""A no-op server, which shows the limit of grpcio on the machine: constant answers, at once.

    python -m bench.servers.noop 127.0.0.1:50100 2

No interceptor, no authentication, no log, no metrics, no database: only the cost of receiving and
parsing a request, and of sending an answer of the usual size.
"""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

import argparse
from typing import Any, cast

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.servers.workers import run_workers
from coupon_service.v1 import assignment_service_pb2 as assignments
from coupon_service.v1 import coupon_code_service_pb2 as codes
from coupon_service.v1 import redemption_service_pb2 as redemptions
from coupon_service.v1.assignment_service_pb2_grpc import (
    AssignmentServiceServicer,
    add_AssignmentServiceServicer_to_server,
)
from coupon_service.v1.coupon_code_service_pb2_grpc import (
    CouponCodeServiceServicer,
    add_CouponCodeServiceServicer_to_server,
)
from coupon_service.v1.money_pb2 import Money
from coupon_service.v1.redemption_service_pb2_grpc import (
    RedemptionServiceServicer,
    add_RedemptionServiceServicer_to_server,
)

ID = "1f3d0d7e-5b5c-8a55-9c1b-7c8f0a4be2d1"
CODE = "SPREAD0001"
USER = "user-0001"
TIME = Timestamp(seconds=1_767_225_600)
PRICE = Money(amount_minor=4_000, currency_code="EUR")

REDEMPTION = redemptions.RedeemCodeResponse(
    redemption=redemptions.Redemption(
        redemption_id=ID,
        code=CODE,
        book_id=ID,
        user_id=USER,
        order_id=ID,
        state=redemptions.REDEMPTION_STATE_SUCCEEDED,
        order_amount=PRICE,
        discount=Money(amount_minor=400, currency_code="EUR"),
        redeem_time=TIME,
    ),
    counts=redemptions.RedemptionCounts(code_redemption_count=1, code_max_redemptions=1),
)
VALIDATION = redemptions.ValidateCodeResponse(
    valid=True,
    book_id=ID,
    discount=Money(amount_minor=400, currency_code="EUR"),
    counts=redemptions.RedemptionCounts(code_redemption_count=1, code_max_redemptions=1),
)
LOCK = redemptions.Lock(
    lock_id=ID,
    code=CODE,
    book_id=ID,
    user_id=USER,
    state=redemptions.LOCK_STATE_HELD,
    fence=1,
    create_time=TIME,
    expire_time=TIME,
)
LOCKED = redemptions.LockCodeResponse(lock=LOCK, lock_token="t" * 200)
UNLOCKED = redemptions.UnlockCodeResponse(lock=LOCK)
ROLLED_BACK = redemptions.RollbackRedemptionResponse(
    redemption=REDEMPTION.redemption, counts=REDEMPTION.counts
)
ASSIGNMENT = assignments.Assignment(
    code=CODE,
    display_code=CODE,
    book_id=ID,
    user_id=USER,
    state=assignments.ASSIGNMENT_STATE_ACTIVE,
    assign_time=TIME,
)
ASSIGNED = assignments.AssignRandomCodeResponse(assignment=ASSIGNMENT)
COUPONS = assignments.ListUserCouponsResponse(
    coupons=[
        assignments.UserCoupon(
            assignment=ASSIGNMENT, effective_state=codes.COUPON_CODE_STATE_ASSIGNED
        )
    ]
)
FOUND = codes.GetCodeResponse(
    coupon_code=codes.CouponCode(
        code=CODE,
        display_code=CODE,
        book_id=ID,
        state=codes.COUPON_CODE_STATE_AVAILABLE,
        effective_state=codes.COUPON_CODE_STATE_AVAILABLE,
        max_redemptions=1,
    )
)
HEALTHY = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


class Redemptions(RedemptionServiceServicer):
    """Answers calls about redemptions with constants."""

    async def RedeemCode(
        self, request: redemptions.RedeemCodeRequest, context: Any
    ) -> redemptions.RedeemCodeResponse:
        return REDEMPTION

    async def ValidateCode(
        self, request: redemptions.ValidateCodeRequest, context: Any
    ) -> redemptions.ValidateCodeResponse:
        return VALIDATION

    async def LockCode(
        self, request: redemptions.LockCodeRequest, context: Any
    ) -> redemptions.LockCodeResponse:
        return LOCKED

    async def UnlockCode(
        self, request: redemptions.UnlockCodeRequest, context: Any
    ) -> redemptions.UnlockCodeResponse:
        return UNLOCKED

    async def RollbackRedemption(
        self, request: redemptions.RollbackRedemptionRequest, context: Any
    ) -> redemptions.RollbackRedemptionResponse:
        return ROLLED_BACK


class Assignments(AssignmentServiceServicer):
    """Answers calls about assignments with constants."""

    async def AssignRandomCode(
        self, request: assignments.AssignRandomCodeRequest, context: Any
    ) -> assignments.AssignRandomCodeResponse:
        return ASSIGNED

    async def ListUserCoupons(
        self, request: assignments.ListUserCouponsRequest, context: Any
    ) -> assignments.ListUserCouponsResponse:
        return COUPONS


class Codes(CouponCodeServiceServicer):
    """Answers GetCode with a constant."""

    async def GetCode(self, request: codes.GetCodeRequest, context: Any) -> codes.GetCodeResponse:
        return FOUND


class Health(cast("type[Any]", health_pb2_grpc.HealthServicer)):
    """Is always SERVING."""

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        return HEALTHY


async def serve(server: grpc.aio.Server) -> None:
    """Add the servicers."""
    # Other methods are inherited: the base classes answer UNIMPLEMENTED.
    redeeming = Redemptions()  # pyright: ignore[reportAbstractUsage]
    add_RedemptionServiceServicer_to_server(redeeming, server)
    assigning = Assignments()  # pyright: ignore[reportAbstractUsage]
    add_AssignmentServiceServicer_to_server(assigning, server)
    finding = Codes()  # pyright: ignore[reportAbstractUsage]
    add_CouponCodeServiceServicer_to_server(finding, server)
    cast("Any", health_pb2_grpc).add_HealthServicer_to_server(Health(), server)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("workers", type=int)
    arguments = parser.parse_args()
    run_workers(serve, arguments.address, arguments.workers)
