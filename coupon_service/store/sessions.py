"""What a session with PostgreSQL has to be, and how a connection makes it so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coupon_service.errors import DatabaseUnavailable
from coupon_service.store import citus

APPLICATION_NAME: Final = "coupon_service/2"
"""Of the connections, in pg_stat_activity. The number tells services that know of scopes of codes
from those of before, beside which these cannot be switched on."""

APPLICATION_NAMES_BEFORE: Final = ("coupon_service", "coupon_service bulk")
"""Of the connections of services that do not."""

PLANNING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }
)
"""Every statement finds its rows by a key, through an index, and is planned once. A plan that was
made while a table was small would otherwise read all of it, row by row, for each batch, until
PostgreSQL has analyzed the grown table.
"""


COMPILING: Final[Mapping[str, str]] = MappingProxyType({"jit": "off"})
"""The cost of a plan that PLANNING switches off, which is taken where there is no other, would have
it compiled each time."""


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Where the tables of a shard are: that of this number, from 0, of so many."""

    number: int = 0
    of: int = 1

    @property
    def schema(self) -> str:
        """The schema of its tables; empty for an only shard: the one that its URL or role names."""
        return f"coupon_{self.number:02}" if self.of > 1 else ""

    @property
    def step(self) -> str:
        """What its schema has in coupon_finished_steps, so that it is never taken for another."""
        return f"shard {self.number} of {self.of}" if self.of > 1 else ""

    @property
    def parameters(self) -> dict[str, str]:
        """Of a session, so that it finds the tables of this shard and no others."""
        return {"search_path": self.schema} if self.schema else {}


ONLY_SHARD: Final = ShardPlace()


MOVE_PARAMETER: Final = "coupon.move"
"""The parameter of a session that has come to a shard by its forwarding address."""

ParametersFrom = Literal["startup", "role", "transaction"]


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """How to reach PostgreSQL and how long to wait for it. All times in milliseconds.

    `unbatched_max`: connections for `transaction` and `read`, whose callers share none; others wait
    for their turn, until their deadline. `slow_ms`: a transaction that takes longer, all its tries
    together, is logged. `idle_ms`: connections beyond `pool_min_size` that nobody needed for so
    long are closed. `parameters_from`: what gives a session its parameters. `shard`: where its
    tables are.
    """

    url: str
    pool_min_size: int
    pool_max_size: int
    pool_timeout_ms: int
    lock_timeout_ms: int
    statement_timeout_ms: int
    idle_in_transaction_timeout_ms: int
    tcp_user_timeout_ms: int
    attempts_max: int
    unbatched_max: int
    application_name: str = APPLICATION_NAME
    slow_ms: int = 500
    idle_ms: int = 600_000
    parameters_from: ParametersFrom = "startup"
    prepared_statements: bool = True
    shard: ShardPlace = ONLY_SHARD
    known_urls: tuple[str, ...] = ()
    move_number: int = 0
    move_token: str = ""
    on_citus: bool = False

    @property
    def timeouts_ms(self) -> dict[str, int]:
        """The parameters of a session that bound its waits: a lock outlives a redemption that was
        admitted with it only by these."""
        return {
            "lock_timeout": self.lock_timeout_ms,
            "statement_timeout": self.statement_timeout_ms,
            "idle_in_transaction_session_timeout": self.idle_in_transaction_timeout_ms,
        }

    @property
    def session_parameters(self) -> dict[str, str]:
        """All parameters of a session, by PostgreSQL's names."""
        timeouts = {name: str(value) for name, value in self.timeouts_ms.items()}
        moved = {MOVE_PARAMETER: self.move_token} if self.move_token else {}
        fixed = {"timezone": "UTC", **COMPILING}
        return {**timeouts, **fixed, **self.planning, **self.shard.parameters, **moved}

    @property
    def planning(self) -> Mapping[str, str]:
        """Those of how statements are planned, and of what Citus tells."""
        return {**PLANNING, **citus.SESSION_PARAMETERS} if self.on_citus else PLANNING

    @property
    def role_parameters(self) -> dict[str, str]:
        """Those that the role has to have, since nothing else gives them."""
        return self.session_parameters if self.parameters_from == "role" else {}


def connection_arguments(settings: DatabaseSettings) -> dict[str, Any]:
    """What each connection of the service is made with, besides the URL.

    Raises DatabaseUnavailable for a URL that PostgreSQL cannot read.
    """
    at_startup = settings.parameters_from == "startup"
    return {
        "autocommit": True,
        "connect_timeout": 5,
        "application_name": settings.application_name,
        "tcp_user_timeout": settings.tcp_user_timeout_ms,
        "keepalives_idle": 10,
        "options": options(settings.url, settings.session_parameters if at_startup else {}),
        "client_encoding": "UTF8",  # in which parameters are sent, whatever the URL says
        "prepare_threshold": 0 if settings.prepared_statements else None,
    }


def options(url: str, parameters: Mapping[str, str]) -> str:
    """The options of a connection: those of the URL or of PGOPTIONS, then these, which win.

    Raises DatabaseUnavailable.
    """
    theirs = str(url_parts(url).get("options") or os.environ.get("PGOPTIONS", ""))
    ours = (f"-c {name}={value}" for name, value in parameters.items())
    return " ".join([theirs, *ours]).strip()


def shard_url(url: str, shard: ShardPlace) -> str:
    """A URL that leads to the tables of a shard on this server. Raises DatabaseUnavailable."""
    if not shard.schema:
        return url
    return make_conninfo(**{**url_parts(url), "options": options(url, shard.parameters)})


def url_parts(url: str) -> dict[str, str]:
    """The parameters of a database URL. Raises DatabaseUnavailable."""
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:  # its text may hold the password
        raise DatabaseUnavailable("The database URL is not one that PostgreSQL can read.") from None


def sentence_of(error: psycopg.Error) -> str:
    """What PostgreSQL or libpq said, on one line; of several hosts each once."""
    return error.diag.message_primary or " ".join(
        str(error).rpartition("All failures were:")[2].split()
    )
