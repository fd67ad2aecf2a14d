"""Check of the container image, which it builds and runs: `make image-check`.

It needs neither a container engine nor a registry. buildah builds the image, on a Debian that
debootstrap creates (or on `--base`, an image that buildah can get). The service runs in it by
chroot, as process 1 of its own process and mount namespaces, with a private PostgreSQL and Redis.
Needs root, on Linux. Removes everything afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.embedded.machine import free_port

ROOT = Path(__file__).parents[2]

DEBIAN = "bookworm"

BASE_DOCKERFILE = "FROM scratch\nADD base.tar /\n"

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0

PIP_SETTINGS = ("cert", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")
"""Settings of pip on this machine that the build gets."""

ENTER = r"""
set -eu
root=$1 user=$2 folder=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777,size=64m shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
exec chroot --userspec="$user" --groups= "$root" /bin/sh -c 'cd "$0"; exec "$@"' "$folder" "$@"
"""
"""The setup of a container by an engine: a read-only root, its own /proc, an empty /tmp."""


class CheckError(Exception):
    """The image cannot be checked, or fails the check. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built and mounted image: its root folder, and its configuration as engines read it."""

    root: Path
    config: Mapping[str, Any]

    def command(self, arguments: list[str]) -> list[str]:
        """The command that runs `arguments` in a container of this image."""
        namespaces = ["unshare", "--mount", "--pid", "--fork"]
        where = [str(self.root), self.config["User"], self.config["WorkingDir"]]
        return [*namespaces, "sh", "-c", ENTER, "enter", *where, *arguments]

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The environment of the image, with `variables` added."""
        return dict(entry.split("=", 1) for entry in self.config["Env"]) | dict(variables)

    def run(self, arguments: list[str], variables: Mapping[str, str]) -> tuple[int, str]:
        """The exit code and the output of a container."""
        done = subprocess.run(
            self.command(arguments),
            env=self.environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


def main() -> None:
    """Check the image, and print the results."""
    parser = argparse.ArgumentParser(description="Build the container image and run it.")
    parser.add_argument("--base", help="base image; default: a Debian made for it")
    arguments = parser.parse_args()
    try:
        require_machine(arguments.base)
        with tempfile.TemporaryDirectory(prefix="coupon-image-") as folder:
            with built(Path(folder), arguments.base) as image:
                check_contents(image)
                check_service(image, Path(folder))
    except CheckError as error:
        sys.exit(str(error))
    say("The image passed.")


def require_machine(base: str | None) -> None:
    """Raise CheckError where the check cannot run."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CheckError("The image was not checked: the check needs root, on Linux.")
    programs = ["buildah", "unshare", *([] if base else ["debootstrap", "tar"])]
    if missing := [program for program in programs if not shutil.which(program)]:
        raise CheckError(
            f"The image was not checked: {' and '.join(missing)} cannot be found"
            " (Debian and Ubuntu: apt-get install buildah debootstrap)."
        )


@contextmanager
def built(folder: Path, base: str | None) -> Generator[Image]:
    """The mounted image of this source tree. Its storage is in `folder`."""
    storage = ["--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
    buildah = ["buildah", *storage, "--storage-driver", "vfs"]
    base = base or make_base(folder, buildah)
    pip_conf = folder / "pip.conf"
    certificates = write_pip_conf(pip_conf)
    say(f"building on {base}")
    call(
        *(*buildah, "build", "--isolation", "chroot", "--format", "docker", "--quiet"),
        *("--build-arg", f"PYTHON_IMAGE={base}", "--secret", f"id=pip.conf,src={pip_conf}"),
        *(part for path in certificates for part in ("--volume", f"{path}:{path}:ro")),
        *("--tag", "coupon-service", str(ROOT)),
    )
    container = call(*buildah, "from", "--pull-never", "localhost/coupon-service")
    try:
        described = json.loads(call(*buildah, "inspect", "--type", "image", "coupon-service"))
        root = Path(call(*buildah, "mount", container))
        yield Image(root, described["Docker"]["config"])
    finally:
        call(*buildah, "umount", container)
        call(*buildah, "rm", "--all")


def make_base(folder: Path, buildah: list[str]) -> str:
    """Build a base image of a minimal Debian with Python."""
    say(f"building a base image of Debian {DEBIAN}")
    context = folder / "base"
    context.mkdir()
    include = "--include=python3,python3-venv"
    call("debootstrap", "--variant=minbase", include, DEBIAN, f"{folder}/debian")
    call("tar", "-C", f"{folder}/debian", "-cf", f"{context}/base.tar", ".")
    shutil.rmtree(folder / "debian")
    (context / "Dockerfile").write_text(BASE_DOCKERFILE, encoding="ascii")
    call(*buildah, "build", "--isolation", "chroot", "--quiet", "--tag", "base", str(context))
    return "localhost/base"


def write_pip_conf(path: Path) -> list[str]:
    """Write the package index settings of this machine for the build; returns files it needs."""
    listed = call(sys.executable, "-m", "pip", "config", "list")
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    lines = [f"{name} = {settings[name]}" for name in PIP_SETTINGS if name in settings]
    path.touch(mode=0o600)
    path.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    return [settings["cert"]] if "cert" in settings else []


def check_contents(image: Image) -> None:
    """Raise CheckError unless the image has what it needs, and nothing else."""
    user = str(image.config["User"]).partition(":")[0]
    expect(user.isdigit() and int(user) > 0, f"it runs as a numeric user other than root: {user}")
    expect(image.config["Entrypoint"] == ["coupon-service"], "it starts without a shell")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {re.split("==|\\[", line)[0] for line in lock.splitlines() if line[:1].isalnum()}
    listing = "from importlib.metadata import distributions as all\nfor it in all(): print(it.name)"
    _, printed = image.run(["/venv/bin/python", "-c", listing], {})
    installed = {name.lower().replace("_", "-").replace(".", "-") for name in printed.split()}
    expect(installed <= locked, "it has the locked packages and no others", installed - locked)
    expect("grpcio" in installed, f"it has {len(installed)} packages")
    secrets = [image.root / name for name in ("run/secrets", "etc/pip.conf", "root/.config")]
    expect(not any(path.exists() for path in secrets), "nothing of the build's settings is in it")
    code, output = image.run(["sh", "-c", "touch /tmp/x && touch /app/x"], {})
    expect(code != 0 and "/app/x" in output, "only /tmp is writable", output)


def check_service(image: Image, folder: Path) -> None:
    """Raise CheckError unless the service in the image starts, serves and stops."""
    with ExitStack() as servers:
        postgres = servers.enter_context(EmbeddedPostgres(folder / "postgres", durable=False))
        redis = servers.enter_context(EmbeddedRedis(folder / "redis", durable=False))
        variables = {
            "COUPON_DATABASE_URL": postgres.url,
            "COUPON_REDIS_URL": redis.url,
            "COUPON_LOCK_TOKEN_SECRET": "of this one check, and long enough",
            # It shares the network of the machine, and must not be reachable from outside.
            "COUPON_HOST": "127.0.0.1",
            "COUPON_METRICS_HOST": "127.0.0.1",
            "COUPON_PORT": str(free_port()),
            "COUPON_METRICS_PORT": str(free_port()),
            "COUPON_DRAIN_GRACE_MS": "100",
        }
        health: list[str] = image.config["Healthcheck"]["Test"]
        expect(health[0] == "CMD", f"its health check is {' '.join(health[1:])}")
        code, output = image.run(health[1:], variables)
        expect(code == 1, "it is unhealthy before its start", output)
        entrypoint: list[str] = image.config["Entrypoint"]
        code, output = image.run([*entrypoint, "migrate", "up"], variables)
        expect(code == 0, "migrate up creates the schema", output)
        check_lifecycle(image, [*entrypoint, *image.config["Cmd"]], health[1:], variables)


def check_lifecycle(
    image: Image, command: list[str], health: list[str], variables: Mapping[str, str]
) -> None:
    """Start the service, check its health, and stop it with SIGTERM."""
    started = time.monotonic()
    engine = subprocess.Popen(image.command(command), env=image.environment(variables))
    try:
        output = ""
        while time.monotonic() < started + START_TIMEOUT_S and engine.poll() is None:
            code, output = image.run(health, variables)
            if code == 0:
                break
            time.sleep(0.5)
        else:
            raise CheckError(f"The image failed: it does not get healthy: {output}")
        say(f"it is healthy after {time.monotonic() - started:.1f} s: {output.strip()}")
        (process,) = psutil.Process(engine.pid).children()
        user = int(str(image.config["User"]).partition(":")[0])
        expect(set(process.uids()) == {user}, f"it runs as user {user}", process.uids())
        mounts = Path(f"/proc/{process.pid}/mounts").read_text(encoding="utf-8").splitlines()
        options = next(line.split()[3] for line in mounts if line.split()[1] == "/")
        expect("ro" in options.split(","), "its root file system is read-only", options)
        process.terminate()
        code = engine.wait(STOP_TIMEOUT_S)
        expect(code == 0, f"SIGTERM ends it with exit code {code}")
    finally:
        # unshare --kill-child has no effect after a change of user. All end with their process 1.
        for process in psutil.Process(engine.pid).children() if engine.poll() is None else ():
            process.kill()
        engine.wait()


def call(*command: str) -> str:
    """The standard output of a command. Raises CheckError with all its output when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CheckError(f"{done.stdout}{done.stderr}\n{command[0]} failed, see above.")
    return done.stdout.strip()


def expect(holds: bool, sentence: str, but: object = "") -> None:
    """Print the sentence. Raises CheckError unless it holds."""
    if not holds:
        raise CheckError(f'The image failed: "{sentence}" does not hold. {but}'.strip())
    say(sentence)


def say(sentence: str) -> None:
    """Print progress."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
