from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.telemetry.logs import SECRET_KEYS, configure_logging, mask_code

SECRET = "hunter2"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:  # basicConfig(force=True) closes the handlers of the root
        root.removeHandler(handler)
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def lines(stream: io.BytesIO) -> Lines:
    configure_logging("info", "json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


class TestJson:
    def test_event_is_one_object_on_one_line(self, lines: Lines) -> None:
        structlog.get_logger("coupon_service.rpc").info(
            "rpc", method="RedeemCode", note="a\nb", n=1.5
        )
        (line,) = lines()
        time = datetime.fromisoformat(line.pop("timestamp"))
        assert time.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - time) < timedelta(hours=1)
        assert line == {
            "level": "info",
            "event": "rpc",
            "logger": "coupon_service.rpc",
            "method": "RedeemCode",
            "note": "a\nb",
            "n": 1.5,
        }

    def test_events_below_the_level_are_dropped(self, lines: Lines) -> None:
        log = structlog.get_logger()
        log.debug("no")
        log.info("yes")
        log.warning("yes")
        log.error("yes")
        assert [line["level"] for line in lines()] == ["info", "warning", "error"]
        assert {line["event"] for line in lines()} == {"yes"}

    def test_exception_is_logged_with_its_traceback(self, lines: Lines) -> None:
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            structlog.get_logger().exception("failed", error_id="e1")
        (line,) = lines()
        assert line["level"] == "error"
        assert line["error_id"] == "e1"
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("RuntimeError: broken")

    @pytest.mark.parametrize(
        "value",
        [
            object(),
            {1, 2},
            {(1, 2): 3},
            b"\xff",
            "\ud800",
            "\x00\n🎉",
            ValueError("x"),
            float("inf"),
        ],
    )
    def test_any_value_can_be_logged(self, value: object, lines: Lines) -> None:
        structlog.get_logger().info("event", value=value)
        assert len(lines()) == 1

    @pytest.mark.parametrize("text", ["\x9b31m", "\u2028", "ü", "\ud800", "plain"])
    def test_line_is_ascii_for_any_text(self, text: str, lines: Lines, stream: io.BytesIO) -> None:
        structlog.get_logger().info("event", text=text)
        structlog.get_logger().info("event", each=[{"text": text}])
        assert [line["text"] for line in lines()] == [text, text]
        assert stream.getvalue().isascii()

    def test_line_is_flushed_when_the_call_returns(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with os.fdopen(writer, "wb") as stream:
            configure_logging("info", "json", stream)
            structlog.get_logger().info("event")
            assert os.read(reader, 4096).endswith(b'"event":"event"}\n')
        os.close(reader)


class Writes(io.BytesIO):
    """A stream that records each single write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, piece: Any) -> int:
        self.pieces.append(bytes(piece))
        return super().write(piece)


class TestBatchesOfEvents:
    def test_each_event_is_a_line_with_the_common_fields(self, lines: Lines) -> None:
        structlog.get_logger("coupon_service.rpc").info("rpc", each=[{"n": 1}, {"n": 2}])
        first, second = lines()
        assert (first.pop("n"), second.pop("n")) == (1, 2)
        assert first == second
        assert list(first) == ["timestamp", "level", "logger", "event"]

    def test_each_event_is_a_line_on_the_console(self, stream: io.BytesIO) -> None:
        configure_logging("info", "console", stream)
        structlog.get_logger().info("rpc", each=[{"n": 1}, {"n": 2}])
        first, second = stream.getvalue().decode().splitlines()
        assert "n=1" in first
        assert "n=2" in second

    def test_secrets_of_each_event_are_redacted(self, lines: Lines) -> None:
        url = f"redis://:{SECRET}@cache:6379/0"
        structlog.get_logger().info("rpc", each=[{"n": 1}, {"token": SECRET}, {"url": url}])
        assert SECRET not in json.dumps(lines())
        assert len(lines()) == 3

    def test_batch_is_written_in_atomic_pieces_of_whole_lines(self) -> None:
        stream = Writes()
        configure_logging("info", "json", stream)
        texts = ["short", "x" * 3_000, "y" * 3_000, "z" * 2 * PIPE_BUF, "last", *"many" * 100]
        structlog.get_logger().info("rpc", each=[{"text": text} for text in texts])
        lines = [json.loads(line)["text"] for line in stream.getvalue().splitlines()]
        assert lines == texts
        assert all(piece.endswith(b"\n") for piece in stream.pieces)
        assert all(len(it) <= PIPE_BUF or it.count(b"\n") == 1 for it in stream.pieces)
        assert len(stream.pieces) < 20


class TestOutput:
    def test_auto_is_json_without_a_terminal(self, stream: io.BytesIO) -> None:
        configure_logging("info", "auto", stream)
        structlog.get_logger().info("event")
        assert json.loads(stream.getvalue())["event"] == "event"

    def test_auto_is_the_coloured_console_on_a_terminal(self) -> None:
        master, slave = os.openpty()
        with os.fdopen(slave, "wb") as stream:
            configure_logging("info", "auto", stream)
            structlog.get_logger().info("event", method="RedeemCode")
            shown = os.read(master, 4096).decode()
        os.close(master)
        assert "\x1b[" in shown
        assert "RedeemCode" in shown
        assert not shown.startswith("{")

    def test_console_without_a_terminal_has_no_colours(self, stream: io.BytesIO) -> None:
        configure_logging("info", "console", stream)
        structlog.get_logger().info("event", method="RedeemCode", odd="\ud800🎉")
        assert "method=RedeemCode" in stream.getvalue().decode()
        assert b"\x1b[" not in stream.getvalue()

    def test_console_traceback_shows_no_local_variables(self, stream: io.BytesIO) -> None:
        configure_logging("info", "console", stream)
        try:
            token_of_caller = SECRET
            raise RuntimeError(len(token_of_caller))
        except RuntimeError:
            structlog.get_logger().exception("failed")
        assert "RuntimeError" in stream.getvalue().decode()
        assert SECRET not in stream.getvalue().decode()

    def test_default_stream_is_standard_output(
        self, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        configure_logging("info", "json")
        structlog.get_logger().info("event")
        assert b'"event":"event"' in capfdbinary.readouterr().out

    def test_full_disk_does_not_fail_the_caller(self) -> None:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            configure_logging("info", "json", stream)
            structlog.get_logger().info("event")

    def test_closed_output_does_not_fail_the_caller(self, stream: io.BytesIO) -> None:
        configure_logging("info", "json", stream)
        stream.close()
        structlog.get_logger().info("event")


class TestLibraries:
    def test_their_warnings_are_logged_as_events(self, lines: Lines) -> None:
        logging.getLogger("psycopg.pool").warning("error connecting in %r: %s", "pool-1", "refused")
        (line,) = lines()
        del line["timestamp"]
        assert line == {
            "level": "warning",
            "event": "error connecting in 'pool-1': refused",
            "logger": "psycopg.pool",
        }

    def test_their_exceptions_are_logged_with_a_traceback(self, lines: Lines) -> None:
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("asyncio").exception("never retrieved")
        assert lines()[0]["exception"].endswith("RuntimeError: broken")

    def test_exc_info_without_an_exception_has_no_traceback(self, lines: Lines) -> None:
        logging.getLogger("asyncio").error("late", exc_info=True)  # noqa: LOG014
        assert lines()[0]["event"] == "late"

    def test_request_bytes_that_grpc_quotes_are_not_written(self, lines: Lines) -> None:
        log, token = logging.getLogger("grpc._cython.cygrpc"), b"Bearer secret\xff"
        try:
            token.decode()
        except UnicodeDecodeError as error:
            log.exception("Invalid encoding on %s", token)
            log.exception(error)
        log.error("something else")
        (line,) = lines()
        assert line["event"] == "something else"

    def test_their_events_below_warning_are_dropped(
        self, lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = logging.getLogger("grpc")
        monkeypatch.setattr(library, "level", logging.DEBUG)
        library.info("polling")
        assert lines() == []

    @pytest.mark.parametrize(
        ("number", "level"), [(30, "warning"), (35, "warning"), (45, "error"), (99, "critical")]
    )
    def test_custom_levels_are_rounded_down(self, number: int, level: str, lines: Lines) -> None:
        logging.getLogger("redis").log(number, "event")
        assert lines()[0]["level"] == level

    def test_malformed_record_does_not_fail_the_library(
        self, lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging, "raiseExceptions", False)
        logging.getLogger("redis").warning("%d", "not a number")
        assert lines() == []


class TestSecrets:
    @pytest.mark.parametrize("key", sorted(SECRET_KEYS))
    def test_secret_fields_are_redacted_at_any_depth(self, key: str, lines: Lines) -> None:
        log = structlog.get_logger().bind(**{key: SECRET})
        log.info("event", inner={"list": [{key: SECRET}, ({key: [SECRET]},)]})
        (line,) = lines()
        assert SECRET not in json.dumps(line)
        assert line[key] == "[redacted]"
        assert line["inner"]["list"][0] == {key: "[redacted]"}

    @pytest.mark.parametrize("output", ["json", "console"])
    def test_passwords_in_urls_are_redacted(self, output: Any, stream: io.BytesIO) -> None:
        configure_logging("info", output, stream)
        url = f"postgresql://coupon:{SECRET}@db:5432/coupon"
        log = structlog.get_logger()
        log.info("connecting to %s", url, deep=[{"url": url}], object=ConnectionError(url))
        logging.getLogger("psycopg.pool").warning("cannot connect to %s", url)
        try:
            raise ConnectionError(f"redis://:{SECRET}@cache:6379/0")
        except ConnectionError:
            log.exception("failed")
        text = stream.getvalue().decode()
        assert SECRET not in text
        assert "@db:5432/coupon" in text
        assert "@cache:6379/0" in text

    def test_other_values_are_unchanged(self, lines: Lines) -> None:
        structlog.get_logger().info("event", url="https://host/path?a=b:c@d", tokens=3, code="x@y")
        (line,) = lines()
        assert line["url"] == "https://host/path?a=b:c@d"
        assert (line["tokens"], line["code"]) == (3, "x@y")

    def test_the_mapping_of_the_caller_is_not_modified(self, lines: Lines) -> None:
        metadata = {"token": SECRET}
        structlog.get_logger().info("event", metadata=metadata)
        assert metadata == {"token": SECRET}
        assert lines()[0]["metadata"] == {"token": "[redacted]"}


class TestMaskCode:
    @pytest.mark.parametrize(
        ("code", "masked"),
        [
            ("ABCDEFGHJKMN", "***JKMN"),
            ("ABCDEFGHJK", "***GHJK"),
            ("SUMMER25", "***25"),
            ("ABCDEF", "***EF"),
            ("ABCDE", "***"),
            ("A", "***"),
            ("", "***"),
        ],
    )
    def test_only_the_end_is_shown(self, code: str, masked: str) -> None:
        assert mask_code(code) == masked

    @given(st.text(min_size=1))
    def test_most_of_a_code_stays_hidden(self, code: str) -> None:
        shown = mask_code(code).removeprefix("***")
        assert code.endswith(shown)
        assert len(shown) <= min(4, len(code) * 0.4)
