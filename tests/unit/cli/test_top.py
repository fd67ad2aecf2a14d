"""What `coupon-service top` makes of two scrapes."""

from __future__ import annotations

import io

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from coupon_service.cli.failure import CommandError
from coupon_service.cli.top import Window, checked_target, merged, parsed, screen
from coupon_service.telemetry.metrics import Metrics

REDEEM = "RedemptionService/RedeemCode"


def window(before: str, after: str, seconds: float = 2.0) -> Window:
    return Window(parsed(before), parsed(after), seconds)


def counted(*seconds: float) -> str:
    """What a service says that answered RedeemCode after so many seconds each."""
    registry = CollectorRegistry()
    Metrics(registry).rpcs_finished(REDEEM, "OK", "", list(seconds))
    return generate_latest(registry).decode()


def shown(it: Window, unreachable: tuple[str, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(screen(it, unreachable, 1 + len(unreachable)))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_rate_is_the_growth_a_second() -> None:
    rates = window('a_total{k="x"} 5\n', 'a_total{k="x"} 9\n').rates("a_total", "k")
    assert rates == {("x",): 2.0}


def test_a_series_that_was_not_there_before_began_at_zero() -> None:
    assert window("", 'a_total{k="x"} 4\n').rates("a_total", "k") == {("x",): 2.0}


def test_a_counter_that_fell_began_anew_with_its_process() -> None:
    assert window("a_total 100\n", "a_total 6\n").rates("a_total") == {(): 3.0}


def test_quantiles_are_those_of_the_interval_alone() -> None:
    it = window(counted(9.0), counted(9.0, *[0.004] * 99))
    half = it.quantile_s("coupon_rpc_duration_seconds", 0.5, method=REDEEM)
    assert half is not None
    assert 0.0025 < half < 0.005
    assert it.quantile_s("coupon_rpc_duration_seconds", 0.5, method="other") is None


def test_a_quantile_above_the_last_bound_is_that_bound() -> None:
    it = window("", counted(60.0))
    assert it.quantile_s("coupon_rpc_duration_seconds", 0.95, method=REDEEM) == 10.0


def test_replicas_are_added_up_but_for_what_they_all_see() -> None:
    text = 'coupon_rpcs_total{method="m"} 3\ncoupon_locks_live 7\n'
    total = merged({"one": parsed(text), "other": parsed(text), "away": None})
    assert total == {
        ("coupon_rpcs_total", (("method", "m"),)): 6.0,
        ("coupon_locks_live", ()): 7.0,
    }


def test_calls_are_shown_with_their_rate_and_latency() -> None:
    text = shown(window("", counted(*[0.004] * 400)))
    (line,) = (it for it in text.splitlines() if REDEEM in it)
    assert line.split()[1:3] == ["200", "0"]


def test_a_replica_that_is_away_is_named() -> None:
    assert "10.0.0.9:9464 cannot be reached" in shown(window("", ""), ("10.0.0.9:9464",))


def test_a_book_that_has_enough_is_not_shown() -> None:
    text = (
        'coupon_book_left{book_id="low"} 3\ncoupon_book_low_threshold{book_id="low"} 5\n'
        'coupon_book_left{book_id="much"} 9\ncoupon_book_low_threshold{book_id="much"} 5\n'
    )
    output = shown(window("", text))
    assert "low" in output
    assert "much" not in output


@pytest.mark.parametrize("text", ["<html>", "not a metric at all {"])
def test_what_is_no_exposition_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own
        parsed(text)


@pytest.mark.parametrize("typed", ["[::1]:9464", "http://[::1]:9464", "http://[::1]:9464/metrics"])
def test_a_target_may_be_a_url(typed: str) -> None:
    assert checked_target(typed) == "[::1]:9464"


@pytest.mark.parametrize(
    "typed", ["", "9464", "shop:", "shop:0", "shop:65536", "https://shop:9464"]
)
def test_a_target_is_a_host_and_a_port(typed: str) -> None:
    with pytest.raises(CommandError):
        checked_target(typed)
