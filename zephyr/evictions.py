"""Who is to be dropped from etcd, and when this node may register again after it was.

Proposes: etcd decides, and every watch tells. A proposal is a transaction that fails where the registration has changed
since, so two proposers do no harm, and a new life is never hit for the death of the old one.

Invariant: nothing is proposed by a node that hears no more than half of the registered.
"""

from __future__ import annotations

from math import inf

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
"""How often a node that was evicted asks everybody whether they hear it."""
ROLL_CALL_LOOK_S = 0.1
"""How often it looks who answered."""


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

    def propose(self, gone: dict[NodeId, tuple[float, str]], heard: list[NodeId], now: Instant) -> list[Effect]:
        """Ask etcd to drop who may be evicted: id -> (from when on, why). `heard`: the registered that this node hears.

        The lowest id of those who are heard goes first, the others a moment later each: a second proposal is refused,
        and costs little.
        """
        self._due_s = inf
        etcd, own = self.etcd, self.settings.id
        self._proposed_s = {item: at_s for item, at_s in self._proposed_s.items() if item in etcd.registrations}
        if not etcd.reachable or own not in heard or self.majority_since_s == inf:
            return []
        turn_s = min(sorted(heard).index(own) * EVICT_TURN_S, EVICT_TURN_MAX_S)
        effects: list[Effect] = []
        for node_id, (gone_s, why) in gone.items():
            due_s = max(gone_s + turn_s, self._proposed_s.get(node_id, -inf) + EVICT_RETRY_S)
            if now.monotonic_s >= due_s:
                self._proposed_s[node_id] = now.monotonic_s
                due_s = now.monotonic_s + EVICT_RETRY_S
                effects += etcd.evict(etcd.registrations[node_id], why, now)
            self._due_s = min(self._due_s, due_s)
        return effects

    def allow_registration(self, now: Instant) -> list[Effect]:
        """Who was evicted, or cut off for long, registers again once it has heard most of the registered since.

        What it believes of them from before counts for nothing: they had not heard it for seconds.
        """
        etcd = self.etcd
        if not etcd.must_be_heard:
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
        self._due_s = min(self._due_s, inf if hears_most else now.monotonic_s + ROLL_CALL_LOOK_S)
        return effects + etcd.allow_registration(allowed=hears_most, now=now)
