"""Client requests in flight.

Any node coordinates: it asks the owners of a key by itself, with no hop through a primary. A read that
this node may answer alone, and a write that it may finish alone, are one synchronous call each: no
machine, no id, no effect list. Everything else is one quorum machine in a bounded table.

Deadlines of the default time-out stand in one deque, since they arrive in order; clients' own time-outs
in a heap. Entries of finished requests are dropped when they reach the front.

*Tails.* A write is answered at its quorum, and stays in the table until all owners have answered or its deadline: who
missed it gets a hint (`zephyr.replication.hints`). A read that asked somebody else because an owner was slow stays
until that one has answered, too, and repairs it.

*Updates.* A change that depends on what stands (`zephyr.replication.update`) is made by the key's first live owner, one
after the other: a quorum read, a decision, a quorum write. Other nodes send it there. Two nodes that do not see the
same first owner refuse each other, so that two such changes run at once only across a partition.

*Not sure.* What this node does as an owner waits until its view is confirmed (`zephyr.confirmation`), at most
`CONFIRMATION_WAIT_S`; then a read of one replica is served and marked, and anything else refused.

*Not owner.* A peer whose ring differs and that owns nothing of the slot says so. The request then waits
for the ring to change here, at most `NOT_OWNER_PAUSE_S`, and starts once more with the owners of that
moment. A second *not owner* ends it.

N is the number of copies by the last *committed* ring: where gossip leads and the ring has shrunk, a quorum needs as
many as before.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Literal

from zephyr.config import Settings
from zephyr.events import CompleteRequest, Effect, SendPeer
from zephyr.model import (
    ClusterView,
    Failure,
    Instant,
    NodeId,
    Outcome,
    ReadRequest,
    Request,
    UpdateRequest,
    Version,
    WriteRequest,
)
from zephyr.peer.wire import Operation, Status
from zephyr.replication.frames import Frame, Frames
from zephyr.replication.latency import Latencies
from zephyr.replication.quorum import QuorumRead, QuorumWrite
from zephyr.replication.replica import Answer, Replica
from zephyr.replication.skew import Skew
from zephyr.replication.update import (
    UPDATES_IN_LINE_MAX,
    Change,
    Forwarded,
    Lines,
    decide,
    decode_outcome,
    decode_update,
    encode_update,
)
from zephyr.ring.ring import Ring, key_slot
from zephyr.store.record import (
    DEFAULT_CONTENT_TYPE,
    VERSION_BYTES,
    HybridLogicalClock,
    pack_record,
    record_is_tombstone,
    record_is_valid,
    record_version,
)
from zephyr.store.store import Store

REQUESTS_MAX = 10_000
"""Client requests in flight; one more is refused as overload. One a connection, at `connections_max`."""
TAILS_MAX = 10_000
"""Answered requests that wait for the rest of the owners; beyond it those get their hints at once."""
TAIL_BYTES_MAX = 64 << 20
"""Records of such requests."""
DEADLINES_SPARE = 1024
"""Deadlines of finished requests that are kept before they are looked for: one look in so many requests."""
CONFIRMATION_WAIT_S = 1.0
"""Longest wait until this node is sure that it still is an owner: a keep-alive or a round of acks is ms away."""
DOUBTED_MAX = 4
"""How often a request is started again because owners were not sure: for `CONFIRMATION_WAIT_S` in all."""
NOT_OWNER_PAUSE_S = 0.25
"""Longest wait for the ring to change here after a peer's *not owner*: a watch event is ms away."""
UPDATE_ROUNDS_MAX = 5
"""How often an update reads anew because another write came in between."""
PHI_DOUBTED = 1.0
"""From this suspicion on a replica is asked after the others: one in ten such silences is a death."""
RANKS_KEPT_S = 0.01
"""How long what is known of a replica's silence and latency stands: either takes longer to say anything new."""


class Pending:
    """A request that went out to peers: carry out `effects`; a `CompleteRequest` with this id ends it."""

    __slots__ = ("effects", "request_id")

    def __init__(self, request_id: int, effects: list[Effect]) -> None:
        self.request_id = request_id
        self.effects = effects


class _Running:
    """One request in the table."""

    __slots__ = (
        "asked_s",
        "call_ids",
        "change",
        "deadline_s",
        "doubted_count",
        "has_own_turn",
        "is_answered",
        "machine",
        "parked",
        "record",
        "request",
        "request_id",
        "restarted",
        "rounds",
        "slot",
        "was_doubted",
    )  # fmt: skip

    def __init__(self, request_id: int, request: Request, slot: int, deadline_s: float) -> None:
        self.request_id = request_id
        self.request = request
        self.slot = slot
        self.deadline_s = deadline_s
        self.machine: QuorumRead | QuorumWrite | Forwarded | None = None
        self.call_ids: dict[int, NodeId] = {}
        self.asked_s = 0.0
        """When its calls that are open went out: the last of them."""
        self.record = b""
        """What it writes."""
        self.change: Change | None = None
        """What an update decided on."""
        self.rounds = 0
        """How often an update has read."""
        self.has_own_turn = False
        """This node is an owner, and takes the record once somebody else has taken its stamp."""
        self.is_answered = False
        """The client has its answer: the rest is a tail."""
        self.restarted = False
        self.was_doubted = False
        """In this round an owner answered that it cannot make sure that it is one, or is not level yet."""
        self.doubted_count = 0
        """Rounds that ended for that."""
        self.parked: Literal["", "owner", "confirmation", "line"] = ""
        """What it waits for before it is started: a ring in which it has owners, or to be sure of this one, or an
        update of the same key."""


