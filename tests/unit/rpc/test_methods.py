"""The rows of the methods, against the contract."""

from __future__ import annotations

import re

from coupon_service.cli.contract import methods
from coupon_service.rpc.methods import METHODS, LookUp
from coupon_service.server import SERVICES
from coupon_service.settings import Settings

CONTRACT = {
    f"{it.containing_service.name}/{it.name}": it
    for it in methods()
    if it.containing_service.name != "Health"
}


def test_every_method_of_the_contract_has_its_row_in_its_order() -> None:
    assert list(METHODS) == list(CONTRACT)
    assert {it.containing_service.full_name for it in CONTRACT.values()} == set(SERVICES)


def test_unknown_codes_count_as_guesses_wherever_a_request_names_codes() -> None:
    # A filter by code says nothing of a code that was never used.
    filters = re.compile(r".*/(List|Watch)")
    for name, method in CONTRACT.items():
        fields = method.input_type.fields_by_name
        items = fields["items"].message_type if "items" in fields else None
        if filters.match(name):
            expected = LookUp.NONE
        elif "code" in fields:
            expected = LookUp.CODE
        elif "codes" in fields and "user_id" in fields:
            expected = LookUp.CODES
        elif items is not None and "code" in items.fields_by_name:
            expected = LookUp.ITEMS
        else:
            expected = LookUp.NONE
        assert METHODS[name].look_up is expected, name


def test_streams_may_outlast_the_deadline_of_the_server_and_nothing_else() -> None:
    for name, method in CONTRACT.items():
        streams = method.client_streaming or method.server_streaming
        assert METHODS[name].open_ended is streams, name


def test_the_setting_names_the_methods_with_large_messages() -> None:
    meaning = Settings.model_fields["import_request_max_bytes"].description or ""
    large = {name.rpartition("/")[2] for name, row in METHODS.items() if row.large}
    assert set(re.findall(r"[A-Z]\w+[a-z][A-Z]\w+|Checkout", meaning)) == large
