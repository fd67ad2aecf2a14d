"""Tokens: the caller is who a valid one names; anything else is refused, in the same words."""

from __future__ import annotations

import base64
import json
import string
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from support.token_issuers import (
    AUDIENCE,
    ISSUER,
    OURS,
    SECRET,
    Issuer,
    calling,
    key_file,
    private_key,
    refused,
    tokens,
    with_token,
)

from coupon_service.errors import PermissionDenied, Unauthenticated
from coupon_service.rpc.authorization import Authorizer
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.methods import METHODS
from coupon_service.security.bearer_tokens import LEEWAY_S, NEEDED, make_token
from coupon_service.security.keys import ALGORITHMS, secret_key


def part(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


class TestGoodTokens:
    def test_they_say_who_calls_and_whose_business_it_is(self) -> None:
        rpc = with_token(OURS.token())
        assert (rpc.caller, rpc.business_id, rpc.end_user) == ("shop", "acme", False)

    def test_one_that_names_no_business_is_for_all(self) -> None:
        assert with_token(OURS.token(business_id=None)).business_id == ""

    def test_that_of_an_end_user_has_its_user_id_as_subject(self) -> None:
        rpc = with_token(OURS.token(sub="ann", roles="self"))
        assert (rpc.caller, rpc.business_id, rpc.end_user) == ("ann", "acme", True)

    @pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
    def test_every_algorithm_works_with_a_key_of_its_kind(
        self, algorithm: str, tmp_path: Path
    ) -> None:
        issuer = Issuer("k", algorithm, key=None if algorithm[:2] != "HS" else b"s" * 64)
        access = Authorizer(tokens(secret=None, file=key_file(tmp_path / "keys", issuer)))
        assert with_token(issuer.token(), access).caller == "shop"

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_the_scheme_may_have_any_case(self, scheme: str) -> None:
        assert calling(f"{scheme} {OURS.token()}").caller == "shop"

    @pytest.mark.parametrize("audience", [AUDIENCE, ["others", AUDIENCE]])
    def test_the_audience_contains_the_service(self, audience: object) -> None:
        assert with_token(OURS.token(aud=audience)).caller == "shop"

    def test_the_clocks_may_differ_a_little(self) -> None:
        now = time.time()
        assert with_token(OURS.token(iat=now + LEEWAY_S / 2)).caller == "shop"
        assert with_token(OURS.token(nbf=now + LEEWAY_S / 2)).caller == "shop"
        assert with_token(OURS.token(exp=now - LEEWAY_S / 2)).caller == "shop"

    def test_the_one_that_the_command_makes_is_one(self) -> None:
        token = make_token(
            SECRET,
            issuer=ISSUER,
            audience=AUDIENCE,
            subject="shop",
            roles=["redeemer"],
            business_id="acme",
            expires_in_s=60,
        )
        rpc = with_token(token)
        assert (rpc.caller, rpc.business_id, rpc.end_user) == ("shop", "acme", False)


class TestBadHeaders:
    @pytest.mark.parametrize(
        "values",
        [
            (),
            ("",),
            ("Bearer",),
            ("Bearer ",),
            (OURS.token(),),
            (f"Basic {OURS.token()}",),
            (f"Bearer  {OURS.token()}",),
            (f"Bearer {OURS.token()} ",),
            (f"Bearer {OURS.token()},Bearer {OURS.token()}",),
            (f"Bearer {OURS.token()}", f"Bearer {OURS.token()}"),
            (f"Bearer {OURS.token()}", ""),
            (f"Bearer {OURS.token()}".encode(),),
        ],
    )
    def test_there_is_exactly_one_bearer_token(self, values: tuple[str | bytes, ...]) -> None:
        with pytest.raises(Unauthenticated) as caught:
            calling(*values)
        assert caught.value.message == NEEDED


BASE64URL = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


class TestSpellings:
    """A token has one spelling: another one of the same bytes is not that token."""

    @pytest.mark.parametrize("more", ["=", "==", "===", "!", "\t", "%3D", ".", "A", "+/"])
    def test_nothing_is_appended(self, more: str) -> None:
        refused(OURS.token() + more)

    @pytest.mark.parametrize("index", [0, 1, 2])
    @pytest.mark.parametrize("more", ["=", "==", "!", "*", ",", "\x7f"])
    def test_nothing_is_added_to_a_part(self, index: int, more: str) -> None:
        parts = OURS.token().split(".")
        parts[index] += more
        refused(".".join(parts))

    def test_no_bits_are_left_over(self) -> None:
        token = OURS.token()
        at = BASE64URL.index(token[-1])  # 32 bytes of a signature: the last two bits say nothing
        assert at % 4 == 0
        for bits in (1, 2, 3):
            refused(token[:-1] + BASE64URL[at + bits])


class TestWhoIsAnonymous:
    def test_nobody_with_a_token_is_whatever_its_subject(self) -> None:
        for roles in ("self", "redeemer"):
            rpc = with_token(OURS.token(sub="anonymous", roles=roles))
            assert not rpc.anonymous
            assert rpc.caller == "anonymous"
        assert RequestContext().anonymous


class TestBadTokens:
    @pytest.mark.parametrize("missing", ["exp", "iat", "iss", "aud", "sub"])
    def test_every_claim_that_is_needed_is_there(self, missing: str) -> None:
        refused(OURS.token(**{missing: None}))

    @pytest.mark.parametrize(
        "claims",
        [
            {"exp": 0},
            {"exp": time.time() - LEEWAY_S - 1},
            {"exp": "tomorrow"},
            {"exp": True},
            {"exp": []},
            {"exp": float("inf")},
            {"exp": float("nan")},
            {"iat": time.time() + 3_600},
            {"iat": "yesterday"},
            {"nbf": time.time() + 3_600},
            {"aud": "others"},
            {"aud": []},
            {"aud": ""},
            {"aud": {AUDIENCE: True}},
            {"aud": [[AUDIENCE]]},
            {"sub": ""},
            {"sub": 5},
            {"sub": " shop"},
            {"sub": "a\nb"},
            {"sub": "a\0b"},
            {"sub": "\ud800"},
            {"sub": "s" * 129},
            {"roles": {"admin": True}},
            {"roles": 5},
            {"business_id": ""},
            {"business_id": 5},
            {"business_id": ["acme"]},
            {"business_id": "acme "},
            {"business_id": "b" * 129},
            {"business_id": False},
        ],
    )
    def test_claims_have_to_be_what_they_say(self, claims: Mapping[str, Any]) -> None:
        refused(OURS.token(**claims))

    @pytest.mark.parametrize("issuer", ["https://other.test", "", None])
    def test_another_issuer_has_other_keys(self, issuer: str | None) -> None:
        refused(OURS.token(iss=issuer))

    @pytest.mark.parametrize("issuer", [[ISSUER], {"a": 1}, 5, True])
    def test_an_issuer_is_text(self, issuer: object) -> None:
        token = OURS.token()
        forged = part({**claims_of(token), "iss": issuer})
        refused(".".join((token.split(".")[0], forged, token.split(".")[2])))

    @pytest.mark.parametrize("kid", ["other", "../../etc/passwd", "' OR 1=1", ""])
    def test_another_key_id_is_another_key(self, kid: str, tmp_path: Path) -> None:
        issuer = Issuer("k1", "ES256")
        access = Authorizer(tokens(secret=None, file=key_file(tmp_path / "keys", issuer)))
        assert with_token(issuer.token(), access).caller == "shop"
        refused(issuer.token({"kid": kid}), access)
        refused(Issuer("", "ES256").token(), access)

    def test_another_secret_is_refused(self) -> None:
        refused(Issuer("", key=b"another secret that is just as long as it has to").token())

    def test_one_that_was_changed_is_refused(self) -> None:
        header, payload, signature = OURS.token().split(".")
        admin = part({**claims_of(f"{header}.{payload}.{signature}"), "roles": ["admin"]})
        refused(f"{header}.{admin}.{signature}")
        refused(f"{header}.{payload}.{signature[:-4]}AAAA")
        refused(f"{header}.{payload}.")
        refused(f"{header}.{payload}")

    def test_one_that_is_too_long_is_not_even_looked_at(self) -> None:
        def token(padding: int) -> str:
            return OURS.token(note="x" * padding)

        padding = next(size for size in range(2_000, 4_000) if len(token(size + 1)) > 4_096)
        assert with_token(token(padding)).caller == "shop"
        refused(token(padding + 1))
        refused(token(100_000))

    @pytest.mark.parametrize(
        "token",
        ["x", ".", "..", "...", "a.b.c", "é.é.é", "e30.e30.e30", "[]", "\ud800", "A" * 4096],
    )
    def test_garbage_is_refused(self, token: str) -> None:
        refused(token)

    @given(st.text(max_size=60), st.text(max_size=60), st.binary(max_size=60))
    def test_no_header_and_no_claims_are_a_fault_of_the_service(
        self, header: str, payload: str, signature: bytes
    ) -> None:
        refused(f"{part(header.encode('utf-8', 'replace'))}.{part(payload)}.{part(signature)}")
        refused(f"{header}.{payload}")

    @given(
        st.dictionaries(
            st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku"]), st.from_type(type)
        )
        | st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda it: st.lists(it) | st.dictionaries(st.text(max_size=5), it),
            max_leaves=5,
        )
    )
    def test_no_json_is_a_fault_of_the_service(self, value: Any) -> None:
        good = OURS.token()
        text = json.dumps(value, default=str).encode("utf-8", "replace")
        header, payload, signature = good.split(".")
        refused(f"{part(text)}.{payload}.{signature}")
        refused(f"{header}.{part(text)}.{signature}")

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.none()
                | st.booleans()
                | st.floats()
                | st.integers()
                | st.text(max_size=9)
                | st.lists(st.text(max_size=3) | st.integers(), max_size=2)
                for name in ("exp", "iat", "nbf", "aud", "sub", "jti", "roles", "business_id")
            },
        )
    )
    def test_no_claims_that_are_signed_are_a_fault_of_the_service(
        self, claims: dict[str, Any]
    ) -> None:
        token = jwt.encode({**claims_of(OURS.token()), **claims}, SECRET, "HS256")
        with suppress(Unauthenticated, PermissionDenied):
            with_token(token)

    def test_a_deep_token_is_refused(self) -> None:
        refused(f"{part({'alg': 'HS256'})}.{part(b'[' * 2_000)}.AAAA")


