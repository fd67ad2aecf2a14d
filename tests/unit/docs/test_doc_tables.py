from __future__ import annotations

import json
import re

from support.doc_tables import (
    commands_section,
    first_sentence,
    layers_table,
    reasons_table,
    rpc_table,
)

from coupon_service.cli.client import RETRIES
from coupon_service.cli.contract import methods
from coupon_service.rpc.status import TABLE
from coupon_service.v1.error_reason_pb2 import ErrorReason


def test_table_lists_all_methods() -> None:
    listed = re.findall(r"^\| (\w+Service) \| (\w+) \| \S", rpc_table(), re.MULTILINE)
    declared = [(it.containing_service.name, it.name) for it in methods()]
    assert listed == [it for it in declared if it[0] != "Health"]


def test_table_lists_all_reasons_with_their_status() -> None:
    listed = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| \S", reasons_table(), re.MULTILINE)
    assert {reason for _, reason in listed} == {
        name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]
    }
    assert {(kind.code.name, kind.name) for kind in TABLE.values()} == set(listed)


def test_each_method_comment_begins_with_a_sentence() -> None:
    assert first_sentence("Does it. And more.") == "Does it."
    for line in rpc_table().splitlines()[2:]:
        assert line.endswith(". |"), line


def test_each_package_docstring_begins_with_a_sentence() -> None:
    rows = layers_table().splitlines()[2:]
    assert len(rows) > 20
    for row in rows:
        _, _, _, meaning, _, _ = row.split("|")
        assert meaning.strip().endswith("."), row


def test_commands_are_described_with_arguments_and_options() -> None:
    text = commands_section()
    assert "\n    coupon-service import BOOK FILE\n" in text
    assert "\n    coupon-service migrate down\n" in text
    assert "\n| `--expires-in SECONDS` | Lifetime of the token. Default: 3600. |\n" in text
    assert "None" not in text


def test_retries_are_a_valid_service_config() -> None:
    (config,) = json.loads(RETRIES)["methodConfig"]
    assert config["name"] == [{}]
    assert 2 <= config["retryPolicy"]["maxAttempts"] <= 5
