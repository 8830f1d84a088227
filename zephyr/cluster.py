"""The reconciler: from what the witnesses say to one view of the cluster.

It decides who owns data (the ring's members) and who is shown how; it sends nothing and keeps no data.
The rule at this stage: *the ring is what etcd has registered*, and

- what etcd said last stands for as long as etcd is silent: an unreachable etcd changes no ring;
- an empty etcd never empties the ring, and a wiped one does not shrink it: the last ring is held until
  all of its members have registered again, or for `takeover_max`;
- without etcd (`--etcd none`) the ring is whoever gossip has called alive, and has not called left, or dead for
  `gossip_evict_after`. Both sides of a split then serve.
- whom gossip calls dead or left is not routed to, whatever the ring says.

Invariants (checked by the simulator): a ring once seen is never empty again; equal members give equal
digests on every node.
"""

from __future__ import annotations

from math import inf

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.events import Effect, Note
from zephyr.gossip.swim import Swim
from zephyr.gossip.table import Record
from zephyr.model import (
    Authority,
    ClusterView,
    EtcdStatus,
    EtcdWitness,
    GossipWitness,
    Instant,
    Member,
    MemberView,
    NodeId,
    TimelineEntry,
)
from zephyr.ring.ring import ring_digest


class Reconciler:
    """Combines the witnesses into a `ClusterView`."""

    def __init__(self, settings: Settings, etcd: EtcdMembership | None, swim: Swim) -> None:
        """`etcd` is None for a cluster that lives by gossip alone."""
        self.settings = settings
        self.etcd = etcd
        self.swim = swim
        self.ring_members: dict[NodeId, Member] = {}
        """The owners of data, by id."""
        self._evict_at_s = inf
        self._held_since_s: float | None = None
        self._wipe_count = 0
        self._authority: Authority = "none"
        self._authority_since_s = 0.0
        self._witness: dict[NodeId, tuple[EtcdWitness, float]] = {}

    def deadline(self) -> float:
        """Return the monotonic second at which a hold or a dead member's grace ends by itself."""
        if self.etcd is None:
            return self._evict_at_s
        if self._held_since_s is None or not self._committed():
            return inf
        return self._held_since_s + self.settings.takeover_max

    def reconcile(self, connected: dict[NodeId, bool], now: Instant) -> tuple[ClusterView, list[Effect]]:
        """Compute the view. `connected`: members to which a connection is known to stand (or known not to)."""
        notes: list[Effect] = []
        if self.etcd is not None:
            notes += self._reconcile_etcd(self.etcd, now)
        else:
            self._reconcile_gossip(now)
        authority = self._lead()
        if authority != self._authority:
            notes.append(_note(now, "authority", "", "authority", f"{self._authority} -> {authority}"))
            self._authority, self._authority_since_s = authority, now.monotonic_s
        return self._view(connected, now), notes

    def _reconcile_gossip(self, now: Instant) -> None:
        """Gossip alone: the dead leave after a while, those who said goodbye at once."""
        members = {self.swim.member.id: self.swim.member}
        self._evict_at_s = inf
        for node_id, record in self.swim.table.members.items():
            evict_at_s = inf
            if record.state == "dead":
                evict_at_s = record.since_s + self.settings.gossip_evict_after
            elif record.state == "left":
                evict_at_s = record.since_s
            is_candidate = node_id in self.ring_members or record.live_index >= 0
            if is_candidate and evict_at_s > now.monotonic_s:
                members[node_id] = record.member
                self._evict_at_s = min(self._evict_at_s, evict_at_s)
        self.ring_members = members

    def _committed(self) -> dict[NodeId, Member]:
        """Owners by etcd's word. A joining member is none yet."""
        assert self.etcd is not None
        registrations = self.etcd.registrations.values()
        return {item.member.id: item.member for item in registrations if item.member.state != "joining"}

    def _reconcile_etcd(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        committed = self._committed()
        if len(committed) > 0 and not self.ring_members:
            self.ring_members = committed
        wiped = etcd.wipe_count != self._wipe_count
        self._wipe_count = etcd.wipe_count
        if self._held_since_s is None and self.ring_members and (wiped or not committed):
            self._held_since_s = now.monotonic_s
        if self._held_since_s is None:
            self.ring_members = committed
            return []
        missing = [node_id for node_id in self.ring_members if node_id not in committed]
        over = now.monotonic_s >= self._held_since_s + self.settings.takeover_max
        if missing and not (over and committed):
            return []
        self._held_since_s = None
        self.ring_members = committed
        detail = f"not registered again in time: {', '.join(missing)}" if missing else "all members registered again"
        return [_note(now, "hold-ended", "", "ring", detail)]

    def _lead(self) -> Authority:
        """Name the witness that leads."""
        if self.etcd is None:
            return "gossip"
        if self._held_since_s is not None:
            return "held"
        if self.etcd.reachable:
            return "etcd"
        return "held" if self.ring_members else "none"

    def _view(self, connected: dict[NodeId, bool], now: Instant) -> ClusterView:
        etcd = self.etcd
        listed: dict[NodeId, Member] = dict(self.ring_members)
        listed.update((node_id, record.member) for node_id, record in self.swim.table.members.items())
        if etcd is not None:
            listed.update((item.member.id, item.member) for item in etcd.registrations.values())
        rows = tuple(self._row(listed[node_id], connected, now) for node_id in sorted(listed))
        self._witness = {row.member.id: (row.etcd, row.etcd_since_s) for row in rows}
        return ClusterView(
            authority=self._authority,
            authority_since_s=self._authority_since_s,
            etcd=etcd.status() if etcd else EtcdStatus("off", 0, None, ""),
            generation=etcd.generation if etcd else 0,
            revision=etcd.revision if etcd else 0,
            digest=ring_digest(self.ring_members.values(), self.settings.replicas, self.settings.virtual_nodes),
            members=rows,
            owners=tuple(sorted(self.ring_members)),
        )

    def _row(self, member: Member, connected: dict[NodeId, bool], now: Instant) -> MemberView:
        node_id = member.id
        in_ring = node_id in self.ring_members
        record = self.swim.table.members.get(node_id)
        gossip = self._gossip(node_id, record)
        routable = gossip not in ("dead", "left") and (node_id == self.settings.id or connected.get(node_id, True))
        witness, revision = self._testimony(node_id)
        known_witness, since_s = self._witness.get(node_id, (None, now.monotonic_s))
        verdict, reason = self._judge(member, gossip, witness, in_ring=in_ring, routable=routable)
        own_since_s = None if node_id != self.settings.id else 0.0
        return MemberView(
            member=member,
            gossip=gossip,
            gossip_since_s=record.since_s if record else own_since_s,
            incarnation=record.incarnation if record else self.swim.incarnation if own_since_s is not None else 0,
            etcd=witness,
            etcd_revision=revision,
            etcd_since_s=since_s if witness == known_witness else now.monotonic_s,
            in_ring=in_ring,
            routable=routable,
            verdict=verdict,
            reason=reason,
        )

    def _gossip(self, node_id: NodeId, record: Record | None) -> GossipWitness:
        if node_id == self.settings.id:
            return "left" if self.swim.is_leaving else "alive"
        return record.state if record is not None else "unknown"

    def _testimony(self, node_id: NodeId) -> tuple[EtcdWitness, int]:
        if self.etcd is None:
            return "off", 0
        registration = self.etcd.registrations.get(node_id)
        revision = registration.mod_revision if registration else 0
        if not self.etcd.reachable:
            return "unreachable", revision
        return ("registered" if registration else "absent"), revision

    def _judge(
        self, member: Member, gossip: GossipWitness, witness: EtcdWitness, *, in_ring: bool, routable: bool
    ) -> tuple[str, str]:
        """Return the verdict and one sentence for a person."""
        tail = "" if routable or gossip in ("dead", "left") else "; it cannot be reached from here"
        gone = gossip in ("dead", "left")
        if witness != "registered":
            return _judge_unregistered(gossip, witness, tail, in_ring=in_ring)
        if not in_ring and member.state == "joining":
            return "pending", f"registered as joining; owns nothing yet{tail}"
        if not in_ring:
            return "held", f"registered, and joins the ring when the held one is released{tail}"
        if gone:
            return "gossip-first", f"gossip says {gossip}, etcd still holds its lease; leaves the ring when that ends"
        if gossip == "suspect":
            return "gossip-first", f"gossip suspects it, etcd holds its lease{tail}"
        if not routable:
            return "unreachable", "registered, but it cannot be reached from here; leaves the ring when its lease ends"
        return "agree", f"registered and {member.state}"


def _judge_unregistered(gossip: GossipWitness, witness: EtcdWitness, tail: str, *, in_ring: bool) -> tuple[str, str]:
    gone = gossip in ("dead", "left")
    match witness:
        case "off" if gone and in_ring:
            return "gossip-first", f"gossip says {gossip}; leaves the ring when its grace is over"
        case "off":
            return "agree", f"gossip says {gossip}; no etcd is configured{tail}"
        case "unreachable":
            return "held", f"gossip says {gossip}, etcd cannot be reached; its last word stands{tail}"
        case "absent" if in_ring:
            return "held", f"etcd lost its registration; the last ring is held until all register again{tail}"
        case "absent" if gone:
            return "agree", f"gossip says {gossip}, and etcd has no registration"
        case _:
            return "unregistered", f"gossip says {gossip}, etcd has no registration; owns nothing{tail}"


def _note(now: Instant, kind: str, member: NodeId, source: str, detail: str) -> Note:
    return Note(TimelineEntry(now.unix_ms, kind, member, source, detail))  # type: ignore[arg-type]
