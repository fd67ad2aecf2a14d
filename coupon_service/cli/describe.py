"""`coupon-service describe`: what a method takes, with an example."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from coupon_service.cli.contract import completed, find_method, short_name, signature
from coupon_service.cli.examples import EXAMPLES
from coupon_service.cli.requests import short_values

WIDTH: Final = 100
WORDS: Final = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "true or false",
}
"""Kinds of fields that are not numbers."""

GOOGLE_WORDS: Final = {
    "Duration": "a duration, such as 90s, 5m or 1h30m",
    "Timestamp": "a time, such as 2026-12-24 or 2026-12-24 18:30, in UTC",
    "FieldMask": "names of fields, separated by commas",
    "Struct": "a JSON object of your own",
}
OUTPUT_ONLY: Final = "Output only."
OPENING: Final = re.compile(r"(message|enum|service|oneof) (\w+) \{")
DECLARED: Final = re.compile(r"rpc (\w+)\(|(?:(?:optional|repeated) )?[\w.]+ (\w+) = \d+")


def describe(
    method: Annotated[
        str,
        typer.Argument(
            metavar="SERVICE/METHOD",
            help="For example RedemptionService/RedeemCode, or RedeemCode.",
            autocompletion=completed,
        ),
    ],
) -> None:
    """Describe a method: what it does, the fields of its request, and an example.

    coupon-service describe RedeemCode
    """
    descriptor = find_method(method)
    comments = contract_comments()
    name = short_name(descriptor)
    lines = [
        signature(descriptor),
        *_wrapped(comments.get(name.replace("/", "."), ""), "  "),
        "",
        f"{descriptor.input_type.name}:",
        *_fields(descriptor.input_type, comments, "  "),
        "",
        "Example:",
        f"coupon-service call {name} {shlex.quote(EXAMPLES[name])}",
    ]
    typer.echo("\n".join(lines))


def contract_comments() -> Mapping[str, str]:
    """The comments of the contract by name: of Service.Method, Message and Message.field."""
    found: dict[str, str] = {}
    for file in sorted(_folder().glob("*.proto")):
        found |= _comments(file.read_text("utf-8"))
    return found


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """The comments above what is declared, in a file that is formatted line by line."""
    inside: list[str] = []
    comment: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        name = ""
        if opening := OPENING.match(line):
            name = "" if opening[1] == "oneof" else opening[2]
        elif declared := DECLARED.match(line):
            name = declared[1] or declared[2]
        if name:
            yield ".".join(filter(None, (*inside, name))), "\n".join(comment)
        if line.endswith("{"):
            inside.append(name)
        elif line == "}" and inside:
            inside.pop()
        comment = []


def _fields(kind: Descriptor, comments: Mapping[str, str], indent: str) -> Iterator[str]:
    """The fields of a message, those of messages in it below them, and what they are for."""
    for field in kind.fields:
        comment = comments.get(f"{kind.name}.{field.name}", "")
        if comment.startswith(OUTPUT_ONLY):
            continue
        many = "list, each " if field.is_repeated else ""
        yield f"{indent}{field.name}: {many}{_words(field)}"
        yield from _wrapped(comment, f"{indent}    ")
        inner = field.message_type
        if inner is not None and not inner.full_name.startswith("google."):
            yield from _fields(inner, comments, f"{indent}  ")


def _words(field: FieldDescriptor) -> str:
    """What the field takes."""
    if field.enum_type is not None:
        return ", ".join(name.lower() for name in short_values(field.enum_type))
    if field.message_type is None:
        return WORDS.get(field.type, "whole number")
    return GOOGLE_WORDS.get(field.message_type.name, field.message_type.name)


def _wrapped(comment: str, indent: str) -> Iterator[str]:
    """The paragraphs of a comment."""
    for number, paragraph in enumerate(filter(None, re.split(r"\n\n+", comment))):
        if number:
            yield ""
        yield from textwrap.wrap(
            paragraph,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )


def _folder() -> Path:
    """Beside the stubs when the package was installed, else where the source tree has it."""
    package = Path(__file__).parents[1]
    source = package.parent / "proto" / package.name / "v1"
    return source if source.is_dir() else package / "v1"
