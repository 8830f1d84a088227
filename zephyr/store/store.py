"""What this node remembers: packed records by slot, with versions, deadlines and a bound.

Decides whether a record is taken (the highest version wins), what is expired, and what goes when memory is
full. Knows nothing of owners, peers or time: slots and unix ms are handed in.

    value       a record in its slot's dict
    empty       b"" there: the value is gone, and the eviction policy still lists the key
    tombstone   a versioned mark of a deletion, in dicts of their own with a budget of their own
    ghost       (key hash, version) of an expired or evicted value, here or at another owner; by slot, all bounded
    floor       per slot: the highest version of a tombstone or ghost that was forgotten

A cache may miss; it must not resurrect. So a record is refused when it is not newer than what stands for
its key: the value, else the tombstone, else the ghost, else the slot's floor. That holds for every write,
foreground and repair: the coordinator of a refused one is told the version that stands, stamps above it,
and loses nothing. While a slot is fetched from its other owners, neither the floor nor the very version of a ghost
stands in the way: this node forgot and evicted, they did not. Of what another owner evicted only the older is refused.

Invariants (`check_invariants`): counts and bytes are those of the entries; each slot's digest is that of its
values and tombstones; a floor falls only where its slot is fetched anew.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mmh3

from zephyr.model import Version
from zephyr.store.digest import entry_digest
from zephyr.store.eviction import make_eviction
from zephyr.store.record import (
    FLAG_DEADLINE,
    FLAG_TOMBSTONE,
    FLAGS_AT,
    VERSION_BYTES,
    VERSION_ZERO,
    record_expires_unix_ms,
    record_version,
    version_unix_ms,
)

ENTRY_OVERHEAD_BYTES = 128
"""Of a value beside the bytes of its key and record: two object headers (66), its share of the slot's dict (about 54 at
the fill of a growing dict) and malloc's rounding. Measured as RSS at 1M entries of 52 bytes; see docs/decisions."""
DEADLINE_OVERHEAD_BYTES = 40
"""Of a value with a deadline: its place in the expiry buckets."""
TOMBSTONE_OVERHEAD_BYTES = 400
"""Of a tombstone: its record, its place in two dicts and in the line of the oldest."""
COLD_FILL_MAX = 0.9
"""Share of the bound above which repair and handoff insert nothing: repair never evicts."""
BUCKET_KEYS_MAX = 4096
"""Keys of one dict of an expiry bucket; a fuller second has several, so that none takes long to grow."""
GHOSTS_OF_SLOT_MAX = 1500
"""Ghosts of one slot, beside the bound of all: they travel in one page (`zephyr.replication.level`)."""
COLLECT_EVERY = 128
"""Emptied entries per sweep of one segment of the policy's list: four keys looked at for each emptied one."""


class Applied(NamedTuple):
    """What became of a record."""

    applied: bool
    """It stands now, or stood already."""
    existed: bool
    """A live value stood there before."""
    newest: Version
    """The version that stands: the record's own, or the one that refused it."""
    too_large: bool = False
    """Refused because it is larger than the whole bound; nothing was evicted."""
    full: bool = False
    """A cold insertion refused because memory is nearly full."""


