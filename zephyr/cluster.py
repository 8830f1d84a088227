"""The reconciler: from what the witnesses say to one view of the cluster.

It decides who owns data (the ring's members) and who is shown how; it sends nothing and keeps no data. What follows
from what etcd and gossip say of one member stands in one table, `zephyr.policy`; here is whose word makes the ring
(the *lead*), and time: how long each state lasts before it becomes another.

- etcd leads while it answers here or at a peer that is heard, and for `GOSSIP_LEADS_AFTER_S` after its last word, so
  that an etcd that comes and goes changes no ring.
- When it stays silent for everybody heard, gossip leads: the last committed ring, less those that are dead for
  `gossip_evict_after` or left, and that only where most of that ring is heard. It never grows.
- When etcd is back it takes over once everybody who is heard has registered, or after `takeover_max`, so that the
  first to register do not shrink the ring.
- An empty etcd never empties the ring. When half of the ring vanishes within one lease with neither a leave nor an
  eviction to explain it, and gossip hears most of them, then etcd is in doubt and not they: the whole last
  ring is held until they have registered again, or gossip loses half of them, or for `hold_max`. Where etcd is known
  to have been wiped, one that is missing is enough.
- A cold start without etcd makes a provisional ring; any committed one comes before it.

Invariants (checked by the simulator after each step): a ring once seen is never empty again; it never grows without a
commit, but for a provisional one; nobody is routed to whom gossip calls dead; equal members give equal digests.
"""

from __future__ import annotations

from math import inf

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.events import Effect, Note
from zephyr.evictions import Evictions, Gone
from zephyr.gossip.swim import Swim
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
from zephyr.policy import EtcdWord, Facts, GossipWord, Lead, Rule, rule_for
from zephyr.ring.ring import ring_digest

MASS_LOSS_MIN = 2
"""One registration that vanishes is a lapsed lease, however small the ring."""
GOSSIP_LEADS_AFTER_S = 2.0
"""Silence of etcd, for everybody heard, after which gossip leads: an etcd that is restarted changes nothing."""
ISOLATED_MIN = 3
"""From so many registered on, a node that hears none of the others doubts itself."""
ISOLATED_AFTER_S = 5.0
"""Silence of all others, by UDP and TCP, after which it does: each of them asks after somebody every second."""
ISOLATED_ASK_S = 2.5
"""Silence after which it asks everybody, by UDP and TCP."""
ISOLATED_ASK_AGAIN_S = 0.5
"""How often it then asks, and looks whether somebody is heard."""
GATHER_S = 2.0
"""From then on a ring is made of those who are registered where nobody was: above what the living take to be back."""
VANISHED_AFTER_S = 0.001
"""A deadline just after a bound, since what lies on it still counts."""


