"""PostgreSQL, Redis and servers for the tests.

They are started when the first test needs them, once in each pytest-xdist worker.
``COUPON_TEST_DATABASE_URL`` and ``COUPON_TEST_REDIS_URL`` select other servers: a PostgreSQL user
who may create databases, a Redis database whose keys may be deleted. ``COUPON_TEST_POSTGRES`` is
another version of PostgreSQL that is installed (``support/installed_postgres.py``). A server that
is not available fails every test that needs it.
"""

# redis-py does not type its keyword arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import urlsplit

import hypothesis
import psutil
import pytest
from support.citus import create_database, drop_database
from support.proof_sizes import AT_LENGTH
from support.redis_clients import flush
from support.secret_scan import SECRETS, Log

from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from support.service import Api, ServerThread

pytest.register_assert_rewrite("support.invariants", "support.idle", "faults", "model")

LONG = {"model", "mutants", "faults", "concurrency", "fuzz"}
"""Folders of long tests, which run first: what is left at the end is short, for all workers."""

ONE_SHARD = (
    "it writes rows of one schema by itself, or names no business of a code that is not of the"
    " default one; COUPON_TEST_SHARDS leaves it out."
)

MEMORY = Path("/dev/shm")
MEMORY_MIN_BYTES = 2 << 30

# Neither a busy machine nor chance fails a test: each run has the same examples, and `make proof`
# others.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=not AT_LENGTH,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a run, or a worker of pytest-xdist."""
    config.addinivalue_line("markers", f"one_shard: {ONE_SHARD}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell, also for what the tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is None:
        return
    if AT_LENGTH and sys.platform == "linux":
        # The model makes sequential calls, which are faster without wake-ups of another core.
        number, of = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::of] or cores)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first."""
    from support.shards import SHARDS

    if SHARDS > 1:
        items[:] = [it for it in items if not it.get_closest_marker("one_shard")]
    items.sort(key=lambda it: _folder(it) not in LONG)


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


@pytest.fixture(scope="session")
def service_log() -> Log:
    """The log of the service in this process."""
    return Log()


@pytest.fixture(autouse=True)
def _no_secret_is_logged(request: pytest.FixtureRequest, service_log: Log) -> Iterator[None]:
    """Fail a test during which this process or a child logged a code, token or password."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    configure_logging("info", "json", cast("BinaryIO", service_log))  # a test may have changed it
    yield
    logs = (
        [path.read_text("utf-8", "replace") for path in folder.rglob("log") if path.is_file()]
        if folder
        else []
    )
    for log in (service_log.take(), *logs):
        assert list(SECRETS.found_in(log)) == [], "a secret is in the log"


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """The folder of the servers' files: in memory where there is enough, since creating the many
    files of a database is slow on a shared disk.
    """
    # Remove the folders of killed runs.
    for old in MEMORY.glob("coupon-test-*"):
        if not psutil.pid_exists(int(old.name.split("-")[2])):
            shutil.rmtree(old, ignore_errors=True)
    has_space = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_MIN_BYTES
    parent = MEMORY if has_space and os.access(MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix=f"coupon-test-{os.getpid()}-", dir=parent) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_url(server_folder: Path) -> Iterator[str]:
    """A PostgreSQL server: the URL of its maintenance database."""
    if url := os.environ.get("COUPON_TEST_DATABASE_URL"):
        yield url
        return
    if version := os.environ.get("COUPON_TEST_POSTGRES"):
        from support.installed_postgres import InstalledPostgres

        with InstalledPostgres(int(version), server_folder / "postgres") as server:
            yield server.url
        return
    folder, settings = server_folder / "postgres", {"max_connections": "300"}
    with EmbeddedPostgres(folder, durable=False, settings=settings) as server:
        yield server.url


