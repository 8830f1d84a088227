"""How soon peers answer: whom to ask first, and when to ask somebody else as well.

Decides an order of replicas and a moment of impatience. Sends nothing.

A second replica is asked when the first is slower than its 95th percentile, within bounds and within a budget: a
cluster that is slow everywhere must not be given twice the work.

Source: Dean and Barroso, "The Tail at Scale" (2013), on hedged requests.
"""

from __future__ import annotations

from zephyr.model import NodeId

SAMPLES_MAX = 128
"""Latencies remembered of one peer."""
SAMPLES_MIN = 16
"""Fewer say nothing about a percentile."""
RECOUNT_EVERY = 32
"""Replies after which the percentile is computed anew: 10 us each time."""
PATIENCE_MIN_S = 0.005
"""Below it a timer would cost more than it saves."""
PATIENCE_MAX_S = 0.5
PATIENCE_UNKNOWN_S = 0.1
"""Of a peer that has not answered often enough."""
BUDGET_PER_READ = 0.1
"""Second askings per read, in the long run."""
BUDGET_MAX = 20.0
"""Second askings that may come at once."""
STEP_S = 0.001
"""Latencies that differ by less are equal: owners then stand in the ring's order."""
SMOOTHING = 0.1
"""Weight of the newest latency in the average."""


class _Peer:
    __slots__ = ("average_s", "patience_s", "samples", "since_recount")

    def __init__(self, latency_s: float) -> None:
        self.average_s = latency_s
        self.patience_s = PATIENCE_UNKNOWN_S
        self.samples: list[float] = []
        self.since_recount = 0


class Latencies:
    """What is known of each peer's latency, and the budget of second askings."""

    def __init__(self) -> None:
        self.budget = BUDGET_MAX
        self.second_askings = 0
        self._peers: dict[NodeId, _Peer] = {}

    def answered(self, node_id: NodeId, latency_s: float) -> None:
        """A peer answered, so long after it was asked."""
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = _Peer(latency_s)
        peer.average_s += (latency_s - peer.average_s) * SMOOTHING
        samples = peer.samples
        if len(samples) < SAMPLES_MAX:
            samples.append(latency_s)
        else:
            samples[peer.since_recount % SAMPLES_MAX] = latency_s
        peer.since_recount += 1
        if peer.since_recount % RECOUNT_EVERY == 0 and len(samples) >= SAMPLES_MIN:
            percentile_s = sorted(samples)[len(samples) * 95 // 100]
            peer.patience_s = min(max(percentile_s, PATIENCE_MIN_S), PATIENCE_MAX_S)
            peer.since_recount %= SAMPLES_MAX

    def keep_only(self, node_ids: dict[NodeId, bool]) -> None:
        """Forget whoever is no member."""
        self._peers = {node_id: peer for node_id, peer in self._peers.items() if node_id in node_ids}

    def rank(self, node_id: NodeId) -> int:
        """Return a peer's latency in steps of `STEP_S`; an unknown one comes first, so that it becomes known."""
        peer = self._peers.get(node_id)
        return int(peer.average_s / STEP_S) if peer is not None else 0

    def patience_s(self, node_id: NodeId) -> float:
        """Return how long to wait for this peer before somebody else is asked as well."""
        peer = self._peers.get(node_id)
        return peer.patience_s if peer is not None else PATIENCE_UNKNOWN_S

    def earn(self) -> None:
        """A read began: the budget grows."""
        if self.budget < BUDGET_MAX:
            self.budget += BUDGET_PER_READ

    def spend(self) -> bool:
        """Take one second asking from the budget. False: there is none left."""
        if self.budget < 1.0:
            return False
        self.budget -= 1.0
        self.second_askings += 1
        return True
