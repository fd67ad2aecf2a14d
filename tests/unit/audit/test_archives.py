"""An archive proves itself without the database, and says nothing of users without their keys."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from random import Random
from typing import Any
from uuid import UUID

import pytest

from coupon_service.audit import archive_files as files
from coupon_service.audit.archive_files import (
    ArchiveError,
    ArchiveWriter,
    Entry,
    Header,
    Segment,
    Trailer,
    read_sections,
)
from coupon_service.audit.archive_proofs import inclusion_proof, verify_against, verify_archive
from coupon_service.audit.balances import BookBalance, CodeBalance
from coupon_service.audit.checkpoints import Checkpoint
from coupon_service.audit.leaves import FACTS, USER_PART, commitments_of, row_of
from coupon_service.audit.merkle import inclusion_path, tree_hash
from coupon_service.audit.partial_trees import missing_parts, parts_of, path_in
from coupon_service.audit.proofs import verify_inclusion
from coupon_service.audit.records import MalformedError, decode, encode
from coupon_service.audit.sealed_parts import PARTS, open_part, pair_key, seal_part
from coupon_service.audit.seals import Link, Seal, unpack_leaves

from .rows import LOG_ID, NOON, Ledger, columns, sealed_ledger, uuid

BOOK = UUID(int=7)
HEADER = Header(LOG_ID, 3, BOOK, "bakery", "spring", NOON)


def ledger_of_books(seed: int = 1) -> Ledger:
    """Two of three of its rows are about codes of BOOK."""
    chance = Random(seed)
    made = sealed_ledger(chance)
    ledger = Ledger([], made.keys)
    ends = [it.seal.last_sequence for it in made.links]
    redeemed: list[dict[str, Any]] = []
    for row in made.rows:
        mine = chance.random() < 0.66
        changed = {"code": f"C{chance.randrange(4)}", "type": chance.choice([10, 11, 12, 16, 16])}
        if mine and redeemed and chance.random() < 0.3:
            undone = redeemed.pop()
            changed = {"code": undone["code"], "type": 17, "redemption_id": undone["event_id"]}
        changed |= {"book_id": BOOK if mine else uuid(chance)}
        ledger.rows.append({**row, **changed})
        if mine and changed["type"] == 16:
            redeemed.append(ledger.rows[-1])
    for end in ends:
        ledger.seal(end)
    return ledger


def segments_of(ledger: Ledger) -> list[tuple[Link, list[Entry]]]:
    found: list[tuple[Link, list[Entry]]] = []
    for link in ledger.links:
        first = link.seal.first_sequence
        indexes = {it: at for at, (it, _) in enumerate(unpack_leaves(first, link.leaves))}
        mine = [it for it in ledger.rows if it["book_id"] == BOOK and it["sequence"] in indexes]
        found.append((link, [entry_of(it, indexes[it["sequence"]], ledger.keys) for it in mine]))
    return found


def entry_of(row: dict[str, Any], index: int, keys: dict[str, bytes]) -> Entry:
    made = row_of(row)
    user, other = keys[made.user_id], keys[made.other_user_id]
    sealed = [
        seal_part(key, which, made.event_id, part)
        for which, part, key in zip(
            PARTS,
            (made.user, made.other, made.pair),
            (user, other, pair_key(user, other)),
            strict=True,
        )
        if part is not None
    ]
    return Entry(index, made.facts, commitments_of(made, keys), sealed, row["order_id"] is not None)


def archive_of(
    ledger: Ledger,
    segments: Sequence[tuple[Link, Sequence[Entry]]] | None = None,
    links: Sequence[Seal] | None = None,
) -> bytes:
    file = BytesIO()
    writer = ArchiveWriter(file, HEADER)
    for link, entries in segments_of(ledger) if segments is None else segments:
        sealed = [leaf for _, leaf in unpack_leaves(link.seal.first_sequence, link.leaves)]
        writer.add_segment(link.seal.number, sealed, entries)
    before = Ledger([], {}).position().chain
    writer.end(before, [it.seal for it in ledger.links] if links is None else links)
    return file.getvalue()


def checkpoint_of(ledger: Ledger) -> Checkpoint:
    position = ledger.position()
    return Checkpoint(LOG_ID, position.number, position.chain, position.last_sequence, NOON)


def test_an_archive_has_the_events_of_its_book_and_proves_them() -> None:
    ledger = ledger_of_books()
    content = archive_of(ledger)
    verified = verify_archive(BytesIO(content))
    assert verified.header == HEADER
    assert verified.digest == sha256(content).digest()
    mine = [it for it in ledger.rows if it["book_id"] == BOOK]
    found = [it for of_seal in verified.sequences.values() for it in of_seal]
    assert found == [it["sequence"] for it in mine]
    assert verified.trailer.row_count == len(mine) > 20
    verify_against(verified, BytesIO(content), checkpoint_of(ledger))


def test_an_archive_says_what_its_events_come_to() -> None:
    chance = Random(2)
    steps: list[dict[str, Any]] = [
        {"type": 10, "code": "A"},
        {"type": 16, "code": "A", "user_code_redemptions": 1, "discount_minor": 5},
        {"type": 16, "code": "B", "user_code_redemptions": None, "discount_minor": 7},
        {"type": 22, "code": "B", "redemption_id": 2, "discount_minor": 4},
        {"type": 16, "code": "B", "user_code_redemptions": 1, "discount_minor": 9},
        {"type": 17, "code": "A", "redemption_id": 1, "discount_minor": 5},
        {"type": 21, "code": "A"},
        {"type": 10, "code": "C"},
    ]
    rows = [{**columns(chance, at + 1), "book_id": BOOK, **it} for at, it in enumerate(steps)]
    for row in rows:
        if row["type"] in (17, 22):
            row["redemption_id"] = rows[int(row["redemption_id"])]["event_id"]
        row["order_id"] = "order-1" if row["code"] == "B" else None
    made = sealed_ledger(chance)
    ledger = Ledger(rows, made.keys)
    ledger.seal(len(rows))
    verified = verify_archive(BytesIO(archive_of(ledger)))
    assert verified.trailer.balance == BookBalance(
        redemptions=2,
        rollbacks=1,
        assignments=1,
        discount_minor=13,
        on_orders=2,
        order_discount_minor=13,
    )
    assert verified.balances.of_codes == {"B": CodeBalance(2, 0, 1), "C": CodeBalance(0, 1, 0)}


def test_each_byte_that_is_changed_is_found() -> None:
    chance = Random(3)
    content = archive_of(ledger_of_books())
    for position in chance.sample(range(len(content)), 1_000):
        changed = bytearray(content)
        changed[position] ^= 1 << chance.randrange(8)
        with pytest.raises(ArchiveError):
            verify_archive(BytesIO(bytes(changed)))


def test_an_archive_that_was_cut_off_or_has_more_is_found() -> None:
    content = archive_of(ledger_of_books())
    for changed in (b"", content[:10], content[:300], content[:-1], content[:-32], content + b"x"):
        with pytest.raises(ArchiveError):
            verify_archive(BytesIO(changed))


def changed_fact(entry: Entry, name: str, value: Any) -> Entry:
    values = {**entry.values, name: value}
    return replace(entry, facts=encode(FACTS, [values[it] for it, _ in FACTS]))


Forge = Callable[[list[Entry]], list[Entry]]
FORGERIES: dict[str, Forge] = {
    "another amount": lambda its: [changed_fact(its[0], "discount_minor", 1), *its[1:]],
    "another code": lambda its: [changed_fact(its[0], "code", "XX"), *its[1:]],
    "another commitment": lambda its: [
        replace(its[0], commitments=its[0].commitments._replace(user=bytes(32))),
        *its[1:],
    ],
    "an event is missing": lambda its: its[1:],
    "an event is there twice": lambda its: [its[0], *its],
    "events are swapped": lambda its: [its[1], its[0], *its[2:]],
    "places are swapped": lambda its: [
        replace(its[0], index=its[1].index),
        replace(its[1], index=its[0].index),
        *its[2:],
    ],
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_events_that_were_forged_are_found_although_the_digest_is_right(forge: Forge) -> None:
    ledger = ledger_of_books()
    segments = segments_of(ledger)
    link, entries = segments[1]
    forged = rewritten(archive_of(ledger), link.seal.number, forge(entries))
    with pytest.raises(ArchiveError):
        verify_archive(BytesIO(forged))


def rewritten(content: bytes, number: int, entries: list[Entry]) -> bytes:
    """The archive with other entries in a segment, everything else as it was, and a new digest."""
    made = b""
    for section, raw in zip(read_sections(BytesIO(content)), raw_sections(content), strict=False):
        if isinstance(section, Segment) and section.seal_number == number:
            head = files.SEGMENT_HEAD.pack(number, section.size, len(entries), len(section.missing))
            parts = [part for it in entries for part in files.entry_parts(it)]
            packed = zlib.compress(b"".join([head, *parts, *section.missing]))
            raw = files.SECTION.pack(b"S", len(packed)) + packed  # noqa: PLW2901
        made += raw
    made = files.MAGIC + made
    return made + sha256(made).digest()


def raw_sections(content: bytes) -> list[bytes]:
    position, found = len(files.MAGIC), list[bytes]()
    while position < len(content) - 32:
        _, length = files.SECTION.unpack_from(content, position)
        end = position + files.SECTION.size + length
        found.append(content[position:end])
        position = end
    return found


def test_seals_that_were_forged_are_found() -> None:
    ledger = ledger_of_books()
    seals = [it.seal for it in ledger.links]
    checkpoint = checkpoint_of(ledger)
    for forged in (
        [*seals[:1], *seals[2:]],
        seals[:1],
        [*seals[:2], replace(seals[2], root=bytes(32)), *seals[3:]],
    ):
        with pytest.raises(ArchiveError):
            verify_archive(BytesIO(archive_of(ledger, links=forged)))
    other = [*seals[:-1], replace(seals[-1], leaves_hash=bytes(32))]
    content = archive_of(ledger, links=other)
    verified = verify_archive(BytesIO(content))
    with pytest.raises(ArchiveError, match="another history"):
        verify_against(verified, BytesIO(content), checkpoint)
    with pytest.raises(ArchiveError, match="not one of the archive's"):
        verify_against(verified, BytesIO(content), replace(checkpoint, number=99))
    with pytest.raises(ArchiveError, match="another ledger"):
        verify_against(verified, BytesIO(content), replace(checkpoint, log_id=BOOK))


def test_each_event_of_an_archive_has_an_inclusion_proof() -> None:
    ledger = ledger_of_books()
    file = BytesIO(archive_of(ledger))
    for row in ledger.rows:
        proof = inclusion_proof(file, row["event_id"])
        if row["book_id"] != BOOK:
            assert proof is None
            continue
        assert proof is not None
        proved = verify_inclusion(proof, checkpoint_of(ledger))
        assert (proved["sequence"], proved["code"]) == (row["sequence"], row["code"])


def test_personal_values_are_read_with_the_key_of_their_user_alone() -> None:
    ledger = ledger_of_books()
    content = archive_of(ledger)
    rows = {it["sequence"]: it for it in ledger.rows}
    for section in read_sections(BytesIO(content)):
        for entry in section.entries if isinstance(section, Segment) else ():
            row = rows[entry.values["sequence"]]
            made = row_of(row)
            key = ledger.keys[made.user_id]
            part = open_part(key, PARTS[0], made.event_id, entry.sealed[0])
            assert decode(USER_PART, part)["user_id"] == row["user_id"]
            with pytest.raises(MalformedError):
                open_part(bytes(32), PARTS[0], made.event_id, entry.sealed[0])
    plain = b"".join(zlib.decompress(it[5:]) for it in raw_sections(content))
    assert b"grpc-python" not in plain
    assert b"order-1" not in plain
    assert b"10.0.0.1" not in plain
    assert "Zoë".encode() not in plain


def test_any_leaves_of_a_tree_lead_to_its_root_and_have_their_paths() -> None:
    chance = Random(5)
    for size in range(1, 40):
        leaves = [chance.randbytes(32) for _ in range(size)]
        for _ in range(8):
            indexes = sorted(chance.sample(range(size), chance.randint(1, size)))
            missing = missing_parts(leaves, indexes)
            known = {it: leaves[it] for it in indexes}
            parts = parts_of(size, known, missing)
            assert parts[0, size] == tree_hash(leaves)
            assert [path_in(parts, size, it) for it in indexes] == [
                inclusion_path(leaves, it) for it in indexes
            ]
            with pytest.raises(MalformedError):
                parts_of(size, known, [*missing, bytes(32)])
            if missing:
                with pytest.raises(MalformedError):
                    parts_of(size, known, missing[1:])
    with pytest.raises(MalformedError):
        parts_of(3, {3: bytes(32)}, [])


def test_the_trailer_says_how_much_there_is() -> None:
    ledger = ledger_of_books()
    *_, trailer, _ = read_sections(BytesIO(archive_of(ledger)))
    assert isinstance(trailer, Trailer)
    mine = [it["sequence"] for it in ledger.rows if it["book_id"] == BOOK]
    stated = trailer.row_count, trailer.first_sequence, trailer.last_sequence
    assert stated == (len(mine), mine[0], mine[-1])
