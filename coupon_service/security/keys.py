"""Keys that tokens are verified with, read from JWK Sets (RFC 7517)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import jwt
from jwt.utils import base64url_encode
from structlog.typing import FilteringBoundLogger

Keys = Mapping[tuple[str, str], jwt.PyJWK]
"""By issuer and key id; the id is empty for a key without one, whose tokens name none either."""

ALGORITHMS: Final = frozenset(
    {
        *("HS256", "HS384", "HS512", "EdDSA"),
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"),
    }
)
KEYS_FILE_MAX_BYTES: Final = 1_048_576
FETCH_TIMEOUT_S: Final = 3.0


class KeysError(Exception):
    """The keys cannot be used; one clear sentence."""


def secret_key(secret: str) -> jwt.PyJWK:
    """The HS256 key of a shared secret."""
    return jwt.PyJWK(
        {"kty": "oct", "alg": "HS256", "k": base64url_encode(secret.encode()).decode("ascii")}
    )


def keys_in_file(file: Path, issuer: str, log: FilteringBoundLogger) -> Keys:
    """The keys of the JWK Set in a file. Raises KeysError."""
    try:
        with file.open("rb") as opened:
            key_set = json.loads(opened.read(KEYS_FILE_MAX_BYTES))
    except OSError as error:
        raise KeysError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise KeysError(f"{file} is not a JWK Set: an object with an array `keys`.") from error
    return _usable(key_set, str(file), issuer, log)


class PublishedKeys:
    """The keys that an identity provider publishes as a JWK Set at a URL.

    It has no key that others could sign with: shared secrets are not used. `kept`: a file in which
    workers leave each other the keys that they fetched, so that also one that starts while the
    provider is away has them.
    """

    def __init__(
        self, url: str, issuer: str, log: FilteringBoundLogger, kept: Path | None = None
    ) -> None:
        self._kept = kept
        self._url = url
        self._issuer = issuer
        self._log = log
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_TIMEOUT_S)
        self._key_set: object = None
        self._keys: Keys = {}

    def fetch(self) -> Keys:
        """The present keys: the object of the fetch before when they have not changed.

        Blocks for FETCH_TIMEOUT_S and more when the provider is slow. Raises KeysError.
        """
        try:
            key_set: object = self._client.fetch_data()
        except Exception as error:  # whatever a server may answer
            cause = error.__cause__ or error
            raise KeysError(f"The keys of {self._url} cannot be fetched: {cause}.") from error
        if key_set != self._key_set:
            self._keys = _usable(key_set, self._url, self._issuer, self._log, published=True)
            self._key_set = key_set
            self._keep()
        return self._keys

    def fetched_before(self) -> Keys:
        """The keys that a worker of this service fetched last; empty where there are none."""
        if self._kept is None:
            return {}
        try:
            kept: Any = json.loads(self._kept.read_bytes())
            if kept["url"] != self._url:  # which the settings have changed since
                return {}
            return _usable(kept["key_set"], self._url, self._issuer, self._log, published=True)
        except (OSError, ValueError, TypeError, LookupError, KeysError):
            return {}

    def _keep(self) -> None:
        """Leaves the keys to other workers. Whoever reads meanwhile has those before."""
        if self._kept is None:
            return
        new = self._kept.with_suffix(f".{os.getpid()}")
        try:
            new.write_text(json.dumps({"url": self._url, "key_set": self._key_set}), "utf-8")
            new.replace(self._kept)
        except OSError as error:
            self._log.warning("keys not kept", cause=error.strerror)


def _usable(
    key_set: Any, source: str, issuer: str, log: FilteringBoundLogger, *, published: bool = False
) -> Keys:
    """The keys that can be used; others are passed over (RFC 7517-5). Raises KeysError."""
    try:
        entries = [cast("dict[str, Any]", dict(entry)) for entry in key_set["keys"]]
    except (ValueError, TypeError, KeyError) as error:
        raise KeysError(f"{source} is not a JWK Set: an object with an array `keys`.") from error
    keys: dict[tuple[str, str], jwt.PyJWK] = {}
    for number, entry in enumerate(entries, 1):
        if published and entry.get("use") == "enc":  # providers publish some beside the others
            continue
        try:
            if published and entry.get("kty") == "oct":
                raise KeysError("a secret that is published is none")
            name, key = _named(entry, issuer)
        except KeysError as error:
            log.warning("key not used", source=source, number=number, cause=str(error))
            continue
        if name in keys:
            raise KeysError(f"There are two keys of issuer {name[0]} with the key id {name[1]!r}.")
        keys[name] = key
    return keys


def _named(entry: dict[str, Any], issuer: str) -> tuple[tuple[str, str], jwt.PyJWK]:
    """The key with its name. Raises KeysError, in half a sentence."""
    named = entry.get("iss", issuer)
    if not isinstance(named, str):
        raise KeysError("its iss is not text")
    key = _public_key(entry)
    return (named, key.key_id or ""), key


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
