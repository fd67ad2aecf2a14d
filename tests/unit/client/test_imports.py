"""What a program that uses the client has to have installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import coupon_service.client
from coupon_service.v1 import audit_service_pb2_grpc
files = {name: str(getattr(it, "__file__", "")) for name, it in sys.modules.items()}
installed = (name for name, file in files.items() if "site-packages" in file)
print(*sorted({name.partition(".")[0] for name in installed} - before))
"""
BEFORE = "import sys\nbefore = {name.partition('.')[0] for name in sys.modules}\n"


def test_the_client_imports_grpc_and_protobuf_and_nothing_of_the_server() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", BEFORE + PROGRAM], check=True, capture_output=True, text=True
    )
    # grpcio brings and finds these by itself; a development venv has the service outside of it.
    optional = {"typing_extensions", "grpc_health", "grpc_reflection", "grpc_tools"}
    assert set(ran.stdout.split()) - optional - {"coupon_service"} == {"google", "grpc"}
