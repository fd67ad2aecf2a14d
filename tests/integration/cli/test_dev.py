"""`coupon-service dev`, which is `make run`: started, used as it says, stopped, started again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support.command_line import TIMEOUT_S, descendants, environment, run, run_apart, running
from support.doc_pages import literal_part
from support.service import Api
from support.waiting import until

from coupon_service.embedded.machine import free_port

LAST_LINE = "call AuditService/ListAuditEvents"
TOOLS = ["coupon-service", *(["grpcurl"] if shutil.which("grpcurl") else [])]


@dataclass(frozen=True, slots=True)
class Dev:
    """One that is ready: its process, and all that it printed until then."""

    process: subprocess.Popen[str]
    port: int
    printed: str

    @property
    def session(self) -> str:
        """The lines that it says can be pasted."""
        return self.printed[self.printed.index("call() {") :]

    @property
    def demo_book(self) -> str:
        found = re.search(r'The demo book "Welcome" \((.*)\)', self.printed)
        assert found is not None
        return found[1]

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Its exit code, and what it said to standard error. Nothing of it is left then."""
        family = descendants(self.process)
        assert len(family) > 2
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=TIMEOUT_S)
        assert psutil.wait_procs(family, timeout=TIMEOUT_S)[1] == []
        return self.process.returncode, said


@contextmanager
def dev(folder: Path, port: int = 0, **variables: str) -> Generator[Dev]:
    """`coupon-service dev` in a folder, ready to be used."""
    port = port or free_port()
    settings = {"COUPON_PORT": str(port), "COUPON_METRICS_PORT": "0", **variables}
    with running(folder, "dev", **settings) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(LAST_LINE):
                break
        else:
            pytest.fail(f"It ended: {process.stderr.read()}")
        yield Dev(process, port, "".join(lines))


