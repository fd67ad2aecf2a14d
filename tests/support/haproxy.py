"""HAProxy in front of replicas of the service, as docs/infrastructure.md sets it up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.doc_pages import literal_part
from support.waiting import until

from coupon_service.embedded.machine import HOST, free_port

PROGRAM = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

needs_haproxy = pytest.mark.skipif(
    PROGRAM is None, reason="HAProxy is not installed: apt-get install haproxy"
)


@contextmanager
def haproxy(folder: Path, replaced: Mapping[str, str]) -> Generator[str]:
    """The address of one with the documented configuration, in which the addresses of replicas,
    and what else there is, are `replaced`."""
    assert PROGRAM is not None
    port = free_port()
    text = literal_part("haproxy").replace("bind :50051", f"bind {HOST}:{port}")
    for documented, own in replaced.items():
        assert documented in text
        text = text.replace(documented, own)
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "-db", "-f", str(configuration)], stdout=log, stderr=log
        )
    try:
        until(lambda: _listens(port), why_not=(folder / "haproxy.log").read_text)
        yield f"{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex((HOST, port)) == 0
