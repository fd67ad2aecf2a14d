"""Fuzzed inputs from a seed: messages of the contract, valid and invalid, and metadata."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

HOSTILE_TEXTS = (
    "", "\0", "a\0b", " ", "\n", "\u202e", "é" * 70, "\U0001f4a9" * 40, "A" * 129, "x" * 5_000,
    "%s", "{}", "'; DROP TABLE coupon_books; --", "\\", "$1", "*", "}:places", "{", "\x7f", "\x1f",
    "\ufeff", "\u200b", "\u2013", "e\u0301", "\u0301", "%", "\uff21", "İ", "ẞ", "\ufdfa" * 9,
    "\U0001e030", "1,23E+12", "#REF!", "600519.0", "NaN", "-1", "../..", "v1", "v99999999999",
    "00000000-0000-0000-0000-000000000000", "eyJhbGci",
)  # fmt: skip
INTEGERS = (0, 1, -1, 2, 7, 1_000, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 10**15, 10**9 + 1)
WRONG_UTF8 = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82")
LEVELS_MAX = 4


class Inputs:
    """`named`: valid texts by field: ids, codes and tokens that the service knows."""

    def __init__(self, seed: int, named: Mapping[str, str]) -> None:
        self.random = Random(seed)
        self._named = named
        self._known = list(named.values())
        self._wild = self.random.choice((0.0, 0.05, 0.5, 1.0))  # share of hostile values

    def text(self, field: str = "") -> str:
        """A text that is known, hostile, or both."""
        random = self.random
        if random.random() >= self._wild:
            return self._named.get(field, random.choice(self._known))
        kind = random.random()
        if kind < 0.45:
            return random.choice(self._known)
        if kind < 0.6:
            known = random.choice(self._known)
            at = random.randrange(len(known) + 1)
            return (
                known[:at] + random.choice(HOSTILE_TEXTS)[:200] + known[at + random.randint(0, 3) :]
            )
        if kind < 0.9:
            return random.choice(HOSTILE_TEXTS)
        return "".join(chr(random.choice((random.randrange(1, 0xD800), 65))) for _ in range(9))

    def message(self, kind: type[Message], level: int = 0) -> Message:
        """A message with some of its fields set."""
        message = kind()
        for field in message.DESCRIPTOR.fields:
            if self.random.random() < (0.6 if self._wild > 0.5 else self._share(field)):
                self._fill(message, field, level)
        return message

    def _share(self, field: FieldDescriptor) -> float:
        if field.name in ("page_token", "etag", "metadata", "ttl", "mode", "types", "state"):
            return 0.1
        return 0.9 if field.type == field.TYPE_STRING else 0.5

    def raw(self, kind: type[Message]) -> bytes:
        """The bytes of a message, sometimes mutated."""
        raw = self.message(kind).SerializeToString()
        random = self.random
        while random.random() < self._wild * 0.4:
            at, other = random.randrange(len(raw) + 1), random.randrange(len(raw) + 1)
            match random.randrange(6):
                case 0:
                    raw = raw[:at]
                case 1:
                    raw = raw[:at] + raw[at:other] * 2 + raw[other:]
                case 2:
                    raw = raw[:at] + random.choice(WRONG_UTF8) + raw[at + 1 :]
                case 3:
                    raw += raw
                case 4:
                    raw = raw[:at] + random.randbytes(random.randint(1, 9)) + raw[at:]
                case _:
                    raw = random.randbytes(random.randint(0, 60))
        return raw[:200_000]

    def metadata(self) -> list[tuple[str, str | bytes]]:
        """Headers that gRPC sends and the service does not expect."""
        random = self.random
        pool: list[tuple[str, str | bytes]] = [
            ("authorization", "Bearer"),
            ("authorization", "Bearer " + random.choice(self._known)[:500]),
            ("authorization", "bearer \x20 x.y.z"),
            ("authorization", "Basic " + "A" * 3_000),
            ("x-odd." + "k" * random.randint(1, 60), "v"),
            ("odd-bin", random.randbytes(random.randint(0, 500))),
            ("grpc-status-details-bin", b"\xff\xff"),
            ("x-long", "y" * random.choice((10, 3_000))),
        ]
        return random.sample(pool, random.randint(0, 3))

    def _fill(self, message: Any, field: FieldDescriptor, level: int) -> None:
        if field.message_type is not None:
            self._fill_message(message, field, level)
        elif field.is_repeated:
            values = getattr(message, field.name)
            values.extend(self._scalar(field) for _ in range(self.random.randint(0, 3)))
        else:
            setattr(message, field.name, self._scalar(field))

    def _fill_message(self, message: Any, field: FieldDescriptor, level: int) -> None:
        value = getattr(message, field.name)
        if level > LEVELS_MAX:
            return
        if field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            if inner.message_type is not None:
                made = self.message(GetMessageClass(inner.message_type), level + 1)
                value[self.text()].CopyFrom(made)
        elif field.is_repeated:
            for _ in range(self.random.randint(0, 3)):
                value.add().CopyFrom(self.message(GetMessageClass(field.message_type), level + 1))
        else:
            value.CopyFrom(self.message(GetMessageClass(field.message_type), level + 1))

    def _scalar(self, field: FieldDescriptor) -> Any:
        random = self.random
        tame = random.random() >= self._wild
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return (
                    self.text(field.name)
                    if field.type == field.TYPE_STRING
                    else random.randbytes(5)
                )
            case FieldDescriptor.CPPTYPE_BOOL:
                return random.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM:
                return random.choice((0, 1, 2) if tame else (0, 1, 2, 3, 4, 99, -1))
            case FieldDescriptor.CPPTYPE_DOUBLE:
                return random.choice((0.0, -1.5, 1e308, float("nan"), float("inf")))
            case FieldDescriptor.CPPTYPE_INT32:
                return (
                    random.choice((1, 2, 7))
                    if tame
                    else random.choice([it for it in INTEGERS if -(2**31) <= it < 2**31])
                )
            case FieldDescriptor.CPPTYPE_UINT64:
                return random.choice((1, 2, 7) if tame else [it for it in INTEGERS if it >= 0])
            case _:
                # A bound on the work of GenerateCodes.
                if field.name == "count":
                    return random.choice((0, 1, -1, 20, 2**63 - 1, 10**8 + 1))
                return random.choice((1, 2, 7) if tame else INTEGERS)
