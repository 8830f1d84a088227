"""Who is to be dropped from etcd, and when this node may register again after it was.

Proposes: etcd decides, and every watch tells. A proposal is a transaction that fails where the registration has changed
since, so two proposers do no harm, and a new life is never hit for the death of the old one.

Invariant: nothing is proposed by a node that has not heard more than half of the registered since that death.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.events import Effect
from zephyr.gossip.swim import Swim
from zephyr.model import Instant, NodeId

EVICT_TURN_S = 0.5
EVICT_TURN_MAX_S = 5.0
"""How much later each further member proposes an eviction, by the order of ids."""
EVICT_RETRY_S = 2.0
"""Between two proposals of one eviction by one member."""
ROLL_CALL_S = 1.0
"""How often a node asks everybody whether they hear it: that was evicted, or wants to evict."""
ROLL_CALL_LOOK_S = 0.1
"""How often it looks who answered."""


class Gone(NamedTuple):
    """Why a registered member may be evicted."""

    from_s: float
    """Monotonic second from which on."""
    why: str
    silent_s: float
    """When it was called dead; whoever is heard must have been heard since."""


class Evictions:
    """This node's proposals, and its own return."""

    def __init__(self, settings: Settings, etcd: EtcdMembership, swim: Swim) -> None:
        self.settings = settings
        self.etcd = etcd
        self.swim = swim
        self._proposed_s: dict[NodeId, float] = {}
        """When this node last proposed whose eviction."""
        self.majority_since_s = inf
        """Since when this node hears more than half of the registered; infinity while it does not."""
        self._evicted_s: float | None = None
        """When this node saw that it was evicted; None while it is not."""
        self._roll_call_s = -inf
        self._due_s = inf

    def deadline(self) -> float:
        """Return the monotonic second at which there is something to propose, or to look at."""
        return self._due_s

    def count(self, heard: list[NodeId], now: Instant) -> None:
        """Take note of which of the registered this node hears, itself included.

        Whom it lost while it heard a minority may well live: the time to evict begins anew with the majority.
        """
        if 2 * len(heard) <= len(self.etcd.registrations):
            self.majority_since_s = inf
        elif self.majority_since_s == inf:
            self.majority_since_s = now.monotonic_s

    def propose(self, gone: dict[NodeId, Gone], heard: list[NodeId], now: Instant) -> list[Effect]:
        """Ask etcd to drop who may be evicted. `heard`: the registered that this node hears.

        The lowest id of those who are heard goes first, the others a moment later each: a second proposal is refused,
        and costs little.

        More than half of the registered must have given a sign since the one was called dead: whom gossip calls alive
        may only not have been missed yet, where this node is the one that is cut off. They are asked when it is time.
        """
        self._due_s = inf
        etcd, own = self.etcd, self.settings.id
        self._proposed_s = {item: at_s for item, at_s in self._proposed_s.items() if item in etcd.registrations}
        if not etcd.reachable or own not in heard or self.majority_since_s == inf:
            return []
        turn_s = min(sorted(heard).index(own) * EVICT_TURN_S, EVICT_TURN_MAX_S)
        effects: list[Effect] = []
        for node_id, (gone_s, why, silent_s) in gone.items():
            due_s = max(gone_s + turn_s, self._proposed_s.get(node_id, -inf) + EVICT_RETRY_S)
            if now.monotonic_s >= due_s and not self._hears_most_since(silent_s):
                effects += self._call_roll(now)
                due_s = now.monotonic_s + ROLL_CALL_LOOK_S
            elif now.monotonic_s >= due_s:
                self._proposed_s[node_id] = now.monotonic_s
                due_s = now.monotonic_s + EVICT_RETRY_S
                effects += etcd.evict(etcd.registrations[node_id], why, now)
            self._due_s = min(self._due_s, due_s)
        return effects

    def _hears_most_since(self, since_s: float) -> bool:
        """Whether more than half of the registered, this node included, gave a sign after a moment."""
        members, registrations = self.swim.table.members, self.etcd.registrations
        heard = sum(item in members and members[item].heard_s > since_s for item in registrations)
        return 2 * (heard + (self.settings.id in registrations)) > len(registrations)

    def _call_roll(self, now: Instant) -> list[Effect]:
        if now.monotonic_s < self._roll_call_s:
            return []
        self._roll_call_s = now.monotonic_s + ROLL_CALL_S
        return self.swim.call_roll(now)

    def allow_registration(self, now: Instant) -> list[Effect]:
        """Who was evicted, or cut off for long, registers again once it has heard most of the registered since.

        What it believes of them from before counts for nothing: they had not heard it for seconds.
        """
        etcd = self.etcd
        if not etcd.must_be_heard:
            self._evicted_s = None
            return etcd.allow_registration(allowed=True, now=now)
        if self._evicted_s is None:
            self._evicted_s, self._roll_call_s = now.monotonic_s, -inf
        effects = self._call_roll(now)
        evicted_s = self._evicted_s
        members = self.swim.table.members
        heard = [item for item in etcd.registrations if item in members and members[item].heard_s > evicted_s]
        hears_most = 2 * len(heard) > len(etcd.registrations) or not etcd.registrations
        self._due_s = min(self._due_s, inf if hears_most else now.monotonic_s + ROLL_CALL_LOOK_S)
        return effects + etcd.allow_registration(allowed=hears_most, now=now)
