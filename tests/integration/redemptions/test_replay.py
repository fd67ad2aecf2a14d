"""`make replay`, on a year made up for the test: of the same shape, and small."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from support.command_line import ROOT, TIMEOUT_S, environment

from bench.replay import Result, read_year
from coupon_service.cli.failure import CommandError

Wish = tuple[str, str, str]
"""A household, the number of its campaign, and a coupon of it."""

REDEMPTIONS: Sequence[Wish] = [
    *((f"household-{number}", "1", "100") for number in range(30)),
    *(("glutton", "1", "100") for _ in range(3)),
    ("glutton", "2", "100"),
    ("glutton", "2", "200"),
    ("glutton", "2", "200"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A year of two campaigns with two coupons each, under names that no other test has."""
    first, second = (f"{uuid4().int % 10**12}{number}" for number in (1, 2))
    campaigns = {"1": first, "2": second}

    def write(name: str, header: str, rows: Sequence[str]) -> None:
        (tmp_path / name).write_text("\n".join([header, *rows, ""]))

    write(
        "campaigns.csv",
        "campaign_id,campaign_type,start_date,end_date",
        [f"{first},Type A,2017-03-03,2017-04-09", f"{second},Type B,2017-05-01,2017-05-01"],
    )
    coupons = [f"{campaign},{upc}" for campaign in (first, second) for upc in ("100", "200")]
    write("coupons.csv", "campaign_id,coupon_upc", coupons)
    write(
        "redemptions.csv",
        "redemption_date,household_id,campaign_id,coupon_upc",
        [
            f"2017-03-{number % 28 + 1:02},{household},{campaigns[campaign]},{upc}"
            for number, (household, campaign, upc) in enumerate(REDEMPTIONS)
        ],
    )
    return tmp_path


def replay(folder: Path, *options: str) -> tuple[int, dict[str, str], str]:
    """The exit code, the printed table, and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.replay", str(folder), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=TIMEOUT_S,
        check=False,
    )
    cells = [line.split("│") for line in done.stdout.splitlines() if line.count("│") == 3]
    return done.returncode, {row[1].strip(): row[2].strip() for row in cells}, done.stderr


def test_redemptions_beyond_the_limit_are_refused(folder: Path, server_address: str) -> None:
    exit_code, table, said = replay(folder, "--address", server_address)
    assert (exit_code, said) == (0, "")
    assert table["Codes"] == "4"
    assert table["Assignments"] == "33"
    assert table["Redemptions requested"] == "36"
    assert table["Refused: USER_LIMIT_EXCEEDED"] == "3"
    assert table["Accepted"] == table["In the ledger"] == table["In the counters"] == "33"


def test_higher_limit_refuses_less_on_a_private_service(folder: Path) -> None:
    exit_code, table, said = replay(folder, "--per-user", "2", "--clients", "5")
    assert (exit_code, said) == (0, "")
    assert table["Refused: USER_LIMIT_EXCEEDED"] == "1"
    assert table["Accepted"] == table["In the ledger"] == table["In the counters"] == "35"


def test_unexpected_refusal_fails_the_replay(folder: Path, server_address: str) -> None:
    with (folder / "redemptions.csv").open("a") as file:
        file.write("2017-04-01,household-1,1,100\n")  # of an unknown campaign
    exit_code, _, said = replay(folder, "--address", server_address)
    assert exit_code == 1
    assert "CODE_NOT_FOUND" in said


def test_second_replay_to_the_same_service_is_refused(folder: Path, server_address: str) -> None:
    assert replay(folder, "--address", server_address)[0] == 0
    exit_code, _, said = replay(folder, "--address", server_address)
    assert exit_code == 1
    assert "already has codes of this data set" in said


@pytest.mark.parametrize("missing", ["campaigns.csv", "coupons.csv", "redemptions.csv"])
def test_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CommandError, match=f"{missing} cannot be read"):
        read_year(folder)


def test_file_with_other_columns_is_refused(folder: Path) -> None:
    (folder / "campaigns.csv").write_text("campaign_id,start\n1,2017-03-03\n")
    with pytest.raises(CommandError, match="are not the data set"):
        read_year(folder)


@pytest.mark.parametrize(
    ("ledger", "counters"),
    [({"1": {"a"}}, {"1": 2}), ({"1": {"a", "c"}}, {"1": 2}), ({"1": {"a", "b"}}, {"1": 1})],
)
def test_differing_sums_are_detected(ledger: dict[str, set[str]], counters: dict[str, int]) -> None:
    result = Result(ledger={"1": {"a", "b"}}, counters={"1": 2})
    result.accepted["1"] = {"a", "b"}
    assert result.sums_hold()
    result.ledger, result.counters = ledger, counters
    assert not result.sums_hold()
