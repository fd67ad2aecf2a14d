"""CHANGELOG.md, in the form of Keep a Changelog."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

FILE = Path(__file__).parents[2] / "CHANGELOG.md"
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
UNRELEASED = "Unreleased"
HEADING = re.compile(r"^## \[([^]]+)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """A section: the version, the day, and what it says by kind of change."""

    version: str
    day: date | None
    text: str

    @property
    def kinds(self) -> list[str]:
        """The kinds of changes, in order."""
        return re.findall(r"^### (.+)$", self.text, re.MULTILINE)

    @property
    def entries(self) -> list[str]:
        """The first lines of its entries."""
        return re.findall(r"^- (.+)$", self.text, re.MULTILINE)


def releases() -> list[Release]:
    """The sections, newest first; the first one is Unreleased."""
    text = FILE.read_text(encoding="utf-8")
    headings = list(HEADING.finditer(text))
    ends = [*(it.start() for it in headings[1:]), len(text)]
    return [
        Release(it[1], date.fromisoformat(it[2]) if it[2] else None, text[it.end() : end])
        for it, end in zip(headings, ends, strict=True)
    ]
