"""Statements that a distributed PostgreSQL, such as Citus, takes as they are."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import psycopg

from coupon_service import store

CALLED = re.compile(r"\b([a-z_][a-z0-9_]*)\s*\(")
CLOCKS = re.compile(r"\bcurrent_(?:timestamp|date|time|user)\b|\binterval\s+'", re.IGNORECASE)


def statements() -> Iterator[tuple[str, str]]:
    """The name and the text of every statement with ON CONFLICT."""
    for module in pkgutil.walk_packages(store.__path__, "coupon_service.store."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.isupper() and isinstance(value, str) and "ON CONFLICT" in value:
                yield f"{module.name}.{name}", value


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
    found = dict(statements())
    assert len(found) > 10
    for name, text in found.items():
        _, _, conflict = text.partition("ON CONFLICT")
        assert not changing & set(CALLED.findall(conflict)), name
        assert not CLOCKS.search(conflict), name
