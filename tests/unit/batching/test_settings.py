"""How the sizes and delays of batching depend on each other."""

from __future__ import annotations

from typing import Any

import pytest

from coupon_service.batching import BatchingError, BatchingSettings


def test_the_defaults_fit_together() -> None:
    BatchingSettings()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"linger_ms": 5}, "linger_ms: expected more than arrival_linger_ms"),
        ({"batch_max_wait_ms": 6}, "COUPON_BATCH_MAX_WAIT_MS: expected 0, or more than 6"),
        ({"pipeline_max_wait_ms": 6}, "pipeline_max_wait_ms: expected more than linger_ms"),
        ({"batch_max_wait_ms": 0.5}, "COUPON_BATCH_MAX_WAIT_MS: expected 0, or more than 6"),
    ],
)
def test_delays_that_do_not_fit_are_refused_with_a_sentence(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(BatchingError, match=named):
        BatchingSettings(**changes)


def test_a_batch_need_not_wait_at_all() -> None:
    assert BatchingSettings(batch_max_wait_ms=0).commands.batch_max_wait_ms == 0


def test_the_bounds_of_the_service_hold_for_every_batcher() -> None:
    batching = BatchingSettings(batch_max_size=3, batch_max_wait_ms=7, queue_max_size=11)
    for each in (batching.commands, batching.reads, batching.locks):
        assert (each.batch_max_size, each.batch_max_wait_ms, each.queue_max_size) == (3, 7, 11)


def test_large_calls_wait_for_no_others() -> None:
    assert BatchingSettings().bulk.batch_max_wait_ms == 0
