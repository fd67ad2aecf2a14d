"""Mutants of codes that are unique within their business."""

# pyright: reportPrivateUsage=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from coupon_service import checkout
from coupon_service.leases import results
from coupon_service.locks import permits
from coupon_service.rules import code_lookup, decision
from coupon_service.store.bulk import generation, imports
from coupon_service.store.commands import apply as applying

Mutant = Any


def codes_changed_without_their_business() -> Mutant:
    """A code is changed wherever there is one of its name."""
    statement = applying.UPDATE_CODES
    assert " AND c.scope = d.scope" in statement
    wrong = statement.replace(" AND c.scope = d.scope", "")
    return mock.patch.object(applying, "UPDATE_CODES", wrong)


@contextmanager
def locks_named_by_the_code_alone() -> Generator[None]:
    """All books that have a code of a name share its locks."""
    with ExitStack() as patches:
        for module in (checkout, results):
            patches.enter_context(mock.patch.object(module, "name_of_locks", lambda code, _: code))
        yield


@contextmanager
def attempts_without_their_business() -> Generator[None]:
    """A request_id names one attempt of a caller on the codes of a name, whosever they are."""
    with ExitStack() as patches:
        as_it_is: Any = lambda command, _: command  # noqa: E731
        patches.enter_context(mock.patch.object(permits, "in_scope", as_it_is))
        patches.enter_context(
            mock.patch.object(decision, "as_attempted", lambda commands, _: list(commands))
        )
        yield


def several_businesses_not_told() -> Mutant:
    """Who names no business gets the code of any."""
    real = code_lookup.find_code

    def find_code(code: str, book_id: Any, business_id: str, state: Any) -> Any:
        state.several_businesses = False
        return real(code, book_id, business_id, state)

    return mock.patch.object(decision, "find_code", find_code)


@contextmanager
def codes_of_before_not_looked_for() -> Generator[None]:
    """A business gets a code anew that one of its books of before has."""

    async def nothing(*_: Any) -> set[str]:
        return set()

    with ExitStack() as patches:
        for module in (generation, imports):
            patches.enter_context(mock.patch.object(module, "select_in_other_scope", nothing))
        yield


def tokens_hold_for_any_book() -> Mutant:
    """A lock token holds for each code of its name."""
    return mock.patch(
        "coupon_service.model.LockClaims.is_on", lambda self, code, _: self.code == code
    )
