"""Decides which members own a key: key -> slot -> owners, in order of preference.

Never decides who is a member, who can be reached, or when data moves. Pure: the same members give the
same owners, whatever the order they came in and whatever was built or cached before.

A key's *slot* is Redis Cluster's, so every Redis Cluster client can route to our owners as it is. A slot's
owners are found on a circle of 2^64 places:

- each member has `virtual_nodes x weight` *tokens*, rounded, at least one: places where it stands;
- a slot walks clockwise from its fixed midpoint and meets the members in the order of their next tokens;
- it takes a member of each zone it has not met, until min(N, zones) zones are used; then, while owners are
  still missing, the members it skipped, in the order it met them. The first taken is the primary.

Two members may have the same token: both keep it, and are met in the order of their ids.

Why it is fast. The answers stand in a table, so a lookup is one index. The table is filled by *segments* of
neighbouring slots, when first asked or in slices. To fill a segment it is enough to merge each member's tokens
within it and the *one* next token of each after it: a member met again cannot change the order of first meetings.
So no call ever sorts or walks the whole circle, and a member with few tokens, or a zone with few members, costs no
long walk. A member's tokens are kept sorted, in *runs* short enough to be made in one call.

Sources: Karger et al., "Consistent Hashing and Random Trees" (1997); for slots, the Redis Cluster specification.
Any change of the placement is a new `zephyr.config.HASH_VERSION`.
"""

from __future__ import annotations

import functools
import itertools
import json
from array import array
from binascii import crc_hqx
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from mmh3 import mmh3_x64_128_utupledigest

from zephyr.config import HASH_VERSION, MEMBERS_MAX, SLOTS, SPECS
from zephyr.errors import ConfigError
from zephyr.model import Member, NodeId

STEP_TOKENS_MAX = 4096
"""Tokens that one step of a builder makes of several runs: about 1.5 ms to hash and sort."""
RUN_TOKENS_MAX = 8192
"""Tokens in a run, which is made in one step: about 3 ms. Members of more tokens are kept as several runs."""
NUMBERS_CACHED_MAX = 8
"""Ranges of token numbers kept in writing: members of one weight share theirs. 0.4 MiB each at most."""
SEGMENT_SLOTS_MAX = 64
"""Slots filled together. More share the work of merging better, but make a first lookup wait longer."""
SEGMENT_TOKENS_MAX = 1024
"""Tokens within a segment, on average: bounds its merge, and each walk in it. A slot alone may hold more."""
FILL_SEGMENTS_MAX = 2
"""Segments in a slice of `Ring.fill`: 0.2 to 1 ms in an ordinary ring, under 5 ms with the most tokens allowed."""
FILL_RUNS_MAX = 128
"""Runs in a ring whose slices are so long; with more, one segment is a slice."""
RUNS_CACHED_MAX = 1024
"""Runs kept for the next ring: five rings of 200 members at the defaults (8 MiB); at worst 64 MiB."""
TABLES_CACHED_MAX = 8
"""Tables kept though no ring uses them, for members that leave and return; at most 1.5 MB each with 3 replicas."""

VIRTUAL_NODES_MAX = SPECS["virtual_nodes"].high or 0
"""With the largest weight, 40,960 tokens a member."""
WEIGHT_MIN, WEIGHT_MAX = SPECS["weight"].low or 0, SPECS["weight"].high or 0
DIGEST_BYTES = 8
_TOKEN_BITS = 64
_CIRCLE = 1 << _TOKEN_BITS
_SLOT_BITS = 14
_SLOT_SHIFT = _TOKEN_BITS - _SLOT_BITS
_RANK_BITS = 8
_RANK_MASK = (1 << _RANK_BITS) - 1
_SLOT_STEP = 1 << (_SLOT_SHIFT + _RANK_BITS)
assert 1 << _SLOT_BITS == SLOTS
assert 1 << _RANK_BITS >= MEMBERS_MAX

Owners: TypeAlias = tuple[NodeId, ...]
"""The owners of a slot, the primary first."""


def key_slot(key: bytes) -> int:
    """Return the slot of a key, 0 to 16383, as Redis Cluster computes it.

    Only the hash tag counts where there is one: what stands between the first `{` and the first `}` after it,
    unless that is nothing.
    """
    if b"{" in key:
        start = key.find(b"{") + 1
        end = key.find(b"}", start)
        if end > start:
            key = key[start:end]
    return crc_hqx(key, 0) & (SLOTS - 1)


@dataclass(frozen=True, slots=True)
class RingMember:
    """What of a member decides its place in the ring."""

    id: NodeId
    weight: float = 1.0
    """Its share of keys relative to the others', 0.1 to 10."""
    zone: str = ""
    """Failure domain; no zone is a zone like another."""


class _Placement(NamedTuple):
    """Everything the owners follow from: equal placements, equal tables."""

    members: tuple[RingMember, ...]
    """Sorted by id; a member's index here is its rank."""
    owners_per_slot: int
    virtual_nodes: int


class _Run(NamedTuple):
    """A part of a member's tokens."""

    rank: int
    tokens: Sequence[int]
    """Sorted, never empty."""


class _Table:
    """The owners of all slots under one placement, shared by every ring of that placement."""

    __slots__ = (
        "__weakref__", "_ids", "_known", "_owners_per_slot", "_runs", "_segment_slots", "_zones", "_zones_wanted",
        "owners", "slice_slots", "unfilled",
    )  # fmt: skip

    def __init__(self, placement: _Placement, runs: list[_Run]) -> None:
        members = placement.members
        zone_numbers = {zone: number for number, zone in enumerate(dict.fromkeys(member.zone for member in members))}
        self._ids = tuple(member.id for member in members)
        self._zones = bytes([zone_numbers[member.zone] for member in members])
        self._owners_per_slot = placement.owners_per_slot
        self._zones_wanted = min(placement.owners_per_slot, len(zone_numbers))
        self._runs = runs
        self._segment_slots = _segment_slots(sum(len(run.tokens) for run in runs))
        self.slice_slots = _slice_slots(self._segment_slots, len(runs))
        """Slots whose filling is one bounded slice of work. Follows from the placement alone."""
        self._known: dict[bytes, Owners] = {}
        self.owners: list[Owners | None] = [None if members else ()] * SLOTS
        """By slot; None where not filled yet."""
        self.unfilled = SLOTS if members else 0

    def fill(self, start: int, stop: int) -> None:
        """Fill the segments that hold the slots from `start` until before `stop`, as far as they are not."""
        if not self.unfilled:
            return
        for slot in range(start & -self._segment_slots, stop, self._segment_slots):
            if self.owners[slot] is None:
                self._fill_segment(slot)
        if not self.unfilled:
            self._runs = []
            self._known = {}

    def _fill_segment(self, first: int) -> None:
        stop = first + self._segment_slots
        tokens = _merge(self._runs, _midpoint(first), _midpoint(stop))
        ranks = bytes([token & _RANK_MASK for token in tokens])
        position = 0
        midpoint = _midpoint(first) << _RANK_BITS
        for slot in range(first, stop):
            position = bisect_left(tokens, midpoint, position)
            midpoint += _SLOT_STEP
            if self._zones_wanted == 1:
                chosen = _first_distinct(ranks[position:], self._owners_per_slot)
            else:
                chosen = _choose(ranks[position:], self._zones, self._zones_wanted, self._owners_per_slot)
            self.owners[slot] = self._known.get(chosen) or self._name(chosen)
        self.unfilled -= self._segment_slots

    def _name(self, chosen: bytes) -> Owners:
        """Make the tuple of ids for these ranks; slots with equal owners share it."""
        owners = self._known[chosen] = tuple([self._ids[rank] for rank in chosen])
        return owners


