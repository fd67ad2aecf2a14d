"""Mutants of what proves the ledger: bugs, in this process and for a test only."""

from __future__ import annotations

from typing import Any
from unittest import mock

from mutants.mutants import Mutant

from coupon_service.audit import leaves, verification
from coupon_service.maintenance import ledger_sealer
from coupon_service.store import ledger_rows, seals
from coupon_service.store.ledger_horizon import Complete, LedgerHorizon


def sealed_above_what_is_complete() -> Mutant:
    """All numbers that were drawn are taken for complete."""

    async def settled(self: LedgerHorizon, _: float) -> Complete | None:
        await self.advance()
        return self.read_time and Complete(self.last_number, self.read_time)

    return mock.patch.object(LedgerHorizon, "settled", settled)


def discount_not_sealed() -> Mutant:
    """A column is left out of the leaves."""
    without = ledger_rows.SELECT_ROWS.replace("discount_minor, fence", "NULL::bigint, fence")
    return mock.patch.object(ledger_rows, "SELECT_ROWS", without)


def numbers_not_in_the_list() -> Mutant:
    """Rows are compared one after the other, whatever their numbers are."""
    real = verification.differences

    def differences(sealed: Any, found: Any) -> Any:
        known = {number for number, _ in sealed}
        return real(sealed, [it for it in found if it[0] in known])

    return mock.patch.object(verification, "differences", differences)


def newest_seal_not_missed() -> Mutant:
    """Nobody compares the last seal with the head."""
    return mock.patch.object(verification.Verification, "end", return_value=())


def key_made_beside_an_erasure() -> Mutant:
    """The sealer makes keys whoever was erased since it read the rows."""
    unchecked = seals.insert_keys

    async def insert_keys(connection: Any, users: Any, _: Any) -> dict[str, bytes] | None:
        return await unchecked(connection, users, await seals.select_head(connection))

    return mock.patch.object(ledger_sealer, "insert_keys", insert_keys)


def commitments_without_a_salt() -> Mutant:
    """What a commitment is to can be tried out."""
    return mock.patch.object(leaves, "salt_of", return_value=b"")
