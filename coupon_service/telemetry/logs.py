"""Logs: one line an event on standard output, JSON for machines or coloured for people.

No line carries a credential, and a line that cannot be written never fails the request that it
is about. Codes are masked by whoever logs them, with ``mask_code``.
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
"""The fields whose values are never written, at whatever depth."""

EACH = "each"
"""The field of an event that stands for many: their own fields, event by event. Each is a line."""

REDACTED = "[redacted]"

URL_PASSWORD = re.compile(r"(://[^\s/@:]*):[^\s/]+@")

ROW_VALUES = re.compile(r"(DETAIL|CONTEXT):  .*")
"""What PostgreSQL adds to the message of an error, to the end of the line: often values of rows."""


class LineLogger:
    """Writes lines at once, so that those of several processes do not mix and none is lost."""

    def __init__(self, stream: BinaryIO, name: str = "") -> None:
        self._stream = stream
        self.name = name

    def write(self, lines: bytes) -> None:
        """Write ``lines``; if that is impossible (closed pipe, full disk) they are lost."""
        start = 0
        while len(lines) - start >= PIPE_BUF:  # more at once could mix with others in a pipe
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
    """Sends what libraries log through ``logging`` the way that our own events go."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log ``record`` with the name of its logger, its level rounded down."""
        if _shows_bytes(record):
            return
        try:
            level = min(record.levelno // 10 * 10, logging.CRITICAL)
            log = structlog.get_logger(record.name)
            log.log(level, record.getMessage(), exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - whatever a library logs badly, it must not fail for it
            self.handleError(record)


def _shows_bytes(record: logging.LogRecord) -> bool:
    """Whether gRPC logs bytes of a request that are not UTF-8, one by one and with a traceback.

    They may be a token, and anybody may send any number of them.
    """
    return record.name == "grpc._cython.cygrpc" and (
        isinstance(record.msg, UnicodeDecodeError) or str(record.msg).startswith("Invalid encoding")
    )


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    output: Literal["auto", "json", "console"],
    stream: BinaryIO | None = None,
) -> None:
    """Set up ``structlog`` and ``logging`` for this process; again to change the level.

    Loggers come from ``structlog.get_logger(name)``; the name becomes the field ``logger``. Our own
    events below ``level`` cost next to nothing; libraries are heard from WARNING on. ``auto`` is
    the console on a terminal and JSON anywhere else. ``stream`` is standard output unless given.
    """
    target = stream if stream is not None else sys.stdout.buffer
    on_terminal = target.isatty()
    console = output == "console" or (output == "auto" and on_terminal)
    structlog.configure(
        processors=[
            # The console would show local variables in tracebacks, and those hold codes and tokens.
            structlog.processors.format_exc_info,
            redact,
            stamp,
            console_renderer(colors=on_terminal) if console else render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=functools.partial(LineLogger, target),
        # Costs a microsecond a line, and the level can be changed while the process runs.
        cache_logger_on_first_use=False,
    )
    # The handler has a level of its own: a library that sets its logger to DEBUG passes the root's.
    handler = LibraryHandler(logging.WARNING)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def mask_code(code: str) -> str:
    """A coupon code as it may be logged: only its end, to recognise it by in a support case.

    That is four characters of a code of 10 or more, two of one of 6 or more, else none.
    """
    shown = 4 if len(code) >= 10 else 2 if len(code) >= 6 else 0
    return f"***{code[len(code) - shown :]}"


def redact(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Processor: hide the values of ``SECRET_KEYS``, passwords in URLs and what PostgreSQL tells of
    rows, at every depth."""
    each = event_dict.pop(EACH, None)
    redacted = _without_secrets(event_dict)
    if each is not None:
        redacted[EACH] = [_without_secrets(fields) for fields in each]
    return redacted


def _without_secrets(fields: EventDict) -> EventDict:
    return fields if _is_plain(fields) else cast("EventDict", _redacted(fields))


def stamp(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Processor: put time (ISO 8601, UTC), level and logger in front."""
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
    """Processor: the event as a JSON object on one line."""
    each = event_dict.pop(EACH, None)
    text = _json(event_dict)
    if each is None:
        return text
    common = text[:-1] + b","
    return b"\n".join([common + _json(fields)[1:] for fields in each])


def _json(fields: EventDict) -> bytes:
    """The fields as JSON in ASCII, so that no terminal takes what is in them for a command."""
    with contextlib.suppress(ValueError):  # text that UTF-8 cannot express
        text = to_json(fields)  # in a fourth of the time
        if text.isascii():
            return text
    return _ENCODER.encode(fields).encode("ascii")


def console_renderer(*, colors: bool) -> Processor:
    """A processor that renders events for people."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors)

    def render(logger: WrappedLogger, method: str, event_dict: EventDict) -> bytes:
        each = event_dict.pop(EACH, ({},))
        lines = [renderer(logger, method, {**event_dict, **fields}) for fields in each]
        return "\n".join(lines).encode("utf-8", "backslashreplace")

    return render


# skipkeys: a nested mapping may have keys of any kind, and a log line must not raise.
_ENCODER = json.JSONEncoder(separators=(",", ":"), skipkeys=True)


def _is_plain(event_dict: EventDict) -> bool:
    """Whether there is nothing to hide or to change: so it is for the line of nearly every RPC."""
    for key, value in event_dict.items():
        if key in SECRET_KEYS:
            return False
        if isinstance(value, str):
            if "://" in value or ":  " in value:  # it may match one of the patterns
                return False
        elif value is not None and not isinstance(value, (int, float)):
            return False
    return True


def _redacted(value: Any) -> Any:
    """``value`` without secrets, as JSON types; anything else becomes its ``repr``."""
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
