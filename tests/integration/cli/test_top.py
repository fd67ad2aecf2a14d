"""`coupon-service top`, on the metrics port of a real service."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from support.command_line import run
from support.service import Api
from support.service_process import environment_of, serving

from coupon_service.embedded.machine import free_port


def test_calls_that_are_made_are_shown(database_url: str, redis_url: str, tmp_path: Path) -> None:
    environment = environment_of(database_url, redis_url)
    with serving(environment, tmp_path):
        address = f"127.0.0.1:{environment['COUPON_METRICS_PORT']}"
        with closing(Api(f"127.0.0.1:{environment['COUPON_PORT']}")) as api:
            api.redeem(api.code(), "ann")
        away = f"127.0.0.1:{free_port()}"
        done = run(
            *(tmp_path, "top", "--once", "--interval", "0.2"),
            *("--target", address, "--target", away),
        )
    assert done.returncode == 0, done.stderr
    assert "workers ready 2 of 2" in done.stdout
    assert "replicas 1 of 2" in done.stdout
    assert f"{away} cannot be reached" in done.stdout
    assert "PostgreSQL: connections" in done.stdout


def test_where_nobody_answers_it_says_what_to_look_at(tmp_path: Path) -> None:
    done = run(tmp_path, "top", "--once", "--target", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "COUPON_METRICS_PORT" in done.stderr


def test_a_target_that_is_no_address_is_refused(tmp_path: Path) -> None:
    for target in ("9464", "host:", ":9464", "host:port", "host:99999"):
        done = run(tmp_path, "top", "--target", target)
        assert (done.returncode, done.stdout) == (1, "")
        assert target in done.stderr
