"""Client requests in flight, and requests served for peers.

Any node coordinates: it asks the owners of a key by itself, with no hop through a primary. A read that
this node may answer alone, and a write that it may finish alone, are one synchronous call each: no
machine, no id, no effect list. Everything else is one quorum machine in a bounded table.

Deadlines of the default time-out stand in one deque, since they arrive in order; clients' own time-outs
in a heap. Entries of finished requests are dropped when they reach the front.

*Not sure.* What this node does as an owner waits until its view is confirmed (`zephyr.confirmation`), at most
`CONFIRMATION_WAIT_S`; then a read of one replica is served and marked, and anything else refused.

*Not owner.* A peer whose ring differs and that owns nothing of the slot says so. The request then waits
for the ring to change here, at most `NOT_OWNER_PAUSE_S`, and starts once more with the owners of that
moment. A second *not owner* ends it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Literal

from zephyr.config import KEY_BYTES_MAX, Settings
from zephyr.events import CompleteRequest, Effect, SendPeer
from zephyr.model import ClusterView, Failure, Instant, NodeId, Outcome, ReadRequest, WriteRequest
from zephyr.peer.wire import Operation, Status
from zephyr.replication.quorum import QuorumRead, QuorumWrite
from zephyr.ring.ring import Ring, key_slot
from zephyr.store.record import (
    DEFAULT_CONTENT_TYPE,
    HybridLogicalClock,
    pack_record,
    record_is_tombstone,
    record_is_valid,
    record_version,
)
from zephyr.store.store import Store

REQUESTS_MAX = 10_000
"""Client requests in flight; one more is refused as overload. One a connection, at `connections_max`."""
DEADLINES_SPARE = 1024
"""Deadlines of finished requests that are kept before they are looked for: one look in so many requests."""
CONFIRMATION_WAIT_S = 1.0
"""Longest wait until this node is sure that it still is an owner: a keep-alive or a round of acks is ms away."""
DOUBTED_MAX = 4
"""How often a request is started again because owners were not sure: for `CONFIRMATION_WAIT_S` in all."""
NOT_OWNER_PAUSE_S = 0.25
"""Longest wait for the ring to change here after a peer's *not owner*: a watch event is ms away."""


class Pending:
    """A request that went out to peers: carry out `effects`; a `CompleteRequest` with this id ends it."""

    __slots__ = ("effects", "request_id")

    def __init__(self, request_id: int, effects: list[Effect]) -> None:
        self.request_id = request_id
        self.effects = effects


class _Running:
    """One request in the table."""

    __slots__ = (
        "call_ids",
        "deadline_s",
        "doubted_count",
        "machine",
        "parked",
        "request",
        "request_id",
        "restarted",
        "slot",
        "was_doubted",
    )  # fmt: skip

    def __init__(self, request_id: int, request: ReadRequest | WriteRequest, slot: int, deadline_s: float) -> None:
        self.request_id = request_id
        self.request = request
        self.slot = slot
        self.deadline_s = deadline_s
        self.machine: QuorumRead | QuorumWrite | None = None
        self.call_ids: dict[int, NodeId] = {}
        self.restarted = False
        self.was_doubted = False
        """In this round an owner answered that it cannot make sure that it is one."""
        self.doubted_count = 0
        """Rounds that ended for that."""
        self.parked: Literal["", "owner", "confirmation"] = ""
        """What it waits for before it is started: a ring in which it has owners, or to be sure of this one."""


