"""Level slots: a new owner fetches what it missed before its answers count.

Decides which of this node's slots hold all that they should (they are *level*), and pulls what the others lack from
the members that own them too. Never decides who owns a slot (that is the ring), or what a record is worth (the store).

A node becomes an owner of a slot when it starts, joins, or takes a dead member's place. It asks every other live owner
of the slot, by the ring of now and those just before, for all it has there, page by page: who owns it no more keeps it
for a moment (`zephyr.replication.leftovers`). When all have answered the slot is level; with nobody to ask it
is at once. Until then the node takes writes, and its reads count to no quorum (`zephyr.replication.quorum`).

Who is called dead and still stands in the ring is waited for, until it answers or leaves the ring: it may only be cut
off, and have what those who answered lack. What a member had that is dead and out of the ring is gone with it; but a
node that begins anew waits for a moment even so, since it may have been the one that was cut off. It asks every member:
the others may have had a ring that it never saw. Who owned the slot by no ring that it did see is waited for no longer
than that one would keep it.

Without etcd each node has a ring of its own for a time: when it starts, and after a split. So where half of the ring or
more are strangers, who were not in it `RINGS_KEPT_S` ago, they are asked for all of this node's slots, each once.

    PULL request   (slots, 2 bytes each; the key to go on after, or empty)
    reply          (pairs of key and record, tombstones included; how many slots are done; the last key of the next one;
                    a digest of the source's ring; ghosts, 26 bytes each: slot, hash of the key, version)

A source that has another ring is asked again, for up to `RINGS_DIFFER_MAX_S` after this one changed: it may still take
a write as an owner of before, or not know yet that it is one. With the same ring it passes on what such a write brings.

Ghosts travel since one of the others may have missed the value that expired or was evicted, and has an older one. They
come after the pairs of their slot, which is done only then. Who has nothing else of a slot, and did not own it lately,
sends none.

Paced: one page at a time from each source, `PAUSE_S` apart; slots with the fewest others to ask come first, since they
are nearest to being lost. What arrives is inserted at the cold end and evicts nothing.

Invariants: a slot is pending only while this node owns it; each pending slot has a source that is to be asked.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Container
from math import inf
from typing import Any

import mmh3

from zephyr.config import KEY_BYTES_MAX, SLOTS
from zephyr.events import CONTROL_CALL_ID_MIN, Effect, PeerAnswered, PeerCallFailed, SendPeer
from zephyr.model import Instant, NodeId, Version
from zephyr.peer.wire import Operation, Status
from zephyr.ring.ring import Ring, key_slot
from zephyr.store.record import VERSION_BYTES, HybridLogicalClock, record_is_valid, record_version
from zephyr.store.store import Store

CALL_ID_MIN = CONTROL_CALL_ID_MIN + (1 << 61)
"""Calls of this machine are numbered from here on."""
SLOTS_MAX = 2048
"""Slots asked for in one page: most of them may be empty."""
PAGE_KEYS_MAX = 500
"""Keys in one page: under 5 ms on either side."""
PAGE_BYTES_MAX = 48 << 10
"""Keys and records in one page, unless one pair alone is larger: within the room of a frame for any bound of values."""
PAUSE_S = 0.002
"""Between two pages from one source."""
RINGS_MAX = 8
"""Earlier rings whose owners are asked: with more changes the oldest are forgotten."""
RINGS_KEPT_S = 10.0
"""For so long: a node that finds itself out of the ring sees several of them in a row."""
OUTSIDER_WAIT_S = 10.0
"""How long a member that is out of the ring is waited for, without a page from it; one that is called dead only by a
node that begins anew, since it may have been the one that was cut off, and gossip may hear the other."""
STRANGER_WAIT_S = 3.0
"""The same of who is asked for a slot that it owns by no ring of this node: it has dropped it by then."""
RETRY_S = 0.5
"""After a page that failed."""
RINGS_DIFFER_MAX_S = 3.0
"""While etcd's word is on its way to everybody, rings differ for as long as a watch event takes."""
RINGS_DIFFER_RETRY_S = 0.1
"""Before a source is asked again whose ring is another one still."""
CALL_TIMEOUT_S = 2.0
SCAN_SLOTS = 2048
"""Slots looked at by one slice after a change of the ring."""


_GHOST = struct.Struct(f">HQ{VERSION_BYTES}s")


