"""Which entry goes when memory is full: one small seam, two policies.

A policy *lists* keys. It knows neither records nor slots: the store tells it what came and went, and what
a listed key holds now. Both are bounded by the number of keys listed.
"""

from __future__ import annotations

import binascii
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

EXAMINED_MAX = 1000
"""Entries looked at for one victim: when all are in use, the next one goes. Keeps one eviction under a ms."""
SEGMENT_KEYS = 512
"""Keys of one segment of the SIEVE queue: what an insertion or a removal in its middle has to move."""
VISITED_BITS_FIRST = 1 << 16
VISITED_BITS_PER_KEY = 8
"""At least. Less than 1 % of the bits are shared by keys of which one is in use; sharing keeps a key a round longer."""


class EvictionPolicy(Protocol):
    """What the store asks of a policy."""

    overhead_bytes: int
    """Memory of one listed key, measured; the key object itself belongs to the store."""

    def admit(self, key: bytes, *, cold: bool) -> None:
        """List a key that is not listed: as the newest, or (`cold`) as the next to go."""

    def touch(self, key: bytes) -> None:
        """A listed key was used."""

    def forget(self, key: bytes) -> bool:
        """Take a key off the list because its value is gone.

        True: done. False: it stays listed until `collect` or `next_victim` comes across it, and the store
        keeps an empty entry for it until then.
        """

    def next_victim(self) -> bytes | None:
        """Take the key that should go off the list and return it; None when nothing is listed."""

    def collect(self, is_empty: Callable[[bytes], bool]) -> None:
        """Take some of the keys off the list whose entries are empty; `is_empty` also drops those entries."""


class LeastRecentlyUsed:
    """The entry that was not used for longest goes. Exact, and 80 bytes an entry dearer than SIEVE."""

    overhead_bytes = 88

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()

    def admit(self, key: bytes, *, cold: bool) -> None:
        """List a key."""
        self._order[key] = None
        if cold:
            self._order.move_to_end(key, last=False)

    def touch(self, key: bytes) -> None:
        """Move a key to the end of the line."""
        self._order.move_to_end(key)

    def forget(self, key: bytes) -> bool:
        """Take a key off the line."""
        del self._order[key]
        return True

    def next_victim(self) -> bytes | None:
        """Take the first of the line."""
        return self._order.popitem(last=False)[0] if self._order else None

    def collect(self, is_empty: Callable[[bytes], bool]) -> None:
        """Nothing is left behind by `forget`."""


class Sieve:
    """SIEVE: a queue in order of insertion, one visited bit a key, and a hand that moves from old to new.

    The hand clears the bit of a key in use and passes on; a key not in use since the hand's last visit
    goes. Unlike in CLOCK, what the hand passes keeps its place. Source: Zhang et al., "SIEVE is Simpler
    than LRU" (NSDI 2024).

    The bits stand in a bitmap under a hash of the key (never the built-in one, which differs between
    runs). A bitmap that doubles is repeated: a key's bit is set in both halves, so none is lost. The queue is
    a list of short lists, so that nothing in it ever moves more than a segment.
    """

    overhead_bytes = 10

    def __init__(self) -> None:
        self._segments: list[list[bytes]] = [[]]
        self._listed = 0
        self._hand_segment = 0
        self._hand = 0
        self._sweep_segment = 0
        self._visited = bytearray(VISITED_BITS_FIRST // 8)
        self._mask = VISITED_BITS_FIRST - 1

    def admit(self, key: bytes, *, cold: bool) -> None:
        """List a key at the queue's new end, or right before the hand."""
        self._listed += 1
        if self._listed * VISITED_BITS_PER_KEY > self._mask:
            self._mask = 2 * self._mask + 1
            self._visited *= 2
        bit = binascii.crc32(key) & self._mask
        self._visited[bit >> 3] &= ~(1 << (bit & 7))
        if cold:
            self._insert_before_hand(key)
            return
        segment = self._segments[-1]
        if len(segment) >= SEGMENT_KEYS:
            self._segments[-1] = segment[:]  # Without the room to grow.
            segment = []
            self._segments.append(segment)
        segment.append(key)

    def _insert_before_hand(self, key: bytes) -> None:
        """List a key where the hand looks next."""
        segment = self._segments[self._hand_segment]
        segment.insert(self._hand, key)
        if len(segment) > SEGMENT_KEYS:
            half = len(segment) // 2
            self._segments[self._hand_segment : self._hand_segment + 1] = [segment[:half], segment[half:]]
            if self._hand >= half:
                self._hand_segment += 1
                self._hand -= half

    def touch(self, key: bytes) -> None:
        """Set a key's bit."""
        bit = binascii.crc32(key) & self._mask
        self._visited[bit >> 3] |= 1 << (bit & 7)

    def forget(self, key: bytes) -> bool:  # noqa: ARG002  # where it stands is not known
        """Leave the key where it stands."""
        return False

    def next_victim(self) -> bytes | None:
        """Move the hand to the next key not in use, and take that."""
        if not self._listed:
            return None
        for _ in range(EXAMINED_MAX):
            segment = self._segment_under_hand()
            key = segment[self._hand]
            bit = binascii.crc32(key) & self._mask
            if not self._visited[bit >> 3] & 1 << (bit & 7):
                break
            self._visited[bit >> 3] &= ~(1 << (bit & 7))
            self._hand += 1
        segment = self._segment_under_hand()
        self._listed -= 1
        return segment.pop(self._hand)

    def _segment_under_hand(self) -> list[bytes]:
        """Move the hand over ends and empty segments; something must be listed."""
        while True:
            segment = self._segments[self._hand_segment]
            if self._hand < len(segment):
                return segment
            if not segment and len(self._segments) > 1:
                del self._segments[self._hand_segment]
            else:
                self._hand_segment += 1
            self._hand = 0
            if self._hand_segment >= len(self._segments):
                self._hand_segment = 0

    def collect(self, is_empty: Callable[[bytes], bool]) -> None:
        """Sweep one segment, and join it with the one before it when both have become short."""
        number = self._sweep_segment = (self._sweep_segment + 1) % len(self._segments)
        segment = self._segments[number]
        kept: list[bytes] = []
        hand = self._hand
        for position, key in enumerate(segment):
            if not is_empty(key):
                kept.append(key)
            elif number == self._hand_segment and position < self._hand:
                hand -= 1
        self._listed -= len(segment) - len(kept)
        segment[:] = kept
        self._hand = hand
        if number and len(self._segments[number - 1]) + len(segment) <= SEGMENT_KEYS:
            self._join(number)

    def _join(self, number: int) -> None:
        """Append a segment to the one before it."""
        before = self._segments[number - 1]
        if self._hand_segment == number:
            self._hand += len(before)
        if self._hand_segment >= number:
            self._hand_segment -= 1
        before += self._segments.pop(number)


_POLICIES: dict[str, type[EvictionPolicy]] = {"sieve": Sieve, "lru": LeastRecentlyUsed}


def make_eviction(name: str) -> EvictionPolicy:
    """Return a policy by the name that `--eviction` has."""
    return _POLICIES[name]()
