"""Replicas of the service behind HAProxy, which balances connections."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from support.haproxy import haproxy, needs_haproxy
from support.service import Api, new_codes
from support.service_process import PATIENCE_S, environment_of, serving

from coupon_service.client import ClientSettings, CouponClient

CALLS = 8


def replica(database_url: str, redis_url: str) -> dict[str, str]:
    return environment_of(database_url, redis_url) | {"COUPON_WORKERS": "1"}


@needs_haproxy
def test_calls_go_on_with_the_replica_that_is_left(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    first, second = replica(database_url, redis_url), replica(database_url, redis_url)
    addresses = {
        f"10.0.0.{number}:50051 check port 9464": (
            f"127.0.0.1:{it['COUPON_PORT']} check port {it['COUPON_METRICS_PORT']}"
        )
        for number, it in enumerate((first, second), 1)
    }
    patient = ClientSettings(timeout_s=PATIENCE_S, try_timeout_s=PATIENCE_S / 4)
    (tmp_path / "second").mkdir()
    with (
        serving(first, tmp_path) as running,
        haproxy(tmp_path, addresses) as address,
        CouponClient(address, settings=patient) as client,
    ):
        codes = new_codes(2 * CALLS)
        with closing(Api(f"127.0.0.1:{first['COUPON_PORT']}")) as api:
            api.book(codes=codes)
        redeem(client, codes[:CALLS])
        with serving(second, tmp_path / "second"):
            running.terminate()
            running.wait(PATIENCE_S)
            redeem(client, codes[CALLS:])


def redeem(client: CouponClient, codes: list[str]) -> None:
    for code in codes:
        assert client.redeem_code(code, "ann").redemption.code == code