class Reconciler:
    """Combines the witnesses into a `ClusterView`."""

    def __init__(self, settings: Settings, etcd: EtcdMembership | None, swim: Swim, now: Instant) -> None:
        """`etcd` is None for a cluster that lives by gossip alone."""
        self.settings = settings
        self.etcd = etcd
        self.swim = swim
        self.evictions = Evictions(settings, etcd, swim) if etcd is not None else None
        self.ring_members: dict[NodeId, Member] = {}
        """The owners of data, by id."""
        self._standing: dict[NodeId, Member] = {}
        """The ring that stands while etcd's word does not make it."""
        self._unbacked: tuple[NodeId, ...] = ()
        """Who joined the ring without a commit: nobody, ever."""
        self.lead: Lead = "cold" if etcd is not None else "alone"
        self.has_provisional_ring = False
        """The ring was never committed: a cold start's."""
        self._started_s = now.monotonic_s
        self._due_s = inf
        """When something changes by itself; gathered anew by each `reconcile`."""
        self._unknown_s: dict[NodeId, float] = {}
        """Registered lives that gossip has not met -> since when."""
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
        self._base: dict[NodeId, Member] = {}
        """The last committed ring, on which gossip leads."""
        self._adoption_count = 0
        """Of the listing that `_base` is from."""
        self._removed: dict[NodeId, int] = {}
        """Who was removed while gossip led -> boot epoch; kept until etcd has dropped that life too."""
        self._base_heard_since_s = inf
        """Since when most of `_base` is heard; infinity while it is not."""
        self._was_minority, self._unheard = False, dict[NodeId, None]()
        """For a time, since gossip leads, it was not; and who of `_base` was not heard."""
        self._takeover_since_s: float | None = None
        self.stood_still_s = -inf
        """Until when this node did not run, while it has not been registered since, for sure. Set by the node."""
        self.is_isolated = False
        """etcd is reached, and nobody else."""
        self._asked_s = -inf
        self.voters: tuple[NodeId, ...] = ()
        """The last view: whose majority confirms a ring, and may change one while etcd is silent."""
        self._authority: Authority = "none"
        self._authority_since_s = 0.0
        self._witness: dict[NodeId, tuple[EtcdWitness, float]] = {}

    def deadline(self) -> float:
        """Return the monotonic second at which a hold, a grace or somebody's time ends by itself."""
        return min(self._due_s, self.evictions.deadline() if self.evictions is not None else inf)

    @property
    def is_gathering(self) -> bool:
        """Whether this node makes no ring yet of those who are registered: whoever lives is to be among them."""
        is_first = self.etcd is not None and self.etcd.found_all_lapsed and not self.ring_members
        return is_first and self.lead == "takeover"

    @property
    def may_be_left_out(self) -> bool:
        """Whether the others may have another ring, while etcd's word does not make the one here.

        So it may be where this node was alone for a time, or where others, who were not heard, are registered and it
        is not: etcd stood at their side.
        """
        if self.etcd is None or self.lead not in ("gossip", "takeover"):
            return False
        registrations = self.etcd.registrations
        is_missing = self.settings.id not in registrations and any(item in registrations for item in self._unheard)
        return is_missing or self._was_alone()

    def _before(self, at_s: float, now: Instant) -> bool:
        """Whether a moment lies ahead; `deadline` then names it."""
        if now.monotonic_s >= at_s:
            return False
        self._due_s = min(self._due_s, at_s)
        return True

    def reconcile(self, connected: dict[NodeId, bool], now: Instant) -> tuple[ClusterView, list[Effect]]:
        """Compute the view. `connected`: members to which a connection is known to stand (or known not to)."""
        effects: list[Effect] = []
        self._due_s = inf
        if self.etcd is None or self.evictions is None:
            self._standing = self._hearsay(now)
            self._close_ring(connected, now)
        else:
            self._meet(self.etcd, now)
            if self.etcd.registered and min(self.etcd.lease_sent_s, self.etcd.verified_sent_s) >= self.stood_still_s:
                self.stood_still_s = -inf
            effects += self._choose_lead(self.etcd, now)
            self._close_ring(connected, now)
            heard = [item for item in self.etcd.registrations if self._is_heard(item)]
            self.evictions.count(heard, now)
            gone = self._gone(self.etcd, connected, self.evictions.majority_since_s)
            effects += self.evictions.propose(gone, heard, now)
            effects += self.evictions.allow_registration(now)
            last_view = self.etcd.registrations if self.lead == "etcd" else self._base or self._standing
            self.voters = tuple(last_view)
        effects += self._look_for_others(self.etcd, now)
        authority = self._named_authority(now)
        if authority != self._authority:
            effects.append(_note(now, "authority", "", "authority", f"{self._authority} -> {authority}"))
            self._authority, self._authority_since_s = authority, now.monotonic_s
        return self._view(connected, now), effects

    def _close_ring(self, connected: dict[NodeId, bool], now: Instant) -> None:
        """Take for owners whom the policy says so; an empty ring is none."""
        candidates = dict(self._standing)
        if self.lead == "etcd" and self.etcd is not None:
            candidates = {node_id: self._settled[node_id] for node_id in self._vanished_s}
            candidates |= {node_id: item.member for node_id, item in self.etcd.registrations.items()}
        owners = {
            node_id: member
            for node_id, member in candidates.items()
            if self._rule(node_id, member, connected, now).owner
        }
        before, self.ring_members = self.ring_members, owners or self.ring_members
        if self.lead == "etcd" and not self._vanished_s:
            self._settled = dict(self.ring_members)
        if before and self.etcd is not None and not self.has_provisional_ring:
            backed = self._settled if self.lead == "held" else self.etcd.registrations
            self._unbacked = tuple(item for item in self.ring_members if item not in before and item not in backed)

    def _rule(self, node_id: NodeId, member: Member, connected: dict[NodeId, bool], now: Instant) -> Rule:
        word = self._gossip_word(node_id, member, connected, now)
        return rule_for(Facts(self.lead, self._etcd_word(node_id, now), node_id in self._standing, word))

    # --- whose word makes the ring --------------------------------------------------------------------

    def _choose_lead(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        silent_s = etcd.silent_since_s()
        is_current = self._before(silent_s, now)
        is_first = etcd.found_all_lapsed and not self.ring_members
        is_led_otherwise = self.lead in ("gossip", "takeover") or self.has_provisional_ring
        if is_current and (is_first or is_led_otherwise):
            return self._take_over(etcd, now)
        if is_first or not etcd.is_known or not (is_current or self.ring_members or self._committed()):
            return self._start_cold(now)
        if not is_led_otherwise and (is_current or self._before(silent_s + GOSSIP_LEADS_AFTER_S, now)):
            return self._let_etcd_lead(etcd, now)
        return self._let_gossip_lead(etcd, now)

    def _committed(self) -> dict[NodeId, Member]:
        """Owners by etcd's word. A joining member is none yet, nor a life that was removed while gossip led."""
        assert self.etcd is not None
        registrations = self.etcd.registrations.values()
        return {
            item.member.id: item.member
            for item in registrations
            if item.member.state != "joining" and not self._is_removed(item.member)
        }

    def _is_removed(self, member: Member) -> bool:
        return member.epoch <= self._removed.get(member.id, -1)

    def _let_etcd_lead(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        """The ring is what is registered, and for a while what vanished without a word."""
        self._forget_removed(etcd)
        committed = self._committed()
        self._watch_vanished(etcd, committed, now)
        self.lead, self._standing, self._base = "etcd", {}, {}
        notes: list[Effect] = []
        if self._held_since_s is None and self._settled and (not committed or self._is_mass_loss(etcd)):
            self._held_since_s, self._released = now.monotonic_s, False
            self._held_ids = tuple(self._vanished_s)
            detail = f"registrations of {', '.join(self._vanished_s)} vanished without a word; the last ring stands"
            notes.append(_note(now, "hold", "", "ring", detail))
        self._wipe_count = etcd.wipe_count
        if self._held_since_s is not None:
            ending = self._hold_ending(committed, now)
            if not ending:
                self.lead, self._standing = "held", self._settled
                return notes
            notes.append(_note(now, "hold-ended", "", "ring", ending))
            self._held_since_s = None
            self._vanished_s.clear()
        return notes

    def _let_gossip_lead(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        """The last committed ring, less those who are gone for long, where most of it is heard."""
        notes: list[Effect] = []
        if not self._base:
            # Any committed view comes before a provisional one.
            self._adoption_count = -1 if self.has_provisional_ring else etcd.adoption_count
            self._base = dict(self.ring_members or self._committed())
            self._base_heard_since_s, self._was_minority, self._unheard = inf, False, {}
            self._held_since_s = None
            notes.append(
                _note(now, "gossip-leads", "", "ring", f"etcd is silent for everybody heard: {etcd.status(now).reason}")
            )
        self.lead, self._takeover_since_s = "gossip", None
        if self._adoption_count != etcd.adoption_count:
            self._adoption_count = etcd.adoption_count
            committed = self._committed()
            is_better = self.has_provisional_ring and not etcd.found_all_lapsed
            if is_better or not self._is_doubtful(etcd, committed):
                self._base, self.has_provisional_ring = committed or self._base, False
        self._listen_to_base(now)
        if self._base_heard_since_s < inf:
            for node_id, member in self._base.items():
                if node_id in self._removed:
                    continue
                if self._is_gone_for_long(node_id, member, now, self._base_heard_since_s):
                    self._removed[node_id] = self._newest(member).epoch
                    detail = f"gossip says {self._said(node_id, member)}, and etcd is silent"
                    notes.append(_note(now, "removed", node_id, "ring", detail))
        self._standing = {
            item: self._newest(member) for item, member in self._base.items() if item not in self._removed
        }
        return notes

    def _listen_to_base(self, now: Instant) -> None:
        """Take note whether most of the last view is heard.

        Whom this node lost while it heard a minority may well live: their time begins anew with the majority.
        """
        unheard = [item for item in self._base if not self._is_heard(item)]
        self._unheard.update(dict.fromkeys(unheard))
        if 2 * len(unheard) >= len(self._base):
            self._base_heard_since_s, self._was_minority = inf, True
        elif self._base_heard_since_s == inf:
            self._base_heard_since_s = now.monotonic_s

    def _is_doubtful(self, etcd: EtcdMembership, committed: dict[NodeId, Member]) -> bool:
        """Whether a peer's listing lacks so many of the last view, and gossip hears them, that etcd has lost them."""
        lost = [
            item for item in self._base if item not in committed and etcd.departed.get(item) not in ("left", "evicted")
        ]
        is_mass = len(lost) >= max(MASS_LOSS_MIN, (len(self._base) + 1) // 2)
        return is_mass and 2 * sum(map(self._is_heard, lost)) > len(lost)

    def _is_left_behind(self, etcd: EtcdMembership) -> bool:
        """Whether the others went on without this node: it was evicted, or its lease ended and theirs did not.

        The latter only where it heard a minority for a time, or did not run: else they hear it, and an etcd that stood
        still ends the leases of all, one after the other.
        """
        own, registrations = self.settings.id, etcd.registrations
        if own in registrations or own not in self._base or len(self._base) == 1:
            return False
        if etcd.departed.get(own) == "evicted":
            return True
        return self._was_alone() and any(
            item in registrations and registrations[item].member.epoch == member.epoch
            for item, member in self._base.items()
        )

    def _was_alone(self) -> bool:
        """Whether this node heard a minority for a time, or did not run, since etcd's word made the ring."""
        return self._was_minority or self.stood_still_s > -inf

    def _take_over(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        """With etcd back: its word counts once everybody who is heard has registered, or after a while.

        Where nobody was registered, and this node knows no ring, the others have a moment to be heard at all.
        For who was left behind it counts at once: what the others wrote meanwhile is where their ring says, and what
        this node keeps lacks it.
        """
        if self._takeover_since_s is None:
            self._takeover_since_s = now.monotonic_s
        if self._is_left_behind(etcd):
            return self._end_takeover(etcd, {}, "the others went on without this node", now)
        self._listen_to_base(now)
        missing = [item for item in self._heard_ids() if item not in etcd.registrations]
        wait_s = self.settings.takeover_max if missing else 0.0 if self.ring_members else GATHER_S
        if not self._committed() or self._before(self._takeover_since_s + wait_s, now):
            self.lead = "takeover"
            return []
        # Who has not registered in time may have a moment more, or the ring is held: etcd may have lost most of it.
        settled = {} if self.has_provisional_ring else dict(self._standing)
        who = f"without {', '.join(missing)}" if missing else "everybody who is heard has registered"
        return self._end_takeover(etcd, settled, who, now)

    def _end_takeover(
        self, etcd: EtcdMembership, settled: dict[NodeId, Member], why: str, now: Instant
    ) -> list[Effect]:
        self._vanished_s.clear()
        self._settled, self._takeover_since_s, self.has_provisional_ring = settled, None, False
        return [_note(now, "etcd-leads", "", "ring", why), *self._let_etcd_lead(etcd, now)]

    def _start_cold(self, now: Instant) -> list[Effect]:
        """Nobody knows a committed view: after a while, and with enough members heard, make a provisional ring."""
        self.lead = "cold"
        if self.etcd is not None and now.monotonic_s >= self.etcd.silent_since_s() + GOSSIP_LEADS_AFTER_S:
            self._takeover_since_s = None
        expected = self.settings.bootstrap_expect if self.settings.join else 1
        if not self.has_provisional_ring:
            if self._before(self._started_s + self.settings.bootstrap_after, now) or len(self._heard_ids()) < expected:
                return []
            self.has_provisional_ring = True
            self._standing = self._hearsay(now)
            detail = f"{len(self._standing)} members are heard, and nobody knows what etcd has registered"
            return [_note(now, "provisional-ring", "", "ring", detail)]
        self._standing = self._hearsay(now)
        return []

    def _hearsay(self, now: Instant) -> dict[NodeId, Member]:
        """Return whoever gossip hears, and for a while whom it has lost: those who said goodbye leave at once."""
        members = {self.swim.member.id: self.swim.member}
        for node_id, record in self.swim.table.members.items():
            is_candidate = node_id in self.ring_members or record.live_index >= 0
            if is_candidate and not self._is_gone_for_long(node_id, record.member, now):
                members[node_id] = record.member
        return members

    # --- registrations that vanished ------------------------------------------------------------------

    def _watch_vanished(self, etcd: EtcdMembership, committed: dict[NodeId, Member], now: Instant) -> None:
        """Keep track of owners whose registration went with neither a leave nor an eviction to explain it."""
        since_s = now.monotonic_s
        for node_id in self._settled:
            is_explained = etcd.departed.get(node_id) in ("left", "evicted") or node_id in self._removed
            if node_id in committed or is_explained:
                self._vanished_s.pop(node_id, None)
            elif node_id in self.ring_members:
                self._vanished_s.setdefault(node_id, since_s)
        if self._held_since_s is None:  # What vanished longer ago than a lease is no part of a later loss.
            lease_s = self.settings.lease_ttl + VANISHED_AFTER_S
            self._vanished_s = {
                item: at_s for item, at_s in self._vanished_s.items() if self._before(at_s + lease_s, now)
            }

    def _is_mass_loss(self, etcd: EtcdMembership) -> bool:
        """Whether so much vanished within one lease, while gossip hears most of them, that etcd is in doubt.

        A wiped etcd has lost them all, though most may have registered again before this node lists: whoever lists
        first and last must keep the same ring.
        """
        vanished = list(self._vanished_s)
        if etcd.wipe_count != self._wipe_count:
            return bool(vanished)
        if len(vanished) < max(MASS_LOSS_MIN, (len(self._settled) + 1) // 2):
            return False
        return 2 * sum(map(self._is_heard, vanished)) > len(vanished)

    def _hold_ending(self, committed: dict[NodeId, Member], now: Instant) -> str:
        """Say why the hold is over; empty while it is not. With nothing registered it is not."""
        assert self._held_since_s is not None
        missing = [item for item in self._settled if item in self._vanished_s and not self._is_gone(item)]
        if not committed:
            return ""
        if not missing:
            return "all members registered again"
        if self._released:
            return "an operator let it go"
        if 2 * sum(map(self._is_gone, self._held_ids)) >= len(self._held_ids):
            return "gossip calls half of those who vanished dead"
        if not self._before(self._held_since_s + self.settings.hold_max, now):
            return f"not registered again in time: {', '.join(missing)}"
        return ""

    def release(self, now: Instant) -> list[Effect]:
        """Let a held ring go, as soon as anything is registered."""
        if self._held_since_s is None:
            return []
        self._released, self._due_s = True, -inf
        return [_note(now, "hold-released", "", "ring", "by an operator")]

    # --- what gossip says -----------------------------------------------------------------------------

    def _is_heard(self, node_id: NodeId) -> bool:
        record = self.swim.table.members.get(node_id)
        return node_id == self.settings.id or (record is not None and record.state == "alive")

    def _heard_ids(self) -> list[NodeId]:
        """Return everybody who is heard and does not leave, this node included."""
        others = [item.member.id for item in self.swim.table.live if item.state == "alive"]
        return sorted([*others, *([] if self.swim.is_leaving else [self.settings.id])])

    def _is_gone(self, node_id: NodeId) -> bool:
        record = self.swim.table.members.get(node_id)
        return record is not None and record.state in ("dead", "left")

    def _newest(self, member: Member) -> Member:
        """Return the newest known life of a member: it may have begun anew while etcd is silent."""
        record = self.swim.table.members.get(member.id)
        other = self.swim.member if member.id == self.settings.id else record.member if record is not None else member
        return other if other.epoch > member.epoch else member

    def _is_gone_for_long(self, node_id: NodeId, member: Member, now: Instant, from_s: float = -inf) -> bool:
        """Whether gossip has called this life left, or dead for `gossip_evict_after`, not counting what was before."""
        said, record = self._said(node_id, member), self.swim.table.members.get(node_id)
        if said == "left":
            return True
        if said != "dead" or record is None:
            return False
        return not self._before(max(record.since_s, from_s) + self.settings.gossip_evict_after, now)

    def _said(self, node_id: NodeId, member: Member) -> GossipWitness:
        """Return what gossip says of a life; one that it has not met is unknown, whatever became of the last."""
        if node_id == self.settings.id:
            return "left" if self.swim.is_leaving else "alive"
        record = self.swim.table.members.get(node_id)
        if record is None or (record.live_index < 0 and record.member.epoch < member.epoch):
            return "unknown"
        return record.state

    def _meet(self, etcd: EtcdMembership, now: Instant) -> None:
        """Note since when a registered life is one that gossip has not met."""
        self._unknown_s = {
            node_id: self._unknown_s.get(node_id, now.monotonic_s)
            for node_id, item in etcd.registrations.items()
            if self._said(node_id, item.member) == "unknown"
        }
        for since_s in self._unknown_s.values():
            self._before(since_s + self.settings.unknown_timeout, now)

    def _gossip_word(self, node_id: NodeId, member: Member, connected: dict[NodeId, bool], now: Instant) -> GossipWord:
        said = self._said(node_id, member)
        if said == "unknown" and node_id in self._unknown_s and not connected.get(node_id):
            overdue_s = self._unknown_s[node_id] + self.settings.unknown_timeout
            return "overdue" if now.monotonic_s >= overdue_s else "unknown"
        return said

    # --- evictions ------------------------------------------------------------------------------------

    def _gone(self, etcd: EtcdMembership, connected: dict[NodeId, bool], majority_since_s: float) -> dict[NodeId, Gone]:
        """Return who of the registered may be evicted."""
        gone: dict[NodeId, Gone] = {}
        for node_id, registration in sorted(etcd.registrations.items()):
            said, record = self._said(node_id, registration.member), self.swim.table.members.get(node_id)
            if said == "unknown" and not connected.get(node_id):
                unknown_s = self._unknown_s[node_id]
                gone[node_id] = Gone(unknown_s + self.settings.unknown_timeout, "gossip says unknown", unknown_s)
            elif self._is_removed(registration.member):
                gone[node_id] = Gone(majority_since_s, f"removed while etcd was away; gossip says {said}", -inf)
            elif said == "left" and record is not None:
                gone[node_id] = Gone(record.since_s, "gossip says left", -inf)  # Its own word.
            elif said == "dead" and record is not None:
                dead_s = max(record.since_s, majority_since_s) + self.settings.evict_after
                gone[node_id] = Gone(dead_s, "gossip says dead", record.since_s)
        gone.pop(self.settings.id, None)
        return gone

    def _forget_removed(self, etcd: EtcdMembership) -> None:
        """Who was removed while gossip led stays out until etcd has dropped that life, even if it lives.

        It may not know that it was out, and would serve what it kept; its eviction tells it.
        """
        for node_id, epoch in list(self._removed.items()):
            registration = etcd.registrations.get(node_id)
            if registration is None or registration.member.epoch > epoch:
                del self._removed[node_id]

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

    # --- what is shown --------------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether the ring is just what etcd has registered: no hold, no grace, nobody removed meanwhile."""
        return self.lead == "etcd" and not self._vanished_s and not self._removed

    def _look_for_others(self, etcd: EtcdMembership | None, now: Instant) -> list[Effect]:
        """Find out whether etcd is reached and nobody of several others gives a sign: this node is the one cut off.

        After a while of silence everybody is asked: those who doubt themselves ask rarely, and that is no isolation.
        """
        self.is_isolated = False
        if etcd is None or not etcd.reachable or len(etcd.registrations) < ISOLATED_MIN:
            return []
        heard_s = self.swim.heard_s
        if self._before(heard_s + ISOLATED_ASK_S, now):
            return []
        self.is_isolated = not self._before(heard_s + ISOLATED_AFTER_S, now)
        if self._before(self._asked_s + ISOLATED_ASK_AGAIN_S, now):
            return []
        self._asked_s = now.monotonic_s
        self._before(self._asked_s + ISOLATED_ASK_AGAIN_S, now)
        return self.swim.ask_for_a_sign(now)

    def _named_authority(self, now: Instant) -> Authority:
        """Name the witness that leads."""
        match self.lead:
            case "alone":
                return "gossip"
            case "takeover":
                return "gossip" if self.ring_members else "none"
            case "held":
                return "held"
            case "cold":
                return "gossip" if self.has_provisional_ring else "none"
            case "gossip":
                return "gossip" if 2 * sum(map(self._is_heard, self._base)) > len(self._base) else "none"
            case "etcd":
                return self._etcd_authority(now)

    def _etcd_authority(self, now: Instant) -> Authority:
        etcd = self.etcd
        assert etcd is not None
        if not etcd.reachable:
            return "relayed" if now.monotonic_s < etcd.relayed_until_s else self._authority
        if self.is_isolated:
            return "none"
        heard = [item for item in etcd.registrations if self._is_heard(item)]
        if 2 * len(heard) <= len(etcd.registrations):
            return "etcd"
        records = self.swim.table.members
        blocked = sum(records[item].is_udp_blocked for item in heard if item in records)
        return "etcd" if 2 * blocked > len(etcd.registrations) - 1 > 0 else "both"

    def _view(self, connected: dict[NodeId, bool], now: Instant) -> ClusterView:
        etcd = self.etcd
        listed: dict[NodeId, Member] = dict(self.ring_members)
        listed.update((node_id, record.member) for node_id, record in self.swim.table.members.items())
        if etcd is not None:
            listed.update((item.member.id, item.member) for item in etcd.registrations.values())
        listed.setdefault(self.settings.id, self.swim.member)
        rows = tuple(self._row(listed[node_id], connected, now) for node_id in sorted(listed))
        self._witness = {row.member.id: (row.etcd, row.etcd_since_s) for row in rows}
        return ClusterView(
            authority=self._authority,
            authority_since_s=self._authority_since_s,
            etcd=etcd.status(now) if etcd else EtcdStatus("off", 0, None, ""),
            generation=etcd.generation if etcd else 0,
            revision=etcd.revision if etcd else 0,
            digest=ring_digest(self.ring_members.values(), self.settings.replicas, self.settings.virtual_nodes),
            members=rows,
            owners=tuple(sorted(self.ring_members)),
            committed_count=max(len(self.ring_members), len(self._base)),
        )

    def _row(self, member: Member, connected: dict[NodeId, bool], now: Instant) -> MemberView:
        node_id = member.id
        in_ring = node_id in self.ring_members
        record = self.swim.table.members.get(node_id)
        gossip = self._said(node_id, member)
        rule = self._rule(node_id, member, connected, now)
        verdict, reason = rule.verdict, rule.sentence.replace("{state}", member.state).replace("{gossip}", gossip)
        reason = reason.replace("{gossip_grace}", f"{self.settings.gossip_evict_after:g} s")
        is_cut = rule.routed and node_id != self.settings.id and not connected.get(node_id, True)
        if is_cut:
            verdict = "unreachable" if verdict == "agree" else verdict
            reason += "; it cannot be reached from here"
        witness, revision = self._testimony(node_id, now)
        known_witness, since_s = self._witness.get(node_id, (None, now.monotonic_s))
        is_self = node_id == self.settings.id
        return MemberView(
            member=member,
            gossip=gossip,
            gossip_since_s=0.0 if is_self else record.since_s if record is not None and gossip != "unknown" else None,
            incarnation=self.swim.incarnation if is_self else record.incarnation if record is not None else 0,
            etcd=witness,
            etcd_revision=revision,
            etcd_since_s=since_s if witness == known_witness else now.monotonic_s,
            in_ring=in_ring,
            routable=rule.routed and not is_cut,
            verdict=verdict,
            reason=reason,
        )

    def _etcd_word(self, node_id: NodeId, now: Instant) -> EtcdWord:
        registration = self.etcd.registrations.get(node_id) if self.etcd is not None else None
        if registration is None:
            # Who left the ring meanwhile does not come back without a commit.
            is_lapsed = self.lead == "etcd" and node_id in self._vanished_s and node_id in self.ring_members
            if node_id == self.settings.id and self.stood_still_s > -inf:
                is_lapsed = False  # For how long its registration has been gone, it cannot know.
            grace_s = self._vanished_s[node_id] + self.settings.expiry_grace if is_lapsed else -inf
            return "lapsed" if self._before(grace_s, now) else "absent"
        if registration.member.state == "joining":
            return "joining"
        return "removed" if self._is_removed(registration.member) else "registered"

    def _testimony(self, node_id: NodeId, now: Instant) -> tuple[EtcdWitness, int]:
        etcd = self.etcd
        if etcd is None:
            return "off", 0
        registration = etcd.registrations.get(node_id)
        revision = registration.mod_revision if registration else 0
        if now.monotonic_s >= etcd.silent_since_s():
            return "unreachable", revision
        return ("registered" if registration else "absent"), revision

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; for tests and the simulator."""
        assert not self._unbacked, f"joined the ring without a commit: {self._unbacked}"


def _note(now: Instant, kind: str, member: NodeId, source: str, detail: str) -> Note:
    return Note(TimelineEntry(now.unix_ms, kind, member, source, detail))  # type: ignore[arg-type]
