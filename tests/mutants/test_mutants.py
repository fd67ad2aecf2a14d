"""The suite finds what it is there to find: each mutant is caught."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest
from model.clock import Clock
from mutants import (
    adjustment_harness,
    adjustment_mutants,
    archive_harness,
    archive_mutants,
    bulk_harness,
    bulk_mutants,
    checkout_harness,
    cluster_harness,
    cluster_mutants,
    erasure_harness,
    erasure_mutants,
    harness,
    holder_harness,
    holder_mutants,
    ledger_harness,
    ledger_mutants,
    mutants,
    order_harness,
    order_mutants,
    refusal_harness,
    refusal_mutants,
    reuse_harness,
    reuse_mutants,
    rpc_harness,
    rpc_mutants,
    scope_harness,
    scope_mutants,
    seal_harness,
    seal_mutants,
    shard_harness,
    shard_mutants,
    stream_harness,
    stream_mutants,
    terms_harness,
    terms_mutants,
    time_harness,
    time_mutants,
)
from mutants.harness import Stack

CAUGHT_BY: dict[Callable[[], mutants.Mutant], Callable[[Stack], None]] = {
    mutants.no_cap_guard: checkout_harness.code_that_is_used_up,
    mutants.limit_read_before_the_lock: harness.race_for_the_last_use,
    mutants.unlock_by_a_stranger: harness.repeated_unlock,
    mutants.ledger_outside_the_transaction: harness.refused_for_contention,
    mutants.unsorted_row_locks: harness.race_of_batches,
    mutants.generation_reserved_without_a_lock: harness.race_of_generations,
    mutants.books_of_a_format_counted_alone: harness.race_of_books_of_a_format,
    mutants.format_not_locked: harness.race_of_books_of_a_format,
    mutants.bulk_work_without_a_turn: harness.generation_beside_another,
    mutants.no_shield: harness.caller_who_stops_waiting,
    mutants.fence_ignored: harness.late_holder_after_a_flush,
    mutants.request_id_recorded_after_commit: harness.race_with_one_request_id,
    mutants.rollback_not_locked: harness.race_of_rollbacks,
    mutants.user_counter_missed: harness.model_test,
    mutants.expiry_by_the_callers_clock: harness.late_holder_by_a_slow_clock,
    mutants.full_misread_as_taken: checkout_harness.lock_of_another,
    mutants.some_of_all_or_nothing: harness.refused_batches_beside_others,
    mutants.discount_rounded_up: harness.model_test,
    order_mutants.budget_not_credited: order_harness.race_for_a_budget,
    order_mutants.discount_clipped: order_harness.race_for_a_budget,
    order_mutants.totals_read_without_a_lock: order_harness.race_for_the_last_of_a_budget,
    order_mutants.order_read_without_a_lock: order_harness.race_of_an_exclusive_group,
    order_mutants.discount_on_the_full_amount: order_harness.coupons_on_an_order,
    order_mutants.coupon_left_on_its_order: order_harness.coupons_on_an_order,
    order_mutants.unused_orders_kept: order_harness.order_that_is_refused,
    order_mutants.users_share_orders_with_the_business: (
        checkout_harness.exclusive_order_of_an_end_user
    ),
    mutants.first_tier_that_is_reached: harness.model_test,
    mutants.order_of_nothing_taken_for_unknown: harness.model_test,
    mutants.token_not_verified: checkout_harness.lock_of_another,
    mutants.used_lock_kept: checkout_harness.code_with_a_use_left,
    mutants.lock_answer_forgotten: harness.repeat_after_the_lock,
    mutants.codes_not_composed: checkout_harness.letters_of_two_characters,
    mutants.orders_compared_as_sent: checkout_harness.letters_of_two_characters,
    mutants.spreadsheet_numbers_taken: checkout_harness.upload_that_is_tried_first,
    mutants.grace_keeps_its_own_user_out: harness.lock_followed_by_another,
    mutants.lock_followed_before_its_end: harness.lock_followed_by_another,
    mutants.open_outcome_forgotten: harness.commit_that_hangs,
    mutants.repeat_answered_as_recorded: harness.repeat_after_the_rollback,
    mutants.collision_hidden: checkout_harness.orders_of_end_users,
    mutants.orders_of_users_shared: checkout_harness.orders_of_end_users,
    mutants.orders_of_users_not_kept_from_services: harness.race_for_an_order,
    mutants.rollback_not_read_for_a_repeat: harness.repeat_after_the_rollback,
    mutants.repeated_batch_refused_as_a_whole: harness.repeat_of_a_batch,
    mutants.assignments_not_told_apart: harness.repeat_after_another_assignment,
    mutants.policy_off_forgets_locks: harness.lock_when_locking_is_switched_off,
    mutants.dry_run_that_writes: checkout_harness.upload_that_is_tried_first,
    mutants.short_codes_taken: checkout_harness.upload_that_is_tried_first,
    mutants.judged_now_with_a_token: harness.lock_taken_before_the_end,
    mutants.refusals_wait_for_the_disk: harness.code_that_an_end_user_cannot_use,
    mutants.book_of_an_unknown_code_not_read: harness.code_that_an_end_user_cannot_use,
    mutants.counters_read_for_hidden_codes: harness.code_that_an_end_user_cannot_use,
    mutants.discounts_summed_in_64_bits: harness.discounts_beyond_an_amount,
    mutants.sum_answered_as_it_is: harness.discounts_beyond_an_amount,
    adjustment_mutants.terms_of_now: adjustment_harness.adjustment_after_the_book_changed,
    adjustment_mutants.rolled_back_as_it_was_read: (
        adjustment_harness.race_of_adjustments_and_rollbacks
    ),
    adjustment_mutants.adjusted_as_it_was_read: (
        adjustment_harness.race_of_adjustments_and_rollbacks
    ),
    erasure_mutants.pseudonyms_not_looked_up: erasure_harness.limit_that_was_used_before,
    erasure_mutants.orders_of_erased_users_not_read: erasure_harness.order_of_an_erased_user,
    erasure_mutants.repeats_of_before_unknown: erasure_harness.repeat_of_before,
    erasure_mutants.commands_beside_an_erasure: (erasure_harness.redemption_of_who_is_being_erased),
    erasure_mutants.who_does_not_know_not_waited_for: (
        erasure_harness.redemption_beside_the_first_erasure
    ),
    erasure_mutants.names_left_in_redis: erasure_harness.lock_of_who_is_erased,
    seal_mutants.sealed_above_what_is_complete: seal_harness.row_that_is_committed_late,
    seal_mutants.discount_not_sealed: seal_harness.row_that_is_changed,
    seal_mutants.numbers_not_in_the_list: seal_harness.row_where_no_number_was_used,
    seal_mutants.newest_seal_not_missed: seal_harness.newest_seal_that_is_dropped,
    seal_mutants.key_made_beside_an_erasure: seal_harness.erasure_while_a_seal_is_made,
    seal_mutants.commitments_without_a_salt: seal_harness.values_that_are_tried_out,
    scope_mutants.codes_changed_without_their_business: scope_harness.each_business_by_itself,
    scope_mutants.attempts_without_their_business: scope_harness.each_business_by_itself,
    scope_mutants.locks_named_by_the_code_alone: scope_harness.locks_of_both,
    scope_mutants.tokens_hold_for_any_book: scope_harness.locks_of_both,
    scope_mutants.several_businesses_not_told: scope_harness.who_names_no_business,
    scope_mutants.codes_of_before_not_looked_for: scope_harness.upload_of_what_was_there_before,
    shard_mutants.items_sent_to_another_shard: shard_harness.batch_over_shards,
    shard_mutants.results_in_the_order_of_shards: shard_harness.batch_over_shards,
    shard_mutants.books_beside_their_business: shard_harness.batch_over_shards,
    shard_mutants.rows_of_one_key_parted: shard_harness.lists_over_shards,
    shard_mutants.other_shards_started_over: shard_harness.lists_over_shards,
    reuse_mutants.repeats_sought_in_the_book_of_now: (
        reuse_harness.redemption_repeated_in_another_book
    ),
    reuse_mutants.counts_taken_along: reuse_harness.roll_back_in_the_closed_book,
    reuse_mutants.past_codes_changed_in_the_book_of_now: (
        reuse_harness.roll_back_in_the_closed_book
    ),
    reuse_mutants.permits_of_any_book: reuse_harness.permit_of_the_closed_book,
    reuse_mutants.codes_of_live_books_given_away: reuse_harness.codes_of_a_live_book,
    reuse_mutants.codes_not_locked_before_they_go_over: reuse_harness.change_at_the_last_moment,
    archive_mutants.archives_not_asked_for_repeats: (
        archive_harness.repeat_in_the_book_that_has_the_code_now
    ),
    archive_mutants.changed_while_it_is_archived: (
        archive_harness.roll_back_of_what_is_being_archived
    ),
    archive_mutants.roll_backs_not_in_the_balance: archive_harness.sums_of_what_was_archived,
    archive_mutants.ids_kept_when_events_are_back: archive_harness.sums_of_what_was_archived,
    archive_mutants.orders_not_kept: archive_harness.order_of_an_archived_user,
    archive_mutants.archived_orders_not_erased: archive_harness.order_of_an_archived_user,
    holder_mutants.old_lock_ended_in_redis_alone: holder_harness.guest_who_logs_in,
    holder_mutants.locks_of_the_giver_not_read: holder_harness.gift_that_is_locked,
    holder_mutants.counts_that_move_with_the_assignment: holder_harness.gift_that_was_used,
    holder_mutants.expiry_that_begins_anew: holder_harness.gift_that_was_used,
    holder_mutants.returned_before_the_grace: holder_harness.code_that_was_let_expire,
    holder_mutants.returned_although_redeemed: holder_harness.code_that_was_let_expire,
    time_mutants.window_ends_at_midnight: time_harness.night_out,
    time_mutants.closed_for_locks: time_harness.lock_taken_before_it_closed,
    time_mutants.periods_in_utc: time_harness.another_day,
    time_mutants.roll_back_credits_today: time_harness.roll_back_on_another_day,
    time_mutants.periods_not_locked: time_harness.race_for_a_day,
    terms_mutants.own_limit_ignored: terms_harness.race_for_a_code_with_its_own_limit,
    terms_mutants.own_limit_ignored_by_permits: terms_harness.locks_of_a_code_with_its_own_limit,
    terms_mutants.own_limit_not_stored: terms_harness.race_for_a_code_with_its_own_limit,
    terms_mutants.own_end_ignored: terms_harness.code_outside_its_own_window,
    terms_mutants.own_start_ignored: terms_harness.code_outside_its_own_window,
    terms_mutants.assigned_outside_the_transaction: (
        terms_harness.code_that_was_imported_for_a_user
    ),
    terms_mutants.users_of_imports_not_locked: (
        terms_harness.race_of_imports_and_assignments_for_a_user
    ),
    bulk_mutants.locked_codes_deleted: bulk_harness.deletion_of_a_locked_code,
    bulk_mutants.codes_not_locked_before_they_are_deleted: (
        bulk_harness.deletions_beside_redemptions
    ),
    bulk_mutants.changes_resumed_from_the_beginning: bulk_harness.change_that_is_resumed,
    bulk_mutants.filter_of_the_first_page_only: bulk_harness.deletion_of_an_upload,
    ledger_mutants.numbers_shown_when_drawn: ledger_harness.two_writers_in_flight,
    ledger_mutants.bound_by_the_last_that_ended: ledger_harness.two_writers_in_flight,
    ledger_mutants.ids_read_before_the_number: ledger_harness.a_writer_between_the_reads,
    ledger_mutants.followed_by_time: ledger_harness.reader_beside_a_late_commit,
    ledger_mutants.followed_by_transaction: ledger_harness.reader_beside_an_early_id,
    refusal_mutants.guesses_kept_as_typed: refusal_harness.guess_of_a_code,
    refusal_mutants.business_of_the_request_alone: refusal_harness.attempts_of_two_businesses,
    refusal_mutants.reason_for_hiding_lost: refusal_harness.code_that_an_end_user_does_not_see,
    rpc_mutants.serving_loop_not_replaced: rpc_harness.path_that_is_not_utf8,
    rpc_mutants.server_stopped_with_its_loop: rpc_harness.path_that_is_not_utf8,
    rpc_mutants.watches_without_a_bound: rpc_harness.watchers_of_health,
    rpc_mutants.watches_counted_as_calls: rpc_harness.watchers_of_health,
    rpc_mutants.connections_without_a_call_kept: rpc_harness.newcomers_where_connections_are_full,
    rpc_mutants.long_calls_forgotten: rpc_harness.newcomers_where_connections_are_full,
    rpc_mutants.page_tokens_without_a_key: rpc_harness.forged_page_tokens,
    rpc_mutants.page_tokens_for_any_query: rpc_harness.forged_page_tokens,
    rpc_mutants.positions_of_any_shape: rpc_harness.forged_page_tokens,
    rpc_mutants.anonymous_by_name: rpc_harness.callers_with_odd_names,
    rpc_mutants.padded_tokens_taken: rpc_harness.callers_with_odd_names,
    rpc_mutants.invisible_names_taken: rpc_harness.callers_with_odd_names,
    rpc_mutants.new_keys_not_awaited: rpc_harness.keys_of_a_provider,
    rpc_mutants.stale_keys_dropped: rpc_harness.keys_of_a_provider,
    rpc_mutants.published_secrets_used: rpc_harness.keys_of_a_provider,
    rpc_mutants.bad_targets_not_answered: rpc_harness.bad_target_of_the_metrics_port,
    stream_mutants.roles_of_the_stream: stream_harness.roles_over_a_stream,
    stream_mutants.operations_not_counted: stream_harness.limits_over_a_stream,
    stream_mutants.operations_not_guarded: stream_harness.limits_over_a_stream,
    stream_mutants.operations_cancelled_with_their_stream: stream_harness.stream_that_is_cut,
    stream_mutants.streams_read_without_a_bound: stream_harness.stream_that_is_full,
    stream_mutants.results_left_behind: stream_harness.stream_that_the_service_ends,
    cluster_mutants.moved_slots_not_followed: cluster_harness.calls_after_a_slot_has_moved,
    cluster_mutants.locks_refused_for_their_indexes: cluster_harness.codes_of_a_dead_master,
    cluster_mutants.one_master_fails_all: cluster_harness.codes_of_a_dead_master,
    cluster_mutants.silent_masters_waited_for: cluster_harness.calls_beside_a_silent_master,
    cluster_mutants.missed_entries_forgotten: cluster_harness.calls_beside_a_silent_master,
}
QUICK = [it for it in dict.fromkeys(CAUGHT_BY.values()) if it is not harness.model_test]

NewStack = Callable[[], AbstractContextManager[Stack]]


@pytest.fixture
def new_stack(
    new_database: Callable[[], AbstractContextManager[str]], redis_alone_url: str
) -> NewStack:
    """Servers with the mutant that is there when they start."""

    @contextmanager
    def started() -> Generator[Stack]:
        with (
            new_database() as database_url,
            harness.stack(database_url, redis_alone_url, Clock(redis_alone_url)) as it,
        ):
            yield it

    return started


@pytest.mark.parametrize("mutant", CAUGHT_BY, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: Callable[[], mutants.Mutant], new_stack: NewStack) -> None:
    catch = CAUGHT_BY[mutant]
    with mutant(), new_stack() as it, pytest.raises((AssertionError, grpc.RpcError)) as caught:
        catch(it)
    print(f"{mutant.__name__} was caught by {catch.__name__}: {str(caught.value)[-300:]}")  # noqa: T201


@pytest.mark.parametrize("catch", QUICK, ids=lambda catch: catch.__name__)
def test_without_a_mutant_nothing_is_caught(
    catch: Callable[[Stack], None], new_stack: NewStack
) -> None:
    with new_stack() as it:
        catch(it)


def test_the_documentation_lists_what_catches_what() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")
    listed = re.findall(r"^\| (\w+) \| (\w+) \|$", page, re.MULTILINE)
    assert listed == [(bug.__name__, catch.__name__) for bug, catch in CAUGHT_BY.items()]
