"""Whether a run kept what the data plane claims: pure functions from a history to verdicts.

Each check is green, red or unknown: red names the operations that broke it, unknown means that the history does not
tell. A run that served too little is never green. What the checks rest on:

*Outcomes.* A refused write (`fail`) was applied nowhere, ever. One whose outcome nobody knows (`info`) may take effect
at any later time, by a hint or a repair; it excuses what it would explain, and nothing is held against it.

*Strict.* Reads and writes by at least a majority of the replicas meet in one of them. Others are judged by the checks
that say so.

*Settled.* From the first to the last node that took over another table of owners, give or take a sample, the ring is
not stable. Operations that touch such a time are not judged by checks of quorums, and a write then is worth as much as
one whose outcome nobody knows. A node that is cut off and keeps an old table unsettles nothing: it must refuse, or be
right.

*Divided.* Where a minority reaches etcd and the majority does not, both serve, each its own ring (docs/membership.md).
While somebody has a newer ring and a majority of an older one's members still uses that, the ring is not stable either,
and a delete on one side tells nothing of the other. Nor is one that has fewer members than there are to be replicas:
with one copy, what moves is lost (docs/guarantees.md).

*Losses.* An acknowledged write stands while fewer replicas are lost than acknowledged it, before all is level again. A
node loses what it has when it is killed or leaves the ring. When more are lost, a new *era* begins, and nothing from
before it counts.

*Absences.* A key may be absent because it was deleted, or its deadline passed: a read that finds nothing is right when
some such reason is at least as new as what it should have found. How new a delete is whose version nobody told is
bounded by the clocks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf
from typing import Literal, NamedTuple, TypeAlias

from chaos.history import HINT_COUNTS, Death, Fault, History, Holding, Operation
from chaos.zones import conflicts
from zephyr.model import NodeId, Version
from zephyr.store.record import CLOCK_DRIFT_MAX_MS, VERSION_BYTES, version_unix_ms

SERVED_LEAST = 100
"""Acknowledged operations without which a run shows nothing."""
SERVED_SHARE_LEAST = 0.2
"""Of all operations."""
VIOLATIONS_MAX = 20
"""Kept of each check; all are counted."""
EXPIRED_GRACE_S = 0.5
"""A value may be read for so long after its deadline: the clock skew that the claims allow for."""
DEATH_EXCUSED_S = 30.0
"""For so long after a fault that touched either side, a death is no false one."""
SAMPLE_GAP_MAX_S = 1.0
"""Between two samples of a node that is to be followed."""
VERSION_MAX: Version = b"\xff" * VERSION_BYTES

Colour: TypeAlias = Literal["green", "red", "unknown"]


class Violation(NamedTuple):
    """One sentence, and the operations that show it."""

    text: str
    operations: tuple[Operation, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What one check found."""

    name: str
    colour: Colour = "unknown"
    judged: int = 0
    """What could have been a violation."""
    unknown: int = 0
    """What would have been judged if the history told enough."""
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """Other counts and times, the unit last."""
    note: str = ""
    """Why it is unknown."""

    def add(self, text: str, *operations: Operation) -> None:
        """Take note of a violation."""
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(text, operations))

    def close(self, note: str = "nothing could be judged") -> Verdict:
        """Find the colour. `note`: why it is unknown when nothing was judged."""
        if self.violation_count:
            self.colour = "red"
        elif self.judged:
            self.colour = "green"
        else:
            self.note = note
        return self


class Kept(NamedTuple):
    """An operation with what follows from when it was."""

    operation: Operation
    is_judged: bool
    """Strict, and the ring was stable."""
    era: int
    """Of a write: when it began. Of a read: when it was over."""


# --- what all checks need ---------------------------------------------------------------------------------


