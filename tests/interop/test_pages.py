"""The checkouts of the pages for Python, Node and Go, as they are printed there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from support.calls import locking_code
from support.doc_pages import literal_part
from support.service import Api, unique

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
PATIENCE_S: Final = 300

Program = list[str | Path]


def python(folder: Path) -> Program:
    (folder / "checkout.py").write_text(literal_part("python_checkout"), encoding="utf-8")
    return [sys.executable, "checkout.py"]


def node(folder: Path) -> Program:
    modules = HERE / "node_modules"
    if shutil.which("node") is None or not modules.exists():
        pytest.skip("Node or its packages are missing: make interop")
    (folder / "node_modules").symlink_to(modules)
    (folder / "checkout.js").write_text(literal_part("node_checkout"), encoding="utf-8")
    return ["node", "checkout.js"]


def go(folder: Path) -> Program:
    plugins = [ROOT / ".tools" / it for it in ("protoc-gen-go", "protoc-gen-go-grpc")]
    if shutil.which("go") is None or not all(it.exists() for it in plugins):
        pytest.skip("Go or its plugins are missing: make interop")
    shutil.copytree(HERE / "go", folder, dirs_exist_ok=True)
    (folder / "main.go").write_text(literal_part("go_checkout"), encoding="utf-8")
    stubs = ("--go_out=.", "--go-grpc_out=.", "--go_opt=paths=source_relative")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"),
            *(f"--plugin={it}" for it in plugins),
            *(*stubs, "--go-grpc_opt=paths=source_relative"),
            *(ROOT / "proto").glob("coupon_service/v1/*.proto"),
        ],
        cwd=folder,
        check=True,
    )
    subprocess.run(["go", "build", "-o", "checkout", "."], cwd=folder, check=True)
    return [folder / "checkout"]


@pytest.mark.parametrize("language", [python, node, go], ids=lambda it: it.__name__)
def test_a_checkout_redeems_a_code_and_reads_reasons(
    language: Callable[[Path], Program], api: Api, server_address: str, tmp_path: Path
) -> None:
    program = language(tmp_path)

    def check_out(code: str) -> str:
        environment = {
            **os.environ,
            "COUPONS": server_address,
            "CODE": code,
            "CONTRACT": str(ROOT / "proto"),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            program,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        ).stdout.strip()

    code = locking_code(api)
    assert check_out(code) == "discount: 400"
    (redemption,) = api.events(code=code, order_id="order-1")
    assert redemption.user_id == "ann"
    locked = locking_code(api)
    api.lock(locked, unique("other"))
    assert "CODE_LOCKED" in check_out(locked) or "somebody else" in check_out(locked)
    assert check_out("UNKNOWN-CODE") == "not accepted: CODE_NOT_FOUND"
