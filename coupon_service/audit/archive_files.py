"""Archives: files with the events of a closed book, which prove themselves without the database.

    file    = magic, sections, digest                 digest: SHA-256 of all before it
    section = kind (1 byte), length (4 bytes), content compressed by zlib
    kinds   : header, segments, links, trailer        in this order; numbers are big-endian

A segment has the events of one seal: of each its place among the leaves of the seal, the facts, the
commitments to its personal values, and those values, encrypted (`sealed_parts`). Then the hashes
that lead from these leaves to the root of the seal (`partial_trees`). The links are all seals from
the first with an event to the newest of when the archive was written, so that the chain of seals
leads to that of a checkpoint. The trailer has what the events come to (`balances`).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import IO, Any, Final
from uuid import UUID

from coupon_service.audit import leaves, records
from coupon_service.audit.balances import Balances, BookBalance, balance_from_json
from coupon_service.audit.checkpoints import NotVerifiedError
from coupon_service.audit.merkle import HASH_BYTES, leaf_hash
from coupon_service.audit.partial_trees import missing_parts
from coupon_service.audit.records import MalformedError, microseconds_of, time_of
from coupon_service.audit.sealed_parts import KEY_ID_BYTES, SealedPart
from coupon_service.audit.seals import Seal, extend_chain

MAGIC: Final = b"coupon-service archive 1\n"
SUFFIX: Final = ".archive"

_HEADER: Final = b"H"
_SEGMENT: Final = b"S"
_LINKS: Final = b"L"
_TRAILER: Final = b"T"

SECTION: Final = struct.Struct(">cI")
"""Kind and length."""

_SECTION_MAX_BYTES: Final = 2**30
SEGMENT_HEAD: Final = struct.Struct(">QIII")
"""The number of the seal, how many leaves it has, how many events and hashes follow."""

_ENTRY: Final = struct.Struct(">IBI")
_LENGTH: Final = struct.Struct(">I")
_LINK: Final = struct.Struct(f">QQQIqB{HASH_BYTES}s{HASH_BYTES}s")
LINKS_OF_SECTION: Final = 10_000

_HAS_ORDER: Final = 1
_HAS_OTHER: Final = 2


class ArchiveError(NotVerifiedError):
    """An archive is not what was written, or does not prove itself; one clear sentence."""


@dataclass(frozen=True, slots=True)
class Header:
    """Of which ledger and book an archive is. `number`: of the archive, in that ledger."""

    log_id: UUID
    number: int
    book_id: UUID
    business_id: str
    name: str
    archive_time: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in an archive. `index`: of its leaf, among those of the seal. `sealed`: the personal
    values that the commitments are to, part by part. `has_order`: whether it was for one.
    """

    index: int
    facts: bytes
    commitments: leaves.Commitments
    sealed: Sequence[SealedPart]
    has_order: bool

    @property
    def leaf(self) -> bytes:
        """The hash of its leaf."""
        return leaf_hash(leaves.leaf_data(self.facts, self.commitments))

    @property
    def values(self) -> dict[str, Any]:
        """The facts, by the names of the ledger's columns."""
        return records.decode(leaves.FACTS, self.facts)


@dataclass(frozen=True, slots=True)
class Segment:
    """The events of one seal. `size`: how many leaves the seal has. `missing`: what the others come
    to, see `partial_trees.missing_parts`."""

    seal_number: int
    size: int
    entries: Sequence[Entry]
    missing: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Trailer:
    """What the archive has. `chain_before`: the value of the chain before the first of the links,
    `chain`: after the last of them, which is the seal `last_seal`."""

    row_count: int
    first_sequence: int
    last_sequence: int
    chain_before: bytes
    last_seal: int
    chain: bytes
    balance: BookBalance
    codes_digest: bytes


# --- written ------------------------------------------------------------------------------------


