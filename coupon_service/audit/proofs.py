"""Proofs that an event is in the ledger as it was sealed, which need no database to verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coupon_service.audit import leaves, records
from coupon_service.audit.checkpoints import Checkpoint, NotVerifiedError
from coupon_service.audit.merkle import leaf_hash, root_of_path
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

    `index`: of its leaf among those of the seal. `chain_before`: the value of the chain before the
    seal. `later_seals`: those between it and a later checkpoint.
    """

    facts: bytes
    user: Opened
    other: Opened | None
    index: int
    path: Sequence[bytes]
    seal: Seal
    chain_before: bytes
    later_seals: Sequence[Seal] = ()


def verify_inclusion(proof: InclusionProof, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the proof proves of an event, by the names of the ledger's columns.

    `checkpoint`: a verified one, made when the last of the proof's seals was the newest. Values
    that were erased are left out. Raises NotVerifiedError, and MalformedError.
    """
    leaf = leaf_hash(
        leaves.leaf_data(
            proof.facts,
            proof.user.commitment,
            proof.other.commitment if proof.other is not None else None,
        )
    )
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
    personal = {
        **_opened(leaves.USER_PART, proof.user),
        **(_opened(leaves.OTHER_PART, proof.other) if proof.other is not None else {}),
    }
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
