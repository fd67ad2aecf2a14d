"""The command line: `coupon-service`, or `python -m coupon_service`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        # Takes so long that people press Ctrl-C meanwhile.
        from coupon_service.cli.application import run  # noqa: PLC0415

        run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("coupon_service"):
            raise
        sys.exit(
            f"{error.name} is not installed: here is the client alone. For this command:\n"
            "    pip install 'coupon-service[server]'"
        )
    except KeyboardInterrupt:
        sys.exit(130)
