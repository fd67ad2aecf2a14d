"""Whatever program of calls is carried out, the service does what a plain model of it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test  # pyright: ignore[reportUnknownVariableType]
from model.clock import Clock, clocked_server
from model.programs import Programs
from proof import progress, times
from service import Api

PROGRAMS = times(300, 20_000)
STEPS = 40


@pytest.fixture(scope="module")
def programs(
    new_database: Callable[[], AbstractContextManager[str]], redis_alone_url: str
) -> Iterator[type[Programs]]:
    """Programs that run on a server of their own."""
    clock = Clock(redis_alone_url)
    with (
        new_database() as database_url,
        clocked_server(database_url, redis_alone_url, clock, locks_per_user_max=2) as server,
        closing(Api(server.address)) as api,
        psycopg.connect(database_url) as database,
    ):
        members = {
            "server": server,
            "api": api,
            "clock": clock,
            "database": database,
            "ended": progress("programs", PROGRAMS),
        }
        yield type("Programs", (Programs,), members)


def test_every_answer_and_the_final_state_are_those_of_a_plain_model(
    programs: type[Programs],
) -> None:
    run_state_machine_as_test(
        programs,
        settings=settings(
            max_examples=PROGRAMS,
            stateful_step_count=STEPS,
            deadline=None,
            # The same programs in each run; others in `make proof`.
            derandomize=times(1, 0) == 1,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )
