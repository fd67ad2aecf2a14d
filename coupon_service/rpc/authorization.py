"""Who may call what: by the roles of the token that comes with a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, cast

from coupon_service.errors import InvalidArgument, PermissionDenied, Unauthenticated
from coupon_service.rpc.context import KeyAwaitedError, RequestContext
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.methods import METHODS, Role
from coupon_service.security.bearer_tokens import LEEWAY_S, NEEDED, Tokens, UnknownKeyError
from coupon_service.security.key_fetcher import KeyFetcher

IDENTITIES_MAX: Final = 8_192
"""Tokens whose meaning a worker remembers; the one that was used longest ago goes first."""

ABSENT: Final = object()
"""In place of a claim that a token does not have."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a valid token says of its bearer. `expire_s`: in seconds since 1970.

    `business_id` is the only business it may see; empty: any. `end_user`: it is a user, with its
    user_id as subject. `methods`: what it may call.
    """

    subject: str
    business_id: str
    end_user: bool
    methods: frozenset[str]
    expire_s: int


class Authorizer:
    """Names the caller, by the token that comes with the call, and refuses who may not.

    A verified token is remembered until it expires or the keys change. `roles_claim` and
    `business_claim`: the paths of these claims. `fetcher`: fetches published keys.
    """

    def __init__(
        self,
        tokens: Tokens,
        time_s: Callable[[], float] = time.time,
        *,
        roles_claim: str = "roles",
        business_claim: str = "business_id",
        fetcher: KeyFetcher | None = None,
    ) -> None:
        self._tokens = tokens
        self._time_s = time_s
        self._roles_claim = roles_claim
        self._business_claim = business_claim
        self._fetcher = fetcher
        self._keys = tokens.keys
        self._identity = lru_cache(IDENTITIES_MAX)(self._read)

    def __call__(self, method: str, rpc: RequestContext) -> None:
        """Sets the caller of the method's call. Raises Unauthenticated, PermissionDenied, and
        KeyAwaitedError where published keys may have the token's."""
        if self._keys is not self._tokens.keys:
            self._keys = self._tokens.keys
            self._identity.cache_clear()
        identity = self._identity(_bearer_token(rpc))
        if self._time_s() >= identity.expire_s:
            raise Unauthenticated(NEEDED)
        rpc.caller = identity.subject
        rpc.authenticated = True
        rpc.business_id = identity.business_id
        rpc.end_user = identity.end_user
        if method not in identity.methods:
            raise PermissionDenied
        if identity.end_user and not identity.business_id:
            # The users of two businesses may have the same user_id.
            raise PermissionDenied("The token of an end user has to name a business.")

    def _read(self, token: str) -> Identity:
        try:
            claims = self._tokens.claims(token)
        except Unauthenticated as error:
            if not isinstance(error.__cause__, UnknownKeyError):
                raise
            if self._fetcher is None or self._fetcher.full:
                raise
            raise KeyAwaitedError(NEEDED, self._fetcher.fetched) from error.__cause__
        fields = Fields()
        try:
            identity = self._identity_of(fields, claims)
            fields.check()
        except InvalidArgument as error:
            raise Unauthenticated(NEEDED) from error
        return identity

    def _identity_of(self, fields: Fields, claims: Mapping[str, Any]) -> Identity:
        """What the claims mean; `fields` remembers which of them are bad."""
        roles = _roles(fields, claim_at(claims, self._roles_claim))
        business = claim_at(claims, self._business_claim)
        return Identity(
            subject=fields.identifier("sub", claims["sub"]),
            business_id=(
                fields.identifier("business_id", _text(business)) if business is not ABSENT else ""
            ),
            end_user=Role.SELF in roles,
            methods=methods_of(roles),
            expire_s=int(claims["exp"]) + LEEWAY_S,
        )


@cache
def methods_of(roles: frozenset[Role]) -> frozenset[str]:
    """What may be called with these roles, as `Service/Method`. All tokens share it."""
    if Role.SELF in roles:
        roles = frozenset({Role.SELF})
    return frozenset(
        name for name, row in METHODS.items() if not roles.isdisjoint({*row.roles, Role.ADMIN})
    )


def _bearer_token(rpc: RequestContext) -> str:
    values = rpc.values("authorization")
    if len(values) == 1 and isinstance(values[0], str):
        scheme, _, token = values[0].partition(" ")
        if token and scheme.lower() == "bearer":
            return token
    raise Unauthenticated(NEEDED)


def claim_at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim at a path such as realm_access.roles, or ABSENT.

    A claim whose name has dots, such as a URL, is found by its name: the longest name at hand is
    that of a part of the path.
    """
    if path in claims:
        return claims[path]
    for at in range(len(path) - 1, 0, -1):
        inner: Any = claims.get(path[:at]) if path[at] == "." else None
        if isinstance(inner, Mapping):
            found = claim_at(cast("Mapping[str, Any]", inner), path[at + 1 :])
            if found is not ABSENT:
                return found
    return ABSENT


def _roles(fields: Fields, claim: object) -> frozenset[Role]:
    """Those of the roles that are ours: a list of names, or names with spaces between them."""
    if claim is ABSENT:
        return frozenset()
    names = claim.split() if isinstance(claim, str) else claim
    if not isinstance(names, list):
        fields.refuse("roles", "expected a list")
        return frozenset()
    named = [str(name) for name in cast("list[object]", names)]
    return frozenset(role for role in Role if role in named)


def _text(claim: object) -> str:
    """A claim that has to be text; empty, which no identifier is, in place of anything else."""
    return claim if isinstance(claim, str) else ""
