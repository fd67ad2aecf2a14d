"""Every setting of the service, where it comes from, and what is wrong with it.

A setting is an environment variable or a line of ``.env`` (the variable wins); an empty one counts
as not set. ``.env.example`` and the table of the README are rendered from the class below.
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import ipaddress
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import parse_qsl

from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "COUPON_"

TEST_PREFIX = "COUPON_TEST_"
"""Variables of the test suite; the service leaves them alone."""

TOKEN_VARIABLE = "COUPON_TOKEN"  # noqa: S105 - its name
"""The token of the commands that use a service; the service leaves it alone."""

SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)")
"""Variables that Kubernetes sets for a Service called coupon-something; left alone as well."""

SECTIONS = {
    "host": "Listening",
    "rate_limit_end_users": "Limits for callers",
    "database_url": "PostgreSQL",
    "batch_max_size": "Batches",
    "redis_url": "Redis and locks",
    "book_series_max": "Running",
}
"""The first setting of each section of ``.env.example``."""


class SettingsError(Exception):
    """The settings cannot be used. One line for each bad variable; no secret is ever in it."""


@dataclass(frozen=True, slots=True)
class Matching:
    """A validator of text that can say what it expects."""

    pattern: str
    expected: str

    def __call__(self, value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is not None and not re.fullmatch(self.pattern, text):
            raise ValueError(self.expected)
        return value


Host = Annotated[str, AfterValidator(Matching(r"[0-9A-Za-z.:_-]+", "an IP address or a host name"))]
Port = Annotated[int, Field(ge=0, le=65_535)]
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]
Count = Annotated[int, Field(ge=1, le=1_000)]
MessageBytes = Annotated[int, Field(ge=1_024, le=16_777_216)]
DatabaseUrl = Annotated[
    SecretStr | None,
    AfterValidator(
        Matching(
            r"postgres(ql)?://\S+", "a URL such as postgresql://user:password@host:5432/database"
        )
    ),
]
RedisUrl = Annotated[
    SecretStr | None,
    AfterValidator(Matching(r"rediss?://\S+", "a URL such as redis://:password@host:6379/0")),
]
TokenSecret = Annotated[
    SecretStr | None,
    AfterValidator(Matching(r"(?s).{32,1024}", "32 to 1024 random characters")),
]
TokenName = Annotated[str, AfterValidator(Matching(r"[!-~]{1,256}", "a name or a URL"))]
RATE = r"[1-9][0-9]{0,8}/([1-9][0-9]{0,3} ?)?(second|minute|hour|day)s?"
RateLimits = Annotated[
    str,
    AfterValidator(
        Matching(
            rf"none|{RATE}(;{RATE})*", "none, or limits such as 100/minute or 10/second;1000/hour"
        )
    ),
]


class Settings(BaseSettings):
    """The settings, checked one by one and against each other."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        populate_by_name=True,
        extra="ignore",  # load_settings() refuses unknown names, with a hint
        frozen=True,
    )

    host: Host = Field(
        "127.0.0.1",
        description="Address of the gRPC port. Without authentication, one that other machines can"
        " reach is refused unless COUPON_AUTH=none is set.",
    )
    port: Port = Field(50_051, description="gRPC port. 0 takes a free one.")
    workers: Count = Field(
        default_factory=lambda: os.cpu_count() or 1,
        description="Worker processes behind the port. Default: one for each processor core.",
    )
    metrics_host: Host = Field(
        "127.0.0.1", description="Address of the HTTP port for /metrics, /healthz and /readyz."
    )
    metrics_port: Port = Field(
        9_464, description="HTTP port for /metrics, /healthz and /readyz. 0 takes a free one."
    )
    tls_certificate_file: Path | None = Field(
        default=None,
        description="Certificate of the gRPC port in PEM form, then the chain up to its"
        " authority. With it the port speaks TLS only. Read again when it changes.",
    )
    tls_key_file: Path | None = Field(
        default=None, description="Private key of the certificate in PEM form, without passphrase."
    )
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="Authorities in PEM form. With it, callers need a certificate that one of them"
        " has signed.",
    )
    auth: Literal["none", "jwt"] = Field(
        "none",
        description="How callers prove who they are. none: not at all, everybody may do everything."
        " jwt: with a bearer token, which needs COUPON_JWT_KEYS_FILE or COUPON_JWT_SECRET.",
    )
    jwt_keys_file: Path | None = Field(
        None,
        description="JWK Set with the public keys of tokens. A key is for tokens of its kid and its"
        " iss, which a key without one has from COUPON_JWT_ISSUER. Read again when it changes.",
    )
    jwt_secret: TokenSecret = Field(
        default=None,
        description="Secret of HS256 tokens without a kid. Whoever has it can make tokens:"
        " coupon-service token does. coupon-service dev makes one when there are no keys.",
    )
    jwt_issuer: TokenName = Field(
        "coupon-service", description="Issuer (iss) of tokens, for the secret and keys without iss."
    )
    jwt_audience: TokenName = Field(
        "coupon-service", description="What the audience (aud) of tokens has to contain."
    )
    reflection: bool = Field(
        default=False, description="Whether grpcurl and others may ask the server for its contract."
    )
    request_max_bytes: MessageBytes = Field(
        65_536, description="Largest request message, in bytes."
    )
    import_request_max_bytes: MessageBytes = Field(
        1_048_576, description="Largest message of an ImportCodes stream, in bytes."
    )
    default_deadline_ms: Milliseconds = Field(
        5_000, description="Deadline of a call that comes without one, in milliseconds."
    )

    stream_idle_ms: Milliseconds = Field(
        60_000,
        description="Longest wait for the next message of an ImportCodes stream, in milliseconds.",
    )
    calls_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000,
        description="Calls that may be open in each worker at a time; more are answered OVERLOADED,"
        " at once.",
    )
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        5_000,
        description="Client connections that each worker keeps open at a time; more are closed.",
    )

    rate_limit_end_users: RateLimits = Field(
        "100/minute",
        description="Calls of an end-user token, for each class of methods: reads, changes, and the"
        " calls at the till.",
    )
    rate_limit_services: RateLimits = Field(
        "none", description="Calls of any other token, counted in the same way."
    )
    rate_limit_peers: RateLimits = Field(
        "100/minute",
        description="Calls of an address without a token (an IPv6 address counts as its /64), in"
        " the same way. Addresses of this machine are limited only when this is set explicitly.",
    )
    guess_limit_end_users: RateLimits = Field(
        "10/minute;100/day",
        description="Unknown codes of an end user: who has a token, or whose user_id a call names."
        " After so many, all their look-ups of codes are RATE_LIMITED until the time is over.",
    )
    guess_limit_services: RateLimits = Field(
        "none",
        description="Unknown codes of a token that is not an end user's, for all its users"
        " together.",
    )
    guess_limit_peers: RateLimits = Field(
        "10/minute;100/day",
        description="Unknown codes of an address without a token. Those that this machine looks up"
        " without one count, also against the user, only when this is set explicitly.",
    )

    database_url: DatabaseUrl = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}DATABASE_URL", "DATABASE_URL"),
        description="PostgreSQL. Also read as DATABASE_URL. Not set: coupon-service dev starts"
        " its own server, coupon-service serve refuses to start.",
    )
    pool_min_size: Count = Field(
        2, description="Connections that each worker keeps open to PostgreSQL."
    )
    pool_max_size: Count = Field(
        6, description="Connections that each worker opens to PostgreSQL at most."
    )
    pool_timeout_ms: Milliseconds = Field(
        1_000, description="Longest wait for a free connection, in milliseconds."
    )
    lock_timeout_ms: Milliseconds = Field(
        1_500, description="Longest wait for a row lock, in milliseconds; then the try is repeated."
    )
    statement_timeout_ms: Milliseconds = Field(
        3_000, description="Longest time of one SQL statement, in milliseconds."
    )
    idle_in_transaction_timeout_ms: Milliseconds = Field(
        5_000,
        description="Longest pause of a transaction before PostgreSQL ends it, in milliseconds.",
    )
    tcp_user_timeout_ms: Milliseconds = Field(
        5_000,
        description="Longest silence of the network before a connection is dead, in milliseconds.",
    )
    transaction_attempts_max: Annotated[int, Field(ge=1, le=10)] = Field(
        3,
        description="Tries of a transaction that meets deadlocks, lock timeouts and the like.",
    )

    batch_max_size: Annotated[int, Field(ge=1, le=10_000)] = Field(
        256, description="Commands that are executed in one transaction at most."
    )
    batch_max_wait_ms: Annotated[int, Field(ge=0, le=1_000)] = Field(
        50,
        description="Longest wait of a busy worker for more commands in a batch, in milliseconds."
        " An idle one waits a few turns of its event loop, some ten microseconds.",
    )
    batches_in_flight: Count = Field(
        1,
        description="Batches of single commands that each worker executes at the same time. More"
        " than one where PostgreSQL is far away.",
    )
    queue_max_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="Commands that may wait in each worker; more are answered OVERLOADED."
    )

    redis_url: RedisUrl = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}REDIS_URL", "REDIS_URL"),
        description="Redis. Also read as REDIS_URL. Not set: as for the database.",
    )
    redis_timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        50, description="Longest wait for Redis to connect or to answer, in milliseconds."
    )
    lock_ttl_default_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        60_000,
        description="Time of a lock for which neither caller nor book names one, in milliseconds.",
    )
    lock_ttl_max_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        900_000, description="Longest time that a lock is granted or extended for, in milliseconds."
    )
    lock_extensions_max: Annotated[int, Field(ge=0, le=1_000)] = Field(
        3, description="How often a lock may be extended."
    )
    locks_per_user_max: Count = Field(5, description="Live locks that a user may hold.")
    clock_tolerance_ms: Annotated[int, Field(ge=0, le=60_000)] = Field(
        1_000,
        description="How far the clocks of the machines may differ, in milliseconds. A lock is kept"
        " longer than its token by this and the statement timeout.",
    )
    lock_token_secret: TokenSecret = Field(
        default=None,
        description="Secret that lock tokens are signed with; the same on all replicas. Not set:"
        " coupon-service dev makes one and keeps it in its data folder, coupon-service serve"
        " refuses to start.",
    )
    lock_token_secret_previous: TokenSecret = Field(
        default=None,
        description="The secret before the present one. Tokens signed with it are still accepted;"
        " set it for the longest lock time after a change.",
    )
    sweep_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        5_000, description="Time between two looks for expired locks, in milliseconds."
    )
    stock_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        5_000,
        description="Time between two looks at what books with a low_threshold have left, in"
        " milliseconds.",
    )

    book_series_max: Annotated[int, Field(ge=0, le=10_000)] = Field(
        100,
        description="Books with a low_threshold that have gauges of their own in the metrics: first"
        " those that run low, then those that are used up.",
    )
    drain_grace_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        5_000,
        description="Time between NOT_SERVING and the end of the port on SIGTERM, in milliseconds,"
        " so that load balancers notice.",
    )
    shutdown_timeout_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        10_000, description="Longest time that calls in flight get to finish, in milliseconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="json: one object a line. console: for people. auto: console on a terminal,"
        " json anywhere else.",
    )
    tracing: bool = Field(
        default=False,
        description="Whether calls are traced, with OpenTelemetry, and sent to a collector by OTLP"
        " over gRPC: the OTEL_* variables say where to and which. Needs coupon-service[tracing].",
    )
    pid_file: Path | None = Field(
        default=None,
        description="File by which coupon-service reload and restart find the service; held while"
        " it runs. Not set: coupon-service dev has one in its data folder, coupon-service serve"
        " none.",
    )
    data_dir: Path = Field(
        Path(".data"),
        description="Folder of the servers and the secrets of coupon-service dev.",
    )

    @property
    def lock_grace_ms(self) -> int:
        """How much longer than its token a lock is kept: who was admitted in time is done then."""
        return self.statement_timeout_ms + self.clock_tolerance_ms

    @property
    def open_without_auth(self) -> bool:
        """Whether other machines may reach the service without proving who they are."""
        return self.auth == "none" and not _is_loopback(self.host)

    @property
    def peers_limited(self) -> bool:
        """Whether there are callers without a token whose calls are limited."""
        explicit = "rate_limit_peers" in self.model_fields_set
        return self.rate_limit_peers != "none" and (explicit or self.open_without_auth)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        lines = list(self._orders_broken())
        lines += self._unverified()
        if self.open_without_auth and "auth" not in self.model_fields_set:
            lines.append(
                f"COUPON_HOST: {self.host} can be reached from other machines and callers are not"
                " authenticated; expected 127.0.0.1, or COUPON_AUTH=none to allow it"
            )
        if self.tracing and not _is_installed("opentelemetry.exporter.otlp.proto.grpc"):
            lines.append("COUPON_TRACING: needs pip install 'coupon-service[tracing]'")
        if lines:
            raise ValueError("\n".join(lines))
        return self

    def _unverified(self) -> Iterator[str]:
        """Encryption without knowing with whom."""
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            yield "COUPON_TLS_CERTIFICATE_FILE: expected together with COUPON_TLS_KEY_FILE"
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            yield "COUPON_TLS_CLIENT_CA_FILE: expected together with COUPON_TLS_CERTIFICATE_FILE"
        database, redis = (_query(url) for url in (self.database_url, self.redis_url))
        if database.get("sslmode") == "require" and "sslrootcert" not in database:
            yield (
                "COUPON_DATABASE_URL: sslmode=require does not verify the server's certificate;"
                " expected sslmode=verify-full, with sslrootcert=<file> or sslrootcert=system"
            )
        if redis.get("ssl_cert_reqs", "required") != "required":
            yield "COUPON_REDIS_URL: expected ssl_cert_reqs=required, so that it is verified"
        if redis.get("ssl_check_hostname", "true").lower() != "true":
            yield "COUPON_REDIS_URL: expected ssl_check_hostname=true, so that it is verified"

    def _orders_broken(self) -> Iterator[str]:
        for smaller, relation, larger in (
            ("lock_timeout_ms", "less than", "statement_timeout_ms"),
            ("statement_timeout_ms", "less than", "default_deadline_ms"),
            ("pool_min_size", "at most", "pool_max_size"),
            ("batches_in_flight", "at most", "pool_max_size"),
            ("batch_max_size", "at most", "queue_max_size"),
            ("lock_ttl_default_ms", "at most", "lock_ttl_max_ms"),
        ):
            value, bound = getattr(self, smaller), getattr(self, larger)
            if value > bound or (value == bound and relation == "less than"):
                yield (
                    f"{_variable(smaller)}: expected {relation} {_variable(larger)} ({bound}),"
                    f" not {value}"
                )


