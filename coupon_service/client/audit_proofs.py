"""Proofs of the ledger, verified by a client that trusts nothing but a public key."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from coupon_service.audit.checkpoints import read_checkpoint, split_notes, verify_checkpoint
from coupon_service.audit.proofs import InclusionProof, Opened, verify_inclusion
from coupon_service.audit.records import MalformedError
from coupon_service.audit.seals import Seal
from coupon_service.v1.audit_service_pb2 import AuditSeal, GetAuditProofResponse


def verify_audit_proof(
    proof: GetAuditProofResponse, public_key: str, checkpoint: str = ""
) -> dict[str, Any]:
    """What is proved of an event, by the names of the ledger's columns.

    `public_key`: the one that you know to be that of the service. `checkpoint`: the one that you
    have kept, to which the proof was asked to lead; that of the proof by default. Of those of
    several shards it takes the one of the event's. Values that were erased are left out.

    Raises NotVerifiedError when the proof does not hold, MalformedError for what is none, and
    ImportError without the package `cryptography` (`coupon-service[proofs]`).
    """
    if not proof.seals:
        raise MalformedError("The proof has no seal.")
    seals = [_seal(it) for it in proof.seals]
    inclusion = InclusionProof(
        facts=proof.facts,
        parts=[Opened(it.commitment, it.salt or None, it.values or None) for it in proof.parts],
        index=proof.index,
        path=[*proof.path],
        seal=seals[0],
        chain_before=proof.chain_before,
        later_seals=seals[1:],
    )
    note = _note_of(checkpoint, proof.checkpoint) if checkpoint else proof.checkpoint
    return verify_inclusion(inclusion, verify_checkpoint(note, public_key))


def _note_of(notes: str, of_proof: str) -> str:
    """The one of these that is of the same ledger as that of a proof, if one is."""
    first, *rest = split_notes(notes)
    log_id = read_checkpoint(of_proof).log_id if rest else None
    return next((it for it in rest if read_checkpoint(it).log_id == log_id), first)


def _seal(seal: AuditSeal) -> Seal:
    return Seal(
        number=seal.number,
        first_sequence=seal.first_sequence,
        last_sequence=seal.last_sequence,
        row_count=seal.row_count,
        root=seal.root,
        leaves_hash=seal.leaves_hash,
        seal_time=seal.seal_time.ToDatetime(tzinfo=UTC),
        version=seal.version,
    )
