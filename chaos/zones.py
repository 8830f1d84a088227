"""Whether the reads and writes of one key could have happened one after the other: Gibbons and Korach's zones.

Each write has a label of its own, and each read the label of the write whose value it saw. All operations of one label
happened together, as far as the others are concerned: the *cluster*. Of it only two moments count: when the first of
its operations was over, and when the last of them began. Where the first lies before the second, the value was there
all the time between, and nothing else was: a *forward zone*. Otherwise its operations overlap, and the value was there
at some moment between the second and the first: a *backward zone*.

The operations are atomic exactly when no read was over before its write began, no two forward zones overlap, and no
backward zone lies within a forward one. Moments that are equal order nothing. Sorting is all that it costs.

Source: Gibbons and Korach, "Testing Shared Memories" (1997), section 4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable
from typing import Literal, NamedTuple, TypeVar

Label = TypeVar("Label", bound=Hashable)


class Conflict(NamedTuple):
    """Two clusters that no order suits; of one alone, a read from the future."""

    kind: Literal["future", "overlap", "within"]
    """within: `label` was there at some moment between, though `other` was all the while."""
    label: Hashable
    other: Hashable


def conflicts(
    writes: Iterable[tuple[Label, float, float]], reads: Iterable[tuple[Label, float, float]]
) -> list[Conflict]:
    """Return what no order suits; empty: the operations are atomic.

    Each is (label, begun, over), in seconds. A write that may take effect at any later time is over at infinity. Each
    label is that of exactly one write. Raises KeyError for a read of any other.
    """
    written: dict[Label, float] = {}
    first_over: dict[Label, float] = {}
    for label, begun_s, over_s in writes:
        written[label] = begun_s
        first_over[label] = over_s
    last_begun = written.copy()
    for label, begun_s, over_s in reads:  # A million of them: a comparison is half a call.
        if over_s < first_over[label]:  # noqa: PLR1730
            first_over[label] = over_s
        if begun_s > last_begun[label]:  # noqa: PLR1730
            last_begun[label] = begun_s
    found = [Conflict("future", label, label) for label, begun_s in written.items() if first_over[label] < begun_s]
    forward = [
        (first_over[label], begun_s, label) for label, begun_s in last_begun.items() if first_over[label] < begun_s
    ]
    backward = [
        (begun_s, first_over[label], label) for label, begun_s in last_begun.items() if begun_s <= first_over[label]
    ]
    return found + _overlaps(forward) + _within(forward, backward)


def _overlaps(forward: list[tuple[float, float, Label]]) -> list[Conflict]:
    """Find forward zones that overlap. Leaves them in order, each reaching as far as any before it."""
    forward.sort(key=lambda zone: zone[0])
    found = []
    for number in range(1, len(forward)):
        (_, earlier_high_s, earlier), (low_s, high_s, label) = forward[number - 1], forward[number]
        if low_s < earlier_high_s:
            found.append(Conflict("overlap", earlier, label))
            if earlier_high_s > high_s:
                forward[number] = (low_s, earlier_high_s, earlier)
    return found


def _within(forward: list[tuple[float, float, Label]], backward: list[tuple[float, float, Label]]) -> list[Conflict]:
    """Find backward zones within a forward one."""
    lows = [low_s for low_s, _, _ in forward]
    found = []
    for low_s, high_s, label in backward:
        at = bisect_left(lows, low_s) - 1
        if at >= 0 and high_s < forward[at][1]:
            found.append(Conflict("within", label, forward[at][2]))
    return found
