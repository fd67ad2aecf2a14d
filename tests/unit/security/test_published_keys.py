"""Keys that an identity provider publishes at a URL, and tokens as providers make them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from structlog.testing import LogCapture
from support.handler_server import failed, running
from support.key_publisher import KEYCLOAK, KEYCLOAK_CLAIMS, KeyPublisher, key_publisher
from support.token_issuers import (
    ISSUER,
    OURS,
    SECRET,
    Issuer,
    refused,
    tokens,
    with_token,
)

from coupon_service.errors import PermissionDenied
from coupon_service.rpc.authorization import Authorizer
from coupon_service.security import key_fetcher
from coupon_service.security.bearer_tokens import Tokens
from coupon_service.security.key_fetcher import KeyFetcher
from coupon_service.security.keys import KeysError, PublishedKeys
from coupon_service.v1 import coupon_code_service_pb2 as codes
from coupon_service.v1 import redemption_service_pb2 as pb

OLD, NEW = Issuer("old", "RS256"), Issuer("new", "ES256")


@pytest.fixture
def publisher() -> Generator[KeyPublisher]:
    with key_publisher(OLD) as running_publisher:
        yield running_publisher


def verifier(
    publisher: KeyPublisher, log: LogCapture | None = None, kept: Path | None = None, **changes: Any
) -> Tokens:
    logger = structlog.wrap_logger(None, processors=[log or LogCapture()])
    published = PublishedKeys(publisher.url, changes.get("issuer", ISSUER), logger, kept)
    return tokens(log, **({"secret": None, "published": published} | changes))


class TestFetching:
    def test_published_keys_verify_tokens_of_the_configured_issuer(
        self, publisher: KeyPublisher
    ) -> None:
        access = Authorizer(verifier(publisher))
        assert with_token(OLD.token(), access).caller == "shop"
        refused(OLD.token(iss="https://other.test"), access)
        refused(NEW.token(), access)

    @pytest.mark.parametrize("status", [500, 404, 302])
    def test_stale_keys_stay_good_while_the_provider_is_away(
        self, publisher: KeyPublisher, status: int
    ) -> None:
        log = LogCapture()
        keys = verifier(publisher, log)
        access = Authorizer(keys)
        publisher.status = status
        assert not keys.fetch()
        with_token(OLD.token(), access)
        assert (log.entries[-1]["event"], log.entries[-1]["log_level"]) == (
            "keys not fetched",
            "error",
        )
        assert publisher.url in log.entries[-1]["cause"]

    def test_what_is_no_key_set_changes_nothing(self, publisher: KeyPublisher) -> None:
        keys = verifier(publisher)
        publisher.entries = [5]  # pyright: ignore[reportAttributeAccessIssue]
        assert not keys.fetch()
        with_token(OLD.token(), Authorizer(keys))

    def test_a_withdrawn_key_is_not_good_any_more(self, publisher: KeyPublisher) -> None:
        keys = verifier(publisher)
        access = Authorizer(keys)
        token = OLD.token()
        with_token(token, access)
        publisher.publish(NEW)
        assert keys.fetch()
        refused(token, access)
        with_token(NEW.token(), access)

    def test_unchanged_keys_do_not_make_workers_forget_tokens(
        self, publisher: KeyPublisher
    ) -> None:
        keys = verifier(publisher)
        before = keys.keys
        assert keys.fetch()
        assert keys.keys is before

    def test_keys_for_encryption_and_secrets_are_not_used(self, publisher: KeyPublisher) -> None:
        log = LogCapture()
        encryption = OLD.jwk(kid="encryption", use="enc", alg="RSA-OAEP", iss=None)
        publisher.entries += [encryption, OURS.jwk(kid="secret", iss=None)]
        keys = verifier(publisher, log)
        assert list(keys.keys) == [(ISSUER, "old")]
        causes = [line["cause"] for line in log.entries if line["event"] == "key not used"]
        assert causes == ["a secret that is published is none"]

    def test_own_keys_stay_beside_them(self, publisher: KeyPublisher) -> None:
        keys = verifier(publisher, secret=SECRET)
        access = Authorizer(keys)
        with_token(OLD.token(), access)
        with_token(OURS.token(), access)

    def test_without_any_key_it_does_not_start(self, publisher: KeyPublisher) -> None:
        publisher.status = 503
        with pytest.raises(KeysError, match=rf"{publisher.url} cannot be fetched: HTTP Error 503"):
            verifier(publisher)
        with_token(OURS.token(), Authorizer(verifier(publisher, secret=SECRET)))


class TestKeeping:
    def test_a_worker_that_starts_while_the_provider_is_away_has_the_keys_of_others(
        self, publisher: KeyPublisher, tmp_path: Path
    ) -> None:
        kept = tmp_path / "keys.json"
        before = verifier(publisher, kept=kept)
        publisher.publish(OLD, NEW)
        assert before.fetch()
        publisher.status = 503
        access = Authorizer(verifier(publisher, kept=kept))
        with_token(OLD.token(), access)
        with_token(NEW.token(), access)
        assert [it.name for it in tmp_path.iterdir()] == ["keys.json"]

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "5", '{"url": "URL"}', '{"url": "URL", "key_set": 5}']
    )
    def test_what_is_kept_and_of_no_use_is_not_used(
        self, publisher: KeyPublisher, tmp_path: Path, text: str
    ) -> None:
        kept = tmp_path / "keys.json"
        kept.write_text(text.replace("URL", publisher.url))
        publisher.status = 503
        with pytest.raises(KeysError, match="cannot be fetched"):
            verifier(publisher, kept=kept)

    def test_keys_of_another_provider_are_not_used(
        self, publisher: KeyPublisher, tmp_path: Path
    ) -> None:
        kept = tmp_path / "keys.json"
        with key_publisher(NEW) as other:
            verifier(other, kept=kept)
        publisher.status = 503
        with pytest.raises(KeysError, match="cannot be fetched"):
            verifier(publisher, kept=kept)


async def answer(request: Any, context: Any) -> pb.RedeemCodeResponse:
    return pb.RedeemCodeResponse()


def access_of(keys: Tokens, pause_s: float = 0) -> Authorizer:
    return Authorizer(keys, fetcher=KeyFetcher(keys.fetch, pause_s))


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


class TestUnknownKeys:
    async def test_a_call_waits_for_a_key_that_is_new(self, publisher: KeyPublisher) -> None:
        access = access_of(verifier(publisher), pause_s=0.3)
        publisher.publish(OLD, NEW)
        async with running(answer, access) as run:
            await run.redemptions.RedeemCode(
                pb.RedeemCodeRequest(), metadata=bearer(NEW.token()), timeout=60
            )
            line = await run.line()
        assert (line["status"], line["caller"]) == ("OK", "shop")
        assert run.handler.open_calls == 0

    async def test_a_stream_waits_for_a_key_that_is_new(self, publisher: KeyPublisher) -> None:
        async def imported(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for request in requests:
                yield codes.ImportCodesResponse(chunk_number=request.chunk.chunk_number)

        access = access_of(verifier(publisher))
        publisher.publish(NEW)
        async with running(imported, access) as run:
            token = NEW.token(roles=["issuer"])
            sent = [
                codes.ImportCodesRequest(chunk=codes.ImportChunk(chunk_number=number))
                for number in (1, 2)
            ]
            call = run.codes.ImportCodes(iter(sent), metadata=bearer(token), timeout=60)
            assert [it.chunk_number async for it in call] == [1, 2]

    async def test_many_calls_share_a_fetch(self, publisher: KeyPublisher) -> None:
        access = access_of(verifier(publisher), pause_s=2)
        stranger = Issuer("stranger", "ES256")
        async with running(answer, access) as run:
            stub = run.redemptions
            metadata = bearer(stranger.token())
            errors = await asyncio.gather(
                *(
                    failed(stub.RedeemCode(pb.RedeemCodeRequest(), metadata=metadata, timeout=60))
                    for _ in range(50)
                )
            )
            line = run.lines[0]
        assert {code for code, _, _ in errors} == {grpc.StatusCode.UNAUTHENTICATED}
        assert publisher.fetches == 2  # at the start, and for all of them
        assert "key id" in line["cause"]

    async def test_a_token_of_another_issuer_does_not_wait(self, publisher: KeyPublisher) -> None:
        access = access_of(verifier(publisher), pause_s=5)
        async with running(answer, access) as run:
            metadata = bearer(Issuer("k", "ES256", "https://other.test").token())
            await failed(
                run.redemptions.RedeemCode(pb.RedeemCodeRequest(), metadata=metadata, timeout=60)
            )
        assert publisher.fetches == 1

    async def test_the_wait_for_a_provider_that_hangs_is_bounded(
        self, publisher: KeyPublisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key_fetcher, "WAIT_MAX_S", 0.2)
        access = access_of(verifier(publisher))
        publisher.answering.clear()
        async with running(answer, access) as run:
            metadata = bearer(NEW.token())
            code, _, _ = await failed(
                run.redemptions.RedeemCode(pb.RedeemCodeRequest(), metadata=metadata, timeout=60)
            )
            await run.redemptions.RedeemCode(
                pb.RedeemCodeRequest(), metadata=bearer(OLD.token()), timeout=60
            )
            publisher.answering.set()
        assert code == grpc.StatusCode.UNAUTHENTICATED

    async def test_no_more_than_so_many_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_fetcher, "WAITING_MAX", 2)
        release = threading.Event()
        fetcher = KeyFetcher(release.wait, 0)
        waiting = [asyncio.create_task(fetcher.fetched()) for _ in range(2)]
        assert not fetcher.full
        await asyncio.sleep(0.05)
        assert fetcher.full
        release.set()
        await asyncio.gather(*waiting)
        assert not fetcher.full

    async def test_fetches_have_a_pause_between_them(self) -> None:
        began_s = time.perf_counter()
        fetches: list[float] = []
        fetcher = KeyFetcher(lambda: fetches.append(time.perf_counter()), 0.2)
        for _ in range(3):
            await fetcher.fetched()
        assert len(fetches) == 3
        assert fetches[2] - began_s > 0.55


class TestKeycloak:
    realm = Issuer("gHx7Yb1RzGyqg9K0mTQ2uQ", "RS256", KEYCLOAK)

    @pytest.fixture
    def keys(self) -> Generator[Tokens]:
        encryption = Issuer("tdqH2yCeB3m8gD0J9wq7hA", "RS256", KEYCLOAK)
        with key_publisher(self.realm) as publisher:
            (signing,) = publisher.entries
            chain = {"x5c": ["MIIClzCCAX8CBgGN"], "x5t": "s6", "x5t#S256": "M9"}
            publisher.entries = [
                encryption.jwk(alg="RSA-OAEP", use="enc", iss=None) | chain,
                signing | chain,
            ]
            yield verifier(publisher, issuer=KEYCLOAK, audiences=["coupon-service", "account"])

    def test_a_default_token_has_the_roles_of_its_realm(self, keys: Tokens) -> None:
        access = Authorizer(keys, roles_claim="realm_access.roles")
        token = self.realm.token({"typ": "JWT"}, **KEYCLOAK_CLAIMS)
        rpc = with_token(token, access)
        assert rpc.caller == KEYCLOAK_CLAIMS["sub"]
        assert (rpc.business_id, rpc.end_user) == ("", False)
        with pytest.raises(PermissionDenied):
            with_token(token, access, "AuditService/ListAuditEvents")

    def test_a_mapped_claim_names_the_business(self, keys: Tokens) -> None:
        access = Authorizer(
            keys, roles_claim="resource_access.coupon-service.roles", business_claim="shop.id"
        )
        claims = {
            **KEYCLOAK_CLAIMS,
            "resource_access": {"coupon-service": {"roles": ["self"]}},
            "shop": {"id": "acme"},
        }
        rpc = with_token(self.realm.token(**claims), access)
        assert (rpc.business_id, rpc.end_user) == ("acme", True)

    def test_tokens_for_other_services_are_refused(self, keys: Tokens) -> None:
        access = Authorizer(keys, roles_claim="realm_access.roles")
        refused(self.realm.token(**{**KEYCLOAK_CLAIMS, "aud": ["broker"]}), access)


@pytest.mark.parametrize(
    ("path", "claims", "passes"),
    [
        ("scope", {"scope": "openid redeemer"}, True),
        ("scope", {"scope": "openid"}, False),
        ("scope", {}, False),
        ("https://shop.example/roles", {"https://shop.example/roles": ["redeemer"]}, True),
        ("https://shop.example/a.b", {"https://shop.example/a": {"b": ["redeemer"]}}, True),
        (
            "clients.com.shop.roles",
            {"clients": {"com.shop": {"roles": ["redeemer"]}}},
            True,
        ),
        ("realm_access.roles", {"realm_access": ["redeemer"]}, False),
        ("realm_access.roles", {"realm_access": {"other": ["redeemer"]}}, False),
        ("realm_access.roles", {"roles": ["redeemer"]}, False),
        ("realm_access.roles", {"realm_access.roles": ["redeemer"]}, True),
    ],
)
def test_roles_are_at_the_path_of_their_claim(
    path: str, claims: dict[str, Any], passes: bool
) -> None:
    access = Authorizer(tokens(), roles_claim=path)
    token = OURS.token(**({"roles": None} | claims))
    if passes:
        assert with_token(token, access).caller == "shop"
    else:
        with pytest.raises(PermissionDenied):
            with_token(token, access)


@pytest.mark.parametrize(
    ("claims", "business"), [({}, ""), ({"shop": {"id": "acme"}}, "acme"), ({"shop": {}}, "")]
)
def test_business_is_at_the_path_of_its_claim(claims: dict[str, Any], business: str) -> None:
    access = Authorizer(tokens(), business_claim="shop.id")
    assert with_token(OURS.token(**claims), access).business_id == business


@pytest.mark.parametrize("value", [5, None, [], {"id": "acme"}])
def test_a_business_that_is_no_text_is_refused(value: object) -> None:
    access = Authorizer(tokens(), business_claim="shop.id")
    refused(OURS.token(shop={"id": value}), access)
