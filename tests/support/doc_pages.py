"""The pages of the documentation: generated parts, tested parts, links and names.

`make docs` updates the generated parts and `.env.example`. A generated part is enclosed in
`<!-- generated: name -->` and `<!-- /generated -->`, with a name of `GENERATORS`. A part that a
test runs literally is enclosed in `<!-- tested: name -->` and `<!-- /tested -->`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from support.doc_tables import GENERATORS, ROOT

from coupon_service.settings import env_example

GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- /generated -->)", re.DOTALL)
TESTED = re.compile(r"<!-- tested: (\w+) -->\n```\w+\n(.*?)```\n<!-- /tested -->", re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^]\[]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def pages() -> list[Path]:
    """All pages of the documentation."""
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    return [*(ROOT / name for name in names), *sorted((ROOT / "docs").glob("*.md"))]


def read(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def up_to_date(text: str) -> str:
    """The text with all generated parts updated. Raises KeyError for an unknown generator."""
    return GENERATED.sub(lambda it: f"{it[1]}{GENERATORS[it[2]]()}\n{it[4]}", text)


def literal_part(name: str) -> str:
    """The tested part with this name."""
    (found,) = (it[2] for page in pages() for it in TESTED.finditer(read(page)) if it[1] == name)
    return found


def shell_lines(name: str) -> list[str]:
    """The lines of the tested part with this name, without comments."""
    lines = literal_part(name).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fenced(text: str, language: str) -> list[str]:
    """The code blocks in this language."""
    return [it[2] for it in FENCED.finditer(text) if it[1] == language]


def prose(text: str) -> str:
    """The text without its code blocks."""
    return FENCED.sub("", text)


def links(text: str) -> list[str]:
    """The targets of links within the repository."""
    return [it for it in LINK.findall(prose(text)) if "://" not in it]


def names_in_code(text: str) -> list[str]:
    """Inline code in sentences and tables."""
    return CODE.findall(prose(text))


def anchors(text: str) -> set[str]:
    """The anchors of a page, which GitHub derives from its headings."""
    found: Counter[str] = Counter()

    def anchor(heading: str) -> str:
        name = re.sub(r"[^\w -]", "", LINK.sub(lambda it: it[0].split("]")[0][1:], heading))
        name = name.strip().lower().replace(" ", "-")
        found[name] += 1
        return name if found[name] == 1 else f"{name}-{found[name] - 1}"

    return set(map(anchor, headings(text)))


def headings(text: str) -> Iterator[str]:
    """The headings of a page, from the top."""
    return (it[1] for it in re.finditer(r"^#+ (.*)$", prose(text), re.MULTILINE))


if __name__ == "__main__":
    for page in pages():
        page.write_text(up_to_date(read(page)), encoding="utf-8")
    (ROOT / ".env.example").write_text(env_example(), encoding="utf-8")
