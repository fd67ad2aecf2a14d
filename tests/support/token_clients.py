"""Clients of a server that requires tokens."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from support.service import Api
from support.token_issuers import Issuer

ISSUER = Issuer(kid="")


@contextmanager
def caller(address: str, *roles: str, sub: str = "service", business: str = "") -> Generator[Api]:
    """A client with a token of these roles. `business` empty: for all businesses."""
    token = ISSUER.token(sub=sub, roles=list(roles), business_id=business or None)
    api = Api(address, token)
    try:
        yield api
    finally:
        api.close()
