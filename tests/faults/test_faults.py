"""Under each fault no effect is lost or duplicated, and the service recovers in time."""

from __future__ import annotations

import functools
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from faults.checks import assert_outcomes, resources, why_not_restored
from faults.faults import FAULTS, Fault
from faults.stack import Stack, stack
from faults.survival import survive
from support.proof_sizes import new_seed, times
from support.waiting import until

SEED = times(0, int(new_seed()))

FAULTS_PER_LOAD = 50
"""After so many faults the clients get new books."""

WARM_UP = 200
"""Calls after which a service has opened all lasting resources."""


@pytest.fixture(scope="module")
def broken(server_folder: Path) -> Iterator[Stack]:
    # A log line for each call takes longer than the call.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with stack(server_folder / "faults") as made:
        yield made
    structlog.reset_defaults()


class Busy:
    """A stack under load. Clients get new books at intervals, since codes are used up."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._faults = 0
        self._clients = ExitStack()

    def break_it(self, fault: Fault, chance: random.Random) -> Counter[str]:
        """Survive the fault; returns the outcomes of clients, all of them as documented."""
        if self._faults % FAULTS_PER_LOAD == 0:
            self._renew(chance)
        self._faults += 1
        survival = survive(
            self._load,
            fault.strike(self.stack, chance),
            fault.holds_s,
            self.stack.connect,
            functools.partial(why_not_restored, self.stack, self._before),
        )
        assert_outcomes(survival.seen, fault.seen)
        if fault.locking_only:
            assert_outcomes([it for it in survival.seen if it.lane == "plain"], frozenset())
        seen = Counter(it.name for it in survival.seen)
        note(f"{survival.first_success_s:.2f} s, {survival.normal_s:.2f} s, {dict(seen)}")
        return seen

    def close(self) -> None:
        """Stop the clients."""
        self._clients.close()

    def _renew(self, chance: random.Random) -> None:
        self.close()
        load = self._clients.enter_context(self.stack.new_load(chance.randrange(1_000_000)))
        until(lambda: len(load.account.seen) > WARM_UP)
        with load.paused():
            self._before = resources(self.stack)
        self._load = load


@pytest.fixture(scope="module")
def busy(broken: Stack) -> Iterator[Busy]:
    made = Busy(broken)
    yield made
    made.close()


def note(text: str) -> None:
    """Print the course of the run, for the analysis of a failure."""
    sys.stdout.write(f"{text}\n")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda it: it.name)
def test_no_effect_is_lost_or_duplicated(busy: Busy, fault: Fault) -> None:
    seen = busy.break_it(fault, random.Random(SEED))
    assert not fault.surely or fault.surely & seen.keys()


@pytest.mark.parametrize("number", range(times(8, 1_500)))
def test_no_effect_is_lost_or_duplicated_in_any_order(busy: Busy, number: int) -> None:
    chance = random.Random(SEED + number)
    fault = chance.choice(FAULTS)
    note(f"COUPON_TEST_SEED={SEED}, number {number}: {fault.name}")
    busy.break_it(fault, chance)
