"""Mutants of what is kept of refused attempts: bugs, in this process and for a test only."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any
from unittest import mock

from mutants.mutants import Mutant

from coupon_service.errors import CouponServiceError
from coupon_service.model import Redeem
from coupon_service.rpc import refused_attempts
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import refusals as converting
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rules import decision
from coupon_service.rules.code_lookup import code_not_found


def guesses_kept_as_typed() -> Mutant:
    """What somebody typed is kept, though there is no such code."""

    def kept_as(code: str, _: bytes) -> str:
        return code

    return mock.patch.object(refused_attempts, "_kept_as", kept_as)


def business_of_the_request_alone() -> Mutant:
    """A list is of the business that the request names, whichever the token does."""

    def listed_business(_: Fields, named: str, __: RequestContext) -> str:
        return named

    return mock.patch.object(converting, "listed_business", listed_business)


def reason_for_hiding_lost() -> Mutant:
    """Of a code that is hidden from an end user the same is kept as of one that does not exist."""

    def hidden(command: Redeem, code: Any, book: Any, state: Any, now: Any) -> CouponServiceError:
        return code_not_found(command.code, command.book_id, command.call.business_id, state)

    return mock.patch.object(decision, "hidden_refusal", hidden)