@pytest.fixture(scope="session")
def migrated_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database, the template of all others; with COUPON_TEST_SCOPES=business
    one in which codes are unique within their business, with COUPON_TEST_SHARDS one with shards."""
    from support.shards import SHARDS, make_shards, make_views

    from coupon_service.store import finishing, migrations

    with _database(postgres_url) as url:
        if SHARDS > 1:
            make_shards(url)
            make_views(url)
        else:
            migrations.apply(url)
        if os.environ.get("COUPON_TEST_SCOPES") == "business":
            assert list(finishing.finish(url))
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture(scope="session")
def new_database(
    postgres_url: str, migrated_database: str
) -> Callable[[], AbstractContextManager[str]]:
    """``with new_database() as url``: a private database, migrated and empty."""
    return lambda: _database(postgres_url, template=migrated_database)


@pytest.fixture
def database_url(new_database: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """A database of this test alone, migrated and empty."""
    with new_database() as url:
        yield url


@pytest.fixture(scope="session")
def new_empty_database(postgres_url: str) -> Callable[[], AbstractContextManager[str]]:
    """As `new_database`, without migrations."""
    return lambda: _database(postgres_url)


@pytest.fixture
def empty_database_url(
    new_empty_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """A database of this test alone, without migrations."""
    with new_empty_database() as url:
        yield url


@pytest.fixture(scope="session")
def redis_cluster_url(server_folder: Path) -> Iterator[str]:
    """A Redis Cluster of three masters."""
    from support.redis_cluster import redis_cluster

    with redis_cluster(server_folder / "redis-cluster") as cluster:
        yield cluster.url


@pytest.fixture(scope="session")
def redis_server_url(request: pytest.FixtureRequest, server_folder: Path) -> Iterator[str]:
    """A Redis server, or a numbered database of one that no other worker uses; with
    COUPON_TEST_REDIS=cluster a cluster.
    """
    if os.environ.get("COUPON_TEST_REDIS") == "cluster":
        yield request.getfixturevalue("redis_cluster_url")
        return
    if url := os.environ.get("COUPON_TEST_REDIS_URL"):
        parts, worker = urlsplit(url), os.environ.get("PYTEST_XDIST_WORKER", "gw0")
        number = int(parts.path.strip("/") or 0) + int(worker.removeprefix("gw"))
        yield parts._replace(path=f"/{number}").geturl()
        return
    with EmbeddedRedis(server_folder / "redis", durable=False) as server:
        yield server.url


@pytest.fixture(scope="module")
def redis_alone_url(server_folder: Path) -> Iterator[str]:
    """A Redis that no other server of the tests uses, such as one with another clock."""
    folder = server_folder / f"redis-{uuid.uuid4().hex}"
    with EmbeddedRedis(folder, durable=False) as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """An empty Redis of this test alone."""
    flush(redis_server_url)
    return redis_server_url


@contextmanager
def _database(server_url: str, template: str = "template1") -> Generator[str]:
    name = f"coupon_test_{uuid.uuid4().hex}"
    create_database(server_url, name, template)
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        drop_database(server_url, name)


@pytest.fixture(scope="session")
def server(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[ServerThread]:
    """A server that all tests share. Each test has its own books, codes and users."""
    from support.service import ServerThread, restricted_settings

    with (
        new_database() as url,
        restricted_settings(url, redis_server_url, seal_interval_ms=200) as settings,
        ServerThread(settings, owner_url=url) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def server_address(server: ServerThread) -> str:
    """The address of the shared server."""
    return server.address


@pytest.fixture(scope="session")
def api(server_address: str) -> Iterator[Api]:
    """A client of the shared server."""
    from support.service import Api

    client = Api(server_address)
    yield client
    client.close()


@pytest.fixture(scope="session")
def guarded(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[ServerThread]:
    """A server that requires tokens (`support.token_issuers`), without limits of end users."""
    from support.service import ServerThread, restricted_settings
    from support.token_issuers import ASKED_FOR

    unlimited = {"rate_limit_end_users": "none", "guess_limit_end_users": "none"}
    with (
        new_database() as url,
        restricted_settings(url, redis_server_url, **ASKED_FOR, **unlimited) as settings,
        ServerThread(settings, owner_url=url) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def limiting_server(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[ServerThread]:
    """A server that requires tokens, with the default limits."""
    from support.service import ServerThread, restricted_settings
    from support.token_issuers import ASKED_FOR

    with (
        new_database() as url,
        restricted_settings(url, redis_server_url, **ASKED_FOR) as settings,
        ServerThread(settings, owner_url=url) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def sharded_database(
    new_empty_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """A database with four shards, for who owns them."""
    from support.shards import make_shards

    with new_empty_database() as url:
        make_shards(url, of=4)
        yield url


@pytest.fixture(scope="module")
def sharded(sharded_database: str, redis_server_url: str) -> Iterator[ServerThread]:
    """A server with four shards, each as a role that has no rights on the others. Who sees all
    businesses has to name one."""
    from support.service import ServerThread, restricted_settings

    with (
        restricted_settings(sharded_database, redis_server_url, 4, default_business="") as settings,
        ServerThread(settings, owner_url=sharded_database) as running,
    ):
        yield running


@pytest.fixture
def businesses() -> list[str]:
    """A business in each of four shards, in order."""
    from support.shards import business_in

    return [business_in(shard, 4) for shard in range(4)]


@pytest.fixture(scope="session")
def tomorrow(server: ServerThread) -> Iterator[Api]:
    """A client of a second server on the same data, whose clock is a day ahead. For reads only."""
    from support.service import Api, ServerThread

    # Its sweeper would expire the locks of all other tests.
    never = {"sweep_interval_ms": 3_600_000, "stock_interval_ms": 3_600_000}
    settings = server.settings.model_copy(update=never)
    with ServerThread(settings, lambda: datetime.now(UTC) + timedelta(days=1)) as running:
        client = Api(running.address)
        yield client
        client.close()