def load_settings(env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Read the settings from the environment and ``env_file`` (which need not exist).

    ``overrides`` are values by field name that win over both, for example from the command line.

    Raises:
        SettingsError: a value cannot be used, a name that begins with COUPON_ is unknown, or
            ``env_file`` cannot be read.
    """
    lines: list[str] = []
    if env_file is not None:
        lines += [f"{env_file}: {hint}" for hint in _unknown(_names_in(env_file))]
    lines += _unknown(
        name
        for name in os.environ
        if not name.startswith(TEST_PREFIX)
        and name != TOKEN_VARIABLE
        and not SERVICE_LINK.fullmatch(name)
    )
    arguments: dict[str, Any] = {"_env_file": env_file, **overrides}
    try:
        settings = Settings(**arguments)
    except ValidationError as error:
        lines += _lines(error)
        raise SettingsError("\n".join(lines)) from None
    if lines:
        raise SettingsError("\n".join(lines))
    return settings


def settings_table() -> str:
    """All settings as a Markdown table."""
    lines = ["| Setting | Default | Expected | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = f"`{_default(field)}`" if _default(field) else ""
        lines.append(
            f"| `{_variable(name)}` | {default} | {_expected(field)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def env_example() -> str:
    """The text of ``.env.example``: all settings with their defaults, commented out."""
    lines = [
        "# Settings of the coupon service. Copy this file to .env and uncomment what is to differ",
        "# from its default. Variables of the environment win over the file.",
    ]
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            lines += ["", f"# --- {SECTIONS[name]} ---"]
        meaning = f"{field.description} Expected: {_expected(field)}."
        lines += ["", *textwrap.wrap(meaning, 100, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"# {_variable(name)}={_default(field)}")
    return "\n".join(lines) + "\n"


def _names_in(env_file: Path) -> list[str]:
    """The names that ``env_file`` sets; whatever is not a file sets nothing."""
    try:
        text = env_file.read_text("utf-8") if env_file.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{env_file} cannot be read: {reason}") from None
    names: list[str] = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key and binding.value is None):
            source = binding.original.string
            blank = source[: len(source) - len(source.lstrip())].count("\n")
            line = binding.original.line + blank
            raise SettingsError(f"{env_file}, line {line}: expected NAME=value or # comment")
        if binding.key:
            names.append(binding.key)
    return names


def _unknown(names: Iterable[str]) -> Iterator[str]:
    known = [name.upper() for name in Settings.model_fields]
    for name in names:
        setting = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            yield f"{name}: there is no such setting{hint}"


def _lines(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        if not problem["loc"]:  # of the whole model: the message names its variables
            yield str(problem.get("ctx", {})["error"])
            continue
        name = str(problem["loc"][0]).lower().removeprefix(PREFIX.lower())
        field = Settings.model_fields[name]
        got = "" if _is_secret(field) else f", not {str(problem['input'])[:60]!r}"
        yield f"{_variable(name)}: expected {_expected(field)}{got}"


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _query(url: SecretStr | None) -> dict[str, str]:
    """The parameters of a URL."""
    return dict(parse_qsl(url.get_secret_value().partition("?")[2])) if url is not None else {}


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in get_args(field.annotation)


def _expected(field: FieldInfo) -> str:
    for rule in field.metadata:
        if isinstance(rule, AfterValidator) and isinstance(rule.func, Matching):
            return rule.func.expected
    if field.annotation is int:
        low, high = (
            next(getattr(rule, side) for rule in field.metadata if hasattr(rule, side))
            for side in ("ge", "le")
        )
        return f"a whole number from {low} to {high}"
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if Path in get_args(field.annotation):
        return "a file"
    return "true or false" if field.annotation is bool else "a folder"


def _default(field: FieldInfo) -> str:
    """The default as it is written in ``.env``; empty when there is none or it is computed."""
    if field.default_factory is not None or field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
