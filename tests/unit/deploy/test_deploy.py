"""The files of deploy/ match the service: settings, commands, ports, times, files."""

# typer and ruamel.yaml have incomplete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import SecretStr
from ruamel.yaml import YAML
from support.doc_tables import metrics

from coupon_service.cli.application import application
from coupon_service.process.supervisor import STOP_MARGIN_S
from coupon_service.settings import PREFIX, Purpose, Settings
from coupon_service.settings.constraints import conflicts

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"

OURS = ("migrate", "coupon-service")
"""The services of the compose file that run this program."""

TASKS = ("migrate", "service")


def compose() -> dict[str, Any]:
    """The compose file, with its anchors resolved."""
    return YAML(typ="safe").load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def ecs(name: str) -> dict[str, Any]:
    """A document of deploy/ecs."""
    return json.loads((DEPLOY / "ecs" / f"{name}.json").read_text(encoding="utf-8"))


def container(task: str) -> dict[str, Any]:
    """The one container of an ECS task."""
    (found,) = ecs(f"{task}-task")["containerDefinitions"]
    return found


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """The manifests of deploy/kubernetes/base by kind and name."""
    files = (DEPLOY / "kubernetes" / "base").glob("*.yaml")
    documents = (YAML(typ="safe").load_all(file.read_text(encoding="utf-8")) for file in files)
    return {
        (it["kind"], it["metadata"]["name"]): it
        for it in chain.from_iterable(documents)
        if it["kind"] != "Kustomization"
    }


def pod(kind: str, name: str) -> dict[str, Any]:
    """The pod specification of a manifest."""
    return manifests()[kind, name]["spec"]["template"]["spec"]


def pod_container(name: str) -> dict[str, Any]:
    """The container of `serve` or `migrate` on Kubernetes."""
    kinds = {
        "serve": ("Deployment", "coupon-service"),
        "migrate": ("Job", "coupon-service-migrate"),
    }
    (found,) = pod(*kinds[name])["containers"]
    return found


def pairs(container: Mapping[str, Any], field: str, value: str) -> dict[str, str]:
    """A list of names and values, as in ECS, as a dictionary."""
    return {it["name"]: it[value] for it in container.get(field, [])}


def variables(where: str) -> dict[str, str]:
    """The environment of a container of the service."""
    kind, _, name = where.partition(" ")
    if kind == "compose":
        return compose()["services"][name]["environment"]
    if kind == "kubernetes":
        return {it["name"]: it.get("value", "") for it in pod_container(name)["env"]}
    task = container(name)
    return pairs(task, "environment", "value") | pairs(task, "secrets", "valueFrom")


def command(where: str) -> list[str]:
    """The command of a container of the service."""
    kind, _, name = where.partition(" ")
    if kind == "kubernetes":
        return pod_container(name)["args"]
    return (compose()["services"][name] if kind == "compose" else container(name))["command"]


CONTAINERS = [
    *(f"compose {name}" for name in OURS),
    *(f"ecs {name}" for name in TASKS),
    *(f"kubernetes {name}" for name in ("migrate", "serve")),
]


def is_secret(variable: str) -> bool:
    """Whether the setting is a secret."""
    field = Settings.model_fields[variable.removeprefix(PREFIX).lower()]
    return SecretStr in get_args(field.annotation)


def seconds(duration: str) -> int:
    """A duration of a compose file, in seconds."""
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(number) * (60 if unit == "m" else 1)


def stop_takes_s(given: Mapping[str, str]) -> float:
    """The longest time that a service with these variables takes to stop."""
    names = ("COUPON_DRAIN_GRACE_MS", "COUPON_SHUTDOWN_TIMEOUT_MS")
    defaults = (Settings.model_fields[name.removeprefix(PREFIX).lower()].default for name in names)
    times = (int(given.get(name, default)) for name, default in zip(names, defaults, strict=True))
    return sum(times) / 1000 + STOP_MARGIN_S


def test_compose_file_is_valid() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*checker, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("where", CONTAINERS)
def test_each_variable_is_a_setting(where: str) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(variables(where)) <= known


