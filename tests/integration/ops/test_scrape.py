"""What Prometheus gets from a real service; the dashboard and the alerts ask for nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.calls import batch, item
from support.doc_tables import ALERTS, ROOT, alerts, metrics
from support.service import Api, books, euros, new_codes, refused, unique
from support.service_process import environment_of, fetch, serving
from support.waiting import until

DASHBOARD = ROOT / "deploy" / "grafana" / "coupon-service.json"
PROMTOOL = shutil.which("promtool")
NAME = re.compile(r"\b(?:coupon|process)_[a-z_]+\b")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not on the PATH (Debian and Ubuntu: apt install prometheus)",
)

Labels = dict[str, str]


@dataclass(frozen=True)
class Service:
    """A service with two workers and a folder of its own."""

    environment: dict[str, str]
    folder: Path

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.environment['COUPON_PORT']}"

    def scrape(self) -> str:
        """The text of /metrics; empty while there is nothing to answer."""
        return fetch(self.environment, "metrics")

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        """The samples of a name."""
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(self.scrape())
            for sample in family.samples
            if sample.name == name
        ]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        return sum(value for has, value in self.samples(name) if labels.items() <= has.items())

    def files(self) -> str:
        """The names of the files that the workers count into."""
        (folder,) = self.folder.glob("coupon-metrics-*")
        return " ".join(it.name for it in folder.iterdir())

    def workers(self) -> list[int]:
        """The ids of the worker processes."""
        return [int(pid) for pid in re.findall(r"gauge_livesum_(\d+)\.db", self.files())]


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """One that has been used: books, locks, redemptions, refusals, repeats."""
    folder = tmp_path_factory.mktemp("service")
    with new_database() as database_url:
        environment = {
            **environment_of(database_url, redis_server_url),
            "TMPDIR": str(folder),
            "COUPON_REDIS_TIMEOUT_MS": "1000",
            "COUPON_STOCK_INTERVAL_MS": "200",
        }
        it = Service(environment, folder)
        with serving(environment, folder):
            client = Api(it.address)
            use(client)
            client.close()
            until(lambda: it.total("coupon_book_low_threshold") > 0)
            yield it


def use(api: Api) -> None:
    """Redeems four codes, two of them in a batch, repeats one, and is refused three times."""
    codes = new_codes(4)
    api.book(codes=codes, lock_policy=books.LOCK_POLICY_OPTIONAL, low_threshold=100)
    token = api.lock(codes[0], "ann").lock_token
    for _ in range(2):
        api.redeem(codes[0], "ann", lock_token=token, request_id="once", order_amount=euros(900))
    with refused("CODE_ALREADY_REDEEMED"):
        api.redeem(codes[0], "bob", order_amount=euros(900))
    items = [item(code, "bob", order_amount=euros(900)) for code in (*codes[:3], unique("NONE"))]
    batch(api, items)
    api.redeem(codes[3], "cy", order_amount=euros(900))


def test_redemptions_are_counted_one_by_one_and_repeats_apart(service: Service) -> None:
    def redeemed(outcome: str, reason: str) -> float:
        labels = {"event": "REDEEMED", "outcome": outcome, "reason": reason}
        return service.total("coupon_commands_total", **labels)

    assert redeemed("done", "") == 4
    assert redeemed("replayed", "") == 1
    assert redeemed("refused", "CODE_ALREADY_REDEEMED") == 2
    assert redeemed("refused", "CODE_NOT_FOUND") == 1
    assert service.total("coupon_commands_total", event="LOCKED", outcome="done") == 1


def test_every_metric_has_the_name_the_labels_and_the_type_that_are_documented(
    service: Service,
) -> None:
    families = {it.name: it for it in text_string_to_metric_families(service.scrape())}
    documented = {name.removesuffix("_total"): rest for name, *rest in metrics()}
    assert {it for it in families if not it.startswith("process_")} == set(documented)
    for name, (kind, labels, meaning) in documented.items():
        family = families[name]
        assert (family.type, family.documentation) == (kind, meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), name


def test_the_dashboard_and_the_alerts_name_only_what_is_there(service: Service) -> None:
    there = {
        sample.name
        for family in text_string_to_metric_families(service.scrape())
        for sample in family.samples
    }
    named = {"alerts": set(NAME.findall(" ".join(it["expr"] for it in alerts())))}
    named["dashboard"] = set(NAME.findall(" ".join(expressions(json.loads(DASHBOARD.read_text())))))
    assert {what: names - there for what, names in named.items()} == {
        "alerts": set(),
        "dashboard": set(),
    }


def expressions(part: Any) -> Iterator[str]:
    """Every query of the dashboard."""
    if isinstance(part, dict):
        fields = cast("dict[str, Any]", part)
        yield from (fields[key] for key in ("expr", "query") if isinstance(fields.get(key), str))
        part = list(fields.values())
    if isinstance(part, list):
        for value in cast("list[Any]", part):
            yield from expressions(value)


def test_the_labels_of_the_alerts_have_values_that_there_are(service: Service) -> None:
    text = ALERTS.read_text()
    for name, value in set(re.findall(r'(kind|state|reason|method)="([^"]+)"', text)):
        if name == "state":
            assert service.total("coupon_workers", state=value) == 2
        elif name == "method":
            assert service.total("coupon_rpcs_total", method=value) > 0
        else:
            assert f"ERROR_REASON_{value}" in ERROR_REASONS


ERROR_REASONS = (ROOT / "proto/coupon_service/v1/error_reason.proto").read_text()


def test_workers_that_die_leave_their_counts_and_nothing_else(service: Service) -> None:
    before = service.total("coupon_rpcs_total")
    assert before > 0
    old = service.workers()
    assert len(old) == 2
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    until(lambda: service.total("coupon_worker_restarts_total") == 2)
    until(lambda: service.total("coupon_workers", state="ready") == 2)
    assert service.total("coupon_rpcs_total") == before
    assert service.total("coupon_batch_size_commands_count") > 0
    assert not any(str(pid) in service.files() for pid in old)
    names = [labels["process"] for labels, _ in service.samples("process_open_fds")]
    assert len(names) == len(set(names)) == 3
    assert "supervisor" in names
    until(lambda: service.total("coupon_book_low_threshold") == 100)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_a_scrape(service: Service) -> None:
    text = service.scrape().encode()
    checked = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@needs_promtool
@pytest.mark.parametrize(
    "command",
    ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts.test.yml"],
)
def test_promtool_finds_nothing_wrong_with_the_rules(command: str) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *command.split()],
        cwd=ALERTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_can_read_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": SUBSTITUTED.sub(substitute, expr)}
        for number, expr in enumerate(expressions(json.loads(DASHBOARD.read_text())))
        if not expr.startswith("label_values") and expr != "prometheus"
    ]
    assert len(rules) > 30
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [str(PROMTOOL), "check", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SUBSTITUTED = re.compile(r"\$(\w+)")


def substitute(variable: re.Match[str]) -> str:
    """What Grafana makes of a variable."""
    return "5m" if variable[1] == "__rate_interval" else ".*"


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tested = (ALERTS.parent / "alerts.test.yml").read_text()
    for alert in alerts():
        assert alert["alert"] in tested
        assert alert["severity"] in ("page", "ticket", "business")
        for text in ("summary", "meaning", "action"):
            assert alert[text].rstrip('"').endswith("."), alert["alert"]
