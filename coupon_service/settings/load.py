"""Loading of settings from the environment and ``.env``, with clear errors."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from coupon_service.settings.constraints import Purpose, conflicts, missing
from coupon_service.settings.settings import Settings
from coupon_service.settings.sources import given_values
from coupon_service.settings.text import expected
from coupon_service.settings.values import PREFIX, variable

TEST_PREFIX = "COUPON_TEST_"
"""Variables of the test suite, which the service ignores."""

TOKEN_VARIABLE = "COUPON_TOKEN"  # noqa: S105 - its name
"""The token of commands that call a service. The service itself ignores it."""

SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)")
"""Variables that Kubernetes sets for a Service named coupon-…, which are ignored as well."""


class SettingsError(Exception):
    """The settings are invalid. The message has a line for each variable and never a secret."""


def load_settings(
    env_file: Path | None = Path(".env"), purpose: Purpose | None = None, **overrides: Any
) -> Settings:
    """Read the settings from the environment and ``env_file``, which need not exist.

    ``overrides`` are values by field name with precedence over both, for example from the command
    line. Without a ``purpose`` all but missing settings are checked.

    Raises:
        SettingsError: a value is invalid or does not fit another one, one that ``purpose`` needs
            is missing, a name that begins with COUPON_ is unknown, or ``env_file`` cannot be read.
    """
    lines: list[str] = []
    if env_file is not None:
        lines += [f"{env_file}: {hint}" for hint in _unknown(_names_in(env_file))]
    lines += _unknown(
        name
        for name in os.environ
        if not name.startswith(TEST_PREFIX)
        and name != TOKEN_VARIABLE
        and not SERVICE_LINK.fullmatch(name)
    )
    lines += missing(given_values(env_file) | overrides, purpose)
    arguments: dict[str, Any] = {"_env_file": env_file, **overrides}
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        lines += _lines(error)
        raise SettingsError("\n".join(lines)) from None
    if lines := [*lines, *conflicts(settings, purpose)]:
        raise SettingsError("\n".join(lines))
    return settings


def _names_in(env_file: Path) -> list[str]:
    """The names that ``env_file`` sets; none where it is no file."""
    try:
        text = env_file.read_text("utf-8") if env_file.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{env_file} cannot be read: {reason}") from None
    names: list[str] = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key and binding.value is None):
            source = binding.original.string
            blank = source[: len(source) - len(source.lstrip())].count("\n")
            line = binding.original.line + blank
            raise SettingsError(f"{env_file}, line {line}: expected NAME=value or # comment")
        if binding.key:
            names.append(binding.key)
    return names


def _unknown(names: Iterable[str]) -> Iterator[str]:
    known = [name.upper() for name in Settings.model_fields]
    for name in names:
        setting = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            yield f"{name}: there is no such setting{hint}"


def _lines(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        name = str(problem["loc"][0]).lower().removeprefix(PREFIX.lower())
        field = Settings.model_fields[name]
        got = "" if _is_secret(field) else f", not {str(problem['input'])[:60]!r}"
        yield f"{variable(name)}: expected {expected(field)}{got}"


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in get_args(field.annotation)
