from __future__ import annotations

import pytest

from coupon_service.errors import Overloaded
from coupon_service.store.bulk.dry_runs import DryRun, DryRuns


def test_a_code_is_new_once() -> None:
    dry_run = DryRun(DryRuns())
    codes = [f"CODE{number}" for number in range(20_000)]
    assert all(map(dry_run.is_new, codes))
    assert not any(map(dry_run.is_new, codes))
    assert dry_run.is_new("CODE20000")


def test_dry_runs_know_nothing_of_each_other() -> None:
    dry_runs = DryRuns()
    with dry_runs.begin() as one, dry_runs.begin() as other:
        assert one.is_new("A1B2")
        assert other.is_new("A1B2")


def test_all_of_them_together_remember_only_so_many_codes_until_they_end() -> None:
    dry_runs = DryRuns(codes_max=10)
    with dry_runs.begin() as one, dry_runs.begin() as other:
        one.reserve(6)
        with pytest.raises(Overloaded):
            other.reserve(5)
        other.reserve(4)
    with dry_runs.begin() as another:
        another.reserve(10)
