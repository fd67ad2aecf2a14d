"""What the commands that talk to a running service share: where it is, and what its errors say."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import grpc
import grpc.aio
import typer
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from coupon_service import __version__
from coupon_service.cli.failure import CommandError
from coupon_service.client.error_details import detail_of, status_of
from coupon_service.settings import TOKEN_VARIABLE, Settings, load_settings

T = TypeVar("T")

RETRIES: Final = """{
  "methodConfig": [{
    "name": [{}],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.1s",
      "maxBackoff": "2s",
      "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED", "ABORTED", "RESOURCE_EXHAUSTED"]
    }
  }]
}"""
"""A service config for clients: https://github.com/grpc/proposal/blob/master/A6-client-retries.md

CANCELLED is what gRPC answers calls that reach a worker while it ends.
"""

OPTIONS: Final = (
    ("grpc.primary_user_agent", f"coupon-service/{__version__}"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # not 2 min after the service is back
    ("grpc.enable_http_proxy", 0),  # set for browsing, and in the way on the machine itself
    # While a call is open: a line that has gone silent would be waited for without end. More often
    # than every 10 s the service does not like to be asked.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # of gRPC's other pings, which come before
)

UNKNOWN_OUTCOMES: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
"""Statuses of calls that may have changed something."""

STREAM_ENDED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # of the service, for a stream that was idle
)
"""Statuses after which a stream can be opened again."""

PROBE_TIMEOUT_S: Final = 2.0
BREAKS_MAX: Final = 14
"""How often in a row a stream is opened again without an answer: a minute in all."""


Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """How to know the service, and how it knows us. Nothing of it: a connection without TLS."""

    ca: Path | None
    certificate: Path | None
    key: Path | None
    name: str | None

    def channel(self, address: str) -> grpc.Channel:
        """Raises CommandError."""
        if self.ca is None:
            if any((self.certificate, self.key, self.name)):
                raise CommandError("TLS options need --tls-ca.")
            return grpc.insecure_channel(address, OPTIONS)
        if (self.certificate is None) != (self.key is None):
            raise CommandError("--tls-certificate and --tls-key go together.")
        credentials = grpc.ssl_channel_credentials(
            *(_content(path) for path in (self.ca, self.key, self.certificate))
        )
        named = (("grpc.ssl_target_name_override", self.name),) if self.name else ()
        return grpc.secure_channel(address, credentials, (*OPTIONS, *named))


@dataclass(frozen=True, slots=True)
class Service:
    """An open connection for a program with an event loop. `metadata` goes with each call."""

    channel: grpc.aio.Channel
    metadata: Metadata = ()


@dataclass(frozen=True, slots=True)
class BlockingService:
    """An open connection for a command. `metadata` goes with each call."""

    channel: grpc.Channel
    metadata: Metadata


@asynccontextmanager
async def connect(
    address: str, token: str | None = None, *, retries: bool = False
) -> AsyncGenerator[Service]:
    """A connection to the service. Errors of calls leave it as CommandError, in plain words.

    With `retries`, gRPC repeats calls that met a passing fault; each has to have a request_id.
    """
    options = (*OPTIONS, *([("grpc.service_config", RETRIES)] if retries else []))
    try:
        async with grpc.aio.insecure_channel(address, options) as channel:
            yield Service(channel, _bearer(token))
    except grpc.RpcError as error:
        raise CommandError(explain(error, address)) from error


@contextmanager
def connect_blocking(
    address: str | None, token: str | None = None, tls: Tls | None = None
) -> Generator[BlockingService]:
    """The same for a command, with its options.

    Not grpc.aio, which may lose the status of a stream that ends while it is written to
    (https://github.com/grpc/grpc/issues/36066).
    """
    target = _checked(address) if address else address_of(load_settings())
    tls = tls or Tls(None, None, None, None)
    try:
        with tls.channel(target) as channel:
            yield BlockingService(channel, _bearer(token))
    except grpc.RpcError as error:
        if tls.ca is None and error.code() is grpc.StatusCode.UNAVAILABLE and speaks_tls(target):
            raise CommandError(
                f"The service at {target} uses TLS: --tls-ca names the file with the authorities"
                " of its certificate."
            ) from error
        raise CommandError(explain(error, target)) from error


def speaks_tls(address: str) -> bool:
    """Whether a port begins connections with TLS."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S) as connection:
            context.wrap_socket(connection).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # as where a client needs a certificate
    except (OSError, ValueError):
        return False
    return True


def _checked(address: str) -> str:
    """The address, if gRPC can use it. Raises CommandError."""
    if not re.fullmatch(r"(\[[^]]+\]|[^\s:/]+):\d{1,5}|(unix|dns|ipv4|ipv6|xds):\S+", address):
        raise CommandError(f"{address} is not an address. Use HOST:PORT, such as localhost:50051.")
    return address


def _bearer(token: str | None) -> Metadata:
    token = (token or "").strip()
    if not (token.isascii() and token.isprintable()):
        raise CommandError(
            f"The bearer token of --token or {TOKEN_VARIABLE} has characters that no token has."
        )
    return (("authorization", f"Bearer {token}"),) if token else ()


def address_of(settings: Settings) -> str:
    """Where a client on this machine reaches the service with these settings."""
    return f"{url_host(settings.host)}:{settings.port}"


def url_host(host: str) -> str:
    """How a client on this machine writes the address that a service listens on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def explain(error: grpc.RpcError, address: str = "") -> str:
    """The status, the reason, every bad field and whatever else the error has, for people."""
    status = status_of(error)
    code = error.code().name
    info = detail_of(status, ErrorInfo)
    if info is None:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            why = (error.details() or "").rpartition("Failed to connect to remote host: ")[2]
            return f"{code}: the service at {address} cannot be reached ({why})."
        return f"{code}: {error.details()}"
    violations = [
        f"  {violation.field or 'request'}: {violation.description}"
        for violation in (detail_of(status, BadRequest) or BadRequest()).field_violations
    ]
    reason = "" if info.reason == code else f" {info.reason}"
    lines = [f"{code}{reason}: {'' if violations else status.message}".rstrip(), *violations]
    lines += [f"  {key}: {value}" for key, value in sorted(info.metadata.items())]
    if retry := detail_of(status, RetryInfo):
        lines.append(f"  A repeat may help in {retry.retry_delay.ToMilliseconds() / 1000:g} s.")
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        lines.append(f"  Set the token with --token or {TOKEN_VARIABLE}.")
    return "\n".join(lines)


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether a call that ended with this error may have changed something."""
    if isinstance(error, grpc.RpcError):
        return error.code() in UNKNOWN_OUTCOMES
    return isinstance(error, KeyboardInterrupt)


def reason_of(error: grpc.RpcError) -> str:
    """The name of the ErrorReason, or that of the status where the service did not answer."""
    info = detail_of(status_of(error), ErrorInfo)
    return info.reason if info is not None else error.code().name


def lasting(
    open_stream: Callable[[], Iterable[T]], patience: Patience | None = None
) -> Generator[T]:
    """The answers of a stream that, when it breaks, is opened again: `open_stream` knows where."""
    patience = patience or Patience()
    while True:
        try:
            for answer in open_stream():
                patience.answered()
                yield answer
        except grpc.RpcError as error:
            patience.wait_after(error)
        else:
            return


class Patience:
    """How long a command puts up with breaks: not before the first answer, and not for ever."""

    def __init__(self, pause: Callable[[float], None] = time.sleep) -> None:
        self._pause = pause
        self._breaks_left = 0

    def answered(self) -> None:
        """The service answered: what went wrong before is over."""
        self._breaks_left = BREAKS_MAX

    def wait_after(self, error: grpc.RpcError) -> None:
        """Wait for a while, if it may help; raises the error otherwise."""
        retry = detail_of(status_of(error), RetryInfo)
        if not self._breaks_left or not (error.code() in STREAM_ENDED or retry):
            raise error
        if self._breaks_left == BREAKS_MAX:
            line = explain(error).splitlines()[0]
            typer.echo(f"{line}\nRetrying for about a minute.", err=True)
        self._breaks_left -= 1
        pause_s = min(0.25 * 2 ** (BREAKS_MAX - self._breaks_left), 5.0)
        self._pause(max(pause_s, retry.retry_delay.ToMilliseconds() / 1000 if retry else 0))


def _content(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
