"""CHANGELOG.md: every version has a section that says what changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import changelog
from support.changelog import FILE, KINDS, UNRELEASED, releases
from support.release_check import CheckError, check_changelog

from coupon_service import __version__

NEWEST, *OLDER = releases()


def test_what_is_not_released_comes_first() -> None:
    assert (NEWEST.version, NEWEST.day) == (UNRELEASED, None)


def test_the_version_is_the_newest_that_is_described() -> None:
    assert OLDER[0].version == __version__


@pytest.mark.parametrize(
    ("replaced", "by", "said"),
    [
        ("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- A fault.\n", "under Unreleased"),
        (f"## [{__version__}]", "## [99.0.0]", f"ends with 99.0.0, .* has {__version__}"),
    ],
)
def test_a_release_says_all_that_changed(
    replaced: str, by: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "CHANGELOG.md"
    file.write_text(FILE.read_text(encoding="utf-8").replace(replaced, by), encoding="utf-8")
    monkeypatch.setattr(changelog, "FILE", file)
    with pytest.raises(CheckError, match=said):
        check_changelog()


def test_every_heading_is_that_of_a_version() -> None:
    headings = re.findall(r"^## .*$", FILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) == len(OLDER) + 1


def test_versions_and_days_descend() -> None:
    versions = [tuple(map(int, it.version.split("."))) for it in OLDER]
    assert versions == sorted(set(versions), reverse=True)
    days = [it.day for it in OLDER if it.day is not None]
    assert len(days) == len(OLDER)
    assert days == sorted(days, reverse=True)


def test_every_version_says_what_changed_by_kind() -> None:
    for release in (NEWEST, *OLDER):
        assert set(release.kinds) <= set(KINDS)
        assert release is NEWEST or release.entries
