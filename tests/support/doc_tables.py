"""The parts of README.md that follow from the code.

`python tests/support/doc_tables.py` brings them up to date. A part stands between `<!-- name -->`
and `<!-- /name -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from coupon_service.cli.client import RETRIES
from coupon_service.cli.session import session
from coupon_service.rpc.authorization import ACCESS, Role, methods_of
from coupon_service.settings import settings_table
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.multiprocess import Service, Workers
from coupon_service.telemetry.replica_gauges import ReplicaGauges

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PROTO = ROOT / "proto" / "coupon_service" / "v1"

SERVICES = ("coupon_book", "coupon_code", "assignment", "redemption", "audit")


def rpc_table() -> str:
    """Every method, with the first sentence of its comment."""
    lines = ["| Service | Method | What it does |", "| --- | --- | --- |"]
    for name in SERVICES:
        text = (PROTO / f"{name}_service.proto").read_text(encoding="utf-8")
        (service,) = re.findall(r"^service (\w+) \{", text, re.MULTILINE)
        for comment, method in _commented(text, r"rpc (\w+)\("):
            lines.append(f"| {service} | {method} | {first_sentence(comment)} |")
    return "\n".join(lines)


def access_table() -> str:
    """Which role may call which method."""
    roles = list(Role)
    lines = [f"| Method | {' | '.join(roles)} |", f"| --- |{' --- |' * len(roles)}"]
    for method in ACCESS:
        marks = ("yes" if method in methods_of(frozenset({role})) else "" for role in roles)
        lines.append(f"| {method} | {' | '.join(marks)} |")
    return "\n".join(lines)


def reasons_table() -> str:
    """Every reason with its status, as its comment has them."""
    lines = ["| Status | Reason | When |", "| --- | --- | --- |"]
    text = (PROTO / "error_reason.proto").read_text(encoding="utf-8")
    for comment, reason in _commented(text, r"ERROR_REASON_(\w+) = [1-9]\d*;"):
        status, when = re.findall(r"^\[(\w+)\] (.*)$", comment)[0]
        lines.append(f"| {status} | {reason} | {when} |")
    return "\n".join(lines)


def metrics() -> Iterator[tuple[str, str, Sequence[str], str]]:
    """Every metric of our own: its name, type, labels and meaning."""
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
    """Every metric of our own."""
    lines = ["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for name, kind, labels, meaning in metrics():
        lines.append(f"| `{name}` | {kind} | {', '.join(labels)} | {meaning} |")
    return "\n".join(lines)


def alerts() -> list[Mapping[str, str]]:
    """The alerts of alerts.yml, whose every value stands in one line."""
    text = ALERTS.read_text(encoding="utf-8")
    found: list[Mapping[str, str]] = []
    for block in text.split("\n      - ")[1:]:
        fields: dict[str, str] = dict(re.findall(r"^ *(\w+): (.+)$", block, re.MULTILINE))
        fields["severity"] = re.findall(r"severity: (\w+)", fields["labels"])[0]
        found.append(fields)
    return found


def alerts_table() -> str:
    """Every alert, what it means, and what to do."""
    lines = ["| Alert | Severity | What it means | What to do |", "| --- | --- | --- | --- |"]
    for alert in alerts():
        meaning = re.sub(r"{{ \$(?:labels\.)?(\w+) }}", r"*\1*", alert["summary"])
        meaning += " " + alert["meaning"]
        lines.append(f"| {alert['alert']} | {alert['severity']} | {meaning} | {alert['action']} |")
    return "\n".join(lines)


def _commented(text: str, pattern: str) -> Iterator[tuple[str, str]]:
    """What matches the pattern, with the comment right above it."""
    for comment, name in re.findall(rf"((?:^ *//.*\n)+) *{pattern}", text, re.MULTILINE):
        yield " ".join(re.sub(r"^ *//", "", comment, flags=re.MULTILINE).split()), name


def first_sentence(comment: str) -> str:
    """Up to the first full stop that ends something."""
    return re.split(r"(?<=[.])\s", comment, maxsplit=1)[0]


PARTS: Mapping[str, Callable[[], str]] = {
    "session": lambda: f"```sh\n{session('127.0.0.1:50051', '.venv/bin/coupon-service')}\n```",
    "rpcs": rpc_table,
    "access": access_table,
    "reasons": reasons_table,
    "retries": lambda: f"```json\n{RETRIES}\n```",
    "metrics": metrics_table,
    "alerts": alerts_table,
    "settings": lambda: settings_table().strip(),
}


def up_to_date(readme: str) -> str:
    """The text with all parts as they are to be."""
    for name, render in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        part = f"{render()}\n"
        readme, count = pattern.subn(lambda found, part=part: found[1] + part + found[2], readme)
        assert count == 1, f"README.md has the part {name} {count} times"
    return readme


if __name__ == "__main__":
    README.write_text(up_to_date(README.read_text(encoding="utf-8")), encoding="utf-8")
