"""What a member still has to tell: the queue of messages that ride on packets, each for a number of times.

The latest word about a member replaces an earlier one, those sent least often go first, and there is a
hard cap, so that a storm of changes costs memory and packets in proportion to what is new, no more
(SWIM, Das et al. 2002, section 4.1).
"""

from __future__ import annotations

import heapq
from math import ceil, log10

NEWS_MAX = 4096
"""Messages held: every member of the largest simulated cluster, four times. Beyond it what was sent most often goes."""
RETRANSMIT_MULTIPLIER = 4
"""Sends of each message, times the number of decimal digits of the cluster's size."""
MISFITS_MAX = 3
"""Messages too large for what is left of a packet after which filling it ends."""


def retransmits(members: int) -> int:
    """Return how often each message is sent by each member, for it to reach everyone with great probability."""
    return RETRANSMIT_MULTIPLIER * ceil(log10(members + 1))


class News:
    """The queue. Subjects are member ids, or any other text for what is not about a member."""

    __slots__ = ("_heap", "_latest", "_serial", "dropped_count")

    def __init__(self) -> None:
        self.dropped_count = 0
        """Messages that the cap pushed out before they were sent often enough."""
        self._latest: dict[str, tuple[int, bytes]] = {}
        """Subject -> (serial, encoded message)."""
        self._heap: list[tuple[int, int, str]] = []
        """(times sent, negative serial, subject); those whose serial is not the latest are void."""
        self._serial = 0

    def __len__(self) -> int:
        return len(self._latest)

    def put(self, subject: str, message: bytes) -> None:
        """Queue a message; it replaces what was said of this subject before."""
        self._serial += 1
        self._latest[subject] = (self._serial, message)
        heapq.heappush(self._heap, (0, -self._serial, subject))
        if len(self._latest) > NEWS_MAX:
            self._drop_most_sent()
        if len(self._heap) > 2 * NEWS_MAX:
            self._heap = [entry for entry in self._heap if self._is_latest(entry)]
            heapq.heapify(self._heap)

    def take(self, bytes_max: int, sends_max: int) -> list[bytes]:
        """Return the messages for one packet, at most `bytes_max` bytes together, and count them as sent once."""
        taken: list[bytes] = []
        again: list[tuple[int, int, str]] = []
        misfits = 0
        while self._heap and misfits < MISFITS_MAX:
            entry = heapq.heappop(self._heap)
            if not self._is_latest(entry):
                continue
            sends, serial, subject = entry
            message = self._latest[subject][1]
            if len(message) > bytes_max:
                misfits += 1
                again.append(entry)
                continue
            bytes_max -= len(message)
            taken.append(message)
            if sends + 1 < sends_max:
                again.append((sends + 1, serial, subject))
            else:
                del self._latest[subject]
        for entry in again:
            heapq.heappush(self._heap, entry)
        return taken

    def _is_latest(self, entry: tuple[int, int, str]) -> bool:
        latest = self._latest.get(entry[2])
        return latest is not None and latest[0] == -entry[1]

    def _drop_most_sent(self) -> None:
        """Make room: what was sent most often has reached most members."""
        entry = max(entry for entry in self._heap if self._is_latest(entry))
        del self._latest[entry[2]]
        self.dropped_count += 1
