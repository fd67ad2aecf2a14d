"""The pages of the documentation are up to date, and their links and names are valid."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from support.doc_pages import (
    GENERATED,
    anchors,
    fenced,
    headings,
    links,
    names_in_code,
    pages,
    prose,
    read,
    up_to_date,
)
from support.doc_tables import GENERATORS, PACKAGE, ROOT, alerts, commands, metrics

from coupon_service.settings import PREFIX, TOKEN_VARIABLE, Settings

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}

SUFFIXES = (".py", ".sql", ".lua", ".proto", ".md", ".toml", ".yml", ".yaml", ".json", ".svg")

every_page = pytest.mark.parametrize("name", PAGES)


@every_page
def test_generated_parts_are_up_to_date(name: str) -> None:
    text = read(PAGES[name])
    assert up_to_date(text) == text, "run make docs"


@every_page
def test_markers_are_balanced(name: str) -> None:
    marks = re.findall(r"^<!-- (/?\w+)(?:: \w+)? -->$", read(PAGES[name]), re.MULTILINE)
    assert marks[1::2] == [f"/{it}" for it in marks[::2]]


def test_each_generator_is_used_on_one_page() -> None:
    found = [it[2] for page in pages() for it in GENERATED.finditer(read(page))]
    assert sorted(found) == sorted(GENERATORS)


def test_update_changes_generated_parts_only() -> None:
    text = read(ROOT / "docs" / "api.md")
    spoiled = text.replace("| RedemptionService | RedeemCode |", "| RedemptionService | Redeem |")
    assert spoiled != text
    assert up_to_date(spoiled) == text


def test_unknown_generator_is_refused() -> None:
    with pytest.raises(KeyError):
        up_to_date("<!-- generated: nothing -->\n<!-- /generated -->")


@every_page
def test_each_link_has_a_target(name: str) -> None:
    page = PAGES[name]
    for link in links(read(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(read(target)), link


def test_readme_links_to_each_page() -> None:
    reached = {
        (ROOT / link.partition("#")[0]).resolve() for link in links(read(ROOT / "README.md"))
    }
    assert set(pages()) - {ROOT / "README.md"} <= reached


def test_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 130


@every_page
def test_each_named_file_exists(name: str) -> None:
    for named in names_in_code(read(PAGES[name])):
        if is_path(named):
            assert any((top / named).exists() for top in (ROOT, PACKAGE)), named


def is_path(named: str) -> bool:
    """Whether it is the path of a file or folder, relative to the repository or the package."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", named) or is_ignored(named):
        return False
    first = named.split("/", maxsplit=1)[0]
    in_folder = any((top / first).is_dir() for top in (ROOT, PACKAGE))
    return named.endswith(".py") or ("/" in named and (named.endswith(SUFFIXES) or in_folder))


def is_ignored(named: str) -> bool:
    """Whether git ignores it, since a command generates it."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return named.startswith(tuple(it[1:] for it in lines if it.startswith("/")))


@every_page
def test_each_named_make_target_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`(?:\S+=\S+ )?make ([a-z0-9-]+)", prose(read(PAGES[name]))):
        assert f"\n{target}:" in makefile, target


@every_page
def test_each_named_setting_exists(name: str) -> None:
    known = {f"{PREFIX}{it}".upper() for it in Settings.model_fields} | {TOKEN_VARIABLE}
    for named in re.findall(r"\bCOUPON_[A-Z][A-Z_]*\b", read(PAGES[name])):
        assert named in known or named.startswith("COUPON_TEST_"), named


@every_page
def test_each_named_metric_exists(name: str) -> None:
    known = {it for it, *_ in metrics()} | tables() | {"coupon_service"}
    for named in names_in_code(read(PAGES[name])):
        for word in re.findall(r"^coupon_[a-z_]+", named):
            assert word in known, word


@every_page
def test_each_named_command_exists(name: str) -> None:
    known = {it for it, _ in commands()} | {it.split()[0] for it, _ in commands()}
    text = read(PAGES[name])
    for named in (*names_in_code(text), *fenced(text, "sh")):
        for command in re.findall(r"\bcoupon-service ([a-z]+(?: up| down| status)?)", named):
            assert command in known, command


def tables() -> set[str]:
    """The tables of the schema."""
    steps = "".join(it.read_text(encoding="utf-8") for it in (ROOT / "migrations").glob("*.sql"))
    return set(re.findall(r"CREATE TABLE (\w+)", steps))


def test_architecture_lists_each_table() -> None:
    text = read(ROOT / "docs" / "architecture.md")
    section = text.split("\n## Tables\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == tables()


class TestRunbook:
    TEXT = read(ROOT / "docs" / "runbook.md")

    def test_each_alert_has_an_entry(self) -> None:
        assert list(headings(self.TEXT))[1:] == [it["alert"] for it in alerts()]

    def test_each_alert_links_to_its_entry(self) -> None:
        for alert in alerts():
            path, _, anchor = alert["runbook"].partition("#")
            assert (ROOT / path, anchor) == (ROOT / "docs" / "runbook.md", alert["alert"].lower())
            assert anchor in anchors(self.TEXT)

    def test_each_entry_has_meaning_and_action(self) -> None:
        for entry in self.TEXT.split("\n## ")[1:]:
            assert "**Means.**" in entry, entry
            assert "**Look at" in entry, entry
            assert re.search(r"\*\*Do\.\*\*|\*\*Look at and do\*\*", entry), entry

    def test_quoted_panels_and_log_lines_exist(self) -> None:
        dashboard = (ROOT / "deploy" / "grafana" / "coupon-service.json").read_text("utf-8")
        known = {it["title"] for it in json.loads(dashboard)["panels"]} | strings_of(PACKAGE)
        for quoted in re.findall(r'"([^"\n]+)"', prose(self.TEXT).replace("\n", " ")):
            assert quoted in known, quoted


def strings_of(folder: Path) -> set[str]:
    """All string literals in the code of a folder."""
    trees = (ast.parse(it.read_text(encoding="utf-8")) for it in folder.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {it.value for it in nodes if isinstance(it, ast.Constant) and isinstance(it.value, str)}