class Store:
    """The entries of one node."""

    def __init__(
        self,
        *,
        memory_bytes_max: int,
        tombstone_bytes_max: int,
        tombstone_grace_ms: int,
        ghosts_max: int,
        eviction: str,
        slot_of: Callable[[bytes], int],
    ) -> None:
        """`slot_of`: the slot of a key, for the keys that the eviction policy names."""
        self.bytes_max = memory_bytes_max
        self.bytes_used = 0
        """Keys, records and overhead of values, emptied entries included. Tombstones have their own count."""
        self.items = 0
        """Values; an expired one counts until it is removed."""
        self.tombstones = 0
        self.tombstone_bytes = 0
        self.evictions = 0
        self.expired = 0
        self.hits = 0
        self.misses = 0
        self._slots: dict[int, dict[bytes, bytes]] = {}
        self._slot_of = slot_of
        self._policy = make_eviction(eviction)
        self._overhead_bytes = ENTRY_OVERHEAD_BYTES + self._policy.overhead_bytes
        self._emptied = 0
        self._emptied_since_sweep = 0
        self._tombstone_bytes_max = tombstone_bytes_max
        self._tombstone_grace_ms = tombstone_grace_ms
        self._tombstones: dict[int, dict[bytes, bytes]] = {}
        self._tombstone_line: OrderedDict[bytes, None] = OrderedDict()
        self._ghosts_max = ghosts_max
        self._ghosts: dict[int, dict[int, Version]] = {}
        """By slot: hash of the key -> version, the oldest first."""
        self._ghost_line: deque[int] = deque()
        """The slot of each ghost, the oldest first."""
        self._floors: dict[int, Version] = {}
        self._digests: dict[int, int] = {}
        self._buckets: dict[int, list[dict[bytes, None]]] = {}
        self._bucket_seconds: list[int] = []

    # --- reading --------------------------------------------------------------------------------------

    def get(self, slot: int, key: bytes, now_unix_ms: int) -> bytes | None:
        """Return the live record of a key, or None; counts as use."""
        entries = self._slots.get(slot)
        record = entries.get(key) if entries else None
        if record and not _is_expired(record, now_unix_ms):
            self.hits += 1
            self._policy.touch(key)
            return record
        self.misses += 1
        return None

    def peek(self, slot: int, key: bytes, now_unix_ms: int) -> bytes | None:
        """Return the live record or the tombstone of a key, or None; no use is counted."""
        entries = self._slots.get(slot)
        record = entries.get(key) if entries else None
        if record and not _is_expired(record, now_unix_ms):
            return record
        marks = self._tombstones.get(slot)
        return marks.get(key) if marks else None

    def standing(
        self, slot: int, key: bytes, now_unix_ms: int, *, is_use: bool = False
    ) -> tuple[bytes | None, Version]:
        """Return the live record or tombstone of a key, or None and its *mark*. `is_use`: a value found was used.

        At or below its mark a key without an entry had one, or may have had: the version that expired or was evicted,
        or the slot's floor; `VERSION_ZERO` when nothing is known.
        """
        entries = self._slots.get(slot)
        record = entries.get(key) if entries else None
        if record:
            if not _is_expired(record, now_unix_ms):
                if is_use:
                    self._policy.touch(key)
                return record, VERSION_ZERO
            return None, record_version(record)
        marks = self._tombstones.get(slot)
        if marks and key in marks:
            return marks[key], VERSION_ZERO
        return None, self._mark(slot, key)

    def slot_items(self, slot: int) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over (key, record) of a slot as it is now, tombstones included, expired values too."""
        entries = self._slots.get(slot, {})
        pairs = [(key, record) for key, record in entries.items() if record]
        return iter(pairs + list(self._tombstones.get(slot, {}).items()))

    def slot_digest(self, slot: int) -> int:
        """Return the 128-bit digest of a slot; 0 when it is empty."""
        return self._digests.get(slot, 0)

    def floor(self, slot: int) -> Version:
        """Return the version at or below which an absent key of a slot is refused."""
        return self._floors.get(slot, VERSION_ZERO)

    def ghost(self, slot: int, key: bytes) -> Version | None:
        """Return the version that an expired or evicted key had, while it is remembered."""
        return self._ghosts.get(slot, {}).get(_key_hash(key))

    def slot_ghosts(self, slot: int) -> dict[int, Version]:
        """Return what is known of expired and evicted keys of a slot, to be read only: hash of the key -> version."""
        return self._ghosts.get(slot, {})

    @property
    def ghosts(self) -> int:
        """Ghosts remembered."""
        return len(self._ghost_line)

    def occupied_slots(self) -> list[int]:
        """Return the slots that hold anything, in order; emptied entries that are not swept yet count too."""
        return sorted({**{slot: None for slot, entries in self._slots.items() if entries}, **self._tombstones})

    # --- writing --------------------------------------------------------------------------------------

    def is_too_large(self, key: bytes, record: bytes) -> bool:
        """Whether a value is larger than the whole bound."""
        return self._size(key, record) > self.bytes_max

    def apply(
        self, slot: int, key: bytes, record: bytes, now_unix_ms: int, *, cold: bool = False, fetched: bool = False
    ) -> Applied:
        """Take a record if it is newer than what stands; the same one again changes nothing.

        `cold`: from repair or handoff. It is listed as the next to go, and refused when memory is nearly full instead
        of evicting anything; an older value of the key goes even so. `fetched`: with its slot, from another owner.
        """
        entries = self._slots.get(slot)
        standing = entries.get(key) if entries else None
        if standing and _is_expired(standing, now_unix_ms):
            self._expire(slot, key, standing)
            entries = self._slots.get(slot)
            standing = entries.get(key) if entries else None
        version = record[:VERSION_BYTES]
        newest = standing[:VERSION_BYTES] if standing else self._mark(slot, key)
        existed = bool(standing)
        if version <= newest and (existed or not fetched or not self._is_missing(slot, key, version)):
            same = version == newest and (existed or self._is_tombstone(slot, key, version))
            return Applied(same, existed, newest)
        if record[FLAGS_AT] & FLAG_TOMBSTONE:
            self._apply_tombstone(slot, key, record, standing)
            return Applied(applied=True, existed=existed, newest=version)
        size = self._size(key, record)
        if size > self.bytes_max:
            return Applied(applied=False, existed=existed, newest=newest, too_large=True)
        growth = size if standing is None else size - self._size(key, standing)
        if cold and growth > 0 and self.bytes_used + growth > self.bytes_max * COLD_FILL_MAX:
            if standing:
                self.drop_outdated(slot, key, just_below(version))
            return Applied(applied=False, existed=existed, newest=newest, full=True)
        self._put(slot, key, record, standing, size, cold=cold)
        if self.bytes_used > self.bytes_max:
            self._evict(key)
        return Applied(applied=True, existed=existed, newest=version)

    def remember_ghosts(self, slot: int, ghosts: dict[int, Version]) -> None:
        """Take what another owner knows of expired and evicted keys of a slot: what is older than that goes.

        The very version may come yet, from who has not evicted it. Nothing is forgotten for this: where there is no
        room for more ghosts, no more are taken.
        """
        known = self._ghosts.get(slot, {})
        marks = {
            key_hash: mark
            for key_hash, version in ghosts.items()
            if version != VERSION_ZERO and (mark := just_below(version)) > known.get(key_hash, VERSION_ZERO)
        }
        if not marks:
            return
        newest = max(marks.values())
        for key, record in list(self._slots.get(slot, {}).items()):
            if record and record_version(record) <= newest and record_version(record) <= marks.get(_key_hash(key), b""):
                self._remove(slot, key, record)
        room = min(GHOSTS_OF_SLOT_MAX - len(known), self._ghosts_max - len(self._ghost_line))
        for key_hash in [item for item in marks if item not in known][max(0, room) :]:
            del marks[key_hash]
        for key, record in list(self._tombstones.get(slot, {}).items()):
            if record_version(record) <= newest and record_version(record) <= marks.get(_key_hash(key), b""):
                self._remove_tombstone(slot, key)
                self._digests[slot] = self._digests.get(slot, 0) ^ entry_digest(key, record)
        for key_hash, version in marks.items():
            self._remember_ghost(slot, key_hash, version)

    def forget_floor(self, slot: int) -> None:
        """Begin to fetch a slot: what is absent here says nothing, before it has been."""
        self._floors.pop(slot, None)

    def drop_outdated(self, slot: int, key: bytes, mark: Version) -> bool:
        """Drop a value below a mark that another replica has of its key, and keep that mark. False: there is none."""
        record = self._slots.get(slot, {}).get(key)
        if not record or record_version(record) >= mark:
            return False
        self._remove(slot, key, record)
        self._remember_ghost(slot, _key_hash(key), mark)
        return True

    def drop_slot(self, slot: int) -> int:
        """Forget all of a slot, since this node no longer owns it. Return how many entries went.

        Leaves no ghosts. The floor stays until the slot is fetched anew; what the ghosts know stays.
        """
        count = 0
        for key, record in list(self._slots.get(slot, {}).items()):
            if record:
                self._remove(slot, key, record)
                count += 1
        for key in list(self._tombstones.get(slot, {})):
            self._remove_tombstone(slot, key)
            count += 1
        self._digests.pop(slot, None)
        return count

    def expire(self, now_unix_ms: int, limit: int) -> int:
        """Remove up to `limit` expired values and tombstones past their grace. Return how many went."""
        count = 0
        while self._bucket_seconds and self._bucket_seconds[0] * 1000 <= now_unix_ms and count < limit:
            second = self._bucket_seconds[0]
            parts = self._buckets.get(second)
            if not parts:
                heapq.heappop(self._bucket_seconds)
                self._buckets.pop(second, None)
                continue
            if not parts[-1]:
                parts.pop()
                continue
            key = next(reversed(parts[-1]))
            slot = self._slot_of(key)
            self._expire(slot, key, self._slots[slot][key])
            count += 1
        while self._tombstone_line and count < limit:
            oldest = next(iter(self._tombstone_line))
            version = record_version(self._tombstones[self._slot_of(oldest)][oldest])
            if version_unix_ms(version) + self._tombstone_grace_ms > now_unix_ms:
                break
            self._drop_oldest_tombstone()
            count += 1
        return count

    def next_expiry_unix_ms(self) -> int | None:
        """Return when `expire` next has a value to remove, to the second; None: no value has a deadline."""
        return self._bucket_seconds[0] * 1000 if self._bucket_seconds else None

    # --- values ---------------------------------------------------------------------------------------

    def _size(self, key: bytes, record: bytes) -> int:
        size = len(key) + len(record) + self._overhead_bytes
        return size + DEADLINE_OVERHEAD_BYTES if record and record[FLAGS_AT] & FLAG_DEADLINE else size

    def _put(self, slot: int, key: bytes, record: bytes, standing: bytes | None, size: int, *, cold: bool) -> None:
        """`standing`: what is there for the key; empty for an entry that is only listed."""
        entries = self._slots.get(slot)
        if entries is None:
            entries = self._slots[slot] = {}
        digest = self._digests.get(slot, 0) ^ entry_digest(key, record)
        if standing:
            size -= self._size(key, standing)
            digest ^= entry_digest(key, standing)
            if standing[FLAGS_AT] & FLAG_DEADLINE:
                self._unschedule(key, standing)
        else:
            self.items += 1
            if standing is None:
                self._policy.admit(key, cold=cold)
            else:
                size -= self._size(key, standing)
                self._emptied -= 1
            if slot in self._tombstones:
                mark = self._remove_tombstone(slot, key)
                if mark is not None:
                    digest ^= entry_digest(key, mark)
        entries[key] = record
        self._digests[slot] = digest
        self.bytes_used += size
        if record[FLAGS_AT] & FLAG_DEADLINE:
            self._schedule(key, record_expires_unix_ms(record))

    def _remove(self, slot: int, key: bytes, record: bytes) -> None:
        """Take a value away; where the policy still lists the key, an empty entry stays."""
        entries = self._slots[slot]
        self._unlink(slot, key, record)
        if self._policy.forget(key):
            del entries[key]
            return
        entries[key] = b""
        self.bytes_used += self._size(key, b"")
        self._emptied += 1
        self._emptied_since_sweep += 1
        if self._emptied_since_sweep >= COLLECT_EVERY:
            self._emptied_since_sweep = 0
            self._policy.collect(self._drop_if_empty)

    def _unlink(self, slot: int, key: bytes, record: bytes) -> None:
        """Take a value out of every count."""
        self.items -= 1
        self.bytes_used -= self._size(key, record)
        self._digests[slot] = self._digests.get(slot, 0) ^ entry_digest(key, record)
        self._unschedule(key, record)

    def _drop_if_empty(self, key: bytes) -> bool:
        entries = self._slots[self._slot_of(key)]
        if entries[key]:
            return False
        del entries[key]
        self.bytes_used -= self._size(key, b"")
        self._emptied -= 1
        return True

    def _evict(self, spared: bytes) -> None:
        """Make room. What was just written is spared: it goes back on the list if it is named."""
        named_spared = False
        while self.bytes_used > self.bytes_max:
            key = self._policy.next_victim()
            if key is None:
                break
            if key == spared:
                named_spared = True
                continue
            slot = self._slot_of(key)
            record = self._slots[slot].pop(key)  # A listed key has an entry.
            if record:
                self._unlink(slot, key, record)
                self._remember_ghost(slot, _key_hash(key), record_version(record))
                self.evictions += 1
            else:
                self.bytes_used -= self._size(key, b"")
                self._emptied -= 1
        if named_spared:
            self._policy.admit(spared, cold=False)

    # --- deadlines ------------------------------------------------------------------------------------

    def _schedule(self, key: bytes, expires_unix_ms: int) -> None:
        second = _bucket_of(expires_unix_ms)
        parts = self._buckets.get(second)
        if parts is None:
            parts = self._buckets[second] = [{}]
            heapq.heappush(self._bucket_seconds, second)
        elif not parts or len(parts[-1]) >= BUCKET_KEYS_MAX:
            parts.append({})
        parts[-1][key] = None

    def _unschedule(self, key: bytes, record: bytes) -> None:
        if record[FLAGS_AT] & FLAG_DEADLINE:
            expires_unix_ms = record_expires_unix_ms(record)
            # From the last part on, which is where active expiry takes its keys from.
            for part in reversed(self._buckets.get(_bucket_of(expires_unix_ms), ())):
                if key in part:
                    del part[key]
                    return

    def _expire(self, slot: int, key: bytes, record: bytes) -> None:
        self._remove(slot, key, record)
        self._remember_ghost(slot, _key_hash(key), record_version(record))
        self.expired += 1

    # --- tombstones, ghosts, floors -------------------------------------------------------------------

    def _mark(self, slot: int, key: bytes) -> Version:
        """Return the version that stands for a key without a value."""
        marks = self._tombstones.get(slot)
        if marks and key in marks:
            return record_version(marks[key])
        ghosts = self._ghosts.get(slot)
        ghost = ghosts.get(_key_hash(key)) if ghosts else None
        floor = self._floors.get(slot, VERSION_ZERO) if self._floors else VERSION_ZERO
        return ghost if ghost is not None and ghost > floor else floor

    def _is_missing(self, slot: int, key: bytes, version: Version) -> bool:
        """Whether an absent key may have had this version, for all that is known of that very key."""
        return key not in self._tombstones.get(slot, {}) and version >= (self.ghost(slot, key) or VERSION_ZERO)

    def _is_tombstone(self, slot: int, key: bytes, version: Version) -> bool:
        mark = self._tombstones.get(slot, {}).get(key)
        return mark is not None and record_version(mark) == version

    def _apply_tombstone(self, slot: int, key: bytes, record: bytes, standing: bytes | None) -> None:
        if standing:
            self._remove(slot, key, standing)
        digest = self._digests.get(slot, 0) ^ entry_digest(key, record)
        earlier = self._remove_tombstone(slot, key)
        if earlier is not None:
            digest ^= entry_digest(key, earlier)
        self._digests[slot] = digest
        self._tombstones.setdefault(slot, {})[key] = record
        self._tombstone_line[key] = None
        self.tombstones += 1
        self.tombstone_bytes += len(key) + TOMBSTONE_OVERHEAD_BYTES
        while self.tombstone_bytes > self._tombstone_bytes_max:
            self._drop_oldest_tombstone()

    def _remove_tombstone(self, slot: int, key: bytes) -> bytes | None:
        """Take a tombstone away, if there is one."""
        marks = self._tombstones.get(slot)
        mark = marks.pop(key, None) if marks else None
        if mark is not None:
            self.tombstones -= 1
            self.tombstone_bytes -= len(key) + TOMBSTONE_OVERHEAD_BYTES
            del self._tombstone_line[key]
            if not marks:
                del self._tombstones[slot]
        return mark

    def _drop_oldest_tombstone(self) -> None:
        """Forget the oldest tombstone; its slot's floor rises to it."""
        key = next(iter(self._tombstone_line))
        slot = self._slot_of(key)
        mark = self._remove_tombstone(slot, key)
        assert mark is not None, "the line names what stands"
        self._digests[slot] = self._digests.get(slot, 0) ^ entry_digest(key, mark)
        self._raise_floor(slot, record_version(mark))

    def _remember_ghost(self, slot: int, key_hash: int, version: Version) -> None:
        ghosts = self._ghosts.get(slot)
        if ghosts is None:
            ghosts = self._ghosts[slot] = {}
        earlier = ghosts.pop(key_hash, VERSION_ZERO)
        ghosts[key_hash] = max(version, earlier)
        if earlier != VERSION_ZERO:
            return
        if len(ghosts) > GHOSTS_OF_SLOT_MAX:
            self._forget_ghost(slot)  # Whose place in the line this one has.
            return
        self._ghost_line.append(slot)
        if len(self._ghost_line) > self._ghosts_max:
            self._forget_ghost(self._ghost_line.popleft())

    def _forget_ghost(self, slot: int) -> None:
        """Forget the oldest ghost of a slot; its floor rises to it."""
        ghosts = self._ghosts[slot]
        self._raise_floor(slot, ghosts.pop(next(iter(ghosts))))
        if not ghosts:
            del self._ghosts[slot]

    def _raise_floor(self, slot: int, version: Version) -> None:
        if version > self._floors.get(slot, VERSION_ZERO):
            self._floors[slot] = version

    # --- tests ----------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Recompute every count from the entries, and assert that they agree. For tests."""
        values = [(slot, key, record) for slot, entries in self._slots.items() for key, record in entries.items()]
        live = [(slot, key, record) for slot, key, record in values if record]
        marks = [(slot, key, mark) for slot, found in self._tombstones.items() for key, mark in found.items()]
        assert self.items == len(live)
        assert self._emptied == len(values) - len(live)
        assert self.bytes_used == sum(self._size(key, record) for _, key, record in values)
        assert self.bytes_used <= self.bytes_max
        assert self.tombstones == len(marks)
        assert sorted(self._tombstone_line) == sorted(key for _, key, _ in marks)
        assert self.tombstone_bytes == sum(len(key) + TOMBSTONE_OVERHEAD_BYTES for _, key, _ in marks)
        assert self.tombstone_bytes <= self._tombstone_bytes_max
        assert Counter(self._ghost_line) == {slot: len(ghosts) for slot, ghosts in self._ghosts.items()}
        assert len(self._ghost_line) <= self._ghosts_max
        assert all(0 < len(ghosts) <= GHOSTS_OF_SLOT_MAX for ghosts in self._ghosts.values())
        digests: dict[int, int] = {}
        for slot, key, record in live + marks:
            digests[slot] = digests.get(slot, 0) ^ entry_digest(key, record)
            assert self._slot_of(key) == slot
        assert {slot: digest for slot, digest in self._digests.items() if digest} == digests
        scheduled = sorted(key for parts in self._buckets.values() for part in parts for key in part)
        assert all(record_version(record) >= (self.ghost(slot, key) or VERSION_ZERO) for slot, key, record in live)
        assert scheduled == sorted(key for _, key, record in live if record_expires_unix_ms(record))
        assert sorted(self._bucket_seconds) == sorted(self._buckets)


def _is_expired(record: bytes, now_unix_ms: int) -> bool:
    return record[FLAGS_AT] & FLAG_DEADLINE != 0 and record_expires_unix_ms(record) <= now_unix_ms


def just_below(version: Version) -> Version:
    """Return the version before one above `VERSION_ZERO`: a mark at which everything older is refused, and not it."""
    return (int.from_bytes(version, "big") - 1).to_bytes(VERSION_BYTES, "big")


def _bucket_of(expires_unix_ms: int) -> int:
    """Return the second, rounded up, at which active expiry takes a deadline: never before it has passed."""
    return -(-expires_unix_ms // 1000)


def _key_hash(key: bytes) -> int:
    """Return 64 bits that stand for a key within its slot."""
    return mmh3.mmh3_x64_128_uintdigest(key) & _HASH_MASK


_HASH_MASK = (1 << 64) - 1