class Facts:
    """What follows from a history before anything is judged."""

    def __init__(self, history: History) -> None:
        """`history`: in order (`History.sort`)."""
        assert all(one.invoked_s <= other.invoked_s for one, other in pairwise(history.operations)), "in order"
        self.history = history
        self.run = history.run
        self.quorum = self.run.replicas // 2 + 1
        changes = list(_ring_changes(history))
        self.divided = _merged(_divided(history) + _small(history, self.run.replicas))
        """Times in which two rings were in use, or one too small for all replicas, in order and apart."""
        self.unsettled = _merged(_waves(changes, self.run.settle_s) + self.divided)
        """Times in which the ring was not stable, in order and apart."""
        self.eras_s = _eras(history, changes, self.quorum)
        """When more replicas were lost than the claims allow for."""
        self.clock_faults = [fault for fault in history.faults if fault.fault == "clock"]
        self.by_key: dict[str, list[Kept]] = {}
        for operation in history.operations:
            is_judged = self.is_strict(operation) and not operation.is_sloppy and self.is_settled(operation)
            at_s = operation.completed_s if operation.kind == "get" else operation.invoked_s
            kept = Kept(operation, is_judged, bisect_right(self.eras_s, at_s) if self.eras_s else 0)
            self.by_key.setdefault(operation.key, []).append(kept)
        ends = [item.until_s if item.until_s != inf else item.at_s for item in history.faults]
        self.healed_s = max(ends, default=0.0)
        """When the last fault was over, or began if it never was."""

    def is_strict(self, operation: Operation) -> bool:
        """Whether it asked for a majority at least."""
        return operation.quorum in ("quorum", "all") or int(operation.quorum) >= self.quorum

    def is_settled(self, operation: Operation) -> bool:
        """Whether the ring was stable all the time."""
        return not self.unsettled or _is_outside(operation, self.unsettled)

    def is_one(self, operation: Operation) -> bool:
        """Whether all who served had one ring with all replicas, or were about to have it."""
        return not self.divided or _is_outside(operation, self.divided)

    def has_bad_clock(self, operation: Operation) -> bool:
        """Whether its coordinator's clock was, or had been, further off than the others' may be."""
        return any(
            operation.coordinator in item.nodes and operation.completed_s >= item.at_s for item in self.clock_faults
        )

    def least_version(self, operation: Operation) -> Version:
        """Return what is no newer than the version of an acknowledged write, though nobody told it."""
        if operation.version or self.has_bad_clock(operation):
            return operation.version
        return self._stamp(operation.invoked_s, -self.run.clock_skew_max_ms)

    def greatest_version(self, operation: Operation) -> Version:
        """Return what is no older than the version of a write, though nobody told it."""
        if operation.version:
            return operation.version
        if operation.completed_s == inf or self.has_bad_clock(operation):
            return VERSION_MAX
        return self.latest_version(operation.completed_s)

    def latest_version(self, at_s: float) -> Version:
        """Return what no version is above that was stamped by then, by a clock that is right."""
        return self._stamp(at_s, self.run.clock_skew_max_ms + CLOCK_DRIFT_MAX_MS + 1) + b"\xff" * 8

    def _stamp(self, at_s: float, offset_ms: int) -> bytes:
        unix_ms = max(0, self.run.unix_ms_at_zero + int(at_s * 1000) + offset_ms)
        return (unix_ms << 16).to_bytes(8, "big")


class _Change(NamedTuple):
    """A node took over another table of owners, between two of its samples."""

    node: NodeId
    from_s: float
    until_s: float
    before: tuple[NodeId, ...]
    after: tuple[NodeId, ...]


def _ring_changes(history: History) -> Iterator[_Change]:
    """Yield changes of owners. A node that has started has no table before its first.

    Who was not seen for a while did not answer, and took its table over when it did again.
    """
    last: dict[NodeId, tuple[float, tuple[NodeId, ...]]] = {}
    for sample in history.samples:
        seen_s, before = last.get(sample.node, (sample.at_s, ()))
        if sample.owners and sample.owners != before:
            from_s = max(seen_s, sample.at_s - SAMPLE_GAP_MAX_S)
            yield _Change(sample.node, from_s, sample.at_s, before, sample.owners)
        last[sample.node] = (sample.at_s, sample.owners)


def _waves(changes: list[_Change], settle_s: float) -> list[tuple[float, float]]:
    """Return when nodes were about to take over a ring."""
    spans = []
    waves: dict[tuple[NodeId, ...], tuple[float, float]] = {}
    current: tuple[NodeId, ...] = ()
    for change in changes:
        if not change.before and change.after == current:
            continue  # It has just started, and joins the ring of the others.
        from_s, until_s = waves.get(change.after, (inf, -inf))
        if change.from_s > until_s + settle_s:
            if until_s != -inf:
                spans.append((from_s, until_s))
            from_s, until_s = change.from_s, change.until_s
        waves[change.after] = (min(from_s, change.from_s), max(until_s, change.until_s))
        current = change.after
    return spans + list(waves.values())


