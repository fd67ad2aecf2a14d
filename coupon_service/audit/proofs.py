"""Proofs that an event is in the ledger as it was sealed, which need no database to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coupon_service.audit import leaves, records
from coupon_service.audit.checkpoints import Checkpoint, NotVerifiedError
from coupon_service.audit.merkle import HASH_BYTES, leaf_hash, root_of_path
from coupon_service.audit.records import MalformedError
from coupon_service.audit.seals import Seal, extend_chain


@dataclass(frozen=True, slots=True)
class Opened:
    """A commitment, and what shows to what: the salt and the values. None of what was erased."""

    commitment: bytes
    salt: bytes | None = None
    part: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """That a row of the ledger is in a seal, and that seal in the chain.

    `parts`: what of the row is personal: the user's part, or also that of the other user and that
    of the pair. `index`: of its leaf among those of the seal. `chain_before`: the value of the
    chain before the seal. `later_seals`: those between it and a later checkpoint.
    """

    facts: bytes
    parts: Sequence[Opened]
    index: int
    path: Sequence[bytes]
    seal: Seal
    chain_before: bytes
    later_seals: Sequence[Seal] = ()


def opened_parts(row: leaves.Row, keys: Mapping[str, bytes]) -> list[Opened]:
    """The parts of a row, each with what opens its commitment, unless it was erased.

    Raises KeyError for a user who has no key, and MalformedError.
    """
    commitments, erased = leaves.commitments_of(row, keys), leaves.unpacked(row.commitments)
    users = (row.user_id, row.other_user_id, row.user_id)
    salts = (leaves.salt_of, leaves.salt_of, leaves.pair_salt_of)
    values = (row.user, row.other, row.pair)
    opened: list[Opened] = []
    for commitment, gone, user, salt, part in zip(
        commitments, erased, users, salts, values, strict=True
    ):
        if commitment is None or part is None:
            break
        opened.append(
            Opened(commitment, salt(keys[user], row.event_id), part)
            if gone is None
            else Opened(commitment)
        )
    return opened


def verify_inclusion(proof: InclusionProof, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the proof proves of an event, by the names of the ledger's columns.

    `checkpoint`: a verified one, made when the last of the proof's seals was the newest. Values
    that were erased are left out. Raises NotVerifiedError, and MalformedError.
    """
    if len(proof.parts) not in (1, len(leaves.PARTS)):
        raise MalformedError("The proof has another number of parts.")
    commitments = leaves.Commitments(*(it.commitment for it in proof.parts))
    if any(len(it) != HASH_BYTES for it in commitments if it is not None):
        raise MalformedError("A commitment of the proof is malformed.")
    leaf = leaf_hash(leaves.leaf_data(proof.facts, commitments))
    seal = proof.seal
    if root_of_path(leaf, proof.index, seal.row_count, proof.path) != seal.root:
        raise NotVerifiedError("The event is not in the seal as the proof says.")
    chain, last = proof.chain_before, seal
    for each in (seal, *proof.later_seals):
        if each is not seal and each.number != last.number + 1:
            raise NotVerifiedError("The seals of the proof do not follow each other.")
        chain, last = extend_chain(chain, each), each
    if (last.number, chain) != (checkpoint.number, checkpoint.chain):
        raise NotVerifiedError("The seal of the event is not in the checkpoint.")
    proved = records.decode(leaves.FACTS, proof.facts)
    personal: dict[str, Any] = {}
    for layout, part in zip(leaves.PARTS, proof.parts, strict=False):
        personal |= _opened(layout, part)
    return _with_caller(proved, personal)


def _opened(layout: records.Layout, opened: Opened) -> dict[str, Any]:
    """The values that were committed to, as far as there are any."""
    if opened.salt is None or opened.part is None:
        return {}
    if leaves.commitment(opened.salt, opened.part) != opened.commitment:
        raise NotVerifiedError("The personal values are not those of the event.")
    values = records.decode(layout, opened.part)
    return {name: value for name, value in values.items() if value is not None}


def _with_caller(proved: dict[str, Any], personal: dict[str, Any]) -> dict[str, Any]:
    """With the caller, who may be one of the users; without what only says so."""
    names = {leaves.CALLER_IS_USER: "user_id", leaves.CALLER_IS_OTHER_USER: "other_user_id"}
    caller_is = proved.pop("caller_is")
    if caller_is in names:
        proved["caller"] = personal.get(names[caller_is])
    values = {**proved, **personal}
    return {name: value for name, value in values.items() if value is not None}
