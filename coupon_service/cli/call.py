"""`coupon-service call`: any method of the contract, with JSON in and out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from coupon_service.cli.client import (
    BlockingService,
)
from coupon_service.cli.connection import Connection, takes_connection
from coupon_service.cli.contract import completed, find_method, methods, signature
from coupon_service.cli.failure import CommandError
from coupon_service.cli.requests import read_messages

UNARY_TIMEOUT_S: Final = 10.0
STDIN_MARKS: Final = ("-", "@")


@takes_connection
def call(
    method: Annotated[
        str,
        typer.Argument(
            metavar="SERVICE/METHOD",
            help="For example RedemptionService/RedeemCode, or RedeemCode.",
            autocompletion=completed,
        ),
    ] = "",
    messages: Annotated[
        str,
        typer.Argument(
            metavar="JSON",
            help="The request; several, one after the other, where the method takes a stream."
            " - or @ reads them from standard input, @FILE from a file.",
        ),
    ] = "{}",
    *,
    list_methods: Annotated[
        bool, typer.Option("--list", help="List the services and their methods instead.")
    ] = False,
    connection: Connection,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.001,
            help="Deadline of the call. Default: 10 s, none for streams.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Call a method with JSON, and print the answer as JSON.

    Fields are named as in proto/; coupon-service describe shows those of a method. Beside what
    protobuf's JSON allows, values of enums can be short (optional), durations have units (5m,
    1h30m), and times be dates (2026-12-24), in UTC. An error is explained on standard error, with
    exit code 1.

    coupon-service call RedemptionService/RedeemCode '{"code": "WELCOME1", "user_id": "ann"}'
    """
    if list_methods:
        for descriptor in methods():
            typer.echo(signature(descriptor))
        return
    descriptor = find_method(method)
    requests = read_messages(_given(messages), descriptor)
    with connection.open() as service:
        _call(descriptor, requests, timeout_s, service)


def _given(messages: str) -> str:
    """The text of the requests: the argument, standard input or a file. Raises CommandError."""
    if messages in STDIN_MARKS:
        return sys.stdin.read()
    if not messages.startswith("@"):
        return messages
    try:
        return Path(messages[1:]).read_text("utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CommandError(f"{messages[1:]} cannot be read: {why}.") from error


def _call(
    method: MethodDescriptor,
    requests: list[Message],
    timeout_s: float | None,
    service: BlockingService,
) -> None:
    streams = method.client_streaming or method.server_streaming
    # On the wire a single message is a stream of one.
    answers = service.channel.stream_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )(
        iter(requests),
        timeout=timeout_s or (None if streams else UNARY_TIMEOUT_S),
        metadata=service.metadata,
    )
    for answer in answers:
        typer.echo(
            json_format.MessageToJson(answer, preserving_proto_field_name=True, ensure_ascii=False)
        )