class Ring:
    """Who owns each slot. Never changes: other members are another ring."""

    __slots__ = ("_cursor", "_owners", "_table", "members", "owners_per_slot", "replicas", "virtual_nodes")

    def __init__(self, placement: _Placement, replicas: int, table: _Table) -> None:
        """Rings are made by `RingBuilder` and `build_ring`."""
        self.members: Final = placement.members
        """Sorted by id."""
        self.replicas: Final = replicas
        """Owners wanted for each slot (N)."""
        self.owners_per_slot: Final = placement.owners_per_slot
        """Owners each slot has: N, or the number of members where that is less."""
        self.virtual_nodes: Final = placement.virtual_nodes
        self._table = table
        self._owners = table.owners
        self._cursor = 0

    def owners(self, slot: int) -> Owners:
        """Return the owners of a slot, the primary first; () in an empty ring.

        The first question about a slot fills its segment, once for all rings of this placement.
        """
        owners = self._owners[slot]
        return self._fill_for(slot) if owners is None else owners

    def _fill_for(self, slot: int) -> Owners:
        self._table.fill(slot, slot + 1)
        owners = self._owners[slot]
        assert owners is not None
        return owners

    def fill(self, slots_max: int | None = None) -> bool:
        """Fill the table by its next slots; return True once that was all of it.

        Without `slots_max` it takes as many as make a slice of work, under 5 ms: 128 up to 128 members, fewer where
        there are more or their tokens are denser. A segment is filled whole, so up to 63 slots more may be done at
        once. How many calls it takes never depends on what was filled before: a replay takes the same steps.
        """
        assert slots_max is None or slots_max > 0
        stop = min(self._cursor + (slots_max or self._table.slice_slots), SLOTS)
        self._table.fill(self._cursor, stop)
        self._cursor = stop
        return stop == SLOTS

    def diff(self, other: Ring, start: int = 0, stop: int = SLOTS) -> tuple[int, ...]:
        """Return the slots from `start` until before `stop` whose owners differ, or their order, ascending.

        1 to 2 ms for all slots of filled rings. It fills what it compares, so fill both in slices first, or take
        slices here.
        """
        if self._table is other._table:
            return ()
        self._table.fill(start, stop)
        other._table.fill(start, stop)
        pairs = zip(range(start, stop), self._owners[start:stop], other._owners[start:stop], strict=True)
        return tuple([slot for slot, mine, theirs in pairs if mine != theirs])

    def gained(self, before: Ring, node_id: NodeId, start: int = 0, stop: int = SLOTS) -> list[int]:
        """Return the slots from `start` until before `stop` that a node owns here and not in the ring `before`.

        Fills what it compares, as `diff` does.
        """
        if self._table is before._table:
            return []
        self._table.fill(start, stop)
        before._table.fill(start, stop)
        pairs = zip(range(start, stop), self._owners[start:stop], before._owners[start:stop], strict=True)
        return [slot for slot, mine, theirs in pairs if node_id in mine and node_id not in theirs]  # type: ignore[operator]

    def shares(self) -> dict[NodeId, tuple[float, float]]:
        """Return of each member, by id, the share of slots it is primary of, and of those it is any owner of; 0 to 1.

        Fills what is left of the table: where that must not take long, `fill` it in slices first.
        """
        self._table.fill(0, SLOTS)
        filled = [owners for owners in self._owners if owners]
        primary_slots = Counter([owners[0] for owners in filled])
        owned_slots = Counter(itertools.chain.from_iterable(filled))
        return {
            member.id: (primary_slots[member.id] / SLOTS, owned_slots[member.id] / SLOTS) for member in self.members
        }


