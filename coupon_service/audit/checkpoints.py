"""Checkpoints: signed statements of how far the ledger was sealed, to be kept out of its reach.

They are signed notes (https://c2sp.org/signed-note) of Ed25519, which whoever has the public key
can verify, and nobody who has only that can make. The text is that of https://c2sp.org/tlog-checkpoint,
with the number of seals for the size and the value of the chain for the root, and two lines more.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from coupon_service.audit.merkle import HASH_BYTES
from coupon_service.audit.records import MalformedError

ORIGIN: Final = "coupon-service/audit/"
KEY_NAME: Final = "coupon-service"

_ED25519: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64
_PURPOSE: Final = b"coupon-service audit checkpoint"
_LINES: Final = 5


class NotVerifiedError(ValueError):
    """A proof or a checkpoint does not hold; one clear sentence."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """That the chain of a ledger had this value after so many seals.

    `log_id`: of the ledger. `last_sequence`: the number up to which it was sealed. `shard`: which
    has the ledger, empty where there is only one.
    """

    log_id: UUID
    number: int
    chain: bytes
    last_sequence: int
    seal_time: datetime
    shard: str = ""

    @property
    def text(self) -> str:
        """What is signed."""
        of_shard = f"/{self.shard}" if self.shard else ""
        return (
            f"{ORIGIN}{self.log_id}{of_shard}\n{self.number}\n{b64encode(self.chain).decode()}\n"
            f"sequence {self.last_sequence}\nsealed {self.seal_time.isoformat()}\n"
        )


def _parsed(text: str) -> Checkpoint:
    lines = text.split("\n")
    try:
        if len(lines) != _LINES + 1:
            raise MalformedError("It has another number of lines.")
        log_id, _, shard = lines[0].removeprefix(ORIGIN).partition("/")
        checkpoint = Checkpoint(
            UUID(log_id),
            int(lines[1]),
            _decoded(lines[2]),
            int(lines[3].removeprefix("sequence ")),
            datetime.fromisoformat(lines[4].removeprefix("sealed ")),
            shard,
        )
    except ValueError as error:
        raise MalformedError(f"The text of the checkpoint is malformed. {error}") from error
    if checkpoint.text != text or len(checkpoint.chain) != HASH_BYTES:
        raise MalformedError("The text of the checkpoint is malformed.")
    return checkpoint


class Signer:
    """Signs checkpoints with a key that follows from a secret, so that there is no key to keep."""

    def __init__(self, secret: bytes) -> None:
        self._seed = hmac.digest(secret, _PURPOSE, "sha256")

    @cached_property
    def _key(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
            Ed25519PrivateKey,
        )

        return Ed25519PrivateKey.from_private_bytes(self._seed)

    @cached_property
    def public_key(self) -> str:
        """What verifies them, in the form of signed notes."""
        return _note_key(KEY_NAME, self._key.public_key().public_bytes_raw())

    def sign(self, checkpoint: Checkpoint) -> str:
        """The signed note of the checkpoint."""
        signature = self._key.sign(checkpoint.text.encode())
        _, key_id, _ = _key_parts(self.public_key)
        encoded = b64encode(key_id + signature).decode()
        return f"{checkpoint.text}\n\N{EM DASH} {KEY_NAME} {encoded}\n"


def verify_checkpoint(note: str, public_key: str) -> Checkpoint:
    """The checkpoint of a signed note, if whoever has the key of `public_key` signed it.

    Raises NotVerifiedError, MalformedError for what is no checkpoint or key, and ImportError
    without the package `cryptography`.
    """
    return _parsed(verify_note(note, public_key))


def verify_note(note: str, public_key: str) -> str:
    """The text of a signed note that is signed with this key. Raises as verify_checkpoint does."""
    name, key_id, key = _key_parts(public_key)
    text, separator, signatures = note.rpartition("\n\n")
    if not separator:
        raise MalformedError("The checkpoint has no signature.")
    text += "\n"
    for line in signatures.splitlines():
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "\N{EM DASH}":
            raise MalformedError("A signature of the checkpoint is malformed.")
        signature = _decoded(parts[2])
        if parts[1] == name and signature[:_KEY_ID_BYTES] == key_id:
            if not _is_signed(key, signature[_KEY_ID_BYTES:], text.encode()):
                raise NotVerifiedError("The signature of the checkpoint is not valid.")
            return text
    raise NotVerifiedError("The checkpoint is not signed with this key.")


def read_checkpoint(note: str) -> Checkpoint:
    """The checkpoint of a signed note, whoever signed it. Raises MalformedError."""
    text, separator, _ = note.rpartition("\n\n")
    if not separator:
        raise MalformedError("The checkpoint has no signature.")
    return _parsed(text + "\n")


def split_notes(notes: str) -> list[str]:
    """The signed notes of several checkpoints, which follow each other; of one that note alone."""
    return [it for it in re.split(f"^(?={ORIGIN})", notes, flags=re.MULTILINE) if it] or [notes]


def _is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see the package
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
            Ed25519PublicKey,
        )
    except ImportError as error:
        raise ImportError("To verify signatures, install coupon-service[proofs].") from error
    public: Any = Ed25519PublicKey.from_public_bytes(key)
    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _decoded(encoded: str) -> bytes:
    """What was encoded in base64, in the one way that there is. Raises MalformedError."""
    try:
        content = b64decode(encoded, validate=True)
    except ValueError as error:
        raise MalformedError("Something is not in base64.") from error
    if b64encode(content).decode() != encoded:
        raise MalformedError("Something is not in base64.")
    return content


def _note_key(name: str, key: bytes) -> str:
    typed = _ED25519 + key
    key_id = sha256(name.encode() + b"\n" + typed).digest()[:_KEY_ID_BYTES]
    return f"{name}+{key_id.hex()}+{b64encode(typed).decode()}"


def _key_parts(public_key: str) -> tuple[str, bytes, bytes]:
    """The name, the id and the key itself. Raises MalformedError."""
    name, _, rest = public_key.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    typed = _decoded(encoded)
    if not typed.startswith(_ED25519) or len(typed) != HASH_BYTES + 1:
        raise MalformedError("The public key is not one of Ed25519.")
    if _note_key(name, typed[1:]) != public_key.strip():
        raise MalformedError("The public key is malformed.")
    return name, bytes.fromhex(key_id), typed[1:]
