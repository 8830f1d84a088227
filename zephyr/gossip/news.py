"""What a member still has to tell: the queue of messages that ride on packets, each for a number of times.

The latest word about a member replaces an earlier one, those sent least often go first, and there is a
hard cap, so that a storm of changes costs memory and packets in proportion to what is new, no more
(SWIM, Das et al. 2002, section 4.1).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from math import ceil, log10
from typing import TypeAlias

NEWS_MAX = 4096
"""Messages held: every member of the largest simulated cluster, four times. Beyond it what was sent most often goes."""
RETRANSMIT_MULTIPLIER = 4
"""Sends of each message, times the number of decimal digits of the cluster's size."""
MISFITS_MAX = 3
"""Messages too large for what is left of a packet after which filling it ends."""

_Entry: TypeAlias = tuple[int, int, str, bytes]
"""(negative times sent, serial, subject, encoded message): the greatest goes next, by fewest sends, then the newest."""


def retransmits(members: int) -> int:
    """Return how often each message is sent by each member, for it to reach everyone with great probability."""
    return RETRANSMIT_MULTIPLIER * ceil(log10(members + 1))


class News:
    """The queue. Subjects are member ids, or any other text for what is not about a member."""

    __slots__ = ("_latest", "_queue", "_serial", "dropped_count")

    def __init__(self) -> None:
        self.dropped_count = 0
        """Messages that the cap pushed out before they were sent often enough."""
        self._queue: list[_Entry] = []
        """Sorted: what goes next stands last, so that what is new is appended."""
        self._latest: dict[str, _Entry] = {}
        """Subject -> its entry in the queue."""
        self._serial = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, subject: str, message: bytes) -> None:
        """Queue a message; it replaces what was said of this subject before."""
        replaced = self._latest.get(subject)
        if replaced is not None:
            del self._queue[bisect_left(self._queue, replaced)]
        self._serial += 1
        self._latest[subject] = entry = (0, self._serial, subject, message)
        self._queue.append(entry)
        if len(self._queue) > NEWS_MAX:  # What was sent most often has reached most members.
            del self._latest[self._queue.pop(0)[2]]
            self.dropped_count += 1

    def take(self, bytes_max: int, sends_max: int) -> list[bytes]:
        """Return the messages for one packet, at most `bytes_max` bytes together, and count them as sent once."""
        queue, latest = self._queue, self._latest
        taken: list[bytes] = []
        again: list[_Entry] = []
        misfits = 0
        while queue and misfits < MISFITS_MAX:
            entry = queue.pop()
            negative_sends, serial, subject, message = entry
            if len(message) > bytes_max:
                misfits += 1
                again.append(entry)
                continue
            bytes_max -= len(message)
            taken.append(message)
            if 1 - negative_sends < sends_max:
                latest[subject] = entry = (negative_sends - 1, serial, subject, message)
                again.append(entry)
            else:
                del latest[subject]
        for entry in reversed(again):
            insort(queue, entry)
        return taken
