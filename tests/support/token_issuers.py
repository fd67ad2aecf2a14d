"""Issuers of tokens with keys of the tests, and calls with such tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms
from pydantic import SecretStr
from structlog.testing import LogCapture

from coupon_service.errors import Unauthenticated
from coupon_service.rpc.authorization import Authorizer
from coupon_service.rpc.context import RequestContext
from coupon_service.security.bearer_tokens import NEEDED, Tokens

ISSUER = "https://login.test"
AUDIENCE = "coupons"
SECRET = "a secret of issuer and service that has forty characters"

ASKED_FOR: Mapping[str, Any] = {
    "auth": "jwt",
    "jwt_secret": SecretStr(SECRET),
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
}
"""Settings of a server that requires such tokens."""


@cache
def private_key(algorithm: str) -> Any:
    """A private key for an algorithm, cached, since some take long to generate."""
    if algorithm[:2] in {"RS", "PS"}:
        return rsa.generate_private_key(65_537, 2_048)
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return SECRET.encode()


@dataclass(frozen=True)
class Issuer:
    """An issuer with one key. `kid` empty: neither the key nor its tokens have one."""

    kid: str = "k1"
    algorithm: str = "HS256"
    name: str = ISSUER
    key: Any = field(default=None)

    @property
    def private(self) -> Any:
        """The private key."""
        return self.key if self.key is not None else private_key(self.algorithm)

    def jwk(self, **members: Any) -> dict[str, Any]:
        """The public key as an entry of a JWK Set; `members` override it, None removes one."""
        public = self.private if isinstance(self.private, bytes) else self.private.public_key()
        kind = get_default_algorithms()[self.algorithm]
        entry = dict(kind.to_jwk(public, as_dict=True))
        entry |= {"alg": self.algorithm, "iss": self.name, "kid": self.kid or None, **members}
        return {name: value for name, value in entry.items() if value is not None}

    def token(self, headers: Mapping[str, Any] | None = None, /, **claims: Any) -> str:
        """A valid token of a shop's service; `claims` override it, None removes one."""
        now = int(time.time())
        values: dict[str, Any] = {
            "iss": self.name,
            "aud": AUDIENCE,
            "sub": "shop",
            "iat": now,
            "exp": now + 600,
            "roles": ["redeemer"],
            "business_id": "acme",
            **claims,
        }
        header = {"kid": self.kid} if self.kid else {}
        return jwt.encode(
            {name: value for name, value in values.items() if value is not None},
            self.private,
            self.algorithm,
            {**header, **(headers or {})},
        )


def key_file(path: Path, *keys: Issuer | Mapping[str, Any]) -> Path:
    """Write a JWK Set of these keys."""
    entries = [key.jwk() if isinstance(key, Issuer) else key for key in keys]
    path.write_text(json.dumps({"keys": entries}), encoding="utf-8")
    return path


def tokens(log: LogCapture | None = None, **changes: Any) -> Tokens:
    """A verifier of tokens that are signed with SECRET."""
    import structlog

    values: dict[str, Any] = {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "secret": SECRET,
        "file": None,
        "published": None,
        "log": structlog.wrap_logger(None, processors=[log or LogCapture()]),
    }
    return Tokens(**(values | changes))


REDEEM = "RedemptionService/RedeemCode"
OURS = Issuer(kid="")


def calling(
    *values: str | bytes, access: Authorizer | None = None, method: str = REDEEM
) -> RequestContext:
    """Authorize a call with these `authorization` values."""
    rpc = RequestContext((("user-agent", "test"), *(("authorization", value) for value in values)))
    (access or Authorizer(tokens()))(method, rpc)
    return rpc


def with_token(
    token: str, access: Authorizer | None = None, method: str = REDEEM
) -> RequestContext:
    """Authorize a call with this token."""
    return calling(f"Bearer {token}", access=access, method=method)


def refused(token: str, access: Authorizer | None = None) -> Unauthenticated:
    """Assert that the token is refused with the message that all refusals share."""
    with pytest.raises(Unauthenticated) as caught:
        with_token(token, access)
    error = caught.value
    assert (error.message, error.metadata) == (NEEDED, {})
    return error
