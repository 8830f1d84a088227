"""The JSON of the pages for people and tools: what a node is, what it believes and what happened.

Shapes documents from the node's own values and decides nothing. Their names are an interface: add to them,
never rename. A key is a percent-encoded string. What no part of the program knows yet is null.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from zephyr import __version__
from zephyr.api.contract import key_text
from zephyr.gossip.certificate import Certificate, Stub
from zephyr.metrics import Metrics, disagreements
from zephyr.model import Address, ClusterView, EtcdStatus, Explanation, Instant, MemberView, NodeId, TimelineEntry
from zephyr.node import Node
from zephyr.ring.ring import key_slot


def info_page(node: Node, metrics: Metrics, pid: int, started: Instant, now: Instant) -> dict[str, Any]:
    """What this process is and holds, and how often it was asked for something."""
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
        "slots_pending": node.levels.pending,
        "hints": {**node.hints.counts(), "pending": node.hints.pending},
        "requests_in_flight": node.coordinator.requests_in_flight,
        "requests": metrics.request_counts(),
        "hits": metrics.hits,
        "misses": metrics.misses,
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


def explain_page(explanation: Explanation) -> dict[str, Any]:
    """Where one key is: what each node says that it holds. A version is what stands in an ETag, without its quotes."""
    return {
        "key": key_text(explanation.key),
        "slot": explanation.slot,
        "owners": list(explanation.owners),
        "replicas": [
            {
                "node": replica.node_id,
                "owner": replica.is_owner,
                "level": replica.is_level,
                "state": replica.state,
                "version": replica.version.hex() or None,
                "expires_unix_ms": replica.expires_unix_ms or None,
                "hinted": list(replica.hinted),
            }
            for replica in explanation.replicas
        ],
    }


def timeline_page(node: Node, since_unix_ms: int) -> dict[str, Any]:
    """What happened at or after a moment, the oldest first."""
    numbered = enumerate(node.timeline, node.timeline_end - len(node.timeline))
    return {
        "events": [timeline_event(number, entry) for number, entry in numbered if entry.at_unix_ms >= since_unix_ms]
    }


def timeline_event(number: int, entry: TimelineEntry) -> dict[str, Any]:
    """One thing that happened. Its number is the id by which `/debug/events` goes on after it."""
    return {
        "at_unix_ms": entry.at_unix_ms,
        "kind": entry.kind,
        "member": entry.member,
        "source": entry.source,
        "detail": entry.detail,
        "sequence": number,
    }


def view_event(view: ClusterView) -> dict[str, Any]:
    """What can be said of a view in a line."""
    return {"authority": view.authority, "digest": view.digest.hex(), "disagreements": disagreements(view)}


def certificate_page(held: Certificate | Stub) -> dict[str, Any]:
    """Why a member was last declared dead; of what somebody else declared, where that is told."""
    if isinstance(held, Stub):
        return {
            "member": held.member.id,
            "accuser": held.accuser,
            "accuser_url": _certificate_url(held.accuser_http, held.member.id),
            "declared_at_unix_ms": held.declared_unix_ms,
        }
    return {
        "member": held.member.id,
        "epoch": held.member.epoch,
        "incarnation": held.incarnation,
        "accuser": held.accuser,
        "accuser_url": _certificate_url(held.accuser_http, held.member.id),
        "cause": held.cause,
        "suspected_at_unix_ms": held.suspected_unix_ms,
        "declared_at_unix_ms": held.declared_unix_ms,
        "accusers": list(held.accusers),
        "probes": [
            {
                "at_unix_ms": probe.sent_unix_ms,
                "direct_timeout_s": _rounded(probe.direct_timeout_s),
                "helpers": list(probe.helpers),
                "nacks": list(probe.nackers),
                "tcp_tried": probe.is_tcp_tried,
            }
            for probe in held.probes
        ],
        "exit": {
            "refused": held.exit.is_refused,
            "udp_silent": held.exit.is_silent,
            "observers": list(held.exit.observers),
            "timeout_s": _rounded(held.exit.timeout_s),
        },
        "suspicion": {
            "min_s": _rounded(held.min_s),
            "max_s": _rounded(held.max_s),
            "confirmations_expected": held.confirmations_expected,
            "timeouts": [
                {"at_unix_ms": step.at_unix_ms, "accuser": step.accuser, "timeout_s": _rounded(step.timeout_s)}
                for step in held.timeouts
            ],
            "timeout_s": _rounded(held.timeout_s),
            "own_pause_s": _rounded(held.own_pause_s),
        },
        "phi": round(held.verdict.phi, 3),
        "rtt_ms": round(held.verdict.rtt_s * 1000, 3) or None,
        "local_health": held.verdict.local_health,
        "event_loop_lag_s": _rounded(held.verdict.event_loop_lag_s),
        "members_live": held.verdict.members,
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


def _certificate_url(http: Address, node_id: NodeId) -> str | None:
    return f"http://{http}/debug/certificate/{quote(node_id, safe='')}" if http else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _epoch(view: ClusterView) -> str:
    return f"{view.generation}-{view.revision}"


def _age_s(since_s: float, started: Instant, now: Instant) -> float:
    """Turn the moment at which something became so into its age; nothing is older than the process."""
    return round(now.monotonic_s - max(since_s, started.monotonic_s), 3)
