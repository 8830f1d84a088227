"""Metrics: their names are an interface, their values come from where things are counted."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from zephyr.config import Settings
from zephyr.events import Started, TimerFired
from zephyr.metrics import (
    DELETE,
    DURATION_BOUNDS_S,
    GET,
    LAG_SAMPLES_MAX,
    OPERATIONS,
    OTHER,
    PUT,
    VERDICT_AGREED,
    Metrics,
    disagreements,
)
from zephyr.model import Authority, Instant, Member, WriteRequest
from zephyr.node import Node
from zephyr.peer.tcp import PeerCounters

NOW = Instant(1000.0, 1_700_000_000_000)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(metrics: Metrics) -> dict[str, float]:
    """Scrape as Prometheus does; each sample by the text that stands before its value."""
    text = metrics.exposition()[0].decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    named = dict(line.rsplit(" ", 1) for line in lines)
    assert len(named) == len(lines), "a sample appears twice"
    return {name: float(value) for name, value in named.items()}


def a_node(**values: Any) -> Node:
    """A node without etcd or peers, in its ring of one."""
    settings = replace(Settings(id="n1", etcd=(), memory=1 << 24), **values)
    node = Node(settings, Member("n1", "h:1", "h:2", "h:3", epoch=1), random.Random(1), NOW)
    node.handle(Started(), NOW)
    for _ in range(1000):
        if node.view.owners:
            return node
        node.handle(TimerFired(), NOW)
    raise AssertionError("a node alone does not own its ring")


# --- requests -------------------------------------------------------------------------------------------


def test_requests_are_counted_by_operation_and_code():
    metrics = Metrics()
    for operation, status in ((GET, 200), (GET, 200), (GET, 404), (PUT, 201), (DELETE, 204)):
        metrics.observe_request(operation, status, 0.001)
    found = {name: value for name, value in samples(metrics).items() if name.startswith("zephyr_requests_total")}
    assert found == {
        'zephyr_requests_total{code="200",op="get"}': 2,
        'zephyr_requests_total{code="404",op="get"}': 1,
        'zephyr_requests_total{code="201",op="put"}': 1,
        'zephyr_requests_total{code="204",op="delete"}': 1,
    }


def test_what_was_no_request_is_counted_and_takes_no_time():
    metrics = Metrics()
    metrics.count_request(OTHER, 400)
    found = samples(metrics)
    assert found['zephyr_requests_total{code="400",op="other"}'] == 1
    assert not any(name.startswith("zephyr_request_duration_seconds") for name in found)


@pytest.mark.parametrize(
    ("duration_s", "below", "at_or_above"),
    [(0.0, None, "0.00025"), (0.00025, None, "0.00025"), (0.0003, "0.00025", "0.0005"), (10.1, "10.0", "+Inf")],
)
def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed(duration_s, below, at_or_above):
    metrics = Metrics()
    metrics.observe_request(GET, 200, duration_s)
    found = samples(metrics)
    name = 'zephyr_request_duration_seconds_bucket{{le="{}",op="get"}}'
    assert found[name.format(at_or_above)] == 1
    if below is not None:
        assert found[name.format(below)] == 0


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=50))
def test_the_histogram_is_what_counting_naively_gives(durations_s):
    metrics = Metrics()
    for duration_s in durations_s:
        metrics.observe_request(PUT, 204, duration_s)
    found = samples(metrics)
    for bound_s in DURATION_BOUNDS_S:
        name = f'zephyr_request_duration_seconds_bucket{{le="{bound_s}",op="put"}}'
        assert found[name] == sum(duration_s <= bound_s for duration_s in durations_s)
    assert found['zephyr_request_duration_seconds_bucket{le="+Inf",op="put"}'] == len(durations_s)
    assert found['zephyr_request_duration_seconds_count{op="put"}'] == len(durations_s)
    assert found['zephyr_request_duration_seconds_sum{op="put"}'] == pytest.approx(sum(durations_s))


def test_every_operation_has_its_own_name_and_numbers():
    metrics = Metrics()
    for operation, _ in enumerate(OPERATIONS):
        for _ in range(operation + 1):
            metrics.observe_request(operation, 200, 0.001)
    found = samples(metrics)
    assert [found[f'zephyr_requests_total{{code="200",op="{name}"}}'] for name in OPERATIONS] == list(
        range(1, len(OPERATIONS) + 1)
    )


# --- the process ----------------------------------------------------------------------------------------


def test_the_lag_shown_is_the_worst_of_the_last_ones():
    metrics = Metrics()
    assert metrics.event_loop_lag_s is None
    metrics.observe_event_loop_lag(0.5)
    metrics.observe_event_loop_lag(0.001)
    assert samples(metrics)["zephyr_event_loop_lag_seconds"] == 0.5
    for _ in range(LAG_SAMPLES_MAX - 1):
        metrics.observe_event_loop_lag(0.002)
    assert samples(metrics)["zephyr_event_loop_lag_seconds"] == 0.002, "an old stall is forgotten"


def test_what_is_not_known_is_left_out():
    found = samples(Metrics())
    for unknown in ("store", "ring", "authority", "peer", "event_loop", "etcd", "connections{", "connections "):
        assert not any(name.startswith(f"zephyr_{unknown}") for name in found), unknown
    assert found["zephyr_hits_total"] == found["zephyr_misses_total"] == 0


def test_connections_and_peers_are_read_when_asked():
    metrics = Metrics()
    results = {"ok": 3, "lost": 1}
    metrics.peer_results = lambda: results
    metrics.connections = lambda: 7
    metrics.connections_closed["idle"] += 2
    found = samples(metrics)
    assert found['zephyr_peer_requests_total{result="ok"}'] == 3
    assert found['zephyr_peer_requests_total{result="lost"}'] == 1
    assert found["zephyr_connections"] == 7
    assert found['zephyr_connections_closed_total{cause="idle"}'] == 2
    results["ok"] = 4
    assert samples(metrics)['zephyr_peer_requests_total{result="ok"}'] == 4


def test_what_the_peer_protocol_counts_is_told_apart():
    metrics, counters = Metrics(), PeerCounters(requests_served=5, connections_up=2, bytes_sent=99)
    counters.wire_errors["shape"] += 1
    metrics.peer_totals = counters.totals
    found = samples(metrics)
    assert found['zephyr_peer_served_total{result="ok"}'] == 5
    assert found['zephyr_peer_connections_total{event="up"}'] == 2
    assert found['zephyr_peer_bytes_total{direction="sent"}'] == 99
    assert found['zephyr_peer_wire_errors_total{cause="shape"}'] == 1


# --- the node -------------------------------------------------------------------------------------------


def test_the_store_is_read_when_asked():
    metrics, node = Metrics(), a_node()
    metrics.node = node
    assert samples(metrics)["zephyr_store_items"] == 0
    node.begin_write(WriteRequest(b"kept", b"value"), NOW)
    node.begin_write(WriteRequest(b"gone", b"value"), NOW)
    node.begin_write(WriteRequest(b"gone", None), NOW)
    node.begin_write(WriteRequest(b"brief", b"value", ttl_ms=10), NOW)
    later = Instant(NOW.monotonic_s + 60, NOW.unix_ms + 60_000)
    node.handle(TimerFired(), later)
    found = samples(metrics)
    assert found["zephyr_store_items"] == 1
    assert found["zephyr_store_bytes"] == node.store.bytes_used > 0
    assert found["zephyr_store_bytes_max"] == 1 << 24
    assert found["zephyr_store_tombstones"] == 1
    assert found["zephyr_expired_total"] == 1
    assert found["zephyr_evictions_total"] == 0


def test_evictions_are_counted():
    metrics, node = Metrics(), a_node(memory=2 << 20)
    metrics.node = node
    for number in range(40):
        node.begin_write(WriteRequest(b"%d" % number, bytes(100_000)), NOW)
    found = samples(metrics)
    assert found["zephyr_evictions_total"] == 40 - found["zephyr_store_items"] > 0
    assert found["zephyr_store_bytes"] <= found["zephyr_store_bytes_max"]


def test_the_ring_and_the_one_authority_are_shown():
    metrics, node = Metrics(), a_node()
    metrics.node = node
    found = samples(metrics)
    assert found["zephyr_ring_members"] == 1
    assert found["zephyr_ring_changes_total"] == node.ring_change_count == 1
    modes = {name: value for name, value in found.items() if name.startswith("zephyr_authority")}
    assert modes['zephyr_authority{mode="gossip"}'] == 1
    assert len(modes) == len(Authority.__args__)
    assert sum(modes.values()) == 1


def test_without_etcd_no_lease_is_shown():
    metrics = Metrics()
    metrics.node, metrics.now = a_node(), lambda: NOW
    assert "zephyr_etcd_lease_ttl_seconds" not in samples(metrics)


def test_the_lease_shown_is_the_time_left_and_never_below_zero():
    metrics, node = Metrics(), Node(Settings(id="n1"), a_node().member, random.Random(1), NOW)
    metrics.node, metrics.now = node, lambda: NOW
    assert node.etcd is not None
    for deadline_s, shown in ((NOW.monotonic_s + 7.5, 7.5), (NOW.monotonic_s - 1, 0.0)):
        node.etcd.lease_deadline_s = deadline_s
        assert samples(metrics)["zephyr_etcd_lease_ttl_seconds"] == shown


@pytest.mark.parametrize("verdict", [VERDICT_AGREED, "etcd-first", "held"])
def test_a_disagreement_is_a_verdict_that_is_none_of_consent(verdict):
    view = a_node().view
    changed = replace(view, members=(replace(view.members[0], verdict=verdict),))
    assert disagreements(changed) == (verdict != VERDICT_AGREED)


def test_gossip_shows_what_its_bounds_turned_away_and_how_long_deaths_took():
    metrics, node = Metrics(), a_node()
    metrics.node = node
    metrics.gossip_transport = lambda: {"send_errors": {"ENETUNREACH": 2}, "streams": {"refused": 3}}
    node.swim._overflows["members"] += 4
    node.swim.detections, node.swim.detections_s = 2, 0.7
    found = samples(metrics)
    assert found['zephyr_gossip_send_errors_total{cause="ENETUNREACH"}'] == 2
    assert found['zephyr_gossip_streams_total{result="refused"}'] == 3
    assert found['zephyr_gossip_overflows_total{bound="members"}'] == 4
    assert (found["zephyr_detection_seconds_count"], found["zephyr_detection_seconds_sum"]) == (2, 0.7)
    assert found["zephyr_gossip_other_rings"] == 0


# --- what a scraper sees --------------------------------------------------------------------------------


def complete() -> Metrics:
    """Metrics in which everything is known."""
    metrics = Metrics()
    metrics.node, metrics.now = a_node(), lambda: NOW
    metrics.peer_results, metrics.connections = dict, lambda: 0
    metrics.observe_request(GET, 200, 0.001)
    metrics.observe_event_loop_lag(0.001)
    return metrics


def test_the_names_that_dashboards_rely_on_are_there():
    names = {name.partition("{")[0] for name in samples(complete())}
    assert {
        "zephyr_build_info",
        "zephyr_requests_total",
        "zephyr_request_duration_seconds_bucket",
        "zephyr_store_items",
        "zephyr_store_bytes",
        "zephyr_store_bytes_max",
        "zephyr_evictions_total",
        "zephyr_expired_total",
        "zephyr_hits_total",
        "zephyr_misses_total",
        "zephyr_views_disagreeing_members",
        "zephyr_authority",
        "zephyr_ring_members",
        "zephyr_ring_changes_total",
        "zephyr_event_loop_lag_seconds",
        "process_resident_memory_bytes",
    } <= names


def test_every_metric_of_this_program_has_its_prefix_and_a_help_text():
    families = list(parse(complete().exposition()[0].decode()))
    assert all(family.documentation for family in families)
    assert all(family.name.startswith(("zephyr_", "process_")) for family in families)


def test_both_formats_of_prometheus_are_spoken():
    metrics = complete()
    plain, plain_type = metrics.exposition("text/plain")
    opened, opened_type = metrics.exposition(OPENMETRICS)
    assert plain_type.startswith("text/plain")
    assert opened_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse(plain.decode())}
    assert {family.name for family in parse_openmetrics(opened.decode())} == names


@pytest.mark.parametrize("accept", ["", "*/*", "nonsense", "application/openmetrics-text; version=x", ";;,=", "\xff"])
def test_a_strange_accept_header_gets_plain_text_or_openmetrics_but_never_an_error(accept):
    body, content_type = Metrics().exposition(accept)
    assert content_type.partition(";")[0] in {"text/plain", "application/openmetrics-text"}
    assert b"zephyr_build_info" in body


def test_two_registries_do_not_know_each_other():
    one, other = Metrics(), Metrics()
    one.hits = 5
    assert samples(other)["zephyr_hits_total"] == 0
