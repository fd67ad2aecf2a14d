"""The ledger in files and other systems: `audit export`, `audit follow`, `redemptions export`."""

# redis-py does not type its keyword arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
from redis import Redis
from support.command_line import run, running
from support.doc_tables import ROOT
from support.service import Api, books
from support.waiting import until

from coupon_service.cli import audit_events, exported_rows
from coupon_service.cli.failure import CommandError
from coupon_service.client import CouponClient
from coupon_service.v1.audit_service_pb2 import AuditEvent

Command = Callable[..., CompletedProcess[str]]

EXAMPLE = ROOT / "deploy" / "examples" / "ledger_to_redis.py"


@pytest.fixture
def command(server_address: str, tmp_path: Path) -> Command:
    """Run a command against the shared server, in a folder of the test's own."""

    def command(*arguments: str | Path) -> CompletedProcess[str]:
        return run(tmp_path, *arguments, "--address", server_address)

    return command


def redeemed(api: Api, *users: str) -> books.CouponBook:
    """A book with a redemption of each user."""
    book = api.book(codes=5)
    for user in users:
        redeem(api, book, user)
    return book


def redeem(api: Api, book: books.CouponBook, user: str) -> str:
    code = api.assign_random(book.book_id, user).assignment.code
    return api.redeem(code, user).redemption.redemption_id


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_events_are_exported_and_later_ones_are_added(
    api: Api, command: Command, tmp_path: Path
) -> None:
    book, out = redeemed(api, "ann"), tmp_path / "events.jsonl"
    done = command("audit", "export", out, "--book", book.book_id)
    assert (done.returncode, done.stdout) == (0, "")
    first = lines_of(out)
    listed = api.events(book_id=book.book_id)
    assert {it["event_id"] for it in first} == {it.event_id for it in listed}
    numbers = [int(it["sequence"]) for it in first]
    assert numbers == sorted(numbers)
    redeem(api, book, "bob")
    assert command("audit", "export", out, "--book", book.book_id).returncode == 0
    more = lines_of(out)
    assert more[: len(first)] == first
    assert [it["user_id"] for it in more[len(first) :]] == ["bob", "bob"]


def test_an_export_that_was_cut_off_has_each_event_once(
    api: Api, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, out = redeemed(api, "ann", "bob"), tmp_path / "events.csv"
    ours = ("audit", "export", out, "--format", "csv", "--book", book.book_id)
    real = audit_events.ProgressFile.keep

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_events.ProgressFile, "keep", cut_off)
    assert command(*ours).returncode == 130
    assert out.stat().st_size > 0
    monkeypatch.setattr(audit_events.ProgressFile, "keep", real)
    assert command(*ours).returncode == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [it["event_id"] for it in rows] == [
        it.event_id for it in sorted(api.events(book_id=book.book_id), key=lambda it: it.sequence)
    ]
    assert rows[-1]["type"] == "REDEEMED"


def test_an_export_between_two_times_is_complete_once(
    api: Api, command: Command, tmp_path: Path
) -> None:
    book, out = redeemed(api, "ann"), tmp_path / "events.jsonl"
    ours = ("audit", "export", out, "--book", book.book_id, "--since", "2020-01-01")
    assert command(*ours, "--until", "2020-02-01").returncode == 0
    assert lines_of(out) == []
    again = command(*ours, "--until", "2020-02-01")
    assert "is complete: 0 rows" in again.stderr
    other = command(*ours)
    assert other.returncode == 1
    assert "is of another export" in other.stderr
    (tmp_path / "events.jsonl.token").unlink()
    assert command(*ours, "--until", "2100-01-01T00:00:00+0100").returncode == 0
    assert len(lines_of(out)) == len(api.events(book_id=book.book_id))


def test_an_export_whose_file_has_lost_rows_is_not_gone_on_with(
    api: Api, command: Command, tmp_path: Path
) -> None:
    book, out = redeemed(api, "ann"), tmp_path / "events.jsonl"
    ours = ("audit", "export", out, "--book", book.book_id)
    assert command(*ours).returncode == 0
    whole = out.read_text("utf-8")
    out.write_text(whole[:-10], "utf-8")
    for _ in ("shortened", "deleted"):
        done = command(*ours)
        assert (done.returncode, done.stderr[: len(str(out))]) == (1, str(out))
        assert "has lost rows" in done.stderr
        out.unlink(missing_ok=True)
    (tmp_path / "events.jsonl.token").unlink()
    assert command(*ours).returncode == 0
    assert out.read_text("utf-8") == whole