@pytest.mark.parametrize("where", CONTAINERS)
def test_each_value_is_valid(where: str) -> None:
    values = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in variables(where).items()
        if not is_secret(name)
    }
    settings = Settings(_env_file=None, **values)  # pyright: ignore[reportCallIssue]
    assert not [*conflicts(settings, Purpose.SERVE)]


@pytest.mark.parametrize("where", CONTAINERS)
def test_each_command_exists(where: str) -> None:
    found: Any = typer.main.get_command(application())
    for word in command(where):
        found = found.commands[word]
    assert not hasattr(found, "commands"), "that is a group of commands"


@pytest.mark.parametrize("where", ["compose coupon-service", "ecs service"])
def test_required_settings_are_set(where: str) -> None:
    needed = {"COUPON_DATABASE_URL", "COUPON_REDIS_URL", "COUPON_LOCK_TOKEN_SECRET"}
    assert needed <= set(variables(where))


def test_no_file_contains_a_secret() -> None:
    for name, service in compose()["services"].items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable or (variable.startswith(PREFIX) and is_secret(variable)):
                assert re.search(r"\$\{[A-Z_]+:\?\}", value), f"{name}: {variable}"
    for task in TASKS:
        plain = pairs(container(task), "environment", "value")
        assert not [variable for variable in plain if is_secret(variable)]
        secrets = pairs(container(task), "secrets", "valueFrom")
        assert all(is_secret(variable) for variable in secrets)
        assert all(value.startswith("arn:aws:secretsmanager:") for value in secrets.values())


def test_ecs_service_requires_authentication() -> None:
    assert variables("ecs service")["COUPON_AUTH"] == "jwt"
    assert "COUPON_JWT_SECRET" in variables("ecs service")


