"""Keys of tokens: several, changed while the service runs, and what is remembered of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import LogCapture
from support.handler_server import failed, info_of, running
from support.token_issuers import ISSUER, OURS, Issuer, key_file, refused, tokens, with_token

from coupon_service.rpc.authorization import Authorizer, methods_of
from coupon_service.rpc.methods import Role
from coupon_service.security.bearer_tokens import LEEWAY_S, NEEDED, Tokens
from coupon_service.security.keys import KeysError
from coupon_service.v1 import redemption_service_pb2 as pb


class TestRemembering:
    def test_a_token_that_was_verified_is_not_verified_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access = Authorizer(tokens())
        token = OURS.token()
        with_token(token, access)
        monkeypatch.delattr(Tokens, "claims")
        assert with_token(token, access).caller == "shop"

    def test_it_ends_when_it_expires(self) -> None:
        clock = [time.time()]
        access = Authorizer(tokens(), lambda: clock[0])
        token = OURS.token(exp=int(clock[0]) + 600)
        with_token(token, access)
        clock[0] += 600
        with_token(token, access)
        clock[0] += LEEWAY_S
        refused(token, access)

    def test_a_refusal_is_not_remembered(self, tmp_path: Path) -> None:
        new = Issuer("new", "ES256")
        file = key_file(tmp_path / "keys", Issuer("old"))
        verifier = tokens(file=file)
        access = Authorizer(verifier)
        refused(new.token(), access)
        key_file(file, new)
        verifier.refresh()
        with_token(new.token(), access)

    def test_so_many_and_no_more_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("coupon_service.rpc.authorization.IDENTITIES_MAX", 2)
        access = Authorizer(tokens())
        made = [OURS.token(sub=f"user-{number}") for number in range(3)]
        for token in made:
            with_token(token, access)
        monkeypatch.delattr(Tokens, "claims")
        for token in made[1:]:
            with_token(token, access)
        with pytest.raises(AttributeError):
            with_token(made[0], access)

    def test_all_tokens_share_what_a_role_may_call(self) -> None:
        assert methods_of(frozenset({Role.SELF})) is methods_of(frozenset({Role.SELF}))


class TestKeys:
    def test_several_issuers_have_keys_of_their_own(self, tmp_path: Path) -> None:
        one, other = Issuer("k", name="https://one.test"), Issuer("k", "ES256", "https://two.test")
        access = Authorizer(tokens(secret=None, file=key_file(tmp_path / "keys", one, other)))
        assert with_token(one.token(), access).caller == "shop"
        assert with_token(other.token(), access).caller == "shop"
        refused(one.token(iss=other.name), access)
        refused(other.token(iss=one.name), access)
        refused(OURS.token(), access)

    def test_a_key_without_issuer_is_for_the_one_of_the_settings(self, tmp_path: Path) -> None:
        issuer = Issuer("k", "ES256")
        file = key_file(tmp_path / "keys", issuer.jwk(iss=None, alg=None))
        access = Authorizer(tokens(secret=None, file=file))
        assert with_token(issuer.token(), access).caller == "shop"
        refused(issuer.token(iss="https://other.test"), access)

    def test_the_secret_and_the_file_can_be_used_together(self, tmp_path: Path) -> None:
        issuer = Issuer("k", "ES256")
        access = Authorizer(tokens(file=key_file(tmp_path / "keys", issuer)))
        assert with_token(issuer.token(), access).caller == "shop"
        assert with_token(OURS.token(), access).caller == "shop"

    @pytest.mark.parametrize(
        ("algorithm", "members"),
        [
            ("HS256", {"k": "dG9vIHNob3J0"}),
            ("HS256", {"k": None}),
            ("HS256", {"k": 5}),
            ("HS256", {"alg": "none"}),
            ("ES256", {"use": "enc"}),
            ("ES256", {"alg": "HS256"}),
            ("ES256", {"alg": "ES384"}),
            ("ES256", {"crv": "P-384"}),
            ("ES256", {"x": 5}),
            ("RS256", {"alg": "none"}),
            ("RS256", {"alg": "RSA-OAEP"}),
            ("RS256", {"alg": 5}),
            ("RS256", {"n": None}),
            ("RS256", {"n": 5}),
            ("RS256", {"n": "AQAB"}),
            ("RS256", {"d": "AQAB"}),
            ("RS256", {"kid": 5}),
            ("RS256", {"kty": "new"}),
            ("RS256", {"kty": None}),
            ("RS256", {"iss": ["x"]}),
        ],
    )
    def test_one_of_no_use_is_passed_over_with_a_warning(
        self, algorithm: str, members: Mapping[str, Any], tmp_path: Path
    ) -> None:
        log, good = LogCapture(), Issuer("good", "ES256")
        bad = Issuer("bad", algorithm).jwk(**members)
        verifier = tokens(log, secret=None, file=key_file(tmp_path / "keys", bad, good))
        assert list(verifier.keys) == [(ISSUER, "good")]
        (line,) = log.entries
        assert (line["event"], line["log_level"], line["number"]) == ("key not used", "warning", 1)
        assert line["cause"]
        secrets = (str(bad[name]) for name in ("k", "d") if name in bad)
        assert not any(secret in str(line) for secret in secrets if len(secret) > 1)

    @pytest.mark.parametrize(
        "text", ["", "x", "[]", "{}", '{"keys": 5}', '{"keys": [5]}', '{"keys": []}', "[" * 9_999]
    )
    def test_a_file_without_keys_is_reported_in_a_sentence(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text(text)
        with pytest.raises(KeysError, match=r"^[^\n]+\.$"):
            tokens(secret=None, file=file)

    def test_a_file_that_is_not_there_is_reported_by_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(KeysError, match=r"/keys cannot be read: No such file or directory\.$"):
            tokens(file=tmp_path / "keys")

    def test_two_keys_of_one_name_are_reported(self, tmp_path: Path) -> None:
        file = key_file(tmp_path / "keys", Issuer("k"), Issuer("k", "ES256"))
        with pytest.raises(KeysError, match="two keys"):
            tokens(file=file)

    def test_no_keys_at_all_are_reported(self) -> None:
        with pytest.raises(KeysError, match="COUPON_JWT_KEYS_FILE"):
            tokens(secret=None)


class TestChangingKeys:
    old, new = Issuer("old", "ES256"), Issuer("new", "EdDSA")

    def test_a_change_counts_at_once_for_tokens_that_were_good(self, tmp_path: Path) -> None:
        file = key_file(tmp_path / "keys", self.old, self.new)
        verifier = tokens(secret=None, file=file)
        access = Authorizer(verifier)
        token = self.old.token()
        with_token(token, access)
        key_file(file, self.new)
        verifier.refresh()
        refused(token, access)
        assert with_token(self.new.token(), access).caller == "shop"

    def test_a_link_that_leads_elsewhere_is_a_change(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        times = (1, 1)
        for name, issuer in (("one", self.old), ("two", self.old)):
            os.utime(key_file(tmp_path / name, issuer), times)
        link.symlink_to("one")
        verifier = tokens(secret=None, file=link)
        before = verifier.keys
        verifier.refresh()
        assert verifier.keys is before
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        verifier.refresh()
        assert verifier.keys is not before

    @pytest.mark.parametrize("broken", ["", "{", '{"keys": []}', None])
    def test_a_broken_file_keeps_the_keys_and_is_an_error_in_the_log(
        self, broken: str | None, tmp_path: Path
    ) -> None:
        log = LogCapture()
        file = key_file(tmp_path / "keys", self.old)
        verifier = tokens(log, secret=None, file=file)
        if broken is None:
            file.unlink()
        else:
            file.write_text(broken)
        verifier.refresh()
        verifier.refresh()
        (line,) = log.entries  # once a change
        assert (line["event"], line["log_level"]) == ("keys not changed", "error")
        assert with_token(self.old.token(), Authorizer(verifier)).caller == "shop"
        key_file(file, self.new)
        verifier.refresh()
        assert log.entries[-1]["event"] == "keys changed"
        assert with_token(self.new.token(), Authorizer(verifier)).caller == "shop"


async def answer(request: Any, context: Any) -> pb.RedeemCodeResponse:
    return pb.RedeemCodeResponse()


class TestOverTheWire:
    @pytest.mark.parametrize(
        "metadata",
        [
            (),
            (("authorization", f"Bearer {OURS.token()}"), ("authorization", "Bearer x")),
            (("authorization", f"Bearer {OURS.token()}"),) * 2,
            (("authorization", f"Bearer {OURS.token(aud='others')}"),),
            (("authorization", "Bearer " + "x" * 6_000),),
        ],
        ids=["none", "two", "twice", "wrong", "long"],
    )
    async def test_a_refusal_says_nothing_but_what_is_needed(self, metadata: Any) -> None:
        async with running(answer, Authorizer(tokens())) as run:
            call = run.redemptions.RedeemCode(pb.RedeemCodeRequest(), metadata=metadata, timeout=60)
            code, details, status = await failed(call)
            line = await run.line()
        assert (code, details) == (grpc.StatusCode.UNAUTHENTICATED, NEEDED)
        assert info_of(status).reason == "UNAUTHENTICATED"
        assert dict(info_of(status).metadata) == {}
        assert len(status.details) == 1
        assert (line["status"], line["caller"]) == ("UNAUTHENTICATED", "anonymous")

    async def test_the_log_says_why_and_nothing_of_the_token(self) -> None:
        token = OURS.token(aud="others")
        async with running(answer, Authorizer(tokens())) as run:
            metadata = (("authorization", f"Bearer {token}"),)
            await failed(
                run.redemptions.RedeemCode(pb.RedeemCodeRequest(), metadata=metadata, timeout=60)
            )
            line = await run.line()
        assert "InvalidAudience" in line["cause"]
        assert not any(piece in str(line) for piece in token.split("."))

    async def test_a_good_one_passes_and_the_log_has_its_subject(self) -> None:
        async with running(answer, Authorizer(tokens())) as run:
            metadata = (("authorization", f"Bearer {OURS.token()}"),)
            await run.redemptions.RedeemCode(pb.RedeemCodeRequest(), metadata=metadata, timeout=60)
            assert (await run.line())["caller"] == "shop"
