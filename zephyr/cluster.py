"""The reconciler: from what the witnesses say to one view of the cluster.

It decides who owns data (the ring's members) and who is shown how; it sends nothing and keeps no data.
The rule at this stage: *the ring is what etcd has registered*, and

- what etcd said last stands for as long as etcd is silent: an unreachable etcd changes no ring;
- an empty etcd never empties the ring. When half of the ring vanishes within one lease with neither a leave nor
  an eviction to explain it, and gossip hears most of them, then etcd is in doubt and not they: the whole last
  ring is held until they have registered again, or gossip loses half of them, or for `hold_max`;
- whose lease lapsed while gossip hears it stays for `expiry_grace`, and mostly registers again by then;
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

MASS_LOSS_MIN = 2
"""One registration that vanishes is a lapsed lease, however small the ring."""
EVICT_TURN_S = 0.5
EVICT_TURN_MAX_S = 5.0
"""How much later each further member proposes an eviction, by the order of ids."""
ROLL_CALL_S = 1.0
"""How often a node that was evicted asks everybody whether they hear it."""
ROLL_CALL_LOOK_S = 0.1
"""How often it looks who answered."""
EVICT_RETRY_S = 2.0
"""Between two proposals of one eviction by one member."""
VANISHED_AFTER_S = 0.001
"""A deadline just after a bound, since what lies on it still counts."""


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
        self._proposed_s: dict[NodeId, float] = {}
        """When this node last proposed whose eviction."""
        self._unknown_s: dict[NodeId, float] = {}
        """Registered lives that gossip has not met -> since when."""
        self._evicted_s: float | None = None
        """When this node saw that it was evicted; None while it is not."""
        self._roll_call_s = -inf
        self._settled: dict[NodeId, Member] = {}
        """The ring as it was when no registration had vanished lately."""
        self._vanished_s: dict[NodeId, float] = {}
        """Owners whose registration went without a word -> monotonic seconds at which that was seen."""
        self._held_since_s: float | None = None
        self._held_ids: tuple[NodeId, ...] = ()
        """Whose registrations had vanished when the hold began."""
        self._released = False
        """An operator let the present hold go."""
        self._wipe_count = 0
        self._reconciled_s = -inf
        self._authority: Authority = "none"
        self._authority_since_s = 0.0
        self._witness: dict[NodeId, tuple[EtcdWitness, float]] = {}

    def deadline(self) -> float:
        """Return the monotonic second at which a hold or a dead member's grace ends by itself."""
        if self.etcd is None:
            return self._evict_at_s
        if self._held_since_s is not None:
            hold_s = self._held_since_s + self.settings.hold_max if self._committed() else inf
            return min(hold_s, self._evict_at_s)
        # Also when a vanished registration is too old to count, so that a later loss is judged by itself.
        ages_s = (self.settings.expiry_grace, self.settings.lease_ttl + VANISHED_AFTER_S)
        dues_s = (at_s + age_s for at_s in self._vanished_s.values() for age_s in ages_s)
        vanished_s = min((due_s for due_s in dues_s if due_s > self._reconciled_s), default=inf)
        return min(vanished_s, self._evict_at_s)

    def reconcile(self, connected: dict[NodeId, bool], now: Instant) -> tuple[ClusterView, list[Effect]]:
        """Compute the view. `connected`: members to which a connection is known to stand (or known not to)."""
        notes: list[Effect] = []
        self._reconciled_s = now.monotonic_s
        if self.etcd is not None:
            notes += self._reconcile_etcd(self.etcd, now)
            notes += self._propose_evictions(self.etcd, connected, now)
            notes += self._allow_registration(self.etcd, now)
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
        """The ring is what is registered, and for a while what vanished without a word."""
        committed = self._committed()
        self._watch_vanished(etcd, committed, now)
        notes: list[Effect] = []
        if self._held_since_s is None and self._settled and (not committed or self._is_mass_loss(etcd)):
            self._held_since_s = now.monotonic_s
            self._held_ids = tuple(self._vanished_s)
            detail = f"registrations of {', '.join(self._vanished_s)} vanished without a word; the last ring stands"
            notes.append(_note(now, "hold", "", "ring", detail))
        self._wipe_count = etcd.wipe_count
        if self._held_since_s is not None:
            ending = self._hold_ending(committed, now)
            if not ending:
                self.ring_members = dict(self._settled)
                return notes
            notes.append(_note(now, "hold-ended", "", "ring", ending))
            self._held_since_s = None
            self._vanished_s.clear()
        kept = {node_id: self._settled[node_id] for node_id in self._vanished_s if self._is_in_grace(node_id, now)}
        if committed:
            self.ring_members = {**kept, **committed}
        if not self._vanished_s:
            self._settled = dict(self.ring_members)
        return notes

    def _propose_evictions(self, etcd: EtcdMembership, connected: dict[NodeId, bool], now: Instant) -> list[Effect]:
        """Ask etcd to drop who is gone for long enough, if this node hears more than half of the registered.

        The lowest id goes first, the others a moment later each: a second proposal is refused, and costs little.
        """
        self._evict_at_s = inf
        self._meet(etcd, now)
        heard = sorted(filter(self._is_heard, etcd.registrations))
        if not etcd.reachable or 2 * len(heard) <= len(etcd.registrations) or self.settings.id not in heard:
            return []
        turn_s = min(heard.index(self.settings.id) * EVICT_TURN_S, EVICT_TURN_MAX_S)
        effects: list[Effect] = []
        for node_id, registration in sorted(etcd.registrations.items()):
            gone_s, why = self._gone_since(node_id, connected)
            due_s = max(gone_s + turn_s, self._proposed_s.get(node_id, -inf) + EVICT_RETRY_S)
            if now.monotonic_s >= due_s:
                self._proposed_s[node_id] = now.monotonic_s
                due_s = now.monotonic_s + EVICT_RETRY_S
                effects += etcd.evict(registration, f"gossip says {why}", now)
            self._evict_at_s = min(self._evict_at_s, due_s)
        self._proposed_s = {item: at_s for item, at_s in self._proposed_s.items() if item in etcd.registrations}
        return effects

    def eviction_objection(self, node_id: NodeId) -> str:
        """Say why an operator's eviction cannot be proposed here; empty: it can."""
        if self.etcd is None:
            return "this cluster has no etcd: who is dead leaves by gossip's word"
        if node_id not in self.etcd.registrations:
            return f"{node_id} is not registered"
        if not self.etcd.reachable or not self.etcd.lease_id:
            return "etcd cannot be reached from here"
        return ""

    def evict(self, node_id: NodeId, now: Instant) -> list[Effect]:
        """Propose what an operator asked for. A live member registers anew once it hears a majority."""
        if self.eviction_objection(node_id) or self.etcd is None:
            return []
        return self.etcd.evict(self.etcd.registrations[node_id], "asked for by an operator", now)

    def release(self, now: Instant) -> list[Effect]:
        """Let a held ring go."""
        if self._held_since_s is None or not self._committed():
            return []
        self._released = True
        return [_note(now, "hold-released", "", "ring", "by an operator")]

    def _meet(self, etcd: EtcdMembership, now: Instant) -> None:
        """Note since when a registered life is one that gossip has not met."""
        unknown = [
            node_id
            for node_id, registration in etcd.registrations.items()
            if node_id != self.settings.id and self._is_unknown(node_id, registration.member.epoch)
        ]
        self._unknown_s = {node_id: self._unknown_s.get(node_id, now.monotonic_s) for node_id in unknown}

    def _is_unknown(self, node_id: NodeId, epoch: int) -> bool:
        record = self.swim.table.members.get(node_id)
        return record is None or (record.live_index < 0 and record.member.epoch < epoch)

    def _gone_since(self, node_id: NodeId, connected: dict[NodeId, bool]) -> tuple[float, str]:
        """Return from when on a registered member may be evicted, and as what; infinity for who is not gone."""
        if node_id in self._unknown_s:
            is_silent = not connected.get(node_id)
            return (self._unknown_s[node_id] + self.settings.unknown_timeout if is_silent else inf), "unknown"
        record = self.swim.table.members.get(node_id)
        if record is None or not self._is_gone(node_id):
            return inf, ""
        return record.since_s + (self.settings.evict_after if record.state == "dead" else 0.0), record.state

    def _allow_registration(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        """Who was evicted registers again once it has heard most of the registered since.

        What it believes of them from before counts for nothing: they had not heard it for seconds.
        """
        if etcd.departed.get(self.settings.id) != "evicted":
            self._evicted_s = None
            return etcd.allow_registration(allowed=True, now=now)
        effects: list[Effect] = []
        if self._evicted_s is None or now.monotonic_s >= self._roll_call_s:
            self._evicted_s = now.monotonic_s if self._evicted_s is None else self._evicted_s
            self._roll_call_s = now.monotonic_s + ROLL_CALL_S
            effects += self.swim.call_roll(now)
        evicted_s = self._evicted_s
        members = self.swim.table.members
        heard = [item for item in etcd.registrations if item in members and members[item].heard_s > evicted_s]
        hears_most = 2 * len(heard) > len(etcd.registrations) or not etcd.registrations
        self._evict_at_s = min(self._evict_at_s, inf if hears_most else now.monotonic_s + ROLL_CALL_LOOK_S)
        return effects + etcd.allow_registration(allowed=hears_most, now=now)

    def _watch_vanished(self, etcd: EtcdMembership, committed: dict[NodeId, Member], now: Instant) -> None:
        """Keep track of owners whose registration went with neither a leave nor an eviction to explain it."""
        since_s = now.monotonic_s
        for node_id in self._settled:
            is_explained = etcd.departed.get(node_id) in ("left", "evicted")
            if node_id in committed or is_explained:
                self._vanished_s.pop(node_id, None)
            elif node_id in self.ring_members:
                self._vanished_s.setdefault(node_id, since_s)
        if self._held_since_s is None:
            for node_id in [
                item for item, at_s in self._vanished_s.items() if at_s + etcd.settings.lease_ttl < since_s
            ]:
                del self._vanished_s[node_id]

    def _is_mass_loss(self, etcd: EtcdMembership) -> bool:
        """Whether so much vanished within one lease, while gossip hears most of them, that etcd is in doubt."""
        vanished = list(self._vanished_s)
        if len(vanished) < max(MASS_LOSS_MIN, (len(self._settled) + 1) // 2):
            return False
        return etcd.wipe_count != self._wipe_count or 2 * sum(map(self._is_heard, vanished)) > len(vanished)

    def _hold_ending(self, committed: dict[NodeId, Member], now: Instant) -> str:
        """Say why the hold is over; empty while it is not. With nothing registered it is not."""
        assert self._held_since_s is not None
        missing = [item for item in self._settled if item in self._vanished_s and not self._is_gone(item)]
        if not committed:
            return ""
        if not missing:
            return "all members registered again"
        if 2 * sum(map(self._is_gone, self._held_ids)) >= len(self._held_ids):
            return "gossip calls half of those who vanished dead"
        if now.monotonic_s >= self._held_since_s + self.settings.hold_max:
            return f"not registered again in time: {', '.join(missing)}"
        return ""

    def _is_in_grace(self, node_id: NodeId, now: Instant) -> bool:
        """Whether a member may stay without a registration: a lease that lapsed for a moment changes no ring."""
        return self._is_heard(node_id) and now.monotonic_s < self._vanished_s[node_id] + self.settings.expiry_grace

    def _is_heard(self, node_id: NodeId) -> bool:
        record = self.swim.table.members.get(node_id)
        return node_id == self.settings.id or (record is not None and record.state == "alive")

    def _is_gone(self, node_id: NodeId) -> bool:
        record = self.swim.table.members.get(node_id)
        return record is not None and record.state in ("dead", "left")

    def _lead(self) -> Authority:
        """Name the witness that leads."""
        if self.etcd is None:
            return "gossip"
        if self._held_since_s is not None:
            return "held"
        if self.etcd.reachable:
            heard = sum(map(self._is_heard, self.etcd.registrations))
            return "both" if 2 * heard > len(self.etcd.registrations) else "etcd"
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
            return _judge_unregistered(gossip, witness, tail, in_ring=in_ring, is_held=self._held_since_s is not None)
        if not in_ring and member.state == "joining":
            return "pending", f"registered as joining; owns nothing yet{tail}"
        if not in_ring:
            return "held", f"registered, and joins the ring when the held one is released{tail}"
        if gone:
            ending = "leaves the ring when its eviction commits or the lease ends"
            return "gossip-first", f"gossip says {gossip}, etcd still holds its lease; {ending}"
        if gossip == "suspect":
            return "gossip-first", f"gossip suspects it, etcd holds its lease{tail}"
        if not routable:
            return "unreachable", "registered, but it cannot be reached from here; leaves the ring when its lease ends"
        return "agree", f"registered and {member.state}"


def _judge_unregistered(
    gossip: GossipWitness, witness: EtcdWitness, tail: str, *, in_ring: bool, is_held: bool
) -> tuple[str, str]:
    gone = gossip in ("dead", "left")
    match witness:
        case "off" if gone and in_ring:
            return "gossip-first", f"gossip says {gossip}; leaves the ring when its grace is over"
        case "off":
            return "agree", f"gossip says {gossip}; no etcd is configured{tail}"
        case "unreachable":
            return "held", f"gossip says {gossip}, etcd cannot be reached; its last word stands{tail}"
        case "absent" if in_ring and is_held:
            return "held", f"etcd lost its registration; the last ring is held until all register again{tail}"
        case "absent" if in_ring:
            return (
                "unregistered",
                f"gossip says {gossip}, etcd lost its registration; it has a moment to register again",
            )
        case "absent" if gone:
            return "agree", f"gossip says {gossip}, and etcd has no registration"
        case _:
            return "unregistered", f"gossip says {gossip}, etcd has no registration; owns nothing{tail}"


def _note(now: Instant, kind: str, member: NodeId, source: str, detail: str) -> Note:
    return Note(TimelineEntry(now.unix_ms, kind, member, source, detail))  # type: ignore[arg-type]
