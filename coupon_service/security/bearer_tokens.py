"""Bearer tokens: JSON Web Tokens (RFC 7519), verified as RFC 8725 says, and the keys to do so.

A key is named by the issuer of its tokens and its key id, and is good for one algorithm, whatever
a token says. Nothing that a token points to (jku, x5u) or brings along (jwk, x5c) is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import jwt
import structlog
from jwt.utils import base64url_encode
from structlog.typing import FilteringBoundLogger

from coupon_service.errors import Unauthenticated
from coupon_service.settings import Settings

Keys = Mapping[tuple[str, str], jwt.PyJWK]
"""By issuer and key id; the id is empty for a key without one, whose tokens name none either."""

ALGORITHMS: Final = frozenset(
    {
        *("HS256", "HS384", "HS512", "EdDSA"),
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"),
    }
)
REQUIRED_CLAIMS: Final = ("exp", "iat", "iss", "aud", "sub")
LEEWAY_S: Final = 30
"""How far the clocks of issuer and service may differ."""

COMPACT_FORM: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""Base64url without padding (RFC 7515-2). PyJWT takes a token with padding for the same one."""

TOKEN_MAX_CHARACTERS: Final = 4_096
KEYS_FILE_MAX_BYTES: Final = 1_048_576
POLL_INTERVAL_S: Final = 1.0
"""Between two checks whether the file with the keys has changed."""

NEEDED: Final = "Expected the metadata authorization once, as: Bearer, a space, a valid token."
"""The message for every refused caller, whatever was wrong."""


class KeysError(Exception):
    """The keys cannot be used; one clear sentence."""


class Tokens:
    """Verifies tokens with the keys in a file, a JWK Set (RFC 7517), and with a shared secret.

    `issuer`: whose tokens the secret is for, and every key in the file that has no member `iss`.
    `audience`: what the `aud` of a token has to contain. `keys` are the present ones; another value
    takes their place when the file changes. Raises KeysError when there is none.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        secret: str | None,
        file: Path | None,
        log: FilteringBoundLogger,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._secret = secret
        self._file = file
        self._log = log
        self._seen = self._stamp()
        self.keys = self._read()

    def claims(self, token: str) -> Mapping[str, Any]:
        """What a valid token says. Raises Unauthenticated, its cause for the log alone."""
        try:
            return self._verified(token)
        except jwt.PyJWTError as error:
            raise Unauthenticated(NEEDED) from error

    def _verified(self, token: str) -> Mapping[str, Any]:
        if len(token) > TOKEN_MAX_CHARACTERS or not COMPACT_FORM.fullmatch(token):
            raise jwt.DecodeError("the token is too long or not in compact form")
        shown = jwt.decode_complete(token, options={"verify_signature": False})
        header, issuer = shown["header"], shown["payload"].get("iss")
        if "crit" in header:
            raise jwt.InvalidTokenError("the token has critical extensions")
        key = self.keys.get((issuer, header.get("kid", ""))) if isinstance(issuer, str) else None
        if key is None:
            raise jwt.InvalidKeyError("no key of this issuer has the key id of the token")
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._audience,
            issuer=issuer,
            leeway=LEEWAY_S,
            options={"require": list(REQUIRED_CLAIMS)},
        )

    def refresh(self) -> None:
        """Reads the file again if it has changed. The present keys stay when it cannot be used."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self.keys = self._read()
        except KeysError as error:
            self._log.error("keys not changed", cause=str(error))
        else:
            self._log.info("keys changed", keys=len(self.keys))

    def _stamp(self) -> tuple[int, int, int] | None:
        """What is another one after a change of the file, also by a link that leads elsewhere."""
        if self._file is None:
            return None
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> Keys:
        keys: dict[tuple[str, str], jwt.PyJWK] = {}
        if self._secret is not None:
            keys[self._issuer, ""] = secret_key(self._secret)
        for issuer, key in self._in_file(self._file) if self._file is not None else ():
            name = issuer, key.key_id or ""
            if name in keys:
                raise KeysError(
                    f"There are two keys of issuer {issuer} with the key id {name[1]!r}."
                )
            keys[name] = key
        if not keys:
            raise KeysError(
                "There is no key that tokens can be verified with:"
                " COUPON_JWT_KEYS_FILE or COUPON_JWT_SECRET has to have one."
            )
        return keys

    def _in_file(self, file: Path) -> Iterator[tuple[str, jwt.PyJWK]]:
        """The keys of the file with their issuers. Those of no use are passed over (RFC 7517-5)."""
        try:
            with file.open("rb") as opened:
                jwks = json.loads(opened.read(KEYS_FILE_MAX_BYTES))["keys"]
            entries = [cast("dict[str, Any]", dict(entry)) for entry in jwks]
        except OSError as error:
            raise KeysError(f"{file} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise KeysError(f"{file} is not a JWK Set: an object with an array `keys`.") from error
        for number, entry in enumerate(entries, 1):
            issuer = entry.get("iss", self._issuer)
            try:
                if not isinstance(issuer, str):
                    raise KeysError("its iss is not text")
                yield issuer, _public_key(entry)
            except KeysError as error:
                self._log.warning("key not used", file=str(file), number=number, cause=str(error))


def tokens_of(settings: Settings) -> Tokens:
    """What verifies tokens, by the settings. Raises KeysError."""
    return Tokens(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        secret=settings.jwt_secret.get_secret_value() if settings.jwt_secret else None,
        file=settings.jwt_keys_file,
        log=structlog.get_logger("coupon_service.security.bearer_tokens"),
    )


def secret_key(secret: str) -> jwt.PyJWK:
    """The HS256 key of a shared secret."""
    return jwt.PyJWK(
        {"kty": "oct", "alg": "HS256", "k": base64url_encode(secret.encode()).decode("ascii")}
    )


def _public_key(entry: dict[str, Any]) -> jwt.PyJWK:
    """The key that an entry of a JWK Set describes. Raises KeysError, in half a sentence."""
    if entry.get("use", "sig") != "sig":
        raise KeysError("it is not for signatures")
    if "d" in entry:
        raise KeysError("it is a private key, which only the issuer should have")
    if not isinstance(entry.get("kid", ""), str):
        raise KeysError("its kid is not text")
    try:
        key = jwt.PyJWK(entry)
        weakness = key.Algorithm.check_key_length(key.Algorithm.prepare_key(key.key))
    except Exception as error:  # PyJWT lets many through
        raise KeysError(f"it cannot be used: {type(error).__name__}") from error
    if key.algorithm_name not in ALGORITHMS:
        raise KeysError(f"its algorithm is not one of {', '.join(sorted(ALGORITHMS))}")
    if weakness:
        raise KeysError(weakness)
    return key


def make_token(
    secret: str,
    *,
    issuer: str,
    audience: str,
    subject: str,
    roles: list[str],
    business_id: str,
    expires_in_s: int,
) -> str:
    """A token that `Tokens` with this secret takes. `business_id`: empty = every business."""
    now = datetime.now(UTC)
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "iat": now,
        "exp": now + timedelta(seconds=expires_in_s),
        "roles": roles,
        **({"business_id": business_id} if business_id else {}),
    }
    return jwt.encode(claims, secret_key(secret))
