"""Settings of shards: where they are, and how many connections that makes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from coupon_service.settings import Purpose, Settings, SettingsError, load_settings
from coupon_service.wiring import database_settings, shard_places

ONE = "postgresql://one/coupons"
TWO = "postgresql://two:5433,standby:5433/coupons"


def settings(**values: Any) -> Settings:
    given = {"database_url": SecretStr(ONE), "workers": 2, **values}
    return load_settings(env_file=None, purpose=None, **given)


def refusal(**values: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(**values)
    return str(caught.value)


def test_there_is_one_shard_in_the_schema_of_the_connection_by_default() -> None:
    ((url, place),) = shard_places(settings())
    assert (url, place.schema, place.parameters, place.step) == (ONE, "", {}, "")
    parameters = database_settings(url, settings(), place).session_parameters
    assert "search_path" not in parameters


def test_shards_of_one_url_are_its_schemas() -> None:
    places = shard_places(settings(shards=3))
    assert [it.schema for _, it in places] == ["coupon_00", "coupon_01", "coupon_02"]
    assert {url for url, _ in places} == {ONE}
    parameters = database_settings(*places[2][:1], settings(shards=3), places[2][1])
    assert parameters.session_parameters["search_path"] == "coupon_02"


def test_each_url_has_as_many_shards_as_the_others() -> None:
    urls = SecretStr(f"{ONE},{TWO}")
    places = shard_places(settings(shards=4, shard_urls=urls))
    assert [url for url, _ in places] == [ONE, ONE, TWO, TWO]
    assert "expected a number of URLs that divides COUPON_SHARDS (3), not 2" in refusal(
        shards=3, shard_urls=urls
    )
    assert "COUPON_SHARD_URLS" in refusal(shard_urls=urls)


@pytest.mark.parametrize("bad", ["mysql://a/b", "", f"{ONE}, {TWO}"])
def test_what_are_no_urls_is_refused(bad: str) -> None:
    assert "COUPON_SHARD_URLS: expected URLs such as" in refusal(shards=2, shard_urls=bad or "x")


def test_servers_of_shards_are_verified_as_that_of_one() -> None:
    urls = SecretStr(f"{ONE},postgresql://two/coupons?sslmode=require")
    assert "COUPON_SHARD_URLS: sslmode=require does not verify" in refusal(
        shards=2, shard_urls=urls
    )


def test_connections_in_all_are_bounded() -> None:
    assert settings(shards=4, workers=16, shard_connections_max=448).database_connections_max == 448
    told = refusal(shards=4, workers=16, shard_connections_max=447)
    assert "COUPON_SHARD_CONNECTIONS_MAX: expected at least 448" in told
    assert "COUPON_POOL_MAX_SIZE (6) + 1" in told
    assert settings(workers=900).shards == 1  # one shard has no such bound


def test_sessions_of_shards_differ_so_that_the_role_cannot_have_their_parameters() -> None:
    assert "COUPON_SESSION_PARAMETERS" in refusal(shards=2, session_parameters="role")
    assert settings(shards=2, session_parameters="transaction").shards == 2


@pytest.mark.parametrize("count", [0, 65, -1])
def test_there_are_1_to_64_shards(count: int) -> None:
    assert "COUPON_SHARDS" in refusal(shards=count)


def test_the_urls_of_shards_stand_for_that_of_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DATABASE_URL", "COUPON_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    loaded = load_settings(
        env_file=None, purpose=Purpose.MIGRATE, shards=2, shard_urls=f"{ONE},{TWO}"
    )
    assert loaded.database_urls == [ONE, TWO]


def test_a_read_replica_is_for_one_shard() -> None:
    assert "COUPON_REPLICA_URL" in refusal(shards=2, replica_url=SecretStr(TWO))
