"""Mutants of changes of many codes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from mutants.mutants import Mutant

from coupon_service.model import EventType
from coupon_service.store.bulk import change_progress, changed_parts, code_changes, deletions
from coupon_service.store.bulk.code_filter import CodeFilter


def locked_codes_deleted() -> Mutant:
    """A code that was only locked has no history."""
    locks = {EventType.LOCKED, EventType.LOCK_EXTENDED, EventType.UNLOCKED, EventType.LOCK_EXPIRED}
    kept = tuple(it for it in deletions.HISTORY if it not in locks)
    return mock.patch.object(deletions, "HISTORY", kept)


def codes_not_locked_before_they_are_deleted() -> Mutant:
    """Whether a code has a history is looked up without its row lock."""
    return mock.patch.object(changed_parts, "LOCK_CODES", changed_parts.SELECT_CODES)


def changes_resumed_from_the_beginning() -> Mutant:
    """A call that goes on does not know where the one before it ended."""
    recorded = change_progress.ChangeProgress.recorded

    def forgetful(row: Any) -> Any:
        progress = recorded(row)
        return progress if progress.done else replace(progress, after="")

    return mock.patch.object(change_progress.ChangeProgress, "recorded", forgetful)


@contextmanager
def filter_of_the_first_page_only() -> Generator[None]:
    """After the first page of the codes of a book any code matches."""
    select = code_changes.select_matching

    async def matching(connection: Any, book_id: Any, wanted: Any, mark: Any, after: str) -> Any:
        if after:
            wanted, mark = CodeFilter(), None
        return await select(connection, book_id, wanted, mark, after)

    async def still_matching(_: Any, _book: Any, _wanted: Any, _mark: Any, codes: Any) -> set[str]:
        return set(codes)

    with (
        mock.patch.object(code_changes, "select_matching", matching),
        mock.patch.object(changed_parts, "select_still_matching", still_matching),
    ):
        yield