def _small(history: History, replicas: int) -> list[tuple[float, float]]:
    """Return when a node's ring was too small for all replicas."""
    spans = []
    since_s: dict[NodeId, float] = {}
    for sample in history.samples:
        if sample.owners and len(sample.owners) < replicas:
            since_s.setdefault(sample.node, sample.at_s)
        elif sample.owners and sample.node in since_s:
            spans.append((since_s.pop(sample.node), sample.at_s))
    return spans + [(from_s, inf) for from_s in since_s.values()]


def _divided(history: History) -> list[tuple[float, float]]:
    """Return when somebody had another ring already, while a majority of one's members still used that."""
    spans = []
    seen: dict[NodeId, tuple[float, tuple[NodeId, ...]]] = {}
    begun_s: dict[tuple[NodeId, ...], float] = {}
    since_s = earlier_s = inf
    for sample in history.samples:
        seen[sample.node] = (sample.at_s, sample.owners)
        users: Counter[tuple[NodeId, ...]] = Counter()
        for node, (at_s, owners) in seen.items():
            if node in owners and sample.at_s - at_s <= SAMPLE_GAP_MAX_S:
                users[owners] += 1
        begun_s = {owners: begun_s.get(owners, sample.at_s) for owners in users}
        newest_s = max(begun_s.values(), default=inf)
        is_divided = any(2 * count > len(owners) and begun_s[owners] < newest_s for owners, count in users.items())
        if is_divided and since_s == inf:
            since_s = min(earlier_s, sample.at_s)
        elif not is_divided and since_s != inf:
            spans.append((since_s, sample.at_s))
            since_s = inf
        earlier_s = sample.at_s
    return _merged([*spans, (since_s, inf)] if since_s != inf else spans)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return spans of time in order, those that touch as one."""
    merged: list[tuple[float, float]] = []
    for from_s, until_s in sorted(spans):
        if merged and from_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], until_s))
        else:
            merged.append((from_s, until_s))
    return merged


def _is_outside(operation: Operation, spans: list[tuple[float, float]]) -> bool:
    """Whether an operation touches none of some spans, which are in order and apart."""
    at = bisect_left(spans, (operation.completed_s, inf))
    return at == 0 or spans[at - 1][1] < operation.invoked_s


def _eras(history: History, changes: list[_Change], quorum: int) -> list[float]:
    """Return when the replicas lost since all were level last are as many as acknowledge a write."""
    kills = [item for item in history.faults if item.fault == "kill"]
    losses = [(item.at_s, node) for item in kills for node in item.nodes]
    for change in changes:
        for node in change.before:
            is_down = any(node in item.nodes and item.at_s <= change.until_s <= item.until_s for item in kills)
            if node not in change.after and not is_down:
                losses.append((change.until_s, node))
    levels_s = [item.at_s for item in history.levels]
    eras_s = []
    lost: dict[NodeId, bool] = {}
    epoch = 0
    for at_s, node in sorted(losses):
        if bisect_right(levels_s, at_s) != epoch:
            epoch, lost = bisect_right(levels_s, at_s), {}
        lost[node] = True
        if len(lost) >= quorum:
            eras_s.append(at_s)
            lost = {}
    return eras_s


class _Absences:
    """Why a key may be absent: deletes, and deadlines."""

    def __init__(self, facts: Facts, operations: Iterable[Kept]) -> None:
        skew_s = 2 * facts.run.clock_skew_max_ms / 1000  # Of whom set the deadline, and of whom it passes for.
        reasons = []
        for item, _, _ in operations:
            if item.kind == "get" or item.outcome == "fail":
                continue
            if item.kind == "delete":
                reasons.append((item.invoked_s, facts.greatest_version(item)))
            elif item.ttl_ms:  # A clock that is far ahead sees every deadline behind it.
                wait_s = 0.0 if facts.clock_faults else max(0.0, item.ttl_ms / 1000 - skew_s)
                reasons.append((item.invoked_s + wait_s, facts.greatest_version(item)))
        reasons.sort()
        self._from_s = [from_s for from_s, _ in reasons]
        self._newest = list(accumulate((version for _, version in reasons), max))

    @property
    def is_any(self) -> bool:
        """Whether there is any reason at all, ever."""
        return bool(self._from_s)

    def explain(self, at_s: float, floor: Version) -> bool:
        """Whether a key may be absent by then, though `floor` was there."""
        at = bisect_left(self._from_s, at_s)
        return at > 0 and self._newest[at - 1] >= floor


class _Raise(NamedTuple):
    """From a moment on, reads must find a version at least."""

    at_s: float
    who: str
    """Whose reads; empty: everybody's."""
    era: int
    version: Version
    operation: Operation


