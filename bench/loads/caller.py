"""The authenticated caller of the measured service."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import grpc

from coupon_service.security.bearer_tokens import make_token

SECRET: Final = "only the benchmark makes tokens with this one"  # noqa: S105 - of no other service
SETTINGS: Final = {"COUPON_AUTH": "jwt", "COUPON_JWT_SECRET": SECRET}
DAY_S: Final = 86_400


@cache
def token() -> str:
    """A token of the role admin, the same for the whole run, as that of a client in production."""
    return make_token(
        SECRET,
        issuer="coupon-service",
        audience="coupon-service",
        subject="bench",
        roles=["admin"],
        business_id="",
        expires_in_s=DAY_S,
    )


def metadata() -> tuple[tuple[str, str], ...]:
    """The metadata of each call. Servers without authentication get it as well."""
    return (("authorization", f"Bearer {token()}"),)


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Authenticated(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Interceptor that adds the token to each call."""

    def __init__(self) -> None:
        self._metadata = metadata()

    def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        fields: list[Any] = [getattr(details, name, None) for name in _Details._fields]
        return continuation(_Details(*fields)._replace(metadata=self._metadata), request)

    intercept_unary_unary: Any = _call
    intercept_unary_stream: Any = _call
    intercept_stream_stream: Any = _call


def channel_to(address: str) -> grpc.Channel:
    """A channel whose calls carry the token."""
    options = [("grpc.enable_http_proxy", 0)]
    return grpc.intercept_channel(grpc.insecure_channel(address, options), _Authenticated())
