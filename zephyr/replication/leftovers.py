"""What a node keeps of slots that are no longer its own: for a while, so that their new owners can fetch it.

Decides when such a slot is dropped. Two owners of a slot may be replaced at once, and the third may lack a write that
both of them acknowledged: dropped at once it would be gone before anybody asked. It is served to nobody but those who
fetch it (`zephyr.replication.level`). Should the slot come back, it is not level: what is left here counts for nothing
before the other owners were asked, and they have newer records or tombstones of whatever changed. They may have
forgotten a newer value that expired, though, and so this is over before anybody can be evicted.

A node that was out of the ring drops everything at once, and before it serves anything: the others wrote without it.
"""

from __future__ import annotations

from collections import deque
from math import inf

from zephyr.model import Instant, NodeId
from zephyr.ring.ring import Ring
from zephyr.store.store import Store

KEPT_S = 3.0
"""And no longer than `evict_after`, so that a slot does not go and come back by two deaths meanwhile. A new owner
begins at once, and has fetched some 60 MB from each source by then, at a page of 48 KiB every two milliseconds."""
SLICE_KEYS = 500
"""Keys dropped by one slice: well under 5 ms."""
SLICE_SLOTS = 1024
"""Slots looked at by one slice."""


class Leftovers:
    """The slots that are kept and not owned."""

    def __init__(self, node_id: NodeId, store: Store, evict_after_s: float) -> None:
        self._id = node_id
        self._store = store
        self._kept_s = min(KEPT_S, evict_after_s)
        self._due_s: dict[int, float] = {}
        """Slots that are not owned -> when they are dropped; the first is the next."""
        self._unseen: deque[int] = deque()
        """Slots that were not looked at since the ring changed, or that are dropped next."""
        self.is_dropping_all = False
        """Nothing that is kept may be served."""

    def deadline(self) -> float:
        """Return the monotonic second at which `poll` has something to do; -inf: now."""
        return -inf if self._unseen else next(iter(self._due_s.values()), inf)

    def ring_changed(self) -> None:
        """Look at everything that is kept anew."""
        if not self.is_dropping_all:
            self._unseen = deque({**dict.fromkeys(self._store.occupied_slots()), **self._due_s})

    def drop_all(self) -> None:
        """Keep nothing of what is kept now: this node is out of the ring."""
        self.is_dropping_all, self._unseen = True, deque(self._store.occupied_slots())
        self._due_s.clear()

    def poll(self, ring: Ring, now: Instant) -> bool:
        """Look at the next slots, and drop what is due. True: all was to be dropped, and now has been."""
        keys = slots = 0
        while self._unseen and keys < SLICE_KEYS and slots < SLICE_SLOTS:
            slot = self._unseen.popleft()
            slots += 1
            if self.is_dropping_all:
                keys += self._store.drop_slot(slot)
            elif self._id in ring.owners(slot):
                self._due_s.pop(slot, None)
            else:
                self._due_s.setdefault(slot, now.monotonic_s + self._kept_s)
        if self._unseen:
            return False
        if self.is_dropping_all:
            self.is_dropping_all = False
            return True
        while self._due_s and keys < SLICE_KEYS and slots < SLICE_SLOTS:
            slot, due_s = next(iter(self._due_s.items()))
            if now.monotonic_s < due_s:
                break
            del self._due_s[slot]
            slots += 1
            if self._id not in ring.owners(slot):
                keys += self._store.drop_slot(slot)
        return False