def _raised(facts: Facts, operations: Iterable[Kept], *, by_process: bool = False) -> list[_Raise]:
    """Return what acknowledged writes that are judged promise to later reads of a key, in the order of time.

    A delete whose version nobody told is newer than all that was acknowledged before it began.
    """
    known = sorted(
        (kept.operation.completed_s, kept.era, kept.operation.version)
        for kept in operations
        if kept.is_judged and kept.operation.kind != "get" and kept.operation.outcome == "ok" and kept.operation.version
    )
    highest: dict[int, Version] = {}
    at = 0
    found = []
    for kept in operations:
        item = kept.operation
        if not kept.is_judged or item.kind == "get" or item.outcome != "ok":
            continue
        version = item.version
        if not version:
            while at < len(known) and known[at][0] < item.invoked_s:
                _, era, newer = known[at]
                highest[era] = max(highest.get(era, b""), newer)
                at += 1
            version = max(facts.least_version(item), highest.get(kept.era, b"") + b"\0")
        found.append(_Raise(item.completed_s, item.process if by_process else "", kept.era, version, item))
    found.sort(key=lambda item: item.at_s)
    return found


class _Below(NamedTuple):
    read: Operation
    floor: Operation


def _below(
    verdict: Verdict,
    raised: list[_Raise],
    reads: Iterable[Kept],
    absences: _Absences | None,
    *,
    by_process: bool = False,
) -> Iterator[_Below]:
    """Yield reads that found less than they had to. `reads`: in the order of their beginning. Counts what is judged.

    `absences` None: a read that finds nothing is not judged.
    """
    floors: dict[tuple[str, int], _Raise] = {}
    at = 0
    for kept in reads:
        read = kept.operation
        while at < len(raised) and raised[at].at_s < read.invoked_s:
            step = raised[at]
            standing = floors.get((step.who, step.era))
            if standing is None or step.version > standing.version:
                floors[step.who, step.era] = step
            at += 1
        floor = floors.get((read.process if by_process else "", kept.era))
        if floor is None:
            continue
        if read.value is None:
            if absences is None:
                verdict.unknown += 1
                continue
            verdict.judged += 1
            if not absences.explain(read.completed_s, floor.version):
                yield _Below(read, floor.operation)
            continue
        verdict.judged += 1
        if read.version < floor.version:
            yield _Below(read, floor.operation)


def _reads(operations: Iterable[Kept]) -> Iterator[Kept]:
    return (kept for kept in operations if kept.operation.kind == "get" and kept.operation.outcome == "ok")


def _judged_reads(verdict: Verdict, facts: Facts, operations: Iterable[Kept]) -> list[Kept]:
    """Return the strict reads of a key while the ring was stable; count the strict ones that were not."""
    found = []
    for kept in _reads(operations):
        if kept.is_judged:
            found.append(kept)
        elif facts.is_strict(kept.operation):
            verdict.unknown += 1
    return found


# --- the data plane ---------------------------------------------------------------------------------------


def check_phantoms(facts: Facts) -> Verdict:
    """Every value that was read, by whatever quorum, was to be written to that key, and its write not refused."""
    verdict = Verdict("phantom")
    for operations in facts.by_key.values():
        attempted: dict[str | None, Operation] = {}
        for kept in operations:
            if kept.operation.kind == "put":
                attempted[kept.operation.value] = kept.operation
        for kept in _reads(operations):
            read = kept.operation
            if read.value is None:
                continue
            verdict.judged += 1
            write = attempted.get(read.value)
            if write is None:
                verdict.add("a value was read that nobody wrote to this key", read)
            elif write.outcome == "fail":
                verdict.add("a value was read whose write was refused", read, write)
            elif write.invoked_s > read.completed_s:
                verdict.add("a value was read before it was written", read, write)
    return verdict.close("no value was read")


