"""The codes of a book that match a filter, in the order of the table's key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.errors import UploadAmbiguous, UploadNotFound
from coupon_service.model import CodeState, EventType
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import scope_of_book
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.bulk.requests import source_tag
from coupon_service.store.keyset import IN_ORDER
from coupon_service.store.pipeline import Connection

LOOKED_AT_MAX: Final = 2_000
"""Codes of a book that are looked at in one statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFilter:
    """Which codes of a book; all that is set has to hold, and empty is any.

    `upload_caller`: of the upload `upload_request_id`, where several callers have one.
    """

    state: CodeState | None = None
    upload_request_id: str = ""
    upload_caller: str = ""
    assigned_before: datetime | None = None
    prefix: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether every code matches."""
        return self == CodeFilter(upload_caller=self.upload_caller)


_MATCHES: Final[LiteralString] = """
    (%(mark)s::integer IS NULL OR c.source_tag = %(mark)s)
    AND starts_with(c.code, %(prefix)s)
    AND (%(assigned_before)s::timestamptz IS NULL OR EXISTS (
        SELECT FROM coupon_assignments AS a
        WHERE a.bucket = c.bucket AND a.code = c.code AND a.book_id = %(book_id)s
            AND a.state = 1 -- ACTIVE
            AND a.assign_time < %(assigned_before)s))
"""

# The index begins with the state, so each state is read by itself, and then merged.
SELECT_MATCHING: Final[LiteralString] = f"""
SELECT c.code, {_MATCHES}
FROM (
    SELECT of_state.*
    FROM unnest(%(states)s::smallint[]) AS wanted (wanted_state)
    CROSS JOIN LATERAL (
        SELECT bucket, code, source_tag FROM coupon_codes
        WHERE book_id = %(book_id)s AND state = wanted_state
            AND (bucket, code) > (%(bucket)s, %(after)s)
        ORDER BY bucket, code
        LIMIT %(looked_at_max)s
    ) AS of_state
    ORDER BY bucket, code
    LIMIT %(looked_at_max)s
) AS c
ORDER BY c.bucket, c.code
"""


@dataclass(frozen=True, slots=True)
class MatchingPage:
    """Codes that match, each with how many were looked at until then; up to which code, and at how
    many, it has looked."""

    matching: Sequence[tuple[str, int]]
    after: str
    looked_at: int

    @property
    def is_last(self) -> bool:
        """Whether there are no more."""
        return self.looked_at < LOOKED_AT_MAX


async def select_matching(
    connection: Connection, book_id: UUID, wanted: CodeFilter, mark: int | None, after: str
) -> MatchingPage:
    """The next codes of the book that match. `mark`: of the codes of the upload that is wanted."""
    async with connection.transaction():
        await connection.execute(IN_ORDER)
        cursor = await connection.execute(
            SELECT_MATCHING,
            {
                **_parameters(book_id, wanted, mark),
                "bucket": bucket_of(after) if after else -1,
                "after": after,
                "looked_at_max": LOOKED_AT_MAX,
            },
        )
        rows = await cursor.fetchall()
    matching = [(code, number) for number, (code, matches) in enumerate(rows, 1) if matches]
    return MatchingPage(matching, rows[-1][0] if rows else after, len(rows))


# Code by code (LATERAL, OFFSET 0), each by its key.
SELECT_STILL_MATCHING: Final[LiteralString] = f"""
SELECT c.code
FROM unnest(%(buckets)s::smallint[], %(codes)s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT * FROM coupon_codes AS found
    WHERE found.bucket = wanted.bucket AND found.code = wanted.code AND found.scope = %(scope)s
    OFFSET 0
) AS c
WHERE c.book_id = %(book_id)s AND c.state = ANY(%(states)s::smallint[]) AND {_MATCHES}
"""


async def select_still_matching(
    connection: Connection,
    book_id: UUID,
    wanted: CodeFilter,
    mark: int | None,
    codes: Collection[str],
) -> set[str]:
    """Those of the codes, which are locked, that match."""
    buckets = {"buckets": int_array(map(bucket_of, codes)), "codes": text_array(codes)}
    cursor = await connection.execute(
        SELECT_STILL_MATCHING, {**_parameters(book_id, wanted, mark), **buckets}
    )
    return {code for (code,) in await cursor.fetchall()}


def _parameters(book_id: UUID, wanted: CodeFilter, mark: int | None) -> dict[str, Any]:
    return {
        "book_id": book_id,
        "scope": scope_of_book(book_id),
        "states": int_array(CodeState if wanted.state is None else [wanted.state]),
        "mark": mark,
        "prefix": wanted.prefix,
        "assigned_before": wanted.assigned_before,
    }


# A code has a hash of the request that made it, by which it is found. The ledger has the requests,
# so that it is known whether two of them have the same one.
SELECT_UPLOADS: Final = """
SELECT DISTINCT caller, request_id
FROM redemption_audit
WHERE book_id = %(book_id)s AND type = ANY(%(types)s::smallint[]) AND event_time >= %(since)s
"""


async def select_uploads(
    connection: Connection, book_id: UUID, since: datetime
) -> set[tuple[str, str]]:
    """Caller and request_id of each request that has made codes of the book since then."""
    types = EventType.CODES_IMPORTED, EventType.CODES_GENERATED
    cursor = await connection.execute(
        SELECT_UPLOADS, {"book_id": book_id, "types": int_array(types), "since": since}
    )
    return set(await cursor.fetchall())


def upload_of(
    wanted: CodeFilter, caller: str, uploads: Collection[tuple[str, str]]
) -> tuple[str, str]:
    """The upload that the filter means. Raises UploadNotFound, UploadAmbiguous."""
    callers = sorted(by for by, request_id in uploads if request_id == wanted.upload_request_id)
    if wanted.upload_caller:
        callers = [it for it in callers if it == wanted.upload_caller]
    elif caller in callers:
        callers = [caller]
    if not callers:
        raise UploadNotFound
    if len(callers) > 1:
        raise UploadAmbiguous(callers=",".join(callers))
    return callers[0], wanted.upload_request_id


def mark_of(book_id: UUID, upload: tuple[str, str], others: Collection[tuple[str, str]]) -> int:
    """What marks the codes of the upload. Raises UploadAmbiguous when another one has it too."""
    mark = source_tag(*upload, book_id)
    if any(it != upload and source_tag(*it, book_id) == mark for it in others):
        raise UploadAmbiguous
    return mark
