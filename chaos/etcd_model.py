"""A model of etcd for the simulator: revisions, leases, transactions, watches, compaction, wipes.

It stands for the real thing where virtual time is needed, and keeps to what was seen on a real etcd:
a lease's keys go in one revision when it ends, a restart gives every lease its full time again, a wiped
etcd begins at revision 1, a watch from a future revision stays silent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from zephyr.events import (
    CheckKeys,
    EtcdCallFailed,
    EtcdEffect,
    EtcdEvent,
    EtcdKeysChecked,
    EtcdSnapshotRead,
    EtcdTransactionDone,
    EtcdWatched,
    EtcdWatchEnded,
    EvictMember,
    GrantLease,
    KeepLeaseAlive,
    KeyChange,
    KeyValue,
    LeaseGranted,
    LeaseKeptAlive,
    LeaseRevoked,
    ReadSnapshot,
    RevokeLease,
    TransactKey,
    WatchKeys,
)

Deliver = Callable[[EtcdEvent], None]


@dataclass
class EtcdModel:
    """One etcd. The simulator calls it in virtual time and delivers what it answers."""

    revision: int = 1
    pairs: dict[bytes, KeyValue] = field(default_factory=dict)
    leases: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Lease id -> (ttl in s, monotonic second of its end)."""
    history: list[tuple[int, tuple[KeyChange, ...]]] = field(default_factory=list)
    watchers: dict[str, Deliver] = field(default_factory=dict)
    """Watcher's name -> where its events go; one watch a name."""
    lease_count: int = 0
    compacted: int = 0
    """No watch can start at this revision or below."""

    def execute(self, name: str, effect: EtcdEffect, sent_s: float, now_s: float, deliver: Deliver) -> EtcdEvent | None:
        """Carry out one call of the client `name`, and return its answer."""
        match effect:
            case ReadSnapshot():
                return EtcdSnapshotRead(self.revision, tuple(self.pairs[key] for key in sorted(self.pairs)))
            case CheckKeys():
                keys = tuple((key, self.pairs[key].mod_revision) for key in sorted(self.pairs))
                return EtcdKeysChecked(self.revision, keys)
            case WatchKeys(watch_id, revision):
                self._watch(name, watch_id, revision, deliver)
                return None
            case GrantLease(ttl_s):
                self.lease_count += 1
                self.leases[self.lease_count] = (ttl_s, now_s + ttl_s)
                return LeaseGranted(self.lease_count, ttl_s, sent_s)
            case KeepLeaseAlive(lease_id):
                ttl_s = self.leases[lease_id][0] if lease_id in self.leases else 0
                if ttl_s:
                    self.leases[lease_id] = (ttl_s, now_s + ttl_s)
                return LeaseKeptAlive(lease_id, ttl_s, sent_s)
            case RevokeLease(lease_id):
                self._end_lease(lease_id)
                return LeaseRevoked(lease_id)
            case TransactKey():
                return self._transact(effect)
            case EvictMember():
                return self._evict(effect)

    def _transact(self, effect: TransactKey) -> EtcdEvent:
        if effect.lease_id and effect.lease_id not in self.leases:
            return EtcdCallFailed(effect, "requested lease not found", definite=True)
        standing = self.pairs.get(effect.key)
        if (standing.mod_revision if standing else 0) != effect.expected_mod_revision:
            return EtcdTransactionDone(effect.tag, succeeded=False, revision=self.revision)
        self.revision += 1
        self.pairs[effect.key] = KeyValue(effect.key, effect.value, self.revision, effect.lease_id)
        self._publish((KeyChange(effect.key, effect.value, self.revision, effect.lease_id),))
        return EtcdTransactionDone(effect.tag, succeeded=True, revision=self.revision)

    def _evict(self, effect: EvictMember) -> EtcdEvent:
        if effect.lease_id not in self.leases:
            return EtcdCallFailed(effect, "requested lease not found", definite=True)
        standing = self.pairs.get(effect.key)
        if standing is None or standing.mod_revision != effect.expected_mod_revision:
            return EtcdTransactionDone(effect.tag, succeeded=False, revision=self.revision)
        self.revision += 1
        del self.pairs[effect.key]
        self.pairs[effect.mark_key] = KeyValue(effect.mark_key, effect.mark, self.revision, effect.lease_id)
        mark = KeyChange(effect.mark_key, effect.mark, self.revision, effect.lease_id)
        self._publish((mark, KeyChange(effect.key, None, self.revision, 0)))
        return EtcdTransactionDone(effect.tag, succeeded=True, revision=self.revision)

    def expire(self, now_s: float) -> None:
        """End the leases whose time is over."""
        for lease_id in [item for item, (_, end_s) in self.leases.items() if end_s <= now_s]:
            self._end_lease(lease_id)

    def _end_lease(self, lease_id: int) -> None:
        if self.leases.pop(lease_id, None) is None:
            return
        keys = [key for key in sorted(self.pairs) if self.pairs[key].lease_id == lease_id]
        if keys:
            self.delete(*keys)

    def delete(self, *keys: bytes) -> None:
        """Delete keys at one revision, as the end of a lease or a person would."""
        self.revision += 1
        for key in keys:
            del self.pairs[key]
        self._publish(tuple(KeyChange(key, None, self.revision, 0) for key in keys))

    def compact(self) -> None:
        """Forget what was, up to now."""
        self.compacted, self.history = self.revision, []

    def revoke_all(self) -> None:
        """End every lease, as a person might by mistake."""
        for lease_id in list(self.leases):
            self._end_lease(lease_id)

    def restart(self, now_s: float) -> None:
        """Come back after a stop: every watch is gone, and the leases are a new leader's."""
        self.watchers.clear()
        self.elect(now_s)

    def elect(self, now_s: float) -> None:
        """Have a new leader: every lease has its full time again."""
        self.leases = {lease_id: (ttl_s, now_s + ttl_s) for lease_id, (ttl_s, _) in self.leases.items()}

    def wipe(self) -> None:
        """Lose everything: keys, leases, and the revision."""
        self.revision, self.pairs, self.leases, self.history, self.compacted = 1, {}, {}, [], 0
        self.watchers.clear()

    def _watch(self, name: str, watch_id: int, revision: int, deliver: Deliver) -> None:
        def forward(event: EtcdEvent) -> None:
            if isinstance(event, EtcdWatched) and event.revision >= revision:
                deliver(EtcdWatched(watch_id, event.revision, event.changes))

        if revision <= self.compacted:
            deliver(EtcdWatchEnded(watch_id, f"compacted at revision {self.compacted}"))
            return
        self.watchers[name] = forward
        for past_revision, changes in self.history:
            forward(EtcdWatched(watch_id, past_revision, changes))

    def _publish(self, changes: tuple[KeyChange, ...]) -> None:
        self.history.append((self.revision, changes))
        for forward in list(self.watchers.values()):
            forward(EtcdWatched(0, self.revision, changes))
