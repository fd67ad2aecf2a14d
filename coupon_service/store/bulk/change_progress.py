"""How far a change of many codes has come, and what is next of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from coupon_service.errors import (
    AssignmentNotFound,
    CodeHasHistory,
    CodeNotFound,
    CouponServiceError,
    InvalidStateTransition,
    RequestIdReused,
    reason_name,
)
from coupon_service.model import Call, CodeChange, Event
from coupon_service.store.bulk.code_filter import CodeFilter, MatchingPage

CHUNK: Final = 100
"""Codes of a transaction: so few that those who want one of them hardly wait."""

PAGE: Final = 2_000
"""Codes of a list that are taken at a time."""

REFUSALS: Final = {
    reason_name(it): it
    for it in (
        AssignmentNotFound,
        CodeHasHistory,
        CodeNotFound,
        InvalidStateTransition,
        RequestIdReused,
    )
}
"""Why a code is not changed."""

Refusal = tuple[str, CouponServiceError]
"""A code as it was sent, and why it was not changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeChanges:
    """What is to be done to which codes of a book: those of a list, or all that match a filter.

    `listed`: each code as it was sent, and as it is stored; None where the filter counts.
    """

    call: Call
    book_id: UUID
    change: CodeChange
    listed: Sequence[tuple[str, str]] | None
    wanted: CodeFilter
    fingerprint: int
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A code of a part. `after`: where the work goes on behind it; `examined`: codes until then."""

    sent: str
    code: str
    after: str
    examined: int


@dataclass(frozen=True, slots=True)
class Part:
    """Codes of a chunk; perhaps none, where none of those that were looked at matches."""

    items: Sequence[Item]
    after: str
    examined: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class PartDone:
    """What became of a part: how many of its codes were worked on, and how many changes they had.

    `deleted`: the codes that were."""

    worked_on: int
    changed: int
    refusals: Sequence[Refusal] = ()
    deleted: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ChangeProgress:
    """What became of a chunk, and of all until then. `number`: 0 before the first, and `is_chunk`
    is false, where only codes that do not match were passed.

    `after`: where the work goes on; for a list how many codes are done, else the last code.
    """

    number: int = 0
    changed: int = 0
    refusals: Sequence[Refusal] = ()
    total_changed: int = 0
    total_refused: int = 0
    examined: int = 0
    after: str = ""
    done: bool = False
    replayed: bool = False
    is_chunk: bool = True

    def passed(self, part: Part) -> ChangeProgress:
        """Behind a part of which nothing matches."""
        return replace(
            self,
            changed=0,
            refusals=(),
            examined=part.examined,
            after=part.after,
            replayed=False,
            is_chunk=False,
        )

    def after_part(self, part: Part, done: PartDone) -> ChangeProgress:
        """Behind what was done of the part."""
        whole = done.worked_on == len(part.items)
        last = part if whole else part.items[done.worked_on - 1] if done.worked_on else self
        return ChangeProgress(
            number=self.number + 1,
            changed=done.changed,
            refusals=done.refusals,
            total_changed=self.total_changed + done.changed,
            total_refused=self.total_refused + len(done.refusals),
            examined=last.examined,
            after=last.after,
            done=part.is_last and whole,
        )

    def record(self, changes: CodeChanges, deleted: Sequence[str]) -> Mapping[str, Any]:
        """What the ledger row of the chunk says."""
        wanted = changes.wanted
        asked = {
            "state": wanted.state.name if wanted.state else "",
            "upload_request_id": wanted.upload_request_id,
            "upload_caller": wanted.upload_caller,
            "assigned_before": wanted.assigned_before and wanted.assigned_before.isoformat(),
            "prefix": wanted.prefix,
        }
        return {
            "change": changes.change.name,
            "filter": {key: it for key, it in asked.items() if it},
            "changed": self.changed,
            "refused": len(self.refusals),
            "total_changed": self.total_changed,
            "total_refused": self.total_refused,
            "examined": self.examined,
            "done": self.done,
            **({"codes": sorted(deleted)} if deleted else {}),
            "after": self.after,
            "number": self.number,
            "refusals": [
                [sent, reason_name(type(it)), it.message, dict(it.metadata)]
                for sent, it in self.refusals
            ],
        }

    @classmethod
    def recorded(cls, row: Event) -> ChangeProgress:
        """What the ledger row of a chunk says."""
        record = json.loads(row.metadata or "{}")
        return cls(
            number=record["number"],
            changed=record["changed"],
            refusals=[
                (sent, REFUSALS[reason](message, **metadata))
                for sent, reason, message, metadata in record["refusals"]
            ],
            total_changed=record["total_changed"],
            total_refused=record["total_refused"],
            examined=record["examined"],
            after=record["after"],
            done=record["done"],
            replayed=True,
        )


def parts_of_list(listed: Sequence[tuple[str, str]], progress: ChangeProgress) -> list[Part]:
    """The next parts of the list."""
    begin = int(progress.after or 0)
    items = [
        Item(sent, code, str(number), number)
        for number, (sent, code) in enumerate(listed[begin : begin + PAGE], begin + 1)
    ]
    end = begin + len(items)
    return _parts(items, Part((), str(end), end, is_last=end == len(listed)))


def parts_of_page(page: MatchingPage, progress: ChangeProgress) -> list[Part]:
    """The parts of a page of codes of the book."""
    items = [
        Item(code, code, code, progress.examined + looked_at) for code, looked_at in page.matching
    ]
    end = Part((), page.after, progress.examined + page.looked_at, is_last=page.is_last)
    return _parts(items, end)


def _parts(items: Sequence[Item], end: Part) -> list[Part]:
    """The items in chunks; the last one ends where all of it ends."""
    chunks = [items[at : at + CHUNK] for at in range(0, len(items), CHUNK)] or [[]]
    *others, last = chunks
    parts = [Part(it, it[-1].after, it[-1].examined, is_last=False) for it in others]
    return [*parts, replace(end, items=last)]