class RingBuilder:
    """Builds a ring in steps, each a bounded slice of work."""

    __slots__ = ("_cursor", "_parts", "_placement", "_replicas", "_ring", "_runs", "_table")

    def __init__(self, members: Iterable[RingMember], replicas: int, virtual_nodes: int) -> None:
        """Members come in any order, each id once. `replicas` is N, `virtual_nodes` the tokens of weight 1.

        Raises ConfigError for more than `MEMBERS_MAX` members, and for a weight or a number of virtual nodes
        larger than its setting allows, since those bound the work.
        """
        ordered = tuple(sorted(members, key=attrgetter("id")))
        _check(ordered, virtual_nodes)
        assert replicas >= 1
        assert len({member.id for member in ordered}) == len(ordered)
        self._placement = _Placement(ordered, min(replicas, len(ordered)), virtual_nodes)
        self._replicas = replicas
        self._parts = _parts(ordered, virtual_nodes)
        self._cursor = 0
        self._runs: list[_Run] = []
        self._table = _tables.get(self._placement)
        self._ring: Ring | None = None

    def step(self) -> Ring | None:
        """Do the next slice of the work; return the ring once it is done, and the same one from then on.

        A slice makes one run, or several of at most `STEP_TOKENS_MAX` tokens together. The number of steps depends on
        the members alone, never on what is cached: a replay takes the same steps.
        """
        tokens = 0
        while self._cursor < len(self._parts):
            rank, member_id, start, stop = self._parts[self._cursor]
            if tokens and tokens + stop - start > STEP_TOKENS_MAX:
                return None
            tokens += stop - start
            if self._table is None:
                self._runs.append(_Run(rank, _sorted_tokens(member_id, start, stop)))
            self._cursor += 1
        if self._ring is None:
            table = self._table or _tables.get(self._placement) or _Table(self._placement, self._runs)
            self._ring = Ring(self._placement, self._replicas, _interned(self._placement, table))
        return self._ring


def build_ring(members: Iterable[RingMember], replicas: int, virtual_nodes: int) -> Ring:
    """Build a ring in one go; its table is filled when asked. Raises ConfigError as `RingBuilder` does."""
    builder = RingBuilder(members, replicas, virtual_nodes)
    while (ring := builder.step()) is None:
        pass
    return ring


def ring_digest(members: Iterable[Member], replicas: int, virtual_nodes: int) -> bytes:
    """Return 8 bytes that identify a ring and the lives of its members, whatever the order given.

    Two nodes with the same digest agree on every owner, on which life of each member it is, and on its state.
    """
    lives = [
        (member.id, member.epoch, float(member.weight), member.zone, member.state)
        for member in sorted(members, key=attrgetter("id"))
    ]
    # JSON quotes its texts and writes the shortest number that reads back the same: no two inputs look alike.
    text = json.dumps((HASH_VERSION, replicas, virtual_nodes, lives), separators=(",", ":"))
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


_tables: WeakValueDictionary[_Placement, _Table] = WeakValueDictionary()
"""Every table that a ring uses: many nodes in one process share one."""
_tables_recent: deque[_Table] = deque(maxlen=TABLES_CACHED_MAX)
"""Keeps the tables used last alive."""


def _interned(placement: _Placement, table: _Table) -> _Table:
    _tables[placement] = table
    if table in _tables_recent:
        _tables_recent.remove(table)
    _tables_recent.append(table)
    return table


def _check(members: tuple[RingMember, ...], virtual_nodes: int) -> None:
    if len(members) > MEMBERS_MAX:
        raise ConfigError(f"a ring takes at most {MEMBERS_MAX} members, not {len(members)}")
    if not 1 <= virtual_nodes <= VIRTUAL_NODES_MAX:
        raise ConfigError(f"a ring takes 1 to {VIRTUAL_NODES_MAX} virtual nodes, not {virtual_nodes}")
    for member in members:
        if not WEIGHT_MIN <= member.weight <= WEIGHT_MAX:  # not a number is refused too
            raise ConfigError(f"the weight of {member.id} is {member.weight}, not {WEIGHT_MIN} to {WEIGHT_MAX}")


