"""Methods of the clients, against the contract."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from coupon_service.cli.contract import methods
from coupon_service.client import AsyncCouponClient, CouponClient
from coupon_service.client.methods import Methods
from coupon_service.client.rpc import Listing, Unary, Upload

CONTRACT = {
    f"{it.containing_service.name}/{it.name}": it
    for it in methods()
    if it.containing_service.name != "Health"
}
DECLARED: dict[str, Any] = {
    name: it for name, it in inspect.getmembers(Methods) if isinstance(it, Unary | Listing | Upload)
}
INSTEAD = {
    "page_token": "all pages are iterated over",
    "ttl": "ttl_s",
    "header": "import_codes has its fields",
    "chunk": "import_codes has its fields",
    "list": "change_codes has codes",
    "filter": "change_codes has its fields",
}
"""Fields that are no arguments."""


def test_every_method_of_the_contract_is_one_of_the_clients() -> None:
    # AsyncCouponClient uses Checkout by itself.
    assert {it.rpc.name for it in DECLARED.values()} == set(CONTRACT) - {
        "RedemptionService/Checkout"
    }


@pytest.mark.parametrize("name", DECLARED)
def test_every_field_of_a_request_is_an_argument(name: str) -> None:
    declared = DECLARED[name]
    method = CONTRACT[declared.rpc.name]
    assert declared.rpc.name.partition("/")[2].lower() == name.replace("_", "")
    builder = declared.uploads if isinstance(declared, Upload) else declared.request
    arguments = set(inspect.signature(builder).parameters)
    fields = {it.name for it in method.input_type.fields}
    assert fields - arguments <= set(INSTEAD), name
    assert builder.__doc__


def test_methods_have_the_names_and_docs_of_their_declarations() -> None:
    for kind in (CouponClient, AsyncCouponClient):
        client = object.__new__(kind)
        assert client.redeem_code.__name__ == "redeem_code"
        assert "durable" in (client.redeem_code.__doc__ or "")
        assert "lock_token" in inspect.signature(client.redeem_code).parameters
