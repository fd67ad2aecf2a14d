"""The certificate, key and client authorities of the gRPC port: read, checked, and read again.

A file that is replaced is taken up by the next handshake. Files that cannot be used, as in the
middle of a replacement, change nothing: what was good before stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from coupon_service.settings import Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class TlsError(Exception):
    """The files cannot be used; one clear sentence that names the setting."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where they are. With `client_ca`, callers need a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What the files hold, in PEM. `certificate` has the chain, the server's own first."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expire_time: datetime


class TlsReader:
    """The identity that the port has now."""

    def __init__(self, files: TlsFiles, now: Callable[[], datetime]) -> None:
        """Raises TlsError."""
        self._files = files
        self._now = now
        self._log = structlog.get_logger(__name__)
        self._seen = self._stamps()
        self.identity = self._given = read_identity(files, now())

    def refresh(self) -> None:
        """Reads the files when they have changed."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self.identity = read_identity(self._files, self._now())
        except TlsError as error:
            self._log.warning("the certificate stays as it was", cause=str(error))
        else:
            self._log.info("new certificate", expires=self.identity.expire_time.isoformat())

    def changed(self) -> TlsIdentity | None:
        """The identity, when it is another one than the last that was returned here, or the first.

        May be called from any thread.
        """
        self.refresh()
        if self.identity is self._given:
            return None
        self._given = self.identity
        return self.identity

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """What differs between a file and the one that replaced it."""
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._files.certificate, self._files.key, self._files.client_ca):
            try:
                found = os.stat(path) if path is not None else None  # noqa: PTH116
            except OSError:
                found = None
            stamps.append(found and (found.st_ino, found.st_size, found.st_mtime_ns))
        return stamps


def read_certificate(settings: Settings, now: Callable[[], datetime]) -> TlsReader | None:
    """The files of the settings, None without TLS. Raises TlsError."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    files = TlsFiles(
        settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
    )
    return TlsReader(files, now)


def read_identity(files: TlsFiles, now: datetime) -> TlsIdentity:
    """Reads and checks the files. Raises TlsError."""
    # Only who uses TLS waits for it.
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    certificate = _read("COUPON_TLS_CERTIFICATE_FILE", files.certificate)
    key = _read("COUPON_TLS_KEY_FILE", files.key)
    client_ca = _read("COUPON_TLS_CLIENT_CA_FILE", files.client_ca) if files.client_ca else None
    own = _certificates("COUPON_TLS_CERTIFICATE_FILE", files.certificate, certificate)[0]
    if files.client_ca and client_ca:
        _certificates("COUPON_TLS_CLIENT_CA_FILE", files.client_ca, client_ca)
    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        raise TlsError(
            f"COUPON_TLS_KEY_FILE: the key in {files.key} has a passphrase; expected one without."
        ) from None
    except ValueError:
        raise TlsError(
            f"COUPON_TLS_KEY_FILE: there is no private key in PEM form in {files.key}."
        ) from None
    if private.public_key() != own.public_key():
        raise TlsError(
            f"COUPON_TLS_KEY_FILE: the key in {files.key} does not belong to the first certificate"
            f" in {files.certificate}."
        )
    if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
        raise TlsError(
            f"COUPON_TLS_CERTIFICATE_FILE: the certificate in {files.certificate} is valid from"
            f" {_day(own.not_valid_before_utc)} to {_day(own.not_valid_after_utc)}, not now."
        )
    return TlsIdentity(certificate, key, client_ca, own.not_valid_after_utc)


def _certificates(setting: str, path: Path, text: bytes) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return load_pem_x509_certificates(text)
    except ValueError:
        raise TlsError(f"{setting}: there is no certificate in PEM form in {path}.") from None


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{setting}: {path} cannot be read: {error.strerror}.") from None


def _day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")
