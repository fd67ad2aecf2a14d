from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coupon_service import __version__, cli
from coupon_service.cli.application import application
from coupon_service.settings import Settings, settings_table

PASSWORD = "hunter2-hunter2-hunter2-hunter2"
COMMANDS = [
    *(("dev",), ("serve",), ("health",), ("settings",)),
    *(("migrate",), ("migrate", "up"), ("migrate", "down"), ("migrate", "status")),
    *(("token",), ("call",), ("describe",), ("generate",), ("import",), ("export",)),
    ("codes",),
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(application(), arguments)


@pytest.mark.parametrize("command", [(), *COMMANDS])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_what_a_command_does_and_what_each_option_means(
    command: tuple[str, ...], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    result = run(*command, option)
    assert result.exit_code == 0
    said, *options = result.output.split("Options")
    assert len(said.split("Usage")[1].splitlines()) >= 3
    lines = [line for line in options[0].splitlines() if "--" in line]
    assert lines
    assert all(len(line.strip("│ ").split("  ")) > 1 for line in lines)


def test_without_a_command_the_commands_are_listed() -> None:
    assert "migrate" in run().output


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").output == f"coupon-service {__version__}\n"


def test_settings_in_effect_are_listed_with_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [it for it in os.environ if it.startswith(("COUPON_", "DATABASE_", "REDIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COUPON_PORT", "50052")
    monkeypatch.setenv("COUPON_LOG_LEVEL", "")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://app:{PASSWORD}@one,two/c?a=b")
    lines = [
        "COUPON_LOG_LEVEL=debug",
        "COUPON_PORT=1",
        "COUPON_TRACING=false",
        f"COUPON_REDIS_URL=rediss://:{PASSWORD}@cache:6379/0",
        f"COUPON_LOCK_TOKEN_SECRET={PASSWORD * 2}",
        f"COUPON_JWT_JWKS_URL=https://user:{PASSWORD}@login/keys?password={PASSWORD}&a=b",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    output = run("settings").output
    shown = {line.split(maxsplit=1)[0]: line.split()[1:] for line in output.splitlines()}
    assert list(shown) == [f"COUPON_{name.upper()}" for name in Settings.model_fields]
    assert shown["COUPON_PORT"] == ["50052", "environment"]
    assert shown["COUPON_HOST"] == ["127.0.0.1", "default"]
    assert shown["COUPON_LOG_LEVEL"] == ["debug", ".env"]
    assert shown["COUPON_TRACING"] == ["false", ".env"]
    assert shown["COUPON_PID_FILE"] == ["default"]
    assert shown["COUPON_LOCK_TOKEN_SECRET"] == ["***", ".env"]
    assert shown["COUPON_REDIS_URL"] == ["rediss://:***@cache:6379/0", ".env"]
    assert shown["COUPON_JWT_JWKS_URL"][0] == "https://user:***@login/keys?password=***&a=b"
    database = "postgresql://app:***@one,two/c?a=b"
    assert shown["COUPON_DATABASE_URL"] == [database, "environment,", "DATABASE_URL"]
    assert PASSWORD not in output


def test_settings_are_listed_as_in_the_documentation() -> None:
    assert run("settings", "--markdown").output == settings_table()


def test_all_methods_are_listed_with_what_they_take_and_give() -> None:
    lines = run("call", "--list").output.splitlines()
    assert "RedemptionService/RedeemCode: RedeemCodeRequest -> RedeemCodeResponse" in lines
    assert (
        "CouponCodeService/ImportCodes: stream of ImportCodesRequest -> stream of"
        " ImportCodesResponse" in lines
    )


class TestEndingWithASentence:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        for name in ("DATABASE_URL", "REDIS_URL", "COUPON_LOCK_TOKEN_SECRET"):
            monkeypatch.delenv(name, raising=False)
        return tmp_path

    def said(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
        """What the command line says in the end; what `sys.exit` is given is exit code 1."""
        monkeypatch.setattr("sys.argv", ["coupon-service", *arguments])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert isinstance(raised.value.code, str)
        return raised.value.code

    @pytest.mark.parametrize("command", ["dev", "serve", "health"])
    def test_a_broken_env_file_is_reported_with_its_line(
        self, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / ".env").write_text("COUPON_PORT=50051\nnonsense\n")
        assert self.said(monkeypatch, command) == ".env, line 2: expected NAME=value or # comment"

    def test_serving_says_everything_that_has_to_be_set(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_AUTH", "jwt")
        monkeypatch.setenv("COUPON_PORT", "many")
        lines = self.said(monkeypatch, "serve").splitlines()
        assert [line.partition(": ")[0] for line in lines] == [
            "COUPON_DATABASE_URL",
            "COUPON_REDIS_URL",
            "COUPON_LOCK_TOKEN_SECRET",
            "COUPON_JWT_KEYS_FILE or COUPON_JWT_JWKS_URL or COUPON_JWT_SECRET",
            "COUPON_PORT",
        ]
        assert "postgresql://user:password@host:5432/database" in lines[0]

    def test_a_wait_of_batches_that_cannot_be_kept_is_refused_before_workers_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_DATABASE_URL", "postgresql://nowhere.invalid/coupons")
        monkeypatch.setenv("COUPON_REDIS_URL", "redis://nowhere.invalid")
        monkeypatch.setenv("COUPON_LOCK_TOKEN_SECRET", "only this test signs with this one")
        monkeypatch.setenv("COUPON_BATCH_MAX_WAIT_MS", "3")
        said = self.said(monkeypatch, "serve")
        assert said.startswith("COUPON_BATCH_MAX_WAIT_MS: expected 0, or more than 6,")

    @pytest.mark.parametrize("command", ["up", "down", "status"])
    def test_migrating_needs_nothing_but_a_database(
        self, command: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COUPON_HOST", "0.0.0.0")
        monkeypatch.setenv("COUPON_TLS_KEY_FILE", "key.pem")
        monkeypatch.setenv("COUPON_AUTH", "jwt")
        (line,) = self.said(monkeypatch, "migrate", command).splitlines()
        assert line.startswith("COUPON_DATABASE_URL: has to be set, to a URL such as ")

    def test_a_file_that_is_not_there_is_reported_by_its_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = self.said(monkeypatch, "import", "book", "codes.txt")
        assert said == "codes.txt cannot be read: No such file or directory."

    @pytest.mark.parametrize("name", ["codes.csv", "codes.gz"])
    def test_a_missing_file_is_reported_as_missing_whatever_it_is_called(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = self.said(monkeypatch, "import", "book", name)
        assert said == f"{name} cannot be read: No such file or directory."

    def test_one_of_several_columns_has_to_be_named(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "codes.csv").write_text("name,code\nx,A1B2\n")
        assert "Use --column" in self.said(monkeypatch, "import", "book", "codes.csv")

    def test_rejects_never_overwrite_what_is_imported(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "codes.csv").write_text("A1B2\n")
        said = self.said(
            monkeypatch,
            "import",
            "book",
            "codes.csv",
            "--rejects",
            "../" + folder.name + "/codes.csv",
        )
        assert said == "--rejects would overwrite the file that is imported."
        assert (folder / "codes.csv").read_text() == "A1B2\n"

    def test_ctrl_c_ends_it_without_a_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("coupon_service.cli.application.run", interrupted)
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert raised.value.code == 130
