"""`coupon-service token`, and the commands that take one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.command_line import run
from support.service import ServerThread, new_codes, unique
from support.token_clients import caller
from support.token_issuers import AUDIENCE, ISSUER, SECRET

SETTINGS = {
    "COUPON_JWT_SECRET": SECRET,
    "COUPON_JWT_ISSUER": ISSUER,
    "COUPON_JWT_AUDIENCE": AUDIENCE,
}


def made(folder: Path, *options: str) -> str:
    """The token that the command prints."""
    done = run(folder, "token", *options, stdin=b"", **SETTINGS)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def complaint(folder: Path, *options: str, variables: Mapping[str, str] = SETTINGS) -> str:
    done = run(folder, "token", *options, stdin=b"", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_the_service_takes_it_as_an_option_and_from_the_environment(
    guarded: ServerThread, tmp_path: Path
) -> None:
    business = unique("business")
    token = made(tmp_path, "--role", "issuer", "--subject", "tester", "--business", business)
    book = {"business_id": business, "name": "b", "discount": {"benefit": {"description": "tea"}}}
    request = json.dumps({"coupon_book": book})
    call = ("call", "CreateCouponBook", request, "--address", guarded.address)
    for done in (
        run(tmp_path, *call, "--token", token),
        run(tmp_path, *call, COUPON_TOKEN=token),
    ):
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["coupon_book"]["business_id"] == business
    done = run(tmp_path, *call)
    assert done.returncode == 1
    assert done.stderr.startswith("UNAUTHENTICATED: Expected the metadata")
    redeemer = made(tmp_path, "--role", "redeemer", "--role", "auditor")
    assert run(tmp_path, *call, "--token", redeemer).stderr.startswith("PERMISSION_DENIED")


def test_codes_are_made_uploaded_and_downloaded_with_it(
    guarded: ServerThread, tmp_path: Path
) -> None:
    business = unique("business")
    with caller(guarded.address, "issuer", business=business) as api:
        book = api.draft(business_id=business).book_id
    names = sorted(new_codes(3))
    (tmp_path / "codes.txt").write_text("\n".join(names))
    at = ("--address", guarded.address)
    token = made(tmp_path, "--role", "issuer", "--business", business)
    for command in (("import", book, "codes.txt"), ("generate", book, "2"), ("export", book)):
        without = run(tmp_path, *command, *at)
        assert without.returncode == 1
        assert without.stderr.startswith("UNAUTHENTICATED")
        done = run(tmp_path, *command, *at, COUPON_TOKEN=token)
        assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert set(names) <= set(done.stdout.splitlines())


def test_an_end_user_has_a_business(guarded: ServerThread, tmp_path: Path) -> None:
    said = complaint(tmp_path, "--role", "self", "--subject", "ann")
    assert "--business" in said
    token = made(tmp_path, "--role", "self", "--subject", "ann", "--business", "acme")
    request = '{"user_id": "ann"}'
    call = ("call", "ListUserCoupons", request, "--address", guarded.address, "--token", token)
    assert run(tmp_path, *call).returncode == 0


def test_it_lasts_as_long_as_is_said(guarded: ServerThread, tmp_path: Path) -> None:
    import jwt

    claims = jwt.decode(
        made(tmp_path, "--role", "admin", "--expires-in", "90"),
        options={"verify_signature": False},
    )
    assert claims["exp"] - claims["iat"] == 90
    assert "business_id" not in claims


def test_an_unknown_role_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    said = complaint(tmp_path, "--role", "boss")
    assert said == "boss is no role. Roles: admin, issuer, redeemer, auditor, self."


def test_without_a_secret_it_says_where_one_comes_from(tmp_path: Path) -> None:
    said = complaint(tmp_path, "--role", "admin", variables={})
    assert "COUPON_JWT_SECRET" in said
    assert "coupon-service dev" in said


@pytest.mark.parametrize("name", ["COUPON_JWT_SECRET", "COUPON_AUTH"])
def test_a_setting_that_cannot_be_used_is_reported(name: str, tmp_path: Path) -> None:
    assert complaint(tmp_path, "--role", "admin", variables={name: "x"}).startswith(
        f"{name}: expected"
    )
