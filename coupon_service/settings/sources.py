"""Which settings are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from coupon_service.settings.settings import Settings
from coupon_service.settings.values import PREFIX


def given_values(env_file: Path | None) -> dict[str, Any]:
    """The text of each setting that the environment or `env_file` sets, by field name."""
    found: dict[str, Any] = DotEnvSettingsSource(Settings, env_file=env_file)()
    found |= EnvSettingsSource(Settings)()
    return {name.lower().removeprefix(PREFIX.lower()): text for name, text in found.items()}
