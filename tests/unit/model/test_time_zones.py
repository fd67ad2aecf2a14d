"""Names of time zones."""

from __future__ import annotations

import pytest

from coupon_service.model.time_zones import time_zone


@pytest.mark.parametrize(
    "name",
    [
        "UTC",
        "Europe/Berlin",
        "America/Argentina/Buenos_Aires",
        "Etc/GMT+12",
        "America/Port-au-Prince",
    ],
)
def test_a_zone_is_found_by_its_name(name: str) -> None:
    assert time_zone(name).key == name
    assert time_zone(name) is time_zone(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "Europe",
        "Europe/",
        "Europe/Berlin/",
        "Europe/Berlin\0",
        "Europe/Bonn",
        "Mars/Olympus",
        "/usr/share/zoneinfo/UTC",
        "../zoneinfo/UTC",
        "Europe/../UTC",
        "localtime",
        "Factory",
        "posix/UTC",
        "right/UTC",
        "posixrules",
        "zone.tab",
        "tzdata.zi",
        "leapseconds",
        "x" * 65,
        "Süd/Pol",
    ],
)
def test_any_other_name_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        time_zone(name)