def check_acknowledged_lost(facts: Facts) -> Verdict:
    """After healing every level owner has what was acknowledged, or newer; and so has every strict read then."""
    verdict = Verdict("acknowledged-lost")
    if facts.run.evicts:
        return verdict.close("entries may have been evicted")
    holdings: dict[str, list[Holding]] = defaultdict(list)
    for holding in facts.history.holdings:
        if holding.is_owner and holding.is_level:
            holdings[holding.key].append(holding)
    verdict.figures = {"keys_lost": 0, "keys_behind": 0}
    healed_s = max((item.at_s for item in facts.history.levels if item.at_s >= facts.healed_s), default=inf)
    for key, operations in facts.by_key.items():
        acknowledged = [
            kept.operation for kept in operations
            if kept.operation.kind != "get" and kept.operation.outcome == "ok" and not kept.operation.is_sloppy
            and facts.is_strict(kept.operation)
        ]  # fmt: skip
        counted = [
            item for item in acknowledged
            if bisect_right(facts.eras_s, item.invoked_s) == len(facts.eras_s) and facts.is_one(item)
        ]  # fmt: skip
        verdict.unknown += len(acknowledged) - len(counted)
        if not counted:
            continue
        highest = max(counted, key=facts.least_version)
        if key in holdings:
            verdict.judged += len(counted)
            _check_kept(verdict, facts, holdings[key], highest, operations)
        else:
            verdict.unknown += len(counted)
        _check_read_back(verdict, facts, healed_s, highest, operations)
    return verdict.close("the history does not tell what was left in the end")


def _check_kept(
    verdict: Verdict, facts: Facts, holdings: list[Holding], highest: Operation, operations: list[Kept]
) -> None:
    """Judge what the level owners of a key have in the end."""
    floor, absences = facts.least_version(highest), _Absences(facts, operations)
    late = dict.fromkeys(item.node for item in holdings if not _holds(item, floor, absences))
    if late.keys() == {item.node for item in holdings}:
        verdict.figures["keys_lost"] += 1
        verdict.add(f"{highest.key} is lost: no level owner has what was acknowledged, or newer", highest)
    elif late:
        verdict.figures["keys_behind"] += 1
        verdict.add(f"{highest.key} is behind: {', '.join(late)} has less than was acknowledged", highest)


def _check_read_back(
    verdict: Verdict, facts: Facts, healed_s: float, highest: Operation, operations: list[Kept]
) -> None:
    """Judge the strict reads of a key after healing."""
    floor, absences = facts.least_version(highest), _Absences(facts, operations)
    for kept in _reads(operations):
        read = kept.operation
        if facts.is_strict(read) and read.invoked_s > max(healed_s, highest.completed_s):
            verdict.judged += 1
            is_less = not absences.explain(inf, floor) if read.value is None else read.version < floor
            if is_less:
                verdict.add(f"{read.key} was read after healing as less than was acknowledged", read, highest)


def _holds(holding: Holding, floor: Version, absences: _Absences) -> bool:
    """Whether a node has a version at least, or may have none for a reason at least as new."""
    return holding.version >= floor or (holding.state in ("absent", "ghost") and absences.explain(inf, floor))


def check_converged(facts: Facts) -> Verdict:
    """When stock was taken last, all level owners of a key had the same."""
    verdict = Verdict("replicas-converge")
    if facts.run.evicts:
        return verdict.close("entries may have been evicted")
    last_s = {holding.key: holding.at_s for holding in facts.history.holdings}
    found: dict[str, dict[Version, list[NodeId]]] = defaultdict(lambda: defaultdict(list))
    for holding in facts.history.holdings:
        if holding.is_owner and holding.is_level and holding.at_s == last_s[holding.key]:
            version = holding.version if holding.state in ("value", "tombstone") else b""
            found[holding.key][version].append(holding.node)
    for key, versions in found.items():
        verdict.judged += 1
        if len(versions) > 1:
            texts = [f"{', '.join(nodes)}: {version.hex() or 'nothing'}" for version, nodes in versions.items()]
            verdict.add(f"the owners of {key} differ: {'; '.join(texts)}")
    return verdict.close("the history does not tell what was left in the end")


