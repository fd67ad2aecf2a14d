"""The settings of the service: their definition, their sources, their documentation.

A setting is an environment variable or a line of ``.env``. The variable has precedence, and an
empty value counts as unset. ``.env.example`` and the table of docs/configuration.md are generated
from the class.
"""

from coupon_service.settings.constraints import Purpose
from coupon_service.settings.load import TOKEN_VARIABLE, SettingsError, load_settings
from coupon_service.settings.settings import Settings
from coupon_service.settings.sources import values_in_effect
from coupon_service.settings.text import env_example, settings_table
from coupon_service.settings.values import PREFIX

__all__ = [
    "PREFIX",
    "TOKEN_VARIABLE",
    "Purpose",
    "Settings",
    "SettingsError",
    "env_example",
    "load_settings",
    "settings_table",
    "values_in_effect",
]
