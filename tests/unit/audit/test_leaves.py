"""Leaves: each value of a row counts, and what is erased leaves the leaf as it was."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from unit.audit.rows import NOON, columns, uuid

from coupon_service.audit.leaves import (
    FACTS,
    OTHER_PART,
    PARTS,
    USER_PART,
    Commitments,
    commitments_of,
    erased,
    leaf_of,
    pair_salt_of,
    row_of,
    salt_of,
    unpacked,
)
from coupon_service.audit.records import MalformedError, decode

KEYS = {"ann": b"a" * 32, "bob": b"b" * 32, "carl": b"c" * 32, "Zoë": b"z" * 32, "": b"n" * 32}

OTHER_VALUES: dict[type, Any] = {int: 7_777, str: "changed", UUID: UUID(int=7)}


def full_row(**changes: Any) -> dict[str, Any]:
    """A row with a value in each column."""
    chance = Random(1)
    row = columns(chance, 5)
    filled: dict[str, Any] = {
        **row,
        "user_id": "ann",
        "other_user_id": "bob",
        "order_user_id": "ann",
        "caller": "shop",
    }
    for name, value in filled.items():
        if value is None:
            filled[name] = (
                NOON
                if name.endswith("_time")
                else uuid(chance)
                if name in ("redemption_id", "lock_id")
                else "text"
                if name in ("code", "order_id", "currency_code", "benefit", "metadata")
                else 1
            )
    return filled | changes


def changed(value: Any) -> Any:
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, int):
        return value ^ 1
    if isinstance(value, UUID):
        return UUID(int=value.int ^ 1)
    return value + timedelta(microseconds=1)


COLUMNS = sorted(full_row())


@pytest.mark.parametrize("caller", ["shop", "ann", "bob"])
@pytest.mark.parametrize("name", COLUMNS)
def test_each_column_counts(name: str, caller: str) -> None:
    row = full_row(caller=caller)
    keys = KEYS | {"annx": KEYS["ann"], "bobx": KEYS["bob"]}
    leaf = leaf_of(row_of(row), keys)
    assert leaf_of(row_of(row | {name: changed(row[name])}), keys) != leaf
    if name not in ("sequence", "event_id", "caller"):
        assert leaf_of(row_of(row | {name: None}), keys) != leaf


def test_columns_are_those_of_the_parts() -> None:
    parts = {name for part in (FACTS, *PARTS) for name, _ in part}
    assert parts == {*COLUMNS, "caller_is"}


def test_facts_tell_nothing_of_users() -> None:
    for caller in ("shop", "ann", "bob"):
        facts = decode(FACTS, row_of(full_row(caller=caller)).facts)
        assert not {"ann", "bob"} & set(map(str, facts.values()))


def test_the_line_of_a_caller_is_in_the_part_of_that_user() -> None:
    mine = row_of(full_row(caller="bob"))
    assert decode(USER_PART, mine.user)["peer"] is None
    assert mine.other is not None
    assert decode(OTHER_PART, mine.other)["peer"] == "10.0.0.1"
    other = row_of(full_row(caller="ann"))
    assert other.other is not None
    assert decode(USER_PART, other.user)["peer"] == "10.0.0.1"
    assert decode(OTHER_PART, other.other)["peer"] is None


def test_the_same_values_of_two_events_have_different_commitments() -> None:
    one, other = full_row(), full_row(event_id=UUID(int=3))
    assert commitments_of(row_of(one), KEYS)[0] != commitments_of(row_of(other), KEYS)[0]


def erased_columns(row: dict[str, Any], gone: dict[str, str]) -> dict[str, Any]:
    """What becomes of a row when these users are erased, by what stands for them."""
    is_user, is_other = row["user_id"] in gone, row["other_user_id"] in gone
    names = ("user_id", "other_user_id", "order_user_id", "caller")
    blank = row | {name: gone.get(row[name], row[name]) for name in names}
    if is_user:
        blank |= {"order_id": None, "metadata": None}
    if is_user or (is_other and row["other_user_id"]):
        blank["fingerprint"] = 0
    is_others = row["caller"] == row["other_user_id"] != row["user_id"]
    if is_other if is_others else is_user:
        blank |= {"peer": "", "user_agent": ""}
    return blank


def test_erased_row_has_the_leaf_that_it_had() -> None:
    both = set[tuple[bool, bool]]()
    for seed in range(300):
        chance = Random(seed)
        row = columns(chance, 5)
        keys = dict(KEYS)
        leaf = leaf_of(row_of(row), keys)
        commitments = None
        erasures = [("user_id", "erased-1"), ("other_user_id", "erased-2")]
        for name, pseudonym in chance.sample(erasures, chance.randint(1, 2)):
            user = row[name]
            if user is None:
                continue
            is_user = name == "user_id"
            now = row_of(row, commitments)
            commitments = erased(now, keys, user=is_user, other=not is_user)
            row = erased_columns(row, {user: pseudonym})
            del keys[user]
            assert leaf_of(row_of(row, commitments), keys) == leaf
            kept = unpacked(commitments)
            both.add((kept.user is not None, kept.other is not None))
    assert both == {(True, False), (False, True), (True, True)}


def test_what_is_not_erased_of_a_row_still_counts() -> None:
    row = full_row()
    leaf = leaf_of(row_of(row), KEYS)
    commitments = erased(row_of(row), KEYS, user=False, other=True)
    gone = erased_columns(row, {"bob": "erased-2"})
    assert leaf_of(row_of(gone, commitments), KEYS) == leaf
    assert leaf_of(row_of(gone | {"order_id": "order-2"}, commitments), KEYS) != leaf


def test_a_salt_is_another_one_for_each_key_and_each_event() -> None:
    keys, events = KEYS.values(), [bytes([it]) * 16 for it in range(5)]
    salts = {salt(key, it) for key in keys for it in events for salt in (salt_of, pair_salt_of)}
    assert len(salts) == 2 * len(KEYS) * len(events)


def test_a_row_whose_key_is_gone_has_no_leaf() -> None:
    with pytest.raises(KeyError):
        leaf_of(row_of(full_row(user_id="dora")), KEYS)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\0",
        b"\1",
        b"\1" + b"x" * 31,
        b"\1" + b"x" * 33,
        b"\3" + b"x" * 32,
        b"\x09" + b"x" * 64,
    ],
)
def test_malformed_commitments_are_refused(packed: bytes) -> None:
    with pytest.raises(MalformedError):
        unpacked(packed)


def test_packed_commitments_come_back() -> None:
    for kept in (
        Commitments(b"u" * 32),
        Commitments(None, b"o" * 32),
        Commitments(b"u" * 32, b"o" * 32),
        Commitments(b"u" * 32, b"o" * 32, b"p" * 32),
        Commitments(None, None, b"p" * 32),
    ):
        assert unpacked(kept.packed()) == kept
