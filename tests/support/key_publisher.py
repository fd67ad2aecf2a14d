"""An identity provider, as far as services see it: keys at a URL, and Keycloak's tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.token_issuers import Issuer

KEYCLOAK = "https://login.example.com/realms/shop"


class KeyPublisher:
    """Publishes the keys of issuers at `url`, and counts how often they are fetched."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.status = 200
        self.fetches = 0
        self.answering = threading.Event()
        """While it is cleared, requests wait."""
        self.answering.set()
        self.url = ""

    def publish(self, *issuers: Issuer) -> None:
        """Publish these keys in place of others, without `iss`, as providers do."""
        self.entries = [issuer.jwk(iss=None, use="sig") for issuer in issuers]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        self.fetches += 1
        self.answering.wait(30)
        request.send_response(self.status)
        request.end_headers()
        request.wfile.write(json.dumps({"keys": self.entries}).encode())


@contextmanager
def key_publisher(*issuers: Issuer) -> Generator[KeyPublisher]:
    """A running publisher of the keys of these issuers."""
    publisher = KeyPublisher()
    publisher.publish(*issuers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            publisher.answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    publisher.url = f"http://127.0.0.1:{server.server_port}/certs"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield publisher
    finally:
        publisher.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()


KEYCLOAK_CLAIMS: Mapping[str, Any] = {
    "jti": "onrtac:5f5d4ccd-3a2c-8a4e-2f5b-1d0b6d7e9c11",
    "aud": "account",
    "sub": "8d5b3cbe-1f2c-4a0e-9f0a-2f7c8c6d9a10",
    "typ": "Bearer",
    "azp": "shop",
    "sid": "c0b7c0de-7f3f-4f6e-8b61-5d0a4a1f7f12",
    "acr": "1",
    "allowed-origins": ["https://shop.example.com"],
    "realm_access": {
        "roles": ["redeemer", "default-roles-shop", "offline_access", "uma_authorization"]
    },
    "resource_access": {
        "account": {"roles": ["manage-account", "manage-account-links", "view-profile"]}
    },
    "scope": "profile email",
    "email_verified": True,
    "name": "Ann Example",
    "preferred_username": "ann",
    "given_name": "Ann",
    "family_name": "Example",
    "email": "ann@example.com",
    "roles": None,
    "business_id": None,
}
"""What a default realm of Keycloak 26 puts into the access token of a user with a realm role of
ours; `Issuer.token` leaves out those of None."""
