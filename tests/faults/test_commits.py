"""The line to PostgreSQL breaks at exactly a COMMIT: before it, or between it and its reply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from faults.proxy import Commit, Proxy, Rule
from grpc import StatusCode
from support.calls import tried
from support.service import Api, ServerThread, refused, settings_for
from support.waiting import until


@pytest.fixture(scope="module")
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(postgres_url).port or 5432, postgres=True) as made:
        yield made


@pytest.fixture
def api(
    request: pytest.FixtureRequest, proxy: Proxy, database_url: str, redis_url: str
) -> Iterator[Api]:
    """A client of a server that tries a transaction so often."""
    settings = settings_for(
        proxy.url(database_url), redis_url, transaction_attempts_max=request.param
    )
    with ServerThread(settings) as server, closing(Api(server.address)) as made:
        until(lambda: tried(made.draft) == "OK")
        yield made


def effects(api: Api, code: str) -> tuple[int, list[str]]:
    """How often a code was redeemed, and what the ledger says."""
    until(lambda: tried(lambda: api.get_code(code)) == "OK")
    return api.get_code(code).redemption_count, api.event_names(code=code)


@pytest.mark.parametrize("api", [1], indirect=True)
@pytest.mark.parametrize(("where", "done"), [(Commit.BEFORE, 0), (Commit.AFTER, 1)])
def test_a_repeat_settles_what_a_lost_commit_left_open(
    api: Api, proxy: Proxy, where: Commit, done: int
) -> None:
    code = api.code()
    request = api.redeem_request(code, "ann")
    cut_before = proxy.commits_cut
    proxy.rule = Rule(commit=where)
    with refused("DATABASE_UNAVAILABLE", StatusCode.UNAVAILABLE) as it:
        api.redemptions.RedeemCode(request)
    assert it.retry_after_s
    assert proxy.commits_cut == cut_before + 1
    assert effects(api, code) == (done, ["REDEEMED"] * done)
    answer = api.redemptions.RedeemCode(request)
    assert answer.replayed is bool(done)
    assert effects(api, code) == (1, ["REDEEMED"])


@pytest.mark.parametrize("api", [3], indirect=True)
@pytest.mark.parametrize("where", list(Commit))
def test_the_server_settles_it_before_its_client_notices(
    api: Api, proxy: Proxy, where: Commit
) -> None:
    code = api.code()
    cut_before = proxy.commits_cut
    proxy.rule = Rule(commit=where)
    redemption = api.redeem(code, "ann").redemption
    assert proxy.commits_cut == cut_before + 1
    assert effects(api, code) == (1, ["REDEEMED"])
    proxy.rule = Rule(commit=where)
    api.rollback(redemption.redemption_id)
    assert proxy.commits_cut == cut_before + 2
    assert effects(api, code) == (0, ["REDEEMED", "ROLLED_BACK"])