class TestAlgorithms:
    def test_none_is_no_algorithm(self) -> None:
        claims = part(claims_of(OURS.token()))
        for name in ("none", "None", "NONE", "nOnE", "", None):
            refused(f"{part({'alg': name, 'typ': 'JWT'})}.{claims}.")
            refused(f"{part({'alg': name})}.{claims}.{OURS.token().split('.')[2]}")
        refused(f"{part({'typ': 'JWT'})}.{claims}.")

    @pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
    def test_a_public_key_is_no_secret(self, algorithm: str, tmp_path: Path) -> None:
        issuer = Issuer("k1", algorithm)
        access = Authorizer(tokens(secret=None, file=key_file(tmp_path / "keys", issuer)))
        public = private_key(algorithm).public_key()
        header = part({"alg": "HS256", "kid": "k1", "typ": "JWT"})
        message = f"{header}.{part(claims_of(issuer.token()))}"
        formats = [(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)]
        formats.append((Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        secrets = [public.public_bytes(*each) for each in formats]
        secrets.append(json.dumps(issuer.jwk()).encode())
        if algorithm == "EdDSA":
            secrets.append(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
        import hmac

        for secret in secrets:
            signature = part(hmac.digest(secret, message.encode(), "sha256"))
            refused(f"{message}.{signature}", access)

    def test_a_key_is_good_for_one_algorithm(self, tmp_path: Path) -> None:
        key = private_key("RS256")
        issuer = Issuer("k1", "RS256", key=key)
        access = Authorizer(tokens(secret=None, file=key_file(tmp_path / "keys", issuer)))
        for algorithm in ("RS384", "RS512", "PS256"):
            refused(Issuer("k1", algorithm, key=key).token(), access)
        refused(jwt.encode(claims_of(OURS.token()), SECRET, "HS384"))

    def test_a_token_brings_no_key(self, tmp_path: Path) -> None:
        issuer = Issuer("k1", "RS256")
        access = Authorizer(tokens(secret=None, file=key_file(tmp_path / "keys", issuer)))
        attacker = Issuer("k1", "RS256", key=rsa.generate_private_key(65_537, 2_048))
        for headers in (
            {"jwk": attacker.jwk()},
            {"jku": "http://127.0.0.1:9/keys"},
            {"x5u": "http://127.0.0.1:9/keys"},
            {"x5c": ["AAAA"]},
        ):
            refused(attacker.token(headers), access)

    @pytest.mark.parametrize("critical", [["exp"], ["b64"], [], "b64", None])
    def test_nothing_is_critical(self, critical: object) -> None:
        header = {"alg": "HS256", "crit": critical, "b64": True}
        message = f"{part(header)}.{part(claims_of(OURS.token()))}"
        key = secret_key(SECRET)
        refused(f"{message}.{part(key.Algorithm.sign(message.encode(), key.key))}")


class TestRoles:
    @pytest.mark.parametrize(
        "roles", [["redeemer"], "redeemer", "openid redeemer email", ["x", "redeemer", 5, None]]
    )
    def test_they_come_as_a_list_or_as_text(self, roles: object) -> None:
        assert with_token(OURS.token(roles=roles)).caller == "shop"

    @pytest.mark.parametrize("roles", [None, [], "", "Redeemer", ["redeem"], [["redeemer"]]])
    def test_without_one_that_is_known_nothing_is_allowed(self, roles: object) -> None:
        for method in METHODS:
            with pytest.raises(PermissionDenied):
                with_token(OURS.token(roles=roles), method=method)

    def test_an_end_user_is_nothing_else_beside(self) -> None:
        token = OURS.token(roles=["admin", "self"], sub="ann")
        assert with_token(token).end_user
        with pytest.raises(PermissionDenied):
            with_token(token, method="CouponBookService/CreateCouponBook")

    def test_an_end_user_has_a_business(self) -> None:
        with pytest.raises(PermissionDenied):
            with_token(OURS.token(roles="self", business_id=None))

    def test_a_method_that_is_not_in_the_table_is_for_nobody(self) -> None:
        for roles in ("admin issuer redeemer auditor", "self"):
            with pytest.raises(PermissionDenied):
                with_token(OURS.token(roles=roles), method="RedemptionService/NewMethod")
