"""What etcd says: this node's own registration, and the others' as evidence.

`EtcdMembership` is a pure machine. It decides when to list, watch, check, register, renew and leave, and
keeps what etcd said last. It never decides who owns data (that is `zephyr.cluster`), and it never
forgets a registration because etcd is silent: only etcd's own word removes one.

How it stays right (each seen on a real etcd):
- A watch from a future revision is created and stays silent, so a wiped etcd goes unseen by the watch:
  every third of a TTL one linearizable listing of the keys is compared with what is known.
- A revision lower than one seen *before the call was sent* means that etcd was wiped or restored. One
  seen while the call was under way proves nothing, since answers overtake each other.
- Expiry, revocation and eviction look alike, a bare deletion. The state `leaving` written first and the
  eviction mark tell them apart.
- A lease lives at least until its last acknowledged keep-alive was *sent*, plus its TTL.

Every duty (list, check, keep alive, ...) has at most one call under way, and retries with back-off.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from types import MappingProxyType

from zephyr.config import HASH_VERSION, Settings
from zephyr.etcd.registration import (
    ClusterSettings,
    EvictionMark,
    Keyspace,
    decode_registration,
    encode_registration,
)
from zephyr.events import (
    CheckKeys,
    Effect,
    EtcdCallFailed,
    EtcdEffect,
    EtcdKeysChecked,
    EtcdSnapshotRead,
    EtcdTransactionDone,
    EtcdWatched,
    EtcdWatchEnded,
    EvictMember,
    GrantLease,
    IdentityProbed,
    KeepLeaseAlive,
    KeyValue,
    LeaseGranted,
    LeaseKeptAlive,
    Note,
    ProbeIdentity,
    ReadSnapshot,
    RevokeLease,
    Stop,
    TransactKey,
    WatchKeys,
)
from zephyr.model import CommittedView, EtcdState, EtcdStatus, Instant, Member, NodeId, Registration, TimelineEntry

EVICT_TAG = "evict "
"""Begins the tag of an eviction; the id follows."""
REASON_AT_START = "not asked yet"
RETRY_FIRST_S = 0.1
"""First pause after a failed call; doubles up to `RETRY_MAX_S`."""
RETRY_MAX_S = 1.0
"""Longest pause: a returning etcd must find its members within seconds."""
REGISTER_PAUSE_S = 0.2
"""Least time between two registrations of this node: two processes that fight over an id must not spin."""
CHECK_PAUSE_S = 0.2
"""Least time between two comparisons that are asked for: each request that a peer refuses as *not owner* asks."""
DEPARTED_MAX = 1024
"""Departures remembered; the oldest are of no interest to anyone."""
DEPARTED_TOLD_MAX = 64
"""Departures told to a peer that cannot reach etcd, the latest first."""
FORMER_EPOCHS_MAX = 16
"""Earlier lives of this process that are recognised when one of them still stands in etcd."""


@dataclass(slots=True)
class _Duty:
    """Something to be done, again and again or once: at most one call of it is under way."""

    due_s: float = inf
    in_flight: bool = False
    failures: int = 0

    def want(self, at_s: float) -> None:
        """Be done at this time or earlier; a back-off that is running is respected."""
        if self.failures == 0:
            self.due_s = min(self.due_s, at_s)
        elif self.due_s == inf:
            self.due_s = at_s

    def start(self) -> None:
        self.in_flight, self.due_s = True, inf

    def succeed(self) -> None:
        self.in_flight, self.failures = False, 0

    def fail(self, now_s: float, rng: random.Random) -> None:
        self.in_flight = False
        pause_s = min(RETRY_FIRST_S * 2 ** min(self.failures, 16), RETRY_MAX_S)
        self.failures += 1
        self.due_s = now_s + pause_s * rng.uniform(0.75, 1.25)

    def cancel(self) -> None:
        self.due_s, self.failures = inf, 0


class EtcdMembership:
    """This node's dealings with etcd. Feed it events, carry out the effects, ask `deadline()` when to call again."""

    def __init__(self, settings: Settings, member: Member, rng: random.Random, now: Instant) -> None:
        self.settings = settings
        self.keyspace = Keyspace(settings.cluster)
        self.member = member
        """This node's current life. A new epoch each time it registers anew."""
        self.registrations: dict[NodeId, Registration] = {}
        """The last word of etcd, kept while etcd is silent."""
        self.evicted: dict[NodeId, EvictionMark] = {}
        """Marks of evictions, by the id of who was evicted."""
        self.departed: dict[NodeId, str] = {}
        """How members that are gone went: `left`, `evicted` or `expired`. Bounded with `registrations`' ids."""
        self.cluster_settings: ClusterSettings | None = None
        self.revision = 0
        self.change_count = 0
        """Grows with every change that others may care about."""
        self.wipe_count = 0
        """How often etcd was seen to have been wiped or restored."""
        self.listed = False
        """A listing has arrived at least once in this process."""
        self.found_all_lapsed = False
        """The first one knew the cluster, for longer than a lease, and had nobody registered but a former life."""
        self.lease_id = 0
        self.lease_deadline_s: float | None = None
        self.lease_sent_s = -inf
        """Monotonic seconds at which the last acknowledged renewal was sent."""
        self.verified_sent_s = -inf
        """Monotonic seconds at which the last question was sent whose answer showed that the picture is complete."""
        self.relayed_until_s = -inf
        """Until then what a peer read from etcd counts as etcd's own word."""
        self.adoption_count = 0
        """How often a peer's listing took the place of this node's own."""
        self.must_be_heard = False
        """This node was evicted, or its lease ended a while ago: it registers when most of the registered hear it."""
        self.left = False
        """The leave is done: etcd was told, or could not be."""
        self._rng = rng
        self._keys: dict[bytes, int] = {}
        self._watch_id = 0
        self._revision_when_sent = 0
        self._snapshot_sent_s = self._check_sent_s = -inf
        self._synced = self._leaving = self._epoch_used = False
        self._leave_deadline_s = inf
        self._registration_allowed = True
        self._register_pause_until_s = -inf
        self._epoch_highest = member.epoch
        self._former_epochs: deque[int] = deque(maxlen=FORMER_EPOCHS_MAX)
        self._silent_occupant_revision = 0
        self._reason = REASON_AT_START
        self._reason_since_s: float | None = now.monotonic_s
        self._snapshot, self._check, self._keep_alive, self._grant = (_Duty() for _ in range(4))
        self._register, self._publish_settings, self._probe, self._revoke = (_Duty() for _ in range(4))

    # --- what others read ---------------------------------------------------------------------------

    @property
    def registered(self) -> bool:
        """Whether this life of this node stands in etcd, as far as is known."""
        own = self.registrations.get(self.member.id)
        return own is not None and own.member.epoch == self.member.epoch and own.lease_id == self.lease_id != 0

    @property
    def reachable(self) -> bool:
        """Whether the last call got an answer and the picture is complete."""
        return self._reason_since_s is None

    @property
    def is_known(self) -> bool:
        """Whether anybody ever told what etcd has registered."""
        return self.listed or self.adoption_count > 0

    def silent_since_s(self) -> float:
        """Return the monotonic second from which nobody's word of etcd counts; infinity while etcd answers here."""
        return inf if self._reason_since_s is None else max(self._reason_since_s, self.relayed_until_s)

    @property
    def generation(self) -> int:
        """The generation of the cluster's settings; 0 before they were read."""
        return self.cluster_settings.generation if self.cluster_settings else 0

    def status(self, now: Instant) -> EtcdStatus:
        """Return how this node stands with etcd, for views and pages."""
        reason = "" if self.reachable else self._reason
        state: EtcdState = "unreachable" if reason else "connected"
        if reason and now.monotonic_s < self.relayed_until_s:
            state = "relayed"
        return EtcdStatus(state, self.revision, self.lease_deadline_s, reason)

    def deadline(self) -> float:
        """Return the monotonic second at which `poll` has something to do."""
        due_s = min((duty.due_s for duty in self._duties() if not duty.in_flight), default=inf)
        return min(due_s, self._leave_deadline_s)

    def _duties(self) -> tuple[_Duty, ...]:
        return (
            self._snapshot,
            self._check,
            self._keep_alive,
            self._grant,
            self._register,
            self._publish_settings,
            self._probe,
            self._revoke,
        )

    # --- what the shell reports ---------------------------------------------------------------------

    def start(self, now: Instant) -> list[Effect]:
        """Begin: list what is there."""
        self._snapshot.want(now.monotonic_s)
        return self.poll(now)

    def renew_epoch(self, epoch: int, now: Instant) -> list[Effect]:
        """Register under a higher epoch: gossip remembered a later life of this id, and this one comes after it."""
        if epoch <= self.member.epoch:
            return []
        self._former_epochs.append(self.member.epoch)
        self.member = replace(self.member, epoch=epoch)
        self._epoch_highest, self._epoch_used = max(self._epoch_highest, epoch), False
        self.change_count += 1
        return self._plan(now)

    def evict(self, registration: Registration, reason: str, now: Instant) -> list[Effect]:
        """Propose that a registration be deleted: etcd decides, and the watch tells everybody."""
        if not self.lease_id:
            return []
        member = registration.member
        mark = EvictionMark(self.member.id, member.epoch, reason)
        note = self._note(now, "eviction-proposed", member.id, reason)
        return [
            note,
            EvictMember(
                f"{EVICT_TAG}{member.id}",
                self.keyspace.member(member.id),
                registration.mod_revision,
                self.keyspace.eviction(member.id),
                mark.encode(),
                self.lease_id,
            ),
        ]

    def allow_registration(self, *, allowed: bool, now: Instant) -> list[Effect]:
        """Say whether this node may register when it is not: who was evicted waits until it hears the others."""
        if self._registration_allowed == allowed:
            return []
        self._registration_allowed = allowed
        return self._plan(now)

    def committed_view(self) -> CommittedView:
        """Return what etcd said last, for peers."""
        theirs = self.cluster_settings
        settings = (theirs.replicas, theirs.virtual_nodes, theirs.hash_version) if theirs else (0, 0, 0)
        departed = tuple(islice(reversed(self.departed.items()), DEPARTED_TOLD_MAX))
        return CommittedView(self.generation, self.revision, settings, tuple(self.registrations.values()), departed)

    def adopt(self, view: CommittedView, *, is_current: bool, now: Instant) -> list[Effect]:
        """Take a peer's listing where it is better than this node's own: newer, or current where this one is not.

        etcd itself is better than any, and an empty listing says nothing of who owns data.
        """
        order, known = (view.generation, view.revision), (self.generation, self.revision)
        is_better = order > known or (is_current and now.monotonic_s >= self.relayed_until_s) or not self.is_known
        if self.reachable or not view.registrations or order == known or not is_better:
            return []
        previous, self.registrations = self.registrations, {}
        for registration in view.registrations:
            self.registrations[registration.member.id] = registration
            self.departed.pop(registration.member.id, None)
        self.must_be_heard = self.must_be_heard and self.member.id not in self.registrations
        told = dict(view.departed)
        for node_id in previous:
            if node_id not in self.registrations:
                self._set_departed(node_id, told.get(node_id, "expired"), now)
        own = self.registrations.get(self.member.id)
        self._epoch_highest = max(self._epoch_highest, own.member.epoch if own else 0)
        if view.generation:
            self.cluster_settings = ClusterSettings(*view.settings, view.generation)
        self.revision = view.revision
        self._synced = False  # Once etcd answers, all is listed anew.
        stop = self._disagreement(now)
        if previous == self.registrations:
            return [*stop, *self._plan(now)]
        self.adoption_count += 1
        self.change_count += 1
        detail = f"revision {view.revision}, {len(self.registrations)} registered, as a peer knows it"
        return [self._note(now, "view-adopted", "", detail), *stop, *self._plan(now)]

    def relayed(self, asked_s: float, until_s: float, now: Instant) -> None:
        """A peer that reaches etcd, and was asked then, vouches for its word until then."""
        if not self.reachable:
            self.verified_sent_s = max(self.verified_sent_s, asked_s)
            self.change_count += self.relayed_until_s <= now.monotonic_s
            self.relayed_until_s = max(self.relayed_until_s, until_s)

    def renewed(self, sent_s: float, ttl_s: int) -> None:
        """A peer had this node's lease renewed, by a keep-alive that was sent no earlier than that."""
        if ttl_s <= 0:
            self.lease_deadline_s = None
        elif sent_s > self.lease_sent_s:
            self.lease_sent_s, self.lease_deadline_s = sent_s, sent_s + ttl_s

    def verify(self, now: Instant) -> None:
        """Renew the lease and compare with etcd as soon as can be: this node stood still."""
        self._doubt_lease(now)
        self.request_check(now)

    def request_check(self, now: Instant) -> None:
        """Compare with etcd soon: somebody's view differs from ours."""
        if self._synced:
            self._check.want(max(now.monotonic_s, self._check_sent_s + CHECK_PAUSE_S))

    def leave(self, now: Instant) -> list[Effect]:
        """Leave in good order: say so, then end the lease. Gives up after half of `drain_timeout`."""
        if not self._leaving:
            self._leaving = True
            self._leave_deadline_s = now.monotonic_s + self.settings.drain_timeout / 2
        return self._plan(now)

    def on_snapshot(self, event: EtcdSnapshotRead, now: Instant) -> list[Effect]:
        """Take a full listing as the truth, and watch from there."""
        self._snapshot.succeed()
        self._synced = True
        notes = self._reached(now)
        wiped = event.revision < self._revision_when_sent
        previous = self.registrations
        old_generation = self.generation
        self.registrations, self.evicted, self._keys, self.cluster_settings = {}, {}, {}, None
        for pair in event.pairs:
            notes += self._take(pair, now, previous)
        wiped = wiped or 0 < old_generation != self.generation > 0
        for node_id in previous:
            if node_id not in self.registrations:
                manner = self._depart(previous[node_id].member, now)
                notes.append(self._note(now, "registration-gone", node_id, manner))
        self.revision = event.revision
        self.verified_sent_s = self._snapshot_sent_s
        if not self.listed:
            is_old = now.unix_ms - self.generation > self.settings.lease_ttl * 1000
            is_deserted = self.registrations.keys() <= {self.member.id}
            self.found_all_lapsed = self.generation > 0 and is_old and is_deserted
        self.listed = True
        self.change_count += 1
        if wiped:
            self.wipe_count += 1
            self._doubt_lease(now)
            notes.append(self._note(now, "etcd-wiped", "", f"revision went back to {event.revision}"))
        self._watch_id += 1
        self._check.succeed()
        self._check.want(now.monotonic_s + self._period_s)
        stop = self._disagreement(now)
        if stop:
            return [*notes, *stop]
        return [*notes, WatchKeys(self._watch_id, event.revision + 1), *self._plan(now)]

    def on_watched(self, event: EtcdWatched, now: Instant) -> list[Effect]:
        """Apply the changes of one revision."""
        if event.watch_id != self._watch_id or not self._synced or event.revision < self.revision:
            return []
        notes = self._reached(now)
        # Within one revision the marks are read before the deletions that they explain.
        for change in sorted(event.changes, key=lambda change: change.value is None):
            if change.value is not None:
                notes += self._take(KeyValue(change.key, change.value, change.mod_revision, change.lease_id), now)
            else:
                notes += self._drop(change.key, now)
        self.revision = event.revision
        self.change_count += 1
        stop = self._disagreement(now)
        return [*notes, *(stop or self._plan(now))]

    def on_watch_ended(self, event: EtcdWatchEnded, now: Instant) -> list[Effect]:
        """List again: whatever ended the watch, changes may have been missed."""
        if event.watch_id != self._watch_id:
            return []
        self._synced = False
        return [self._note(now, "etcd-watch-ended", "", f"{event.reason}; listing again"), *self._plan(now)]

    def on_checked(self, event: EtcdKeysChecked, now: Instant) -> list[Effect]:
        """Compare the linearizable listing of keys with what the watch told."""
        self._check.succeed()
        self._check.want(now.monotonic_s + self._period_s)
        notes = self._reached(now)
        went_back = event.revision < self._revision_when_sent
        differs = self.revision <= event.revision and dict(event.keys) != self._keys
        if went_back or differs:
            self._synced = False
        elif self.revision <= event.revision:
            self.verified_sent_s = self._check_sent_s
        return [*notes, *self._plan(now)]

    def on_granted(self, event: LeaseGranted, now: Instant) -> list[Effect]:
        """Use a new lease."""
        self._grant.succeed()
        self.lease_id = event.lease_id
        self.lease_sent_s, self.lease_deadline_s = event.sent_s, event.sent_s + event.ttl_s
        self._keep_alive.cancel()
        self._keep_alive.want(now.monotonic_s + self._period_s)
        return [*self._reached(now), *self._plan(now)]

    def on_kept_alive(self, event: LeaseKeptAlive, now: Instant) -> list[Effect]:
        """Note how long the lease lives, or that etcd no longer knows it."""
        self._keep_alive.succeed()
        if event.lease_id != self.lease_id:
            return self._plan(now)
        notes = self._reached(now)
        if event.ttl_s > 0:
            self.lease_sent_s, self.lease_deadline_s = event.sent_s, event.sent_s + event.ttl_s
            self._keep_alive.want(now.monotonic_s + self._period_s)
            return [*notes, *self._plan(now)]
        self.lease_id, self.lease_deadline_s = 0, None
        self._synced = False  # The key went with the lease: see what else changed before registering anew.
        notes.append(self._note(now, "lease-lost", self.member.id, "etcd no longer knows the lease; registering anew"))
        return [*notes, *self._plan(now)]

    def on_transacted(self, event: EtcdTransactionDone, now: Instant) -> list[Effect]:
        """A put of ours was decided."""
        notes = self._reached(now)
        if event.tag.startswith(EVICT_TAG):  # Refused: another was quicker, or a new life stands there. Both are well.
            return [*notes, *self._plan(now)]
        duty = self._publish_settings if event.tag == "settings" else self._register
        if event.succeeded:
            duty.succeed()
        else:
            duty.fail(now.monotonic_s, self._rng)
        if duty is self._publish_settings or not event.succeeded:
            self._synced = False  # Another was quicker, or ours is to be read back: see what stands there.
            return [*notes, *self._plan(now)]
        self._register_pause_until_s = now.monotonic_s + REGISTER_PAUSE_S
        self._epoch_used = True
        key = self.keyspace.member(self.member.id)
        # The watch will say the same. Taking it now lets this node know that it is registered.
        own = self.registrations.get(self.member.id)
        if own is None or own.mod_revision < event.revision:
            self._keys[key] = event.revision
            self.registrations[self.member.id] = Registration(self.member, event.revision, self.lease_id)
            self.change_count += 1
        notes.append(self._note(now, "registered", self.member.id, f"state {self.member.state}"))
        return [*notes, *self._plan(now)]

    def on_revoked(self, now: Instant) -> list[Effect]:
        """The lease has ended at our wish: the leave is done."""
        self._revoke.succeed()
        self.left = True
        return [self._note(now, "left", self.member.id, "lease revoked"), *self._plan(now)]

    def on_probed(self, event: IdentityProbed, now: Instant) -> list[Effect]:
        """Somebody, or nobody, answered at the address registered under this node's id."""
        if not self._probe.in_flight:
            return []
        self._probe.succeed()
        own = self.registrations.get(self.member.id)
        if own is None or own.member.peer != event.address:
            return self._plan(now)
        other = event.member
        if other is not None and other.id == self.member.id and other.epoch != self.member.epoch:
            reason = f"another live process has the id {self.member.id}, at {event.address}"
            return [self._note(now, "name-conflict", self.member.id, reason), Stop(1, reason)]
        self._silent_occupant_revision = own.mod_revision
        note = self._note(now, "takeover", self.member.id, f"the earlier life at {event.address} does not answer")
        return [note, *self._plan(now)]

    def on_failed(self, event: EtcdCallFailed, now: Instant) -> list[Effect]:
        """A call failed: say so, and try again later."""
        duty = self._duty_of(event.effect)
        if duty is None or not duty.in_flight:
            return []
        if isinstance(event.effect, KeepLeaseAlive) and event.effect.lease_id != self.lease_id:
            duty.in_flight = False  # Of a former lease: sent long ago, it tells nothing of now.
            return self._plan(now)
        duty.fail(now.monotonic_s, self._rng)
        if event.definite and duty in (self._register, self._publish_settings):
            # etcd refused it: most likely the lease has ended. A keep-alive tells; but when those failed of late, one
            # may still wait for an etcd that was away, and a new lease is quicker.
            if self._keep_alive.failures:
                self.lease_id, self.lease_deadline_s = 0, None
            else:
                self._doubt_lease(now)
        notes: list[Effect] = []
        if self.reachable:
            self._reason_since_s = now.monotonic_s
            self.change_count += 1
            notes.append(self._note(now, "etcd-unreachable", "", event.reason))
        elif self._reason != event.reason:
            self.change_count += 1
            if self._reason == REASON_AT_START:
                notes.append(self._note(now, "etcd-unreachable", "", f"{event.reason}; retrying"))
        self._reason = event.reason
        return [*notes, *self._plan(now)]

    # --- what follows -------------------------------------------------------------------------------

    def poll(self, now: Instant) -> list[Effect]:
        """Start every call that is due. Idempotent."""
        effects: list[Effect] = []
        if now.monotonic_s >= self._leave_deadline_s and not self.left:
            self._leave_deadline_s = inf
            self.left = True
            effects.append(self._note(now, "left", self.member.id, "etcd could not be told in time"))
        for duty, build in (
            (self._snapshot, self._start_snapshot),
            (self._check, self._start_check),
            (self._keep_alive, self._start_keep_alive),
            (self._grant, self._start_grant),
            (self._publish_settings, self._start_publish_settings),
            (self._probe, self._start_probe),
            (self._register, self._start_register),
            (self._revoke, self._start_revoke),
        ):
            if duty.due_s <= now.monotonic_s and not duty.in_flight:
                duty.start()
                effects.append(build(now))
        return effects

    @property
    def _period_s(self) -> float:
        """Keep-alives and checks come this often: a lease survives two lost ones."""
        return self.settings.lease_ttl_s / 3

    def _plan(self, now: Instant) -> list[Effect]:
        """From what is known, decide what must be done, then start what is due."""
        at_s = now.monotonic_s
        if self.left:
            for duty in self._duties():
                duty.cancel()
            self._leave_deadline_s = inf
            return []
        if not self._synced:
            self._snapshot.want(at_s)
            self._check.cancel()
        if self._leaving:
            return self._plan_leave(now)
        if not self._synced:
            for duty in (self._register, self._publish_settings, self._probe):
                duty.cancel()
            return self.poll(now)
        if self.cluster_settings is None:
            self._publish_settings.want(at_s)
            return self.poll(now)
        self._publish_settings.cancel()
        self._plan_registration(at_s)
        return self.poll(now)

    def _plan_registration(self, at_s: float) -> None:
        if not self._occupied():
            self._probe.cancel()
        if self.lease_id:
            self._grant.cancel()  # It may have been wanted once more while it was under way.
        if not self.lease_id:
            self._register.cancel()
            self._grant.want(at_s)
        elif self.registered or not self._registration_allowed:
            self._register.cancel()
        elif self._occupied():
            self._register.cancel()
            self._probe.want(at_s)
        else:
            self._register.want(max(at_s, self._register_pause_until_s))

    def _plan_leave(self, now: Instant) -> list[Effect]:
        own = self.registrations.get(self.member.id)
        self._probe.cancel()
        if not self.lease_id:
            self.left = True
            return self._plan(now)
        if not self.registered or (own and own.member.state == "leaving"):
            self._revoke.want(now.monotonic_s)
        elif self._synced:
            self._register.cancel()
            self._register.want(now.monotonic_s)
        return self.poll(now)

    def _occupied(self) -> bool:
        """Whether another life stands under this node's id and has not been found silent."""
        own = self.registrations.get(self.member.id)
        return (
            own is not None
            and own.member.epoch not in self._former_epochs
            and own.member.epoch != self.member.epoch
            and own.mod_revision != self._silent_occupant_revision
        )

    def _start_snapshot(self, now: Instant) -> EtcdEffect:
        self._revision_when_sent, self._snapshot_sent_s = self.revision, now.monotonic_s
        return ReadSnapshot()

    def _start_check(self, now: Instant) -> EtcdEffect:
        self._revision_when_sent, self._check_sent_s = self.revision, now.monotonic_s
        return CheckKeys()

    def _start_keep_alive(self, _now: Instant) -> EtcdEffect:
        return KeepLeaseAlive(self.lease_id)

    def _start_grant(self, _now: Instant) -> EtcdEffect:
        return GrantLease(self.settings.lease_ttl_s)

    def _start_publish_settings(self, now: Instant) -> EtcdEffect:
        value = ClusterSettings(self.settings.replicas, self.settings.virtual_nodes, HASH_VERSION, now.unix_ms)
        return TransactKey("settings", self.keyspace.settings, value.encode(), 0, 0)

    def _start_probe(self, _now: Instant) -> Effect:
        return ProbeIdentity(self.registrations[self.member.id].member.peer)

    def _start_register(self, now: Instant) -> EtcdEffect:
        own = self.registrations.get(self.member.id)
        if self._leaving:
            self.member = replace(self.member, state="leaving")
        elif self._epoch_used or self._epoch_highest > self.member.epoch:
            self._former_epochs.append(self.member.epoch)
            epoch = max(now.unix_ms, self._epoch_highest + 1)
            self.member = replace(self.member, epoch=epoch)
            self._epoch_highest, self._epoch_used = epoch, False
        return TransactKey(
            "register",
            self.keyspace.member(self.member.id),
            encode_registration(self.member),
            self.lease_id,
            own.mod_revision if own else 0,
        )

    def _start_revoke(self, _now: Instant) -> EtcdEffect:
        return RevokeLease(self.lease_id)

    def _duty_of(self, effect: EtcdEffect) -> _Duty | None:
        match effect:
            case ReadSnapshot():
                return self._snapshot
            case CheckKeys():
                return self._check
            case GrantLease():
                return self._grant
            case KeepLeaseAlive():
                return self._keep_alive
            case RevokeLease():
                return self._revoke
            case TransactKey(tag="settings"):
                return self._publish_settings
            case TransactKey():
                return self._register
            case WatchKeys() | EvictMember():
                return None  # A watch ends, it does not fail; an eviction is proposed again by who still wants it.

    def _doubt_lease(self, now: Instant) -> None:
        """Ask at once whether the lease still lives."""
        if self.lease_id:
            self._keep_alive.want(now.monotonic_s)

    def _reached(self, now: Instant) -> list[Effect]:
        """Take note that etcd answers, once the picture is complete."""
        if self._reason_since_s is None or not self._synced:
            return []
        away_s = now.monotonic_s - self._reason_since_s
        self._reason_since_s = None
        self.change_count += 1
        return [self._note(now, "etcd-connected", "", f"after {away_s:.1f} s")]

    def _disagreement(self, now: Instant) -> list[Effect]:
        """Refuse to join a cluster whose ring would be computed differently.

        Only before the first registration: an edit of the settings key must not stop a running cluster.
        """
        theirs = self.cluster_settings
        if theirs is None or self._epoch_used or self._former_epochs:
            return []
        pairs = (
            ("replicas", self.settings.replicas, theirs.replicas),
            ("virtual-nodes", self.settings.virtual_nodes, theirs.virtual_nodes),
            ("hash version", HASH_VERSION, theirs.hash_version),
        )
        differing = [f"{name} is {there} there and {here} here" for name, here, there in pairs if here != there]
        if not differing:
            return []
        reason = f"cluster {self.settings.cluster} has other settings: {', '.join(differing)}"
        return [self._note(now, "settings-differ", self.member.id, reason), Stop(1, reason)]

    def _take(
        self, pair: KeyValue, now: Instant, previous: Mapping[NodeId, Registration] = MappingProxyType({})
    ) -> list[Effect]:
        """Take in one key that exists. `previous`: the registrations before a listing, which tells of all anew."""
        self._keys[pair.key] = pair.mod_revision
        kind, name = self.keyspace.kind(pair.key)
        try:
            if kind == "members":
                return self._take_member(name, pair, previous.get(name, self.registrations.get(name)), now)
            if kind == "evictions":
                self.evicted[name] = EvictionMark.decode(pair.value)
            elif kind == "settings":
                self.cluster_settings = ClusterSettings.decode(pair.value)
        except (ValueError, RecursionError) as error:
            if kind == "members":
                self._forget(name)
            elif kind == "evictions":
                self.evicted.pop(name, None)
            return [self._note(now, "unusable-key", name[:64], f"{pair.key[:200]!r}: {error}")]
        return []

    def _take_member(self, name: str, pair: KeyValue, before: Registration | None, now: Instant) -> list[Effect]:
        member = decode_registration(name, pair.value)
        self.registrations[name] = Registration(member, pair.mod_revision, pair.lease_id)
        self.departed.pop(name, None)
        if name == self.member.id:
            self.must_be_heard = False
            self._epoch_highest = max(self._epoch_highest, member.epoch)
        if before is None or before.member != member:
            return [self._note(now, "registration", name, f"{member.state}, epoch {member.epoch}")]
        return []

    def _drop(self, key: bytes, now: Instant) -> list[Effect]:
        """Take in that a key is gone."""
        self._keys.pop(key, None)
        kind, name = self.keyspace.kind(key)
        if kind == "evictions":
            self.evicted.pop(name, None)
        elif kind == "settings":
            self.cluster_settings = None
        elif kind == "members" and name in self.registrations:
            manner = self._depart(self.registrations[name].member, now)
            self._forget(name)
            return [self._note(now, "registration-gone", name, manner)]
        return []

    def _depart(self, member: Member, now: Instant) -> str:
        """Tell how a member went: a leave is announced first, an eviction has its mark, a lease just ends."""
        mark = self.evicted.get(member.id)
        is_evicted = mark is not None and mark.epoch == member.epoch
        manner = "left" if member.state == "leaving" else "evicted" if is_evicted else "expired"
        self._set_departed(member.id, manner, now)
        return manner

    def _set_departed(self, node_id: NodeId, manner: str, now: Instant) -> None:
        while len(self.departed) >= DEPARTED_MAX:
            del self.departed[next(iter(self.departed))]
        self.departed[node_id] = manner
        if node_id == self.member.id:
            ended_s = self.lease_sent_s + self.settings.lease_ttl
            is_late = manner == "expired" and now.monotonic_s > ended_s + self.settings.expiry_grace
            self.must_be_heard = manner == "evicted" or is_late
            self._registration_allowed = self._registration_allowed and not self.must_be_heard

    def _forget(self, name: NodeId) -> None:
        self.registrations.pop(name, None)

    def _note(self, now: Instant, kind: str, member: NodeId, detail: str) -> Note:
        return Note(TimelineEntry(now.unix_ms, kind, member, "etcd", detail))
