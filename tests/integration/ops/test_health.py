"""The standard services: health and reflection."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.service import Api
from support.waiting import until

from coupon_service.v1 import redemption_service_pb2

SERVICES = {
    f"coupon_service.v1.{name}Service"
    for name in ("CouponBook", "CouponCode", "Assignment", "Redemption", "Audit")
}
STANDARD = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["", *sorted(SERVICES)])
def test_a_server_whose_database_answers_is_serving(api: Api, service: str) -> None:
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    until(lambda: health.Check(request).status == SERVING)
    watch = health.Watch(request)
    assert next(watch).status == SERVING
    watch.cancel()


def test_the_health_of_an_unknown_service_is_not_known(api: Api) -> None:
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="coupon_service.v2.Nothing"))
    assert error.value.code() == StatusCode.NOT_FOUND


def reflected(api: Api, **fields: Any) -> reflection_pb2.ServerReflectionResponse:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    request = reflection_pb2.ServerReflectionRequest(**fields)
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    return answer


def test_a_client_can_ask_which_services_there_are(api: Api) -> None:
    listed = reflected(api, list_services="").list_services_response.service
    assert {service.name for service in listed} == SERVICES | STANDARD


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_client_can_ask_for_the_contract(api: Api, service: str) -> None:
    answer = reflected(api, file_containing_symbol=service).file_descriptor_response
    files = [FileDescriptorProto.FromString(file) for file in answer.file_descriptor_proto]
    found = {f"{file.package}.{it.name}" for file in files for it in file.service}
    assert service in found


def test_the_contract_that_reflection_shows_is_the_one_of_the_stubs(api: Api) -> None:
    name = redemption_service_pb2.DESCRIPTOR.name
    (raw, *_) = reflected(api, file_by_filename=name).file_descriptor_response.file_descriptor_proto
    expected = FileDescriptorProto()
    redemption_service_pb2.DESCRIPTOR.CopyToProto(expected)
    assert FileDescriptorProto.FromString(raw) == expected
