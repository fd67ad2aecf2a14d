"""Why a command ends with exit code 1."""

from __future__ import annotations


class CommandError(Exception):
    """The command cannot be carried out. The message is for people, and complete."""
