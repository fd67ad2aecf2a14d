"""The calls on the page of campaigns do what is said there.

Each tested block of the page whose name begins with `campaign_` runs on a service of its own. A
comment `# -> text` says what is printed by the command above it, and `# NAME: field` puts that
field of what is printed into a variable. After `# 31 days later` the clock of the service is so far
ahead, and what is said of the next command comes true soon. A command fails only where a reason of
an error is expected. Other comments are for the reader.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from support.command_line import COMMAND, TIMEOUT_S, environment
from support.doc_pages import ROOT, TESTED, read
from support.service import ServerThread, settings_for

from coupon_service.server import utc_now

PAGE = read(ROOT / "docs" / "campaigns.md")
BLOCKS = {it[1]: it[2] for it in TESTED.finditer(PAGE) if it[1].startswith("campaign_")}

EXPECTED = re.compile(r"# -> (.+)")
VARIABLE = re.compile(r"# ([A-Z_]+): (\w+)")
LATER = re.compile(r"# (\d+) days later")


@dataclass
class Step:
    """A command, what it prints, and the fields of it that later commands use."""

    command: str = ""
    expected: list[str] = field(default_factory=list[str])
    variables: dict[str, str] = field(default_factory=dict[str, str])
    days_later: int = 0

    @property
    def fails(self) -> bool:
        """Whether a reason of an error is expected."""
        return any(re.fullmatch("[A-Z_]+", text) for text in self.expected)


def steps(block: str) -> Iterator[Step]:
    """The commands of a block."""
    step = Step()
    said = False
    for line in block.splitlines():
        if expected := EXPECTED.fullmatch(line):
            step.expected.append(expected[1])
        elif variable := VARIABLE.fullmatch(line):
            step.variables[variable[1]] = variable[2]
        elif later := LATER.fullmatch(line):
            yield step
            step = Step(days_later=int(later[1]))
        elif said and not line.startswith("#"):
            yield step
            step = Step(f"{line}\n")
        elif not line.startswith("#"):
            step.command += f"{line}\n"
        said = line.startswith("# ") or (said and not line)
    yield step


def printed(step: Step, variables: dict[str, str]) -> str:
    """What a shell prints for a command, errors as well."""
    script = f'coupon-service() {{ {shlex.join(COMMAND)} "$@"; }}\n{step.command}'
    done = subprocess.run(
        ["bash", "-euc", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**variables),
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode != 0) == step.fails, f"{step.command}\n{done.stdout}"
    return done.stdout


def done(step: Step, variables: dict[str, str]) -> str:
    """What a command prints, which has to be what is expected, be it after a while."""
    patience_s = TIMEOUT_S if step.days_later else 0
    until = time.monotonic() + patience_s
    while True:
        try:
            output = printed(step, variables)
            for text in step.expected:
                assert text in output, f"{step.command}\n{output}"
        except AssertionError:
            if time.monotonic() > until:
                raise
        else:
            return output


@pytest.mark.parametrize("name", BLOCKS)
def test_calls_do_what_is_said(
    name: str, new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    ahead = timedelta()
    with (
        new_database() as database_url,
        ServerThread(settings_for(database_url, redis_url), lambda: utc_now() + ahead) as server,
    ):
        host, _, port = server.address.rpartition(":")
        variables = {"COUPON_HOST": host, "COUPON_PORT": port, "DATABASE_URL": database_url}
        for step in steps(BLOCKS[name]):
            ahead += timedelta(days=step.days_later)
            output = done(step, variables)
            for variable, of_field in step.variables.items():
                value = re.search(rf'"{of_field}": "([^"]+)"', output)
                assert value is not None, f"{step.command}\n{output}"
                variables[variable] = value[1]


def test_every_command_is_followed_by_what_it_prints() -> None:
    assert BLOCKS
    for block in BLOCKS.values():
        assert any(step.expected for step in steps(block))
