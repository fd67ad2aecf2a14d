"""PostgreSQL and Redis take the settings that deploy/compose.yaml gives them."""

# redis-py and ruamel.yaml leave types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from pathlib import Path

import psycopg
import redis
from ruamel.yaml import YAML

from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis

COMPOSE = Path(__file__).parents[3] / "deploy" / "compose.yaml"


def arguments(service: str) -> list[str]:
    """What the server is started with, but for its name."""
    whole = YAML(typ="safe").load(COMPOSE.read_text(encoding="utf-8"))
    program, *rest = whole["services"][service]["command"]
    assert program in ("postgres", "redis-server")
    return rest


def test_postgresql_starts_with_them_and_a_commit_is_on_the_disk(tmp_path: Path) -> None:
    settings = dict(it.removeprefix("--").split("=", 1) for it in arguments("postgres"))
    with (
        EmbeddedPostgres(tmp_path / "postgres", settings=settings) as server,
        psycopg.connect(server.url) as connection,
    ):
        rows = connection.execute("SELECT name, current_setting(name) FROM pg_settings")
        shown: dict[str, str] = dict(rows)
    assert {name: shown[name] for name in settings} == settings
    assert (shown["fsync"], shown["synchronous_commit"], shown["full_page_writes"]) == ("on",) * 3


def test_redis_starts_with_them_keeps_its_data_and_forgets_no_lock(tmp_path: Path) -> None:
    given = arguments("redis")
    settings = dict(zip((name.removeprefix("--") for name in given[::2]), given[1::2], strict=True))
    del settings["requirepass"]  # the server here has one of its own
    with (
        EmbeddedRedis(tmp_path / "redis", settings=settings) as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        shown: dict[str, str] = client.config_get("*")  # pyright: ignore[reportAssignmentType]
    assert shown["appendonly"] == "yes"
    assert shown["maxmemory-policy"] == "noeviction"
    assert int(shown["maxmemory"]) > 0
