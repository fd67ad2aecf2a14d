"""`coupon-service health`: whether a service is ready to work."""

from __future__ import annotations

from typing import Any, Final

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coupon_service.cli.client import Address, Service, connect_blocking

TIMEOUT_S: Final = 5.0


def health(address: Address = None) -> None:
    """Ask a running service whether it serves. Exit code 0 when it does, else 1."""
    with connect_blocking(address) as service:
        stub: Any = health_pb2_grpc.HealthStub(service.channel)
        response = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(1)


async def wait_until_serving(service: Service) -> None:
    """Return as soon as the service can work, also when it does not even listen yet."""
    status = health_pb2.HealthCheckResponse
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    async for update in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
        if update.status == status.SERVING:
            return
