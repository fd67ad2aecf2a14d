"""A shard moves to a newer PostgreSQL, which is how one upgrades without downtime."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from support.installed_postgres import PROGRAMS, InstalledPostgres
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, new_codes, settings_for_moves
from support.shards import business_in, make_shards, places

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.store.moving.move import Move

OF = 2
PATIENCE_MS = 10_000
SETTINGS = {"wal_level": "logical", "max_wal_senders": "4", "wal_writer_delay": "20ms"}


@pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed: install postgresql")
def test_a_shard_moves_to_a_newer_postgresql(server_folder: Path, redis_server_url: str) -> None:
    folder = server_folder / f"upgrade-{uuid4().hex}"
    with (
        InstalledPostgres(min(PROGRAMS), folder / "old", SETTINGS) as old,
        EmbeddedPostgres(folder / "new", durable=False, settings=SETTINGS) as new,
    ):
        with psycopg.connect(new.url) as connection:
            password = sql.Literal(urlsplit(old.url).password)
            connection.execute(sql.SQL("ALTER ROLE coupon PASSWORD {}").format(password))
        there = old.url.replace(f":{old.port}/", f":{new.port}/")
        make_shards(old.url, of=OF)
        with ServerThread(settings_for_moves(old.url, redis_server_url, OF)) as server:
            api, business = Api(server.address), business_in(1, OF)
            codes = new_codes(2)
            api.book(codes=codes, business_id=business)
            api.redeem(codes[0], "ann", business_id=business)
            url, place = places(old.url, of=OF)[1]
            list(Move(url, place, there, [old.url], PATIENCE_MS).run())
            api.redeem(codes[1], "ann", business_id=business)
            api.close()
        with psycopg.connect(there, options="-c search_path=coupon_01") as connection:
            assert connection.info.server_version // 10_000 > min(PROGRAMS)
            assert_adds_up(connection)
            counted = connection.execute("SELECT count(*) FROM redemption_audit WHERE type = 16")
            assert counted.fetchone() == (2,)
