"""Whatever fails: nothing is lost, nothing is done twice, and the service is soon well again."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from faults.checks import assert_conserved, assert_told_rightly, quiet, settled
from faults.faults import FAULTS, Fault
from faults.stack import (
    CALM_P95_S,
    CALM_S,
    FIRST_SUCCESS_S,
    WINDOW,
    Recovery,
    Stack,
    stack,
    until,
)
from grpc import StatusCode
from proof import times

SEED = 1


@pytest.fixture(scope="module")
def less_log() -> Iterator[None]:
    """A line for each call takes longer than the call."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def broken(server_folder: Path, less_log: None) -> Iterator[Stack]:
    with stack(server_folder / "faults") as made:
        made.load = made.new_load(SEED)
        with made.load:
            until("it is warm", lambda: len(made.load.account.seen) > 200)
            with made.load.paused():
                made.quiet = quiet(made)
            yield made


def survive(stack: Stack, fault: Fault, chance: random.Random) -> Recovery:
    """Lets it happen under load, and checks everything that was promised."""
    account = stack.load.account
    until("a call succeeds before", lambda: is_calm(stack, began_s=time.monotonic() - 2))
    began_s = time.monotonic()
    with fault.strike(stack, chance):
        time.sleep(fault.holds_s)
    ended_s = time.monotonic()
    first_s = until("a call succeeds", lambda: succeeded(stack, ended_s), FIRST_SUCCESS_S)
    until("it is calm again", lambda: is_calm(stack, time.monotonic() - 3), CALM_S)
    recovery = Recovery(first_s, time.monotonic() - ended_s)
    with stack.load.paused():
        settled(stack)
        with stack.connect() as connection:
            assert_conserved(connection, account, stack.load.book_ids)
        seen = account.ended_since(began_s)
    assert_told_rightly(seen, fault.seen)
    if fault.surely:
        assert fault.surely & {it.name for it in seen}
    if fault.locking_only:
        assert_told_rightly([it for it in seen if it.lane == "plain"], frozenset())
    print(fault.name, recovery, Counter(it.name for it in seen))
    return recovery


def succeeded(stack: Stack, since_s: float) -> bool:
    return any(
        it.status is StatusCode.OK and it.sent_s >= since_s
        for it in stack.load.account.ended_since(since_s)
    )


def is_calm(stack: Stack, began_s: float) -> bool:
    last = stack.load.account.ended_since(began_s)[:WINDOW]
    took_s = sorted(it.took_s for it in last if it.status is StatusCode.OK)
    return len(took_s) >= WINDOW * 0.9 and took_s[int(len(took_s) * 0.95)] < CALM_P95_S


@pytest.mark.parametrize("fault", FAULTS, ids=lambda it: it.name)
def test_nothing_is_lost_and_nothing_is_done_twice(broken: Stack, fault: Fault) -> None:
    for number in range(times(1, 43)):
        survive(broken, fault, random.Random(SEED + number))
