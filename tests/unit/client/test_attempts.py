"""When a call is tried again."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from coupon_service.client import ClientSettings
from coupon_service.client.attempts import Attempts, RetryBudget
from coupon_service.client.errors import CouponError, Problem, error_of

SETTINGS = ClientSettings(
    timeout_s=10, try_timeout_s=4, backoff_min_s=0.1, backoff_max_s=1, retry_budget=100
)


class Clock:
    """A time that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def problem(
    status: StatusCode, reason: str = "", retry_after_s: float | None = None
) -> CouponError:
    return error_of(Problem(status, "", reason, {}, retry_after_s))


UNAVAILABLE = StatusCode.UNAVAILABLE
ABORTED = StatusCode.ABORTED
EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock: Clock) -> Attempts:
    return Attempts(SETTINGS, RetryBudget(SETTINGS.retry_budget), clock, "the request")


@pytest.mark.parametrize(
    "error",
    [
        problem(StatusCode.INVALID_ARGUMENT),
        problem(StatusCode.NOT_FOUND, "CODE_NOT_FOUND"),
        problem(StatusCode.FAILED_PRECONDITION, "CODE_LOCKED", 1.0),
        problem(StatusCode.ALREADY_EXISTS),
        problem(StatusCode.UNAUTHENTICATED),
        problem(StatusCode.PERMISSION_DENIED),
        problem(StatusCode.UNIMPLEMENTED),
        problem(ABORTED, "CONCURRENT_MODIFICATION"),
        problem(EXHAUSTED),  # a message that is too large
    ],
)
def test_what_is_definite_is_not_repeated(attempts: Attempts, error: CouponError) -> None:
    with pytest.raises(CouponError) as caught:
        attempts.pause_s(error)
    assert caught.value is error
    assert not error.outcome_unknown
    assert error.request_id == "the request"


@pytest.mark.parametrize(
    "error",
    [
        problem(UNAVAILABLE),
        problem(UNAVAILABLE, "DATABASE_UNAVAILABLE", 1.0),
        problem(StatusCode.DEADLINE_EXCEEDED),
        problem(StatusCode.CANCELLED),
        problem(StatusCode.INTERNAL, "INTERNAL"),
        problem(StatusCode.UNKNOWN),
        problem(ABORTED, "CONTENTION", 0.05),
        problem(EXHAUSTED, "OVERLOADED", 0.5),
        problem(EXHAUSTED, "RATE_LIMITED", 1.0),
    ],
)
def test_what_is_open_or_passes_is_repeated_not_before_it_may_help(
    attempts: Attempts, error: CouponError
) -> None:
    least_s = error.retry_after_s or 0
    assert least_s + 0.05 <= attempts.pause_s(error) <= least_s + 0.1


def test_pauses_grow_up_to_the_longest(attempts: Attempts, clock: Clock) -> None:
    pauses = list[float]()
    for _ in range(8):
        pauses.append(attempts.pause_s(problem(UNAVAILABLE)))
        clock.now_s += pauses[-1]
    for pause_s, longest_s in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1), strict=True):
        assert longest_s / 2 <= pause_s <= longest_s


def test_a_stream_that_ended_is_left_at_once_and_then_with_pauses(attempts: Attempts) -> None:
    ended = problem(UNAVAILABLE, "STREAM_ENDED")
    assert attempts.pause_s(ended) == 0
    assert attempts.pause_s(ended) > 0


def test_no_try_ends_after_the_deadline(attempts: Attempts, clock: Clock) -> None:
    assert attempts.timeout_s() == 4
    clock.now_s = 9
    assert attempts.timeout_s() == 1


def test_no_try_begins_after_the_deadline(attempts: Attempts, clock: Clock) -> None:
    clock.now_s = 9.7
    with pytest.raises(CouponError):
        attempts.pause_s(problem(EXHAUSTED, "OVERLOADED", 0.5))


def test_an_earlier_try_leaves_the_outcome_unknown(attempts: Attempts) -> None:
    attempts.pause_s(problem(StatusCode.DEADLINE_EXCEEDED))
    refusal = problem(StatusCode.FAILED_PRECONDITION, "CODE_LOCKED")
    with pytest.raises(CouponError) as caught:
        attempts.pause_s(refusal)
    assert caught.value.outcome_unknown


def test_an_answer_that_did_not_come_in_time_has_the_reason_of_the_tries_before(
    attempts: Attempts, clock: Clock
) -> None:
    late = problem(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    reason = problem(UNAVAILABLE, "LOCKS_UNAVAILABLE", 0.2)
    attempts.pause_s(reason)
    attempts.pause_s(problem(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"))
    clock.now_s = 10
    with pytest.raises(CouponError) as caught:
        attempts.pause_s(late)
    assert caught.value is late
    assert caught.value.__cause__ is reason


def test_progress_renews_deadline_and_pauses(attempts: Attempts, clock: Clock) -> None:
    for _ in range(4):
        attempts.pause_s(problem(UNAVAILABLE))
    clock.now_s = 9
    attempts.progressed()
    assert attempts.timeout_s() == 4
    assert attempts.pause_s(problem(UNAVAILABLE)) <= 0.1


def test_without_budget_nothing_is_repeated_until_calls_earn_it(clock: Clock) -> None:
    budget = RetryBudget(2)
    attempts = Attempts(SETTINGS, budget, clock)
    for _ in range(2):
        attempts.pause_s(problem(UNAVAILABLE))
    with pytest.raises(CouponError):
        attempts.pause_s(problem(UNAVAILABLE))
    for _ in range(4):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


def test_a_budget_is_not_saved_beyond_its_size() -> None:
    budget = RetryBudget(1)
    for _ in range(100):
        budget.earn()
    assert budget.spend()
    assert not budget.spend()


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"try_timeout_s": -1}, {"connections": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="to be"):
        ClientSettings(**wrong)  # pyright: ignore[reportArgumentType]
