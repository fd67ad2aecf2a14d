"""`python -m coupon_service`: the command line."""

from __future__ import annotations

from coupon_service.cli import main

if __name__ == "__main__":
    main()
