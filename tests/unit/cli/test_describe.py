"""`coupon-service describe`: what every method takes, from the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import run

from coupon_service.cli.contract import find_method, methods, short_name
from coupon_service.cli.describe import contract_comments
from coupon_service.cli.examples import EXAMPLES
from coupon_service.cli.requests import read_messages

NAMES = [short_name(method) for method in methods()]


def described(name: str, folder: Path) -> str:
    done = run(folder, "describe", name)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_field_of_a_request_is_described(name: str, tmp_path: Path) -> None:
    text = described(name, tmp_path)
    method = find_method(name)
    for field in method.input_type.fields:
        assert f"  {field.name}: " in text
    comments = contract_comments()
    if not name.startswith("Health/"):
        assert comments[name.replace("/", ".")].split()[0] in text
        for field in method.input_type.fields:
            assert comments[f"{method.input_type.name}.{field.name}"]


def test_a_description_has_comments_values_and_messages_within(tmp_path: Path) -> None:
    text = described("create_coupon_book", tmp_path)
    lines = text.splitlines()
    assert lines[0].endswith("CreateCouponBookRequest -> CreateCouponBookResponse")
    at = lines.index("    lock_policy: required, optional, off")
    assert lines[at + 1] == "        Whether codes are locked. Default OPTIONAL."
    assert "        basis_points: whole number" in lines
    assert "    default_lock_ttl: a duration, such as 90s, 5m or 1h30m" in lines
    assert "etag" not in text  # only in answers
    assert max(map(len, lines)) <= 100


def test_there_is_an_example_for_each_method() -> None:
    assert list(EXAMPLES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_request(name: str, tmp_path: Path) -> None:
    assert read_messages(EXAMPLES[name], find_method(name))
    assert f"coupon-service call {name} '{EXAMPLES[name]}'" in described(name, tmp_path)


def test_an_unknown_method_is_answered_with_the_one_that_was_meant(tmp_path: Path) -> None:
    done = run(tmp_path, "describe", "RedemCode")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Did you mean RedemptionService/RedeemCode " in done.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("RedemptionService/Redeem", {"RedemptionService/RedeemCode"}),
        ("Redeem", {"RedeemCode"}),
        ("assignments", set[str]()),
        ("AssignmentService/AssignC", {"AssignmentService/AssignCode"}),
    ],
)
@pytest.mark.parametrize("command", ["call", "describe"])
def test_a_shell_completes_methods(
    command: str, typed: str, expected: set[str], tmp_path: Path
) -> None:
    done = run(
        tmp_path,
        _COUPON_SERVICE_COMPLETE="complete_bash",
        COMP_WORDS=f"coupon-service {command} {typed}",
        COMP_CWORD="2",
        _TYPER_COMPLETE_ARGS=f"coupon-service {command} {typed}",
    )
    assert set(done.stdout.split()) == expected
