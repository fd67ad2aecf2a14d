"""Search for secrets in all that the service logs during tests.

Codes and lock tokens are collected from the messages that pass a `Watched` channel: answers of the
service and uploads of codes. `keep_secret` adds other secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message
from support.proof_sizes import AT_LENGTH

LENGTH_MIN = 8
"""Shorter texts may be in a log by chance."""

SECRET_FIELDS = frozenset({"code", "codes", "sample_codes", "lock_token"})

RUNS = re.compile(r"[0-9A-Z]+(?:[-_][0-9A-Z]+)*")
SEPARATORS = re.compile(r"[^0-9A-Z]")


class Secrets:
    """The secrets that this process knows."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._runs: set[str] = set()

    def keep(self, text: str) -> None:
        """Add a password or another text that is searched for literally."""
        if len(text) >= LENGTH_MIN:
            self._texts.add(text)

    def keep_code(self, text: str) -> None:
        """Add a code, which is found in any spelling, or a token."""
        self._runs.add(SEPARATORS.sub("", text.upper()))
        self._runs.update(run for run in RUNS.findall(text.upper()) if len(run) >= 2 * LENGTH_MIN)

    def keep_those_in(self, message: Message) -> None:
        """Add the codes and tokens of an answer or an upload."""
        for field, value in message.ListFields():
            values = value if field.is_repeated else (value,)
            if field.message_type is not None:
                if not field.message_type.GetOptions().map_entry:
                    for each in values:
                        self.keep_those_in(each)
            elif field.name in SECRET_FIELDS and field.type == field.TYPE_STRING:
                for each in values:
                    self.keep_code(each)

    def found_in(self, log: str) -> Iterator[str]:
        """The lines that have a secret."""
        for line in log.splitlines():
            runs = RUNS.findall(line.upper())
            parts = {SEPARATORS.sub("", run) for run in runs} | {
                part for run in runs for part in re.split("[-_]", run)
            }
            hits = [part for part in parts & self._runs if len(part) >= LENGTH_MIN]
            if hits or any(text in line for text in self._texts):
                yield line


class Watched:
    """A channel for stubs that collects secrets from messages."""

    def __init__(self, channel: grpc.Channel, secrets: Secrets) -> None:
        self._channel = channel
        self._secrets = secrets

    def __getattr__(self, arity: str) -> Callable[..., Any]:
        """One of unary_unary, unary_stream, stream_unary, stream_stream."""

        def method(
            name: str, request_serializer: Any, response_deserializer: Any, **more: Any
        ) -> Any:
            def serialize(request: Any) -> bytes:
                if name.endswith("/ImportCodes"):
                    self._secrets.keep_those_in(request)
                return request_serializer(request)

            def deserialize(response: bytes) -> Any:
                message = response_deserializer(response)
                self._secrets.keep_those_in(message)
                return message

            make = getattr(self._channel, arity)
            return make(name, serialize, deserialize, **more)

        return method


class Log:
    """The log stream of the service in this process. pytest shows it where a test fails."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def isatty(self) -> bool:
        """False: it is no terminal."""
        return False

    def write(self, line: bytes) -> int:
        """Keep the line, and print it, except in `make proof`, which logs millions of lines."""
        self._lines.append(line)
        return len(line) if AT_LENGTH else os.write(1, line)

    def flush(self) -> None:
        """Has no effect."""

    def take(self) -> str:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return b"".join(lines).decode()


SECRETS = Secrets()


def keep_secret(*texts: str) -> None:
    """Add texts that must not be logged; of URLs, only their passwords."""
    for text in texts:
        SECRETS.keep(urlsplit(text).password or "" if "://" in text else text)
