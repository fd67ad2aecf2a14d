from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.waiting import until

from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.metrics_http import MetricsServer, MetricsServerError, serve_metrics

LABELS = {
    "kind",
    "method",
    "status",
    "reason",
    "pool",
    "le",
    "event",
    "outcome",
    "transport",
    "fault",
    "shard",
    "table",
    "answered_by",
}
COMMAND: tuple[str, ...] = ("event", "outcome", "reason")
REDEEM = "RedemptionService/RedeemCode"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=60)  # the server drops a silent client after 10
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class TestMetrics:
    def test_calls_are_timed_by_status_and_counted_by_reason(
        self, metrics: Metrics, registry: CollectorRegistry
    ) -> None:
        metrics.rpcs_finished(REDEEM, "OK", "", [0.004, 0.006, 0.005])
        metrics.rpcs_finished(REDEEM, "FAILED_PRECONDITION", "CODE_LOCKED", [20.0])
        ok = {"method": REDEEM, "status": "OK", "transport": "call"}
        locked = {"method": REDEEM, "status": "FAILED_PRECONDITION", "transport": "call"}
        value = registry.get_sample_value
        assert value("coupon_rpcs_total", ok | {"reason": ""}) == 3
        assert value("coupon_rpcs_total", locked | {"reason": "CODE_LOCKED"}) == 1
        assert value("coupon_rpc_duration_seconds_sum", ok) == pytest.approx(0.015)
        assert value("coupon_rpc_duration_seconds_bucket", ok | {"le": "0.0025"}) == 0
        assert value("coupon_rpc_duration_seconds_bucket", ok | {"le": "0.005"}) == 2
        assert value("coupon_rpc_duration_seconds_bucket", ok | {"le": "0.01"}) == 3
        assert value("coupon_rpc_duration_seconds_bucket", locked | {"le": "10.0"}) == 0
        assert value("coupon_rpc_duration_seconds_count", locked) == 1

    def test_operations_of_streams_are_counted_apart_from_calls(
        self, metrics: Metrics, registry: CollectorRegistry
    ) -> None:
        metrics.operations_finished(REDEEM, "OK", "", [0.004, 0.006])
        metrics.streams_changed(7)
        ok = {"method": REDEEM, "status": "OK", "transport": "stream"}
        value = registry.get_sample_value
        assert value("coupon_rpcs_total", ok | {"reason": ""}) == 2
        assert value("coupon_rpc_duration_seconds_count", ok) == 2
        assert value("coupon_rpcs_total", ok | {"reason": "", "transport": "call"}) is None
        assert value("coupon_streams") == 7

    def test_every_event_is_counted_in_its_metric(
        self, metrics: Metrics, registry: CollectorRegistry
    ) -> None:
        metrics.batch_executed("changes", 60, 0.02)
        metrics.batch_waited("changes", 0.003)
        metrics.queue_changed("changes", 7)
        metrics.queue_changed("changes", -2)
        metrics.command_dropped("changes", "OVERLOADED")
        metrics.transaction_finished(0.1)
        metrics.transaction_conflicted("deadlock", retried=True)
        metrics.transaction_conflicted("deadlock", retried=False)
        metrics.pool_sampled("main", connections=4, idle=1, waiting=2)
        done, refused = ("REDEEMED", "done", ""), ("REDEEMED", "refused", "CODE_LOCKED")
        metrics.commands_decided({done: 40, refused: 2})
        metrics.commands_decided({done: 5})
        metrics.redis_exchanged(0.0004)
        metrics.redis_failed("silent")
        metrics.lock_lost()
        metrics.book_event("BOOK_USED_UP")
        metrics.ledger_found("ROW_CHANGED")
        metrics.guess_alarm("user")
        metrics.rate_limit_unchecked()
        metrics.refusals_written(3)
        metrics.refusals_dropped("full", 2)
        metrics.replica_probed(0.25)
        metrics.replica_read("primary", "behind")
        for name, labels, expected in [
            ("coupon_batch_size_commands_sum", {"kind": "changes"}, 60),
            ("coupon_batch_duration_seconds_sum", {"kind": "changes"}, 0.02),
            ("coupon_batch_wait_seconds_sum", {"kind": "changes"}, 0.003),
            ("coupon_queue_length", {"kind": "changes"}, 5),
            ("coupon_commands_dropped_total", {"kind": "changes", "reason": "OVERLOADED"}, 1),
            ("coupon_transaction_duration_seconds_count", {}, 1),
            ("coupon_transaction_conflicts_total", {"reason": "deadlock"}, 2),
            ("coupon_transaction_retries_total", {}, 1),
            ("coupon_pool_connections", {"pool": "main"}, 4),
            ("coupon_pool_idle_connections", {"pool": "main"}, 1),
            ("coupon_pool_waiting", {"pool": "main"}, 2),
            ("coupon_commands_total", dict(zip(COMMAND, done, strict=True)), 45),
            ("coupon_commands_total", dict(zip(COMMAND, refused, strict=True)), 2),
            ("coupon_redis_duration_seconds_bucket", {"le": "0.0005"}, 1),
            ("coupon_redis_duration_seconds_bucket", {"le": "0.00025"}, 0),
            ("coupon_redis_errors_total", {"kind": "silent"}, 1),
            ("coupon_locks_lost_total", {}, 1),
            ("coupon_book_events_total", {"event": "BOOK_USED_UP"}, 1),
            ("coupon_ledger_findings_total", {"fault": "ROW_CHANGED"}, 1),
            ("coupon_ledger_findings_total", {"fault": "SEAL_MISSING"}, 0),
            ("coupon_guess_alarms_total", {"kind": "user"}, 1),
            ("coupon_guess_alarms_total", {"kind": "peer"}, 0),
            ("coupon_rate_limit_unchecked_total", {}, 1),
            ("coupon_refusals_written_total", {}, 3),
            ("coupon_refusals_dropped_total", {"reason": "full"}, 2),
            ("coupon_refusals_dropped_total", {"reason": "failed"}, 0),
            ("coupon_replica_lag_seconds", {}, 0.25),
            (
                "coupon_replica_reads_total",
                {"answered_by": "primary", "reason": "behind"},
                1,
            ),
        ]:
            assert registry.get_sample_value(name, labels) == expected, name

    def test_names_and_labels_are_bounded(
        self, metrics: Metrics, registry: CollectorRegistry
    ) -> None:
        metrics.rpcs_finished(REDEEM, "OK", "", [0.004])
        metrics.pool_sampled("main", 1, 1, 1)
        metrics.commands_decided({("REDEEMED", "done", ""): 1})
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            assert family.name.startswith("coupon_")
            assert family.documentation.endswith(".")
            for sample in family.samples:
                assert set(sample.labels) <= LABELS

    def test_registries_share_no_state(self) -> None:
        one, other = CollectorRegistry(), CollectorRegistry()
        Metrics(one).queue_changed("changes", 3)
        Metrics(other)
        assert one.get_sample_value("coupon_queue_length", {"kind": "changes"}) == 3
        assert other.get_sample_value("coupon_queue_length", {"kind": "changes"}) is None