class Coordinator:
    """The table of requests in flight, and the data plane's typed entry points."""

    def __init__(
        self,
        settings: Settings,
        ring: Ring,
        store: Store,
        clock: HybridLogicalClock,
        is_level: Callable[[int], bool] = lambda _slot: True,
        *,
        phi: Callable[[NodeId, Instant], float] = lambda _node_id, _now: 0.0,
    ) -> None:
        """`is_level`: whether this node holds all that it should of a slot (`zephyr.replication.level`).

        `phi`: how suspicious a member's silence is (`zephyr.gossip.phi`).
        """
        self.settings = settings
        self.replica = Replica(settings, ring, store, clock, is_level)
        self.hints = self.replica.hints
        self.latencies = Latencies()
        self.skew = Skew()
        self.is_all_level = True
        """Whether this node is level for all of its slots; kept by the node."""
        self.store = store
        self.clock = clock
        self.ring = ring
        self.committed_count = 0
        """Members of the last committed ring."""
        self.repaired_count = 0
        """Records sent to replicas that lacked them, because a read found out."""
        self.confirmed_until_s = inf
        """As in the replica: the hot path asks."""
        self.due_s = inf
        """Not after `deadline`, nor after that of a hint kept since it was last asked for: a later timer must be moved.
        For each request this is asked, and not what all machines of a node wait for."""
        self._id = settings.id
        self._phi = phi
        self._requests: dict[int, _Running] = {}
        self._calls: dict[int, _Running] = {}
        self._frames = Frames()
        self._last_id = 0
        self._tails = 0
        self._tail_bytes = 0
        self._lines = Lines()
        """The updates made here."""
        self._unreachable: dict[NodeId, bool] = {}
        self._suspects: dict[NodeId, bool] = {}
        self._others: tuple[NodeId, ...] = ()
        """Who may keep a record for an owner that cannot be reached."""
        self._ranks: dict[NodeId, tuple[bool, bool, int]] = {}
        """Members -> (suspected, silent, latency): the lowest is asked first."""
        self._ranks_until_s = -inf
        self._deadlines: deque[tuple[float, int]] = deque()
        self._deadlines_own: list[tuple[float, int]] = []
        self._impatience: list[tuple[float, int]] = []
        """When a read asks somebody else as well."""
        self._parked: deque[tuple[float, int]] = deque()
        self._unconfirmed: deque[tuple[float, int]] = deque()

    @property
    def digest(self) -> bytes:
        """Of the ring that is used."""
        return self.replica.digest

    @property
    def requests_in_flight(self) -> int:
        """Client requests that wait for peers."""
        return len(self._requests) - self._tails

    def check_invariants(self) -> None:
        """Assert what must hold between any two calls; for tests and the simulator."""
        for call_id, running in self._calls.items():
            assert self._requests.get(running.request_id) is running
            assert call_id in running.call_ids
        lines = len(self._deadlines), len(self._deadlines_own), len(self._impatience)
        assert max(lines) <= 2 * (REQUESTS_MAX + TAILS_MAX) + DEADLINES_SPARE, "deadlines of finished requests pile up"
        for running in self._requests.values():
            assert running.parked or running.call_ids, "a request in flight waits for something"
        assert self._tails == sum(running.is_answered for running in self._requests.values()) <= TAILS_MAX
        self._lines.check_invariants(self._requests)
        due_s = self.due_s
        assert due_s <= self.deadline(), "a request waits for a moment that nobody has heard of"
        self.due_s = due_s
        self.hints.check_invariants()

    # --- what the node reports ----------------------------------------------------------------------

    def ring_changed(self, ring: Ring, view: ClusterView, now: Instant) -> list[Effect]:
        """Use a new ring from now on; requests that waited for one start again."""
        self.ring = self.replica.ring = ring
        self.replica.digest = view.digest
        self.replica.view_order = (view.generation, view.revision)
        parked, self._parked = self._parked, deque()
        effects: list[Effect] = []
        for _, request_id in parked:
            running = self._requests.get(request_id)
            if running is not None and running.parked == "owner":
                effects += self._restart(running, now)
        return effects + self._serve_lines(now)

    def confirm(self, until_s: float, now: Instant) -> list[Effect]:
        """Take this node for an owner until then; requests that waited to be sure of it begin."""
        self.confirmed_until_s = self.replica.confirmed_until_s = until_s
        if not self._unconfirmed or now.monotonic_s >= until_s:
            return []
        waiting, self._unconfirmed = self._unconfirmed, deque()
        effects: list[Effect] = []
        for _, request_id in waiting:
            running = self._requests.get(request_id)
            if running is not None and running.parked == "confirmation":
                effects += self._start(running, now)
        return effects + self._serve_lines(now)

    def route(self, view: ClusterView) -> None:
        """Take from a view whom to send to: not at all, or last for reads. Itself, a leaving node always reaches."""
        others = [row for row in view.members if row.member.id != self._id]
        self._unreachable = {row.member.id: True for row in others if not row.routable}
        self._suspects = {row.member.id: True for row in view.members if row.gossip == "suspect"}
        self._others = tuple(row.member.id for row in others if row.routable and row.in_ring)
        self._ranks_until_s = -inf
        self.committed_count = view.committed_count
        self.latencies.keep_only({row.member.id: True for row in others})

    # --- clients ------------------------------------------------------------------------------------

    def begin_read(self, request: ReadRequest, now: Instant) -> Outcome | Pending:
        """Read a key: at once where this node may answer alone, else through the owners."""
        slot = key_slot(request.key)
        owners = self.ring.owners(slot)
        need = self._need(request.quorum or self.settings.read_quorum, owners)
        is_sure = self.is_all_level and now.monotonic_s < self.confirmed_until_s
        if need == 1 and is_sure and self._id in owners:
            return Outcome(record=self.store.get(slot, request.key, self.clock.now_unix_ms(now.unix_ms)))
        return self._begin(request, slot, owners, need, now)

    def begin_write(self, request: WriteRequest, now: Instant) -> Outcome | Pending:
        """Write or delete a key: at once where this node is its only owner, else through the owners."""
        slot = key_slot(request.key)
        owners = self.ring.owners(slot)
        need = self._need(request.quorum or self.settings.write_quorum, owners)
        if len(owners) == 1 and need == 1 and owners[0] == self._id and now.monotonic_s < self.confirmed_until_s:
            return self._write_alone(request, slot, now)
        return self._begin(request, slot, owners, need, now)

    def begin_update(self, request: UpdateRequest, now: Instant) -> Outcome | Pending:
        """Make a change that depends on what stands: here, or at the key's first live owner."""
        slot = key_slot(request.key)
        owners = self.ring.owners(slot)
        need = self._need(request.quorum or self.settings.write_quorum, owners)
        return self._begin(request, slot, owners, need, now)

    def begin_forwarded(self, arguments: tuple[Any, ...], digest: bytes, now: Instant) -> Outcome | Pending | Answer:
        """Make a change for a peer, which takes this node for the first live owner; or answer why not."""
        request = decode_update(arguments)
        if request is None:
            return Status.BAD_REQUEST, ("an update",)
        slot = key_slot(request.key)
        if self._id in self.ring.owners(slot) and self._first_of(self.ring.owners(slot)) != self._id:
            return self.replica.not_owner(digest)
        objection = self.replica.objection(slot, digest, now)
        return objection if objection is not None else self.begin_update(request, now)

    def begin_all(
        self, requests: Sequence[ReadRequest | WriteRequest], now: Instant
    ) -> tuple[list[Outcome | Pending], list[Effect]]:
        """Begin many requests; what goes to one peer goes in one frame. Returns (what became of each, what to do)."""
        begun: list[Outcome | Pending] = []
        effects: list[Effect] = []
        for request in requests:
            result = (
                self.begin_read(request, now) if type(request) is ReadRequest else self.begin_write(request, now)  # type: ignore[arg-type]
            )
            if type(result) is Pending:
                effects += result.effects
                result.effects = []
            begun.append(result)
        return begun, self._grouped(effects, now)

    def _need(self, wanted: str, owners: tuple[NodeId, ...]) -> int:
        """Return how many replicas a request needs."""
        replicas = len(owners)
        if replicas < self.committed_count:  # Gossip leads, and the ring has shrunk; or all own everything.
            replicas = max(replicas, min(self.settings.replicas, self.committed_count))
        return self.settings.quorum(wanted, replicas)

    def _write_alone(self, request: WriteRequest, slot: int, now: Instant) -> Outcome:
        unix_ms = self._settled_unix_ms(now, is_alone=True)
        version = self.clock.stamp(unix_ms)
        applied = self.replica.write(slot, request.key, self._record(request, version, now), now)
        if not applied.applied:
            if applied.too_large:
                return Outcome(Failure.TOO_LARGE, "the item is larger than the memory bound")
            self.clock.observe(applied.newest, now.unix_ms)
            version = self.clock.stamp(unix_ms)
            applied = self.replica.write(slot, request.key, self._record(request, version, now), now)
        if not applied.applied:
            return Outcome(Failure.CLOCK_SKEW, "a newer version from a clock far ahead stands in the way")
        return Outcome(version=version, existed=applied.existed)

    def _record(self, request: WriteRequest, version: Version, now: Instant) -> bytes:
        if request.value is None:
            return pack_record(version, b"", tombstone=True)
        expires_unix_ms = 0
        if request.ttl_ms is not None:
            expires_unix_ms = self.clock.now_unix_ms(now.unix_ms) + request.ttl_ms
        content_type = request.content_type or DEFAULT_CONTENT_TYPE
        return pack_record(version, request.value, expires_unix_ms=expires_unix_ms, content_type=content_type)

    def _begin(
        self, request: Request, slot: int, owners: tuple[NodeId, ...], need: int, now: Instant
    ) -> Outcome | Pending:
        if refusal := self._refusal(request, owners, need):
            return refusal
        timeout_s = request.timeout_s or self.settings.request_timeout
        self._last_id += 1
        running = _Running(self._last_id, request, slot, now.monotonic_s + timeout_s)
        self._enter(running)
        if now.monotonic_s >= self.confirmed_until_s and self._id in owners:
            self._wait_for_confirmation(running, now)
            return Pending(running.request_id, [])
        effects = self._launch(running, owners, need, now)
        if self._lines.is_any_freed:
            effects += self._serve_lines(now)
        if len(effects) == 1:
            [effect] = effects
            if type(effect) is CompleteRequest and effect.request_id == running.request_id:
                return effect.outcome
        return Pending(running.request_id, effects)

    def _enter(self, running: _Running) -> None:
        """Put a request into the table."""
        self._requests[running.request_id] = running
        self.due_s = min(self.due_s, running.deadline_s)
        if running.request.timeout_s is None:
            self._deadlines.append((running.deadline_s, running.request_id))
        else:
            heapq.heappush(self._deadlines_own, (running.deadline_s, running.request_id))
        self._drop_finished_deadlines()

    def _refusal(self, request: Request, owners: tuple[NodeId, ...], need: int) -> Outcome | None:
        """Refuse what cannot succeed before anything is sent."""
        if not owners:
            return Outcome(Failure.UNAVAILABLE, "this node knows no ring yet", answered=0, asked=0)
        if need > len(owners):
            detail = f"{need} replicas are asked for, the cluster keeps {len(owners)} now"
            return Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0)
        unreachable = self._unreachable
        if unreachable:
            reachable = sum(owner not in unreachable for owner in owners)
            detail = f"{reachable} of the key's {len(owners)} replicas can be reached, {need} are needed"
            if reachable < need and type(request) is WriteRequest and request.is_sloppy:
                reachable += len(self._keepers(owners, 0))
            if reachable < need:
                return Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0)
        if type(request) is not ReadRequest and self.skew.is_off:
            detail = f"this node's clock is {abs(self.skew.ms)} ms from its peers'"
            return Outcome(Failure.CLOCK_SKEW, detail, answered=0, asked=0)
        if self.requests_in_flight >= REQUESTS_MAX:
            return Outcome(Failure.OVERLOADED, f"{REQUESTS_MAX} requests wait for peers", answered=0, asked=0)
        return None

    def _launch(self, running: _Running, owners: tuple[NodeId, ...], need: int, now: Instant) -> list[Effect]:
        """Begin, or begin once more, with these owners."""
        request = running.request
        if type(request) is ReadRequest:
            running.machine = QuorumRead(self._preferred(owners, need, now), need)
            self.latencies.earn()
            return self._advance(running, now)
        if type(request) is UpdateRequest:
            return self._launch_update(running, request, owners, now)
        earlier = running.machine
        assert type(request) is WriteRequest
        assert earlier is None or type(earlier) is QuorumWrite
        keepers = self._keepers(owners, running.slot) if request.is_sloppy else ()
        machine = running.machine = QuorumWrite(owners, need, earlier, keepers=keepers)
        return self._send_write(running, machine, now) + self._advance(running, now)

    # --- reads --------------------------------------------------------------------------------------

    def _preferred(self, owners: tuple[NodeId, ...], need: int, now: Instant) -> tuple[NodeId, ...]:
        """Order those owners for a read that can be reached.

        This node, then the others: those that gossip suspects last, then those whose silence is suspicious, then by
        latency.
        """
        unreachable = self._unreachable
        if need == len(owners) and not unreachable:
            return owners
        if now.monotonic_s >= self._ranks_until_s:
            self._ranks, self._ranks_until_s = {}, now.monotonic_s + RANKS_KEPT_S
        ranks = self._ranks
        for owner in owners:
            if owner not in ranks:
                ranks[owner] = self._rank(owner, now)
        reachable = [owner for owner in owners if owner not in unreachable] if unreachable else owners
        return tuple(sorted(reachable, key=ranks.__getitem__))

    def _rank(self, owner: NodeId, now: Instant) -> tuple[bool, bool, int]:
        if owner == self._id:
            return False, False, -1
        return owner in self._suspects, self._phi(owner, now) >= PHI_DOUBTED, self.latencies.rank(owner)

    def _drive_read(self, running: _Running, machine: QuorumRead, now: Instant) -> list[Effect]:
        """Send what a read wants sent, and answer for this replica, until it waits for others or is decided."""
        effects: list[Effect] = []
        key = running.request.key
        patience_s = 0.0
        while True:
            asks = machine.asks()
            for node_id, is_full in asks:
                if node_id == self._id:
                    self._read_here(running, machine, now)
                    continue
                operation = Operation.READ if is_full else Operation.DIGEST
                effects.append(self._call(running, node_id, operation, (key,), now))
                patience_s = max(patience_s, self.latencies.patience_s(node_id))
            if asks:
                continue
            repairs = machine.repairs()
            for node_id in repairs:
                self.repaired_count += 1
                assert machine.best is not None
                if node_id == self._id:
                    self.replica.write(running.slot, key, machine.best, now, is_cold=True)
                    machine.on_repaired(node_id)
                else:
                    effects.append(self._call(running, node_id, Operation.REPAIR, (key, machine.best), now))
            if not repairs:
                break
        if patience_s and machine.is_choice_left:
            self.due_s = min(self.due_s, now.monotonic_s + patience_s)
            heapq.heappush(self._impatience, (now.monotonic_s + patience_s, running.request_id))
        return effects

    def _read_here(self, running: _Running, machine: QuorumRead, now: Instant) -> None:
        if now.monotonic_s >= self.confirmed_until_s:
            machine.on_failure(self._id, "this node is not sure to own the key")
            return
        record, is_level, mark = self.replica.read(running.slot, running.request.key, now)
        if record is not None and not self.clock.observe(record_version(record), now.unix_ms):
            machine.on_failure(self._id, "this node has a stamp from far ahead")
            return
        machine.on_record(self._id, record, mark, is_level=is_level)
        running.was_doubted = running.was_doubted or not is_level

    def _mend(self, running: _Running, machine: QuorumRead, now: Instant) -> list[Effect]:
        """Tell replicas what a read found out: what they lack, and what they have and should not. Nobody waits."""
        effects: list[Effect] = []
        key = running.request.key
        for node_id in machine.background():
            assert machine.best is not None
            effects += self._tell(node_id, Operation.REPAIR, (key, machine.best), now)
        if machine.outdated is not None:
            mark, holders = machine.outdated
            for node_id in holders:
                effects += self._tell(node_id, Operation.DROP, (key, mark), now)
        return effects

    def _tell(
        self, node_id: NodeId, operation: Operation, arguments: tuple[bytes, bytes], now: Instant
    ) -> list[Effect]:
        """Send a replica something of which no request awaits the end."""
        if node_id in self._unreachable:
            return []
        self.repaired_count += 1
        if node_id == self._id:
            self.replica.serve(operation, arguments, self.digest, now)
            return []
        self._last_id += 1
        return [SendPeer(node_id, self._last_id, operation, arguments, now.monotonic_s + self.settings.request_timeout)]

    # --- writes -------------------------------------------------------------------------------------

    def _keepers(self, owners: tuple[NodeId, ...], slot: int) -> tuple[NodeId, ...]:
        """Return live members beside the owners and this node, beginning somewhere else for each slot."""
        others = [node_id for node_id in self._others if node_id not in owners]
        start = slot % len(others) if others else 0
        return tuple(others[start:] + others[:start])

    def _send_write(self, running: _Running, machine: QuorumWrite, now: Instant) -> list[Effect]:
        request, change = running.request, running.change
        version = self._stamp(running, machine.owners, now)
        while True:
            if change is not None:
                record = pack_record(
                    version,
                    change.value or b"",
                    expires_unix_ms=change.expires_unix_ms,
                    content_type=change.content_type,
                    tombstone=change.value is None,
                )
            else:
                assert type(request) is WriteRequest
                record = self._record(request, version, now)
            running.record = record
            targets = machine.begin(version)
            running.has_own_turn = False
            effects = self._write_or_wait(running, machine, now) if self._id in targets else []
            overtaken_by = machine.overtaken()
            if overtaken_by is None:
                break
            self.clock.observe(overtaken_by, now.unix_ms)
            version = self.clock.stamp(now.unix_ms)
        if machine.is_refused or machine.is_conflict:
            return []
        unreachable = self._unreachable
        arguments = (request.key, record)
        for node_id in targets:
            if node_id == self._id:
                continue
            if node_id in unreachable:
                keeper = machine.on_failure(node_id, f"{node_id} cannot be reached", uncertain=False)
                effects += self._ask_to_keep(running, keeper, node_id, now)
            else:
                effects.append(self._call(running, node_id, Operation.WRITE, arguments, now))
        return effects

    def _stamp(self, running: _Running, owners: tuple[NodeId, ...], now: Instant) -> Version:
        """Return a version above what stands here."""
        unix_ms = self._settled_unix_ms(now, is_alone=len(owners) == 1)
        if self._id in owners:
            here, _ = self.store.standing(running.slot, running.request.key, now.unix_ms)
            if here is not None:
                self.clock.observe(record_version(here), now.unix_ms)
        return self.clock.stamp(unix_ms)

    def _settled_unix_ms(self, now: Instant, *, is_alone: bool) -> int:
        """Return the time to stamp with, and forget stamps that are far ahead of it: others refused them."""
        unix_ms = self.skew.steady_unix_ms(now) if is_alone else now.unix_ms
        if not is_alone or unix_ms != now.unix_ms:
            self.clock.settle(unix_ms)
        return unix_ms

    def _write_or_wait(self, running: _Running, machine: QuorumWrite, now: Instant) -> list[Effect]:
        """Write here; or, unless this node's clock is known to be right, wait until somebody else has taken the stamp.

        Else a node whose clock is far ahead would keep what all others refuse, and nothing could overwrite it.
        """
        if self.skew.is_trusted(now) or len(machine.owners) == 1:
            return self._write_here(running, machine, now)
        if not record_is_tombstone(running.record) and self.store.is_too_large(running.request.key, running.record):
            machine.refuse(Failure.TOO_LARGE, "the item is larger than the memory bound")
            return []
        running.has_own_turn = True
        return []

    def _write_here(self, running: _Running, machine: QuorumWrite, now: Instant) -> list[Effect]:
        was_waiting, running.has_own_turn = running.has_own_turn, False
        is_lost = was_waiting and self._id not in self.ring.owners(running.slot)  # To another ring, meanwhile.
        if is_lost or now.monotonic_s >= self.confirmed_until_s:
            keeper = machine.on_failure(self._id, "this node is not sure to own the key", uncertain=False)
            return self._ask_to_keep(running, keeper, self._id, now)
        applied = self.replica.write(running.slot, running.request.key, running.record, now)
        if applied.too_large:
            machine.refuse(Failure.TOO_LARGE, "the item is larger than the memory bound")
        else:
            machine.on_reply(self._id, applied=applied.applied, existed=applied.existed, newest=applied.newest)
        return []

    def _ask_to_keep(self, running: _Running, keeper: NodeId, owner: NodeId, now: Instant) -> list[Effect]:
        if not keeper:
            return []
        return [self._call(running, keeper, Operation.KEEP, (owner, running.request.key, running.record), now)]

    def _hint(self, running: _Running, owners: list[NodeId], now: Instant) -> None:
        """Keep what was written for owners that missed it."""
        for node_id in owners:
            if node_id != self._id:
                self.hints.keep(node_id, running.request.key, running.record, running.deadline_s)
                self.due_s = min(self.due_s, self.hints.deadline())
            elif self._id in self.ring.owners(running.slot):  # It was not sure of that at its turn.
                self.replica.write(running.slot, running.request.key, running.record, now)

    # --- updates ------------------------------------------------------------------------------------

    def _first_of(self, owners: tuple[NodeId, ...]) -> NodeId:
        """Return the owner that makes the updates of a key."""
        return next((owner for owner in owners if owner not in self._unreachable), owners[0])

    def _launch_update(
        self, running: _Running, request: UpdateRequest, owners: tuple[NodeId, ...], now: Instant
    ) -> list[Effect]:
        first = self._first_of(owners)
        if first != self._id:
            self._lines.leave(request.key, running.request_id)
            running.machine = Forwarded()
            left_ms = max(1, int((running.deadline_s - now.monotonic_s) * 1000))
            return [self._call(running, first, Operation.UPDATE, encode_update(request, left_ms), now)]
        if not self._lines.join(request.key, running.request_id):
            detail = f"{UPDATES_IN_LINE_MAX} updates of this key wait for each other"
            return self._end(running, Outcome(Failure.OVERLOADED, detail, answered=0, asked=0), now)
        if not self._lines.is_first(request.key, running.request_id):
            running.parked = "line"
            return []
        return self._read_for_update(running, owners, now)

    def _read_for_update(self, running: _Running, owners: tuple[NodeId, ...], now: Instant) -> list[Effect]:
        need = self._need(self.settings.read_quorum, owners)
        if need > len(owners):
            detail = f"{need} replicas are to be read, the cluster keeps {len(owners)} now"
            return self._end(running, Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0), now)
        preferred = self._preferred(owners, need, now)
        if need > len(preferred):
            detail = f"{len(preferred)} of the key's {len(owners)} replicas can be reached, {need} are to be read"
            return self._end(running, Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0), now)
        running.rounds += 1
        running.change = None
        running.machine = QuorumRead(preferred, need)
        return self._advance(running, now)

    def _go_on_with_update(
        self, running: _Running, request: UpdateRequest, outcome: Outcome, now: Instant
    ) -> list[Effect] | None:
        """A round of an update is over: write after reading, read anew when another write came in between.

        None, where it has ended.
        """
        if type(running.machine) is QuorumRead and outcome.failure is None:
            self._release_calls(running)
            return self._decide_update(running, outcome, now)
        is_free = not request.conditions and running.rounds < UPDATE_ROUNDS_MAX
        if outcome.failure is Failure.CONFLICT and type(running.machine) is QuorumWrite and is_free:
            self._release_calls(running)
            return self._read_for_update(running, self.ring.owners(running.slot), now)
        if outcome.failure is None and request.kind == "increment" and running.record:
            outcome.record = running.record
        return None

    def _decide_update(self, running: _Running, read: Outcome, now: Instant) -> list[Effect]:
        """An update has read what stands: write, or end."""
        request, owners = running.request, self.ring.owners(running.slot)
        assert type(request) is UpdateRequest
        unix_ms = self.clock.now_unix_ms(now.unix_ms)
        here, _ = self.store.standing(running.slot, request.key, unix_ms)
        known = record_version(read.record) if read.record is not None else b""
        if here is not None and record_version(here) > known and running.rounds < UPDATE_ROUNDS_MAX:
            return self._read_for_update(running, owners, now)
        standing = read.record if read.record is not None and not record_is_tombstone(read.record) else None
        decided = decide(request, standing, unix_ms)
        if type(decided) is Outcome:
            decided.answered, decided.asked = read.answered, read.asked
            return self._end(running, decided, now)
        assert type(decided) is Change
        need = self._need(request.quorum or self.settings.write_quorum, owners)
        if need > len(owners) or not self._lines.has(request.key, running.request_id):
            return self._end(running, Outcome(Failure.UNAVAILABLE, "the owners changed", answered=0, asked=0), now)
        running.change = decided
        machine = running.machine = QuorumWrite(owners, need, is_conditional=True)
        machine.existed = standing is not None
        return self._send_write(running, machine, now) + self._advance(running, now)

    def _serve_lines(self, now: Instant) -> list[Effect]:
        """Begin the updates that waited for one that has ended."""
        effects: list[Effect] = []
        while (request_id := self._lines.next_freed()) is not None:
            running = self._requests[request_id]
            if running.parked == "line":
                effects += self._start(running, now)
        return effects

    # --- calls --------------------------------------------------------------------------------------

    def _call(
        self, running: _Running, node_id: NodeId, operation: Operation, arguments: tuple[Any, ...], now: Instant
    ) -> SendPeer:
        self._last_id += 1
        self._calls[self._last_id] = running
        running.call_ids[self._last_id] = node_id
        running.asked_s = now.monotonic_s
        return SendPeer(node_id, self._last_id, operation, arguments, running.deadline_s)

    def _grouped(self, effects: list[Effect], now: Instant) -> list[Effect]:
        """Put the calls to one peer into one frame, or few, of bounded size."""
        grouped, frames = self._frames.group(effects, now)
        for frame in frames:
            self._last_id += 1
            grouped.append(self._frames.send(frame, self._last_id))
        return grouped

    # --- replies ------------------------------------------------------------------------------------

    def replied(self, call_id: int, status: int, payload: tuple[Any, ...], now: Instant) -> list[Effect]:
        """A peer answered a call. Late and unknown ones are nothing."""
        running = self._calls.pop(call_id, None)
        if running is None:
            frame = self._frames.take(call_id)
            return self._take_frame(frame, status, payload, now) if frame is not None else []
        # A read that has its answer was asked of somebody else since: how long the first took is not known.
        if type(running.machine) is QuorumWrite or (type(running.machine) is QuorumRead and not running.is_answered):
            self.latencies.answered(running.call_ids[call_id], now.monotonic_s - running.asked_s)
        return self._take_reply(running, call_id, status, payload, now)

    def _take_frame(self, frame: Frame, status: int, payload: tuple[Any, ...], now: Instant) -> list[Effect]:
        """A peer answered several calls at once."""
        self.latencies.answered(frame.node_id, now.monotonic_s - frame.asked_s)
        effects: list[Effect] = []
        for call, (answer, content) in frame.answers(status, payload):
            if answer == Status.ALONE:
                effects.append(call)
                continue
            running = self._calls.pop(call.call_id, None)
            if running is not None:
                effects += self._take_reply(running, call.call_id, answer, content, now)
        return effects

    def _take_reply(
        self, running: _Running, call_id: int, status: int, payload: tuple[Any, ...], now: Instant
    ) -> list[Effect]:
        node_id = running.call_ids.pop(call_id)
        if running.is_answered:
            return self._take_late(running, node_id, status, payload, now)
        machine = running.machine
        if status != _OK and status == Status.NOT_OWNER and not running.restarted:
            self.replica.view_doubted = True
            if type(machine) is QuorumWrite and not machine.is_keeping(node_id):
                machine.on_failure(node_id, f"{node_id} does not own the key", uncertain=False)
            return self._park(running, now)
        if status != _OK and status == Status.UNCONFIRMED:
            running.was_doubted = True
        if type(machine) is QuorumRead:
            self._take_read_reply(machine, node_id, status, payload, now)
            running.was_doubted = running.was_doubted or machine.has_unlevel
            effects = self._advance(running, now)
        elif type(machine) is QuorumWrite:
            effects = self._take_write_reply(running, machine, node_id, (status, payload), now)
            effects += self._advance(running, now)
        else:
            assert type(machine) is Forwarded
            machine.end = decode_outcome(payload) if status == Status.OK else None
            if machine.end is None:
                is_open = status == Status.OK
                failure = Failure.UNKNOWN if is_open else _FAILURES.get(status, Failure.UNAVAILABLE)
                machine.end = Outcome(failure, f"{node_id} answered {_status_name(status)}", answered=0)
            effects = self._advance(running, now)
        return effects + self._serve_lines(now) if self._lines.is_any_freed else effects

    def _take_read_reply(
        self, machine: QuorumRead, node_id: NodeId, status: int, payload: tuple[Any, ...], now: Instant
    ) -> None:
        if status == _OK:
            if machine.is_repairing(node_id):
                machine.on_repaired(node_id)
                return
            if _is_read(payload):
                found, is_level, mark = payload
                if found and not self.clock.observe(found[:VERSION_BYTES], now.unix_ms):
                    machine.on_failure(node_id, f"{node_id} has a stamp from far ahead")
                    return
                if found is None or record_is_valid(found):
                    machine.on_record(node_id, found, mark, is_level=is_level)
                    return
                if len(found) <= VERSION_BYTES:
                    machine.on_version(node_id, found, mark, is_level=is_level)
                    return
        match payload:
            case (None,) if status == Status.UNCONFIRMED:
                machine.on_unconfirmed(node_id, None)
            case (bytes(record),) if status == Status.UNCONFIRMED and record_is_valid(record):
                machine.on_unconfirmed(node_id, record)
            case _:
                machine.on_failure(node_id, f"{node_id} answered {_status_name(status)}")

    def _take_write_reply(
        self, running: _Running, machine: QuorumWrite, node_id: NodeId, answer: Answer, now: Instant
    ) -> list[Effect]:
        status, payload = answer
        if machine.is_keeping(node_id):
            if status == Status.OK:
                machine.on_kept(node_id)
                return self._write_here(running, machine, now) if running.has_own_turn else []
            owner = machine.is_keeping(node_id)
            keeper = machine.on_keep_failed(node_id, f"{node_id} answered {_status_name(status)}")
            return self._ask_to_keep(running, keeper, owner, now)
        if status == _OK and _is_acknowledgement(payload):
            applied, existed, newest, unix_ms = payload
            self.skew.heard(node_id, unix_ms, now)
            if applied or self.clock.observe(newest, now.unix_ms):
                machine.on_reply(node_id, applied=applied, existed=existed, newest=newest)
                return self._write_here(running, machine, now) if running.has_own_turn else []
            status = Status.CLOCK_SKEW  # What stands there is from a clock far ahead.
        elif status == Status.CLOCK_SKEW and len(payload) == 1 and type(payload[0]) is int:
            self.skew.heard(node_id, payload[0], now)
        keeper = machine.on_failure(
            node_id,
            f"{node_id} answered {_status_name(status)}",
            uncertain=status == Status.OK,
            failure=_FAILURES.get(status, Failure.UNAVAILABLE),
            is_missed=status not in _FINAL,
        )
        return self._ask_to_keep(running, keeper, node_id, now)

    def _take_late(
        self, running: _Running, node_id: NodeId, status: int, payload: tuple[Any, ...], now: Instant
    ) -> list[Effect]:
        """An owner answered after the client had its answer: mend what it lacks."""
        machine = running.machine
        effects: list[Effect] = []
        if type(machine) is QuorumWrite:
            self._take_write_reply(running, machine, node_id, (status, payload), now)
            if machine.has_missed:
                self._hint(running, machine.missed(), now)
        elif type(machine) is QuorumRead and status == _OK and _is_read(payload):
            found, _, mark = payload
            if machine.best is not None and machine.is_late_behind((found or b"")[:VERSION_BYTES], mark):
                effects = self._tell(node_id, Operation.REPAIR, (running.request.key, machine.best), now)
        if not running.call_ids:
            self._finish(running)
        return effects

    def failed(self, call_id: int, reason: str, now: Instant, *, sent: bool) -> list[Effect]:
        """A call got no answer. `sent`: the peer may have received it."""
        running = self._calls.pop(call_id, None)
        if running is None:
            frame = self._frames.take(call_id)
            effects: list[Effect] = []
            for call in frame.calls if frame is not None else ():
                effects += self.failed(call.call_id, reason, now, sent=sent)
            return effects
        node_id = running.call_ids.pop(call_id)
        machine = running.machine
        effects = []
        if type(machine) is QuorumRead:
            machine.on_failure(node_id, f"{node_id}: {reason}")
        elif type(machine) is QuorumWrite:
            if owner := machine.is_keeping(node_id):
                keeper = machine.on_keep_failed(node_id, f"{node_id}: {reason}")
            else:
                owner = node_id
                keeper = machine.on_failure(node_id, f"{node_id}: {reason}", uncertain=sent)
            if not running.is_answered:
                effects = self._ask_to_keep(running, keeper, owner, now)
        else:
            assert type(machine) is Forwarded
            failure = Failure.UNKNOWN if sent else Failure.UNAVAILABLE
            machine.end = Outcome(failure, f"{node_id}: {reason}", answered=0)
        if running.is_answered:
            if type(machine) is QuorumWrite:
                self._hint(running, machine.missed(), now)
            if not running.call_ids:
                self._finish(running)
            return []
        effects += self._advance(running, now)
        return effects + self._serve_lines(now) if self._lines.is_any_freed else effects

    # --- going on, and ending -----------------------------------------------------------------------

    def _advance(self, running: _Running, now: Instant) -> list[Effect]:
        """Go on after a reply: ask another owner, repair, stamp again, decide, answer the client, or wait."""
        machine = running.machine
        effects: list[Effect] = []
        if type(machine) is QuorumRead:
            effects = self._drive_read(running, machine, now)
        elif type(machine) is QuorumWrite:
            if running.has_own_turn and not machine.waits_for_others(self._id):
                running.has_own_turn = False
                machine.skip(self._id)
            overtaken_by = machine.overtaken()
            if overtaken_by is not None:
                self.clock.observe(overtaken_by, now.unix_ms)
                self._release_calls(running)
                effects = self._send_write(running, machine, now)
        assert machine is not None
        outcome = machine.outcome()
        if outcome is None:
            return effects
        if type(machine) is QuorumRead:
            effects += self._mend(running, machine, now)
        request = running.request
        more = self._go_on_with_update(running, request, outcome, now) if type(request) is UpdateRequest else None
        if more is not None:
            return effects + more
        is_doubtful = running.was_doubted and (outcome.failure is not None or outcome.is_unconfirmed)
        if is_doubtful and running.doubted_count < DOUBTED_MAX:  # Who is not sure is so again in a moment.
            running.doubted_count += 1
            return effects + self._park(running, now)
        return effects + self._end(running, outcome, now)

    def _end(self, running: _Running, outcome: Outcome, now: Instant) -> list[Effect]:
        """Answer the client. A write whose other owners may yet answer stays as a tail."""
        machine = running.machine
        if outcome.record is not None and record_is_tombstone(outcome.record):
            outcome.record = None
        is_room = outcome.failure is None and self._is_room_for_tail(running)
        if type(machine) is QuorumWrite:
            if outcome.failure is None:
                self._hint(running, machine.missed(), now)
            is_partial = outcome.failure is Failure.UNKNOWN and machine.answered > 0
            if is_partial or (outcome.failure is None and not is_room):
                self._hint(running, machine.give_up(), now)
                self._release_calls(running)
        if type(running.request) is UpdateRequest:
            self._lines.leave(running.request.key, running.request_id)
        if running.call_ids and is_room:
            running.is_answered = True
            self._tails += 1
            self._tail_bytes += len(running.record)
        else:
            self._finish(running)
        return [CompleteRequest(running.request_id, outcome)]

    def _is_room_for_tail(self, running: _Running) -> bool:
        return self._tails < TAILS_MAX and self._tail_bytes + len(running.record) <= TAIL_BYTES_MAX

    def _finish(self, running: _Running) -> None:
        """Take a request out of the table."""
        if running.is_answered:
            self._tails -= 1
            self._tail_bytes -= len(running.record)
        elif type(running.request) is UpdateRequest:
            self._lines.leave(running.request.key, running.request_id)
        self._release_calls(running)
        del self._requests[running.request_id]

    def _release_calls(self, running: _Running) -> None:
        for call_id in running.call_ids:
            del self._calls[call_id]
        running.call_ids.clear()

    # --- not owner ----------------------------------------------------------------------------------

    def _park(self, running: _Running, now: Instant) -> list[Effect]:
        """Wait a moment for the ring to change here."""
        self._release_calls(running)
        running.parked = "owner"
        self.due_s = min(self.due_s, now.monotonic_s + NOT_OWNER_PAUSE_S)
        self._parked.append((now.monotonic_s + NOT_OWNER_PAUSE_S, running.request_id))
        return []

    def _restart(self, running: _Running, now: Instant) -> list[Effect]:
        """Start once more, with the owners of now."""
        running.restarted = running.restarted or not running.was_doubted
        return self._start(running, now)

    def _start(self, running: _Running, now: Instant) -> list[Effect]:
        """Start a request that is in the table."""
        earlier = running.machine
        was_applied = running.change is not None or (type(earlier) is QuorumWrite and earlier.may_be_applied)
        running.parked, running.was_doubted = "", False
        request = running.request
        owners = self.ring.owners(running.slot)
        default = self.settings.read_quorum if type(request) is ReadRequest else self.settings.write_quorum
        need = self._need(request.quorum or default, owners)
        outcome = self._refusal(request, owners, need)
        if outcome is None and running.change is not None:  # An update that may have been applied is not made twice.
            outcome = Outcome(Failure.UNAVAILABLE, "the owners changed while it was written", answered=0, asked=0)
        if outcome is None:
            return self._launch(running, owners, need, now)
        if was_applied:
            # Maybe: the first round went to some owner.
            outcome = Outcome(Failure.UNKNOWN, outcome.detail, answered=0, asked=len(owners))
        return self._end(running, outcome, now)

    # --- not sure to be an owner ----------------------------------------------------------------------

    def _wait_for_confirmation(self, running: _Running, now: Instant) -> None:
        self.replica.unconfirmed_count += 1
        running.parked = "confirmation"
        until_s = min(now.monotonic_s + CONFIRMATION_WAIT_S, running.deadline_s)
        self.due_s = min(self.due_s, until_s)
        self._unconfirmed.append((until_s, running.request_id))

    def _unconfirmed_outcome(self, running: _Running, now: Instant) -> Outcome:
        """Answer for a node that cannot make sure: a read of one replica is served and marked, others are refused."""
        request, owners = running.request, self.ring.owners(running.slot)
        if type(request) is ReadRequest and self._id in owners:
            need = self._need(request.quorum or self.settings.read_quorum, owners)
            if need == 1:
                record = self.store.get(running.slot, request.key, self.clock.now_unix_ms(now.unix_ms))
                return Outcome(record=record, is_unconfirmed=True)
        detail = "this node cannot make sure that it still owns the key: neither its lease nor a majority confirms it"
        return Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0)

    # --- time ---------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """Return the monotonic second at which the next request times out, starts again or grows impatient."""
        requests = self._requests
        while self._deadlines and self._deadlines[0][1] not in requests:
            self._deadlines.popleft()
        for heap in (self._deadlines_own, self._impatience):
            while heap and heap[0][1] not in requests:
                heapq.heappop(heap)
        while self._parked and not self._is_parked(self._parked[0][1], "owner"):
            self._parked.popleft()
        while self._unconfirmed and not self._is_parked(self._unconfirmed[0][1], "confirmation"):
            self._unconfirmed.popleft()
        lines = (self._deadlines, self._deadlines_own, self._impatience, self._parked, self._unconfirmed)
        self.due_s = min(line[0][0] if line else inf for line in lines)
        return self.due_s

    def _drop_finished_deadlines(self) -> None:
        """Keep the lines in proportion to the requests in flight: behind a long time-out the finished ones pile up."""
        bound = 2 * len(self._requests) + DEADLINES_SPARE
        requests = self._requests
        if len(self._deadlines) > bound:
            self._deadlines = deque([entry for entry in self._deadlines if entry[1] in requests])
        if len(self._deadlines_own) > bound:
            self._deadlines_own = [entry for entry in self._deadlines_own if entry[1] in requests]
            heapq.heapify(self._deadlines_own)
        if len(self._impatience) > bound:
            self._impatience = [entry for entry in self._impatience if entry[1] in requests]
            heapq.heapify(self._impatience)

    def _is_parked(self, request_id: int, reason: str) -> bool:
        running = self._requests.get(request_id)
        return running is not None and running.parked == reason

    def poll(self, now: Instant) -> list[Effect]:
        """End the requests whose time is over; start parked ones again; ask somebody else where one is slow."""
        self.skew.poll(now)
        if min(self.committed_count, self.settings.replicas) > 1:
            self.clock.settle(now.unix_ms)
        effects: list[Effect] = []
        while self.deadline() <= now.monotonic_s:
            if self._parked and self._parked[0][0] <= now.monotonic_s:
                effects += self._restart(self._requests[self._parked.popleft()[1]], now)
                continue
            if self._unconfirmed and self._unconfirmed[0][0] <= now.monotonic_s:
                running = self._requests[self._unconfirmed.popleft()[1]]
                effects += self._end(running, self._unconfirmed_outcome(running, now), now)
                continue
            if self._impatience and self._impatience[0][0] <= now.monotonic_s:
                effects += self._ask_somebody_else(self._requests[heapq.heappop(self._impatience)[1]], now)
                continue
            line = self._deadlines
            if line and line[0][0] <= now.monotonic_s:
                request_id = line.popleft()[1]
            else:
                request_id = heapq.heappop(self._deadlines_own)[1]
            effects += self._time_out(self._requests[request_id], now)
        return effects + self._serve_lines(now)

    def _ask_somebody_else(self, running: _Running, now: Instant) -> list[Effect]:
        machine = running.machine
        if running.is_answered or running.parked or type(machine) is not QuorumRead or not machine.is_choice_left:
            return []
        if not self.latencies.spend():
            return []
        machine.ask_one_more()
        return self._advance(running, now)

    def _time_out(self, running: _Running, now: Instant) -> list[Effect]:
        machine = running.machine
        if running.is_answered:
            if type(machine) is QuorumWrite:
                self._hint(running, machine.give_up(), now)
            self._finish(running)
            return []
        return self._end(
            running, self._unconfirmed_outcome(running, now) if machine is None else machine.timed_out(), now
        )


_FAILURES: dict[int, Failure] = {
    Status.CLOCK_SKEW: Failure.CLOCK_SKEW,
    Status.TOO_LARGE: Failure.TOO_LARGE,
    Status.OVERLOADED: Failure.OVERLOADED,
}
_FINAL = (Status.TOO_LARGE, Status.BAD_REQUEST)
"""Refusals of a record that stand: it is not to be sent again."""


_OK = int(Status.OK)


def _is_acknowledgement(payload: tuple[Any, ...]) -> bool:
    """Whether a write's payload has its form: (applied, existed, newest, unix_ms). A match statement takes 2 us."""
    if len(payload) != 4:
        return False
    applied, existed, newest, unix_ms = payload
    return type(applied) is bool and type(existed) is bool and type(newest) is bytes and type(unix_ms) is int


def _is_read(payload: tuple[Any, ...]) -> bool:
    """Whether a read's payload has its form: (record or version or None, is_level, mark)."""
    if len(payload) != 3:
        return False
    found, is_level, mark = payload
    return (found is None or type(found) is bytes) and type(is_level) is bool and type(mark) is bytes


def _status_name(status: int) -> str:
    return Status(status).name.lower().replace("_", " ") if status in Status._value2member_map_ else f"status {status}"