def check_stale_reads(facts: Facts) -> Verdict:
    """A strict read finds what was acknowledged before it began, or newer."""
    verdict = Verdict("stale-reads")
    for operations in facts.by_key.values():
        absences = None if facts.run.evicts else _Absences(facts, operations)
        reads = _judged_reads(verdict, facts, operations)
        for read, write in _below(verdict, _raised(facts, operations), reads, absences):
            verdict.add("a read found less than was acknowledged before it", read, write)
    return verdict.close("no strict read came after a strict write")


def check_read_your_writes(facts: Facts) -> Verdict:
    """A process reads what it wrote, or newer."""
    verdict = Verdict("read-your-writes")
    for operations in facts.by_key.values():
        absences = None if facts.run.evicts else _Absences(facts, operations)
        reads = _judged_reads(verdict, facts, operations)
        raised = _raised(facts, operations, by_process=True)
        for read, write in _below(verdict, raised, reads, absences, by_process=True):
            verdict.add("a process read less than it had written", read, write)
    return verdict.close("no process read what it wrote")


def check_monotonic_reads(facts: Facts) -> Verdict:
    """A process never reads less than it has read."""
    verdict = Verdict("monotonic-reads")
    for operations in facts.by_key.values():
        absences = None if facts.run.evicts else _Absences(facts, operations)
        reads = _judged_reads(verdict, facts, operations)
        raised = [
            _Raise(read.completed_s, read.process, era, read.version, read)
            for read, _, era in reads
            if read.value is not None
        ]
        raised.sort(key=lambda item: item.at_s)
        for read, earlier in _below(verdict, raised, reads, absences, by_process=True):
            verdict.add("a process read less than it had read", read, earlier)
    return verdict.close("no process read a key twice")


def check_resurrections(facts: Facts) -> Verdict:
    """No strict read finds a value below an acknowledged delete, or long after its deadline, whatever the ring is."""
    verdict = Verdict("resurrection")
    for operations in facts.by_key.values():
        deletes = [
            _Raise(item.completed_s, "", era, facts.least_version(item), item)
            for item, _, era in operations
            if item.kind == "delete"
            and item.outcome == "ok"
            and facts.is_strict(item)
            and not item.is_sloppy
            and facts.is_one(item)
        ]
        deletes.sort(key=lambda item: item.at_s)
        strict = [
            kept for kept in _reads(operations) if facts.is_strict(kept.operation) and kept.operation.value is not None
        ]
        reads = [kept for kept in strict if facts.is_one(kept.operation)]
        verdict.unknown += len(strict) - len(reads)
        for read, delete in _below(verdict, deletes, reads, None):
            verdict.add("a value was read that had been deleted", read, delete)
        _check_deadlines(verdict, facts, operations, reads)
    return verdict.close("nothing was read after a delete or a deadline")


def _check_deadlines(verdict: Verdict, facts: Facts, operations: Iterable[Kept], reads: Iterable[Kept]) -> None:
    if facts.clock_faults:
        return
    deadlines = {
        item.version: item for item, _, _ in operations if item.kind == "put" and item.ttl_ms and item.outcome == "ok"
    }
    for kept in reads:
        write = deadlines.get(kept.operation.version)
        if write is not None:
            verdict.judged += 1
            if kept.operation.invoked_s > write.completed_s + write.ttl_ms / 1000 + EXPIRED_GRACE_S:
                verdict.add("a value was read after its deadline", kept.operation, write)


