"""`coupon-service health`: whether a service serves."""

from __future__ import annotations

from http.client import HTTPException
from typing import Annotated, Any, Final
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coupon_service.cli.client import (
    Service,
    Tls,
    connect_blocking,
    url_host,
)
from coupon_service.cli.connection import Address, TlsCa, TlsCertificate, TlsKey, TlsName
from coupon_service.cli.failure import CommandError
from coupon_service.settings import Settings, load_settings

TIMEOUT_S: Final = 5.0


def health(
    service: Annotated[
        str,
        typer.Argument(help="One of its gRPC services. Default: all.", show_default=False),
    ] = "",
    *,
    address: Address = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Longest wait.")
    ] = TIMEOUT_S,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Check the health of a running service. Exit code 0 when it serves, otherwise 1.

    Without --address it checks the service with the settings of this folder. If that uses TLS, it
    reads /readyz of the metrics port, which needs no certificate.
    """
    settings = load_settings()
    if address is None and tls_ca is None and settings.tls_certificate_file is not None:
        status = _readyz(settings, timeout_s)
    else:
        tls = Tls(tls_ca, tls_certificate, tls_key, tls_name)
        with connect_blocking(address, tls=tls) as connection:
            stub: Any = health_pb2_grpc.HealthStub(connection.channel)
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = stub.Check(request, timeout=timeout_s)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    raise CommandError(f"The service has no gRPC service {service}.") from error
                raise
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(1)


def _readyz(settings: Settings, timeout_s: float) -> str:
    url = f"http://{url_host(settings.metrics_host)}:{settings.metrics_port}/readyz"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=timeout_s):
            return "SERVING"
    except HTTPError:
        return "NOT_SERVING"
    except (OSError, HTTPException) as error:
        raise CommandError(f"UNAVAILABLE: {url} cannot be reached ({error}).") from error


async def wait_until_serving(service: Service) -> None:
    """Wait until the service serves. It need not listen yet."""
    status = health_pb2.HealthCheckResponse
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    async for update in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
        if update.status == status.SERVING:
            return
