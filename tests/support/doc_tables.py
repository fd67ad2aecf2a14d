"""Generated tables of the documentation, from the code, the contract and the alerts.

`make docs` inserts them into the pages (`support/doc_pages.py`).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry

from coupon_service.batching.settings import BatchingSettings
from coupon_service.cli.application import application
from coupon_service.cli.client import RETRIES
from coupon_service.cli.session import session
from coupon_service.rpc.authorization import methods_of
from coupon_service.rpc.methods import METHODS, LookUp, Role
from coupon_service.settings import Settings, settings_table
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.multiprocess import Service, Workers
from coupon_service.telemetry.replica_gauges import ReplicaGauges

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "coupon_service"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PROTO = ROOT / "proto" / "coupon_service" / "v1"

SERVICES = ("coupon_book", "coupon_code", "assignment", "redemption", "audit")


def rpc_table() -> str:
    """All methods, with the first sentence of their comments."""
    lines = ["| Service | Method | What it does |", "| --- | --- | --- |"]
    for name in SERVICES:
        text = (PROTO / f"{name}_service.proto").read_text(encoding="utf-8")
        (service,) = re.findall(r"^service (\w+) \{", text, re.MULTILINE)
        for comment, method in _commented(text, r"rpc (\w+)\("):
            lines.append(f"| {service} | {method} | {first_sentence(comment)} |")
    return "\n".join(lines)


def access_table() -> str:
    """Roles and rate class of each method, and whether it looks up codes."""
    roles = list(Role)
    columns = ["Method", *roles, "Rate class", "Looks up codes"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, method in METHODS.items():
        marks = ("yes" if name in methods_of(frozenset({role})) else "" for role in roles)
        look_up = "" if method.look_up is LookUp.NONE else "yes"
        lines.append(f"| {' | '.join([name, *marks, method.rate_class, look_up])} |")
    return "\n".join(lines)


def reasons_table() -> str:
    """All reasons with their statuses, from their comments."""
    lines = ["| Status | Reason | When |", "| --- | --- | --- |"]
    text = (PROTO / "error_reason.proto").read_text(encoding="utf-8")
    for comment, reason in _commented(text, r"ERROR_REASON_(\w+) = [1-9]\d*;"):
        status, when = re.findall(r"^\[(\w+)\] (.*)$", comment)[0]
        lines.append(f"| {status} | {reason} | {when} |")
    return "\n".join(lines)


def metrics() -> Iterator[tuple[str, str, Sequence[str], str]]:
    """The metrics of the service: name, type, labels and help text."""
    registry = CollectorRegistry()
    Metrics(registry)
    for collector in registry._collector_to_names:  # pyright: ignore[reportPrivateUsage]
        of_it: Any = collector
        suffix = "_total" if of_it._type == "counter" else ""
        yield of_it._name + suffix, of_it._type, of_it._labelnames, of_it._documentation
    of_service = Service(lambda: Workers(configured=1, ready=1, restarts=0, pids={}))
    for family in chain(ReplicaGauges().describe(), of_service.collect()):
        of_it = family
        suffix = "_total" if of_it.type == "counter" else ""
        yield of_it.name + suffix, of_it.type, of_it._labelnames, of_it.documentation


def metrics_table() -> str:
    """The table of the metrics of the service."""
    lines = ["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for name, kind, labels, meaning in metrics():
        lines.append(f"| `{name}` | {kind} | {', '.join(labels)} | {meaning} |")
    return "\n".join(lines)


def alerts() -> list[Mapping[str, str]]:
    """The alerts of alerts.yml, in which each value is on one line."""
    text = ALERTS.read_text(encoding="utf-8")
    found: list[Mapping[str, str]] = []
    for block in text.split("\n      - ")[1:]:
        fields: dict[str, str] = dict(re.findall(r"^ *(\w+): (.+)$", block, re.MULTILINE))
        fields["severity"] = re.findall(r"severity: (\w+)", fields["labels"])[0]
        found.append(fields)
    return found


def alerts_table() -> str:
    """All alerts with meaning and first action. The name links to the runbook."""
    lines = ["| Alert | Severity | What it means | What to do |", "| --- | --- | --- | --- |"]
    for alert in alerts():
        name, action = alert["alert"], alert["action"]
        meaning = re.sub(r"{{ \$(?:labels\.)?(\w+) }}", r"*\1*", alert["summary"])
        meaning += " " + alert["meaning"]
        link = f"[{name}](runbook.md#{name.lower()})"
        lines.append(f"| {link} | {alert['severity']} | {meaning} | {action} |")
    return "\n".join(lines)


# --- the command line ----------------------------------------------------------------------------

SHARED = 4
"""An option of so many commands is described once for all of them."""


def commands() -> Iterator[tuple[str, Any]]:
    """All commands of the command line by name, those of groups included."""

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for child, it in command.commands.items():
            yield from below(f"{name} {child}".strip(), it)

    return below("", typer.main.get_command(application()))


OWN_WORDS = ("--dry-run",)
"""Options that several commands have, and each says of it what it would do."""


def commands_section() -> str:
    """All commands: usage, description, and the options that are not shared."""
    shared = _shared_options()
    parts: list[str] = []
    for name, command in commands():
        arguments = [it for it in command.params if not it.opts[0].startswith("-")]
        own = [it for it in command.params if it not in arguments and it.opts[0] not in shared]
        words = (_value(it) if it.required else f"[{_value(it)}]" for it in arguments)
        parts.append(f"### {name}\n\n    {' '.join(('coupon-service', name, *words))}\n")
        parts.append(f"{_paragraphs(command.help)}\n")
        if arguments or own:
            parts.append(_option_table(arguments + own) + "\n")
    return "\n".join(parts).rstrip()


def shared_options_table() -> str:
    """The options that several commands share."""
    return _option_table(list(_shared_options().values()))


def _shared_options() -> Mapping[str, Any]:
    options: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for _, command in commands():
        for it in command.params:
            options[it.opts[0]] = it
            counts[it.opts[0]] += 1
    return {
        name: it
        for name, it in options.items()
        if name.startswith("--") and counts[name] >= SHARED and name not in OWN_WORDS
    }


def _option_table(parameters: Sequence[Any]) -> str:
    lines = ["| Option | Meaning |", "| --- | --- |"]
    for it in parameters:
        is_option = it.opts[0].startswith("-")
        words = (it.opts[0] if is_option else "", "" if is_option and it.is_flag else _value(it))
        meaning = it.help
        if is_option and it.required:
            meaning += " Required."
        elif it.default and it.show_default:
            meaning += f" Default: {it.default}."
        if it.envvar:
            meaning += f" Or from `{it.envvar}`."
        lines.append(f"| `{' '.join(filter(None, words))}` | {meaning} |")
    return "\n".join(lines)


def _value(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _paragraphs(text: str) -> str:
    """Its paragraphs; one that is a command is code."""
    paragraphs = (" ".join(it.split()) for it in text.split("\n\n"))
    commands = ("coupon-service ", "export ")
    return "\n\n".join(f"    {it}" if it.startswith(commands) else it for it in paragraphs)


# --- the code ------------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    """The layers of the package from the top, from the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layered,) = (it for it in contracts if it["type"] == "layers")
    return [layer.split(" : ") for layer in layered["layers"]]


