"""What `pip install coupon-service` gives: the contract and the client, in an empty environment."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support.service import Api, new_codes

ROOT = Path(__file__).parents[3]

NEEDED = {"coupon-service", "googleapis-common-protos", "grpcio", "protobuf", "typing-extensions"}
"""What is installed, beside pip. The last one is needed by grpcio."""

PROGRAM = """
import sys
from coupon_service.client import CouponClient, errors
address, code = sys.argv[1:]
with CouponClient(address) as client:
    print(client.redeem_code(code, "ann").redemption.redemption_id)
    try:
        client.redeem_code(code, "ann")
    except errors.CodeAlreadyRedeemed as error:
        print(error.reason)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installation")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, folder], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--only-binary", ":all:", wheel], check=True, capture_output=True
    )
    return folder / "venv"


def ran(environment: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A program of the environment, outside of the repository."""
    program, *arguments = command
    return subprocess.run(
        [environment / "bin" / program, *arguments],
        cwd=environment,
        check=check,
        capture_output=True,
        text=True,
    )


def test_the_client_needs_grpc_and_protobuf_alone(environment: Path) -> None:
    listed = json.loads(ran(environment, "python", "-m", "pip", "list", "--format", "json").stdout)
    installed = {it["name"].lower().replace("_", "-") for it in listed}
    assert installed - {"pip", "setuptools"} == NEEDED


def test_the_installed_client_redeems_a_code(
    environment: Path, api: Api, server_address: str
) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    printed = ran(environment, "python", "-c", PROGRAM, server_address, code).stdout.split()
    (redeemed,) = api.events(book_id=book.book_id, code=code, types=[16])
    assert printed == [redeemed.event_id, "CODE_ALREADY_REDEEMED"]


def test_the_contract_is_installed_for_other_compilers(environment: Path) -> None:
    (installed,) = environment.glob("lib/python*/site-packages/coupon_service/v1")
    files = {it.name: it.read_text() for it in installed.glob("*.proto")}
    contract = ROOT / "proto/coupon_service/v1"
    assert files == {it.name: it.read_text() for it in contract.glob("*.proto")}


def test_the_command_says_what_the_service_needs(environment: Path) -> None:
    refused = ran(environment, "coupon-service", "serve", check=False)
    assert refused.returncode == 1
    assert "pip install 'coupon-service[server]'" in refused.stderr
    assert "Traceback" not in refused.stderr
