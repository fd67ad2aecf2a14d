"""What `/readyz` says of the workers."""

from __future__ import annotations

import pytest

from coupon_service.telemetry.readiness import POSTGRESQL_PROBLEMS, Readiness, report

USABLE = Readiness.PROBED | Readiness.POSTGRESQL | Readiness.SCHEMA | Readiness.SERVING
THERE = Readiness.PROBED | Readiness.POSTGRESQL


def test_one_worker_that_can_use_postgresql_is_enough() -> None:
    body = report([THERE | Readiness.READ_ONLY, Readiness.PROBED, USABLE])
    assert (body["status"], body["postgresql"], body["schema"]) == ("SERVING", "ok", "ok")
    assert (body["workers"], body["workers_serving"]) == (3, 1)


@pytest.mark.parametrize("problem", POSTGRESQL_PROBLEMS)
def test_each_problem_is_told_by_its_name(problem: Readiness) -> None:
    body = report([Readiness.PROBED, THERE | problem])
    assert body["status"] == "NOT_SERVING"
    assert str(body["postgresql"]).replace("-", " ") == str(problem.name).lower().replace("_", " ")
    assert body["schema"] == "unknown"


def test_of_several_problems_the_first_is_told() -> None:
    both = THERE | Readiness.UNSAFE_SETTINGS | Readiness.READ_ONLY
    assert report([both])["postgresql"] == "read-only"


def test_before_the_first_probe_nothing_is_known() -> None:
    assert report([Readiness(0)])["postgresql"] == "unknown"


def test_every_state_fits_into_the_number_that_workers_share() -> None:
    assert max(Readiness) < 1 << 32
