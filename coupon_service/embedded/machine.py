"""Resources of the machine for the embedded servers: user, environment, ports, programs."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
# Below the ephemeral range (Linux: 32768 and up). Otherwise the port of a server that is down could
# be assigned to another socket, even to a client that reconnects and then connects to itself.
PORT_MIN, PORT_MAX = 20_000, 32_000
PORT_ATTEMPTS_MAX = 100


class EmbeddedError(Exception):
    """An embedded server is not available. The message is one sentence."""


def owner() -> tuple[int, int]:
    """User and group id of the server processes and their data."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def owner_prefix() -> list[str]:
    """The prefix that makes a command run as ``owner()``, since PostgreSQL refuses to run as root.

    It keeps CAP_DAC_OVERRIDE, so that a virtual environment and a data folder inside folders of
    root can be used without making those accessible to all users. Raises EmbeddedError.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedError(
            "As root the embedded servers need the program setpriv (package util-linux): "
            "install it, or start as an ordinary user, or set COUPON_DATABASE_URL and"
            " COUPON_REDIS_URL."
        )
    user, group = owner()
    return [
        *(setpriv, f"--reuid={user}", f"--regid={group}", "--clear-groups"),
        *("--securebits=+no_setuid_fixup", "--inh-caps=+dac_override"),
        "--ambient-caps=+dac_override",
    ]


def environment() -> dict[str, str]:
    """The environment of this process, without variables of clients (PGPORT …), in English."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C"}


def free_port() -> int:
    """A port on which no process listens. Raises EmbeddedError."""
    for _ in range(PORT_ATTEMPTS_MAX):
        port = PORT_MIN + secrets.randbelow(PORT_MAX - PORT_MIN)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise EmbeddedError(f"There is no free port from {PORT_MIN} to {PORT_MAX}.")


def bundled(package: str, pattern: str) -> Path | None:
    """The first file that matches ``pattern`` in an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((path for folder in folders for path in Path(folder).glob(pattern)), None)
