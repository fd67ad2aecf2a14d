"""`coupon-service reload` and `coupon-service restart`: signals to the running service."""

from __future__ import annotations

import os
import signal

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.process.pid_file import PidFileError, holder
from coupon_service.settings import load_settings


def reload() -> None:
    """Reload log level, keys and certificates of the service that runs here.

    The service is found by COUPON_PID_FILE. SIGHUP to its process does the same.
    """
    _signal(signal.SIGHUP)


def restart() -> None:
    """Replace the workers of the service that runs here, one by one, without downtime.

    New workers use the current .env, except for ports and the number of workers. The service is
    found by COUPON_PID_FILE. SIGUSR2 to its process does the same. Its log reports the end.
    """
    _signal(signal.SIGUSR2)


def _signal(number: signal.Signals) -> None:
    settings = load_settings()
    try:
        pid = holder(settings.pid_file or settings.data_dir / "pid")
    except PidFileError as error:
        raise CommandError(f"{error} COUPON_PID_FILE names the file.") from error
    try:
        os.kill(pid, number)
    except OSError as error:
        raise CommandError(f"Process {pid} cannot be signalled: {error.strerror}.") from error
    typer.echo(f"Signalled process {pid}.")
