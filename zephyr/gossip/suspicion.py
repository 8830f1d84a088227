"""How long a suspected member has to refute: Lifeguard's shrinking time-out, and its two bounds.

    Min  = multiplier * max(1, log10 n) * interval        Max = 6 * Min
    T(C) = max(Min, Max - (Max - Min) * ln(C + 1) / ln(K + 1))

With C independent confirmations out of the K = min(multiplier - 2, n - 2) that are expected (Dadgar et al.,
"Lifeguard", arXiv 1707.00788, section IV-B). K = 0, which is a cluster with nobody else to confirm, gives Min:
waiting for confirmations that cannot come would only delay what is certain.
"""

from __future__ import annotations

from math import log, log10

from zephyr.model import NodeId

SUSPICION_MAX_FACTOR = 6
"""Max / Min, as in the paper: a lone, perhaps slow accuser waits this much longer than a confirmed one."""
ACCUSERS_MAX = 16
"""Accusers remembered of one suspicion: more than K of any profile, for people to read."""


def suspicion_min_s(multiplier: int, members: int, probe_interval_s: float) -> float:
    """Return the shortest time to refute, seconds. `members` counts those alive or suspected, this node included."""
    return multiplier * max(1.0, log10(max(1, members))) * probe_interval_s


def confirmations_expected(multiplier: int, members: int) -> int:
    """Return K: how many confirmations shorten the time-out all the way."""
    return max(0, min(multiplier - 2, members - 2))


def suspicion_timeout_s(min_s: float, confirmations: int, expected: int) -> float:
    """Return T(C), seconds."""
    if expected == 0:
        return min_s
    max_s = min_s * SUSPICION_MAX_FACTOR
    return max(min_s, max_s - (max_s - min_s) * log(confirmations + 1) / log(expected + 1))


class Suspicion:
    """One suspicion of one life of one member, as this node holds it."""

    __slots__ = ("_min_s", "accusers", "exit_deadline_s", "expected", "started_s")

    def __init__(self, accuser: NodeId, started_s: float, min_s: float, expected: int) -> None:
        self.started_s = started_s
        self.expected = expected
        self.accusers: dict[NodeId, None] = {accuser: None}
        """In the order in which they were heard."""
        self.exit_deadline_s: float | None = None
        """Set by exit evidence: the suspicion ends no later."""
        self._min_s = min_s

    def confirm(self, accuser: NodeId) -> bool:
        """Count another accuser. Return whether that shortened the time-out."""
        if accuser in self.accusers or len(self.accusers) >= ACCUSERS_MAX:
            return False
        self.accusers[accuser] = None
        return len(self.accusers) - 1 <= self.expected

    @property
    def deadline_s(self) -> float:
        """Monotonic seconds at which the member is called dead unless it refutes."""
        confirmations = len(self.accusers) - 1
        deadline_s = self.started_s + suspicion_timeout_s(self._min_s, confirmations, self.expected)
        return deadline_s if self.exit_deadline_s is None else min(deadline_s, self.exit_deadline_s)

    def shift(self, gap_s: float) -> None:
        """Give the member the time in which this node itself did not run."""
        self.started_s += gap_s
        if self.exit_deadline_s is not None:
            self.exit_deadline_s += gap_s