class _Source:
    """A member that is asked for slots."""

    __slots__ = ("after_key", "call_id", "due_s", "slots", "strange", "strange_until_s", "until_s")

    def __init__(self) -> None:
        self.slots: OrderedDict[int, None] = OrderedDict()
        """Still to be had from it, in the order of asking."""
        self.strange: dict[int, None] = {}
        """Those of them, settled ones too, that it owns by no ring of this node."""
        self.strange_until_s = inf
        """Until when it is waited for to answer for these."""
        self.after_key = b""
        """Within the first of them, where the next page begins."""
        self.call_id = 0
        """The page that is under way; 0: none."""
        self.due_s = -inf
        """When to ask for the next page, or to give up the one under way: its end may be silence."""
        self.until_s = inf
        """Until when it is waited for, should it be out of the ring."""


class Levels:
    """Which slots are level, and the pulling of the others."""

    def __init__(self, node_id: NodeId, ring: Ring, store: Store, clock: HybridLogicalClock) -> None:
        self.pulled_records = 0
        self.pulled_bytes = 0
        self._id = node_id
        self._store = store
        self._clock = clock
        self._ring = self._held = ring  # Empty at first: before it started, this node owned nothing.
        """Now; and of whose slots this node holds all it should."""
        self._earlier: deque[tuple[Ring, float]] = deque(maxlen=RINGS_MAX)
        """The rings before, and until when each was used."""
        self._waits_until_s = -inf
        self._ring_digest = _digest_of(ring)
        self._changed_s = -inf
        """When the ring changed, or this node began anew."""
        self._strangers: tuple[NodeId, ...] = ()
        """Who is asked for every slot of this node, whoever owns it, by the scan that is under way."""
        self._since_s: dict[NodeId, float] = {}
        """Since when each other member is in the ring."""
        self._met: dict[NodeId, None] = {}
        """Who of them was asked as a stranger."""
        self._members: frozenset[NodeId] = frozenset()
        """Who is in the ring."""
        self._cursor = SLOTS
        """Slots from here on have not been looked at since the ring changed."""
        self._pending: dict[int, int] = {}
        """Slots that are not level -> how many sources are still to be asked."""
        self._sources: dict[NodeId, _Source] = {}
        self._calls: dict[int, tuple[NodeId, tuple[int, ...]]] = {}
        self._last_call_id = CALL_ID_MIN
        self._nothing = ring

    # --- what others read -----------------------------------------------------------------------------

    def is_level(self, slot: int) -> bool:
        """Whether an owned slot holds all that it should."""
        if slot < self._cursor:
            return slot not in self._pending
        was_held = self._id in self._held.owners(slot) or not self._asked_of(slot)
        return slot not in self._pending and was_held and not self._strangers

    @property
    def pending(self) -> int:
        """Slots that are not level, of those looked at so far."""
        return len(self._pending)

    @property
    def is_done(self) -> bool:
        """Whether every slot of this node is level."""
        return not self._pending and self._cursor == SLOTS

    def deadline(self) -> float:
        """Return the monotonic second at which `poll` has something to do; -inf: now."""
        if self._cursor < SLOTS:
            return -inf
        return min((source.due_s for source in self._sources.values()), default=inf)

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; for tests and the simulator."""
        assert bool(self._pending) == bool(self._sources), "a slot that is not level has somebody to be asked"
        assert all(source.slots for source in self._sources.values())

    # --- the ring changes -----------------------------------------------------------------------------

    def ring_changed(self, ring: Ring, now: Instant, *, is_etcds: bool = True) -> None:
        """Use another ring from now on: see, slice by slice, what this node came to own.

        `is_etcds`: there is an etcd, whose word all rings follow in the end.
        """
        is_anew = self._cursor < SLOTS and self._held is self._nothing
        while self._cursor < SLOTS and not is_anew:  # The changes before this one are settled first.
            self._scan()
        if ring.members != self._ring.members:  # Else another digest of the same owners.
            self._earlier.append((self._ring, now.monotonic_s))
        self._forget_earlier(now)
        self._held, self._ring, self._cursor = self._nothing if is_anew else self._ring, ring, 0
        self._members = frozenset(member.id for member in ring.members)
        if ring.members != self._held.members or is_anew:
            self._ring_digest, self._changed_s = _digest_of(ring), now.monotonic_s
        if is_anew and self._strangers:
            self._strangers = self._others()
        else:
            self._strangers = () if is_etcds else self._strangers_in(now)

    def _strangers_in(self, now: Instant) -> tuple[NodeId, ...]:
        """Return who is to be asked for all of this node's slots, since half of the ring, or more, is new to it."""
        self._since_s = {node_id: self._since_s.get(node_id, now.monotonic_s) for node_id in self._others()}
        self._met = {node_id: None for node_id in self._met if node_id in self._since_s}
        came = [node_id for node_id, since_s in self._since_s.items() if since_s + RINGS_KEPT_S > now.monotonic_s]
        if 2 * len(came) < len(self._members):
            return ()
        strangers = tuple(node_id for node_id in came if node_id not in self._met)
        self._met.update(dict.fromkeys(strangers))
        return strangers

    def _others(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self._members - {self._id}))

    def _forget_earlier(self, now: Instant) -> None:
        while self._earlier and self._earlier[0][1] + RINGS_KEPT_S < now.monotonic_s:
            self._earlier.popleft()

    def begin_anew(self, now: Instant) -> None:
        """What this node kept is gone, or may be stale: nothing is level that somebody else owns too.

        Whoever was still to be asked is: it may be the last to have what the owners of now came too late for.
        """
        for source in self._sources.values():
            source.after_key, source.call_id, source.due_s = b"", 0, -inf
        self._calls = {}
        self._forget_earlier(now)
        self._held, self._cursor = self._nothing, 0
        self._strangers, self._changed_s = self._others(), now.monotonic_s
        self._waits_until_s = now.monotonic_s + OUTSIDER_WAIT_S

    def _scan(self) -> None:
        """Look at one slice of slots."""
        end = min(self._cursor + SCAN_SLOTS, SLOTS)
        gained = self._ring.gained(self._held, self._id, self._cursor, end)
        found = [(len(asked), slot, asked) for slot in gained if (asked := self._asked_of(slot))]
        for _, slot, asked in sorted(found):
            self._store.forget_floor(slot)
            for node_id in asked:
                self._want(slot, node_id)
                self._sources[node_id].strange.pop(slot, None)
        if self._strangers:
            for slot in self._ring.gained(self._nothing, self._id, self._cursor, end):
                self._store.forget_floor(slot)
                for node_id in self._strangers:
                    if self._want(slot, node_id):
                        self._sources[node_id].strange[slot] = None
        self._cursor = end
        if end == SLOTS:
            self._strangers = ()
            for slot in [item for item in self._pending if self._id not in self._ring.owners(item)]:
                self._settle(slot)

    def _want(self, slot: int, node_id: NodeId) -> bool:
        """Ask a member for a slot. False: it is to be asked for it already."""
        source = self._sources.get(node_id)
        if source is None:
            source = self._sources[node_id] = _Source()
        if slot in source.slots:
            return False
        source.slots[slot] = None
        self._pending[slot] = self._pending.get(slot, 0) + 1
        return True

    def _asked_of(self, slot: int) -> list[NodeId]:
        """Return who else owns a slot, or did lately."""
        owners = dict.fromkeys(self._ring.owners(slot))
        for ring, _ in reversed(self._earlier):
            owners.update(dict.fromkeys(ring.owners(slot)))
        return [node_id for node_id in owners if node_id != self._id]

    def _settle(self, slot: int, node_id: NodeId | None = None) -> None:
        """Ask no more for a slot: of one source, or of any."""
        for source_id in [node_id] if node_id is not None else list(self._sources):
            source = self._sources.get(source_id)
            if source is None or slot not in source.slots:
                continue
            if next(iter(source.slots)) == slot:
                source.after_key = b""
            del source.slots[slot]
            if not source.slots:
                self._calls.pop(source.call_id, None)
                del self._sources[source_id]
            self._pending[slot] -= 1
            if not self._pending[slot]:
                del self._pending[slot]

    # --- asking ---------------------------------------------------------------------------------------

    def poll(self, living: Container[NodeId], now: Instant) -> list[Effect]:
        """Look at the next slots, and ask for the next pages. `living`: members that nobody called dead or left."""
        if self._cursor < SLOTS:
            self._scan()
        effects: list[Effect] = []
        for node_id in list(self._sources):
            source = self._sources[node_id]
            source.until_s = min(source.until_s, now.monotonic_s + OUTSIDER_WAIT_S)
            source.strange_until_s = min(source.strange_until_s, now.monotonic_s + STRANGER_WAIT_S)
            if source.strange and now.monotonic_s >= source.strange_until_s:
                strange, source.strange = source.strange, {}
                for slot in strange:
                    self._settle(slot, node_id)
                if node_id not in self._sources:
                    continue
            is_awaited = now.monotonic_s < (source.until_s if node_id in living else self._waits_until_s)
            if node_id not in self._members and not is_awaited:
                for slot in list(source.slots):
                    self._settle(slot, node_id)
            elif node_id not in living:
                source.due_s = max(source.due_s, now.monotonic_s + RETRY_S)
            elif now.monotonic_s >= source.due_s:
                self._calls.pop(source.call_id, None)
                effects.append(self._ask(node_id, source, now))
        return effects

    def _ask(self, node_id: NodeId, source: _Source, now: Instant) -> SendPeer:
        slots = tuple(slot for slot, _ in zip(source.slots, range(SLOTS_MAX), strict=False))
        self._last_call_id += 1
        source.call_id, source.due_s = self._last_call_id, now.monotonic_s + CALL_TIMEOUT_S
        self._calls[source.call_id] = (node_id, slots)
        arguments = (struct.pack(f">{len(slots)}H", *slots), source.after_key)
        return SendPeer(node_id, source.call_id, Operation.PULL, arguments, now.monotonic_s + CALL_TIMEOUT_S)

    def on_failed(self, event: PeerCallFailed, now: Instant) -> list[Effect]:
        """A source gave no answer: ask it again while it is in reach."""
        node_id, _ = self._calls.pop(event.call_id, ("", ()))
        source = self._sources.get(node_id)
        if source is not None and source.call_id == event.call_id:
            source.call_id, source.due_s = 0, now.monotonic_s + RETRY_S
        return []

    def on_answered(self, event: PeerAnswered, now: Instant) -> list[Effect]:
        """Take a page in. An answer of another form is no answer."""
        node_id, slots = self._calls.get(event.call_id, ("", ()))
        source = self._sources.get(node_id)
        if source is None or source.call_id != event.call_id:
            return []
        try:
            pairs, done, after_key, ring_digest, ghosts = _decoded(event, slots)
        except (ValueError, TypeError):
            return self.on_failed(PeerCallFailed(event.call_id, "another form"), now)
        del self._calls[event.call_id]
        source.call_id, source.due_s = 0, now.monotonic_s + PAUSE_S
        source.until_s = source.strange_until_s = inf
        wanted = dict.fromkeys(slots)
        for key, record in pairs:
            slot = key_slot(key)
            if slot in wanted and self._id in self._ring.owners(slot):
                self._take(slot, key, record, now)
        for slot, of_slot in ghosts.items():
            if slot in wanted and self._id in self._ring.owners(slot):
                self._take_ghosts(slot, of_slot, now)
        if ring_digest != self._ring_digest and now.monotonic_s < self._changed_s + RINGS_DIFFER_MAX_S:
            source.due_s, source.after_key = now.monotonic_s + RINGS_DIFFER_RETRY_S, b""
            return []
        for slot in slots[:done]:
            self._settle(slot, node_id)
        if node_id in self._sources:  # Within a slot that is the first still, and was not lost meanwhile.
            goes_on = done < len(slots) and next(iter(source.slots)) == slots[done]
            source.after_key = after_key if goes_on else b""
        return []

    def _take(self, slot: int, key: bytes, record: bytes, now: Instant) -> None:
        if not self._clock.observe(record_version(record), now.unix_ms):
            return  # A stamp too far ahead is refused here as in a write.
        applied = self._store.apply(slot, key, record, self._clock.now_unix_ms(now.unix_ms), cold=True, fetched=True)
        if applied.applied:
            self.pulled_records += 1
            self.pulled_bytes += len(key) + len(record)

    def _take_ghosts(self, slot: int, ghosts: dict[int, Version], now: Instant) -> None:
        observe, unix_ms = self._clock.observe, now.unix_ms
        trusted = {key_hash: version for key_hash, version in ghosts.items() if observe(version, unix_ms)}
        self._store.remember_ghosts(slot, trusted)

    # --- answering ------------------------------------------------------------------------------------

    def serve(self, arguments: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        """Answer a peer with a page: (status, payload)."""
        match arguments:
            case (bytes(packed), bytes(after_key)) if _is_slots(packed) and len(after_key) <= KEY_BYTES_MAX:
                slots = struct.unpack(f">{len(packed) // 2}H", packed)
            case _:
                return Status.BAD_REQUEST, ("slots, and a key to go on after",)
        if any(slot >= SLOTS for slot in slots):
            return Status.BAD_REQUEST, ("no such slot",)
        page = _Page(self._ring_digest)
        for done, slot in enumerate(slots):
            items = sorted(self._store.slot_items(slot)) if self._store.slot_digest(slot) else []
            ghosts = self._store.slot_ghosts(slot)
            if ghosts and not items and not self._owned_lately(slot):
                ghosts = {}
            for key, record in items:
                if key > after_key:
                    if not page.takes(key, record):
                        return Status.OK, page.payload(done, after_key)
                    after_key = key
            if not page.takes_ghosts(slot, ghosts):
                return Status.OK, page.payload(done, after_key)
            after_key = b""
        return Status.OK, page.payload(len(slots), b"")

    def _owned_lately(self, slot: int) -> bool:
        return any(self._id in ring.owners(slot) for ring in (self._ring, *(ring for ring, _ in self._earlier)))


class _Page:
    """A page that is being filled: what does not fit stays for the next one, unless this one is empty."""

    def __init__(self, ring_digest: bytes) -> None:
        self._ring_digest = ring_digest
        self._pairs: list[tuple[bytes, bytes]] = []
        self._ghosts: list[bytes] = []
        self._size_bytes = 0

    def takes(self, key: bytes, record: bytes) -> bool:
        if len(self._pairs) >= PAGE_KEYS_MAX or not self._has_room(len(key) + len(record)):
            return False
        self._pairs.append((key, record))
        return True

    def takes_ghosts(self, slot: int, ghosts: dict[int, Version]) -> bool:
        if ghosts and not self._has_room(len(ghosts) * _GHOST.size):
            return False
        self._ghosts += [_GHOST.pack(slot, key_hash, version) for key_hash, version in ghosts.items()]
        return True

    def payload(self, done: int, after_key: bytes) -> tuple[Any, ...]:
        return (tuple(self._pairs), done, after_key, self._ring_digest, b"".join(self._ghosts))

    def _has_room(self, size_bytes: int) -> bool:
        if self._size_bytes and self._size_bytes + size_bytes > PAGE_BYTES_MAX:
            return False
        self._size_bytes += size_bytes
        return True


def _digest_of(ring: Ring) -> bytes:
    """Return 16 bytes that are equal for rings of equal owners, whatever life each of them is in."""
    return mmh3.mmh3_x64_128_digest(repr((ring.members, ring.replicas)).encode())


def _is_slots(packed: bytes) -> bool:
    return 0 < len(packed) <= 2 * SLOTS_MAX and len(packed) % 2 == 0


def _decoded(
    event: PeerAnswered, slots: tuple[int, ...]
) -> tuple[tuple[tuple[bytes, bytes], ...], int, bytes, bytes, dict[int, dict[int, Version]]]:
    """Read a page: (pairs, slots done, key to go on after, digest of the ring, ghosts of slots).

    Raises ValueError or TypeError.
    """
    if event.status != Status.OK:
        raise ValueError("not ok")
    pairs, done, after_key, ring_digest, packed_ghosts = event.payload
    if type(done) is not int or not 0 <= done <= len(slots) or type(after_key) is not bytes:
        raise ValueError("page")
    for key, record in pairs:
        if type(key) is not bytes or type(record) is not bytes or not 0 < len(key) <= KEY_BYTES_MAX:
            raise ValueError("pair")
        if not record_is_valid(record):
            raise ValueError("record")
    if type(ring_digest) is not bytes:
        raise ValueError("ring")
    if type(packed_ghosts) is not bytes or len(packed_ghosts) > PAGE_BYTES_MAX or len(packed_ghosts) % _GHOST.size:
        raise ValueError("ghosts")
    ghosts: dict[int, dict[int, Version]] = {}
    for slot, key_hash, version in _GHOST.iter_unpack(packed_ghosts):
        ghosts.setdefault(slot, {})[key_hash] = version
    return pairs, done, after_key, ring_digest, ghosts
