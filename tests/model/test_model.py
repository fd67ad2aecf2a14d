"""Whatever program of calls is carried out, the service does what a plain model of it does."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test  # pyright: ignore[reportUnknownVariableType]
from model.clock import Clock, clocked_server
from model.programs import Programs
from pydantic import SecretStr
from support.proof_sizes import new_seed, progress, times
from support.redis_cluster import redis_cluster
from support.service import Api
from support.shards import make_shards, make_views, shard_roles

from coupon_service.model.scopes import shard_of_book
from coupon_service.store import finishing

PROGRAMS = times(300, 20_000)
CLUSTER_PROGRAMS = times(30, 1_000)
SHARING_PROGRAMS = times(40, 4_000)
STEPS = 40
SHARES = 2
"""Processes that can be given a part of the programs each, with `pytest -n 2`."""

SLOW_MS = 10_000
"""Longer than anything takes on a machine that others use as well."""


@contextmanager
def programs_on(
    database_url: str, redis_url: str, count: int, **more: object
) -> Generator[type[Programs]]:
    """Programs, so many of them, that run on a server of their own; `more`: of its settings."""
    clock = Clock(redis_url)
    options = {
        "locks_per_user_max": 2,
        "pool_timeout_ms": SLOW_MS,
        "redis_timeout_ms": SLOW_MS,
        "stock_interval_ms": 3_600_000,  # it looks at the books of all programs so far
    }
    with (
        clocked_server(database_url, redis_url, clock, **options, **more) as server,
        # Every second call of a checkout goes over a stream.
        closing(Api(server.address, streamed=2)) as api,
        # What is asked after each program is prepared once.
        psycopg.connect(database_url, autocommit=True) as database,
    ):
        members = {
            "server": server,
            "api": api,
            "clock": clock,
            "database": database,
            "ended": progress("programs", count),
        }
        yield type("Programs", (Programs,), members)


def run_programs(programs: type[Programs], count: int, name: str) -> None:
    """Run so many programs: the same in each run, others in `make proof`."""
    chosen = times(0, int(new_seed()))
    print(f"COUPON_TEST_SEED={chosen}")  # noqa: T201 - shown when the test fails
    run_state_machine_as_test(
        seed(f"{chosen} {name}")(programs),
        settings=settings(
            max_examples=count,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("share", range(SHARES))
def test_every_answer_and_the_final_state_are_those_of_a_plain_model(
    share: int, database_url: str, redis_alone_url: str
) -> None:
    count = PROGRAMS // SHARES
    with programs_on(database_url, redis_alone_url, count) as programs:
        run_programs(programs, count, str(share))


def test_they_are_where_other_businesses_have_the_same_codes(
    database_url: str, redis_alone_url: str
) -> None:
    list(finishing.finish(database_url))
    with programs_on(database_url, redis_alone_url, SHARING_PROGRAMS) as programs:
        programs.shares_codes = True
        run_programs(programs, SHARING_PROGRAMS, "sharing")


def test_they_are_where_businesses_lie_in_shards(
    empty_database_url: str, redis_alone_url: str
) -> None:
    make_shards(empty_database_url, of=4)
    make_views(empty_database_url, of=4)
    with (
        shard_roles(empty_database_url, of=4) as urls,
        programs_on(
            empty_database_url,
            redis_alone_url,
            SHARING_PROGRAMS,
            shards=4,
            shard_urls=SecretStr(urls),
        ) as programs,
    ):
        programs.shares_codes = True
        run_programs(programs, SHARING_PROGRAMS, "shards")
    with psycopg.connect(empty_database_url) as database:
        made = [str(row[0]) for row in database.execute("SELECT book_id FROM coupon_books")]
    assert {shard_of_book(it, 4) for it in made} == {0, 1, 2, 3}


def test_they_are_on_a_redis_cluster_as_well(database_url: str, tmp_path: Path) -> None:
    with (
        redis_cluster(tmp_path) as cluster,
        programs_on(database_url, cluster.url, CLUSTER_PROGRAMS) as programs,
    ):
        run_programs(programs, CLUSTER_PROGRAMS, "cluster")