def paste(session: str, tool: str = "coupon-service", *, again: bool = False) -> str:
    """What a shell prints for the session. It complains of nothing, but `again` of the assignment
    and the lock, which have been used up.
    """
    here = environment()
    if tool != "grpcurl":
        folders = here["PATH"].split(os.pathsep)
        without = [folder for folder in folders if not shutil.which("grpcurl", path=folder)]
        here["PATH"] = os.pathsep.join(without)
    done = subprocess.run(
        ["bash"] if again else ["bash", "-e", "-o", "pipefail"],
        input=session,
        capture_output=True,
        text=True,
        env=here,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0
    complaints = re.findall(r"The lock is no longer held", done.stderr)
    assert (len(complaints) == 1) if again else (done.stderr == "")
    return done.stdout


def events(said: str) -> list[str]:
    """The events that the end of the session lists, newest first."""
    return re.findall(r'"AUDIT_EVENT_TYPE_(\w+)"', said)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Generator[Dev]:
    """One that several tests use."""
    with dev(tmp_path_factory.mktemp("dev")) as ready:
        yield ready


class TestTheSession:
    @pytest.mark.parametrize("tool", TOOLS)
    def test_it_can_be_pasted_and_pasted_again(self, ready: Dev, tool: str) -> None:
        first, second = paste(ready.session, tool), paste(ready.session, tool, again=True)
        assert re.search(r"The lock: \S{20,}\n", first)
        for said in (first, second):
            assert re.search(r"The book: [0-9a-f-]{36}\n", said)
            assert re.search(r'"amount_?[mM]inor": *"600"', said)
            assert events(said) == ["REDEEMED", "LOCKED", "ASSIGNED"]
        assert second.count('"replayed": true') == 3

    def test_the_demo_book_can_be_used_by_whoever_has_a_code(
        self, ready: Dev, tmp_path: Path
    ) -> None:
        request = '{"code": "welcome-1", "user_id": "somebody"}'
        done = run(tmp_path, "call", "RedeemCode", request, COUPON_PORT=str(ready.port))
        assert (done.returncode, done.stderr) == (0, "")
        assert ready.demo_book in done.stdout

    def test_a_second_one_on_the_port_or_the_folder_is_refused_with_a_sentence(
        self, ready: Dev, tmp_path: Path
    ) -> None:
        done = run_apart(tmp_path, "dev", COUPON_PORT=str(ready.port), COUPON_METRICS_PORT="0")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"port {ready.port}: Address already in use" in done.stderr
        assert "COUPON_PORT" in done.stderr
        assert len(done.stderr.splitlines()) == 1

        folder = psutil.Process(ready.process.pid).cwd()
        done = run_apart(
            tmp_path,
            "dev",
            COUPON_PORT="0",
            COUPON_METRICS_PORT="0",
            COUPON_DATA_DIR=f"{folder}/.data",
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert f"in use by process {ready.process.pid}" in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestItsDatabase:
    def test_a_book_is_archived_and_restored_as_the_page_says(self, tmp_path: Path) -> None:
        with dev(tmp_path) as ready:
            assert f"COUPON_DATABASE_URL=$(cat {tmp_path}/.data/database-url)" in ready.printed
            book = re.search(r"The book: (\S+)\n", paste(ready.session))
            assert book is not None
            url = tmp_path / ".data" / "database-url"
            assert stat.S_IMODE(url.stat().st_mode) == 0o600
            with closing(Api(f"127.0.0.1:{ready.port}")) as api:
                api.close_book(book[1])
            archive = ("audit", "archive", str(tmp_path), "--older-than-days", "0", "--dry-run")

            def planned() -> str:
                return run(tmp_path, *archive, COUPON_DATABASE_URL=url.read_text()).stdout

            until(lambda: "would be archived: 3 events" in planned())
            programs = f"cd {tmp_path}\nPATH={Path(sys.executable).parent}:$PATH\n"
            said = paste(programs + literal_part("archive_in_dev"))
            assert re.findall(r"3 events, (\w+)\.", said) == ["archived", "restored"]
            assert "It is what was sealed." in said
            ready.stop()
        assert not url.exists()


class TestStoppingAndStartingAgain:
    def test_ctrl_c_ends_all_and_starting_again_goes_on_with_the_data(self, tmp_path: Path) -> None:
        with dev(tmp_path) as first:
            before = paste(first.session)
            assert first.stop() == (0, "")
        secret = tmp_path / ".data" / "lock-token-secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
        text = secret.read_text()
        with dev(tmp_path) as second:
            assert second.demo_book == first.demo_book
            assert events(paste(second.session, again=True)) == events(before)
            assert second.stop(signal.SIGTERM) == (0, "")
        assert secret.read_text() == text

    def test_what_was_started_ends_when_the_rest_cannot_be(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = run_apart(
                tmp_path,
                "dev",
                COUPON_PORT="0",
                COUPON_METRICS_PORT=str(port),
                COUPON_LOG_LEVEL="error",
            )
        assert (done.returncode, done.stdout) == (1, "")
        assert f"port {port}: Address already in use" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        here = str(tmp_path)
        assert [
            it for it in psutil.process_iter(["cwd"]) if str(it.info["cwd"]).startswith(here)
        ] == []

    def test_servers_that_are_named_are_used(
        self, tmp_path: Path, empty_database_url: str, redis_url: str
    ) -> None:
        with dev(tmp_path, DATABASE_URL=empty_database_url, REDIS_URL=redis_url) as ready:
            assert events(paste(ready.session)) == ["REDEEMED", "LOCKED", "ASSIGNED"]
        made = {path.name for path in (tmp_path / ".data").iterdir()}
        assert made == {"erasure-secret", "lock-token-secret", "pid"}


class TestTokens:
    def test_with_authentication_the_session_brings_its_token(
        self, tmp_path: Path, empty_database_url: str, redis_url: str
    ) -> None:
        urls = {"DATABASE_URL": empty_database_url, "REDIS_URL": redis_url}
        with dev(tmp_path, 0, COUPON_AUTH="jwt", **urls) as ready:
            session = ready.printed[ready.printed.index("export COUPON_TOKEN=") :]
            assert events(paste(session, TOOLS[-1])) == ["REDEEMED", "LOCKED", "ASSIGNED"]
            secret = tmp_path / ".data" / "jwt-secret"
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
            request = '{"code": "welcome-1", "user_id": "ann"}'
            call = ("call", "RedeemCode", request, "--address", f"127.0.0.1:{ready.port}")
            done = run(tmp_path, *call)
            assert done.stderr.startswith("UNAUTHENTICATED")
            token = run(tmp_path, "token", "--role", "redeemer").stdout.strip()
            assert run(tmp_path, *call, COUPON_TOKEN=token).returncode == 0


class TestWhatIsMissing:
    def test_a_folder_that_cannot_be_made_is_reported_in_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = run_apart(
            tmp_path, "dev", COUPON_PORT="0", COUPON_METRICS_PORT="0", COUPON_DATA_DIR="file/data"
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"The data folder {tmp_path}/file/data cannot be used: ")
        assert len(done.stderr.splitlines()) == 1

    def test_a_database_that_is_not_there_is_told_in_a_sentence(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        done = run_apart(
            tmp_path,
            "dev",
            COUPON_PORT="0",
            COUPON_METRICS_PORT="0",
            DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
            REDIS_URL=redis_url,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("The database cannot be used: ")
        assert len(done.stderr.splitlines()) == 1