@pytest.mark.parametrize("text", ["none", "[]", '{"of": {}, "rows": "x"}', "\0"])
def test_what_no_export_has_left_is_not_gone_on_with(
    command: Command, tmp_path: Path, text: str
) -> None:
    (tmp_path / "events.jsonl.token").write_text(text, "utf-8")
    done = command("audit", "export", "events.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "events.jsonl.token is not what an export has left.\n"


def test_redemptions_are_exported_as_they_are(api: Api, command: Command, tmp_path: Path) -> None:
    book, out = api.book(codes=3), tmp_path / "redemptions.csv"
    kept, undone = (redeem(api, book, user) for user in ("ann", "bob"))
    api.rollback(undone)
    ours = ("redemptions", "export", out, "--format", "csv", "--book", book.book_id)
    assert command(*ours).returncode == 0
    with out.open(newline="") as file:
        rows = {it["redemption_id"]: it for it in csv.DictReader(file)}
    assert {it: row["state"] for it, row in rows.items()} == {
        kept: "SUCCEEDED",
        undone: "ROLLED_BACK",
    }
    assert rows[undone]["rollback_time"].endswith("+00:00")
    assert "is complete: 2 rows" in command(*ours).stderr


def test_parquet_needs_a_package_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CommandError, match="coupon-service\\[parquet\\]"):
        exported_rows.ParquetWriter(Path("out"), AuditEvent.DESCRIPTOR)


def test_parquet_has_typed_columns(api: Api, command: Command, tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    book, out = redeemed(api, "ann"), tmp_path / "events.parquet"
    ours = ("audit", "export", out, "--format", "parquet", "--book", book.book_id)
    assert command(*ours).returncode == 0
    table = parquet.read_table(out)
    assert [str(table.schema.field(it).type) for it in ("sequence", "event_time", "type")] == [
        "int64",
        "timestamp[us, tz=UTC]",
        "string",
    ]
    listed = sorted(api.events(book_id=book.book_id), key=lambda it: it.sequence)
    assert table.column("event_id").to_pylist() == [it.event_id for it in listed]
    assert "cannot be added to Parquet" in command(*ours).stderr


def test_followed_events_are_printed_and_the_token_is_kept(
    api: Api, server_address: str, tmp_path: Path
) -> None:
    book, kept = redeemed(api, "ann"), tmp_path / "kept"
    ours = ("audit", "follow", "--book", book.book_id, "--token-file", "kept")
    printed: list[dict[str, Any]] = []
    for user in ("bob", "eve"):
        redeem(api, book, user)
        with running(tmp_path, *ours, "--address", server_address) as process:
            assert process.stdout is not None
            before = len(printed)
            while [it.get("user_id") for it in printed[before:]].count(user) < 2:
                printed.append(json.loads(process.stdout.readline()))
            until(lambda: kept.exists() and json.loads(kept.read_text())["rows"] == len(printed))
    listed = sorted(api.events(book_id=book.book_id), key=lambda it: it.sequence)
    assert [it["event_id"] for it in printed] == [it.event_id for it in listed]


def test_a_token_that_cannot_be_kept_ends_following(command: Command) -> None:
    done = command("audit", "follow", "--from-now", "--token-file", "no/folder/kept")
    assert done.returncode == 1
    assert done.stderr.startswith("no/folder/kept cannot be written: No such file or directory.")


def test_following_begins_at_one_place(command: Command) -> None:
    done = command("audit", "follow", "--from-now", "--since", "2026-01-01")
    assert (done.returncode, done.stderr) == (1, "Give either --since or --from-now.\n")


# --- the example ----------------------------------------------------------------------------------


def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("ledger_to_redis", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class CutRedis(Redis):
    """It fails for the first time that a transaction is to be executed."""

    cuts = 1

    def pipeline(self, *arguments: Any, **named: Any) -> Any:
        if self.cuts:
            self.cuts -= 1
            raise ConnectionError
        return super().pipeline(*arguments, **named)


def test_the_example_carries_each_event_to_a_redis_stream(
    api: Api, server_address: str, redis_url: str
) -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 40
    module, book = example(), redeemed(api, "ann")
    with CouponClient(server_address) as client, CutRedis.from_url(redis_url) as redis:
        with pytest.raises(ConnectionError):
            module.carry(client, redis, stop_at_end=True)
        module.carry(client, redis, stop_at_end=True)
        redeem(api, book, "bob")
        module.carry(client, redis, stop_at_end=True)
        entries: Any = redis.xrange(module.STREAM)
        carried = [
            fields[b"event_id"].decode()
            for _, fields in entries
            if json.loads(fields[b"event"]).get("bookId") == book.book_id
        ]
        redis.delete(module.STREAM, module.TOKEN)
    listed = sorted(api.events(book_id=book.book_id), key=lambda it: it.sequence)
    assert carried == [it.event_id for it in listed]
