"""`coupon-service call`: any method of the contract, with JSON in and out."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from coupon_service.cli.client import (
    Address,
    BlockingService,
    Tls,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TlsName,
    Token,
    connect_blocking,
)
from coupon_service.cli.failure import CommandError
from coupon_service.v1 import (
    assignment_service_pb2,
    audit_service_pb2,
    coupon_book_service_pb2,
    coupon_code_service_pb2,
    redemption_service_pb2,
)

PACKAGE: Final = "coupon_service.v1."
UNARY_TIMEOUT_S: Final = 10.0
STDIN_MARKS: Final = ("-", "@")

# Messages of json_format.
NO_FIELD: Final = re.compile(r'Message type "([\w.]+)" has no field named "(.*?)"')
NO_VALUE: Final = re.compile(r"Invalid enum value (.+?) for enum type ([\w.]+)")
IN_FIELD: Final = re.compile(r"Failed to parse (\w+) field: ")

CONTRACT: Final[tuple[FileDescriptor, ...]] = (
    coupon_book_service_pb2.DESCRIPTOR,
    coupon_code_service_pb2.DESCRIPTOR,
    assignment_service_pb2.DESCRIPTOR,
    redemption_service_pb2.DESCRIPTOR,
    audit_service_pb2.DESCRIPTOR,
    cast(FileDescriptor, health_pb2.DESCRIPTOR),
)


def call(
    method: Annotated[
        str,
        typer.Argument(metavar="SERVICE/METHOD", help="For example RedemptionService/RedeemCode."),
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
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
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

    Fields are named as in proto/. An error is explained on standard error, with exit code 1.

    coupon-service call RedemptionService/RedeemCode '{"code": "WELCOME1", "user_id": "ann"}'
    """
    if list_methods:
        for descriptor in methods():
            typer.echo(_signature(descriptor))
        return
    descriptor = find_method(method)
    requests = read_messages(_given(messages), descriptor)
    with connect_blocking(
        address, token, Tls(tls_ca, tls_certificate, tls_key, tls_name)
    ) as service:
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


def methods() -> list[MethodDescriptor]:
    """All methods of the contract, and those of the standard health service."""
    return [
        method
        for file in CONTRACT
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def find_method(name: str) -> MethodDescriptor:
    """The method `Service/Method`, with or without the package, or just `Method`.

    Raises CommandError, with suggestions.
    """
    known: dict[str, MethodDescriptor] = {}
    for method in methods():
        service = method.containing_service
        known[f"{service.full_name}/{method.name}"] = method
        known[f"{service.name}/{method.name}"] = method
        known.setdefault(method.name, method)
    wanted = name.strip("/")
    if wanted in known:
        return known[wanted]
    if not wanted:
        raise CommandError("Which method? coupon-service call --list shows them all.")
    short = {_short(method).lower(): _short(method) for method in methods()}
    short |= {method.name.lower(): _short(method) for method in methods()}
    near = difflib.get_close_matches(wanted.removeprefix(PACKAGE).lower(), short, n=3)
    hint = " or ".join(dict.fromkeys(short[match] for match in near))
    raise CommandError(
        f"There is no method {name}."
        + (f" Did you mean {hint}?" if hint else " coupon-service call --list shows them all.")
    )


def read_messages(text: str, method: MethodDescriptor) -> list[Message]:
    """The requests in the text, JSON objects one after the other. Raises CommandError."""
    kind = GetMessageClass(method.input_type)
    requests: list[Message] = []
    for value in _json_values(text):
        if not isinstance(value, dict):
            raise CommandError(f"Expected a JSON object, not {json.dumps(value)[:60]}.")
        try:
            fields = cast(dict[str, Any], value)
            requests.append(json_format.ParseDict(fields, kind()))
        except json_format.ParseError as error:
            name = method.input_type.name
            raise CommandError(f"This is not a {name}: {_explained(error)}") from error
    if len(requests) != 1 and not method.client_streaming:
        raise CommandError(f"{_short(method)} takes one JSON object, not {len(requests)}.")
    return requests


def _explained(error: json_format.ParseError) -> str:
    """The error in plain words, with field names as in the proto."""
    text = str(error).partition("\n")[0].rstrip(".") + "."
    pool = descriptor_pool.Default()
    if found := NO_FIELD.search(text):
        message = pool.FindMessageTypeByName(found[1])
        return _unknown(message.name, "field", found[2], [it.name for it in message.fields])
    if found := NO_VALUE.search(text):
        enum = pool.FindEnumTypeByName(found[2])
        return _unknown(enum.name, "value", found[1], [it.name for it in enum.values])
    path = ".".join(IN_FIELD.findall(text))
    return f"{path}: {IN_FIELD.sub('', text)}" if path else text


def _unknown(kind: str, what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f'{kind} has no {what} "{name}".{meant} It has {", ".join(known)}.'


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text = text.removeprefix("\ufeff").rstrip()
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise CommandError(f"This is not JSON: {error}.") from error
        yield value


def _short(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}/{method.name}"


def _signature(method: MethodDescriptor) -> str:
    takes = ("stream of " if method.client_streaming else "") + method.input_type.name
    gives = ("stream of " if method.server_streaming else "") + method.output_type.name
    return f"{_short(method)}: {takes} -> {gives}"
