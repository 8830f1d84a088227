"""Hinted handoff: records kept for owners that missed a write, until they are back.

Decides what is kept for whom, within bounds, and when it is sent. Never decides who missed a write (the coordinator
does), or whether a record is still worth anything (the receiving store does: only a newer one is taken).

A hint is the newest record of one key for one target. It is

    delivered    the target answered: it has the record now, or something newer, or no room for it
    redirected   the target owns the key's slot no more: it is kept for each present owner that may lack it instead
    expired      its value's deadline passed, or it was kept for `hint_window`, by a clock that does not jump
    dropped      there was no room: for one target, or in all

Invariant: queued = delivered + redirected + expired + dropped + pending.

Paced by the target: one call at a time, of a bounded page of hints; the next goes when it was answered. Where a hint
was dropped, `overflowed` names the slot, so that comparing slots can begin there.

Source: DeCandia et al., "Dynamo: Amazon's Highly Available Key-value Store" (2007), section 4.6.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from itertools import islice
from math import inf
from typing import Any, NamedTuple

from zephyr.config import Settings
from zephyr.events import CONTROL_CALL_ID_MIN, Effect, PeerAnswered, PeerCallFailed, SendPeer
from zephyr.model import Instant, NodeId
from zephyr.peer.wire import Operation, Status
from zephyr.ring.ring import Ring, key_slot
from zephyr.store.record import record_expires_unix_ms, record_version

CALL_ID_MIN = CONTROL_CALL_ID_MIN + (1 << 61) + (1 << 60)
"""Calls of this machine are numbered from here on."""
HINT_OVERHEAD_BYTES = 200
"""Of a hint beside its key and record: its place in a dict, and their headers."""
PAGE_HINTS_MAX = 200
"""Hints in one call: about 2 ms at the target."""
PAGE_BYTES_MAX = 48 << 10
"""Keys and records in one call, unless one alone is larger."""
PAUSE_S = 0.002
"""Between two calls to one target."""
RETRY_S = 1.0
"""After a call that failed, or a hint that was refused by a target whose ring is another one still."""
CALL_TIMEOUT_S = 2.0
LOOK_PERIOD_S = 1.0
"""How often targets that cannot be reached, and what expired, are looked at."""
SWEEP_HINTS_MAX = 500
"""Hints of one target that are looked at for having expired, at once."""


class _Hint(NamedTuple):
    """A record, and from when on it is kept."""

    record: bytes
    from_s: float
    """Monotonic seconds."""


class _Target:
    """What is kept for one member."""

    __slots__ = ("bytes", "call_id", "due_s", "hints", "sent")

    def __init__(self) -> None:
        self.hints: OrderedDict[bytes, _Hint] = OrderedDict()
        """By key: the next to be sent first."""
        self.bytes = 0
        self.call_id = 0
        """The call that is under way; 0: none."""
        self.sent: tuple[tuple[bytes, _Hint], ...] = ()
        """What it carries."""
        self.due_s = -inf


class Hints:
    """The hints of one node."""

    def __init__(self, settings: Settings, take: Callable[[bytes, bytes, Instant], None]) -> None:
        """`take`: have this node's own replica take a record, where it has become an owner itself."""
        self.queued = 0
        self.delivered = 0
        self.redirected = 0
        self.expired = 0
        self.dropped = 0
        self.overflowed: dict[int, None] = {}
        """Slots of which a hint was dropped."""
        self._id = settings.id
        self._take = take
        self._bytes_max = settings.hint_memory
        self._bytes_of_target_max = settings.hint_memory_target
        self._window_s = settings.hint_window
        self._targets: dict[NodeId, _Target] = {}
        self._bytes = 0
        self._last_call_id = CALL_ID_MIN
        self._look_at_s = inf

    @property
    def pending(self) -> int:
        """Hints that are kept."""
        return sum(len(target.hints) for target in self._targets.values())

    @property
    def pending_bytes(self) -> int:
        """What they take."""
        return self._bytes

    def counts(self) -> dict[str, int]:
        """Return how many hints were queued, and what became of those that are no longer pending."""
        names = ("queued", "delivered", "redirected", "expired", "dropped")
        return {name: getattr(self, name) for name in names}

    def targets_of(self, key: bytes) -> tuple[NodeId, ...]:
        """Return the members for which a record of this key is kept."""
        return tuple(node_id for node_id, target in self._targets.items() if key in target.hints)

    def deadline(self) -> float:
        """Return the monotonic second at which `poll` has something to do; -inf: now."""
        return self._look_at_s

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; for tests and the simulator."""
        ends = self.delivered + self.redirected + self.expired + self.dropped
        assert self.queued == ends + self.pending, "hints are out of balance"
        kept = [(key, hint) for target in self._targets.values() for key, hint in target.hints.items()]
        assert self._bytes == sum(_size(key, hint.record) for key, hint in kept) <= self._bytes_max
        assert all(target.hints for target in self._targets.values())

    # --- keeping --------------------------------------------------------------------------------------

    def keep(self, node_id: NodeId, key: bytes, record: bytes, from_s: float) -> bool:
        """Keep a record for a member. False: there is no room, and the slot has overflowed.

        `from_s`: monotonic second from which `hint_window` is counted.
        """
        target = self._targets.get(node_id)
        standing = target.hints.get(key) if target is not None else None
        if standing is not None and record_version(standing.record) >= record_version(record):
            return True
        self.queued += standing is None
        grown = _size(key, record) - (_size(key, standing.record) if standing is not None else 0)
        of_target = target.bytes if target is not None else 0
        if of_target + grown > self._bytes_of_target_max or self._bytes + grown > self._bytes_max:
            self.dropped += 1
            self.overflowed[key_slot(key)] = None
            if standing is not None:
                self._take_out(node_id, key)  # Older than what could not be kept: it is of no use.
            return False
        if target is None:
            target = self._targets[node_id] = _Target()
            self._look_at_s = -inf  # Another one is looked at soon anyway.
        target.hints[key] = _Hint(record, from_s)
        target.bytes += grown
        self._bytes += grown
        return True

    def _take_out(self, node_id: NodeId, key: bytes) -> _Hint:
        target = self._targets[node_id]
        hint = target.hints.pop(key)
        size = _size(key, hint.record)
        target.bytes -= size
        self._bytes -= size
        if not target.hints:
            del self._targets[node_id]
        return hint

    # --- sending --------------------------------------------------------------------------------------

    def poll(self, ring: Ring, routable: Container[NodeId], now: Instant) -> list[Effect]:
        """Send the next page to each target that can be reached; drop what is over."""
        if now.monotonic_s < self._look_at_s:
            return []
        effects: list[Effect] = []
        members = {member.id for member in ring.members}
        for node_id in list(self._targets):
            target = self._targets[node_id]
            if target.call_id and now.monotonic_s < target.due_s:
                continue
            target.call_id = 0
            self._expire(node_id, target, now)
            if node_id not in self._targets:
                continue
            if node_id not in members and members:
                for key in list(islice(target.hints, PAGE_HINTS_MAX)):
                    self._redirect(node_id, key, ring, now)
            elif node_id in routable and now.monotonic_s >= target.due_s:
                effects.append(self._send(node_id, target, now))
        waits = [self._due_of(node_id, target, members, routable, now) for node_id, target in self._targets.items()]
        self._look_at_s = min(waits, default=inf)
        return effects

    def _due_of(
        self, node_id: NodeId, target: _Target, members: set[NodeId], routable: Container[NodeId], now: Instant
    ) -> float:
        """Return when a target is to be looked at next."""
        if target.call_id or (node_id in routable and node_id in members):
            return max(target.due_s, now.monotonic_s + PAUSE_S)
        return now.monotonic_s + (LOOK_PERIOD_S if node_id in members or not members else PAUSE_S)

    def _expire(self, node_id: NodeId, target: _Target, now: Instant) -> None:
        for key in list(islice(target.hints, SWEEP_HINTS_MAX)):
            hint = target.hints[key]
            is_old = hint.from_s + self._window_s <= now.monotonic_s
            if is_old or 0 < record_expires_unix_ms(hint.record) <= now.unix_ms:
                self.expired += 1
                self._take_out(node_id, key)

    def _send(self, node_id: NodeId, target: _Target, now: Instant) -> SendPeer:
        page: list[tuple[bytes, _Hint]] = []
        size = 0
        for key, hint in islice(target.hints.items(), PAGE_HINTS_MAX):
            size += len(key) + len(hint.record)
            if page and size > PAGE_BYTES_MAX:
                break
            page.append((key, hint))
        self._last_call_id += 1
        target.call_id, target.sent, target.due_s = self._last_call_id, tuple(page), now.monotonic_s + CALL_TIMEOUT_S
        calls = tuple((int(Operation.REPAIR), (key, hint.record)) for key, hint in page)
        return SendPeer(node_id, target.call_id, Operation.MANY, calls, now.monotonic_s + CALL_TIMEOUT_S)

    def _called(self, call_id: int) -> tuple[NodeId, _Target | None]:
        for node_id, target in self._targets.items():
            if target.call_id == call_id:
                return node_id, target
        return "", None

    def on_failed(self, event: PeerCallFailed, now: Instant) -> list[Effect]:
        """A target gave no answer: its hints stay."""
        _, target = self._called(event.call_id)
        if target is not None:
            target.call_id, target.due_s = 0, now.monotonic_s + RETRY_S
            self._look_at_s = min(self._look_at_s, target.due_s)
        return []

    def on_answered(self, event: PeerAnswered, ring: Ring, now: Instant) -> list[Effect]:
        """A target answered, hint by hint. An answer of another form is no answer."""
        node_id, target = self._called(event.call_id)
        if target is None:
            return []
        if event.status != Status.OK or len(event.payload) != len(target.sent):
            return self.on_failed(PeerCallFailed(event.call_id, "another form"), now)
        target.call_id, target.due_s = 0, now.monotonic_s + PAUSE_S
        for (key, hint), answer in zip(target.sent, event.payload, strict=True):
            if target.hints.get(key) is not hint:
                continue  # A newer one took its place meanwhile, or it expired.
            match answer:
                case (Status.OK | Status.TOO_LARGE | Status.BAD_REQUEST, _):
                    self.delivered += 1
                    self._take_out(node_id, key)
                case (Status.NOT_OWNER, _) if node_id not in ring.owners(key_slot(key)):
                    self._redirect(node_id, key, ring, now)
                case _:  # Not yet; a stamp too far ahead, for one, will not be for ever. The others come first.
                    target.hints.move_to_end(key)
                    target.due_s = now.monotonic_s + RETRY_S
        self._look_at_s = min(self._look_at_s, target.due_s)
        return []

    def _redirect(self, node_id: NodeId, key: bytes, ring: Ring, now: Instant) -> None:
        """Keep a hint for the present owners instead; where this node is one, it takes the record."""
        record, from_s = self._take_out(node_id, key)
        self.redirected += 1
        for owner in ring.owners(key_slot(key)):
            if owner == self._id:
                self._take(key, record, now)
            elif owner != node_id:
                self.keep(owner, key, record, from_s)


def _size(key: bytes, record: bytes) -> int:
    return len(key) + len(record) + HINT_OVERHEAD_BYTES


def kept_for(arguments: tuple[Any, ...]) -> tuple[NodeId, bytes, bytes] | None:
    """Read what a peer asks to be kept: (target, key, record); None for another form."""
    match arguments:
        case (str(node_id), bytes(key), bytes(record)):
            return node_id, key, record
        case _:
            return None
