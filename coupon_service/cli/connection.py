"""The options of the commands that call a running service."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from coupon_service.cli.client import BlockingService, Tls, connect_blocking
from coupon_service.settings import TOKEN_VARIABLE

Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where the service listens. Default: what COUPON_HOST and COUPON_PORT say here.",
        show_default=False,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar=TOKEN_VARIABLE, help="Bearer token that says who is calling.", show_default=False
    ),
]

TlsCa = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Authorities (PEM) that the service's certificate is checked with; turns TLS on.",
        show_default=False,
    ),
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Own certificate (PEM), if asked for.", show_default=False),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Private key (PEM) of it.", show_default=False),
]
TlsName = Annotated[
    str | None,
    typer.Option(
        metavar="HOST",
        help="Name that the service's certificate is for, if not that of --address.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the service is, how to know it, and who calls, as the options say."""

    address: Address = None
    token: Token = None
    tls_ca: TlsCa = None
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None
    tls_name: TlsName = None

    def open(self) -> AbstractContextManager[BlockingService]:
        """The open connection. Raises CommandError, as connect_blocking."""
        tls = Tls(self.tls_ca, self.tls_certificate, self.tls_key, self.tls_name)
        return connect_blocking(self.address, self.token, tls)


def takes_connection(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of Connection in place of its parameter `connection`.

    Typer takes options from the parameters of a function alone, and has no groups of them.
    """
    signature = inspect.signature(command, eval_str=True)
    options = [
        it.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for it in inspect.signature(Connection, eval_str=True).parameters.values()
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        connection = Connection(**{it.name: given.pop(it.name) for it in options})
        command(**given, connection=connection)

    own = [it for it in signature.parameters.values() if it.name != "connection"]
    vars(run)["__signature__"] = signature.replace(parameters=[*own, *options])
    return run
