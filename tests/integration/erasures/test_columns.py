"""Every column that could name a user has been thought of."""

from __future__ import annotations

from typing import Final

import psycopg

ERASED: Final = {
    "coupon_archived_assignments.metadata",
    "coupon_archived_assignments.user_id",
    "coupon_archived_orders.order_id",
    "coupon_archived_orders.order_user_id",
    "coupon_archived_orders.user_id",
    "coupon_assignments.metadata",
    "coupon_assignments.user_id",
    "coupon_order_books.order_id",
    "coupon_order_books.order_user_id",
    "coupon_orders.order_id",
    "coupon_orders.order_user_id",
    "coupon_period_counters.user_id",
    "coupon_user_counters.user_id",
    "coupon_refusals.caller",
    "coupon_refusals.code",
    "coupon_refusals.currency_code",
    "coupon_refusals.business_id",
    "coupon_refusals.order_id",
    "coupon_refusals.request_id",
    "coupon_refusals.told",
    "coupon_refusals.untold",
    "coupon_refusals.user_id",
    "coupon_user_keys.key",
    "coupon_user_keys.user_id",
    "redemption_audit.caller",
    "redemption_audit.metadata",
    "redemption_audit.order_id",
    "redemption_audit.order_user_id",
    "redemption_audit.other_user_id",
    "redemption_audit.peer",
    "redemption_audit.user_agent",
    "redemption_audit.user_id",
}
"""What EraseUser replaces or empties, or deletes with its row. And `fingerprint`, a number."""

OF_BOOKS: Final = {
    "coupon_book_terms.benefit",
    "coupon_book_terms.currency_code",
    "coupon_book_terms.discount_tiers",
    "coupon_books.benefit",
    "coupon_books.business_id",
    "coupon_books.code_alphabet",
    "coupon_books.code_prefix",
    "coupon_books.code_separator",
    "coupon_books.code_suffix",
    "coupon_books.currency_code",
    "coupon_books.description",
    "coupon_books.discount_tiers",
    "coupon_books.exclusive_group",
    "coupon_books.metadata",
    "coupon_books.name",
    "coupon_books.period_limits",
    "coupon_books.schedule",
}
"""What a business says of its campaign."""

OF_CODES: Final = {
    "coupon_archived_assignments.code",
    "coupon_archived_codes.code",
    "coupon_assignments.code",
    "coupon_code_spellings.code",
    "coupon_code_spellings.spelling",
    "coupon_code_terms.code",
    "coupon_code_terms.discount",
    "coupon_code_terms.metadata",
    "coupon_codes.code",
    "coupon_past_codes.code",
    "coupon_past_codes.spelling",
    "redemption_audit.code",
}
"""A code, and what its upload says of it, whoever has it."""

OF_CALLS: Final = {
    "coupon_adjustments.currency_code",
    "coupon_orders.business_id",
    "coupon_order_books.business_id",
    "coupon_orders.currency_code",
    "redemption_audit.benefit",
    "redemption_audit.currency_code",
    "redemption_audit.request_id",
}
"""Amounts, businesses, and the name that a caller gave to its request: by that a repeat is known,
so it stays, and docs/ledger.md tells callers to put nobody's name into it."""

OF_THE_SERVICE: Final = {
    "coupon_archived_ranges.sequences",
    "coupon_audit_archives.digest",
    "coupon_audit_archives.file_name",
    "coupon_audit_head.chain",
    "coupon_audit_seals.chain",
    "coupon_audit_seals.leaves",
    "coupon_audit_seals.leaves_hash",
    "coupon_audit_seals.root",
    "coupon_erased_users.erased",
    "coupon_erased_users.key_ids",
    "coupon_erased_users.pseudonym",
    "coupon_finished_steps.step",
    "coupon_turns.name",
    "redemption_audit.commitments",
}
"""Hashes that are salted by keys which are destroyed, and names that the service makes."""

SELECT_COLUMNS: Final = """
SELECT table_name || '.' || column_name FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name !~ 'yoyo'
    AND data_type NOT IN ('smallint', 'integer', 'bigint', 'numeric', 'boolean', 'uuid', 'date',
        'timestamp with time zone', 'double precision')
"""


def test_each_column_of_a_type_that_can_name_somebody_is_decided(database_url: str) -> None:
    groups = [ERASED, OF_BOOKS, OF_CODES, OF_CALLS, OF_THE_SERVICE]
    decided = set[str]().union(*groups)
    assert len(decided) == sum(map(len, groups))
    with psycopg.connect(database_url) as connection:
        found = {name for (name,) in connection.execute(SELECT_COLUMNS)}
    assert found - decided == set(), "does it name a user? then EraseUser has to know of it"
    assert decided - found == set()
