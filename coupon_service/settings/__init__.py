"""Every setting of the service, where it comes from, and what is wrong with it.

A setting is an environment variable or a line of ``.env`` (the variable wins); an empty one counts
as not set. ``.env.example`` and the table of docs/configuration.md are rendered from the class.
"""

from coupon_service.settings.load import TOKEN_VARIABLE, SettingsError, load_settings
from coupon_service.settings.settings import Settings
from coupon_service.settings.text import env_example, settings_table
from coupon_service.settings.values import PREFIX

__all__ = [
    "PREFIX",
    "TOKEN_VARIABLE",
    "Settings",
    "SettingsError",
    "env_example",
    "load_settings",
    "settings_table",
]
