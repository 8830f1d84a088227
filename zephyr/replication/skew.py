"""Whether this node's wall clock is the one that is wrong.

Decides by the clocks that acknowledgements carry: the median of the differences to the peers, this node's own (none)
among them, so that one bad clock is found by its owner and by nobody else. A difference is known to within the time of
one reply, and is forgotten after `AGE_MAX_S`, or when the wall clock jumps against the monotonic one: what was compared
was another clock.
"""

from __future__ import annotations

from math import inf
from statistics import median_low

from zephyr.model import Instant, NodeId

SKEW_MAX_MS = 250
"""A node further off than this is not ready, and stamps no writes."""
PEERS_MIN = 2
"""With fewer peers nobody can tell whose clock is wrong."""
AGE_MAX_S = 10.0
"""A difference that was not confirmed for so long counts no more: clocks are set right."""
STEADY_S = 60.0
"""A clock that jumped is followed after that: somebody set it, or the machine was suspended."""


class Skew:
    """The differences between the peers' clocks and this node's."""

    def __init__(self) -> None:
        self.ms = 0
        """This node's clock is so much behind the median; negative: ahead."""
        self._differences: dict[NodeId, tuple[int, float]] = {}
        self._offset_ms = 0.0
        """Of the wall clock from the monotonic one, when the differences were heard."""
        self._agreed_s = -inf
        """When a peer's clock last agreed with this one."""
        self._steady_offset_ms: float | None = None
        """Of the wall clock from the monotonic one, when a peer's clock last agreed; None before."""
        self._strayed_s = inf
        """Since when it is another one."""

    @property
    def is_off(self) -> bool:
        """Whether this node's clock is too far from its peers'."""
        return not -SKEW_MAX_MS <= self.ms <= SKEW_MAX_MS

    def is_trusted(self, now: Instant) -> bool:
        """Whether a peer's clock has agreed with this one lately, and this one has not jumped since."""
        return now.monotonic_s - self._agreed_s < AGE_MAX_S and not self.is_off and not self._jumped(now)

    def steady_unix_ms(self, now: Instant) -> int:
        """Return the wall clock; for `STEADY_S` after it jumped, what it would be if it had not.

        Only where a peer's clock had agreed before. For a node that is alone with what it stamps: there is nobody to
        refuse a stamp of an hour ahead, and once the others are back nothing that they write would stand beside it.
        """
        offset_ms = now.unix_ms - now.monotonic_s * 1000
        if self._steady_offset_ms is None or abs(offset_ms - self._steady_offset_ms) <= SKEW_MAX_MS:
            self._strayed_s = inf
            return now.unix_ms
        self._strayed_s = min(self._strayed_s, now.monotonic_s)
        if now.monotonic_s >= self._strayed_s + STEADY_S:
            return now.unix_ms
        return round(now.monotonic_s * 1000 + self._steady_offset_ms)

    def heard(self, node_id: NodeId, unix_ms: int, now: Instant) -> None:
        """A peer's answer carried its clock."""
        difference_ms = unix_ms - now.unix_ms
        difference = (difference_ms, now.monotonic_s)
        if self._differences.get(node_id) == difference:
            return  # Another answer of the same frame.
        if self._jumped(now):
            self._forget()
        if not self._differences:
            self._offset_ms = now.unix_ms - now.monotonic_s * 1000
        self._differences[node_id] = difference
        if -SKEW_MAX_MS <= difference_ms <= SKEW_MAX_MS:
            self._agreed_s = now.monotonic_s
            self._steady_offset_ms = now.unix_ms - now.monotonic_s * 1000

    def poll(self, now: Instant) -> None:
        """Compute the median anew, of what is fresh."""
        self.steady_unix_ms(now)  # Takes note of a jump.
        if not self._differences:
            return
        fresh = {node_id: item for node_id, item in self._differences.items() if now.monotonic_s - item[1] < AGE_MAX_S}
        self._differences = fresh
        if self._jumped(now):
            self._forget()
        differences = [ms for ms, _ in self._differences.values()]
        self.ms = median_low([0, *differences]) if len(differences) >= PEERS_MIN else 0

    def _forget(self) -> None:
        self._differences, self._agreed_s = {}, -inf

    def _jumped(self, now: Instant) -> bool:
        return abs(now.unix_ms - now.monotonic_s * 1000 - self._offset_ms) > SKEW_MAX_MS
