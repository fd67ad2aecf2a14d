"""Which role may call which method: all of them, both ways, over the wire."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from support.service import Refused, ServerThread
from support.token_clients import ISSUER
from support.token_issuers import Issuer

from coupon_service.cli.contract import find_method, methods
from coupon_service.rpc.methods import Role

ROLES = {"I": Role.ISSUER, "R": Role.REDEEMER, "A": Role.AUDITOR, "S": Role.SELF}

EXPECTED = {
    "CreateCouponBook": "I",
    "GetCouponBook": "IRA",
    "ListCouponBooks": "IRA",
    "UpdateCouponBook": "I",
    "ActivateCouponBook": "I",
    "PauseCouponBook": "I",
    "CloseCouponBook": "I",
    "GetCouponBookStats": "IA",
    "PreviewCodes": "I",
    "GenerateCodes": "I",
    "ImportCodes": "I",
    "ExportCodes": "IA",
    "GetCode": "IRA",
    "ListCodes": "IA",
    "DisableCode": "I",
    "EnableCode": "I",
    "ChangeCodes": "I",
    "AssignCode": "I",
    "AssignRandomCode": "I",
    "BatchAssignRandomCodes": "I",
    "RevokeAssignment": "I",
    "TransferAssignment": "I",
    "ListUserCoupons": "IRAS",
    "ListAssignments": "IA",
    "ValidateCode": "RS",
    "QualifyCoupons": "RS",
    "LockCode": "RS",
    "ExtendLock": "RS",
    "UnlockCode": "RS",
    "GetLock": "IRAS",
    "ListLocks": "IRAS",
    "RedeemCode": "RS",
    "BatchRedeemCodes": "R",
    "RollbackRedemption": "R",
    "AdjustRedemption": "R",
    "GetRedemption": "IRAS",
    "ListRedemptions": "IRAS",
    "ListRefusals": "A",
    "Checkout": "RS",
    "ListAuditEvents": "A",
    "WatchAuditEvents": "A",
    "EraseUser": "",
    "GetErasure": "A",
    "VerifyAudit": "A",
    "GetAuditProof": "A",
    "GetAuditCheckpoint": "A",
}
"""Beside admin, which may call everything."""

OF_ALL_BUSINESSES = {"EraseUser", "GetErasure", "VerifyAudit"}
"""Only for callers whose token names no business."""

NAMES = [it.name for it in methods() if it.containing_service.name != "Health"]


class Caller:
    """Calls any method with an empty request, but for the user that it names."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def outcome(self, method: MethodDescriptor, token: str | None) -> str:
        """The reason of the error; empty when there is none."""
        request = GetMessageClass(method.input_type)()
        if "user_id" in method.input_type.fields_by_name:
            setattr(request, "user_id", "ann")  # noqa: B010 - the type is any
        if "stop_at_end" in method.input_type.fields_by_name:
            setattr(request, "stop_at_end", True)  # noqa: B010
        call: Any = self.channel.stream_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=bytes,
        )
        metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        try:
            list(call(iter([request]), metadata=metadata, timeout=10))
        except grpc.RpcError as error:
            refused = Refused()
            refused.error = error
            return refused.reason
        return ""


@pytest.fixture(scope="module")
def anybody(guarded: ServerThread) -> Any:
    caller = Caller(guarded.address)
    yield caller
    caller.channel.close()


def token_for(*roles: str, bound: bool = True) -> str:
    business = {} if bound else {"business_id": None}
    return ISSUER.token(sub="ann", roles=list(roles), **business)


def test_every_method_is_expected_to_be_for_somebody() -> None:
    assert list(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_for_its_roles_and_for_no_others(anybody: Caller, name: str) -> None:
    method = find_method(name)
    bound = name not in OF_ALL_BUSINESSES
    for letter, role in ROLES.items():
        outcome = anybody.outcome(method, token_for(role, bound=bound))
        assert outcome not in {"UNAUTHENTICATED", "INTERNAL"}
        assert (outcome == "PERMISSION_DENIED") is (letter not in EXPECTED[name]), (role, outcome)
    assert anybody.outcome(method, token_for("admin", bound=bound)) != "PERMISSION_DENIED"
    if not bound:
        assert anybody.outcome(method, token_for("admin")) == "PERMISSION_DENIED"
    assert anybody.outcome(method, token_for()) == "PERMISSION_DENIED"
    assert anybody.outcome(method, token_for("openid", "Admin")) == "PERMISSION_DENIED"


@pytest.mark.parametrize("name", NAMES)
def test_no_method_is_for_callers_without_a_valid_token(anybody: Caller, name: str) -> None:
    method = find_method(name)
    stranger = Issuer(kid="", key=b"a key of somebody else, long enough").token(roles=["admin"])
    for token in (None, "", "x", stranger, ISSUER.token(roles=["admin"], exp=1)):
        assert anybody.outcome(method, token) == "UNAUTHENTICATED"


def test_roles_add_up(anybody: Caller) -> None:
    both = token_for("issuer", "redeemer")
    for name in ("CreateCouponBook", "RedeemCode"):
        assert anybody.outcome(find_method(name), both) != "PERMISSION_DENIED"
    assert anybody.outcome(find_method("ListAuditEvents"), both) == "PERMISSION_DENIED"


def test_an_end_user_gains_nothing_by_other_roles(anybody: Caller) -> None:
    mixed = token_for("self", "admin")
    for name, letters in EXPECTED.items():
        denied = anybody.outcome(find_method(name), mixed) == "PERMISSION_DENIED"
        assert denied is ("S" not in letters), name


def test_an_end_user_without_a_business_may_do_nothing(anybody: Caller) -> None:
    token = ISSUER.token(sub="ann", roles=["self"], business_id=None)
    for name in NAMES:
        assert anybody.outcome(find_method(name), token) == "PERMISSION_DENIED"


def test_health_and_reflection_need_no_token(guarded: ServerThread, anybody: Caller) -> None:
    health: Any = anybody.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    status = health_pb2.HealthCheckResponse
    assert health(health_pb2.HealthCheckRequest(), timeout=10).status == status.SERVING
    assert guarded.settings.reflection
    ask = cast("Any", anybody.channel).stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    list_services = b"\x3a\x00"  # list_services = ""
    (answer,) = ask(iter([list_services]), timeout=10)
    assert b"coupon_service.v1.RedemptionService" in answer
