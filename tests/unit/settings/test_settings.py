from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from coupon_service.settings import (
    Settings,
    SettingsError,
    env_example,
    load_settings,
    settings_table,
)
from coupon_service.settings.processors import processors_available

PASSWORD = "hunter2-hunter2-hunter2-hunter2"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("COUPON_") or name in {"DATABASE_URL", "REDIS_URL", "PORT"}:
            monkeypatch.delenv(name)


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def refusal(env_file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(env_file)
    return str(raised.value)


class TestSources:
    def test_defaults_apply_without_sources(self, env_file: Path) -> None:
        settings = load_settings(env_file)
        assert (settings.host, settings.port) == ("127.0.0.1", 50_051)
        assert settings.workers == processors_available()
        assert settings.database_url is None

    def test_the_file_is_read(self, env_file: Path) -> None:
        env_file.write_text(
            "\ufeff# a comment\r\n\r\nexport COUPON_PORT=4000 # why\r\nCOUPON_LOG_LEVEL='debug'\r\n"
        )
        settings = load_settings(env_file)
        assert (settings.port, settings.log_level) == (4000, "debug")

    def test_environment_overrides_the_file(
        self, env_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env_file.write_text("COUPON_PORT=4000\nCOUPON_WORKERS=3\n")
        monkeypatch.setenv("COUPON_PORT", "4001")
        settings = load_settings(env_file)
        assert (settings.port, settings.workers) == (4001, 3)

    def test_overrides_take_precedence(
        self, env_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env_file.write_text("COUPON_PORT=4000\n")
        monkeypatch.setenv("COUPON_PORT", "4001")
        monkeypatch.setenv("DATABASE_URL", "postgresql://environment")
        settings = load_settings(env_file, port=4002, database_url="postgresql://override")
        assert settings.port == 4002
        assert settings.database_url is not None
        assert settings.database_url.get_secret_value() == "postgresql://override"

    def test_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COUPON_PORT", "")
        assert load_settings(None).port == 50_051

    @pytest.mark.parametrize("name", ["DATABASE_URL", "COUPON_DATABASE_URL"])
    def test_database_url_is_read_with_and_without_prefix(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "postgresql://u@h/d")
        url = load_settings(None).database_url
        assert url is not None
        assert url.get_secret_value() == "postgresql://u@h/d"

    @pytest.mark.parametrize("name", ["REDIS_URL", "COUPON_REDIS_URL"])
    def test_redis_url_is_read_with_and_without_prefix(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "redis://h:1/0")
        url = load_settings(None).redis_url
        assert url is not None
        assert url.get_secret_value() == "redis://h:1/0"

    def test_prefixed_name_takes_precedence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://other")
        monkeypatch.setenv("COUPON_DATABASE_URL", "postgresql://mine")
        url = load_settings(None).database_url
        assert url is not None
        assert url.get_secret_value() == "postgresql://mine"

    def test_environment_overrides_the_file_under_either_name(
        self, env_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env_file.write_text("COUPON_DATABASE_URL=postgresql://file\n")
        monkeypatch.setenv("DATABASE_URL", "postgresql://environment")
        url = load_settings(env_file).database_url
        assert url is not None
        assert url.get_secret_value() == "postgresql://environment"

    def test_other_names_without_prefix_are_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "4000")
        assert load_settings(None).port == 50_051


class TestInvalidValues:
    @pytest.mark.parametrize(
        ("name", "value", "line"),
        [
            ("PORT", "many", "expected a whole number from 0 to 65535, not 'many'"),
            ("PORT", "65536", "expected a whole number from 0 to 65535, not '65536'"),
            ("WORKERS", "0", "expected a whole number from 1 to 1000, not '0'"),
            ("HOST", "a b", "expected an IP address or a host name, not 'a b'"),
            ("REFLECTION", "maybe", "expected true or false, not 'maybe'"),
            ("LOG_FORMAT", "xml", "expected auto or json or console, not 'xml'"),
            ("AUTH", "basic", "expected none or jwt, not 'basic'"),
            ("JWT_ISSUER", "two words", "expected a name or a URL, not 'two words'"),
            ("POOL_MIN_SIZE", "7", "expected at most COUPON_POOL_MAX_SIZE (6), not 7"),
            ("BATCHES_IN_FLIGHT", "7", "expected at most COUPON_POOL_MAX_SIZE (6), not 7"),
            ("QUEUE_MAX_SIZE", "9", None),
            ("LOCK_TTL_MAX_MS", "1000", None),
        ],
    )
    def test_error_names_the_variable_and_the_expected_value(
        self, name: str, value: str, line: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"COUPON_{name}", value)
        text = refusal()
        assert f"COUPON_{name}" in text
        assert line is None or text == f"COUPON_{name}: {line}"

    def test_each_invalid_variable_has_a_line(
        self, env_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env_file.write_text("COUPON_PORT=x\nCOUPON_WORKERZ=3\n")
        monkeypatch.setenv("COUPON_LOG_LEVEL", "loud")
        lines = refusal(env_file).splitlines()
        assert len(lines) == 3
        for name in ("COUPON_PORT", "COUPON_WORKERZ", "COUPON_LOG_LEVEL"):
            assert sum(name in line for line in lines) == 1

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("COUPON_DATABASE_URL", f"mysql://user:{PASSWORD}@host/database"),
            ("DATABASE_URL", f"postgresql://user:{PASSWORD} @host/database"),
            ("COUPON_REDIS_URL", f"http://:{PASSWORD}@host"),
            ("COUPON_LOCK_TOKEN_SECRET", PASSWORD),
            ("COUPON_LOCK_TOKEN_SECRET_PREVIOUS", PASSWORD),
            ("COUPON_JWT_SECRET", PASSWORD),
        ],
    )
    def test_invalid_secret_is_not_shown(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        text = refusal()
        assert name in text
        assert "expected" in text
        assert PASSWORD not in text

    def test_valid_secret_is_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", f"postgresql://user:{PASSWORD}@host/database")
        monkeypatch.setenv("COUPON_LOCK_TOKEN_SECRET", PASSWORD * 2)
        settings = load_settings(None)
        assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()}"

    @pytest.mark.parametrize(
        ("lock", "statement", "deadline", "bad"),
        [
            (3000, 3000, 5000, "COUPON_LOCK_TIMEOUT_MS"),
            (4000, 3000, 5000, "COUPON_LOCK_TIMEOUT_MS"),
            (1000, 5000, 5000, "COUPON_STATEMENT_TIMEOUT_MS"),
            (1000, 3000, 2000, "COUPON_STATEMENT_TIMEOUT_MS"),
        ],
    )
    def test_inner_timeouts_are_shorter_than_outer_ones(
        self, lock: int, statement: int, deadline: int, bad: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_LOCK_TIMEOUT_MS", str(lock))
        monkeypatch.setenv("COUPON_STATEMENT_TIMEOUT_MS", str(statement))
        monkeypatch.setenv("COUPON_DEFAULT_DEADLINE_MS", str(deadline))
        (line,) = refusal().splitlines()
        assert line.startswith(f"{bad}: expected less than ")


class TestUnknownNames:
    def test_unknown_variable_is_refused_with_a_hint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COUPON_PROT", "4000")
        assert refusal() == "COUPON_PROT: there is no such setting; did you mean COUPON_PORT?"

    def test_unknown_name_in_the_file_is_refused_with_a_hint(self, env_file: Path) -> None:
        env_file.write_text("coupon_redis_timeout=50\n")
        assert refusal(env_file) == (
            f"{env_file}: coupon_redis_timeout: there is no such setting;"
            " did you mean COUPON_REDIS_TIMEOUT_MS?"
        )

    def test_dissimilar_name_gets_no_hint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COUPON_ZZZ", "1")
        assert refusal() == "COUPON_ZZZ: there is no such setting"

    @pytest.mark.parametrize(
        "name",
        [
            "COUPON_TEST_DATABASE_URL",
            "COUPON_TOKEN",
            "COUPON_SERVICE_HOST",
            "COUPON_SERVICE_PORT",
            "COUPON_SERVICE_SERVICE_PORT_GRPC",
            "COUPON_SERVICE_PORT_50051_TCP_ADDR",
            "COUPON_PORT_50051_TCP",
        ],
    )
    def test_variables_of_tests_clients_and_kubernetes_are_ignored(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "tcp://10.0.0.1:50051")
        load_settings(None)

    def test_unprefixed_names_in_the_file_are_ignored(self, env_file: Path) -> None:
        env_file.write_text("POSTGRES_PASSWORD=x\n")
        load_settings(env_file)


class TestMalformedFile:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("COUPON_PORT=4000\nCOUPON_HOST\n", 2),
            ("\n\n# comment\n\nCOUPON_PORT 4000\n", 5),
            ("COUPON_PORT=4000\n\nCOUPON_LOG_LEVEL='debug\n", 3),
            ("=4000\n", 1),
        ],
    )
    def test_malformed_line_is_named_by_its_number(
        self, text: str, line: int, env_file: Path
    ) -> None:
        env_file.write_text(text)
        assert refusal(env_file) == f"{env_file}, line {line}: expected NAME=value or # comment"

    def test_binary_file_is_refused_with_one_sentence(self, env_file: Path) -> None:
        env_file.write_bytes(b"COUPON_PORT=\xff\xfe\n")
        assert refusal(env_file) == f"{env_file} cannot be read: it is not UTF-8 text"

    def test_folder_instead_of_a_file_is_ignored(self, env_file: Path) -> None:
        env_file.mkdir()
        load_settings(env_file)


class TestOpenAddresses:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
    def test_loopback_needs_no_authentication(
        self, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_HOST", host)
        assert not load_settings(None).open_without_auth

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "coupons.example.com"])
    def test_other_addresses_without_authentication_need_consent(
        self, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_HOST", host)
        text = refusal()
        assert text.startswith(f"COUPON_HOST: {host} ")
        assert "COUPON_AUTH=none" in text
        monkeypatch.setenv("COUPON_AUTH", "none")
        assert load_settings(None).open_without_auth


class TestPeerVerification:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("DATABASE_URL", "postgresql://a:b@c/d?sslmode=require", "sslmode=verify-full"),
            ("REDIS_URL", "rediss://:b@c?ssl_cert_reqs=none", "ssl_cert_reqs=required"),
            ("REDIS_URL", "rediss://:b@c?ssl_check_hostname=False", "ssl_check_hostname=true"),
            ("TLS_CERTIFICATE_FILE", "a.pem", "together with COUPON_TLS_KEY_FILE"),
            ("TLS_CLIENT_CA_FILE", "a.pem", "together with COUPON_TLS_CERTIFICATE_FILE"),
        ],
    )
    def test_encryption_without_verification_is_refused(
        self, name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"COUPON_{name}", value)
        (line,) = refusal().splitlines()
        assert line.startswith("COUPON_")
        assert f"expected {expected}" in line

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://a:b@c/d",
            "postgresql://a:b@c/d?sslmode=verify-full&sslrootcert=system",
            "postgresql://a:b@c/d?sslmode=require&sslrootcert=/tls/ca.pem",
        ],
    )
    def test_verified_or_plain_connections_are_accepted(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_DATABASE_URL", url)
        monkeypatch.setenv("COUPON_REDIS_URL", "rediss://:b@c?ssl_check_hostname=True")
        assert load_settings(None).database_url


class TestRedisUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "redis://host",
            "redis://user:p%40ss@[::1]:6380/3?health_check_interval=10",
            "rediss://:secret@redis.example:6379/0?ssl_ca_certs=/tls/ca.pem",
            "unix:///run/redis/redis.sock?db=1",
            "unix://user:secret@/run/redis.sock",
            "redis+sentinel://a/mymaster",
            "redis+cluster://a:1,b:2",
            "rediss+cluster://user:secret@[::1]:1,b/0?ssl_ca_certs=/tls/ca.pem",
            "rediss+sentinel://:secret@a:1,[::1]:2,c/mymaster?db=2&sentinel_password=x",
        ],
    )
    def test_url_that_can_be_meant_is_accepted(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_REDIS_URL", url)
        assert load_settings(None).redis_url

    @pytest.mark.parametrize(
        "url",
        [
            "redis://a:1,b:2",
            "redis://host:port",
            "redis://host:0",
            "redis://host:70000",
            "redis://:pa#ss@host",
            "redis://host/mymaster",
            "redis://host?db=first",
            "redis://host?socket_timeout=1",
            "redis://",
            "unix://run/redis.sock",
            "unix://",
            "redis+sentinel://a:1,b:2",
            "redis+sentinel://a:1,,b:2/mymaster",
            "redis+sentinel://a:1/my/master",
            "redis+cluster://a:1,b:2/1",
            "redis+cluster://a:1,b:2?db=1",
            "redis://host?sentinel_password=x",
            "http://host",
        ],
    )
    def test_url_that_cannot_be_meant_is_refused_without_its_text(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_REDIS_URL", url)
        (line,) = refusal().splitlines()
        assert line.startswith("COUPON_REDIS_URL: expected a URL such as redis://")
        assert url.endswith("://") or url not in line


class TestDocumentation:
    def test_each_setting_has_a_description_with_its_unit(self) -> None:
        assert len(Settings.model_fields) >= 20
        for name, field in Settings.model_fields.items():
            assert field.description, name
            assert not name.endswith("_ms") or "milliseconds" in field.description
            assert not name.endswith("_bytes") or "bytes" in field.description

    def test_example_file_is_up_to_date(self) -> None:
        assert (ROOT / ".env.example").read_text("utf-8") == env_example(), "run make docs"

    def test_example_file_changes_nothing(self, env_file: Path) -> None:
        env_file.write_text(env_example())
        assert load_settings(env_file) == load_settings(None)

    def test_uncommented_example_file_equals_the_defaults(self, env_file: Path) -> None:
        text = re.sub(r"(?m)^# (?=COUPON_\w+=)", "", env_example())
        env_file.write_text(text)
        assert text.count("\nCOUPON_") == len(Settings.model_fields)
        assert load_settings(env_file) == load_settings(None)

    def test_table_has_a_row_for_each_setting(self) -> None:
        rows = settings_table().splitlines()
        assert len(rows) == len(Settings.model_fields) + 2
        assert all(row.count("|") == 5 for row in rows)
        assert "| `COUPON_PORT` | `50051` | a whole number from 0 to 65535 |" in settings_table()
