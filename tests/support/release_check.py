"""Check of a release: `make release-check`.

It builds the wheel, installs it with the locked packages into an empty environment, and takes the
service through its first hour there: migrate, serve, call, stop, on a private PostgreSQL and Redis.
Everything is removed afterwards.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.changelog import releases

from coupon_service import __version__
from coupon_service.cli.examples import EXAMPLES
from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.embedded.machine import free_port

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


class CheckError(Exception):
    """The release cannot be made. The message is one sentence."""


def main() -> None:
    """Check, and say what was found."""
    try:
        with tempfile.TemporaryDirectory(prefix="coupon-release-") as name:
            folder = Path(name)
            check_changelog()
            wheel = built(folder)
            check_contents(wheel)
            environment = installed(folder, wheel)
            check_commands(environment)
            check_service(environment, folder)
    except CheckError as error:
        sys.exit(str(error))
    say(f"{wheel.name} can be released.")


def check_changelog() -> None:
    """The version has a section, and nothing has changed since."""
    unreleased, newest, *_ = releases()
    expect(
        newest.version == __version__,
        f"CHANGELOG.md ends with {newest.version}, coupon_service/__init__.py has {__version__}",
    )
    expect(
        not unreleased.entries,
        "CHANGELOG.md has changes under Unreleased: give that section a version and a date",
    )


def built(folder: Path) -> Path:
    """The wheel."""
    say("Building the wheel ...")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    (wheel,) = folder.glob("*.whl")
    expect(f"-{__version__}-" in wheel.name, f"the wheel is called {wheel.name}")
    return wheel


def check_contents(wheel: Path) -> None:
    """The package with migrations and contract, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    expect(
        folders == {"coupon_service", f"coupon_service-{__version__}.dist-info"},
        f"the wheel has the folders {', '.join(sorted(folders))}",
    )
    for folder, pattern, source in (
        ("coupon_service/migrations", "*.sql", ROOT / "migrations"),
        ("coupon_service/v1", "*.proto", ROOT / "proto/coupon_service/v1"),
        ("coupon_service", "py.typed", ROOT / "coupon_service"),
    ):
        missing = {f"{folder}/{it.name}" for it in source.glob(pattern)} - set(names)
        expect(not missing, f"the wheel is without {', '.join(sorted(missing))}")


def installed(folder: Path, wheel: Path) -> Path:
    """The folder of programs of an environment with the wheel, and what the lock file has."""
    say("Installing it into an empty environment ...")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    pip = (str(programs / "python"), "-m", "pip", "--disable-pip-version-check")
    install = (*pip, "install", "--quiet", "--only-binary", ":all:")
    run(*install, "--require-hashes", "--requirement", str(ROOT / "requirements.lock"))
    before = json.loads(run(*pip, "list", "--format", "json"))
    run(*install, f"{wheel}[server,tracing]")
    after = json.loads(run(*pip, "list", "--format", "json"))
    added = {it["name"] for it in after if it not in before}
    expect(
        added == {"coupon-service"},
        f"requirements.lock is without what the wheel needs: {', '.join(sorted(added))}",
    )
    run(*pip, "check")
    return programs


def check_commands(programs: Path) -> None:
    """Commands that need no service."""
    say("Trying its commands ...")
    command = str(programs / "coupon-service")
    said = run(command, "--version")
    expect(said == f"coupon-service {__version__}\n", f"--version says {said!r}")
    expect("Redeems a code once" in run(command, "describe", "RedeemCode"), "there are no comments")
    expect("COUPON_DATABASE_URL" in run(command, "settings"), "settings are not listed")


def check_service(programs: Path, folder: Path) -> None:
    """The first hour: migrate, serve, call, stop."""
    command = str(programs / "coupon-service")
    with (
        EmbeddedPostgres(folder / "postgres") as postgres,
        EmbeddedRedis(folder / "redis") as redis,
    ):
        database = {"COUPON_DATABASE_URL": postgres.url}
        say("Migrating ...")
        expect("up to date" in run(command, "migrate", "up", variables=database), "migrate failed")
        variables = {
            **database,
            "COUPON_REDIS_URL": redis.url,
            "COUPON_LOCK_TOKEN_SECRET": secrets.token_urlsafe(48),
            "COUPON_PORT": str(free_port()),
            "COUPON_METRICS_PORT": str(free_port()),
            "COUPON_WORKERS": "1",
            "COUPON_DRAIN_GRACE_MS": "0",
        }
        say("Serving ...")
        with serving(command, variables, folder):
            method = "CouponBookService/CreateCouponBook"
            book = json.loads(run(command, "call", method, EXAMPLES[method], variables=variables))
            expect(book["coupon_book"]["name"] == "Summer sale", f"{method} answers {book}")


@contextmanager
def serving(command: str, variables: Mapping[str, str], folder: Path) -> Generator[None]:
    """A service that serves, and has to stop cleanly. Raises CheckError."""
    log = folder / "log"
    with log.open("wb") as output:
        service = subprocess.Popen(
            [command, "serve"],
            cwd=folder,
            env=clean_environment(variables),
            stdout=output,
            stderr=output,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_serving(command, variables):
            waits = service.poll() is None and time.monotonic() < deadline_s
            expect(waits, f"the service does not serve:\n{log.read_text()}")
        yield
        service.send_signal(signal.SIGTERM)
        status = service.wait(STOP_TIMEOUT_S)
        expect(status == 0, f"the service ends with {status}:\n{log.read_text()}")
    finally:
        service.kill()
        service.wait()


def is_serving(command: str, variables: Mapping[str, str]) -> bool:
    """Whether the service says so."""
    asked = subprocess.run(
        [command, "health"], env=clean_environment(variables), capture_output=True, check=False
    )
    return asked.returncode == 0


def run(*command: str, variables: Mapping[str, str] | None = None) -> str:
    """The output of a command, outside of the source tree for those of the wheel."""
    done = subprocess.run(
        command,
        cwd=ROOT if command[0] == sys.executable else Path(command[0]).parent,
        env=clean_environment(variables or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CheckError(f"{' '.join(command)} fails:\n{done.stdout}{done.stderr}")
    return done.stdout


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of the service and paths of Python, and with these."""
    removed = ("COUPON_", "DATABASE_URL", "REDIS_URL", "PYTHON", "VIRTUAL_ENV")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(removed)},
        **variables,
    }


def expect(holds: bool, sentence: str) -> None:
    """Raises CheckError with the sentence unless it holds."""
    if not holds:
        raise CheckError(f"Not a release: {sentence}.")


def say(sentence: str) -> None:
    """Print it at once."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
