"""The methods of the contract, as the command line names them."""

from __future__ import annotations

import difflib
import re
from typing import Final, cast

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from grpc_health.v1 import health_pb2

from coupon_service.cli.failure import CommandError
from coupon_service.v1 import (
    assignment_service_pb2,
    audit_service_pb2,
    coupon_book_service_pb2,
    coupon_code_service_pb2,
    redemption_service_pb2,
)

PACKAGE: Final = "coupon_service.v1."

CONTRACT: Final[tuple[FileDescriptor, ...]] = (
    coupon_book_service_pb2.DESCRIPTOR,
    coupon_code_service_pb2.DESCRIPTOR,
    assignment_service_pb2.DESCRIPTOR,
    redemption_service_pb2.DESCRIPTOR,
    audit_service_pb2.DESCRIPTOR,
    cast(FileDescriptor, health_pb2.DESCRIPTOR),
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
    """The method `Service/Method`, with or without the package, or just `Method`, also in
    snake_case.

    Raises CommandError, with suggestions.
    """
    known: dict[str, MethodDescriptor] = {}
    for method in methods():
        service = method.containing_service
        known[f"{service.full_name}/{method.name}"] = method
        known[f"{service.name}/{method.name}"] = method
        known.setdefault(method.name, method)
        known.setdefault(snake_case(method.name), method)
    wanted = name.strip("/")
    if wanted in known:
        return known[wanted]
    if not wanted:
        raise CommandError("Which method? coupon-service call --list shows them all.")
    short = {short_name(method).lower(): short_name(method) for method in methods()}
    short |= {method.name.lower(): short_name(method) for method in methods()}
    near = difflib.get_close_matches(wanted.removeprefix(PACKAGE).lower(), short, n=3)
    hint = " or ".join(dict.fromkeys(short[match] for match in near))
    raise CommandError(
        f"There is no method {name}."
        + (f" Did you mean {hint}?" if hint else " coupon-service call --list shows them all.")
    )


def short_name(method: MethodDescriptor) -> str:
    """`Service/Method`."""
    return f"{method.containing_service.name}/{method.name}"


def signature(method: MethodDescriptor) -> str:
    """The method with what it takes and gives."""
    takes = ("stream of " if method.client_streaming else "") + method.input_type.name
    gives = ("stream of " if method.server_streaming else "") + method.output_type.name
    return f"{short_name(method)}: {takes} -> {gives}"


def snake_case(name: str) -> str:
    """redeem_code for RedeemCode."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def completed(incomplete: str) -> list[str]:
    """The methods whose names begin so, with or without their service, for shell completion."""
    names = [short_name(method) for method in methods()]
    if "/" not in incomplete:
        names += [method.name for method in methods() if incomplete]
    return [name for name in names if name.startswith(incomplete)]