def answer_to(port: int, request: str) -> int:
    """The status of the answer to a raw request."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request.encode("utf-8", "surrogateescape"))
        answer = HTTPResponse(connection)
        answer.begin()
        answer.read()
        return answer.status


class TestEndpoint:
    @pytest.fixture
    def health(self) -> list[bool]:
        return [True]

    @pytest.fixture
    def server(self, registry: CollectorRegistry, health: list[bool]) -> Iterator[MetricsServer]:
        with serve_metrics("127.0.0.1", 0, registry, lambda: health[0]) as server:
            yield server

    def test_metrics_are_served(self, server: MetricsServer, metrics: Metrics) -> None:
        metrics.queue_changed("changes", 5)
        status, text = get(server.port, "/metrics")
        assert status == 200
        assert 'coupon_queue_length{kind="changes"} 5.0' in text

    def test_metrics_are_compressed_on_request(
        self, server: MetricsServer, metrics: Metrics
    ) -> None:
        metrics.queue_changed("changes", 5)
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/metrics?x=1", headers={"Accept-Encoding": "gzip"})
        assert b'coupon_queue_length{kind="changes"} 5.0' in gzip.decompress(
            connection.getresponse().read()
        )
        connection.close()

    def test_healthz_asks_for_the_state_each_time(
        self, server: MetricsServer, health: list[bool]
    ) -> None:
        assert get(server.port, "/healthz") == (200, "ok\n")
        health[0] = False
        assert get(server.port, "/healthz") == (503, "no worker runs\n")

    def test_readyz_says_what_is_missing(self, registry: CollectorRegistry) -> None:
        states = iter([(True, {"redis": "ok"}), (False, {"redis": "unreachable"})])
        with serve_metrics("127.0.0.1", 0, registry, lambda: True, lambda: next(states)) as server:
            assert get(server.port, "/readyz") == (200, '{"redis": "ok"}\n')
            assert get(server.port, "/readyz") == (503, '{"redis": "unreachable"}\n')

    def test_other_paths_are_not_found(self, server: MetricsServer) -> None:
        assert get(server.port, "/")[0] == 404

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            ("http://localhost/metrics", 200),
            ("/metrics?x=%zz&name[]=%ff", 200),
            ("/metrics#x", 200),
            ("http://[::1/metrics", 400),
            ("//[::1/metrics", 404),
            ("http://[x]/metrics", 400),
            ("*", 404),
            ("metrics", 404),
            ("/" + "a" * 60_000, 404),
            ("/\xff\xfe", 404),
            ("/metrics\0", 404),
        ],
    )
    def test_any_request_target_is_answered(
        self, server: MetricsServer, target: str, status: int
    ) -> None:
        assert answer_to(server.port, f"GET {target} HTTP/1.1\r\n\r\n") == status

    @pytest.mark.parametrize(
        "header",
        [
            "Accept: application/openmetrics-text; version=x",
            "Accept: application/openmetrics-text; version=",
            "Accept: text/plain; version=1.x; escaping=y",
            "Accept: ;;;,=",
            "Accept-Encoding: ;,gzip",
            "Host: [::1",
        ],
    )
    def test_any_header_is_answered(self, server: MetricsServer, header: str) -> None:
        assert answer_to(server.port, f"GET /metrics HTTP/1.1\r\n{header}\r\n\r\n") == 200

    def test_silent_client_does_not_block_others(self, server: MetricsServer) -> None:
        with socket.create_connection(("127.0.0.1", server.port)):
            assert get(server.port, "/healthz")[0] == 200

    def test_failing_health_check_is_no_ok_and_keeps_the_server(
        self, registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]
    ) -> None:
        results = iter([True])
        with serve_metrics("127.0.0.1", 0, registry, lambda: next(results)) as server:
            assert get(server.port, "/healthz")[0] == 200
            assert get(server.port, "/healthz")[0] == 500
            assert get(server.port, "/metrics")[0] == 200
            until(lambda: "metrics request failed" in capfd.readouterr().out)

    @pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
    def test_it_listens_on_ipv6(self, registry: CollectorRegistry) -> None:
        with serve_metrics("::1", 0, registry, lambda: True) as server:
            assert get(server.port, "/healthz", host="::1")[0] == 200

    def test_close_frees_the_port(self, registry: CollectorRegistry) -> None:
        server = serve_metrics("127.0.0.1", 0, registry, lambda: True)
        port = server.port
        get(port, "/healthz")
        server.close()
        with serve_metrics("127.0.0.1", port, registry, lambda: True) as again:
            assert again.port == port

    def test_port_in_use_is_one_sentence(
        self, server: MetricsServer, registry: CollectorRegistry
    ) -> None:
        with pytest.raises(MetricsServerError) as raised:
            serve_metrics("127.0.0.1", server.port, registry, lambda: True)
        assert str(raised.value) == (
            f"The metrics endpoint cannot listen on 127.0.0.1 port {server.port}: Address already"
            " in use. COUPON_METRICS_HOST and COUPON_METRICS_PORT say where it listens."
        )

    def test_address_of_another_machine_is_refused(self, registry: CollectorRegistry) -> None:
        with pytest.raises(MetricsServerError, match=r"192\.0\.2\.1"):
            serve_metrics("192.0.2.1", 0, registry, lambda: True)
