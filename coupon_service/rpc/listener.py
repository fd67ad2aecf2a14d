"""The gRPC port of a worker, which the other workers share."""

from __future__ import annotations

from typing import Any, Final

import grpc
import grpc.aio

from coupon_service.rpc.handler import HEADERS_MAX_BYTES
from coupon_service.rpc.serving_loop import ServingLoop
from coupon_service.security.tls import TlsIdentity, TlsReader
from coupon_service.settings import Settings

HTTP2_OPTIONS: Final = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_concurrent_streams", 2_000),
    # Above a softer limit gRPC would refuse some calls at random.
    ("grpc.max_metadata_size", HEADERS_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", HEADERS_MAX_BYTES),
    # Clients may ping so often, also without a call, as those behind load balancers that forget
    # idle connections do. Without the permission gRPC wants two hours between such pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Until it has confirmed our settings, which takes a round trip, a client may ignore them.
    ("grpc.http2.settings_timeout", 5_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Who does not answer a ping, or does not even read what was sent, is not there any more.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class ListenerError(Exception):
    """The service cannot listen; one clear sentence."""


class Listener:
    """Takes calls and hands them to the handler."""

    def __init__(
        self,
        settings: Settings,
        tls: TlsReader | None,
        handler: grpc.GenericRpcHandler,
    ) -> None:
        self._settings = settings
        self._tls = tls
        max_bytes = max(settings.request_max_bytes, settings.import_request_max_bytes)
        self._grpc = grpc.aio.server(
            options=(
                *HTTP2_OPTIONS,
                # The handler refuses what is too large for a method, and says so; this protects it.
                ("grpc.max_receive_message_length", max_bytes + 65_536),
                ("grpc.max_allowed_incoming_connections", settings.connections_max),
                ("grpc.max_connection_idle_ms", settings.connection_idle_ms),
                ("grpc.max_connection_age_ms", settings.connection_age_ms),
                ("grpc.max_connection_age_grace_ms", settings.connection_age_grace_ms),
                # Calls that the handler has not seen yet. gRPC's own bound of 1,000 cancels some
                # calls of a burst at random, and a client does not repeat what was cancelled.
                ("grpc.server.max_pending_requests", settings.calls_max),
                ("grpc.server.max_pending_requests_hard_limit", settings.calls_max),
            )
        )
        self._serving = ServingLoop(self._grpc, handler)

    async def open(self) -> int:
        """Listens; the number of the port. Raises ListenerError."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.port}"
        try:
            port = (
                self._grpc.add_insecure_port(address)
                if self._tls is None
                else self._grpc.add_secure_port(address, _credentials(self._tls))
            )
        except RuntimeError as error:
            raise ListenerError(
                f"The server cannot listen on {settings.host} port {settings.port}:"
                " is the port in use? COUPON_HOST and COUPON_PORT say where it listens."
            ) from error
        await self._serving.start()
        return port

    async def closed(self) -> None:
        """Returns when calls are not served any more, although nobody has closed the port."""
        await self._serving.failed.wait()

    async def close(self) -> None:
        """Takes no more calls, and gives those under way the time to finish."""
        await self._serving.stop(self._settings.shutdown_timeout_ms / 1000)


def _credentials(tls: TlsReader) -> grpc.ServerCredentials:
    """Credentials that follow the files: gRPC asks for what has changed at every handshake."""
    cygrpc: Any = grpc

    def configuration(identity: TlsIdentity) -> Any:
        return cygrpc.ssl_server_certificate_configuration(
            [(identity.key, identity.certificate)], identity.client_ca
        )

    def changed() -> Any:
        identity = tls.changed()
        return None if identity is None else configuration(identity)

    return cygrpc.dynamic_ssl_server_credentials(
        configuration(tls.identity),
        changed,
        require_client_authentication=tls.identity.client_ca is not None,
    )
