"""Servers of Redis that take TLS alone, also among themselves: the embedded ones have none."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from support.certificates import Authority, Pair

from coupon_service.embedded.machine import HOST


def _takes_tls(program: str) -> bool:
    """Whether its first complaint is about the second line."""
    lines = "tls-auth-clients no\nport wrong\n"
    done = subprocess.run(
        ["redis-server", "-"],
        executable=program,
        input=lines.encode(),
        capture_output=True,
        check=False,
    )
    return b">>> 'port wrong'" in done.stdout + done.stderr


# In Debian's packages the server is a link to the program redis-check-rdb of redis-tools.
PROGRAM = next(
    filter(_takes_tls, filter(None, map(shutil.which, ("redis-server", "redis-check-rdb")))), None
)

needs_redis_with_tls = pytest.mark.skipif(
    PROGRAM is None, reason="No Redis with TLS is installed: apt-get install redis-tools"
)


@dataclass(frozen=True)
class RedisTls:
    """The certificate of all servers, and who issued it."""

    authority: Path
    own: Pair

    @property
    def query(self) -> str:
        """The parameters of a URL of the service."""
        return urlencode({"ssl_ca_certs": self.authority})

    def program(self, folder: Path) -> str:
        """The program, under the name by which it knows what it is to be."""
        assert PROGRAM is not None
        link = folder / "redis-server"
        link.unlink(missing_ok=True)
        link.symlink_to(PROGRAM)
        return str(link)

    def lines(self, port: int) -> list[str]:
        """The settings of a server."""
        return [
            "port 0",
            f"tls-port {port}",
            f"tls-cert-file {self.own.certificate}",
            f"tls-key-file {self.own.key}",
            f"tls-ca-cert-file {self.authority}",
            "tls-auth-clients no",
            "tls-replication yes",
            "tls-cluster yes",
        ]


def redis_tls(folder: Path, host: str = HOST) -> RedisTls:
    """With a certificate for `host`."""
    authority = Authority(folder, "authority")
    return RedisTls(authority.path, authority.sign("redis", host))
