from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from coupon_service import errors
from coupon_service.cli.client import (
    BREAKS_MAX,
    Patience,
    address_of,
    connect_blocking,
    explain,
    is_outcome_unknown,
    lasting,
    reason_of,
)
from coupon_service.cli.failure import CommandError
from coupon_service.rpc.status import to_status
from coupon_service.settings import load_settings


def rpc_error(status: Status) -> grpc.aio.AioRpcError:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    return grpc.aio.AioRpcError(
        codes[status.code], grpc.aio.Metadata(), grpc.aio.Metadata(*details), status.message
    )


def bare_error(code: grpc.StatusCode, details: str = "connection refused") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("token", ["a\nb", "ä", "a\0", "\u201ca\u201d"])
def test_what_cannot_be_a_token_is_reported_before_a_call(token: str) -> None:
    with (
        pytest.raises(CommandError, match="characters that no token has"),
        connect_blocking("host:1", token),
    ):
        raise AssertionError


@pytest.mark.parametrize("address", ["localhost", "http://host:1", "host:port", ":1", "a b:1"])
def test_what_is_no_address_is_reported_before_a_call(address: str) -> None:
    with pytest.raises(CommandError, match="is not an address"):
        connect_blocking(address).__enter__()


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.1:50051", "[::1]:1", "dns:///host:1"])
def test_addresses_are_those_that_grpc_knows(address: str) -> None:
    with connect_blocking(address):
        pass


def test_spaces_and_line_ends_around_a_token_do_not_matter() -> None:
    with connect_blocking("host:1", " a.b.c\r\n") as service:
        assert service.metadata == (("authorization", "Bearer a.b.c"),)


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (bare_error(grpc.StatusCode.UNAVAILABLE), True),
        (bare_error(grpc.StatusCode.INTERNAL), True),
        (KeyboardInterrupt(), True),
        (rpc_error(to_status(errors.Contention())), False),
        (rpc_error(to_status(errors.Overloaded())), False),
        (rpc_error(to_status(errors.BookNotFound())), False),
        (CommandError(""), False),
    ],
    ids=range(7),
)
def test_only_a_call_that_may_have_changed_something_has_an_unknown_outcome(
    error: BaseException, unknown: bool
) -> None:
    assert is_outcome_unknown(error) is unknown


class TestExplainingErrors:
    def test_status_reason_message_and_metadata_are_reported(self) -> None:
        error = rpc_error(to_status(errors.CodeLimitExceeded(limit=3)))
        first, *others = explain(error, "host:1").splitlines()
        assert first.startswith("FAILED_PRECONDITION CODE_LIMIT_EXCEEDED: The code has been ")
        assert others == ["  limit: 3"]

    def test_every_bad_field_has_a_line_of_its_own(self) -> None:
        violations = (
            errors.FieldViolation("user_id", "expected 1-128 characters"),
            errors.FieldViolation("", "expected less"),
        )
        assert explain(
            rpc_error(to_status(errors.InvalidArgument(violations))), ""
        ).splitlines() == [
            "INVALID_ARGUMENT:",
            "  user_id: expected 1-128 characters",
            "  request: expected less",
        ]

    def test_it_is_told_when_a_repeat_may_help(self) -> None:
        error = rpc_error(to_status(errors.CodeLocked(retry_after_ms=1_500)))
        assert explain(error, "").splitlines()[-1] == "  A repeat may help in 1.5 s."

    def test_without_a_service_its_address_is_reported(self) -> None:
        error = bare_error(grpc.StatusCode.UNAVAILABLE)
        assert explain(error, "host:1") == (
            "UNAVAILABLE: the service at host:1 cannot be reached (connection refused)."
        )

    def test_why_a_service_is_not_reached_is_reported_without_what_grpc_tried(self) -> None:
        details = (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1:"
            " Failed to connect to remote host: Connection refused"
        )
        error = bare_error(grpc.StatusCode.UNAVAILABLE, details)
        assert explain(error, "host:1").endswith("cannot be reached (Connection refused).")

    def test_who_lacks_a_token_is_told_where_it_is_taken_from(self) -> None:
        error = rpc_error(to_status(errors.Unauthenticated("Expected a token.")))
        assert explain(error).splitlines() == [
            "UNAUTHENTICATED: Expected a token.",
            "  Set the token with --token or COUPON_TOKEN.",
        ]

    def test_an_error_of_grpc_itself_is_shown_as_it_is(self) -> None:
        error = bare_error(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        assert explain(error, "host:1") == "UNIMPLEMENTED: Method not found!"

    def test_the_reason_is_that_of_the_service_or_else_the_status(self) -> None:
        assert reason_of(rpc_error(to_status(errors.BookExpired()))) == "BOOK_EXPIRED"
        assert reason_of(bare_error(grpc.StatusCode.CANCELLED)) == "CANCELLED"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:50051"),
        ("0.0.0.0", "127.0.0.1:50051"),
        ("::1", "[::1]:50051"),
        ("::", "[::1]:50051"),
        ("coupons.example", "coupons.example:50051"),
    ],
)
def test_a_client_on_the_machine_gets_an_address_it_can_connect_to(host: str, address: str) -> None:
    assert address_of(load_settings(None, host=host, auth="none", port=50_051)) == address


