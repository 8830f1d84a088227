"""The JSON of the pages for people and tools: what a node is, what it believes and what happened.

Shapes documents from the node's own values and decides nothing. Their names are an interface: add to them,
never rename. A key is a percent-encoded string. What no part of the program knows yet is null.
"""

from __future__ import annotations

from typing import Any

from zephyr import __version__
from zephyr.api.contract import key_text
from zephyr.metrics import disagreements
from zephyr.model import ClusterView, EtcdStatus, Instant, MemberView
from zephyr.node import Node
from zephyr.ring.ring import key_slot


def info_page(node: Node, pid: int, started: Instant, now: Instant) -> dict[str, Any]:
    """What this process is and holds."""
    store = node.store
    return {
        "id": node.settings.id,
        "version": __version__,
        "pid": pid,
        "uptime_s": _age_s(started.monotonic_s, started, now),
        "cluster": node.settings.cluster,
        "epoch": node.member.epoch,
        "zone": node.settings.zone,
        "weight": node.settings.weight,
        "replicas": node.settings.replicas,
        "ready": not node.readiness(),
        "items": store.items,
        "bytes": store.bytes_used,
        "bytes_max": store.bytes_max,
        "tombstones": store.tombstones,
        "tombstone_bytes": store.tombstone_bytes,
        "ghosts": store.ghosts,
        "requests_in_flight": node.coordinator.requests_in_flight,
    }


def views_page(node: Node, lag_s: float | None, started: Instant, now: Instant) -> dict[str, Any]:
    """What each witness says of each member, and what follows. `lag_s`: the event loop's."""
    view = node.view
    etcd = view.etcd if node.etcd is None else node.etcd.status(now)
    return {
        "node": node.settings.id,
        "cluster": node.settings.cluster,
        "now_unix_ms": now.unix_ms,
        "authority": view.authority,
        "authority_since_s": _age_s(view.authority_since_s, started, now),
        "etcd": _etcd(etcd, now),
        "gossip": {
            "health": node.swim.health,
            "probe_interval_s": node.swim.probe_interval_s,
            "event_loop_lag_s": lag_s and round(lag_s, 6),
        },
        "ring": {"epoch": _epoch(view), "digest": view.digest.hex(), "owners": list(view.owners)},
        "disagreements": disagreements(view),
        "members": [_member(node, row, started, now) for row in view.members],
    }


def ring_page(node: Node) -> dict[str, Any]:
    """Who owns how much. Fills the ring's table: where that must not take long, fill it in slices first."""
    ring, view = node.ring, node.view
    shares = ring.shares()
    return {
        "epoch": _epoch(view),
        "digest": view.digest.hex(),
        "virtual_nodes": ring.virtual_nodes,
        "owners": [
            {
                "id": member.id,
                "share": shares[member.id][0],
                "replica_share": shares[member.id][1],
                "tokens": max(1, round(ring.virtual_nodes * member.weight)),
            }
            for member in ring.members
        ],
        "pending": [row.member.id for row in view.members if row.member.state == "joining" and not row.in_ring],
    }


def ring_key_page(node: Node, key: bytes) -> dict[str, Any]:
    """Who owns one key, in order of preference."""
    slot = key_slot(key)
    return {"key": key_text(key), "slot": slot, "owners": list(node.ring.owners(slot))}


def timeline_page(node: Node, since_unix_ms: int) -> dict[str, Any]:
    """What happened at or after a moment, the oldest first."""
    return {
        "events": [
            {
                "at_unix_ms": entry.at_unix_ms,
                "kind": entry.kind,
                "member": entry.member,
                "source": entry.source,
                "detail": entry.detail,
            }
            for entry in node.timeline
            if entry.at_unix_ms >= since_unix_ms
        ]
    }


def _etcd(status: EtcdStatus, now: Instant) -> dict[str, Any]:
    deadline_s = status.lease_deadline_s
    return {
        "state": status.state,
        "revision": status.revision,
        "lease_ttl_s": None if deadline_s is None else round(max(0.0, deadline_s - now.monotonic_s), 3),
        "reason": status.reason,
    }


def _member(node: Node, row: MemberView, started: Instant, now: Instant) -> dict[str, Any]:
    member = row.member
    record = node.swim.table.members.get(member.id)
    return {
        "id": member.id,
        "http": member.http,
        "peer": member.peer,
        "zone": member.zone,
        "weight": member.weight,
        "epoch": member.epoch,
        "state": member.state,
        "gossip": {
            "state": row.gossip,
            "incarnation": None if row.gossip == "unknown" else [member.epoch, row.incarnation],
            "since_s": None if row.gossip_since_s is None else _age_s(row.gossip_since_s, started, now),
            "phi": None if record is None else round(node.swim.phi(record, now), 3),
            "rtt_ms": None if record is None or not record.rtt_s else round(record.rtt_s * 1000, 3),
        },
        "etcd": {
            "state": row.etcd,
            "revision": row.etcd_revision,
            "since_s": _age_s(row.etcd_since_s, started, now),
        },
        "in_ring": row.in_ring,
        "routable": row.routable,
        "verdict": row.verdict,
        "reason": row.told(now),
    }


def _epoch(view: ClusterView) -> str:
    return f"{view.generation}-{view.revision}"


def _age_s(since_s: float, started: Instant, now: Instant) -> float:
    """Turn the moment at which something became so into its age; nothing is older than the process."""
    return round(now.monotonic_s - max(since_s, started.monotonic_s), 3)
