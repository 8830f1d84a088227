"""How soon the views were one again: looks in, seconds out, and the table of many repetitions.

Pure. Decides what counts as known, unroutable, out of the ring and equal; what is done and waited for is a scenario's.
Every time counts from the moment at which a fault was told to begin, `back_s` from the moment at which it was told to
end, and ends with the look that shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.report import percentile
from chaos.watch import Look, is_one_ring
from zephyr.model import NodeId

FAILURES_KEPT_MAX = 20
"""Of one repetition, with their texts: they tend to be alike."""
GONE = frozenset({"dead", "left"})
"""What gossip says of a member that is no more."""

Condition = Callable[[Mapping[NodeId, Look]], bool]
"""Of the latest look at each node."""


@dataclass(slots=True)
class Times:
    """When what was seen, in seconds. Infinite: not in time. None: not a question with this fault."""

    first_knows_s: float | None = None
    """Until one node shows it: its gossip calls the victim dead; for etcd, its page is not as it was."""
    all_know_s: float | None = None
    unroutable_s: float | None = None
    """Until no node would send the victim a request."""
    out_s: float | None = None
    """Until the victim is in no ring."""
    equal_s: float | None = None
    """Until all rings are what they should be, with one digest, from then on; 0 where they never were anything else."""
    back_s: float | None = None
    """From the end of the fault until all are in one ring, etcd and gossip agree, and every `/readyz` says yes."""


TITLES = {
    "first_knows_s": "first to know",
    "all_know_s": "all know",
    "unroutable_s": "unroutable",
    "out_s": "out of the ring",
    "equal_s": "digests equal",
    "back_s": "back and level",
}
"""Of the columns, in the order in which it usually happens."""


@dataclass(slots=True)
class Repetition:
    """One time that it was done: to whom, what was seen, and how a light load fared meanwhile."""

    victim: NodeId
    """Empty: etcd."""
    times: Times = field(default_factory=Times)
    requests: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    """The first of them."""
    missed: list[str] = field(default_factory=list)
    """What did not come in time; empty: it converged."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON's values: what never came is null, and named in `missed`."""
        return {
            "victim": self.victim or "etcd",
            **{name: json_s(getattr(self.times, name)) for name in TITLES},
            "requests": self.requests,
            "failed": self.failed,
            "failures": self.failures,
            "missed": self.missed,
        }


def is_without(victim: NodeId, survivors: Collection[NodeId]) -> Condition:
    """Return whether all know that a node is gone, send it nothing, and have one ring of the others."""

    def holds(latest: Mapping[NodeId, Look]) -> bool:
        return is_one_ring(latest, survivors) and all(
            knows_gone(look, victim) and victim not in look.routable for look in latest.values()
        )

    return holds


def is_whole(everybody: Collection[NodeId], past_generations: Collection[str] = ()) -> Condition:
    """Return whether all are registered and in one ring, and both witnesses lead at every node.

    `past_generations`: of etcd's data; who still shows one of them has not seen that they are lost.
    """
    expected = frozenset(everybody)

    def holds(latest: Mapping[NodeId, Look]) -> bool:
        return is_one_ring(latest, expected) and not any(
            knows_etcd_gone(look, expected) or look.generation in past_generations for look in latest.values()
        )

    return holds


def knows_gone(look: Look, victim: NodeId) -> bool:
    """Whether this page shows that gossip holds a node for dead. One that is not named any more is forgotten."""
    return look.gossip.get(victim, "dead") in GONE


def knows_etcd_gone(look: Look, everybody: Collection[NodeId]) -> bool:
    """Whether this page shows that etcd is away, or has forgotten or never had anybody of these."""
    return look.authority != "both" or look.etcd != "connected" or not look.registered.issuperset(everybody)


def measure_node(looks: Mapping[NodeId, Sequence[Look]], victim: NodeId, since_s: float) -> Times:
    """Return when the survivors saw that one of them was gone. `looks`: theirs, from before until the fault's end."""
    return Times(
        first_knows_s=first_s(looks, lambda look: knows_gone(look, victim), since_s),
        all_know_s=settled_s(looks, _each(lambda look: knows_gone(look, victim)), since_s),
        unroutable_s=settled_s(looks, _each(lambda look: victim not in look.routable), since_s),
        out_s=settled_s(looks, _each(lambda look: victim not in look.owners), since_s),
        equal_s=settled_s(looks, lambda latest: is_one_ring(latest, looks), since_s),
    )


def measure_etcd(looks: Mapping[NodeId, Sequence[Look]], since_s: float) -> Times:
    """Return when all nodes saw that etcd was gone, and whether their rings stood. `looks` as with `measure_node`."""
    # Each by itself: who was the first to see it gone may have seen it return when the last one sees it gone.
    knew_s = [
        first_s({node_id: some}, lambda look: knows_etcd_gone(look, looks), since_s) for node_id, some in looks.items()
    ]
    return Times(
        first_knows_s=min(knew_s),
        all_know_s=max(knew_s),
        equal_s=settled_s(looks, lambda latest: is_one_ring(latest, looks), since_s),
    )


def first_s(looks: Mapping[NodeId, Sequence[Look]], condition: Callable[[Look], bool], since_s: float) -> float:
    """Return when the first look fulfilled a condition, in seconds from a moment; infinite: none did."""
    moments = [look.at_s for some in looks.values() for look in some if look.at_s >= since_s and condition(look)]
    return min(moments, default=math.inf) - since_s


def settled_s(looks: Mapping[NodeId, Sequence[Look]], condition: Condition, since_s: float) -> float:
    """Return from when on the latest looks at all nodes fulfilled a condition, to the end; infinite: they do not.

    In seconds from a moment; 0 where they did so before and did not cease to.
    """
    latest = {node_id: look for node_id, some in looks.items() for look in some if look.at_s < since_s}

    def holds() -> bool:
        return len(latest) == len(looks) and condition(latest)

    settled_at_s = since_s if holds() else math.inf
    later = [(look.at_s, node_id, look) for node_id, some in looks.items() for look in some if look.at_s >= since_s]
    for at_s, node_id, look in sorted(later, key=lambda item: item[0]):
        latest[node_id] = look
        settled_at_s = min(settled_at_s, at_s) if holds() else math.inf
    return settled_at_s - since_s


def _each(condition: Callable[[Look], bool]) -> Condition:
    return lambda latest: all(map(condition, latest.values()))


def percentiles(repetitions: Iterable[Repetition], share: float) -> dict[str, float | None]:
    """Return each time's percentile over the repetitions in which it is a question; None where it is in none."""
    found: dict[str, float | None] = {}
    for name in TITLES:
        values = [value for item in repetitions if (value := getattr(item.times, name)) is not None]
        found[name] = percentile(values, share) if values else None
    return found


def json_s(value_s: float | None) -> float | None:
    """Return a time for JSON, which knows no infinity: what never came is null, as is what was not asked."""
    return None if value_s is None or math.isinf(value_s) else round(value_s, 3)
