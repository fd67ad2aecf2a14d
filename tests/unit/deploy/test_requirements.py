"""What an installation of the package needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
STUBS = ROOT / "coupon_service/v1"
PROTOBUF = r"Protobuf Python Version: (\S+)"
GRPC = r"GRPC_GENERATED_VERSION = '(\S+)'"


def test_no_version_is_allowed_that_refuses_the_stubs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    allowed = {
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["server"],
        *map(str, project["dependency-groups"]["dev"]),
    }
    grpc, protobuf = made_by(GRPC, "*_pb2_grpc.py"), made_by(PROTOBUF, "*_pb2.py")
    packages = ("grpcio", *(f"grpcio-{it}" for it in ("health-checking", "reflection", "status")))
    needed = {f"{name}>={grpc}" for name in (*packages, "grpcio-tools")}
    assert needed | {f"protobuf>={protobuf}"} <= allowed


def made_by(version: str, files: str) -> str:
    """The version that all stubs were made by."""
    found = {re.findall(version, path.read_text("utf-8"))[0] for path in STUBS.glob(files)}
    assert len(found) == 1
    return found.pop()
