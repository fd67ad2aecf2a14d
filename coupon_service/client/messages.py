"""What both clients need to know of the messages that they send and receive."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message


def serialize(message: Message) -> bytes:
    """The bytes of a message."""
    return message.SerializeToString()


def request_id_of(request: Message) -> str:
    """The request_id; empty where a request has none."""
    return getattr(request, "request_id", "")


def advance(request: Message, response: Message) -> bool:
    """Moves a request on to what follows this page or message; whether anything does."""
    fields = response.DESCRIPTOR.fields_by_name
    page, following = _any(response), _any(request)
    if "resume_token" in fields:
        following.resume_token = page.resume_token
        return True
    if "next_page_token" not in fields:
        return True  # a stream that goes on where it was by its request_id
    following.page_token = page.next_page_token
    return bool(page.next_page_token)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with this token. Empty: without one."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def _any(message: Any) -> Any:
    return message
