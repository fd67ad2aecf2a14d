# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from coupon_service.embedded import (
    EmbeddedError,
    EmbeddedPostgres,
    EmbeddedRedis,
    machine,
    postgres,
    process,
)
from coupon_service.embedded import redis as embedded_redis

Server = EmbeddedPostgres | EmbeddedRedis
MakeServer = Callable[..., Server]


def connect(server: Server) -> psycopg.Connection | redis.Redis:
    if isinstance(server, EmbeddedPostgres):
        return psycopg.connect(server.url, autocommit=True)
    return redis.Redis.from_url(server.url, single_connection_client=True)


def remember(server: Server) -> None:
    """Store what ``remembers`` looks for."""
    with connect(server) as client:
        if isinstance(client, redis.Redis):
            client.set("memory", "kept")
        else:
            client.execute("CREATE TABLE memory AS SELECT 'kept'")


def remembers(server: Server) -> bool:
    with connect(server) as client:
        if isinstance(client, redis.Redis):
            return client.get("memory") == b"kept"
        return client.execute("TABLE memory").fetchall() == [("kept",)]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((machine.HOST, port)) == 0


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def becomes(pid: int, *wanted: str) -> bool:
    """Whether the process soon is in one of the states; one that has ended is a zombie at most."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            if psutil.Process(pid).status() in wanted:
                return True
        except psutil.NoSuchProcess:
            return psutil.STATUS_ZOMBIE in wanted
        time.sleep(0.02)
    return False


def ended(pid: int) -> bool:
    return becomes(pid, psutil.STATUS_ZOMBIE)


@pytest.fixture(scope="session", params=[EmbeddedPostgres, EmbeddedRedis])
def used_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[type[Server], Path]:
    """A kind of server, and a folder on which such a one has run: the first start is the slow."""
    kind: type[Server] = request.param
    with kind(tmp_path_factory.mktemp("used")) as server:
        return kind, server.folder


@pytest.fixture
def make_server(
    used_folder: tuple[type[Server], Path], tmp_path: Path
) -> Iterator[Callable[..., Server]]:
    """Makes servers on one folder, for both kinds of server."""
    kind, used = used_folder
    subprocess.run(["cp", "-a", used, tmp_path / "server"], check=True)
    made: list[Server] = []

    def make(**arguments: Any) -> Server:
        made.append(kind(tmp_path / "server", **arguments))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    server = make_server()
    server.start()
    return server


STARTER = """
import signal, sys, time
from pathlib import Path
from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
server = {kind}(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
{then}
"""


@pytest.fixture
def start_elsewhere() -> Iterator[Callable[[Server, str], tuple[subprocess.Popen[str], int]]]:
    """Starts such a server in another process, and has that do something then."""
    started: list[subprocess.Popen[str]] = []

    def start(server: Server, then: str) -> tuple[subprocess.Popen[str], int]:
        program = STARTER.format(kind=type(server).__name__, then=then)
        starter = subprocess.Popen(
            [sys.executable, "-c", program, str(server.folder)], stdout=subprocess.PIPE, text=True
        )
        started.append(starter)
        assert starter.stdout is not None
        return starter, int(starter.stdout.readline())

    yield start
    for starter in started:
        starter.kill()
        starter.communicate()


def test_it_answers_until_it_is_stopped(make_server: MakeServer) -> None:
    with make_server() as server:
        remember(server)
        assert remembers(server)
        pid = server.pid
    assert ended(pid)
    assert not listens(server.port)
    with pytest.raises(EmbeddedError, match="not running"):
        _ = server.pid


def test_data_is_kept_from_one_start_to_the_next(make_server: MakeServer) -> None:
    with make_server() as server:
        remember(server)
    with make_server() as server:
        assert remembers(server)


def test_redis_forgets_when_it_need_not_be_durable(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, durable=False) as server:
        remember(server)
    with EmbeddedRedis(tmp_path, durable=False) as server:
        assert not remembers(server)


def test_a_killed_server_comes_back_on_its_port_with_its_data(make_server: MakeServer) -> None:
    server = make_server()
    if isinstance(server, EmbeddedRedis):
        server = make_server(settings={"appendfsync": "always"})
    server.start()
    remember(server)
    port, family = server.port, [server.pid, *children(server.pid)]
    with connect(server):
        server.kill()
    assert all(ended(pid) for pid in family)
    assert not listens(port)
    server.start()
    assert server.port == port
    assert remembers(server)


def test_a_paused_server_stands_still_and_goes_on_where_it_was(server: Server) -> None:
    remember(server)
    server.pause()
    for pid in [server.pid, *children(server.pid)]:
        # A process that served a connection may have been about to end.
        assert becomes(pid, psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    assert becomes(server.pid, psutil.STATUS_STOPPED)
    server.resume()
    assert remembers(server)


def test_a_paused_server_can_be_stopped_and_killed(server: Server) -> None:
    server.pause()
    server.kill()
    server.start()
    server.pause()
    pid = server.pid
    server.stop()
    assert ended(pid)


def test_a_folder_in_use_is_refused_and_its_user_named(
    server: Server, make_server: MakeServer
) -> None:
    with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
        make_server().start()
    remember(server)
    assert remembers(server)


def test_a_folder_in_use_by_another_process_is_refused(
    make_server: MakeServer,
    start_elsewhere: Callable[[Server, str], tuple[subprocess.Popen[str], int]],
) -> None:
    server = make_server()
    starter, _ = start_elsewhere(server, "time.sleep(60)")
    with pytest.raises(EmbeddedError, match=f"in use by process {starter.pid}"):
        server.start()


@pytest.mark.parametrize(
    ("then", "number"),
    [
        pytest.param("raise RuntimeError", None, id="exception"),
        pytest.param("time.sleep(60)", signal.SIGINT, id="Ctrl-C"),
        pytest.param("time.sleep(60)", signal.SIGTERM, id="SIGTERM"),
        pytest.param("time.sleep(60)", signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_the_server_ends_with_its_starter(
    then: str,
    number: signal.Signals | None,
    make_server: MakeServer,
    start_elsewhere: Callable[[Server, str], tuple[subprocess.Popen[str], int]],
) -> None:
    server = make_server()
    starter, pid = start_elsewhere(server, then)
    if number is not None:
        starter.send_signal(number)
    starter.wait()
    assert ended(pid)
    server.start()
    remember(server)
    assert remembers(server)


def test_a_paused_server_ends_with_its_starter(
    make_server: MakeServer,
    start_elsewhere: Callable[[Server, str], tuple[subprocess.Popen[str], int]],
) -> None:
    then = "server.pause(); print('paused', flush=True); time.sleep(60)"
    starter, pid = start_elsewhere(make_server(), then)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "paused\n"
    starter.kill()
    assert ended(pid)


def test_a_start_waits_for_the_end_of_the_one_before(
    make_server: MakeServer,
    start_elsewhere: Callable[[Server, str], tuple[subprocess.Popen[str], int]],
) -> None:
    server = make_server()
    starter, pid = start_elsewhere(server, "time.sleep(60)")
    starter.kill()
    starter.wait()
    server.start()
    assert ended(pid)
    remember(server)
    assert remembers(server)


def test_a_server_that_outlived_its_starter_is_ended_by_the_next_start(
    make_server: MakeServer,
    start_elsewhere: Callable[[Server, str], tuple[subprocess.Popen[str], int]],
) -> None:
    server = make_server()
    starter, pid = start_elsewhere(server, "time.sleep(60)")
    (watchdog,) = set(children(starter.pid)) - {pid, *children(pid)}
    os.kill(watchdog, signal.SIGKILL)
    starter.kill()
    starter.wait()
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    server.start()
    assert ended(pid)
    remember(server)


def test_ctrl_c_is_for_the_starter_alone(server: Server) -> None:
    assert os.getsid(server.pid) != os.getsid(0)


def test_nobody_comes_in_without_the_password(server: Server) -> None:
    password = (server.folder / "password").read_text()
    assert (server.folder / "password").stat().st_mode & 0o077 == 0
    wrong = server.url.replace(password, "wrong")
    if isinstance(server, EmbeddedPostgres):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(wrong)
    else:
        with pytest.raises(redis.AuthenticationError), redis.Redis.from_url(wrong) as client:
            client.ping()


def test_a_process_that_got_the_pid_of_a_crashed_server_does_not_hinder(server: Server) -> None:
    server.kill()
    pid_file = server.data / server.pid_file
    stranger = subprocess.Popen(["sleep", "60"])
    _, *others = pid_file.read_text().splitlines(keepends=True)
    pid_file.write_text(f"{stranger.pid}\n{''.join(others)}")
    server.start()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_settings_of_the_server_can_be_given(make_server: MakeServer) -> None:
    if isinstance(make_server(), EmbeddedPostgres):
        with make_server(settings={"work_mem": "7MB"}) as server, psycopg.connect(server.url) as c:
            assert c.execute("SHOW work_mem").fetchone() == ("7MB",)
    else:
        with (
            make_server(settings={"maxclients": "77"}) as server,
            redis.Redis.from_url(server.url, decode_responses=True) as client,
        ):
            assert client.config_get("maxclients") == {"maxclients": "77"}


def test_what_an_interrupted_first_start_left_is_no_hindrance(make_server: MakeServer) -> None:
    server = make_server()
    shutil.rmtree(server.data)
    half_made = server.folder / "data.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    server.start()
    remember(server)
    assert not half_made.exists()


def test_a_port_in_use_is_named(make_server: MakeServer) -> None:
    with socket.socket() as other:
        other.bind((machine.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"port {port}: it is in use"):
            make_server(port=port).start()


def test_a_folder_that_cannot_be_made_is_named(make_server: MakeServer, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "server")
    (tmp_path / "server").write_text("a file")
    with pytest.raises(EmbeddedError, match=str(tmp_path / "server")):
        make_server().start()


def test_data_of_another_user_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop()
    monkeypatch.setattr(process, "owner", lambda: (12345, 12345))
    with pytest.raises(EmbeddedError, match="made by another user"):
        server.start()


def test_the_reason_why_a_server_does_not_start_is_told(make_server: MakeServer) -> None:
    with pytest.raises(EmbeddedError, match=r"(no_such_setting|Bad directive).*see .*/log"):
        make_server(settings={"no_such_setting": "1"}).start()


def nothing(package: str, pattern: str) -> None:
    """Stands for ``bundled`` where the extra is not installed."""


def test_a_missing_program_is_reported_with_what_to_do(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setpriv := shutil.which("setpriv"):
        (tmp_path / "setpriv").symlink_to(setpriv)
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in (postgres, embedded_redis):
        monkeypatch.setattr(module, "bundled", nothing)
    with pytest.raises(EmbeddedError, match=r"pip install 'coupon-service\[embedded\]'"):
        make_server().start()


def test_root_without_setpriv_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match="setpriv"):
        machine.owner_prefix()
