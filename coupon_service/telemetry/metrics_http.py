"""The HTTP endpoint of the metrics port: ``/metrics``, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.exposition import choose_encoder


class MetricsServerError(Exception):
    """The metrics endpoint cannot listen on its address."""


class MetricsServer:
    """A running endpoint; ``close`` stops it."""

    def __init__(self, server: socketserver.TCPServer) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on, also where port 0 was given."""
        return self._server.server_address[1]

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve_metrics(
    host: str,
    port: int,
    registry: CollectorRegistry,
    alive: Callable[[], bool],
    ready: Callable[[], tuple[bool, Mapping[str, object]]] = lambda: (True, {}),
) -> MetricsServer:
    """Serve ``/metrics`` from ``registry``, ``/healthz`` and ``/readyz`` with 200 or 503.

    ``ready`` also returns the JSON object that is the body of ``/readyz``. Port 0 takes a free one.
    Requests are handled in threads, which call ``alive`` and ``ready``.

    Raises:
        MetricsServerError: the address cannot be listened on, for example because it is in use.
    """

    class Handler(_Handler):
        def get(self, path: str) -> None:
            match path:
                case "/metrics":
                    self.get_metrics()
                case "/healthz":
                    self.answer(200, "ok") if alive() else self.answer(503, "no worker runs")
                case "/readyz":
                    is_ready, state = ready()
                    self.answer(200 if is_ready else 503, json.dumps(state), "application/json")
                case _:
                    self.answer(404, "not found: only /metrics, /healthz and /readyz exist")

    try:
        return MetricsServer(_Server(host, port, Handler.factory(registry)))
    except OSError as error:
        raise MetricsServerError(
            f"The metrics endpoint cannot listen on {host} port {port}: {error.strerror}."
            " COUPON_METRICS_HOST and COUPON_METRICS_PORT say where it listens."
        ) from error


class _Handler(MetricsHandler):
    timeout = 10  # seconds for a client to send its request

    def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
        """Called by http.server; answers any request target."""
        try:
            path = urlsplit(self.path).path
        except ValueError:
            return self.answer(400, "the request target is no URL")
        try:
            return self.get(path)
        except OSError:
            raise  # the client is gone
        except Exception:
            self.answer(500, "the log has the cause")
            raise

    def get(self, path: str) -> None:
        raise NotImplementedError

    def get_metrics(self) -> None:
        try:
            choose_encoder(self.headers.get("Accept", ""))
        except (TypeError, ValueError):  # a malformed version: answer in the default format
            del self.headers["Accept"]
        super().do_GET()

    def answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, host: str, port: int, handler: type[Any]) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), int(address[1])), handler)

    def server_bind(self) -> None:
        # HTTPServer also resolves the name of the host, which can take seconds without DNS.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        structlog.get_logger("coupon_service.telemetry.metrics_http").warning(
            "metrics request failed", client=str(client_address), exc_info=True
        )
