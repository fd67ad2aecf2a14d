"""TLS: who is not who they have to be is neither served nor asked, on every connection."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.certificates import DAY, Authority, Pair
from support.command_line import run, run_apart
from support.service import Api, ServerThread, refused, settings_for
from support.service_process import environment_of, serving
from support.tls_proxy import HOST, tls_in_front_of
from support.waiting import until

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.server import ServerError

OVER = -DAY
Serve = Callable[..., ServerThread]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


# --- the gRPC port ------------------------------------------------------------------------------


@pytest.fixture
def serve(database_url: str, redis_url: str) -> Iterator[Serve]:
    """Starts a server with the files of TLS."""
    servers: list[ServerThread] = []

    def start(own: Pair, client_ca: Path | None = None) -> ServerThread:
        settings = settings_for(
            database_url,
            redis_url,
            tls_certificate_file=own.certificate,
            tls_key_file=own.key,
            tls_client_ca_file=client_ca,
        )
        server = ServerThread(settings)
        server.__enter__()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.__exit__()


def asked(
    server: ServerThread, ca: Authority, own: Pair | None = None, name: str = ""
) -> str | None:
    """What a client is told by the server, or None when they do not come together."""
    credentials = grpc.ssl_channel_credentials(
        ca.path.read_bytes(),
        own.key.read_bytes() if own else None,
        own.certificate.read_bytes() if own else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    if name:
        options.append(("grpc.ssl_target_name_override", name))  # type: ignore[arg-type]
    with grpc.secure_channel(server.address, credentials, options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_a_client_that_knows_the_authority_is_served(serve: Serve, authority: Authority) -> None:
    server = serve(authority.sign("server", HOST))
    until(lambda: asked(server, authority) == "SERVING")


def test_a_client_trusts_neither_another_authority_nor_another_name(
    serve: Serve, authority: Authority, stranger: Authority
) -> None:
    server = serve(authority.sign("server", HOST, "coupon.example"))
    assert asked(server, authority)
    assert asked(server, authority, name="coupon.example")
    assert asked(server, stranger) is None
    assert asked(server, authority, name="other.example") is None


def test_a_port_with_tls_answers_nobody_without(serve: Serve, authority: Authority) -> None:
    server = serve(authority.sign("server", HOST))
    with closing(Api(server.address)) as api, pytest.raises(grpc.RpcError) as error:
        api.draft()
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_who_has_to_show_a_certificate_needs_a_good_one(
    serve: Serve, authority: Authority, stranger: Authority
) -> None:
    server = serve(authority.sign("server", HOST), authority.path)
    assert asked(server, authority, authority.sign("client"))
    assert asked(server, authority) is None
    assert asked(server, authority, stranger.sign("unknown")) is None
    assert asked(server, authority, authority.sign("late", left=OVER)) is None


def test_a_certificate_that_is_replaced_is_taken_up_without_a_restart(
    serve: Serve, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    own = authority.sign("server", HOST)
    server = serve(own)
    assert asked(server, authority)
    new = stranger.sign("new", HOST)
    shutil.copy(new.certificate, own.certificate)
    assert asked(server, authority), "the key is not there yet: the pair before stays"
    shutil.copy(new.key, own.key)
    assert asked(server, stranger)
    assert asked(server, authority) is None
    stranger.sign("server", HOST, left=OVER)
    server.run(_reloaded(server))
    assert asked(server, stranger), "one that has expired is not taken up"


async def _reloaded(server: ServerThread) -> None:
    server.server.reload(server.settings)


@pytest.mark.parametrize("bad", ["missing", "folder", "no key", "other key", "hidden", "expired"])
def test_files_that_cannot_be_used_are_one_sentence(
    serve: Serve, authority: Authority, tmp_path: Path, bad: str
) -> None:
    own, other = authority.sign("server", HOST), authority.sign("other", HOST)
    certificate, key = own.certificate, own.key
    match bad:
        case "missing":
            own = Pair(tmp_path / "none.pem", key)
            expected = f"COUPON_TLS_CERTIFICATE_FILE: {own.certificate} cannot be read: No such"
        case "folder":
            own = Pair(certificate, tmp_path)
            expected = f"COUPON_TLS_KEY_FILE: {tmp_path} cannot be read: Is a directory."
        case "no key":
            own = Pair(certificate, certificate)
            expected = f"COUPON_TLS_KEY_FILE: there is no private key in PEM form in {certificate}."
        case "other key":
            own = Pair(certificate, other.key)
            expected = f"COUPON_TLS_KEY_FILE: the key in {other.key} does not belong to the first"
        case "hidden":
            own = authority.sign("server", HOST, passphrase="secret")
            expected = f"COUPON_TLS_KEY_FILE: the key in {key} has a passphrase"
        case _:
            own = authority.sign("server", HOST, left=OVER)
            expected = f"COUPON_TLS_CERTIFICATE_FILE: the certificate in {certificate} is valid"
    with pytest.raises(ServerError) as raised:
        serve(own)
    assert str(raised.value).startswith(expected)


def test_the_command_line_speaks_tls(
    serve: Serve, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    server = serve(authority.sign("server", "coupon.example"), authority.path)
    client = authority.sign("client")
    options = ["--address", server.address, "--tls-name", "coupon.example"]
    own = ["--tls-certificate", client.certificate, "--tls-key", client.key]
    good = [*options, "--tls-ca", authority.path, *own]
    until(lambda: run(tmp_path, "health", *good).returncode == 0)
    done = run(tmp_path, "call", "CouponBookService/ListCouponBooks", *good)
    assert done.returncode == 0, done.stderr
    for bad in (good[:-4], [*options, "--tls-ca", stranger.path, *own]):
        done = run(tmp_path, "health", *bad)
        assert (done.returncode, done.stderr[:12]) == (1, "UNAVAILABLE:")
    done = run(tmp_path, "health", *options)
    assert (done.returncode, done.stderr) == (1, "TLS options need --tls-ca.\n")


@pytest.mark.parametrize("client_needs_one", [True, False])
def test_the_command_line_says_that_a_port_speaks_tls(
    serve: Serve, authority: Authority, tmp_path: Path, *, client_needs_one: bool
) -> None:
    client_ca = authority.path if client_needs_one else None
    server = serve(authority.sign("server", "coupon.example"), client_ca)
    done = run(tmp_path, "call", "ListCouponBooks", "--address", server.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"The service at {server.address} uses TLS: --tls-ca names ")


def test_a_container_need_not_have_a_certificate_to_ask_how_it_is(
    database_url: str, redis_url: str, authority: Authority, tmp_path: Path
) -> None:
    own = authority.sign("server", "coupon.example")
    files = {
        "COUPON_TLS_CERTIFICATE_FILE": str(own.certificate),
        "COUPON_TLS_KEY_FILE": str(own.key),
        "COUPON_TLS_CLIENT_CA_FILE": str(authority.path),
    }
    environment = environment_of(database_url, redis_url) | files
    with serving(environment, tmp_path):
        done = run_apart(tmp_path, "health", **environment)
        assert (done.returncode, done.stdout) == (0, "SERVING\n")
    done = run_apart(tmp_path, "health", **environment)
    assert (done.returncode, done.stderr[:12]) == (1, "UNAVAILABLE:")
    own.key.unlink()
    done = run_apart(tmp_path, "serve", **environment)
    assert done.returncode == 1
    assert done.stderr == (
        f"COUPON_TLS_KEY_FILE: {own.key} cannot be read: No such file or directory.\n"
    )


# --- PostgreSQL ---------------------------------------------------------------------------------


@contextmanager
def database_behind_tls(database_url: str, own: Pair) -> Generator[Callable[..., str]]:
    """Makes URLs of the database that insist on an authority, and on the name of the server."""
    url = urlsplit(database_url)
    assert url.port
    with tls_in_front_of(url.port, own, postgresql=True) as port:

        def verified(ca: Authority, name: str = "database.example") -> str:
            netloc = f"{url.username}:{url.password}@{name}:{port}"
            asked = {"hostaddr": HOST, "sslmode": "verify-full", "sslrootcert": str(ca.path)}
            return url._replace(netloc=netloc, query=urlencode(asked)).geturl()

        yield verified


def test_a_database_that_can_be_verified_is_used(
    database_url: str, authority: Authority, redis_url: str, tmp_path: Path
) -> None:
    own = authority.sign("database", "database.example")
    with database_behind_tls(database_url, own) as verified:
        settings = settings_for(verified(authority), redis_url)
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            assert api.draft().book_id
        done = run(tmp_path, "migrate", "status", DATABASE_URL=verified(authority))
        assert done.returncode == 0


@pytest.mark.parametrize("bad", ["authority", "name", "expired"])
def test_a_database_that_cannot_be_verified_is_told_nothing(
    database_url: str, authority: Authority, stranger: Authority, redis_url: str, bad: str
) -> None:
    name = "other.example" if bad == "name" else "database.example"
    own = authority.sign("database", name, left=OVER if bad == "expired" else DAY)
    with database_behind_tls(database_url, own) as verified:
        settings = settings_for(verified(stranger if bad == "authority" else authority), redis_url)
        with (
            ServerThread(settings) as server,
            closing(Api(server.address)) as api,
            refused("DATABASE_UNAVAILABLE"),
        ):
            api.draft()


# --- Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "authority", "name", "expired"])
async def test_a_redis_that_cannot_be_verified_is_told_nothing(
    redis_url: str, authority: Authority, stranger: Authority, bad: str
) -> None:
    host = "redis.example" if bad == "name" else HOST
    own = authority.sign("redis", host, left=OVER if bad == "expired" else DAY)
    trusted = stranger if bad == "authority" else authority
    url = urlsplit(redis_url)
    assert url.port
    with tls_in_front_of(url.port, own) as port:
        netloc = url.netloc.replace(f":{url.port}", f":{port}")
        query = urlencode({"ssl_ca_certs": str(trusted.path)})
        behind = url._replace(scheme="rediss", netloc=netloc, query=query).geturl()
        leases = Leases(behind, timeout_ms=5_000)
        try:
            if bad:
                with pytest.raises(LocksUnavailable) as raised:
                    await leases.ping()
                assert "certificate" in str(raised.value.__cause__).lower()
            else:
                await leases.ping()
        finally:
            await leases.close()
