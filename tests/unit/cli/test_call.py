from __future__ import annotations

import json
import re

import pytest

from coupon_service.cli.contract import find_method, methods
from coupon_service.cli.failure import CommandError
from coupon_service.cli.requests import read_messages
from coupon_service.v1.audit_service_pb2 import AuditEventType, ListAuditEventsRequest
from coupon_service.v1.coupon_book_service_pb2 import (
    CreateCouponBookRequest,
    LockPolicy,
    UpdateCouponBookRequest,
)
from coupon_service.v1.coupon_code_service_pb2 import ImportCodesRequest
from coupon_service.v1.redemption_service_pb2 import LockCodeRequest, RedeemCodeRequest


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
            "redeem_code",
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
    @pytest.mark.parametrize("value", ["optional", "OPTIONAL", "LOCK_POLICY_OPTIONAL", 2])
    def test_values_of_an_enum_may_be_short(self, value: object) -> None:
        (request,) = read_messages(
            json.dumps({"coupon_book": {"lock_policy": value}}), find_method("CreateCouponBook")
        )
        assert isinstance(request, CreateCouponBookRequest)
        assert request.coupon_book.lock_policy == LockPolicy.LOCK_POLICY_OPTIONAL

    def test_values_of_a_list_may_be_short(self) -> None:
        (request,) = read_messages(
            '{"types": ["redeemed", "book-created"]}', find_method("ListAuditEvents")
        )
        assert isinstance(request, ListAuditEventsRequest)
        assert [AuditEventType.Name(it) for it in request.types] == [
            "AUDIT_EVENT_TYPE_REDEEMED",
            "AUDIT_EVENT_TYPE_BOOK_CREATED",
        ]

    @pytest.mark.parametrize(
        ("text", "ms"),
        [
            ("5m", 300_000),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1.5s", 1_500),
            ("250ms", 250),
        ],
    )
    def test_durations_may_have_units(self, text: str, ms: int) -> None:
        (request,) = read_messages(json.dumps({"ttl": text}), find_method("LockCode"))
        assert isinstance(request, LockCodeRequest)
        assert request.ttl.ToMilliseconds() == ms

    @pytest.mark.parametrize("text", ["5 m", "5x", "m", "", "5m-"])
    def test_what_is_no_duration_is_refused(self, text: str) -> None:
        with pytest.raises(CommandError, match="ttl"):
            read_messages(json.dumps({"ttl": text}), find_method("LockCode"))

    @pytest.mark.parametrize(
        ("text", "iso"),
        [
            ("2026-12-24", "2026-12-24T00:00:00Z"),
            ("2026-12-24 18:30", "2026-12-24T18:30:00Z"),
            ("2026-12-24T18:30:15", "2026-12-24T18:30:15Z"),
            ("2026-12-24T18:30:15+01:00", "2026-12-24T17:30:15Z"),
        ],
    )
    def test_times_may_be_dates(self, text: str, iso: str) -> None:
        (request,) = read_messages(
            json.dumps({"coupon_book": {"endTime": text}}), find_method("CreateCouponBook")
        )
        assert isinstance(request, CreateCouponBookRequest)
        assert request.coupon_book.end_time.ToJsonString() == iso

    @pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "2026-12-24T25:00:00Z", "soon"])
    def test_what_is_no_time_is_refused_with_the_form_of_one(self, text: str) -> None:
        with pytest.raises(CommandError) as caught:
            read_messages(
                json.dumps({"coupon_book": {"end_time": text}}), find_method("CreateCouponBook")
            )
        assert str(caught.value) == (
            "This is not a CreateCouponBookRequest: coupon_book.end_time: expected a time such as"
            ' 2026-12-31, "2026-12-31 18:00" or 2026-12-31T18:00:00+01:00.'
        )

    @pytest.mark.parametrize("text", ["end_time,code_format.prefix", "endTime, codeFormat.prefix"])
    def test_masks_may_be_in_snake_case(self, text: str) -> None:
        (request,) = read_messages(
            json.dumps({"update_mask": text}), find_method("UpdateCouponBook")
        )
        assert isinstance(request, UpdateCouponBookRequest)
        assert request.update_mask.paths == ["end_time", "code_format.prefix"]

    def test_metadata_is_left_as_it_is(self) -> None:
        metadata = {"ttl": "5m", "lock_policy": "optional", "end_time": "2026-12-24"}
        (request,) = read_messages(json.dumps({"metadata": metadata}), find_method("LockCode"))
        assert isinstance(request, LockCodeRequest)
        assert dict(request.metadata) == metadata

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
        text = '{"coupon_book": {"lock_policy": "OPTIONL"}}'
        with pytest.raises(CommandError) as raised:
            read_messages(text, find_method("CreateCouponBook"))
        assert str(raised.value).endswith(
            'LockPolicy has no value "OPTIONL". Did you mean OPTIONAL?'
            " It has REQUIRED, OPTIONAL, OFF."
        )
