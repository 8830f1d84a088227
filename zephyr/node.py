"""The node: composes the machines, and holds no policy of its own.

The control plane goes through `handle(event, now) -> effects`; one event is one synchronous call, so no
view is ever torn. The data plane goes through typed methods. `deadline()` tells when to send the next
`TimerFired`. No socket, clock, task or log is known here, so the same object runs under
`zephyr.runtime` and under `chaos.simulator`.

A new view takes effect when its ring has been built, slice by slice: until then requests use the ring
before it, and pages show the view before it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeAlias

from zephyr.cluster import Reconciler
from zephyr.config import Settings
from zephyr.confirmation import Confirmation
from zephyr.etcd.lease import EtcdMembership
from zephyr.etcd.relay import Relay
from zephyr.events import (
    DatagramReceived,
    Effect,
    EtcdCallFailed,
    EtcdKeysChecked,
    EtcdSnapshotRead,
    EtcdTransactionDone,
    EtcdWatched,
    EtcdWatchEnded,
    Event,
    EvictionRequested,
    HoldReleaseRequested,
    IdentityProbed,
    LeaseGranted,
    LeaseKeptAlive,
    LeaseRevoked,
    LeaveRequested,
    LoopLagged,
    Note,
    PeerAnswered,
    PeerCallFailed,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    PublishView,
    SeedsResolved,
    SetPeers,
    Started,
    Stop,
    StreamFailed,
    StreamReceived,
    StreamReplied,
    TimerFired,
)
from zephyr.gossip.swim import Swim
from zephyr.model import (
    ClusterView,
    Instant,
    Member,
    NodeId,
    Outcome,
    ReadRequest,
    ScanRequest,
    TimelineEntry,
    UpdateRequest,
    WriteRequest,
)
from zephyr.peer.wire import Operation, Status
from zephyr.replication.coordinator import Coordinator, Pending
from zephyr.replication.hints import CALL_ID_MIN as HINTS_CALL_ID_MIN
from zephyr.replication.leftovers import Leftovers
from zephyr.replication.level import CALL_ID_MIN as LEVEL_CALL_ID_MIN
from zephyr.replication.level import Levels
from zephyr.replication.survey import CALL_ID_MIN as SURVEY_CALL_ID_MIN
from zephyr.replication.survey import Survey
from zephyr.replication.update import encode_outcome
from zephyr.ring.ring import Ring, RingBuilder, RingMember, build_ring, key_slot
from zephyr.store.record import HybridLogicalClock
from zephyr.store.store import Store

TIMELINE_MAX = 1000
"""Entries kept for /debug/timeline: hours of a calm cluster, minutes of a stormy one."""
EXPIRY_SLICE_KEYS = 200
"""Keys expired by one slice: each costs 6 us, 12 where the machine is busy, and far more memory than cache."""
EXPIRY_PAUSE_S = 0.004
"""Time between two slices of active expiry while there is more to expire: 50,000 keys a second at most."""
EXPIRY_PERIOD_S = 1.0
"""Time between two looks for expired entries: reads never see one anyway, but its memory is wanted."""
LEAVE_LINGER_S = 0.5
"""How long a node that left goes on serving peers: their watches need a moment to tell them."""

Service: TypeAlias = Callable[[tuple[Any, ...], bytes, Instant], tuple[int, tuple[Any, ...]] | Pending]
"""(arguments, the caller's ring digest, now) -> (status, payload), or an answer that comes later."""


class Node:
    """One member of the cluster, without its sockets."""

    def __init__(self, settings: Settings, member: Member, rng: random.Random, now: Instant) -> None:
        """`member` announces this life: bound addresses, `epoch` = unix ms at start."""
        self.settings = settings
        self.timeline: deque[TimelineEntry] = deque(maxlen=TIMELINE_MAX)
        self.timeline_first = self.timeline_end = now.unix_ms
        """Numbers of the first entry there ever was, and of the next one: two lives of one id never share any."""
        self.ring_change_count = 0
        """How often the table of owners changed."""
        self.store = Store(
            memory_bytes_max=settings.memory,
            tombstone_bytes_max=settings.tombstone_memory,
            tombstone_grace_ms=round(settings.tombstone_grace * 1000),
            ghosts_max=settings.ghosts_max,
            eviction=settings.eviction,
            slot_of=key_slot,
        )
        self.etcd = EtcdMembership(settings, member, rng, now) if settings.etcd else None
        self.swim = Swim(settings, member, rng)
        self.relay = Relay(settings, self.etcd) if self.etcd is not None else None
        self.cluster = Reconciler(settings, self.etcd, self.swim, now)
        self.confirmation = Confirmation(settings, self.etcd, self.swim, now)
        self.ring: Ring = build_ring((), settings.replicas, settings.virtual_nodes)
        self.clock = HybridLogicalClock(settings.id)
        self.levels = Levels(settings.id, self.ring, self.store, self.clock)
        self.leftovers = Leftovers(settings.id, self.store, settings.evict_after)
        self.coordinator = Coordinator(
            settings, self.ring, self.store, self.clock, self.levels.is_level, phi=self._phi_of
        )
        self.hints = self.coordinator.hints
        self.survey = Survey(settings, self.coordinator.replica)
        self.begin_read = self.coordinator.begin_read
        self.begin_write = self.coordinator.begin_write
        self.begin_update = self.coordinator.begin_update
        self.begin_all = self.coordinator.begin_all
        self._connected: dict[NodeId, bool] = {}
        self._living: dict[NodeId, bool] = {}
        self._routable: dict[NodeId, bool] = {}
        self._peers: tuple[Member, ...] = ()
        self._building: RingBuilder | None = None
        self._view_next: ClusterView | None = None
        self._witness_changes_seen = (-1, -1)
        self._connections_changed = False
        self._expire_at_s = now.monotonic_s + EXPIRY_PERIOD_S
        self._leave_asked = False
        self._stop_at_s = inf
        self._stopped = False
        self.view, _ = self.cluster.reconcile(self._connected, now)
        self._is_owner = False
        """Whether this node stands in `view`'s ring: asked with each event."""
        self._handlers: dict[type, Callable[[Any, Instant], list[Effect]]] = {
            Started: self._on_started,
            TimerFired: lambda _event, now: self.swim.poll(now),
            LeaveRequested: self._on_leave_requested,
            EvictionRequested: lambda event, now: self.cluster.evict(event.node_id, now),
            HoldReleaseRequested: lambda _event, now: self.cluster.release(now),
            IdentityProbed: self._on_probed,
            PeerConnected: self._on_peer_connected,
            PeerDisconnected: self._on_peer_disconnected,
        }
        self._handlers |= {PeerAnswered: self._on_peer_answered, PeerCallFailed: self._on_peer_call_failed}
        self._handlers |= dict.fromkeys(
            (DatagramReceived, StreamReceived, StreamReplied, StreamFailed, SeedsResolved, LoopLagged, PeerRefused),
            self.swim.handle,
        )
        self._services = self._table_of_services()
        if self.etcd is not None:
            self._handlers |= {
                EtcdSnapshotRead: self.etcd.on_snapshot,
                EtcdKeysChecked: self.etcd.on_checked,
                EtcdWatched: self.etcd.on_watched,
                EtcdWatchEnded: self.etcd.on_watch_ended,
                LeaseGranted: self.etcd.on_granted,
                LeaseKeptAlive: self._on_kept_alive,
                LeaseRevoked: lambda _event, now: self.etcd.on_revoked(now) if self.etcd is not None else [],
                EtcdTransactionDone: self.etcd.on_transacted,
                EtcdCallFailed: self._on_etcd_failed,
            }

    # --- what others read ---------------------------------------------------------------------------

    @property
    def member(self) -> Member:
        """This node's current life."""
        return self.swim.member

    def readiness(self) -> tuple[str, ...]:
        """Return what is missing before clients should be sent here; empty: ready.

        Once in the ring, a lost etcd changes nothing while most of the last view is heard. Started without etcd, a node
        is ready when it coordinates on what its peers know.
        """
        missing = []
        if self._leave_asked:
            missing.append("leaving the cluster")
        if self.etcd is None and self.settings.join and not self.swim.table.members:
            missing.append(f"nobody has answered yet at {', '.join(self.settings.join)}")
        is_reached = self.etcd is None or self.etcd.reachable
        if self.settings.id not in self.view.owners:
            missing += self._why_no_owner(is_reached=is_reached)
        elif self.cluster.is_isolated:
            missing.append("none of the other members can be heard")
        elif not self.levels.is_done:
            missing.append(f"not level yet: {self.levels.pending} slots are to be fetched from the others")
        elif self.coordinator.skew.is_off:
            missing.append(f"this node's clock is {abs(self.coordinator.skew.ms)} ms from its peers'")
        elif self.view.authority == "none" and not is_reached:
            missing.append("etcd cannot be reached, and most of the last ring is not heard")
        return tuple(missing)

    def _why_no_owner(self, *, is_reached: bool) -> list[str]:
        if self.cluster.is_gathering:
            return ["not in the ring yet: all leases had ended, and whoever lives has a moment to register again"]
        if is_reached:
            return ["not in the ring yet"]
        if not self.view.owners or self.view.authority == "none":
            return [f"etcd cannot be reached: {self.view.etcd.reason}; retrying"]
        return []

    def eviction_objection(self, node_id: NodeId) -> str:
        """Say why this node cannot propose that a member be evicted; empty: it can."""
        return self.cluster.eviction_objection(node_id)

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; for tests and the simulator."""
        self.coordinator.check_invariants()
        self.swim.check_invariants()
        self.cluster.check_invariants()
        self.levels.check_invariants()
        if self.view.authority in ("both", "gossip"):
            routed = [row.member.id for row in self.view.members if row.routable and row.gossip in ("dead", "left")]
            assert not routed, f"sent requests, and called dead: {routed}"
        assert self.view.owners or not self.ring_change_count, "a ring once seen is never empty"

    def deadline(self) -> float:
        """Return the monotonic second at which `TimerFired` is due; -inf: now."""
        if self._building is not None:
            return -inf
        return min(
            inf if self.etcd is None else self.etcd.deadline(),
            self.swim.deadline(),
            self.cluster.deadline(),
            inf if self.relay is None else self.relay.deadline(),
            self.confirmation.deadline(),
            self.levels.deadline(),
            self.leftovers.deadline(),
            self.coordinator.deadline(),
            self.hints.deadline(),
            self.survey.deadline(),
            self._expire_at_s,
            inf if self._stopped else self._stop_at_s,
        )

    # --- control plane ------------------------------------------------------------------------------

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        """Take in one event; return what must be done, in order."""
        if self.confirmation.stood_still(now):
            self.cluster.stood_still_s = now.monotonic_s
        effects = self._handlers[type(event)](event, now)
        if self.etcd is not None and self.relay is not None:
            if self.coordinator.replica.view_doubted:
                self.coordinator.replica.view_doubted = False
                self.etcd.request_check(now)
                self.relay.request(now)
            effects += self.etcd.poll(now)
            effects += self.relay.poll(self._connected, now)
            effects += self._agree_on_epoch(self.etcd, now)
        effects += self.coordinator.poll(now)
        effects += self._reconcile(now)
        effects += self._build(now)
        if self.leftovers.poll(self.ring, now):
            self.levels.begin_anew(now)
        effects += self._level(now)
        effects += self._confirm(now)
        effects += self.hints.poll(self.ring, self._routable, now)
        effects += self.survey.poll(now)
        self._expire(now)
        effects += self._stop(now)
        for effect in effects:
            if type(effect) is Note:
                self.timeline.append(effect.entry)
                self.timeline_end += 1
        return effects

    def _on_started(self, _event: Started, now: Instant) -> list[Effect]:
        effects = self.swim.start(now)
        if self.etcd is not None:
            effects += self.etcd.start(now)
        return effects

    def _agree_on_epoch(self, etcd: EtcdMembership, now: Instant) -> list[Effect]:
        """Announce a new registration by gossip; register above a life that gossip remembers."""
        if etcd.member.epoch >= self.swim.member.epoch:
            return self.swim.update(etcd.member, now)
        return etcd.renew_epoch(self.swim.member.epoch, now)

    def _on_leave_requested(self, _event: LeaveRequested, now: Instant) -> list[Effect]:
        self._leave_asked = True
        effects = self.swim.leave(now)
        if self.etcd is not None:
            return effects + self.etcd.leave(now)
        self._stop_at_s = min(self._stop_at_s, now.monotonic_s + LEAVE_LINGER_S)
        return effects

    def _on_probed(self, event: IdentityProbed, now: Instant) -> list[Effect]:
        return self.etcd.on_probed(event, now) if self.etcd is not None else []

    def _on_peer_connected(self, event: PeerConnected, now: Instant) -> list[Effect]:
        node_id = event.member.id
        effects = self.swim.handle(event, now)
        if self._connected.get(node_id) is not True:
            self._connected[node_id] = self._connections_changed = True
            effects.append(self._note(now, "peer-connected", node_id, f"epoch {event.member.epoch}"))
        return effects

    def _on_peer_disconnected(self, event: PeerDisconnected, now: Instant) -> list[Effect]:
        effects = self.swim.handle(event, now)
        if self._connected.get(event.node_id) is False:
            return effects
        self._connected[event.node_id] = False
        self._connections_changed = True
        return [*effects, self._note(now, "peer-disconnected", event.node_id, event.reason)]

    def _phi_of(self, node_id: NodeId, now: Instant) -> float:
        record = self.swim.table.members.get(node_id)
        return self.swim.phi(record, now) if record is not None else 0.0

    def _on_peer_answered(self, event: PeerAnswered, now: Instant) -> list[Effect]:
        if event.call_id >= HINTS_CALL_ID_MIN:
            return self.hints.on_answered(event, self.ring, now)
        if event.call_id >= SURVEY_CALL_ID_MIN:
            return self.survey.on_answered(event)
        if event.call_id >= LEVEL_CALL_ID_MIN or self.relay is None:
            return self.levels.on_answered(event, now)
        return self.relay.on_answered(event, now)

    def _on_peer_call_failed(self, event: PeerCallFailed, now: Instant) -> list[Effect]:
        if event.call_id >= HINTS_CALL_ID_MIN:
            return self.hints.on_failed(event, now)
        if event.call_id >= SURVEY_CALL_ID_MIN:
            return self.survey.on_failed(event)
        if event.call_id >= LEVEL_CALL_ID_MIN or self.relay is None:
            return self.levels.on_failed(event, now)
        return self.relay.on_failed(event, now)

    def _on_kept_alive(self, event: LeaseKeptAlive, now: Instant) -> list[Effect]:
        """Renewals go to whoever asked for them: this node itself, or a peer."""
        assert self.etcd is not None
        assert self.relay is not None
        return [] if self.relay.took_renewal(event) else self.etcd.on_kept_alive(event, now)

    def _on_etcd_failed(self, event: EtcdCallFailed, now: Instant) -> list[Effect]:
        assert self.etcd is not None
        assert self.relay is not None
        return [] if self.relay.took_renewal(event) else self.etcd.on_failed(event, now)

    def _confirm(self, now: Instant) -> list[Effect]:
        """Find out whether this node may take itself for an owner; let requests that waited for that begin."""
        if self.etcd is None:
            return []
        is_owner = self._is_owner and not self.leftovers.is_dropping_all
        is_etcds_word = self.cluster.lead in ("etcd", "held")
        effects = self.confirmation.update(
            self.cluster.voters, self.coordinator.digest, now, is_owner=is_owner, is_etcds_word=is_etcds_word
        )
        may_be_left_out = self.cluster.may_be_left_out
        if self.confirmation.has_missed_writes(now, is_owner=self._is_owner, may_be_left_out=may_be_left_out):
            self.levels.begin_anew(now)
        return effects + self.coordinator.confirm(self.confirmation.until_s, now)

    def _level(self, now: Instant) -> list[Effect]:
        """Fetch what this node should have as an owner, from the others that own it too."""
        effects: list[Effect] = []
        if not self.levels.is_done:
            effects = self.levels.poll(self._living, now)
            if self.levels.is_done:
                text = f"{self.levels.pulled_records} records fetched since the start"
                effects.append(self._note(now, "level", "", text, source="repair"))
        self.coordinator.is_all_level = self.levels.is_done
        return effects

    def _reconcile(self, now: Instant) -> list[Effect]:
        """Compute the view anew when a witness said something new or a hold is over."""
        changes = (self.swim.change_count, self.etcd.change_count if self.etcd is not None else 0)
        unchanged = changes == self._witness_changes_seen and not self._connections_changed
        if unchanged and now.monotonic_s < self.cluster.deadline():
            return []
        effects: list[Effect] = []
        if self.etcd is not None and changes[1] != self._witness_changes_seen[1]:
            effects += self.swim.introduce([item.member for item in self.etcd.registrations.values()], now)
        self._witness_changes_seen = changes
        self._connections_changed = False
        view, notes = self.cluster.reconcile(self._connected, now)
        effects += notes
        effects += self._set_peers(view)
        self.coordinator.route(view)
        self._routable = {row.member.id: True for row in view.members if row.routable}
        self._living = {row.member.id: True for row in view.members if row.gossip not in ("dead", "left")}
        if self.settings.id not in view.owners and self.settings.id in self.view.owners:
            self.leftovers.drop_all()
        if view.digest == self.coordinator.digest:
            self._building = self._view_next = None
            return [*effects, *self._publish(view)]
        if self._view_next is None or self._view_next.digest != view.digest or self._building is None:
            owners = [RingMember(item.id, item.weight, item.zone) for item in self.cluster.ring_members.values()]
            self._building = RingBuilder(owners, self.settings.replicas, self.settings.virtual_nodes)
        self._view_next = view
        return effects

    def _set_peers(self, view: ClusterView) -> list[Effect]:
        peers = tuple(
            row.member
            for row in view.members
            if row.member.id != self.settings.id and (row.in_ring or row.gossip not in ("dead", "left"))
        )
        if peers == self._peers:
            return []
        self._peers = peers
        self._connected = {peer.id: self._connected[peer.id] for peer in peers if peer.id in self._connected}
        return [SetPeers(peers)]

    def _build(self, now: Instant) -> list[Effect]:
        """Build one slice of the next ring, and use it when it is complete."""
        if self._building is None:
            return []
        ring = self._building.step()
        if ring is None:
            return []
        view = self._view_next
        assert view is not None
        self._building = self._view_next = None
        effects: list[Effect] = []
        if ring.members != self.ring.members:
            self.ring_change_count += 1
            effects.append(self._note(now, "ring-changed", "", f"owners: {', '.join(view.owners)}", source="ring"))
            self.leftovers.ring_changed()
        self.ring = ring
        self.levels.ring_changed(ring, now, is_etcds=self.etcd is not None)
        return [*effects, *self._publish(view), *self.coordinator.ring_changed(ring, view, now)]

    def _publish(self, view: ClusterView) -> list[Effect]:
        if view == self.view:
            return []
        self.view = view
        self._is_owner = self.settings.id in view.owners
        self.swim.ring_digest = view.digest
        return [PublishView(view)]

    def _expire(self, now: Instant) -> None:
        """Remove expired entries, a slice at a time."""
        if now.monotonic_s < self._expire_at_s:
            return
        unix_ms = self.clock.now_unix_ms(now.unix_ms)
        self.store.expire(unix_ms, EXPIRY_SLICE_KEYS)
        due_unix_ms = self.store.next_expiry_unix_ms()
        more = due_unix_ms is not None and due_unix_ms <= unix_ms
        self._expire_at_s = now.monotonic_s + (EXPIRY_PAUSE_S if more else EXPIRY_PERIOD_S)

    def _stop(self, now: Instant) -> list[Effect]:
        """End the program some time after the leave is done."""
        if self.etcd is not None and self.etcd.left and self._stop_at_s == inf:
            self._stop_at_s = now.monotonic_s + LEAVE_LINGER_S
        if now.monotonic_s < self._stop_at_s or self._stopped:
            return []
        self._stopped = True
        return [Stop(0, "left the cluster")]

    def _note(self, now: Instant, kind: str, member: NodeId, detail: str, source: Any = "node") -> Note:
        return Note(TimelineEntry(now.unix_ms, kind, member, source, detail))

    # --- data plane ---------------------------------------------------------------------------------

    begin_read: Callable[[ReadRequest, Instant], Outcome | Pending]
    """Read a key for a client: the outcome at once, or what to send meanwhile."""
    begin_write: Callable[[WriteRequest, Instant], Outcome | Pending]
    """Write or delete a key for a client."""
    begin_update: Callable[[UpdateRequest, Instant], Outcome | Pending]
    """Make a change that depends on what stands, for a client."""
    begin_all: Callable[[Sequence[ReadRequest | WriteRequest], Instant], tuple[list[Outcome | Pending], list[Effect]]]
    """Begin many requests at once: what became of each, and what to send for all."""

    def begin_scan(self, request: ScanRequest, now: Instant) -> Pending:
        """List a page of keys for a client; ends in a `CompleteSurvey`."""
        return self.survey.begin_scan(request, self._routable, now)

    def begin_explain(self, key: bytes, now: Instant) -> Pending:
        """Ask everybody what they hold of a key; ends in a `CompleteSurvey`."""
        return self.survey.begin_explain(key, self._living, now)

    def serve_peer(
        self, operation: int, arguments: tuple[Any, ...], ring_digest: bytes, now: Instant
    ) -> tuple[int, tuple[Any, ...]] | Pending:
        """Answer a peer's request: (status, payload); or later, with a `CompleteRequest` (`encode_outcome`)."""
        serve = self._services.get(operation)
        if serve is None:
            return self.coordinator.replica.serve(operation, arguments, ring_digest, now)
        return serve(arguments, ring_digest, now)

    def _serve_update(
        self, arguments: tuple[Any, ...], ring_digest: bytes, now: Instant
    ) -> tuple[int, tuple[Any, ...]] | Pending:
        result = self.coordinator.begin_forwarded(arguments, ring_digest, now)
        return (Status.OK, encode_outcome(result)) if isinstance(result, Outcome) else result

    def _serve_pull(
        self, arguments: tuple[Any, ...], _ring_digest: bytes, _now: Instant
    ) -> tuple[int, tuple[Any, ...]]:
        if self.leftovers.is_dropping_all:
            return Status.UNCONFIRMED, (None,)
        return self.levels.serve(arguments)

    def _table_of_services(self) -> dict[int, Service]:
        """Return who answers a peer's request: by operation; the replica where none is named."""
        services: dict[int, Service] = {
            Operation.PULL: self._serve_pull,
            Operation.LIST: lambda arguments, _digest, now: self.survey.serve_list(arguments, now),
            Operation.EXPLAIN: lambda arguments, _digest, now: self.survey.serve_explain(arguments, now),
            Operation.UPDATE: self._serve_update,
        }
        relay = self.relay
        if relay is not None:
            services[Operation.VIEW] = lambda arguments, _digest, now: relay.serve(arguments, now)
        return services

    def peer_replied(self, call_id: int, status: int, payload: tuple[Any, ...], now: Instant) -> list[Effect]:
        """A peer answered a `SendPeer`."""
        return self.coordinator.replied(call_id, status, payload, now)

    def peer_failed(self, call_id: int, reason: str, now: Instant, *, sent: bool) -> list[Effect]:
        """A `SendPeer` got no answer. `sent`: the peer may have received it."""
        return self.coordinator.failed(call_id, reason, now, sent=sent)