def test_compose_ports_are_published_on_loopback_only() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_ports_match_the_settings() -> None:
    port = Settings.model_fields["port"].default
    metrics_port = Settings.model_fields["metrics_port"].default
    (published,) = compose()["services"]["coupon-service"]["ports"]
    assert published.endswith(f":{port}")
    mapped = {it["name"]: it["containerPort"] for it in container("service")["portMappings"]}
    assert mapped == {"grpc": port, "metrics": metrics_port}
    (balancer,) = ecs("service")["loadBalancers"]
    assert balancer["containerName"] == container("service")["name"]
    assert balancer["containerPort"] == port
    exposed = re.findall(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed == [f"{port} {metrics_port}"]


def test_containers_have_time_to_drain() -> None:
    service = compose()["services"]["coupon-service"]
    assert seconds(service["stop_grace_period"]) >= stop_takes_s(service["environment"])
    task = container("service")
    given = pairs(task, "environment", "value")
    assert stop_takes_s(given) <= task["stopTimeout"] <= 120  # what Fargate allows


def test_pods_have_time_to_drain() -> None:
    grace_s = pod("Deployment", "coupon-service")["terminationGracePeriodSeconds"]
    assert stop_takes_s(variables("kubernetes serve")) <= grace_s


def test_probes_use_the_listening_ports() -> None:
    container = pod_container("serve")
    ports = {it["name"]: it["containerPort"] for it in container["ports"]}
    fields = Settings.model_fields
    assert ports == {"grpc": fields["port"].default, "metrics": fields["metrics_port"].default}
    assert container["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    # An outage of PostgreSQL must not restart pods: /healthz does not depend on it.
    for probe in ("livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}


def test_pods_can_write_to_tmp_only() -> None:
    for name in ("serve", "migrate"):
        container = pod_container(name)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [it["mountPath"] for it in container["volumeMounts"]] == ["/tmp"]


def test_rollout_and_node_drain_keep_pods_serving() -> None:
    found = manifests()
    rollout = found["Deployment", "coupon-service"]["spec"]["strategy"]["rollingUpdate"]
    assert rollout["maxUnavailable"] == 0
    assert found["HorizontalPodAutoscaler", "coupon-service"]["spec"]["minReplicas"] >= 2
    assert found["PodDisruptionBudget", "coupon-service"]["spec"]["maxUnavailable"] == 1


def test_each_selector_matches_the_pods() -> None:
    found = manifests()
    labels = found["Deployment", "coupon-service"]["spec"]["template"]["metadata"]["labels"]
    labels = labels | {"app.kubernetes.io/name": "coupon-service"}  # by the kustomization
    selectors = [
        found["Deployment", "coupon-service"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget", "coupon-service"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy", "coupon-service"]["spec"]["podSelector"]["matchLabels"],
        found["Service", "coupon-service"]["spec"]["selector"],
        found["Service", "coupon-service-headless"]["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()


def test_two_replicas_stay_during_a_deployment() -> None:
    assert compose()["services"]["coupon-service"]["deploy"]["replicas"] >= 2
    service = ecs("service")
    assert service["desiredCount"] >= 2
    assert service["taskDefinition"] == ecs("service-task")["family"]
    rollout = service["deploymentConfiguration"]
    assert rollout["minimumHealthyPercent"] >= 100
    assert rollout["maximumPercent"] > 100


def test_only_the_migration_has_the_secret_of_the_owner() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for task, secret in (("migrate", "coupon-service-owner"), ("service", "coupon-service")):
        for reference in pairs(container(task), "secrets", "valueFrom").values():
            _, _, name = reference.partition(":secret:")
            assert name.split(":")[0] == secret
            assert f"`{name.split(':')[1]}`" in text
    (migrated,) = pod_container("migrate")["env"]
    assert migrated["valueFrom"]["secretKeyRef"]["name"] == "coupon-service-owner"
    (served,) = pod_container("serve")["envFrom"]
    assert served["secretRef"]["name"] == "coupon-service"
    overlay = DEPLOY / "kubernetes" / "overlays" / "production" / "kustomization.yaml"
    created = re.findall(r"create secret generic (\S+)", overlay.read_text(encoding="utf-8"))
    assert created == ["coupon-service-owner", "coupon-service"]


def test_the_dashboard_shows_every_metric() -> None:
    text = (DEPLOY / "grafana" / "coupon-service.json").read_text(encoding="utf-8")
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"coupon_\w+", text)}
    assert {name for name, *_ in metrics()} - shown == set()


def test_containers_can_write_to_tmp_only() -> None:
    for name in OURS:
        service = compose()["services"][name]
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
    for name in TASKS:
        task, mount = container(name), {"sourceVolume": "tmp", "containerPath": "/tmp"}
        assert task["readonlyRootFilesystem"]
        assert task["mountPoints"] == [{**mount, "readOnly": False}]
        assert ecs(f"{name}-task")["volumes"] == [{"name": "tmp"}]


def test_ecs_uses_the_health_check_of_the_image() -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    (found,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    image: list[str] = json.loads(found)
    assert container("service")["healthCheck"]["command"] == ["CMD", *image]
    assert "healthcheck" not in compose()["services"]["coupon-service"]
    assert image[0] == "coupon-service"
    assert image[1] in typer.main.get_command(application()).commands  # pyright: ignore[reportAttributeAccessIssue]


def test_mounts_and_dependencies_exist() -> None:
    whole = compose()
    for name, service in whole["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            known = (DEPLOY / source).exists() if source[0] == "." else source in whole["volumes"]
            assert known, f"{name}: {mount}"
        assert set(service.get("depends_on", [])) <= set(whole["services"]), name


def test_prometheus_and_grafana_find_their_sources() -> None:
    services = compose()["services"]
    (source,) = YAML(typ="safe").load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    assert source["url"] == "http://prometheus:9090"
    scraped = YAML(typ="safe").load((DEPLOY / "prometheus/prometheus.yml").read_text())
    port = Settings.model_fields["metrics_port"].default
    text = json.dumps(scraped["scrape_configs"])
    assert re.findall(r"coupon-service", text)
    assert str(port) in text
    assert {"prometheus", "grafana", "coupon-service"} <= set(services)
    dashboard = json.loads((DEPLOY / "grafana/coupon-service.json").read_text(encoding="utf-8"))
    uids = set(re.findall(r'"datasource": \{[^}]*"uid": "([^"]*)"', json.dumps(dashboard)))
    assert all(uid in (source["uid"], "-- Grafana --") or uid.startswith("$") for uid in uids)
