"""The files of the schema's steps."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

MIGRATIONS = Path(__file__).parents[3] / "migrations"
TWICE = {"0004": 2}
"""Renamed, one of these two would be a step that databases do not have yet."""


STATEMENT = re.compile(r"ALTER TABLE[^;]*;")


def test_a_column_and_its_check_are_two_commands() -> None:
    """Citus takes no ADD COLUMN with a constraint."""
    for path in MIGRATIONS.glob("*.sql"):
        for statement in STATEMENT.findall(path.read_text("utf-8")):
            for action in re.split(r"\n\s+(?=ADD |DROP |ALTER )", statement):
                if action.startswith("ADD COLUMN"):
                    assert not re.search(r"\b(CHECK|UNIQUE|REFERENCES)\b", action), path.name


def test_each_step_has_a_number_of_its_own_and_can_be_taken_back() -> None:
    files = {it.name for it in MIGRATIONS.glob("*.sql")}
    steps = {name for name in files if not name.endswith(".rollback.sql")}
    assert files == steps | {name.replace(".sql", ".rollback.sql") for name in steps}
    numbers = Counter(name.partition(".")[0] for name in steps)
    assert {number: count for number, count in numbers.items() if count > 1} == TWICE
    assert sorted(numbers) == [f"{it:04}" for it in range(1, len(numbers) + 1)]
