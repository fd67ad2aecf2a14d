"""Logs: one line for each event on standard output, as JSON or coloured for a terminal.

No line carries a credential, and a line that cannot be written never fails the request that it
is about. The code that logs a coupon code masks it with ``mask_code``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any, BinaryIO, Literal, cast

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_KEYS = frozenset(
    {"authorization", "database_url", "lock_token", "password", "redis_url", "token"}
)
"""Fields whose values are never written, at any depth."""

EACH = "each"
"""The field of a batch of events: the fields of each one. Every event becomes a line."""

REDACTED = "[redacted]"

URL_PASSWORD = re.compile(r"(://[^\s/@:]*):[^\s/]+@")

ROW_VALUES = re.compile(r"(DETAIL|CONTEXT):  .*")
"""The rest of a line that PostgreSQL adds to an error message. It often holds values of rows."""


class LineLogger:
    """Writes lines unbuffered, so that lines of several processes never mix and none is lost."""

    def __init__(self, stream: BinaryIO, name: str = "") -> None:
        self._stream = stream
        self.name = name

    def write(self, lines: bytes) -> None:
        """Write ``lines``. They are dropped when the stream fails (closed pipe, full disk)."""
        start = 0
        while len(lines) - start >= PIPE_BUF:  # a longer write to a pipe is not atomic
            end = lines.rfind(b"\n", start, start + PIPE_BUF)
            if end < 0:
                end = lines.find(b"\n", start)
            if end < 0:
                break
            self._write(lines[start : end + 1])
            start = end + 1
        self._write(lines[start:] + b"\n")

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
            self._stream.flush()

    debug = info = warning = error = critical = write


class LibraryHandler(logging.Handler):
    """Routes the records of ``logging``, which libraries use, into ``structlog``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log ``record`` under the name of its logger, with its level rounded down."""
        if _quotes_request_bytes(record):
            return
        try:
            level = min(record.levelno // 10 * 10, logging.CRITICAL)
            log = structlog.get_logger(record.name)
            log.log(level, record.getMessage(), exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - a malformed record must not fail the library that logs
            self.handleError(record)


def _quotes_request_bytes(record: logging.LogRecord) -> bool:
    """Whether gRPC quotes request bytes that are not UTF-8, with a traceback for each request.

    The bytes may be a token, and an unauthenticated client can send any number of them.
    """
    return record.name == "grpc._cython.cygrpc" and (
        isinstance(record.msg, UnicodeDecodeError) or str(record.msg).startswith("Invalid encoding")
    )


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    output: Literal["auto", "json", "console"],
    stream: BinaryIO | None = None,
) -> None:
    """Set up ``structlog`` and ``logging`` for this process. A second call changes the level.

    Loggers come from ``structlog.get_logger(name)``; the name becomes the field ``logger``. Events
    below ``level`` cost next to nothing. Libraries log from WARNING on. ``auto`` means the console
    format on a terminal and JSON elsewhere. ``stream`` defaults to standard output.
    """
    target = stream if stream is not None else sys.stdout.buffer
    on_terminal = target.isatty()
    console = output == "console" or (output == "auto" and on_terminal)
    structlog.configure(
        processors=[
            # ConsoleRenderer would print local variables in tracebacks: codes and tokens.
            structlog.processors.format_exc_info,
            redact,
            stamp,
            console_renderer(colors=on_terminal) if console else render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=functools.partial(LineLogger, target),
        # A cached logger would keep its level when a reload changes it.
        cache_logger_on_first_use=False,
    )
    # A library that sets its logger to DEBUG bypasses the root's level, so the handler has one too.
    handler = LibraryHandler(logging.WARNING)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def mask_code(code: str) -> str:
    """A coupon code as it may be logged: only its end, enough to recognise it in a support case.

    Shows four characters of a code of 10 or more, two of a code of 6 or more, otherwise none.
    """
    shown = 4 if len(code) >= 10 else 2 if len(code) >= 6 else 0
    return f"***{code[len(code) - shown :]}"


def redact(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Processor: redact values of ``SECRET_KEYS``, passwords in URLs and row values in messages of
    PostgreSQL, at any depth."""
    each = event_dict.pop(EACH, None)
    redacted = _without_secrets(event_dict)
    if each is not None:
        redacted[EACH] = [_without_secrets(fields) for fields in each]
    return redacted


def _without_secrets(fields: EventDict) -> EventDict:
    return fields if _is_plain(fields) else cast("EventDict", _redacted(fields))


def stamp(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Processor: put time (ISO 8601, UTC), level and logger first."""
    stamped: EventDict = {
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": method,
    }
    if logger.name:
        stamped["logger"] = logger.name
    stamped["event"] = event_dict.pop("event")
    stamped.update(event_dict)
    return stamped


def render_json(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> bytes:
    """Processor: render the event as a JSON object on one line."""
    each = event_dict.pop(EACH, None)
    text = _json(event_dict)
    if each is None:
        return text
    common = text[:-1] + b","
    return b"\n".join([common + _json(fields)[1:] for fields in each])


def _json(fields: EventDict) -> bytes:
    """The fields as JSON in ASCII, so that a terminal never interprets them as control codes."""
    with contextlib.suppress(ValueError):  # a lone surrogate has no UTF-8
        text = to_json(fields)  # much faster than the standard library's encoder
        if text.isascii():
            return text
    return _ENCODER.encode(fields).encode("ascii")


def console_renderer(*, colors: bool) -> Processor:
    """A processor that renders events for a terminal."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors)

    def render(logger: WrappedLogger, method: str, event_dict: EventDict) -> bytes:
        each = event_dict.pop(EACH, ({},))
        lines = [renderer(logger, method, {**event_dict, **fields}) for fields in each]
        return "\n".join(lines).encode("utf-8", "backslashreplace")

    return render


# skipkeys: a nested mapping may have keys of any type, and logging must not raise.
_ENCODER = json.JSONEncoder(separators=(",", ":"), skipkeys=True)


def _is_plain(event_dict: EventDict) -> bool:
    """Whether nothing needs redaction or conversion: the fast path of nearly every RPC's line."""
    for key, value in event_dict.items():
        if key in SECRET_KEYS:
            return False
        if isinstance(value, str):
            if "://" in value or ":  " in value:  # may match URL_PASSWORD or ROW_VALUES
                return False
        elif value is not None and not isinstance(value, (int, float)):
            return False
    return True


def _redacted(value: Any) -> Any:
    """``value`` without secrets, as JSON types. Other types become their ``repr``."""
    if isinstance(value, str):
        return ROW_VALUES.sub(rf"\1:  {REDACTED}", URL_PASSWORD.sub(rf"\1:{REDACTED}@", value))
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: REDACTED if key in SECRET_KEYS else _redacted(each) for key, each in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(each) for each in cast("list[Any]", value)]
    return _redacted(repr(value))
