"""The files of the schema's steps."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

MIGRATIONS = Path(__file__).parents[3] / "migrations"
TWICE = {"0004": 2}
"""Renamed, one of these two would be a step that databases do not have yet."""


STATEMENT = re.compile(r"ALTER TABLE[^;]*;")
ACTION = re.compile(r"\n\s+(?=ADD |DROP |ALTER )")


def test_a_constraint_is_added_by_a_command_of_its_own() -> None:
    """Citus takes no ADD CONSTRAINT beside others, and no ADD COLUMN with a constraint."""
    for path in MIGRATIONS.glob("*.sql"):
        for statement in STATEMENT.findall(path.read_text("utf-8")):
            actions = ACTION.split(statement)
            assert "ADD CONSTRAINT" not in statement or len(actions) <= 2, path.name
            for action in actions:
                if action.startswith("ADD COLUMN"):
                    assert not re.search(r"\b(CHECK|UNIQUE|REFERENCES)\b", action), path.name


def test_storage_is_left_alone_where_citus_is() -> None:
    """Citus has no SET STORAGE."""
    for path in MIGRATIONS.glob("*.sql"):
        for before in path.read_text("utf-8").split("SET STORAGE")[:-1]:
            assert "extname = 'citus'" in before[-250:], path.name


def test_each_step_has_a_number_of_its_own_and_can_be_taken_back() -> None:
    files = {it.name for it in MIGRATIONS.glob("*.sql")}
    steps = {name for name in files if not name.endswith(".rollback.sql")}
    assert files == steps | {name.replace(".sql", ".rollback.sql") for name in steps}
    numbers = Counter(name.partition(".")[0] for name in steps)
    assert {number: count for number, count in numbers.items() if count > 1} == TWICE
    assert sorted(numbers) == [f"{it:04}" for it in range(1, len(numbers) + 1)]
