"""Mutants of codes that later books get of CLOSED ones."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from coupon_service import checkout
from coupon_service.locks import permits
from coupon_service.model import Lease
from coupon_service.rules import code_lookup, decision
from coupon_service.store.bulk import reused_codes
from coupon_service.store.commands import apply as applying

Mutant = Any


@contextmanager
def repeats_sought_in_the_book_of_now() -> Generator[None]:
    """A repeat is looked for under the id that it has in the book of now."""
    with ExitStack() as patches:
        for module in (code_lookup, decision):
            patches.enter_context(mock.patch.object(module, "in_earlier_book", return_value=None))
        yield


def counts_taken_along() -> Mutant:
    """The code has the redemptions of the CLOSED book in the other one."""
    statement = reused_codes.REUSE_CODES
    assert "redemptions = DEFAULT" in statement
    wrong = statement.replace("redemptions = DEFAULT", "redemptions = c.redemptions")
    return mock.patch.object(reused_codes, "REUSE_CODES", wrong)


def past_codes_changed_in_the_book_of_now() -> Mutant:
    """A roll-back of the CLOSED book is counted in the other one."""
    wrong = applying.UPDATE_PAST_CODES
    for text, instead in (
        ("coupon_past_codes", "coupon_codes"),
        (" AND c.book_id = d.book_id", ""),
    ):
        assert text in wrong
        wrong = wrong.replace(text, instead)
    return mock.patch.object(applying, "UPDATE_PAST_CODES", wrong)


@contextmanager
def permits_of_any_book() -> Generator[None]:
    """A permit that was taken in one book counts in the other."""

    def lease(*values: Any, **fields: Any) -> Lease:
        return Lease(*values, **{**fields, "book_id": None})

    with ExitStack() as patches:
        for module in (checkout, permits):
            patches.enter_context(mock.patch.object(module, "Lease", lease))
        yield


def codes_of_live_books_given_away() -> Mutant:
    """Any book of the business loses its codes to an upload."""
    statement = reused_codes.LOCK_REUSABLE
    assert "AND b.state = %(closed)s" in statement
    wrong = statement.replace("AND b.state = %(closed)s", "")
    return mock.patch.object(reused_codes, "LOCK_REUSABLE", wrong)


def codes_not_locked_before_they_go_over() -> Mutant:
    """What a code was is read without its lock."""
    return mock.patch.object(reused_codes, "LOCK_REUSABLE", reused_codes.SELECT_REUSABLE)
