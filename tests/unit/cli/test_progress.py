from __future__ import annotations

import pytest

from coupon_service.cli import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose last number is the time in seconds."""
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[-1])
    return seconds


def test_where_nobody_is_looking_a_line_is_written_at_most_every_two_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress("Importing", "rows", 60_000, 1_500_000) as update:
        for number in range(1, 51):
            clock.append(number / 10)
            update(number * 1_000, number * 25_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Importing: 20,000 of 60,000 rows, 500.0 kB of 1.5 MB",
        "Importing: 40,000 of 60,000 rows, 1.0 MB of 1.5 MB",
    ]


def test_what_takes_less_than_two_seconds_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.progress("Importing", "rows") as update:
        update(5_000, 0)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_shows_rows_and_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with progress.progress("Importing", "rows", None, 2_000) as update:
        update(10, 1_000)
    assert "10 rows, 1.0 kB of 2.0 kB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("done", "total", "done_bytes", "total_bytes", "text"),
    [
        (5_000, 12_000, 0, None, "5,000 of 12,000 codes"),
        (5_000, None, 85_000, 204_000, "5,000 codes, 85.0 kB of 204.0 kB"),
        (5_000, None, 85_000, None, "5,000 codes, 85.0 kB"),
        (0, 0, 0, 0, "0 codes"),
    ],
)
def test_amounts_are_named_with_their_totals_where_those_are_known(
    done: int, total: int | None, done_bytes: int, total_bytes: int | None, text: str
) -> None:
    assert progress.amounts("codes", done, total, done_bytes, total_bytes) == text
