"""Bearer tokens: JSON Web Tokens (RFC 7519), verified as RFC 8725 says, and the keys to do so.

A key is named by the issuer of its tokens and its key id, and is good for one algorithm, whatever
a token says. Nothing that a token points to (jku, x5u) or brings along (jwk, x5c) is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Final

import jwt
import structlog
from structlog.typing import FilteringBoundLogger

from coupon_service.errors import Unauthenticated
from coupon_service.security.keys import (
    Keys,
    KeysError,
    PublishedKeys,
    keys_in_file,
    secret_key,
)
from coupon_service.settings import Settings

REQUIRED_CLAIMS: Final = ("exp", "iat", "iss", "aud", "sub")
LEEWAY_S: Final = 30
"""How far the clocks of issuer and service may differ."""

COMPACT_FORM: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""Base64url without padding (RFC 7515-2). PyJWT takes a token with padding for the same one."""

TOKEN_MAX_CHARACTERS: Final = 4_096
NOT_FETCHED: Final = "keys not fetched"
POLL_INTERVAL_S: Final = 1.0
"""Between two checks whether the file with the keys has changed."""

NEEDED: Final = "Expected the metadata authorization once, as: Bearer, a space, a valid token."
"""The message for every refused caller, whatever was wrong."""


class UnknownKeyError(jwt.InvalidKeyError):
    """No key of the token's issuer has its key id."""


class Tokens:
    """Verifies tokens with a shared secret and the keys of JWK Sets: in a file, and published.

    `issuer`: whose tokens the secret is for, and every key without a member `iss`. `audiences`: of
    which the `aud` of a token has to contain one. `keys` are the present ones; another value takes
    their place when they change. Blocks until published keys are there, where there are no others.
    Raises KeysError when there are none.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audiences: Sequence[str],
        secret: str | None,
        file: Path | None,
        published: PublishedKeys | None,
        log: FilteringBoundLogger,
    ) -> None:
        self._issuer = issuer
        self._audiences = audiences
        self._secret = secret
        self._file = file
        self._published = published
        self._log = log
        self._changing = Lock()
        self._seen = self._stamp()
        self._own = self._read()
        self._fetched: Keys = {}
        self.keys = self._own
        try:
            self._fetch()
        except KeysError as error:
            if published is not None and (kept := published.fetched_before()):
                self._change(fetched=kept)
            if not self.keys:
                raise KeysError(
                    f"There is no key that tokens can be verified with. {error}"
                ) from error
            self._log.error(NOT_FETCHED, cause=str(error))

    @property
    def published(self) -> bool:
        """Whether there may be more keys by now, which `fetch` gets."""
        return self._published is not None

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
            error = UnknownKeyError if issuer == self._issuer else jwt.InvalidKeyError
            raise error("no key of this issuer has the key id of the token")
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._audiences,
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
            own = self._read()
        except KeysError as error:
            self._log.error("keys not changed", cause=str(error))
        else:
            self._change(own=own)

    def fetch(self) -> bool:
        """Fetches the published keys, and returns whether that went well; the present ones stay
        when they cannot be. Blocks for some seconds at most, unless the provider is slow on
        purpose."""
        try:
            self._fetch()
        except KeysError as error:
            self._log.error(NOT_FETCHED, cause=str(error))
            return False
        return True

    def _fetch(self) -> None:
        """Raises KeysError."""
        if self._published is not None:
            fetched = self._published.fetch()
            if fetched is not self._fetched:
                self._change(fetched=fetched)

    def _change(self, *, own: Keys | None = None, fetched: Keys | None = None) -> None:
        """Takes these keys in place of the present ones. Called in several threads."""
        with self._changing:
            self._own = self._own if own is None else own
            self._fetched = self._fetched if fetched is None else fetched
            self.keys = {**self._fetched, **self._own}
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
        """The keys that are here: that of the secret, and those in the file. Raises KeysError."""
        keys: dict[tuple[str, str], jwt.PyJWK] = {}
        if self._file is not None:
            keys |= keys_in_file(self._file, self._issuer, self._log)
        if self._secret is not None:
            name = self._issuer, ""
            if name in keys:
                raise KeysError(f"There are two keys of issuer {self._issuer} without a key id.")
            keys[name] = secret_key(self._secret)
        if not keys and self._published is None:
            raise KeysError(
                "There is no key that tokens can be verified with: COUPON_JWT_KEYS_FILE,"
                " COUPON_JWT_JWKS_URL or COUPON_JWT_SECRET has to have one."
            )
        return keys


def tokens_of(settings: Settings, kept_keys: Path | None = None) -> Tokens:
    """What verifies tokens, by the settings. `kept_keys`: as of PublishedKeys. Raises KeysError."""
    log = structlog.get_logger("coupon_service.security.bearer_tokens")
    url, issuer = settings.jwt_jwks_url, settings.jwt_issuer
    return Tokens(
        issuer=issuer,
        audiences=settings.jwt_audience.split(),
        secret=settings.jwt_secret.get_secret_value() if settings.jwt_secret else None,
        file=settings.jwt_keys_file,
        published=PublishedKeys(url, issuer, log, kept_keys) if url is not None else None,
        log=log,
    )


def make_token(
    secret: str,
    *,
    issuer: str,
    audience: str,
    subject: str,
    roles: list[str],
    business_id: str,
    expires_in_s: int,
    roles_claim: str = "roles",
    business_claim: str = "business_id",
) -> str:
    """A token that `Tokens` with this secret takes. `business_id`: empty = every business."""
    now = datetime.now(UTC)
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "iat": now,
        "exp": now + timedelta(seconds=expires_in_s),
        roles_claim: roles,
        **({business_claim: business_id} if business_id else {}),
    }
    return jwt.encode(claims, secret_key(secret))
