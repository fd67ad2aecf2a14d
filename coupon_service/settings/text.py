"""The settings as text: the table of the documentation, ``.env.example``, expected values."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from coupon_service.settings.settings import Settings
from coupon_service.settings.values import Matching, Readable, variable

SECTIONS = {
    "host": "Listening",
    "rate_limit_end_users": "Limits for callers",
    "database_url": "PostgreSQL",
    "batch_max_size": "Batches",
    "redis_url": "Redis and locks",
    "book_series_max": "Running",
}
"""The first setting of each section of ``.env.example``."""


def settings_table() -> str:
    """All settings as a Markdown table."""
    lines = ["| Setting | Default | Expected | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = f"`{_default(field)}`" if _default(field) else ""
        lines.append(
            f"| `{variable(name)}` | {default} | {expected(field)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def env_example() -> str:
    """The text of ``.env.example``: all settings with their defaults, commented out."""
    lines = [
        "# Settings of the coupon service. Copy this file to .env and uncomment what is to change.",
        "# Environment variables have precedence over the file.",
    ]
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            lines += ["", f"# --- {SECTIONS[name]} ---"]
        meaning = f"{field.description} Expected: {expected(field)}."
        lines += ["", *textwrap.wrap(meaning, 100, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"# {variable(name)}={_default(field)}")
    return "\n".join(lines) + "\n"


def expected(field: FieldInfo) -> str:
    """The values that a setting accepts. Raises TypeError for a type that has no words yet."""
    for rule in field.metadata:
        if isinstance(rule, AfterValidator) and isinstance(rule.func, Matching | Readable):
            return rule.func.expected
    if field.annotation is int:
        low, high = (
            next(getattr(rule, side) for rule in field.metadata if hasattr(rule, side))
            for side in ("ge", "le")
        )
        return f"a whole number from {low} to {high}"
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    if field.annotation is Path:
        return "a folder"
    if Path in get_args(field.annotation):
        return "a file"
    raise TypeError(f"there are no words for the values of {field.annotation}")


def _default(field: FieldInfo) -> str:
    """The default in the syntax of ``.env``; empty where there is none or it is computed."""
    if field.default_factory is not None or field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
