"""Certificate authorities and certificates, made for a test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate and its private key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority. Its own certificate is in the file `path`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._ca = trustme.CA(organization_name=name)
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def sign(self, file: str, *hosts: str, left: timedelta = DAY, passphrase: str = "") -> Pair:
        """Issue a certificate for `hosts` that expires in `left`; negative: it has expired.

        Overwrites existing files.
        """
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            *(hosts or ("no-host",)),
            common_name=file,
            not_before=now - 30 * DAY,
            not_after=now + left,
        )
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        leaf.cert_chain_pems[0].write_to_path(str(pair.certificate))
        key = leaf.private_key_pem.bytes()
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(_encrypted(key, passphrase) if passphrase else key)
        return pair


def _encrypted(key: bytes, passphrase: str) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )
