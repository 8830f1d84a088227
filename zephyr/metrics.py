"""Every metric is named here, and counted or read here; nothing else knows Prometheus.

The request path adds to plain integers in lists (a prometheus-client Counter and Histogram would cost ten
times as much); they become metrics when somebody asks. Numbers that others keep (the node, its store, its
peers) are read at that moment. What is not known is left out: no metric ever shows an invented value.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from zephyr import __version__
from zephyr.gossip.messages import GossipState
from zephyr.model import Authority, ClusterView, Instant
from zephyr.node import Node

GET, HEAD, PUT, DELETE, INCR, PATCH, BATCH, SCAN, PAGE, OTHER = range(10)
"""Operations of `zephyr_requests_total`: numbers, since they index lists."""
OPERATIONS = ("get", "head", "put", "delete", "incr", "patch", "batch", "scan", "page", "other")
DURATION_BOUNDS_S = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the histogram: from a local read to the longest wait that is worth telling apart."""
STATUS_MAX = 600
"""HTTP's statuses are below this."""
LAG_SAMPLES_MAX = 100
"""Samples of the event loop's lag that are kept, ten seconds of them: a scrape shows the worst, not the last."""
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' own format, which everybody reads."""
VERDICT_AGREED = "agree"
"""The verdict that is no disagreement between the witnesses: both, or the only one, are content."""


def disagreements(view: ClusterView) -> int:
    """Count the members on which the witnesses do not agree."""
    return sum(row.verdict != VERDICT_AGREED for row in view.members)


class Metrics(Collector):
    """The counters of this process, and a window on those of its parts.

    `node`, `now`, `connections` and `peer_results` are set once these exist; until then their metrics are left out.
    """

    def __init__(self) -> None:
        self.node: Node | None = None
        self.now: Callable[[], Instant] | None = None
        self.peer_results: Callable[[], Mapping[str, int]] | None = None
        """Requests sent to peers that are over, by result: `ok`, or why there was no answer."""
        self.peer_totals: Callable[[], Mapping[str, Mapping[str, int]]] | None = None
        """What else the peer protocol counts: `served`, `connections`, `bytes`, `wire_errors`, each by its label."""
        self.gossip_totals: Callable[[], tuple[Mapping[tuple[str, str], int], Mapping[str, int]]] | None = None
        """What the gossip sockets count: messages by (type, direction), and dropped packets by cause."""
        self.gossip_transport: Callable[[], Mapping[str, Mapping[str, int]]] | None = None
        """What else they count: `send_errors` and `streams`, each by its label."""
        self.connections: Callable[[], int] | None = None
        """Clients' connections that are open."""
        self.hits = 0
        """Clients' reads that found a value."""
        self.misses = 0
        self.connections_closed: Counter[str] = Counter()
        """Clients' connections that this node ended, by cause."""
        self._codes = [[0] * STATUS_MAX for _ in OPERATIONS]
        self._buckets = [[0] * (len(DURATION_BOUNDS_S) + 1) for _ in OPERATIONS]
        self._sums_s = [0.0] * len(OPERATIONS)
        self._lags_s: deque[float] = deque(maxlen=LAG_SAMPLES_MAX)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # --- counting -----------------------------------------------------------------------------------

    def observe_request(self, operation: int, status: int, duration_s: float) -> None:
        """Count one answered request."""
        self._codes[operation][status] += 1
        self._buckets[operation][bisect_left(DURATION_BOUNDS_S, duration_s)] += 1
        self._sums_s[operation] += duration_s

    def request_counts(self) -> dict[str, int]:
        """Return how many requests were answered, by operation."""
        return {name: sum(codes) for name, codes in zip(OPERATIONS, self._codes, strict=True)}

    def count_request(self, operation: int, status: int) -> None:
        """Count one answer to what was no request, and so took no time."""
        self._codes[operation][status] += 1

    def observe_event_loop_lag(self, lag_s: float) -> None:
        """Take note of how late the event loop woke a task."""
        self._lags_s.append(lag_s)

    @property
    def event_loop_lag_s(self) -> float | None:
        """The worst of the last lags; None before the first."""
        return max(self._lags_s, default=None)

    # --- showing ------------------------------------------------------------------------------------

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their content type, in the format that a scraper's Accept header wants."""
        try:
            encode, content_type = choose_encoder(accept)
            return encode(self._registry), content_type
        except (IndexError, TypeError, ValueError):  # prometheus-client's answers to a wish that it cannot read
            return generate_latest(self._registry), TEXT_FORMAT

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: which metrics there are depends on what is known by then."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Turn every number into a metric."""
        yield _labelled(GaugeMetricFamily, "zephyr_build_info", "This program.", "version", {__version__: 1})
        yield from self._requests()
        yield CounterMetricFamily("zephyr_hits", "Clients' reads that found a value.", value=self.hits)
        yield CounterMetricFamily("zephyr_misses", "Clients' reads that found none.", value=self.misses)
        if self.connections is not None:
            yield GaugeMetricFamily("zephyr_connections", "Clients' open connections.", value=self.connections())
        text = "Clients' connections that this node ended, by cause."
        yield _labelled(CounterMetricFamily, "zephyr_connections_closed", text, "cause", self.connections_closed)
        if self.peer_results is not None:
            text = "Requests to peers, by result: ok, or why there was no answer."
            yield _labelled(CounterMetricFamily, "zephyr_peer_requests", text, "result", self.peer_results())
        if self.peer_totals is not None:
            yield from _peer_totals(self.peer_totals())
        if self.gossip_totals is not None:
            yield from _gossip_totals(*self.gossip_totals())
        if self.gossip_transport is not None:
            totals = self.gossip_transport()
            text = "Gossip packets that could not be sent, by cause."
            yield _labelled(CounterMetricFamily, "zephyr_gossip_send_errors", text, "cause", totals["send_errors"])
            text = "Gossip streams: opened and answered, served, refused for being too many, cut for being late."
            yield _labelled(CounterMetricFamily, "zephyr_gossip_streams", text, "result", totals["streams"])
        lag_s = self.event_loop_lag_s
        if lag_s is not None:
            text = "Worst lag of the event loop in the last ten seconds."
            yield GaugeMetricFamily("zephyr_event_loop_lag_seconds", text, value=lag_s)
        if self.node is not None:
            yield from self._store(self.node)
            yield from self._cluster(self.node)
            yield from _membership(self.node)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("zephyr_requests", "Clients' requests answered.", labels=("op", "code"))
        text = "Time from a request's headers to its answer."
        durations = HistogramMetricFamily("zephyr_request_duration_seconds", text, labels=("op",))
        bounds = (*map(str, DURATION_BOUNDS_S), "+Inf")
        for operation, codes, buckets, sum_s in zip(OPERATIONS, self._codes, self._buckets, self._sums_s, strict=True):
            for status, count in enumerate(codes):
                if count:
                    requests.add_metric((operation, str(status)), count)
            if any(buckets):
                durations.add_metric((operation,), list(zip(bounds, accumulate(buckets), strict=True)), sum_s)
        yield requests
        yield durations

    def _store(self, node: Node) -> Iterator[Metric]:
        store = node.store
        yield GaugeMetricFamily("zephyr_store_items", "Live entries.", value=store.items)
        yield GaugeMetricFamily("zephyr_store_bytes", "Their keys, values and overhead.", value=store.bytes_used)
        yield GaugeMetricFamily("zephyr_store_bytes_max", "Bound of these bytes.", value=store.bytes_max)
        yield GaugeMetricFamily("zephyr_store_tombstones", "Marks of deletions.", value=store.tombstones)
        yield GaugeMetricFamily("zephyr_store_ghosts", "Marks of expired and evicted entries.", value=store.ghosts)
        yield CounterMetricFamily("zephyr_evictions", "Entries dropped for lack of memory.", value=store.evictions)
        yield CounterMetricFamily("zephyr_expired", "Entries whose TTL ended.", value=store.expired)

    def _cluster(self, node: Node) -> Iterator[Metric]:
        view = node.view
        yield GaugeMetricFamily("zephyr_ring_members", "Members that own data.", value=len(view.owners))
        text = "Changes of the table of owners."
        yield CounterMetricFamily("zephyr_ring_changes", text, value=node.ring_change_count)
        text = "Which witness leads: 1 for it, 0 for the others."
        modes = {mode: int(mode == view.authority) for mode in get_args(Authority)}
        yield _labelled(GaugeMetricFamily, "zephyr_authority", text, "mode", modes)
        text = "Members on which the witnesses do not agree."
        yield GaugeMetricFamily("zephyr_views_disagreeing_members", text, value=disagreements(view))
        deadline_s = None if node.etcd is None else node.etcd.lease_deadline_s
        if deadline_s is not None and self.now is not None:
            text = "Time for which this node's lease is known to live."
            ttl_s = max(0.0, deadline_s - self.now().monotonic_s)
            yield GaugeMetricFamily("zephyr_etcd_lease_ttl_seconds", text, value=ttl_s)
        coordinator = node.coordinator
        text = "Clients' requests that wait for peers."
        yield GaugeMetricFamily("zephyr_requests_in_flight", text, value=coordinator.requests_in_flight)
        text = "Peers' requests for slots that this node does not own."
        yield CounterMetricFamily("zephyr_not_owner", text, value=coordinator.replica.not_owner_count)
        yield from _replication(node)
        levels = node.levels
        text = "Slots of this node that are still to be fetched from the others that own them."
        yield GaugeMetricFamily("zephyr_repair_pending_slots", text, value=levels.pending)
        text = "Records fetched from other owners, and their bytes."
        yield CounterMetricFamily("zephyr_repair_records", text, value=levels.pulled_records)
        yield CounterMetricFamily("zephyr_repair_bytes", text, value=levels.pulled_bytes)
        text = "Peers' writes refused because their stamp is too far ahead of this clock."
        yield CounterMetricFamily("zephyr_refused_stamps", text, value=coordinator.replica.refused_stamp_count)


def _replication(node: Node) -> Iterator[Metric]:
    """What keeps the replicas of a key alike."""
    hints, coordinator = node.hints, node.coordinator
    text = "Records kept for owners that missed a write, and their bytes."
    yield GaugeMetricFamily("zephyr_hints_pending", text, value=hints.pending)
    yield GaugeMetricFamily("zephyr_hints_pending_bytes", text, value=hints.pending_bytes)
    text = "Such records by what became of them: queued = delivered + redirected + expired + dropped + pending."
    yield _labelled(CounterMetricFamily, "zephyr_hints", text, "event", hints.counts())
    text = "Records sent to replicas because a read found that they lacked them, or had what they should not."
    yield CounterMetricFamily("zephyr_read_repairs", text, value=coordinator.repaired_count)
    text = "Reads that asked one more replica because another was slow."
    yield CounterMetricFamily("zephyr_speculative_reads", text, value=coordinator.latencies.second_askings)
    text = "How far this node's clock is behind its peers' median, as acknowledgements told; negative: ahead."
    yield GaugeMetricFamily("zephyr_clock_skew_seconds", text, value=coordinator.skew.ms / 1000)


def _peer_totals(totals: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    for kind, label, text in (
        ("served", "result", "Requests of peers: answered, or too late when they could be."),
        ("connections", "event", "Connections between nodes: links made, peers taken, either turned away or cut."),
        ("bytes", "direction", "Bytes between nodes."),
        ("wire_errors", "cause", "Connections dropped over bytes that break the peer protocol."),
    ):
        yield _labelled(CounterMetricFamily, f"zephyr_peer_{kind}", text, label, totals[kind])


def _gossip_totals(messages: Mapping[tuple[str, str], int], drops: Mapping[str, int]) -> Iterator[Metric]:
    text = "Gossip messages, by type and direction."
    metric = CounterMetricFamily("zephyr_gossip_messages", text, labels=("type", "direction"))
    for labels, count in messages.items():
        metric.add_metric(labels, count)
    yield metric
    text = "Gossip packets that were refused, by cause."
    yield _labelled(CounterMetricFamily, "zephyr_gossip_dropped_packets", text, "cause", drops)


def _membership(node: Node) -> Iterator[Metric]:
    """What gossip believes, this node included."""
    swim = node.swim
    text = "This node's doubt of itself: 0 is well, 8 the worst; intervals and time-outs are stretched by it plus one."
    yield GaugeMetricFamily("zephyr_gossip_health", text, value=swim.health)
    states = Counter(record.state for record in swim.table.members.values())
    states["left" if swim.is_leaving else "alive"] += 1
    text = "Members, by what gossip believes of them."
    shown: dict[str, float] = {state: states[state] for state in get_args(GossipState)}
    yield _labelled(GaugeMetricFamily, "zephyr_member_state", text, "state", shown)
    text = "Accusations that this node had to refute."
    yield CounterMetricFamily("zephyr_gossip_refutations", text, value=swim.refutation_count)
    text = "What a bound of gossip turned away, by what was bounded."
    yield _labelled(CounterMetricFamily, "zephyr_gossip_overflows", text, "bound", swim.overflows)
    text = "Living members whose last ack named another ring than this node's."
    other = sum(record.ring_digest not in (b"", swim.ring_digest) for record in swim.table.live)
    yield GaugeMetricFamily("zephyr_gossip_other_rings", text, value=other)
    text = "From the last sign of life of a member until this node called it dead."
    yield SummaryMetricFamily(
        "zephyr_detection_seconds", text, count_value=swim.detections, sum_value=swim.detections_s
    )


def _labelled(
    family: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    metric = family(name, text, labels=(label,))
    for value, number in values.items():
        metric.add_metric((value,), number)
    return metric
