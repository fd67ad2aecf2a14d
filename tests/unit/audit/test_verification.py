"""Whatever is changed in a sealed ledger is found: any byte, row, pair or seal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from unit.audit.rows import LOG_ID, NOON, Ledger, columns, sealed_ledger, uuid

from coupon_service.audit.leaves import leaf_of, row_of
from coupon_service.audit.records import MalformedError
from coupon_service.audit.seals import (
    Link,
    Position,
    begin_chain,
    pack_leaves,
    unpack_leaves,
)
from coupon_service.audit.verification import NO_LEAF, Fault, Finding, Verification

SEEDS = range(100)


def findings(ledger: Ledger, head: Position) -> list[Finding]:
    verification = Verification(Position(0, 0, begin_chain(LOG_ID)))
    found: list[Finding] = []
    for link in ledger.links:
        leaves: list[tuple[int, bytes]] = []
        for row in ledger.rows:
            if link.seal.first_sequence <= row["sequence"] <= link.seal.last_sequence:
                try:
                    leaf = leaf_of(row_of(row), ledger.keys)
                except KeyError:
                    leaf = NO_LEAF
                leaves.append((row["sequence"], leaf))
        found += verification.compare(link, leaves)
    found += verification.end(head)
    return found


def changed_value(chance: Random, value: Any) -> Any:
    """The value with one bit changed."""
    if value is None:
        return None
    if isinstance(value, int):
        return value ^ (1 << chance.randrange(7))
    if isinstance(value, UUID):
        return UUID(int=value.int ^ (1 << chance.randrange(128)))
    if isinstance(value, str):
        at = chance.randrange(len(value)) if value else 0
        return value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if value else "x"
    return value + timedelta(microseconds=1)


def changed_bytes(chance: Random, content: bytes) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def test_nothing_is_found_in_an_untouched_ledger() -> None:
    for seed in range(20):
        ledger = sealed_ledger(Random(seed))
        assert findings(ledger, ledger.position()) == []


def test_any_changed_value_of_a_row_is_found_and_named() -> None:
    tried = 0
    for seed in SEEDS:
        chance = Random(seed)
        ledger = sealed_ledger(chance, rows=20, a_seal=7)
        head = ledger.position()
        at = chance.randrange(len(ledger.rows))
        row = ledger.rows[at]
        for name, value in row.items():
            change = changed_value(chance, value)
            if change == value or name == "sequence":
                continue
            ledger.rows[at] = row | {name: change}
            found = findings(ledger, head)
            fault = Fault.ROW_CHANGED
            if {"user_id": change, "other_user_id": change}.get(name, "") not in ledger.keys:
                fault = Fault.KEY_MISSING
            assert [(it.fault, it.sequence) for it in found] == [(fault, row["sequence"])], name
            tried += 1
        ledger.rows[at] = row
    assert tried > 2_000


def test_a_row_that_is_missing_inserted_or_elsewhere_is_found() -> None:
    for seed in SEEDS:
        chance = Random(seed)
        ledger = sealed_ledger(chance, rows=24, a_seal=7)
        head, rows = ledger.position(), ledger.rows
        at = chance.randrange(len(rows))
        ledger.rows = rows[:at] + rows[at + 1 :]
        assert [(it.fault, it.sequence) for it in findings(ledger, head)] == [
            (Fault.ROW_MISSING, rows[at]["sequence"])
        ]
        used = {it["sequence"] for it in rows}
        free = chance.choice([it for it in range(1, head.last_sequence) if it not in used])
        for number in (free, rows[at]["sequence"]):  # the second time by the number of another
            inserted = columns(chance, number)
            ledger.rows = sorted([*rows, inserted], key=lambda it: it["sequence"])
            assert [(it.fault, it.sequence) for it in findings(ledger, head)] == [
                (Fault.ROW_INSERTED, number)
            ]
        one, other = sorted(chance.sample(range(len(rows)), 2))
        ledger.rows = [*rows]
        ledger.rows[one] = rows[other] | {"sequence": rows[one]["sequence"]}
        ledger.rows[other] = rows[one] | {"sequence": rows[other]["sequence"]}
        found = findings(ledger, head)
        assert found[0] == replace(
            found[0], fault=Fault.ROW_CHANGED, sequence=rows[one]["sequence"]
        )


def test_rows_that_are_archived_are_not_missing_but_others_are() -> None:
    ledger = sealed_ledger(Random(4), rows=20, a_seal=20)
    (link,) = ledger.links
    leaves = unpack_leaves(link.seal.first_sequence, link.leaves)
    archived = {leaves[3][0], leaves[7][0]}
    here = [it for it in leaves if it[0] not in archived]

    def found(rows: Sequence[tuple[int, bytes]]) -> list[Finding]:
        return list(Verification(Position(0, 0, begin_chain(LOG_ID))).compare(link, rows, archived))

    assert found(here) == found(leaves) == []
    missing = here[0][0]
    assert found(here[1:]) == [Finding(Fault.ROW_MISSING, 1, missing)]
    changed = [(here[-1][0], bytes(32))]
    assert found([*here[:-1], *changed]) == [Finding(Fault.ROW_CHANGED, 1, changed[0][0])]


def test_a_changed_seal_is_found_and_named() -> None:
    for seed in SEEDS:
        chance = Random(seed)
        ledger = sealed_ledger(chance, rows=24, a_seal=7)
        head, links = ledger.position(), ledger.links
        at = chance.randrange(len(links))
        link, seal = links[at], links[at].seal
        changes: list[Link] = [
            replace(link, chain=changed_bytes(chance, link.chain)),
            replace(link, leaves=changed_bytes(chance, link.leaves)),
            replace(link, leaves=link.leaves + b"\0"),
            replace(link, leaves=link.leaves[: -1 - chance.randrange(32)]),
            replace(link, seal=replace(seal, root=changed_bytes(chance, seal.root))),
            replace(link, seal=replace(seal, root=seal.root + b"\0")),
            replace(link, seal=replace(seal, leaves_hash=changed_bytes(chance, seal.leaves_hash))),
            replace(link, seal=replace(seal, seal_time=NOON + timedelta(microseconds=1))),
            *(
                replace(link, seal=replace(seal, **{name: getattr(seal, name) + by}))
                for name in ("first_sequence", "last_sequence", "row_count", "version")
                for by in (-1, 1, -(2**40), 2**70)
            ),
        ]
        for change in changes:
            ledger.links = [*links]
            ledger.links[at] = change
            assert Finding(Fault.SEAL_CHANGED, seal.number) in findings(ledger, head)


def test_a_dropped_or_reordered_seal_is_found() -> None:
    for seed in SEEDS:
        chance = Random(seed)
        ledger = sealed_ledger(chance, rows=24, a_seal=7)
        head, links = ledger.position(), ledger.links
        at = chance.randrange(len(links))
        ledger.links = links[:at] + links[at + 1 :]
        assert findings(ledger, head)[0] == Finding(Fault.SEAL_MISSING, at + 1)
        one, other = sorted(chance.sample(range(len(links)), 2))
        ledger.links = [*links]
        ledger.links[one] = replace(links[other], seal=replace(links[other].seal, number=one + 1))
        ledger.links[other] = replace(links[one], seal=replace(links[one].seal, number=other + 1))
        assert findings(ledger, head)[0] == Finding(Fault.SEAL_CHANGED, one + 1)


def test_a_history_that_was_rewritten_as_a_whole_has_another_chain() -> None:
    one, other = sealed_ledger(Random(1)), sealed_ledger(Random(1))
    other.rows[3]["discount_minor"] = 1
    ends = [it.seal.last_sequence for it in one.links]
    other.links = []
    for end in ends:
        other.seal(end)
    assert findings(other, other.position()) == []
    assert other.position().chain != one.position().chain


def test_packed_leaves_come_back() -> None:
    for seed in range(50):
        chance = Random(seed)
        first = chance.randrange(1, 2**40)
        sequence, leaves = first - 1, list[tuple[int, bytes]]()
        for _ in range(50):
            sequence += chance.choice([1, 1, 128, 129, 2**14, 2**35, chance.randrange(1, 2**40)])
            leaves.append((sequence, chance.randbytes(32)))
        assert unpack_leaves(first, pack_leaves(first, leaves)) == leaves


@pytest.mark.parametrize("packed", [b"\x80", b"\xff" * 12 + b"\0" * 33, b"\0" + b"x" * 31])
def test_malformed_leaves_are_refused(packed: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack_leaves(1, packed)


def test_ids_of_logs_begin_different_chains() -> None:
    assert begin_chain(LOG_ID) != begin_chain(uuid(Random(1)))