class TestStreamsThatLast:
    """`lasting` on streams that are lists here: an answer is a number, a break is an error."""

    pauses: list[float]

    @pytest.fixture(autouse=True)
    def no_pauses_yet(self) -> None:
        self.pauses = []

    def answers(self, *streams: Sequence[int | grpc.aio.AioRpcError]) -> list[int]:
        opened = iter(streams)

        def stream() -> Iterator[int]:
            for answer in next(opened):
                if isinstance(answer, grpc.aio.AioRpcError):
                    raise answer
                yield answer

        def pause(seconds: float) -> None:
            self.pauses.append(seconds)

        return list(lasting(stream, Patience(pause)))

    def test_after_a_break_the_stream_is_opened_again(self) -> None:
        broken = bare_error(grpc.StatusCode.UNAVAILABLE)
        assert self.answers([1, broken], [broken], [2, 3]) == [1, 2, 3]

    def test_a_service_that_never_answered_is_not_waited_for(self) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            self.answers([bare_error(grpc.StatusCode.UNAVAILABLE)], [1])

    def test_a_stream_that_was_idle_for_too_long_is_opened_again(self) -> None:
        idle = rpc_error(to_status(errors.DeadlineExceeded("No message came for 60 seconds.")))
        assert self.answers([1, idle], [2]) == [1, 2]

    def test_a_refusal_ends_it(self) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            self.answers([1, rpc_error(to_status(errors.BookNotFound()))], [2])

    def test_it_waits_as_long_as_the_service_asks_for(self) -> None:
        status = to_status(errors.Overloaded())
        for packed in status.details:
            if packed.Unpack(RetryInfo()):
                packed.Pack(RetryInfo(retry_delay=Duration(seconds=7)))
        assert self.answers([1, rpc_error(status)], [2]) == [1, 2]
        assert self.pauses == [7]

    def test_it_gives_up_in_the_end_having_waited_longer_and_longer(self) -> None:
        broken = bare_error(grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(grpc.aio.AioRpcError):
            self.answers([1, broken], *([broken] for _ in range(100)))
        assert len(self.pauses) == BREAKS_MAX
        assert self.pauses == sorted(self.pauses)

    def test_an_answer_makes_it_patient_again(self) -> None:
        broken = bare_error(grpc.StatusCode.UNAVAILABLE)
        streams = [[number, broken] for number in range(100)]
        assert self.answers(*streams, [100]) == list(range(101))
        assert set(self.pauses) == {self.pauses[0]}