def _parts(members: tuple[RingMember, ...], virtual_nodes: int) -> list[tuple[int, NodeId, int, int]]:
    """Return (rank, id, first token's number, number to stop before) of every run to make."""
    parts: list[tuple[int, NodeId, int, int]] = []
    for rank, member in enumerate(members):
        count = max(1, round(virtual_nodes * member.weight))
        parts += [
            (rank, member.id, start, min(start + RUN_TOKENS_MAX, count)) for start in range(0, count, RUN_TOKENS_MAX)
        ]
    return parts


@functools.lru_cache(maxsize=RUNS_CACHED_MAX)
def _sorted_tokens(member_id: NodeId, start: int, stop: int) -> Sequence[int]:
    """Make the tokens of a member from number `start` until before `stop`, sorted, at 8 bytes each."""
    return array("Q", sorted(_tokens(member_id, start, stop)))


def _tokens(member_id: NodeId, start: int, stop: int) -> list[int]:
    """Hash `id#number` to 64 bits: the first half of mmh3's 128-bit x64 digest, seed 0."""
    prefix = f"{member_id}#".encode()
    return [mmh3_x64_128_utupledigest(prefix + number)[0] for number in _numbers(start, stop)]


@functools.lru_cache(maxsize=NUMBERS_CACHED_MAX)
def _numbers(start: int, stop: int) -> tuple[bytes, ...]:
    """Write the numbers of tokens in decimal, once for all members that have them."""
    return tuple(b"%d" % number for number in range(start, stop))


def _segment_slots(tokens: int) -> int:
    """Return how many slots to fill together: a power of two, fewer the denser the tokens lie."""
    slots = SEGMENT_SLOTS_MAX
    while slots > 1 and tokens * slots > SEGMENT_TOKENS_MAX * SLOTS:
        slots //= 2
    return slots


def _slice_slots(segment_slots: int, runs: int) -> int:
    """Return how many slots to fill in one slice of work."""
    if not runs:
        return SLOTS
    return segment_slots * FILL_SEGMENTS_MAX if runs <= FILL_RUNS_MAX else segment_slots


def _midpoint(slot: int) -> int:
    """Return the place on the circle where the walk of a slot begins."""
    return (slot << _SLOT_SHIFT) + (1 << (_SLOT_SHIFT - 1))


def _merge(runs: list[_Run], low: int, high: int) -> list[int]:
    """Return, in the order a walk from `low` meets them, the tokens until before `high` and each run's next one.

    Each is `token << 8 | rank`, with 2^64 added to a token behind the circle's end. Equal tokens lie by rank.
    """
    merged = [
        token << _RANK_BITS | rank
        for rank, tokens in runs
        for token in tokens[bisect_left(tokens, low) : bisect_left(tokens, high) + 1]
    ]
    merged += [tokens[0] + _CIRCLE << _RANK_BITS | rank for rank, tokens in runs if tokens[-1] < high]
    merged.sort()
    return merged


def _first_distinct(ranks: bytes, owners_wanted: int) -> bytes:
    """Choose the owners of a slot where all members are of one zone: what `_choose` would, in a third of its time."""
    chosen: list[int] = []
    for rank in ranks:
        if rank not in chosen:
            chosen.append(rank)
            if len(chosen) == owners_wanted:
                break
    return bytes(chosen)


def _choose(ranks: bytes, zones: bytes, zones_wanted: int, owners_wanted: int) -> bytes:
    """Choose the owners of a slot whose walk meets these ranks: one of each new zone, then the skipped ones.

    `ranks` holds every member, `zones` the zone of each rank.
    """
    firsts: list[int] = []
    zones_used: list[int] = []
    skipped: list[int] = []
    skipped_wanted = owners_wanted - zones_wanted
    missing = owners_wanted
    for rank in ranks:
        zone = zones[rank]
        if zone not in zones_used:
            # Always wanted: with fewer zones than owners all zones are, and otherwise every owner is of a new zone.
            zones_used.append(zone)
            firsts.append(rank)
        elif len(skipped) < skipped_wanted and rank not in firsts and rank not in skipped:
            skipped.append(rank)
        else:
            continue
        missing -= 1
        if not missing:
            break
    return bytes(firsts + skipped)
