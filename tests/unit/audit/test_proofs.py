"""Proofs and checkpoints, verified by those who have no more than them and a public key."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from unit.audit.rows import LOG_ID, Ledger, sealed_ledger

from coupon_service.audit.checkpoints import (
    Checkpoint,
    NotVerifiedError,
    Signer,
    read_checkpoint,
    verify_checkpoint,
    verify_note,
)
from coupon_service.audit.leaves import row_of
from coupon_service.audit.merkle import inclusion_path
from coupon_service.audit.proofs import InclusionProof, Opened, opened_parts, verify_inclusion
from coupon_service.audit.records import MalformedError
from coupon_service.audit.seals import begin_chain

SECRET = b"a secret of the service"

# The example of https://c2sp.org/signed-note
NOTE = """This is an example message.

\N{EM DASH} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi\
2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
NOTE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"


def checkpoint_of(ledger: Ledger, links: int) -> Checkpoint:
    link = ledger.links[links - 1]
    return Checkpoint(
        LOG_ID, link.seal.number, link.chain, link.seal.last_sequence, link.seal.seal_time
    )


def proof_of(ledger: Ledger, at: int, until: int) -> InclusionProof:
    """That of the row at `at`, for the checkpoint after `until` seals."""
    row = row_of(ledger.rows[at])
    link = next(it for it in ledger.links if it.seal.last_sequence >= row.sequence)
    number = link.seal.number
    leaves = ledger.leaves(link.seal.first_sequence, link.seal.last_sequence)
    index = [sequence for sequence, _ in leaves].index(row.sequence)
    return InclusionProof(
        facts=row.facts,
        parts=opened_parts(row, ledger.keys),
        index=index,
        path=inclusion_path([leaf for _, leaf in leaves], index),
        seal=link.seal,
        chain_before=ledger.links[number - 2].chain if number > 1 else begin_chain(LOG_ID),
        later_seals=[it.seal for it in ledger.links[number:until]],
    )


def test_each_event_is_proved_with_its_values() -> None:
    for seed in range(50):
        ledger = sealed_ledger(Random(seed), rows=23, a_seal=9)
        until = len(ledger.links)
        for at, row in enumerate(ledger.rows):
            proof = proof_of(ledger, at, until)
            stated = {name: value for name, value in row.items() if value is not None}
            assert verify_inclusion(proof, checkpoint_of(ledger, until)) == stated


def test_values_that_were_erased_are_left_out_of_what_is_proved() -> None:
    ledger = sealed_ledger(Random(1))
    at = next(n for n, it in enumerate(ledger.rows) if it["caller"] == it["user_id"])
    proof = proof_of(ledger, at, len(ledger.links))
    erased = [Opened(it.commitment) for it in proof.parts]
    proof = replace(proof, parts=erased)
    proved = verify_inclusion(proof, checkpoint_of(ledger, len(ledger.links)))
    assert proved["event_id"] == ledger.rows[at]["event_id"]
    assert not {"user_id", "order_id", "metadata", "caller"} & set(proved)


def flipped(chance: Random, content: bytes | None) -> bytes:
    assert content
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def test_what_is_not_so_is_not_proved() -> None:
    for seed in range(100):
        chance = Random(seed)
        ledger = sealed_ledger(chance)
        until = len(ledger.links)
        checkpoint = checkpoint_of(ledger, until)
        at = next(n for n, it in enumerate(ledger.rows) if it["other_user_id"])
        proof = proof_of(ledger, at, until)
        parts = [*proof.parts]

        seal = proof.seal
        for wrong in (
            replace(proof, facts=flipped(chance, proof.facts)),
            *(
                replace(proof, parts=[*parts[:at], replace(parts[at], **change), *parts[at + 1 :]])
                for at in range(3)
                for change in (
                    {"part": flipped(chance, parts[at].part)},
                    {"salt": flipped(chance, parts[at].salt)},
                    {"commitment": flipped(chance, parts[at].commitment)},
                )
            ),
            replace(proof, parts=parts[:1]),
            replace(proof, parts=parts[::-1]),
            replace(proof, index=(proof.index + 1) % seal.row_count),
            replace(proof, path=proof.path[:-1]),
            replace(proof, path=[flipped(chance, it) for it in proof.path]),
            replace(proof, chain_before=flipped(chance, proof.chain_before)),
            replace(proof, seal=replace(seal, root=flipped(chance, seal.root))),
            replace(proof, seal=replace(seal, number=seal.number + 1)),
            replace(proof, seal=replace(seal, last_sequence=seal.last_sequence + 1)),
            replace(proof, later_seals=[*proof.later_seals, seal]),
            replace(proof, later_seals=proof.later_seals[1:]),
        ):
            with pytest.raises(NotVerifiedError):
                verify_inclusion(wrong, checkpoint)
        with pytest.raises(NotVerifiedError):
            verify_inclusion(proof, replace(checkpoint, chain=flipped(chance, checkpoint.chain)))


def test_checkpoint_comes_back_for_who_has_the_key() -> None:
    signer = Signer(SECRET)
    checkpoint = checkpoint_of(sealed_ledger(Random(1)), 2)
    note = signer.sign(checkpoint)
    assert verify_checkpoint(note, signer.public_key) == read_checkpoint(note) == checkpoint
    assert Signer(SECRET).public_key == signer.public_key


def test_checkpoint_of_another_key_is_refused() -> None:
    note = Signer(SECRET).sign(checkpoint_of(sealed_ledger(Random(1)), 2))
    with pytest.raises(NotVerifiedError):
        verify_checkpoint(note, Signer(b"another").public_key)


def test_no_character_of_a_checkpoint_can_be_changed() -> None:
    signer = Signer(SECRET)
    note = signer.sign(checkpoint_of(sealed_ledger(Random(1)), 2))
    for at, character in enumerate(note):
        for change in ("", "x", chr(ord(character) ^ 1)):
            changed = note[:at] + change + note[at + 1 :]
            if changed.strip() == note.strip():
                continue
            with pytest.raises((NotVerifiedError, MalformedError)):
                verify_checkpoint(changed, signer.public_key)


def test_notes_are_those_that_others_sign() -> None:
    assert verify_note(NOTE, NOTE_KEY) == "This is an example message.\n"
    with pytest.raises(NotVerifiedError):
        verify_note(NOTE.replace("example message", "Example message"), NOTE_KEY)
    with pytest.raises(MalformedError):
        verify_checkpoint(NOTE, NOTE_KEY)


@pytest.mark.parametrize(
    "key", ["", "name", "name+00000000+AA==", NOTE_KEY[:-1], NOTE_KEY.replace("530d", "530e")]
)
def test_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(MalformedError):
        verify_note(NOTE, key)


@pytest.mark.parametrize("note", ["", "a text", "a text\n\n\N{EM DASH} name", "a\n\nb c d e"])
def test_malformed_note_is_refused(note: str) -> None:
    with pytest.raises((MalformedError, NotVerifiedError)):
        verify_note(note, NOTE_KEY)
