"""A command that is read from its request when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from coupon_service.model import Command, CommandGroup

C = TypeVar("C", bound=Command)


class LazyCommand(Generic[C]):
    """A group of one command, which is read when its batch begins.

    Requests that are read one right after the other find the code in the processor's caches; each
    read when it comes would not. `read` may raise, which is its caller's answer.
    """

    __slots__ = ("_read", "command", "deadline")
    size: Final = 1

    def __init__(self, read: Callable[[], C], deadline: float | None) -> None:
        self._read = read
        self.deadline = deadline
        self.command: C
        """Known when there is an answer."""

    @property
    def was_read(self) -> bool:
        """Whether there is a `command`."""
        return hasattr(self, "command")

    def group(self) -> CommandGroup:
        """The group, of the command that is read now."""
        self.command = self._read()
        return CommandGroup((self.command,))
