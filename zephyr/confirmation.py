"""Until when this node may take itself for an owner: a view is *confirmed*, or it is not acted on.

A node that stood still, or was cut off, may own nothing any more without knowing it. So its view counts while one of
two says that it is still right:

- its lease, while its registration stands under it and etcd's word makes the ring: the last acknowledged keep-alive,
  counted from the moment it was *sent*. (When nobody who is heard reaches etcd, a majority elsewhere may evict this
  node before a long lease ends);
- a majority of the last view that showed the same ring digest within `confirm_max`, again counted from the question.

A gap of more than half a lease without any event means that this node did not run: whatever was asked before it counts
for nothing, since the answers may have waited as long; and etcd has to be compared with anew. The lease is the cheap
way; only while it does not suffice is everybody asked for the digest, twice in each `confirm_max`.

A lease vouches for nothing where gossip led: etcd may have been away for longer than `gossip_evict_after`, and have
come back and given every lease its time again, the one of a life that the others removed meanwhile too. So who was not
sure of its view for about as long needs the others once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.events import Effect
from zephyr.gossip.swim import Swim
from zephyr.model import Instant, NodeId


class Confirmation:
    """Whether this node's view is confirmed. Without etcd it always is: both sides of a split serve."""

    def __init__(self, settings: Settings, etcd: EtcdMembership | None, swim: Swim, now: Instant) -> None:
        self.until_s = inf if etcd is None else -inf
        """Monotonic seconds until which the view is confirmed."""
        self._settings = settings
        self._etcd = etcd
        self._swim = swim
        self._gap_max_s = settings.lease_ttl / 2
        self._floor_s = -inf
        """What was asked earlier counts for nothing."""
        self._event_s = now.monotonic_s
        self._roll_s = inf
        self._confirmed_s = now.monotonic_s
        """When the view was confirmed last, or there was nothing to confirm."""
        self._absence_max_s = max(0.0, settings.gossip_evict_after - settings.lease_ttl)
        """Gossip removes nobody sooner whose lease was just renewed."""
        self._needs_majority = False
        """It was not confirmed for so long that others may have removed this life."""
        self._registered_epoch, self._unsure_since_s = 0, inf
        """Of this node's registration, as it was seen last; and since when nobody vouched for its view."""
        self._shown_until_s = -inf
        """Until when a majority vouches for the view: found anew when what it follows from changed."""
        self._shown_of: tuple[int, bytes, float] = (-1, b"", -inf)
        self._shown_to: Sequence[NodeId] = ()

    def deadline(self) -> float:
        """Return the monotonic second at which everybody is to be asked."""
        return self._roll_s

    def stood_still(self, now: Instant) -> bool:
        """Take note that this node runs, and whether it did not; call it with each event, before the event."""
        gap_s, self._event_s = now.monotonic_s - self._event_s, now.monotonic_s
        if self._etcd is None or gap_s <= self._gap_max_s:
            return False
        self._floor_s = now.monotonic_s
        self._etcd.verify(now)
        return True

    def update(
        self, voters: Sequence[NodeId], digest: bytes, now: Instant, *, is_owner: bool, is_etcds_word: bool = True
    ) -> list[Effect]:
        """Find out until when the view is confirmed; called with each event, so it must cost next to nothing.

        `is_etcds_word`: etcd, or a peer that reaches it, makes the ring. Otherwise the lease tells nothing of it.
        `voters`: the last view, whose majority decides; another list when it changed.
        """
        if self._etcd is None:
            return []
        if not is_owner:
            self.until_s, self._roll_s = -inf, inf
            self._confirmed_s, self._needs_majority = now.monotonic_s, False
            return []
        pause_s = self._settings.confirm_max / 2
        absent_s = now.monotonic_s - self._confirmed_s
        self._needs_majority |= now.monotonic_s >= self.until_s and absent_s > self._absence_max_s
        until_s = self._by_lease(self._etcd) if is_etcds_word and not self._needs_majority else -inf
        effects: list[Effect] = []
        if until_s > now.monotonic_s + pause_s:
            self._roll_s = inf
        else:
            seen = (self._swim.shown_count, digest, self._floor_s)
            if voters is not self._shown_to or seen != self._shown_of:
                self._shown_to, self._shown_of = voters, seen
                self._shown_until_s = self._by_majority(voters, digest)
            shown_s = min(self._shown_until_s, now.monotonic_s + self._settings.confirm_max)
            self._needs_majority = self._needs_majority and now.monotonic_s >= shown_s
            until_s = max(until_s, shown_s)
            if self._roll_s == inf or now.monotonic_s >= self._roll_s:
                self._roll_s = now.monotonic_s + pause_s
                effects = self._swim.call_roll(now)
        self.until_s = min(until_s, now.monotonic_s + self._gap_max_s)
        if now.monotonic_s < self.until_s:
            self._confirmed_s = now.monotonic_s
        return effects

    def has_missed_writes(self, now: Instant, *, is_owner: bool, may_be_left_out: bool) -> bool:
        """Return whether the others may have written without this owner; once for each registration of its own.

        Who registered anew, and was not sure of its view for long, may have been out of the ring without seeing it: the
        others drop nobody sooner than `expiry_grace` after its lease. So may who `may_be_left_out`, though its side of
        a split vouched for its view. Where everybody's registration was lost, a majority vouched for each view, but for
        a moment.
        """
        is_sure = now.monotonic_s < self.until_s or not is_owner
        if not is_sure:
            self._unsure_since_s = min(self._unsure_since_s, now.monotonic_s)
        if may_be_left_out:
            self._unsure_since_s = -inf
        was_long = now.monotonic_s - self._unsure_since_s >= self._settings.expiry_grace
        if is_sure and not was_long:
            self._unsure_since_s = inf
        etcd = self._etcd
        if etcd is None or not (etcd.registered and etcd.reachable):
            return False
        is_new, is_first = etcd.member.epoch > self._registered_epoch, self._registered_epoch == 0
        if is_new:
            self._registered_epoch = etcd.member.epoch
        if is_new or is_sure:
            self._unsure_since_s = inf
        return is_new and was_long and not is_first

    def _by_lease(self, etcd: EtcdMembership) -> float:
        is_asked_since = min(etcd.lease_sent_s, etcd.verified_sent_s) >= self._floor_s
        if not is_asked_since or not etcd.registered or etcd.lease_deadline_s is None:
            return -inf
        return etcd.lease_deadline_s

    def _by_majority(self, voters: Sequence[NodeId], digest: bytes) -> float:
        records = self._swim.table.members
        shown_s = sorted(
            (records[item].ring_digest_s for item in voters if item in records and records[item].ring_digest == digest),
            reverse=True,
        )
        others_needed = len(voters) // 2 + (self._settings.id not in voters)
        if others_needed == 0:
            return inf
        if len(shown_s) < others_needed or shown_s[others_needed - 1] < self._floor_s:
            return -inf
        return shown_s[others_needed - 1] + self._settings.confirm_max
