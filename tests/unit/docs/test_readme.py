from __future__ import annotations

import json
import re

import pytest
from support.doc_tables import (
    PARTS,
    PROTO,
    README,
    ROOT,
    first_sentence,
    reasons_table,
    rpc_table,
    up_to_date,
)

from coupon_service.cli.call import methods
from coupon_service.cli.client import RETRIES
from coupon_service.rpc.status import TABLE
from coupon_service.v1.error_reason_pb2 import ErrorReason

TEXT = README.read_text(encoding="utf-8")

PACKAGE = ROOT / "coupon_service"


@pytest.mark.parametrize("part", PARTS)
def test_what_follows_from_the_code_is_as_the_code_is(part: str) -> None:
    assert PARTS[part]() in TEXT, "bring it up to date: python tests/support/doc_tables.py"


def test_bringing_it_up_to_date_changes_nothing_else() -> None:
    assert up_to_date(TEXT) == TEXT
    spoiled = TEXT.replace("| RedemptionService | RedeemCode |", "| RedemptionService | Redeem |")
    assert spoiled != TEXT
    assert up_to_date(spoiled) == TEXT


def test_all_methods_are_listed() -> None:
    listed = re.findall(r"^\| (\w+Service) \| (\w+) \| \S", rpc_table(), re.MULTILINE)
    declared = [(it.containing_service.name, it.name) for it in methods()]
    assert listed == [it for it in declared if it[0] != "Health"]


def test_all_reasons_are_listed_with_the_status_they_come_with() -> None:
    listed = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| \S", reasons_table(), re.MULTILINE)
    assert {reason for _, reason in listed} == {
        name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]
    }
    assert {(kind.code.name, kind.name) for kind in TABLE.values()} == set(listed)


def test_every_comment_of_a_method_begins_with_a_whole_sentence() -> None:
    assert first_sentence("Does it. And more.") == "Does it."
    for line in rpc_table().splitlines()[2:]:
        assert line.endswith(". |"), line


def test_the_retries_are_a_service_config() -> None:
    (config,) = json.loads(RETRIES)["methodConfig"]
    assert config["name"] == [{}]
    assert 2 <= config["retryPolicy"]["maxAttempts"] <= 5


def test_every_file_and_make_target_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z0-9-]+)", TEXT):
        assert f"\n{target}:" in makefile, target
    for path in named_files():
        assert (ROOT / path).exists() or (PACKAGE / path).exists(), path
    assert PROTO.is_dir()


def test_every_part_of_the_code_is_named() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert parts - named_files() == {"py.typed", "v1"}


def test_every_link_within_the_page_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= anchors


def named_files() -> set[str]:
    """What the table of the code names."""
    table = TEXT.split("\n## The code\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return {path for cell in cells for path in re.findall(r"`([^`]+)`", cell)}