def layers_table() -> str:
    """All packages in the order of the layers, with their modules."""
    lines = ["| Layer | Room | What it is for | Modules |", "| --- | --- | --- | --- |"]
    for number, names in enumerate(layers()):  # the one above, number 0, is __main__
        for name in names:
            if name in ("__main__", "v1"):
                continue
            lines += (f"| {number} | {row} |" for row in _rooms(name))
    return "\n".join(lines)


def _rooms(name: str) -> Iterator[str]:
    """A module, or a package and the packages in it, as cells of a table."""
    folder = PACKAGE / name
    if not folder.is_dir():
        yield f"`{name}.py` | {_summary(folder.with_suffix('.py'))} |"
        return
    modules = sorted(it.stem for it in folder.glob("*.py") if it.stem != "__init__")
    listed = ", ".join(f"`{it}`" for it in modules)
    yield f"`{name}` | {_summary(folder / '__init__.py')} | {listed}"
    for child in sorted(folder.iterdir()):
        if (child / "__init__.py").exists():
            yield from _rooms(f"{name}/{child.name}")


def batching_table() -> str:
    """The sizes and delays of batching that are not settings of the service."""
    text = (PACKAGE / "batching" / "settings.py").read_text(encoding="utf-8")
    (settings,) = (
        it
        for it in ast.parse(text).body
        if isinstance(it, ast.ClassDef) and it.name == BatchingSettings.__name__
    )
    defaults = BatchingSettings()
    lines = ["| Name | Value | Meaning |", "| --- | --- | --- |"]
    for it, after in pairwise(settings.body):
        match it, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(meaning))):
                if name not in Settings.model_fields:
                    value = getattr(defaults, name)
                    lines.append(f"| `{name}` | {value} | {' '.join(meaning.split())} |")
            case _:
                pass
    return "\n".join(lines)


def _summary(file: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return first_sentence(" ".join(text.split()).replace("``", "`"))


def _commented(text: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Matches of the pattern, with the comment right above them."""
    for comment, name in re.findall(rf"((?:^ *//.*\n)+) *{pattern}", text, re.MULTILINE):
        yield " ".join(re.sub(r"^ *//", "", comment, flags=re.MULTILINE).split()), name


def first_sentence(comment: str) -> str:
    """The text up to the first full stop that is followed by a space."""
    return re.split(r"(?<=[.])\s", comment, maxsplit=1)[0]


GENERATORS: Mapping[str, Callable[[], str]] = {
    "session": lambda: f"```sh\n{session('127.0.0.1:50051', '.venv/bin/coupon-service')}\n```",
    "rpcs": rpc_table,
    "access": access_table,
    "reasons": reasons_table,
    "retries": lambda: f"```json\n{RETRIES}\n```",
    "metrics": metrics_table,
    "alerts": alerts_table,
    "settings": lambda: settings_table().strip(),
    "commands": commands_section,
    "shared_options": shared_options_table,
    "layers": layers_table,
    "batching": batching_table,
}
"""The renderers of generated parts, by the names of their markers."""
