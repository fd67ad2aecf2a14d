from __future__ import annotations

import re

import pytest

from coupon_service.cli.call import find_method, methods, read_messages
from coupon_service.cli.failure import CommandError
from coupon_service.v1.coupon_code_service_pb2 import ImportCodesRequest
from coupon_service.v1.redemption_service_pb2 import RedeemCodeRequest


def refusal(name: str) -> str:
    with pytest.raises(CommandError) as raised:
        find_method(name)
    return str(raised.value)


class TestNamingAMethod:
    @pytest.mark.parametrize(
        "name",
        [
            "RedemptionService/RedeemCode",
            "coupon_service.v1.RedemptionService/RedeemCode",
            "/coupon_service.v1.RedemptionService/RedeemCode",
            "RedeemCode",
        ],
    )
    def test_the_service_and_its_package_may_be_left_out(self, name: str) -> None:
        method = find_method(name)
        assert method.full_name == "coupon_service.v1.RedemptionService.RedeemCode"

    def test_every_method_is_found_by_its_name_alone(self) -> None:
        assert [find_method(method.name) for method in methods()] == methods()

    @pytest.mark.parametrize(
        "name",
        [
            "RedemptionService/RedemCode",
            "RedemtionService/RedeemCode",
            "redemptionservice/redeemcode",
            "redeemCode",
            "coupon_service.v1.RedemptionService/Redeem",
        ],
    )
    def test_a_mistyped_name_is_answered_with_the_one_that_was_meant(self, name: str) -> None:
        assert "Did you mean RedemptionService/RedeemCode" in refusal(name)

    def test_a_name_like_no_other_is_answered_with_where_to_look(self) -> None:
        assert refusal("xyz") == (
            "There is no method xyz. coupon-service call --list shows them all."
        )

    def test_no_name_is_answered_with_where_to_look(self) -> None:
        assert "call --list" in refusal("")


class TestReadingRequests:
    def test_fields_may_be_named_as_in_the_proto_or_as_in_json(self) -> None:
        method = find_method("RedeemCode")
        for text in ('{"user_id": "ann"}', '{"userId": "ann"}'):
            assert read_messages(text, method) == [RedeemCodeRequest(user_id="ann")]

    def test_a_stream_takes_objects_one_after_the_other(self) -> None:
        text = '\ufeff {"header": {"book_id": "b"}}\n{"chunk": {"chunk_number": 1}}{} \n'
        header, chunk, empty = read_messages(text, find_method("ImportCodes"))
        assert isinstance(header, ImportCodesRequest)
        assert isinstance(chunk, ImportCodesRequest)
        assert (header.header.book_id, chunk.chunk.chunk_number) == ("b", 1)
        assert empty == ImportCodesRequest()

    def test_a_stream_may_be_empty(self) -> None:
        assert read_messages(" ", find_method("ImportCodes")) == []

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{} {}", "takes one JSON object, not 2"),
            ("", "takes one JSON object, not 0"),
            ('{"user": "ann"}', 'RedeemCodeRequest has no field "user". Did you mean user_id?'),
            (
                '{"order_amount": {"amount": 1}}',
                'Money has no field "amount". Did you mean amount_',
            ),
            ('{"user_id": 1}', "not a RedeemCodeRequest: user_id: "),
            ("{'user_id': 'ann'}", "This is not JSON"),
            ('{"user_id": "ann"', "This is not JSON"),
            ('["ann"]', 'Expected a JSON object, not ["ann"]'),
        ],
    )
    def test_what_is_no_request_is_reported_in_a_sentence(self, text: str, said: str) -> None:
        with pytest.raises(CommandError, match=re.escape(said)) as raised:
            read_messages(text, find_method("RedeemCode"))
        assert "\n" not in str(raised.value)

    def test_values_of_an_enum_are_named_where_another_one_is_given(self) -> None:
        text = '{"coupon_book": {"lock_policy": "OFF"}}'
        with pytest.raises(CommandError, match=r'LockPolicy has no value "OFF".* LOCK_POLICY_OFF'):
            read_messages(text, find_method("CreateCouponBook"))
