"""Seals: the ledger in ranges of numbers, each with the root of its leaves, in a chain."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Final
from uuid import UUID

from coupon_service.audit.leaves import VERSION
from coupon_service.audit.merkle import HASH_BYTES, tree_hash
from coupon_service.audit.records import MalformedError, microseconds_of

_HEADER: Final = struct.Struct(">BQQQIq")
_CHAINED: Final = b"\x02"
"""Sets these hashes apart from those of trees."""
_CHAIN_BEGUN: Final = b"\x03coupon-service audit\x00"

_GROUP: Final = 128
_SKIPPED: Final = tuple(bytes([it]) for it in range(_GROUP))
_SHIFT_MAX: Final = 63

Leaf = tuple[int, bytes]
"""The number of a row and the hash of its leaf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Says which rows there are with numbers from `first_sequence` to `last_sequence`.

    `root`: of the Merkle tree of their leaves, in the order of their numbers. `leaves_hash`: of
    what `pack_leaves` made of the leaves. `version`: what the leaves consist of.
    """

    number: int
    first_sequence: int
    last_sequence: int
    row_count: int
    root: bytes
    leaves_hash: bytes
    seal_time: datetime
    version: int = VERSION


def begin_chain(log_id: UUID) -> bytes:
    """The value of the chain before the first seal of this ledger."""
    return sha256(_CHAIN_BEGUN + log_id.bytes).digest()


def extend_chain(chain: bytes, seal: Seal) -> bytes:
    """The value of the chain with this seal: it holds whatever was sealed until then."""
    header = _HEADER.pack(
        seal.version,
        seal.number,
        seal.first_sequence,
        seal.last_sequence,
        seal.row_count,
        microseconds_of(seal.seal_time),
    )
    return sha256(_CHAINED + chain + header + seal.root + seal.leaves_hash).digest()


def make_seal(
    number: int,
    first_sequence: int,
    last_sequence: int,
    leaves: Sequence[Leaf],
    seal_time: datetime,
) -> tuple[Seal, bytes]:
    """The seal over these leaves, in the order of their numbers, and the packed leaves."""
    packed = pack_leaves(first_sequence, leaves)
    seal = Seal(
        number=number,
        first_sequence=first_sequence,
        last_sequence=last_sequence,
        row_count=len(leaves),
        root=tree_hash([leaf for _, leaf in leaves]),
        leaves_hash=sha256(packed).digest(),
        seal_time=seal_time,
    )
    return seal, packed


def pack_leaves(first_sequence: int, leaves: Sequence[Leaf]) -> bytes:
    """The leaves of a seal in bytes: before the hash of each, how many numbers were skipped.

    Those are in groups of seven bits, the lowest first: one byte where none was skipped, as nearly
    always.
    """
    parts: list[bytes] = []
    expected = first_sequence
    for sequence, leaf in leaves:
        skipped = sequence - expected
        expected = sequence + 1
        while skipped >= _GROUP:
            parts.append(bytes([skipped % _GROUP + _GROUP]))
            skipped //= _GROUP
        parts += (_SKIPPED[skipped], leaf)
    return b"".join(parts)


def unpack_leaves(first_sequence: int, packed: bytes) -> list[Leaf]:
    """What `pack_leaves` packed. Raises MalformedError."""
    leaves: list[Leaf] = []
    sequence, end = first_sequence, 0
    while end < len(packed):
        shift = 0
        while packed[end] >= _GROUP:
            sequence += packed[end] % _GROUP << shift
            shift += 7
            end += 1
            if end == len(packed) or shift > _SHIFT_MAX:
                raise MalformedError("The leaves of a seal are malformed.")
        sequence += packed[end] << shift
        leaf = packed[end + 1 : end + 1 + HASH_BYTES]
        if len(leaf) < HASH_BYTES:
            raise MalformedError("The leaves of a seal are malformed.")
        end += 1 + HASH_BYTES
        leaves.append((sequence, leaf))
        sequence += 1
    return leaves


@dataclass(frozen=True, slots=True)
class Link:
    """A seal as it is stored: with the value of the chain that it has, and its packed leaves."""

    seal: Seal
    chain: bytes
    leaves: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """Where a chain is: after this seal, which ends with that number. 0 and 0 at the beginning."""

    number: int
    last_sequence: int
    chain: bytes


def is_intact(before: Position, link: Link) -> bool:
    """Whether the seal follows `before`, and is what it was: in itself, and by the chain."""
    seal = link.seal
    try:
        leaves = unpack_leaves(seal.first_sequence, link.leaves)
        chain = extend_chain(before.chain, seal)
    except (MalformedError, struct.error, OverflowError):
        return False
    sequences = [sequence for sequence, _ in leaves]
    return (
        seal.number == before.number + 1
        and seal.first_sequence == before.last_sequence + 1
        and seal.version == VERSION
        and chain == link.chain
        and sha256(link.leaves).digest() == seal.leaves_hash
        and tree_hash([leaf for _, leaf in leaves]) == seal.root
        and len(leaves) == seal.row_count
        and all(a < b for a, b in pairwise(sequences))
        and all(seal.first_sequence <= it <= seal.last_sequence for it in sequences)
    )


def position_of(link: Link) -> Position:
    """Where the chain is after this seal."""
    return Position(link.seal.number, link.seal.last_sequence, link.chain)
