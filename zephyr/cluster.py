"""The reconciler: from what the witnesses say to one view of the cluster.

It decides who owns data (the ring's members) and who is shown how; it sends nothing and keeps no data.
The rule at this stage: *the ring is what etcd has registered*, and

- what etcd said last stands for as long as etcd is silent: an unreachable etcd changes no ring;
- an empty etcd never empties the ring, and a wiped one does not shrink it: the last ring is held until
  all of its members have registered again, or for `takeover_max`;
- without etcd (`--etcd none`) the ring is static: this node and every `--join` address that has said who
  it is. Nobody leaves it, dead or alive.

Invariants (checked by the simulator): a ring once seen is never empty again; equal members give equal
digests on every node.
"""

from __future__ import annotations

from math import inf

from zephyr.config import Settings
from zephyr.etcd.lease import RETRY_FIRST_S, RETRY_MAX_S, EtcdMembership
from zephyr.events import Effect, IdentityProbed, Note, ProbeIdentity, Stop
from zephyr.model import (
    Address,
    Authority,
    ClusterView,
    EtcdStatus,
    EtcdWitness,
    Instant,
    Member,
    MemberView,
    NodeId,
    TimelineEntry,
)
from zephyr.ring.ring import ring_digest


class StaticMembership:
    """The members of a cluster without etcd: whoever answers at the `--join` addresses."""

    def __init__(self, settings: Settings, member: Member) -> None:
        self.member = member
        self.members: dict[NodeId, Member] = {member.id: member}
        self.change_count = 0
        self._due_s: dict[Address, float] = {}
        self._failures: dict[Address, int] = {}
        self._addresses = settings.join

    @property
    def missing(self) -> tuple[Address, ...]:
        """Addresses that have not said yet who they are."""
        return tuple(self._failures)

    def start(self, now: Instant) -> list[Effect]:
        """Ask every address who is there."""
        self._failures = dict.fromkeys(self._addresses, 0)
        self._due_s = dict.fromkeys(self._addresses, now.monotonic_s)
        return self.poll(now)

    def deadline(self) -> float:
        """Return the monotonic second of the next question."""
        return min(self._due_s.values(), default=inf)

    def poll(self, now: Instant) -> list[Effect]:
        """Ask again where nobody answered."""
        due = [address for address, due_s in self._due_s.items() if due_s <= now.monotonic_s]
        for address in due:
            del self._due_s[address]
        return [ProbeIdentity(address) for address in due]

    def on_probed(self, event: IdentityProbed, now: Instant) -> list[Effect]:
        """Learn who is at an address, or plan to ask again."""
        if event.address not in self._failures:
            return []
        if event.member is None:
            failures = self._failures[event.address]
            self._failures[event.address] = failures + 1
            self._due_s[event.address] = now.monotonic_s + min(RETRY_FIRST_S * 2 ** min(failures, 16), RETRY_MAX_S)
            return []
        del self._failures[event.address]
        self.change_count += 1
        return self.learn(event.member)

    def learn(self, member: Member) -> list[Effect]:
        """Take in what a member says of itself; a newer life replaces an older one."""
        known = self.members.get(member.id)
        if member.id == self.member.id:
            if member.epoch >= self.member.epoch:
                return []  # Itself, or a newcomer that will find this node and stop.
            return [Stop(1, f"another live process has the id {member.id}, at {member.peer}")]
        if known is None or known.epoch < member.epoch:
            self.members[member.id] = member
            self.change_count += 1
        return []


class Reconciler:
    """Combines the witnesses into a `ClusterView`. Exactly one of `etcd` and `static` is given."""

    def __init__(self, settings: Settings, etcd: EtcdMembership | None, static: StaticMembership | None) -> None:
        assert (etcd is None) != (static is None)
        self.settings = settings
        self.etcd = etcd
        self.static = static
        self.ring_members: dict[NodeId, Member] = {}
        """The owners of data, by id."""
        self._held_since_s: float | None = None
        self._wipe_count = 0
        self._authority: Authority = "none"
        self._authority_since_s = 0.0
        self._witness: dict[NodeId, tuple[EtcdWitness, float]] = {}

    def deadline(self) -> float:
        """Return the monotonic second at which a hold ends by itself."""
        if self._held_since_s is None or not self._committed():
            return inf
        return self._held_since_s + self.settings.takeover_max

    def reconcile(self, connected: dict[NodeId, bool], now: Instant) -> tuple[ClusterView, list[Effect]]:
        """Compute the view. `connected`: members to which a connection is known to stand (or known not to)."""
        notes: list[Effect] = []
        if self.etcd is not None:
            notes += self._reconcile_etcd(self.etcd, now)
        else:
            assert self.static is not None
            self.ring_members = dict(self.static.members)
        authority = self._lead()
        if authority != self._authority:
            notes.append(_note(now, "authority", "", "authority", f"{self._authority} -> {authority}"))
            self._authority, self._authority_since_s = authority, now.monotonic_s
        return self._view(connected, now), notes

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
            return "static"
        if self._held_since_s is not None:
            return "held"
        if self.etcd.reachable:
            return "etcd"
        return "held" if self.ring_members else "none"

    def _view(self, connected: dict[NodeId, bool], now: Instant) -> ClusterView:
        etcd = self.etcd
        listed: dict[NodeId, Member] = dict(self.ring_members)
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
        routable = node_id == self.settings.id or connected.get(node_id, True)
        witness, revision = self._testimony(node_id)
        known_witness, since_s = self._witness.get(node_id, (None, now.monotonic_s))
        verdict, reason = self._judge(member, witness, in_ring=in_ring, routable=routable)
        return MemberView(
            member=member,
            etcd=witness,
            etcd_revision=revision,
            etcd_since_s=since_s if witness == known_witness else now.monotonic_s,
            in_ring=in_ring,
            routable=routable,
            verdict=verdict,
            reason=reason,
        )

    def _testimony(self, node_id: NodeId) -> tuple[EtcdWitness, int]:
        if self.etcd is None:
            return "off", 0
        registration = self.etcd.registrations.get(node_id)
        revision = registration.mod_revision if registration else 0
        if not self.etcd.reachable:
            return "unreachable", revision
        return ("registered" if registration else "absent"), revision

    def _judge(self, member: Member, witness: EtcdWitness, *, in_ring: bool, routable: bool) -> tuple[str, str]:
        """Return the verdict and one sentence for a person."""
        tail = "" if routable else "; it cannot be reached from here"
        match witness:
            case "off":
                return "static", f"listed by --join; no etcd is configured{tail}"
            case "unreachable":
                return "held", f"etcd cannot be reached; its last word stands{tail}"
            case "absent":
                return "held", f"etcd lost its registration; the last ring is held until all register again{tail}"
            case "registered" if not in_ring and member.state == "joining":
                return "pending", f"registered as joining; owns nothing yet{tail}"
            case "registered" if not in_ring:
                return "held", f"registered, and joins the ring when the held one is released{tail}"
            case "registered" if not routable:
                return (
                    "unreachable",
                    "registered, but it cannot be reached from here; leaves the ring when its lease ends",
                )
            case "registered":
                return "agree", f"registered and {member.state}"
        raise AssertionError(witness)


def _note(now: Instant, kind: str, member: NodeId, source: str, detail: str) -> Note:
    return Note(TimelineEntry(now.unix_ms, kind, member, source, detail))  # type: ignore[arg-type]
