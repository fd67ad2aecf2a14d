"""The rows of an uploaded file: which are codes, what they say, and what became of each. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

from coupon_service.errors import (
    CodeChecksumInvalid,
    CouponServiceError,
    DuplicateCode,
    FieldViolation,
    InvalidArgument,
)
from coupon_service.model import CodeTerms
from coupon_service.model.codes import CodeFormat
from coupon_service.model.normalization import EXPECTED, normalize_code, spelling_of
from coupon_service.store.bulk.spoiled_rows import REASONS as SPOILED_REASONS
from coupon_service.store.bulk.spoiled_rows import Spoiled, spoiled


class ImportOutcome(IntEnum):
    """What became of a row; numbers of the proto."""

    CREATED = 1
    DUPLICATE_IN_UPLOAD = 2
    ALREADY_EXISTS = 3
    INVALID = 4
    NOT_ASSIGNED = 5


@dataclass(frozen=True, slots=True)
class UploadRow:
    """A code that is uploaded with what is said of it alone.

    `currency_code`: of the amounts in its terms, empty = the book's. `violations`: what is wrong
    with the row. `sent`: all of it, to tell a repeat from another row.
    """

    text: str
    terms: CodeTerms | None = None
    user_id: str = ""
    currency_code: str = ""
    violations: tuple[FieldViolation, ...] = ()
    sent: str = ""


class Rejection(StrEnum):
    """Why a row does not become a code; the names are kept in the ledger."""

    DUPLICATE = "duplicate"
    EXISTING = "existing"
    MALFORMED = "malformed"
    MISTYPED = "mistyped"
    SHORT = "short"
    TERMS = "terms"
    NOT_ASSIGNED = "not_assigned"
    NUMBER = Spoiled.NUMBER
    DATE = Spoiled.DATE
    NO_VALUE = Spoiled.NO_VALUE
    SEVERAL = Spoiled.SEVERAL


NO_CODE_REASONS: Final[Mapping[Rejection, str]] = {
    Rejection.MALFORMED: EXPECTED,
    **{Rejection(it): reason for it, reason in SPOILED_REASONS.items()},
}
"""What was expected of the rows that cannot be a code."""

INVALID: Final = (Rejection.MISTYPED, Rejection.SHORT, Rejection.TERMS, *NO_CODE_REASONS)

Violations = Mapping[int, tuple[FieldViolation, ...]]
"""What is wrong with rows beside their codes, by their index in the chunk."""


@dataclass(slots=True)
class ChunkRows:
    """The rows of a chunk, sorted out: the codes with their rows, and the others by why not.

    `spellings`: of the codes that are not written as they are stored.
    """

    codes: dict[str, int] = field(default_factory=dict[str, int])
    spellings: dict[str, str] = field(default_factory=dict[str, str])
    rejected: dict[Rejection, list[int]] = field(default_factory=dict[Rejection, list[int]])

    def reject(self, why: Rejection, index: int) -> None:
        """Notes that a row does not become a code."""
        self.rejected.setdefault(why, []).append(index)

    def add(
        self,
        rows: Sequence[str],
        first: int,
        code_format: CodeFormat,
        min_length: int,
        bad: Container[int] = (),
    ) -> None:
        """Sorts out rows as they stand in a file, with byte-order mark and line ends.

        A row that looks like a generated code of the book, by prefix, suffix, length and alphabet,
        has to have the right check character where the format has one; other rows are codes from
        elsewhere and just have to be well-formed, and to have `min_length` characters. `first`: the
        index in the chunk of the first of these rows. `bad`: rows whose terms are no good.
        """
        for index, row in enumerate(rows, first):
            text = row.removeprefix("\ufeff").strip()
            found = _read_row(text, code_format, min_length)
            if isinstance(found, Rejection):
                self.reject(found, index)
            elif index in bad:
                self.reject(Rejection.TERMS, index)
            elif found in self.codes:
                self.reject(Rejection.DUPLICATE, index)
            else:
                self.codes[found] = index
                if text != found and (spelling := spelling_of(text)) != found:
                    self.spellings[found] = spelling


def _read_row(text: str, code_format: CodeFormat, min_length: int) -> str | Rejection:
    """The code of a row, or why it is none."""
    what = spoiled(text)
    try:
        code = normalize_code(text)
        if what is not None and not _is_shown(text, code, code_format):
            return Rejection(what)
        code_format.verify(code)
    except ValueError:
        return Rejection(what or Rejection.MALFORMED)
    except CodeChecksumInvalid:
        return Rejection.MISTYPED
    return code if len(code) >= min_length else Rejection.SHORT


def _is_shown(text: str, code: str, code_format: CodeFormat) -> bool:
    """Whether it is a code of this format, just as the service shows it."""
    return code_format.matches(code) and text.upper() == code_format.display(code)


@dataclass(frozen=True, slots=True)
class OfRows:
    """What there is to tell of rows that are more than a code.

    `assigned`: how many of the created ones have a user. `refused`: why others could not be.
    `violations`: what is wrong with others, beside their codes. `path`: of the code of a row.
    """

    assigned: int = 0
    refused: Mapping[int, CouponServiceError] = field(default_factory=dict[int, CouponServiceError])
    violations: Violations = field(default_factory=dict[int, tuple[FieldViolation, ...]])
    path: str = "rows[{}].code"


OF_CODES: Final = OfRows(path="codes[{}]")
"""Of rows that are nothing but codes."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of the rows of a chunk: counts by outcome, and those that were not created.

    `rejected`: index in the chunk from 0, and why, in the order of the rows. `min_length`: what a
    code had to have.
    """

    created: int
    duplicates: int
    existing: int
    invalid: int
    rejected: list[tuple[int, Rejection]]
    min_length: int = 1
    replayed: bool = False
    of_rows: OfRows = OF_CODES

    def verdicts(self) -> Iterator[tuple[int, ImportOutcome, CouponServiceError]]:
        """Of each row that was not created: its index, what became of it, and the error."""
        return ((index, *self._verdict(why, index)) for index, why in self.rejected)

    def _verdict(self, why: Rejection, index: int) -> tuple[ImportOutcome, CouponServiceError]:
        also = self.of_rows.violations.get(index, ())
        match why:
            case Rejection.DUPLICATE:
                error = DuplicateCode("The code came earlier in this upload.")
                return ImportOutcome.DUPLICATE_IN_UPLOAD, error
            case Rejection.EXISTING:
                error = DuplicateCode("The code was there before this upload.")
                return ImportOutcome.ALREADY_EXISTS, error
            case Rejection.NOT_ASSIGNED:
                return ImportOutcome.NOT_ASSIGNED, self.of_rows.refused[index]
            case Rejection.TERMS:
                return ImportOutcome.INVALID, InvalidArgument(also)
            case Rejection.MISTYPED if not also:
                return ImportOutcome.INVALID, CodeChecksumInvalid()
            case Rejection.MISTYPED:
                expected = CodeChecksumInvalid().message
            case Rejection.SHORT:
                expected = f"expected at least {self.min_length} letters or digits"
            case _:
                expected = NO_CODE_REASONS[why]
        violation = FieldViolation(self.of_rows.path.format(index), expected)
        return ImportOutcome.INVALID, InvalidArgument((violation, *also))


def import_result(
    created: int,
    rejected: Mapping[Rejection, Sequence[int]],
    min_length: int = 1,
    of_rows: OfRows = OF_CODES,
    *,
    replayed: bool = False,
) -> ImportResult:
    """The result, of how many rows were created and which were not, by why."""
    counts = {why: len(indexes) for why, indexes in rejected.items()}
    return ImportResult(
        created=created,
        duplicates=counts.get(Rejection.DUPLICATE, 0),
        existing=counts.get(Rejection.EXISTING, 0),
        invalid=sum(counts.get(why, 0) for why in INVALID),
        rejected=sorted((index, why) for why, indexes in rejected.items() for index in indexes),
        min_length=min_length,
        replayed=replayed,
        of_rows=of_rows,
    )
