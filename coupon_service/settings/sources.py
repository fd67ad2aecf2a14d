"""Which settings are given, and where their values come from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices, SecretStr
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from coupon_service.settings.settings import Settings
from coupon_service.settings.values import PREFIX, variable

DEFAULT: Final = "default"
MASK: Final = "***"
PASSWORD: Final = re.compile(r"(//[^:@/]*:)[^?]*(?=@)|(password=)[^&]*")
"""In a URL: between user and host, or as a parameter; and what is before it."""


def given_values(env_file: Path | None) -> dict[str, Any]:
    """The text of each setting that the environment or `env_file` sets, by field name."""
    return {**_in_file(env_file), **_in_environment()}


def values_in_effect(settings: Settings, env_file: Path | None) -> list[tuple[str, str, str]]:
    """Variable, value and source of each setting. Secrets are masked, as are passwords in URLs;
    a value is empty where the setting has none."""
    in_file, in_environment = _in_file(env_file), _in_environment()
    rows: list[tuple[str, str, str]] = []
    for name in Settings.model_fields:
        source = DEFAULT
        if name in in_environment:
            source = f"environment{_other_name(name)}"
        elif name in in_file:
            source = str(env_file)
        rows.append((variable(name), _shown(getattr(settings, name)), source))
    return rows


def _in_file(env_file: Path | None) -> Mapping[str, Any]:
    return _by_field(DotEnvSettingsSource(Settings, env_file=env_file)())


def _in_environment() -> Mapping[str, Any]:
    return _by_field(EnvSettingsSource(Settings)())


def _by_field(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name.lower().removeprefix(PREFIX.lower()): text for name, text in found.items()}


def _other_name(name: str) -> str:
    """The variable, where it is another one than that of the setting."""
    alias = Settings.model_fields[name].validation_alias
    names = [str(it) for it in alias.choices] if isinstance(alias, AliasChoices) else []
    set_ones = {it.upper() for it, value in os.environ.items() if value}
    used = next((it for it in names if it in set_ones), variable(name))
    return "" if used == variable(name) else f", {used}"


def _shown(value: object) -> str:
    """The value in the syntax of `.env`, without what is secret."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if "://" in text:
        return PASSWORD.sub(rf"\1\2{MASK}", text)
    return MASK if isinstance(value, SecretStr) else text
