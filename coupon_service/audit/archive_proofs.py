"""Archives are verified without the database: each event is one that was sealed, in one chain.

Whoever has a checkpoint of that chain knows that nothing was changed, in the archive or before it
was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any
from uuid import UUID

from coupon_service.audit.archive_files import (
    ArchiveError,
    Entry,
    Header,
    Segment,
    Trailer,
    read_sections,
)
from coupon_service.audit.balances import Balances
from coupon_service.audit.checkpoints import Checkpoint
from coupon_service.audit.partial_trees import parts_of, path_in
from coupon_service.audit.proofs import InclusionProof, Opened, verify_inclusion
from coupon_service.audit.records import MalformedError
from coupon_service.audit.seals import Seal, extend_chain


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found in an archive that proves itself. `digest`: the SHA-256 of the file.

    `sequences`: of the events, by the numbers of their seals.
    """

    header: Header
    trailer: Trailer
    digest: bytes
    balances: Balances
    sequences: Mapping[int, Sequence[int]]


@dataclass(slots=True)
class _Roots:
    """Of the seals that an archive has events of: size and root, by number."""

    found: dict[int, tuple[int, bytes]] = field(default_factory=dict[int, tuple[int, bytes]])
    ranges: dict[int, Sequence[int]] = field(default_factory=dict[int, Sequence[int]])

    def add(self, segment: Segment, facts: Sequence[Mapping[str, Any]]) -> None:
        known = {it.index: it.leaf for it in segment.entries}
        sequences = [it["sequence"] for it in facts]
        if len(known) != len(sequences) or segment.seal_number in self.found:
            raise MalformedError("An event is there twice.")
        parts = parts_of(segment.size, known, segment.missing)
        self.found[segment.seal_number] = segment.size, parts[0, segment.size]
        self.ranges[segment.seal_number] = sequences


def verify_archive(file: IO[bytes], progress: Callable[[int], None] = lambda _: None) -> Verified:
    """Reads a whole archive, and makes sure that its events are those that were sealed.

    `progress`: is told how many events were verified. Raises ArchiveError, which says what is wrong
    where.
    """
    header: Header | None = None
    trailer: Trailer | None = None
    links: list[Seal] = []
    roots, balances = _Roots(), Balances()
    digest, last_sequence, row_count = b"", 0, 0
    for section in read_sections(file):
        match section:
            case bytes():
                digest = section
            case Header():
                header = section
            case Segment():
                facts = _facts_of(section, header, last_sequence)
                _add_up(section, facts, roots, balances)
                last_sequence = facts[-1]["sequence"]
                row_count += len(facts)
                progress(row_count)
            case Trailer():
                trailer = section
            case _:
                links += section
    if header is None or trailer is None:
        raise ArchiveError("The archive has no header.")
    _verify_chain(roots, links, trailer)
    stated = trailer.row_count, trailer.balance, trailer.codes_digest
    if stated != (row_count, balances.book, balances.digest()):
        raise ArchiveError("The events of the archive do not come to what it says.")
    return Verified(header, trailer, digest, balances, roots.ranges)


def _facts_of(
    segment: Segment, header: Header | None, last_sequence: int
) -> Sequence[Mapping[str, Any]]:
    if header is None or not segment.entries:
        raise ArchiveError("The archive has no header, or a segment without events.")
    facts: list[Mapping[str, Any]] = []
    for entry in segment.entries:
        try:
            values = entry.values
        except MalformedError as error:
            raise ArchiveError(f"An event in seal {segment.seal_number} is malformed.") from error
        if values["book_id"] != header.book_id or values["code"] is None:
            raise ArchiveError(f"Event {values['sequence']} is not one of the archive's book.")
        if values["sequence"] <= last_sequence:
            raise ArchiveError(f"Event {values['sequence']} is not in the order of numbers.")
        last_sequence = values["sequence"]
        facts.append(values)
    return facts


def _add_up(
    segment: Segment, facts: Sequence[Mapping[str, Any]], roots: _Roots, balances: Balances
) -> None:
    try:
        for entry, values in zip(segment.entries, facts, strict=True):
            balances.add(values, has_order=entry.has_order)
        roots.add(segment, facts)
    except ValueError as error:
        raise ArchiveError(f"Events of seal {segment.seal_number}: {error}") from error