def check_versions(facts: Facts) -> Verdict:
    """A version names one value; later writes have later versions; and none is far ahead of the clock."""
    verdict = Verdict("versions")
    for operations in facts.by_key.values():
        named: dict[Version, Operation] = {}
        for kept in operations:
            item = kept.operation
            if not item.version or item.outcome != "ok":
                continue
            verdict.judged += 1
            first = named.setdefault(item.version, item)
            if first.value != item.value:
                verdict.add("a version names two values", first, item)
            if item.version > facts.latest_version(item.completed_s):
                ahead_s = version_unix_ms(item.version) / 1000 - facts.run.unix_ms_at_zero / 1000 - item.completed_s
                verdict.add(f"a version is {ahead_s:.1f} s ahead of the clock", item)
        raised = [item for item in _raised(facts, operations) if item.operation.version]
        floors: dict[int, _Raise] = {}
        at = 0
        for write in sorted(raised, key=lambda item: item.operation.invoked_s):
            while at < len(raised) and raised[at].at_s < write.operation.invoked_s:
                standing = floors.get(raised[at].era)
                if standing is None or raised[at].version > standing.version:
                    floors[raised[at].era] = raised[at]
                at += 1
            floor = floors.get(write.era)
            if floor is not None and write.version <= floor.version:
                verdict.add(
                    "a write has an older version than one acknowledged before it", write.operation, floor.operation
                )
    return verdict.close("no version is known")


def check_atomic(facts: Facts) -> Verdict:
    """Strict reads and writes of a key could have happened one after the other (`chaos.zones`).

    By version, not by value: a write that is overtaken stamps again, and what it had written by then may be read. Reads
    that find nothing take part where nothing else explains them than that they came first.
    """
    verdict = Verdict("atomic")
    for key, operations in facts.by_key.items():
        reads = _judged_reads(verdict, facts, operations)
        is_absence_first = not facts.run.evicts and not _Absences(facts, operations).is_any
        by_era: dict[int, list[Operation]] = defaultdict(list)
        for kept in reads:
            if kept.operation.value is not None or (is_absence_first and kept.era == 0):
                by_era[kept.era].append(kept.operation)
        for era, found in by_era.items():
            _check_zones(verdict, key, [kept for kept in operations if kept.era == era], found)
    return verdict.close("no strict read was answered while the ring was stable")


def _check_zones(verdict: Verdict, key: str, operations: list[Kept], reads: list[Operation]) -> None:
    """Judge one key, from one loss of too many replicas to the next."""
    writes: dict[Version | Operation, tuple[float, float]] = {}
    by_value: dict[str | None, Operation] = {}
    for item, is_judged, _ in operations:
        if item.kind == "get" or item.outcome == "fail":
            continue
        if item.kind == "put":
            by_value[item.value] = item
        if item.outcome == "ok" and is_judged:
            writes[item.version or item] = (item.invoked_s, item.completed_s)
    spans = []
    for read in reads:
        label: Version | Operation = read.version
        if read.value is None:
            writes[b""] = (-inf, -inf)
        elif label not in writes:
            write = by_value.get(read.value)
            if write is None:  # A phantom, or from before too many replicas were lost.
                verdict.unknown += 1
                continue
            writes[label] = (write.invoked_s, inf)
        spans.append((label, read.invoked_s, read.completed_s))
    verdict.judged += len(spans)
    for kind, one, other in conflicts(((label, *span) for label, span in writes.items()), spans):
        seen = _of_cluster(operations, one) + (_of_cluster(operations, other) if other != one else [])
        verdict.add(f"{key}: {_CONFLICTS[kind]}", *seen)


_CONFLICTS = {
    "future": "a value was read before it was written",
    "overlap": "two values were there at once: each was written or read before the other was last read",
    "within": "a value was written or read between two operations that saw another",
}


def _of_cluster(operations: list[Kept], label: object) -> list[Operation]:
    """Return the operation of a label that was over first, and the one that began last."""
    found = [
        kept.operation for kept in operations
        if kept.is_judged and kept.operation.outcome == "ok"
        and label in (kept.operation.version, kept.operation)
    ]  # fmt: skip
    if not found:
        return []
    first, last = min(found, key=lambda item: item.completed_s), max(found, key=lambda item: item.invoked_s)
    return [first] if first is last else [first, last]


def check_hints(facts: Facts) -> Verdict:
    """Each hint that was ever queued is somewhere: delivered, redirected, expired, dropped or pending."""
    verdict = Verdict("hints-balance")
    for sample in facts.history.samples:
        if sample.hints:
            verdict.judged += 1
            queued, *others = sample.hints
            if queued != sum(others):
                counts = ", ".join(f"{name} {count}" for name, count in zip(HINT_COUNTS, sample.hints, strict=True))
                verdict.add(f"{sample.node} at {sample.at_s:.3f} s: {counts}")
    return verdict.close("no node tells of its hints")


