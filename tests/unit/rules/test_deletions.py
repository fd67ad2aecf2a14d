"""Which codes can be deleted."""

from __future__ import annotations

from uuid import UUID

import pytest

from coupon_service.errors import CodeHasHistory
from coupon_service.model import Code, CodeState
from coupon_service.rules.deletions import deletion_refusal

BOOK = UUID(int=1)


@pytest.mark.parametrize("state", [CodeState.AVAILABLE, CodeState.DISABLED])
def test_a_code_that_nobody_had_can_be_deleted(state: CodeState) -> None:
    assert deletion_refusal(Code("C", BOOK, state, 0, 0), has_history=False) is None


@pytest.mark.parametrize(
    ("code", "has_history"),
    [
        (Code("C", BOOK, CodeState.AVAILABLE, 0, 0), True),
        (Code("C", BOOK, CodeState.ASSIGNED, 0, 1), False),
        (Code("C", BOOK, CodeState.REDEEMED, 1, 0), False),
        (Code("C", BOOK, CodeState.DISABLED, 1, 0), False),
        (Code("C", BOOK, CodeState.DISABLED, 0, 1), False),
    ],
    ids=["in the ledger", "assigned", "redeemed", "disabled after that", "disabled while assigned"],
)
def test_a_code_that_somebody_had_cannot_be_deleted(code: Code, has_history: bool) -> None:
    assert isinstance(deletion_refusal(code, has_history=has_history), CodeHasHistory)