def _verify_chain(roots: _Roots, links: Sequence[Seal], trailer: Trailer) -> None:
    """That the segments are what their seals say, and the seals one chain."""
    chain, number = trailer.chain_before, 0
    unseen = dict(roots.found)
    for seal in links:
        if number and seal.number != number + 1:
            raise ArchiveError(f"Seal {number + 1} is missing in the archive.")
        number = seal.number
        chain = extend_chain(chain, seal)
        found = unseen.pop(number, None)
        if found is not None and found != (seal.row_count, seal.root):
            raise ArchiveError(
                f"The events of seal {number}, numbers {seal.first_sequence} to"
                f" {seal.last_sequence}, are not those that were sealed."
            )
    if unseen:
        raise ArchiveError(f"Seal {min(unseen)} is missing in the archive.")
    if (number, chain) != (trailer.last_seal, trailer.chain):
        raise ArchiveError("The seals of the archive are not those of its chain.")


def verify_against(verified: Verified, file: IO[bytes], checkpoint: Checkpoint) -> None:
    """Makes sure that the chain of a verified archive is that of a checkpoint.

    `checkpoint`: a verified one, of one of the seals of the archive. Raises ArchiveError.
    """
    if checkpoint.log_id != verified.header.log_id:
        raise ArchiveError("The checkpoint is of another ledger.")
    chain = verified.trailer.chain_before
    for seal in links_of(file):
        chain = extend_chain(chain, seal)
        if seal.number == checkpoint.number:
            if chain != checkpoint.chain:
                raise ArchiveError("The archive is of another history than the checkpoint.")
            return
    raise ArchiveError(
        f"The checkpoint is of seal {checkpoint.number}, which is not one of the archive's:"
        f" the last of those is {verified.trailer.last_seal}."
    )


def links_of(file: IO[bytes]) -> Iterator[Seal]:
    """The seals of an archive, from its beginning. Raises ArchiveError."""
    file.seek(0)
    for section in read_sections(file):
        if not isinstance(section, (bytes, Header, Segment, Trailer)):
            yield from section


def inclusion_proof(file: IO[bytes], event_id: UUID) -> InclusionProof | None:
    """The proof, without personal values, that an event of the archive was sealed; None of one that
    it does not have. It is verified by a checkpoint of the archive's last seal.

    Raises ArchiveError.
    """
    file.seek(0)
    found: tuple[Segment, Entry] | None = None
    later: list[Seal] = []
    trailer: Trailer | None = None
    for section in read_sections(file):
        match section:
            case Segment():
                for entry in section.entries:
                    if entry.values["event_id"] == event_id:
                        found = section, entry
            case Trailer():
                trailer = section
            case bytes() | Header():
                pass
            case _:
                later += section
    if found is None or trailer is None:
        return None
    segment, entry = found
    parts = parts_of(segment.size, {it.index: it.leaf for it in segment.entries}, segment.missing)
    chain = trailer.chain_before
    while later and later[0].number != segment.seal_number:
        chain = extend_chain(chain, later.pop(0))
    if not later:
        raise ArchiveError(f"Seal {segment.seal_number} is missing in the archive.")
    return InclusionProof(
        facts=entry.facts,
        parts=[Opened(it) for it in entry.commitments if it is not None],
        index=entry.index,
        path=path_in(parts, segment.size, entry.index),
        seal=later[0],
        chain_before=chain,
        later_seals=later[1:],
    )


def proved_event(verified: Verified, file: IO[bytes], event_id: UUID) -> dict[str, Any] | None:
    """The facts of an event of a verified archive, proved by its chain; None where it has no such
    event. Raises ArchiveError and NotVerifiedError."""
    proof = inclusion_proof(file, event_id)
    if proof is None:
        return None
    trailer, header = verified.trailer, verified.header
    newest = (proof.seal, *proof.later_seals)[-1]
    return verify_inclusion(
        proof,
        Checkpoint(
            header.log_id,
            trailer.last_seal,
            trailer.chain,
            newest.last_sequence,
            newest.seal_time,
        ),
    )