# --- membership -------------------------------------------------------------------------------------------


def check_false_deaths(facts: Facts) -> Verdict:
    """Nobody is called dead whom no fault touched, by somebody whom none touched."""
    verdict = Verdict("false-deaths", judged=len(facts.run.nodes))
    for death in facts.history.deaths:
        if not any(_excuses(fault, death) for fault in facts.history.faults):
            verdict.add(
                f"{death.observer} called {death.member} dead at {death.at_s:.3f} s, and no fault touched either"
            )
    verdict.figures = {"deaths": len(facts.history.deaths)}
    return verdict.close()


def _excuses(fault: Fault, death: Death) -> bool:
    is_near = fault.at_s <= death.at_s <= fault.until_s + DEATH_EXCUSED_S
    return is_near and (not fault.nodes or death.member in fault.nodes or death.observer in fault.nodes)


def check_rings(facts: Facts) -> Verdict:
    """After the last fault all nodes that run come to the same ring, soon, and stay with it."""
    verdict = Verdict("rings-converge")
    gone = {
        node for item in facts.history.faults if item.fault == "kill" and item.until_s == inf for node in item.nodes
    }
    last: dict[NodeId, tuple[float, str]] = {}
    equal_since_s = inf
    for sample in facts.history.samples:
        if sample.node in gone or sample.at_s < facts.healed_s:
            continue
        seen_s, _ = last.get(sample.node, (facts.healed_s, ""))
        if sample.at_s - seen_s > SAMPLE_GAP_MAX_S and sample.node in last:
            verdict.unknown += 1
        last[sample.node] = (sample.at_s, sample.digest)
        is_equal = len({digest for _, digest in last.values()}) == 1 and len(last) == len(facts.run.nodes) - len(gone)
        equal_since_s = min(equal_since_s, sample.at_s) if is_equal else inf
    if len(last) < len(facts.run.nodes) - len(gone) or verdict.unknown:
        verdict.note = "nodes were not followed all the time after the last fault"
        return verdict
    verdict.judged = len(last)
    took_s = equal_since_s - facts.healed_s
    verdict.figures = {"converged_s": took_s}
    if equal_since_s == inf:
        verdict.add(
            "the rings differ in the end: "
            + ", ".join(f"{node} {digest}" for node, (_, digest) in sorted(last.items()))
        )
    elif took_s > facts.run.ring_within_s:
        verdict.add(f"rings were equal {took_s:.1f} s after the last fault, not within {facts.run.ring_within_s:g} s")
    return verdict.close()


CHECKS: tuple[Callable[[Facts], Verdict], ...] = (
    check_phantoms, check_acknowledged_lost, check_stale_reads, check_read_your_writes, check_monotonic_reads,
    check_resurrections, check_atomic, check_versions, check_converged, check_rings, check_false_deaths, check_hints,
)  # fmt: skip


@dataclass(slots=True)
class Report:
    """All verdicts on one history."""

    verdicts: list[Verdict]
    operations: int
    served: int
    """Acknowledged operations."""

    @property
    def is_served(self) -> bool:
        """Whether the run served enough to show anything."""
        return self.served >= max(SERVED_LEAST, SERVED_SHARE_LEAST * self.operations)

    @property
    def red(self) -> list[Verdict]:
        """Return what was broken."""
        return [verdict for verdict in self.verdicts if verdict.colour == "red"]

    def verdict(self, name: str) -> Verdict:
        """Return the verdict of a check."""
        return next(verdict for verdict in self.verdicts if verdict.name == name)


def check(history: History) -> Report:
    """Judge a history by all checks."""
    facts = Facts(history)
    served = sum(item.outcome == "ok" for item in history.operations)
    report = Report([judge(facts) for judge in CHECKS], len(history.operations), served)
    if not report.is_served:
        for verdict in report.verdicts:
            if verdict.colour == "green":
                verdict.colour, verdict.note = "unknown", f"{served} of {report.operations} operations were served"
    return report
