"""`coupon-service call` and `health`, against a real server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.command_line import run
from support.service import Api, new_codes, unique

from coupon_service.cli.examples import EXAMPLES
from coupon_service.embedded.machine import free_port

Call = Callable[..., CompletedProcess[str]]


@pytest.fixture
def call(server_address: str, tmp_path: Path) -> Call:
    """Call a method of the shared server, with messages as arguments or on standard input."""

    def call(
        method: str,
        *messages: object,
        mark: str = "",
        text: str = "",
        options: tuple[str, ...] = (),
    ) -> CompletedProcess[str]:
        text = text or "\n".join(map(json.dumps, messages))
        return run(
            tmp_path,
            *("call", method, mark or text, "--address", server_address, *options),
            stdin=text.encode() if mark else b"",
        )

    return call


def test_an_answer_is_printed_as_json_with_the_names_of_the_proto(api: Api, call: Call) -> None:
    request = {"code": api.code(), "user_id": "Ännchen", "request_id": unique("request")}
    done = call("RedemptionService/RedeemCode", request)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["redemption"]["user_id"] == "Ännchen"
    assert answer["counts"]["used_up"] is True
    assert "Ännchen" in done.stdout


def test_a_refusal_is_explained_on_standard_error(api: Api, call: Call) -> None:
    code = api.code()
    api.redeem(code, "ann")
    done = call("RedemptionService/RedeemCode", {"code": code, "user_id": "bob"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("FAILED_PRECONDITION CODE_ALREADY_REDEEMED: ")


def test_every_bad_field_is_named(call: Call) -> None:
    done = call("RedemptionService/RedeemCode", {"code": "", "user_id": " "})
    assert done.returncode == 1
    first, *fields = done.stderr.splitlines()
    assert first == "INVALID_ARGUMENT:"
    assert [line.split(":")[0].strip() for line in fields] == ["code", "user_id"]


@pytest.mark.parametrize("mark", ["-", "@"])
def test_a_stream_is_read_from_standard_input_and_each_message_answered(
    api: Api, call: Call, mark: str
) -> None:
    book, codes = api.draft(), new_codes(3)
    header = {"header": {"book_id": book.book_id, "request_id": unique("upload")}}
    chunks = [
        {"chunk": {"chunk_number": 1, "codes": codes[:2]}},
        {"chunk": {"chunk_number": 2, "codes": codes[1:]}},
    ]
    done = call("CouponCodeService/ImportCodes", header, *chunks, mark=mark)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = json.loads("[" + done.stdout.replace("}\n{", "},{") + "]")
    assert (first["chunk_number"], first["created_count"]) == (1, 2)
    assert (second["created_count"], second["duplicate_count"]) == (1, 1)
    assert second["rejected_rows"][0]["error"]["reason"] == "ERROR_REASON_DUPLICATE_CODE"


def test_what_a_stream_answered_before_it_failed_is_printed(api: Api, call: Call) -> None:
    header = {"header": {"book_id": api.draft().book_id, "request_id": unique("upload")}}
    done = call(
        "CouponCodeService/ImportCodes",
        header,
        {"chunk": {"chunk_number": 1, "codes": new_codes(1)}},
        header,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["created_count"] == 1
    assert done.stderr.startswith("INVALID_ARGUMENT")


@pytest.mark.parametrize("method", EXAMPLES)
def test_no_example_is_a_bad_request(method: str, call: Call) -> None:
    text = EXAMPLES[method]
    for word in ("BOOK_ID", "EVENT_ID", "LOCK_ID", "REDEMPTION_ID"):
        text = text.replace(word, str(uuid.uuid4()))
    done = call(method, mark="-", text=text, options=("--timeout", "2"))
    assert not done.stderr.startswith("INVALID_ARGUMENT"), done.stderr


def test_a_call_ends_at_its_deadline(call: Call) -> None:
    watched = call("Health/Watch", {}, options=("--timeout", "1"))
    assert watched.returncode == 1
    assert json.loads(watched.stdout) == {"status": "SERVING"}
    assert watched.stderr.startswith("DEADLINE_EXCEEDED")


def test_health_is_exit_code_0_when_it_serves(server_address: str, tmp_path: Path) -> None:
    done = run(tmp_path, "health", "--address", server_address)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")


@pytest.mark.parametrize("command", [("health",), ("call", "ListCouponBooks")])
def test_where_nothing_listens_is_reported_in_a_sentence(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    port = str(free_port())
    done = run(tmp_path, *command, COUPON_PORT=port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"UNAVAILABLE: the service at 127.0.0.1:{port} cannot be reached")
    assert len(done.stderr.splitlines()) == 1
