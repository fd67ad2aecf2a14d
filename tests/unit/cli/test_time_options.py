"""Options that name a time take the same forms in every command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
import typer
from typer.testing import CliRunner

from coupon_service.cli.application import application
from coupon_service.cli.fields import time_option

BAD = [
    "",
    "yesterday",
    "2026-13-01",
    "2026-01-31T25:00",
    "31.01.2026",
    "0001-01-01T00:00+01:00",
    "9999-12-31T23:59-01:00",
]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T08:00:00", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        (
            "2026-01-31T08:00:00+0100",
            datetime(2026, 1, 31, 8, tzinfo=timezone(timedelta(hours=1))),
        ),
    ],
)
def test_a_time_without_a_zone_is_in_utc(text: str, moment: datetime) -> None:
    assert time_option(text) == moment


@pytest.mark.parametrize("text", BAD)
def test_a_bad_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="such as 2026-12-31"):
        time_option(text)


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "export", "events.jsonl", "--since"),
        ("audit", "verify", "--until"),
        ("audit", "archive", ".", "--closed-before"),
        ("redemptions", "export", "redemptions.csv", "--until"),
        ("codes", "revoke", "book", "--assigned-before"),
    ],
    ids=" ".join,
)
def test_every_command_says_which_option_is_wrong(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(application(), [*command, "yesterday"])
    assert result.exit_code == 2
    assert f"Invalid value for '{command[-1]}'" in result.output
    assert "2026-12-31" in result.output
