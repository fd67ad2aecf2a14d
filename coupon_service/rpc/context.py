"""Who asks: what is known of a call beside its request, at hand wherever the call is worked on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coupon_service.errors import PermissionDenied, Unauthenticated
from coupon_service.model import Call

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Metadata = tuple[tuple[str, str | bytes], ...]
"""What the client sent along, in order."""

ANONYMOUS: Final = "anonymous"
USER_AGENT_MAX_CHARACTERS: Final = 256


@dataclass(slots=True, eq=False)
class RequestContext:
    """One RPC and its caller; `request_id` is known once the request has been read.

    `authenticated`: the caller has proved who it is; otherwise `caller` is ANONYMOUS.
    `business_id` is the one the caller's token names; empty: the caller may see every business.
    `end_user`: the caller is a user, whose user_id is `caller`, and sees only what is its own.
    `deadline`: in seconds of time.perf_counter. `span`: of its trace, where calls are traced.
    `stream`: for an operation of a stream, the id of that. `default_business`: whose codes are
    meant where neither token nor request says.
    """

    metadata: Metadata = ()
    peer: str = ""
    caller: str = ANONYMOUS
    authenticated: bool = False
    business_id: str = ""
    end_user: bool = False
    request_id: str = ""
    deadline: float | None = None
    span: Span | None = None
    stream: str = ""
    default_business: str = ""

    def call(self, request_id: str) -> Call:
        """The call as the ledger keeps it; the log has its `request_id` from here on."""
        self.request_id = request_id
        return Call(
            self.caller,
            request_id,
            self.peer,
            self.user_agent,
            self.business_id,
            self.deadline,
            self.end_user,
        )

    def user(self, user_id: str) -> str:
        """The user that a request names; for an end user that names none, the caller itself.

        Raises PermissionDenied when an end user names another one.
        """
        if not self.end_user:
            return user_id
        if user_id not in ("", self.caller):
            raise PermissionDenied("An end user may only name its own user_id.")
        return self.caller

    def business_of(self, named: str, *, by_book: bool) -> str:
        """The business whose code is meant: the token's, or the one that the request names, or that
        of its book (`by_book`), or the default; empty: that of the book, or not known.

        Raises PermissionDenied when it names another one than the token.
        """
        own = self.business_id
        if not own:
            return named or ("" if by_book else self.default_business)
        if named not in ("", own):
            raise PermissionDenied("The business is another one than the token's.")
        return own

    @property
    def own_user_id(self) -> str:
        """The only user whose locks and redemptions the caller may see; empty: any."""
        return self.caller if self.end_user else ""

    @property
    def anonymous(self) -> bool:
        """Whether the caller did not have to prove who it is."""
        return not self.authenticated  # whatever a token says, its subject is somebody

    @property
    def user_agent(self) -> str:
        """What the client says it is, in printable characters; empty when it says nothing."""
        for value in self.values("user-agent"):
            if isinstance(value, str):
                agent = value[:USER_AGENT_MAX_CHARACTERS]
                return agent if agent.isprintable() else ascii(agent)[1:-1]
        return ""

    def values(self, key: str) -> list[str | bytes]:
        """What the metadata has under this key."""
        # By index: gRPC's pairs are named tuples, which take three times as long to unpack.
        return [pair[1] for pair in self.metadata if pair[0] == key]


class KeyAwaitedError(Unauthenticated):
    """The token's key is not known yet: a call may wait until `keys_fetched` and try again."""

    def __init__(self, message: str, keys_fetched: Callable[[], Awaitable[None]]) -> None:
        super().__init__(message)
        self.keys_fetched = keys_fetched


CURRENT: Final[ContextVar[RequestContext]] = ContextVar("coupon_service.rpc.current")


def current() -> RequestContext:
    """That of the RPC that is being answered: gRPC runs every RPC in a contextvars context."""
    return CURRENT.get()
