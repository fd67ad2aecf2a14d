"""`coupon-service dev`: the service with all its dependencies, for trying and developing."""

# Imports of the server are slow, so only commands that start one pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import functools
import secrets
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import typer

from coupon_service.cli.client import address_of, connect
from coupon_service.cli.failure import CommandError
from coupon_service.cli.health import wait_until_serving
from coupon_service.cli.migrate import apply_steps
from coupon_service.cli.serve import supervise
from coupon_service.cli.session import DEMO_CODES, make_demo_book, session
from coupon_service.cli.token import SECRET_FILE, new_token
from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.settings import Settings, load_settings

DATABASE_URL_FILE: Final = "database-url"
"""In the data folder, while the PostgreSQL that was started runs: its URL, password included."""


def dev() -> None:
    """Run PostgreSQL, Redis and the service with a demo book, for trying and developing.

    PostgreSQL and Redis keep their data in .data (COUPON_DATA_DIR), and a restart continues with
    it. When COUPON_DATABASE_URL or COUPON_REDIS_URL is set, that server is used instead. While it
    runs, .data/database-url has the URL of its PostgreSQL, for commands that take it from
    COUPON_DATABASE_URL, such as migrate and audit archive. With COUPON_AUTH=jwt calls need a
    token, which coupon-service token makes. Ctrl-C stops everything that it started. For
    production use coupon-service serve.
    """
    from coupon_service.process.supervisor import SupervisorError, reserve_port

    given = load_settings()
    folder = given.data_dir.absolute()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same clean stop as Ctrl-C
    with ExitStack() as servers:
        try:
            with reserve_port(given.host, given.port) as reserved:  # checked before servers start
                port: int = reserved.getsockname()[1]
        except SupervisorError as error:
            raise CommandError(str(error)) from error
        values = _complete(given, port, servers)
        read_settings = functools.partial(load_settings, **values)
        settings = read_settings()
        for _ in apply_steps(settings):
            pass
        url_file = shlex.quote(str(folder / DATABASE_URL_FILE))
        where = (
            f"Its data is in {folder}.\nFor commands that need the database, such as audit archive:"
            f" export COUPON_DATABASE_URL=$(cat {url_file})"
            if not given.database_urls
            else ""
        )
        asyncio.run(_serve(settings, read_settings, where))


def _complete(given: Settings, port: int, servers: ExitStack) -> dict[str, Any]:
    """Values for unset settings: embedded servers, secrets, and defaults for development."""
    folder = given.data_dir.absolute()
    values: dict[str, Any] = {"port": port}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if given.lock_token_secret is None:
            values["lock_token_secret"] = kept_secret(folder / "lock-token-secret")
        if given.erasure_secret is None:
            values["erasure_secret"] = kept_secret(folder / "erasure-secret")
        if given.auth == "jwt" and given.jwt_secret is None:
            values["jwt_secret"] = kept_secret(folder / SECRET_FILE)
    except OSError as error:
        raise CommandError(
            f"The data folder {folder} cannot be used: {error.strerror}."
            " Set COUPON_DATA_DIR to another one."
        ) from error
    if "workers" not in given.model_fields_set:
        values["workers"] = 1  # starts faster
    if "reflection" not in given.model_fields_set:
        values["reflection"] = True  # for grpcurl
    if "drain_grace_ms" not in given.model_fields_set:
        values["drain_grace_ms"] = 0  # without a load balancer
    if given.pid_file is None:
        values["pid_file"] = folder / "pid"
    if given.redis_url is None:
        values["redis_url"] = servers.enter_context(EmbeddedRedis(folder / "redis")).url
    if not given.database_urls:
        url = servers.enter_context(EmbeddedPostgres(folder / "postgres")).url
        _keep(folder / DATABASE_URL_FILE, url)
        servers.callback((folder / DATABASE_URL_FILE).unlink, missing_ok=True)
        values["database_url"] = url
    return values


def kept_secret(path: Path) -> str:
    """A secret that is generated once and kept, so that tokens stay valid after a restart."""
    if not path.exists():
        _keep(path, secrets.token_urlsafe(48))
    return path.read_text(encoding="ascii")


def _keep(path: Path, text: str) -> None:
    """Writes a file that nobody else may read."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text, encoding="utf-8")
    new.rename(path)


async def _serve(settings: Settings, read_settings: Callable[[], Settings], where: str) -> None:
    """Serve until Ctrl-C, and print how to use the service as soon as it serves."""
    serving = asyncio.create_task(supervise(settings, read_settings))
    welcome = asyncio.create_task(_welcome(settings, where))
    await asyncio.wait({serving, welcome}, return_when=asyncio.FIRST_COMPLETED)
    if welcome.done():
        await welcome  # raises its error
    welcome.cancel()
    await serving


async def _welcome(settings: Settings, where: str) -> None:
    address = address_of(settings)
    token = token_command = None
    if settings.auth == "jwt":
        token = new_token(settings, ["admin"], "demo")
        folder = shlex.quote(str(settings.data_dir.absolute()))
        token_command = f"COUPON_DATA_DIR={folder} {_own_command()} token --role admin"
    async with connect(address, token) as service:
        await wait_until_serving(service)
        book = await make_demo_book(service)
    typer.echo(
        f"\nThe coupon service listens on {address}. {where}".rstrip() + "\n"
        f'The demo book "{book.name}" ({book.book_id}) has the codes'
        f" {DEMO_CODES[0]} to {DEMO_CODES[-1]}.\n"
        "Ctrl-C stops everything. This session can be pasted into another shell:\n\n"
        f"{session(address, _own_command(), token_command)}\n"
    )


def _own_command() -> str:
    """The command that runs this program from any folder."""
    program = Path(sys.argv[0]).absolute()
    if program.name == "coupon-service":
        return shlex.quote(str(program))
    return f"{shlex.quote(sys.executable)} -m coupon_service"
