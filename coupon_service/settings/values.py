"""Types of setting values, and the names of their variables."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from coupon_service.settings import redis_url

PREFIX = "COUPON_"


@dataclass(frozen=True, slots=True)
class Matching:
    """A validator of text that also describes what it expects."""

    pattern: str
    expected: str

    def __call__(self, value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is not None and not re.fullmatch(self.pattern, text):
            raise ValueError(self.expected)
        return value


@dataclass(frozen=True, slots=True)
class Readable:
    """A validator of a secret text that a function has to be able to read."""

    read: Callable[[str], object]
    expected: str

    def __call__(self, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            self.read(value.get_secret_value())
        return value


Host = Annotated[str, AfterValidator(Matching(r"[0-9A-Za-z.:_-]+", "an IP address or a host name"))]
Port = Annotated[int, Field(ge=0, le=65_535)]
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]
ConnectionMilliseconds = Annotated[int, Field(ge=100, le=86_400_000)]
Count = Annotated[int, Field(ge=1, le=1_000)]
MessageBytes = Annotated[int, Field(ge=1_024, le=16_777_216)]
DatabaseUrl = Annotated[
    SecretStr | None,
    AfterValidator(
        Matching(
            r"postgres(ql)?://\S+", "a URL such as postgresql://user:password@host:5432/database"
        )
    ),
]
DatabaseUrls = Annotated[
    SecretStr | None,
    AfterValidator(
        Matching(
            r"postgres(ql)?://\S+",
            "URLs such as postgresql://user:password@host:5432/database, separated by commas",
        )
    ),
]
RedisUrl = Annotated[
    SecretStr | None,
    AfterValidator(Readable(redis_url.read_redis_url, redis_url.EXPECTED)),
]
TokenSecret = Annotated[
    SecretStr | None,
    AfterValidator(Matching(r"(?s).{32,1024}", "32 to 1024 random characters")),
]
TokenName = Annotated[str, AfterValidator(Matching(r"[!-~]{1,256}", "a name or a URL"))]
TokenNames = Annotated[
    str,
    AfterValidator(
        Matching(r"[!-~]{1,256}( +[!-~]{1,256})*", "names or URLs, separated by spaces")
    ),
]
BusinessId = Annotated[
    str,
    AfterValidator(
        Matching(r"(?s)|[^\x00-\x1f\s]([^\x00-\x1f]{0,126}[^\x00-\x1f\s])?", "a business_id")
    ),
]
ClaimPath = Annotated[
    str,
    AfterValidator(
        Matching(r"[!-~]{1,256}", "the name of a claim, or a path such as realm_access.roles")
    ),
]
KeysUrl = Annotated[
    str | None,
    AfterValidator(
        Matching(r"https?://\S+", "a URL such as https://login.example.com/.well-known/jwks.json")
    ),
]
RATE = r"[1-9][0-9]{0,8}/([1-9][0-9]{0,3} ?)?(second|minute|hour|day)s?"
RateLimits = Annotated[
    str,
    AfterValidator(
        Matching(
            rf"none|{RATE}(;{RATE})*", "none, or limits such as 100/minute or 10/second;1000/hour"
        )
    ),
]


def split_urls(text: str) -> list[str]:
    """The URLs of a list. Those of several hosts have commas of their own."""
    return re.split(r",(?=postgres(?:ql)?://)", text)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"
