"""`coupon-service reload` and `coupon-service restart`: changes while the service runs."""

from __future__ import annotations

import os
import signal

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.process.pid_file import PidFileError, holder
from coupon_service.settings import load_settings


def reload() -> None:
    """Make the service that runs here read its log level, keys and certificates again.

    It is found by COUPON_PID_FILE; SIGHUP to its process does the same.
    """
    _signal(signal.SIGHUP)


def restart() -> None:
    """Replace the workers of the service that runs here, one by one, without a break.

    They take up what has changed in .env, but for ports and the number of workers. The service is
    found by COUPON_PID_FILE; SIGUSR2 to its process does the same. Its log says when it is done.
    """
    _signal(signal.SIGUSR2)


def _signal(number: signal.Signals) -> None:
    settings = load_settings()
    try:
        pid = holder(settings.pid_file or settings.data_dir / "pid")
        os.kill(pid, number)
    except PidFileError as error:
        raise CommandError(f"{error} COUPON_PID_FILE says where to look.") from error
    except OSError as error:
        raise CommandError(f"The service cannot be told: {error.strerror}.") from error
    typer.echo(f"Told process {pid}.")