class Coordinator:
    """The table of requests in flight, and the data plane's typed entry points."""

    def __init__(
        self,
        settings: Settings,
        ring: Ring,
        store: Store,
        clock: HybridLogicalClock,
        is_level: Callable[[int], bool] = lambda _slot: True,
    ) -> None:
        """`is_level`: whether this node holds all that it should of a slot (`zephyr.replication.level`)."""
        self.settings = settings
        self._is_level = is_level
        self.is_all_level = True
        """Whether that holds for all of its slots; kept by the node."""
        self.store = store
        self.clock = clock
        self.ring = ring
        self.digest = b""
        self.view_order = (0, 0)
        """(generation, revision) of the view whose ring is used: orders views for a peer that differs."""
        self.refused_stamp_count = 0
        """Writes of peers refused because their stamp is too far ahead of this node's clock."""
        self.not_owner_count = 0
        """Peers' requests for slots that this node does not own."""
        self.confirmed_until_s = inf
        """Monotonic seconds until which this node may take itself for an owner (`zephyr.confirmation`)."""
        self.unconfirmed_count = 0
        """Requests for this node's slots that it could not be sure to own."""
        self.view_doubted = False
        """A peer's ring differs from this one's: compare with etcd soon. The node resets it."""
        self._id = settings.id
        self._requests: dict[int, _Running] = {}
        self._calls: dict[int, _Running] = {}
        self._last_id = 0
        self._unreachable: dict[NodeId, bool] = {}
        self._suspects: dict[NodeId, bool] = {}
        self._deadlines: deque[tuple[float, int]] = deque()
        self._deadlines_own: list[tuple[float, int]] = []
        self._parked: deque[tuple[float, int]] = deque()
        self._unconfirmed: deque[tuple[float, int]] = deque()

    @property
    def requests_in_flight(self) -> int:
        """Client requests that wait for peers."""
        return len(self._requests)

    @property
    def is_any_parked(self) -> bool:
        """Whether a request waits for a moment, so that `deadline` may have come nearer."""
        return bool(self._parked)

    def check_invariants(self) -> None:
        """Assert what must hold between any two calls; for tests and the simulator."""
        for call_id, running in self._calls.items():
            assert self._requests.get(running.request_id) is running
            assert call_id in running.call_ids
        lines = len(self._deadlines), len(self._deadlines_own)
        assert max(lines) <= 2 * REQUESTS_MAX + DEADLINES_SPARE, "deadlines of finished requests pile up"
        for running in self._requests.values():
            assert running.parked or running.call_ids, "a request in flight waits for something"

    # --- what the node reports ----------------------------------------------------------------------

    def ring_changed(self, ring: Ring, view: ClusterView, now: Instant) -> list[Effect]:
        """Use a new ring from now on; requests that waited for one start again."""
        self.ring = ring
        self.digest = view.digest
        self.view_order = (view.generation, view.revision)
        parked, self._parked = self._parked, deque()
        effects: list[Effect] = []
        for _, request_id in parked:
            running = self._requests.get(request_id)
            if running is not None and running.parked == "owner":
                effects += self._restart(running, now)
        return effects

    def confirm(self, until_s: float, now: Instant) -> list[Effect]:
        """Take this node for an owner until then; requests that waited to be sure of it begin."""
        self.confirmed_until_s = until_s
        if not self._unconfirmed or now.monotonic_s >= until_s:
            return []
        waiting, self._unconfirmed = self._unconfirmed, deque()
        effects: list[Effect] = []
        for _, request_id in waiting:
            running = self._requests.get(request_id)
            if running is not None and running.parked == "confirmation":
                effects += self._start(running, now)
        return effects

    def route(self, view: ClusterView) -> None:
        """Take from a view whom to send to: not at all, or last for reads. Itself, a leaving node always reaches."""
        others = [row for row in view.members if row.member.id != self._id]
        self._unreachable = {row.member.id: True for row in others if not row.routable}
        self._suspects = {row.member.id: True for row in view.members if row.gossip == "suspect"}

    # --- clients ------------------------------------------------------------------------------------

    def begin_read(self, request: ReadRequest, now: Instant) -> Outcome | Pending:
        """Read a key: at once where this node may answer alone, else through the owners."""
        slot = key_slot(request.key)
        owners = self.ring.owners(slot)
        need = self.settings.quorum(request.quorum or self.settings.read_quorum, len(owners))
        is_sure = self.is_all_level and now.monotonic_s < self.confirmed_until_s
        if need == 1 and is_sure and self._id in owners:
            return Outcome(record=self.store.get(slot, request.key, self.clock.now_unix_ms(now.unix_ms)))
        return self._begin(request, slot, owners, need, now)

    def begin_write(self, request: WriteRequest, now: Instant) -> Outcome | Pending:
        """Write or delete a key: at once where this node is its only owner, else through the owners."""
        slot = key_slot(request.key)
        owners = self.ring.owners(slot)
        need = self.settings.quorum(request.quorum or self.settings.write_quorum, len(owners))
        if len(owners) == 1 and need == 1 and owners[0] == self._id and now.monotonic_s < self.confirmed_until_s:
            return self._write_alone(request, slot, now)
        return self._begin(request, slot, owners, need, now)

    def _write_alone(self, request: WriteRequest, slot: int, now: Instant) -> Outcome:
        version = self.clock.stamp(now.unix_ms)
        record = self._record(request, version, now)
        applied = self.store.apply(slot, request.key, record, self.clock.now_unix_ms(now.unix_ms))
        if not applied.applied:
            if applied.too_large:
                return Outcome(Failure.TOO_LARGE, "the item is larger than the memory bound")
            self.clock.observe(applied.newest, now.unix_ms)
            version = self.clock.stamp(now.unix_ms)
            record = self._record(request, version, now)
            applied = self.store.apply(slot, request.key, record, self.clock.now_unix_ms(now.unix_ms))
        if not applied.applied:
            return Outcome(Failure.CLOCK_SKEW, "a newer version from a clock far ahead stands in the way")
        return Outcome(version=version, existed=applied.existed)

    def _record(self, request: WriteRequest, version: bytes, now: Instant) -> bytes:
        if request.value is None:
            return pack_record(version, b"", tombstone=True)
        expires_unix_ms = 0
        if request.ttl_ms is not None:
            expires_unix_ms = self.clock.now_unix_ms(now.unix_ms) + request.ttl_ms
        content_type = request.content_type or DEFAULT_CONTENT_TYPE
        return pack_record(version, request.value, expires_unix_ms=expires_unix_ms, content_type=content_type)

    def _begin(
        self, request: ReadRequest | WriteRequest, slot: int, owners: tuple[NodeId, ...], need: int, now: Instant
    ) -> Outcome | Pending:
        if refusal := self._refusal(owners, need):
            return refusal
        timeout_s = request.timeout_s or self.settings.request_timeout
        self._last_id += 1
        running = _Running(self._last_id, request, slot, now.monotonic_s + timeout_s)
        if now.monotonic_s >= self.confirmed_until_s and self._id in owners:
            self._wait_for_confirmation(running, now)
            return Pending(running.request_id, [])
        effects = self._launch(running, owners, need, now)
        outcome = self._outcome(running)
        if outcome is not None:
            # Decided by this replica's own answer; what is to be sent to the others is sent all the same.
            self._release_calls(running)
            return (
                Pending(running.request_id, [*effects, CompleteRequest(running.request_id, outcome)])
                if effects
                else outcome
            )
        self._enter(running)
        return Pending(running.request_id, effects)

    def _enter(self, running: _Running) -> None:
        """Put a request into the table."""
        self._requests[running.request_id] = running
        if running.request.timeout_s is None:
            self._deadlines.append((running.deadline_s, running.request_id))
        else:
            heapq.heappush(self._deadlines_own, (running.deadline_s, running.request_id))
        self._drop_finished_deadlines()

    def _refusal(self, owners: tuple[NodeId, ...], need: int) -> Outcome | None:
        """Refuse what cannot succeed before anything is sent."""
        if not owners:
            return Outcome(Failure.UNAVAILABLE, "this node knows no ring yet", answered=0, asked=0)
        if need > len(owners):
            detail = f"{need} replicas are asked for, the cluster keeps {len(owners)} now"
            return Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0)
        reachable = sum(owner not in self._unreachable for owner in owners) if self._unreachable else len(owners)
        if reachable < need:
            detail = f"{reachable} of the key's {len(owners)} replicas can be reached, {need} are needed"
            return Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0)
        if len(self._requests) >= REQUESTS_MAX:
            return Outcome(Failure.OVERLOADED, f"{REQUESTS_MAX} requests wait for peers", answered=0, asked=0)
        return None

    def _launch(self, running: _Running, owners: tuple[NodeId, ...], need: int, now: Instant) -> list[Effect]:
        if type(running.request) is ReadRequest:
            running.machine = QuorumRead(self._preferred(owners), need)
            return self._ask(running, running.machine, now)
        earlier = running.machine
        assert not isinstance(earlier, QuorumRead)
        running.machine = QuorumWrite(owners, need, earlier)
        return self._send_write(running, running.machine, now)

    def _preferred(self, owners: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """Order those owners for a read that can be reached: this node, then the others, suspects last."""
        unreachable, suspects = self._unreachable, self._suspects
        if owners[0] == self._id and not unreachable and not suspects:
            return owners
        reachable = [owner for owner in owners if owner not in unreachable]
        return tuple(sorted(reachable, key=lambda owner: (owner != self._id, owner in suspects)))

    def _ask(self, running: _Running, machine: QuorumRead, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        while targets := machine.targets():
            for node_id in targets:
                if node_id == self._id and now.monotonic_s >= self.confirmed_until_s:
                    machine.on_failure("this node is not sure to own the key")
                elif node_id == self._id:
                    unix_ms = self.clock.now_unix_ms(now.unix_ms)
                    record = self.store.peek(running.slot, running.request.key, unix_ms)
                    machine.on_record(node_id, record, is_level=self._is_level(running.slot))
                else:
                    effects.append(self._call(running, node_id, Operation.READ, (running.request.key,)))
        return effects

    def _send_write(self, running: _Running, machine: QuorumWrite, now: Instant) -> list[Effect]:
        request = running.request
        assert type(request) is WriteRequest
        version = self.clock.stamp(now.unix_ms)
        while True:
            record = self._record(request, version, now)
            targets = machine.begin(version)
            if self._id in targets:
                self._write_here(running, machine, record, now)
            overtaken_by = machine.overtaken()
            if overtaken_by is None:
                break
            self.clock.observe(overtaken_by, now.unix_ms)
            version = self.clock.stamp(now.unix_ms)
        outcome = machine.outcome()
        if outcome is not None and outcome.failure is Failure.TOO_LARGE:
            return []
        effects: list[Effect] = []
        for node_id in targets:
            if node_id in self._unreachable:
                machine.on_failure(f"{node_id} cannot be reached", uncertain=False)
            elif node_id != self._id:
                effects.append(self._call(running, node_id, Operation.WRITE, (request.key, record)))
        return effects

    def _write_here(self, running: _Running, machine: QuorumWrite, record: bytes, now: Instant) -> None:
        if now.monotonic_s >= self.confirmed_until_s:
            machine.on_failure("this node is not sure to own the key", uncertain=False)
            return
        unix_ms = self.clock.now_unix_ms(now.unix_ms)
        applied = self.store.apply(running.slot, running.request.key, record, unix_ms)
        if applied.too_large:
            machine.refuse(Failure.TOO_LARGE, "the item is larger than the memory bound")
        else:
            machine.on_reply(self._id, applied=applied.applied, existed=applied.existed, newest=applied.newest)

    def _call(self, running: _Running, node_id: NodeId, operation: Operation, arguments: tuple[Any, ...]) -> SendPeer:
        self._last_id += 1
        self._calls[self._last_id] = running
        running.call_ids[self._last_id] = node_id
        return SendPeer(node_id, self._last_id, operation, arguments, running.deadline_s)

    # --- replies ------------------------------------------------------------------------------------

    def replied(self, call_id: int, status: int, payload: tuple[Any, ...], now: Instant) -> list[Effect]:
        """A peer answered a call. Late and unknown ones are nothing."""
        running = self._calls.pop(call_id, None)
        if running is None:
            return []
        node_id = running.call_ids.pop(call_id)
        if status == Status.NOT_OWNER and not running.restarted:
            self.view_doubted = True
            return self._park(running, now)
        running.was_doubted = running.was_doubted or status == Status.UNCONFIRMED
        if type(running.machine) is QuorumRead:
            self._take_read_reply(running.machine, node_id, status, payload, now)
        else:
            assert type(running.machine) is QuorumWrite
            _take_write_reply(running.machine, node_id, status, payload)
        return self._advance(running, now)

    def _take_read_reply(
        self, machine: QuorumRead, node_id: NodeId, status: int, payload: tuple[Any, ...], now: Instant
    ) -> None:
        match payload:
            case (None, bool(is_level)) if status == Status.OK:
                machine.on_record(node_id, None, is_level=is_level)
            case (bytes(record), bool(is_level)) if status == Status.OK and record_is_valid(record):
                self.clock.observe(record_version(record), now.unix_ms)
                machine.on_record(node_id, record, is_level=is_level)
            case (None,) if status == Status.UNCONFIRMED:
                machine.on_unconfirmed(node_id, None)
            case (bytes(record),) if status == Status.UNCONFIRMED and record_is_valid(record):
                machine.on_unconfirmed(node_id, record)
            case _:
                machine.on_failure(f"{node_id} answered {_status_name(status)}")

    def failed(self, call_id: int, reason: str, now: Instant, *, sent: bool) -> list[Effect]:
        """A call got no answer. `sent`: the peer may have received it."""
        running = self._calls.pop(call_id, None)
        if running is None:
            return []
        node_id = running.call_ids.pop(call_id)
        machine = running.machine
        if type(machine) is QuorumRead:
            machine.on_failure(f"{node_id}: {reason}")
        else:
            assert type(machine) is QuorumWrite
            machine.on_failure(f"{node_id}: {reason}", uncertain=sent)
        return self._advance(running, now)

    def _advance(self, running: _Running, now: Instant) -> list[Effect]:
        """Go on after a reply: answer the client, ask another owner, stamp again, or wait."""
        machine = running.machine
        effects: list[Effect] = []
        if type(machine) is QuorumRead:
            effects += self._ask(running, machine, now)
        elif type(machine) is QuorumWrite:
            overtaken_by = machine.overtaken()
            if overtaken_by is not None:
                self.clock.observe(overtaken_by, now.unix_ms)
                self._release_calls(running)
                effects += self._send_write(running, machine, now)
        outcome = self._outcome(running)
        if outcome is None:
            return effects
        is_doubtful = running.was_doubted and (outcome.failure is not None or outcome.is_unconfirmed)
        if is_doubtful and running.doubted_count < DOUBTED_MAX:  # Who is not sure is so again in a moment.
            running.doubted_count += 1
            return effects + self._park(running, now)
        effects.append(CompleteRequest(self._finish(running), outcome))
        return effects

    def _outcome(self, running: _Running) -> Outcome | None:
        assert running.machine is not None
        outcome = running.machine.outcome()
        if outcome is not None and outcome.record is not None and record_is_tombstone(outcome.record):
            outcome.record = None
        return outcome

    def _finish(self, running: _Running) -> int:
        self._release_calls(running)
        del self._requests[running.request_id]
        return running.request_id

    def _release_calls(self, running: _Running) -> None:
        for call_id in running.call_ids:
            del self._calls[call_id]
        running.call_ids.clear()

    # --- not owner ----------------------------------------------------------------------------------

    def _park(self, running: _Running, now: Instant) -> list[Effect]:
        """Wait a moment for the ring to change here."""
        self._release_calls(running)
        running.parked = "owner"
        self._parked.append((now.monotonic_s + NOT_OWNER_PAUSE_S, running.request_id))
        return []

    def _restart(self, running: _Running, now: Instant) -> list[Effect]:
        """Start once more, with the owners of now."""
        running.restarted = running.restarted or not running.was_doubted
        return self._start(running, now)

    def _start(self, running: _Running, now: Instant) -> list[Effect]:
        """Start a request that is in the table."""
        is_again = running.machine is not None
        running.parked, running.was_doubted = "", False
        request = running.request
        owners = self.ring.owners(running.slot)
        is_read = type(request) is ReadRequest
        default = self.settings.read_quorum if is_read else self.settings.write_quorum
        need = self.settings.quorum(request.quorum or default, len(owners))
        outcome = self._refusal(owners, need)
        effects: list[Effect] = []
        if outcome is None:
            effects = self._launch(running, owners, need, now)
            outcome = self._outcome(running)
        if outcome is None:
            return effects
        if is_again and not is_read and outcome.failure is Failure.UNAVAILABLE:
            # The first round may have been applied by some owner.
            outcome = Outcome(Failure.UNKNOWN, outcome.detail, answered=0, asked=len(owners))
        effects.append(CompleteRequest(self._finish(running), outcome))
        return effects

    # --- not sure to be an owner ----------------------------------------------------------------------

    def _wait_for_confirmation(self, running: _Running, now: Instant) -> None:
        self.unconfirmed_count += 1
        self._enter(running)
        running.parked = "confirmation"
        self._unconfirmed.append((min(now.monotonic_s + CONFIRMATION_WAIT_S, running.deadline_s), running.request_id))

    def _unconfirmed_outcome(self, running: _Running, now: Instant) -> Outcome:
        """Answer for a node that cannot make sure: a read of one replica is served and marked, others are refused."""
        request, owners = running.request, self.ring.owners(running.slot)
        if type(request) is ReadRequest and self._id in owners:
            need = self.settings.quorum(request.quorum or self.settings.read_quorum, len(owners))
            if need == 1:
                record = self.store.get(running.slot, request.key, self.clock.now_unix_ms(now.unix_ms))
                return Outcome(record=record, is_unconfirmed=True)
        detail = "this node cannot make sure that it still owns the key: neither its lease nor a majority confirms it"
        return Outcome(Failure.UNAVAILABLE, detail, answered=0, asked=0)

    # --- time ---------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """Return the monotonic second at which the next request times out or starts again."""
        requests = self._requests
        while self._deadlines and self._deadlines[0][1] not in requests:
            self._deadlines.popleft()
        while self._deadlines_own and self._deadlines_own[0][1] not in requests:
            heapq.heappop(self._deadlines_own)
        while self._parked and not self._is_parked(self._parked[0][1], "owner"):
            self._parked.popleft()
        while self._unconfirmed and not self._is_parked(self._unconfirmed[0][1], "confirmation"):
            self._unconfirmed.popleft()
        lines = (self._deadlines, self._deadlines_own, self._parked, self._unconfirmed)
        return min(line[0][0] if line else inf for line in lines)

    def _drop_finished_deadlines(self) -> None:
        """Keep the lines in proportion to the requests in flight: behind a long time-out the finished ones pile up."""
        bound = 2 * len(self._requests) + DEADLINES_SPARE
        if len(self._deadlines) > bound:
            self._deadlines = deque([entry for entry in self._deadlines if entry[1] in self._requests])
        if len(self._deadlines_own) > bound:
            self._deadlines_own = [entry for entry in self._deadlines_own if entry[1] in self._requests]
            heapq.heapify(self._deadlines_own)

    def _is_parked(self, request_id: int, reason: str) -> bool:
        running = self._requests.get(request_id)
        return running is not None and running.parked == reason

    def poll(self, now: Instant) -> list[Effect]:
        """End the requests whose time is over; start parked ones again."""
        effects: list[Effect] = []
        while self.deadline() <= now.monotonic_s:
            if self._parked and self._parked[0][0] <= now.monotonic_s:
                effects += self._restart(self._requests[self._parked.popleft()[1]], now)
                continue
            if self._unconfirmed and self._unconfirmed[0][0] <= now.monotonic_s:
                running = self._requests[self._unconfirmed.popleft()[1]]
                outcome = self._unconfirmed_outcome(running, now)
                effects.append(CompleteRequest(self._finish(running), outcome))
                continue
            line = self._deadlines
            if line and line[0][0] <= now.monotonic_s:
                request_id = line.popleft()[1]
            else:
                request_id = heapq.heappop(self._deadlines_own)[1]
            running = self._requests[request_id]
            machine = running.machine
            outcome = self._unconfirmed_outcome(running, now) if machine is None else machine.timed_out()
            effects.append(CompleteRequest(self._finish(running), outcome))
        return effects

    # --- peers --------------------------------------------------------------------------------------

    def serve(
        self, operation: int, arguments: tuple[Any, ...], digest: bytes, now: Instant
    ) -> tuple[int, tuple[Any, ...]]:
        """Do what a coordinating peer asks of this replica: one synchronous call."""
        match arguments:
            case (bytes(key), *rest) if 0 < len(key) <= KEY_BYTES_MAX:
                pass
            case _:
                return Status.BAD_REQUEST, ("no key",)
        slot = key_slot(key)
        if self._id not in self.ring.owners(slot):
            self.not_owner_count += 1
            self.view_doubted = self.view_doubted or digest != self.digest
            return Status.NOT_OWNER, (*self.view_order, self.digest)
        unix_ms = self.clock.now_unix_ms(now.unix_ms)
        if now.monotonic_s >= self.confirmed_until_s:
            self.unconfirmed_count += 1
            return Status.UNCONFIRMED, (self.store.peek(slot, key, unix_ms),) if operation == Operation.READ else ()
        if operation == Operation.READ and not rest:
            return Status.OK, (self.store.peek(slot, key, unix_ms), self._is_level(slot))
        if operation == Operation.WRITE:
            return self._serve_write(slot, key, rest, now)
        return Status.BAD_REQUEST, (f"unknown operation {operation}",)

    def _serve_write(self, slot: int, key: bytes, rest: list[Any], now: Instant) -> tuple[int, tuple[Any, ...]]:
        match rest:
            case [bytes(record)] if record_is_valid(record):
                pass
            case _:
                return Status.BAD_REQUEST, ("not a record",)
        if not self.clock.observe(record_version(record), now.unix_ms):
            self.refused_stamp_count += 1
            return Status.CLOCK_SKEW, ()
        applied = self.store.apply(slot, key, record, self.clock.now_unix_ms(now.unix_ms))
        if applied.too_large:
            return Status.TOO_LARGE, ()
        return Status.OK, (applied.applied, applied.existed, applied.newest)


_FAILURES: dict[int, Failure] = {
    Status.CLOCK_SKEW: Failure.CLOCK_SKEW,
    Status.TOO_LARGE: Failure.TOO_LARGE,
    Status.OVERLOADED: Failure.OVERLOADED,
}


def _take_write_reply(machine: QuorumWrite, node_id: NodeId, status: int, payload: tuple[Any, ...]) -> None:
    match payload:
        case (bool(applied), bool(existed), bytes(newest)) if status == Status.OK:
            machine.on_reply(node_id, applied=applied, existed=existed, newest=newest)
        case _:
            failure = _FAILURES.get(status, Failure.UNAVAILABLE)
            reason = f"{node_id} answered {_status_name(status)}"
            machine.on_failure(reason, uncertain=status == Status.OK, failure=failure)


def _status_name(status: int) -> str:
    return Status(status).name.lower().replace("_", " ") if status in Status._value2member_map_ else f"status {status}"
