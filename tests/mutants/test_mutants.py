"""The suite finds what it is there to find: bugs are planted, and each is caught."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest
from model.clock import Clock
from mutants import edge_harness as edge
from mutants import edge_mutants as edge_bugs
from mutants import harness
from mutants import mutants as bugs
from mutants.harness import Stack

CAUGHT_BY: dict[Callable[[], bugs.Planted], Callable[[Stack], None]] = {
    bugs.no_cap_guard: harness.model_test,
    bugs.limit_read_before_the_lock: harness.race_for_an_order,
    bugs.unlock_by_a_stranger: harness.repeated_unlock,
    bugs.ledger_outside_the_transaction: harness.refused_for_contention,
    bugs.unsorted_row_locks: harness.race_of_batches,
    bugs.generation_reserved_without_a_lock: harness.race_of_generations,
    bugs.bulk_work_without_a_turn: harness.generation_beside_another,
    bugs.no_shield: harness.storm_of_cancellations,
    bugs.fence_ignored: harness.late_holder_after_a_flush,
    bugs.request_id_recorded_after_commit: harness.race_with_one_request_id,
    bugs.rollback_not_locked: harness.race_of_rollbacks,
    bugs.user_counter_missed: harness.model_test,
    bugs.expiry_by_the_callers_clock: harness.late_holder_by_a_slow_clock,
    bugs.full_misread_as_taken: harness.model_test,
    bugs.some_of_all_or_nothing: harness.model_test,
    bugs.discount_rounded_up: harness.model_test,
    bugs.order_of_nothing_taken_for_unknown: harness.model_test,
    bugs.token_not_verified: harness.model_test,
    bugs.used_lock_kept: harness.model_test,
    bugs.lock_answer_forgotten: harness.repeat_after_the_lock,
    bugs.codes_not_composed: harness.model_test,
    bugs.orders_compared_as_sent: harness.model_test,
    bugs.spreadsheet_numbers_taken: harness.model_test,
    bugs.grace_keeps_its_own_user_out: harness.lock_followed_by_another,
    bugs.lock_followed_before_its_end: harness.lock_followed_by_another,
    bugs.open_outcome_forgotten: harness.commit_that_hangs,
    bugs.repeat_answered_as_recorded: harness.model_test,
    bugs.collision_hidden: harness.model_test,
    bugs.orders_of_users_shared: harness.model_test,
    bugs.orders_of_users_not_kept_from_services: harness.race_for_an_order,
    bugs.rollback_not_read_for_a_repeat: harness.repeat_after_the_rollback,
    bugs.repeated_batch_refused_as_a_whole: harness.repeat_of_a_batch,
    bugs.assignments_not_told_apart: harness.repeat_after_another_assignment,
    bugs.policy_off_forgets_locks: harness.lock_when_locking_is_switched_off,
    bugs.dry_run_that_writes: harness.model_test,
    bugs.short_codes_taken: harness.model_test,
    bugs.judged_now_with_a_token: harness.lock_taken_before_the_end,
    bugs.refusals_wait_for_the_disk: harness.code_that_an_end_user_cannot_use,
    bugs.book_of_an_unknown_code_not_read: harness.code_that_an_end_user_cannot_use,
    bugs.counters_read_for_hidden_codes: harness.code_that_an_end_user_cannot_use,
    bugs.discounts_summed_in_64_bits: harness.discounts_beyond_an_amount,
    bugs.sum_answered_as_it_is: harness.discounts_beyond_an_amount,
    edge_bugs.serving_loop_not_replaced: edge.path_that_is_not_utf8,
    edge_bugs.server_stopped_with_its_loop: edge.path_that_is_not_utf8,
    edge_bugs.watches_without_a_bound: edge.watchers_of_health,
    edge_bugs.watches_counted_as_calls: edge.watchers_of_health,
    edge_bugs.connections_without_a_call_kept: edge.newcomers_where_connections_are_full,
    edge_bugs.long_calls_forgotten: edge.newcomers_where_connections_are_full,
    edge_bugs.page_tokens_without_a_key: edge.forged_page_tokens,
    edge_bugs.page_tokens_for_any_query: edge.forged_page_tokens,
    edge_bugs.positions_of_any_shape: edge.forged_page_tokens,
    edge_bugs.anonymous_by_name: edge.callers_with_odd_names,
    edge_bugs.padded_tokens_taken: edge.callers_with_odd_names,
    edge_bugs.invisible_names_taken: edge.callers_with_odd_names,
    edge_bugs.bad_targets_not_answered: edge.bad_target_of_the_metrics_port,
}
QUICK = [it for it in dict.fromkeys(CAUGHT_BY.values()) if it is not harness.model_test]

NewStack = Callable[[], AbstractContextManager[Stack]]


@pytest.fixture
def new_stack(
    new_database: Callable[[], AbstractContextManager[str]], redis_alone_url: str
) -> NewStack:
    """Servers with whatever is planted when they start."""

    @contextmanager
    def started() -> Generator[Stack]:
        with (
            new_database() as database_url,
            harness.stack(database_url, redis_alone_url, Clock(redis_alone_url)) as it,
        ):
            yield it

    return started


@pytest.mark.parametrize("bug", CAUGHT_BY, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_caught(bug: Callable[[], bugs.Planted], new_stack: NewStack) -> None:
    catch = CAUGHT_BY[bug]
    with bug(), new_stack() as it, pytest.raises((AssertionError, grpc.RpcError)) as caught:
        catch(it)
    print(f"{bug.__name__} was caught by {catch.__name__}: {str(caught.value)[-300:]}")  # noqa: T201


@pytest.mark.parametrize("catch", QUICK, ids=lambda catch: catch.__name__)
def test_without_a_bug_nothing_is_caught(
    catch: Callable[[Stack], None], new_stack: NewStack
) -> None:
    with new_stack() as it:
        catch(it)


def test_the_documentation_lists_what_catches_what() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")
    listed = re.findall(r"^\| (\w+) \| (\w+) \|$", page, re.MULTILINE)
    assert listed == [(bug.__name__, catch.__name__) for bug, catch in CAUGHT_BY.items()]