class ArchiveWriter:
    """Writes an archive, section by section, and adds up what its events come to."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self._file = file
        self._digest = sha256()
        self.balances = Balances()
        self.row_count = 0
        self._first_sequence = 0
        self._last_sequence = 0
        self._write(MAGIC)
        described = {
            "log_id": str(header.log_id),
            "number": header.number,
            "book_id": str(header.book_id),
            "business_id": header.business_id,
            "name": header.name,
            "archive_time": header.archive_time.isoformat(),
        }
        self._section(_HEADER, _json(described))

    def add_segment(
        self, seal_number: int, sealed: Sequence[bytes], entries: Sequence[Entry]
    ) -> None:
        """Adds events of a seal, in the order of their numbers. `sealed`: all its leaves."""
        hashes = missing_parts(sealed, [it.index for it in entries])
        parts = [SEGMENT_HEAD.pack(seal_number, len(sealed), len(entries), len(hashes))]
        for entry in entries:
            facts = entry.values
            self.balances.add(facts, has_order=entry.has_order)
            self._last_sequence = facts["sequence"]
            self._first_sequence = self._first_sequence or self._last_sequence
            parts += entry_parts(entry)
        self.row_count += len(entries)
        self._section(_SEGMENT, b"".join([*parts, *hashes]))

    def end(self, chain_before: bytes, links: Iterable[Seal]) -> Trailer:
        """Adds the seals, from the first with an event to the newest, and what comes last."""
        chain, last_seal = chain_before, 0
        packed: list[bytes] = []
        for seal in links:
            chain, last_seal = extend_chain(chain, seal), seal.number
            packed.append(_packed_link(seal))
            if len(packed) == LINKS_OF_SECTION:
                self._section(_LINKS, b"".join(packed))
                packed.clear()
        if packed:
            self._section(_LINKS, b"".join(packed))
        trailer = Trailer(
            row_count=self.row_count,
            first_sequence=self._first_sequence,
            last_sequence=self._last_sequence,
            chain_before=chain_before,
            last_seal=last_seal,
            chain=chain,
            balance=self.balances.book,
            codes_digest=self.balances.digest(),
        )
        described = {
            "row_count": trailer.row_count,
            "first_sequence": trailer.first_sequence,
            "last_sequence": trailer.last_sequence,
            "chain_before": trailer.chain_before.hex(),
            "last_seal": trailer.last_seal,
            "chain": trailer.chain.hex(),
            "balance": trailer.balance.as_json(),
            "codes_digest": trailer.codes_digest.hex(),
        }
        self._section(_TRAILER, _json(described))
        self._file.write(self._digest.digest())
        return trailer

    def _section(self, kind: bytes, content: bytes) -> None:
        packed = zlib.compress(content)
        self._write(SECTION.pack(kind, len(packed)) + packed)

    def _write(self, content: bytes) -> None:
        self._digest.update(content)
        self._file.write(content)


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def entry_parts(entry: Entry) -> list[bytes]:
    """The bytes of an event in a segment."""
    commitments = [it for it in entry.commitments if it is not None]
    flags = _HAS_ORDER * entry.has_order | _HAS_OTHER * (len(commitments) > 1)
    parts = [_ENTRY.pack(entry.index, flags, len(entry.facts)), entry.facts, *commitments]
    for sealed in entry.sealed:
        parts += (sealed.key_id, _LENGTH.pack(len(sealed.content)), sealed.content)
    return parts


def _packed_link(seal: Seal) -> bytes:
    return _LINK.pack(
        seal.number,
        seal.first_sequence,
        seal.last_sequence,
        seal.row_count,
        microseconds_of(seal.seal_time),
        seal.version,
        seal.root,
        seal.leaves_hash,
    )


# --- read ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bytes:
    """What is taken from bytes, piece by piece."""

    content: bytes
    position: int = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.content):
            raise MalformedError("A section of the archive is too short.")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.take(form.size))

    @property
    def is_empty(self) -> bool:
        return self.position == len(self.content)


Section = Header | Segment | Sequence[Seal] | Trailer


def read_header(file: IO[bytes]) -> Header:
    """The header of an archive of which nothing else is read. Raises ArchiveError."""
    file.seek(0)
    header = next(read_sections(file))
    file.seek(0)
    if not isinstance(header, Header):
        raise ArchiveError("The archive does not begin with its header.")
    return header


def read_sections(file: IO[bytes]) -> Iterator[Section | bytes]:
    """The sections of an archive, in their order, and last the SHA-256 of the whole file.

    Raises ArchiveError, which names the byte at which the damage is or begins.
    """
    digest = sha256(MAGIC)
    if file.read(len(MAGIC)) != MAGIC:
        raise ArchiveError("It is not an archive of the ledger.")
    position = len(MAGIC)
    kind = b""
    while kind != _TRAILER:
        head = file.read(SECTION.size)
        try:
            kind, length = SECTION.unpack(head)
            packed = file.read(min(length, _SECTION_MAX_BYTES))
            if len(packed) != length:
                raise MalformedError("It is too short.")
            digest.update(head + packed)
            yield _READERS[kind](_Bytes(_decompressed(packed)))
        except (KeyError, ValueError, struct.error, zlib.error, TypeError) as error:
            raise ArchiveError(f"The archive is damaged at byte {position}: {error}") from error
        position += len(head) + length
    expected = digest.digest()
    if file.read() != expected:
        raise ArchiveError("The archive is not what was written: its digest is another one.")
    digest.update(expected)
    yield digest.digest()


def _decompressed(packed: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(packed, _SECTION_MAX_BYTES)
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedError("A section is not what was compressed.")
    return content


def _read_header(content: _Bytes) -> Header:
    values = json.loads(content.content)
    return Header(
        UUID(values["log_id"]),
        int(values["number"]),
        UUID(values["book_id"]),
        str(values["business_id"]),
        str(values["name"]),
        datetime.fromisoformat(values["archive_time"]),
    )


def _read_segment(content: _Bytes) -> Segment:
    seal_number, size, count, hashes = content.unpack(SEGMENT_HEAD)
    entries = [_read_entry(content) for _ in range(count)]
    missing = [content.take(HASH_BYTES) for _ in range(hashes)]
    if not content.is_empty:
        raise MalformedError("There is more after a segment.")
    return Segment(seal_number, size, entries, missing)


def _read_entry(content: _Bytes) -> Entry:
    index, flags, length = content.unpack(_ENTRY)
    facts = content.take(length)
    count = len(leaves.PARTS) if flags & _HAS_OTHER else 1
    commitments = leaves.Commitments(*(content.take(HASH_BYTES) for _ in range(count)))
    sealed = [_read_sealed(content) for _ in range(count)]
    return Entry(index, facts, commitments, sealed, bool(flags & _HAS_ORDER))


def _read_sealed(content: _Bytes) -> SealedPart:
    key_id = content.take(KEY_ID_BYTES)
    (length,) = content.unpack(_LENGTH)
    return SealedPart(key_id, content.take(length))


def _read_links(content: _Bytes) -> Sequence[Seal]:
    seals: list[Seal] = []
    while not content.is_empty:
        number, first, last, count, time, version, root, leaves_hash = content.unpack(_LINK)
        seals.append(
            Seal(
                number=number,
                first_sequence=first,
                last_sequence=last,
                row_count=count,
                root=root,
                leaves_hash=leaves_hash,
                seal_time=time_of(time),
                version=version,
            )
        )
    return seals


def _read_trailer(content: _Bytes) -> Trailer:
    values = json.loads(content.content)
    return Trailer(
        row_count=int(values["row_count"]),
        first_sequence=int(values["first_sequence"]),
        last_sequence=int(values["last_sequence"]),
        chain_before=bytes.fromhex(values["chain_before"]),
        last_seal=int(values["last_seal"]),
        chain=bytes.fromhex(values["chain"]),
        balance=balance_from_json(values["balance"]),
        codes_digest=bytes.fromhex(values["codes_digest"]),
    )


_READERS: Final[Mapping[bytes, Callable[[_Bytes], Section]]] = {
    _HEADER: _read_header,
    _SEGMENT: _read_segment,
    _LINKS: _read_links,
    _TRAILER: _read_trailer,
}
