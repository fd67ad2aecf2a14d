"""The command line: `coupon-service`, or `python -m coupon_service`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        # Takes so long that people press Ctrl-C meanwhile.
        from coupon_service.cli.application import run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        sys.exit(130)
