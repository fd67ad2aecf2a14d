"""The least that the role of the service needs. The ledger is only read and added to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_READ: Final = ("SELECT",)
_ADD: Final = ("SELECT", "INSERT")
_WRITE: Final = ("SELECT", "INSERT", "UPDATE")

PRIVILEGES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "_yoyo_migration": _READ,
        "coupon_assignments": _WRITE,
        "coupon_book_counters": _WRITE,
        "coupon_book_levels": _WRITE,
        "coupon_book_totals": _WRITE,
        "coupon_books": _WRITE,
        "coupon_code_spellings": _ADD,
        "coupon_codes": _WRITE,
        "coupon_generations": (*_WRITE, "DELETE"),
        "coupon_turns": _WRITE,
        "coupon_user_counters": _WRITE,
        "redemption_audit": _ADD,
        "lock_fences": ("USAGE",),
    }
)
"""By relation, tables first and then the sequence."""
