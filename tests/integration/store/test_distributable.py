"""Statements that a distributed PostgreSQL, such as Citus, takes as they are."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg

from coupon_service import store

MIGRATIONS = Path(__file__).parents[3] / "migrations"
CALLED = re.compile(r"\b([a-z_][a-z0-9_]*)\s*\(")
ON_CONFLICT = re.compile(r"ON CONFLICT[^;]*")
CASE_OF = re.compile(r"\bCASE\s+(?!WHEN\b)\S")
CLOCKS = re.compile(r"\bcurrent_(?:timestamp|date|time|user)\b|\binterval\s+'", re.IGNORECASE)


def on_conflicts() -> Iterator[tuple[str, str]]:
    """Every ON CONFLICT to the end of its statement, and the name of where it is: those of
    functions are in the migrations."""
    for module in pkgutil.walk_packages(store.__path__, "coupon_service.store."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.isupper() and isinstance(value, str):
                for conflict in ON_CONFLICT.findall(value):
                    yield f"{module.name}.{name}", conflict
    for path in MIGRATIONS.glob("*.sql"):
        for conflict in ON_CONFLICT.findall(path.read_text("utf-8")):
            yield path.name, conflict


def test_nothing_in_on_conflict_depends_on_the_time_or_the_session(postgres_url: str) -> None:
    """Citus refuses functions there that are not IMMUTABLE, or crashes on them."""
    with psycopg.connect(postgres_url) as connection:
        changing = {
            name
            for (name,) in connection.execute(
                "SELECT proname FROM pg_proc WHERE provolatile <> 'i'"
                " EXCEPT SELECT proname FROM pg_proc WHERE provolatile = 'i'"
            )
        }
    assert "now" in changing
    found = list(on_conflicts())
    assert len(found) > 10
    for name, conflict in found:
        assert not changing & set(CALLED.findall(conflict)), name
        assert not CLOCKS.search(conflict), name


def test_no_case_in_on_conflict_has_an_operand() -> None:
    """Citus passes `CASE a WHEN b` on as `CASE a WHEN a = b` there."""
    for name, conflict in on_conflicts():
        assert not CASE_OF.search(conflict), name
