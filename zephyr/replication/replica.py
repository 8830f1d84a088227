"""What this node does as one replica: for peers, and for its own coordinator.

Decides whether it may answer for a key at all (it owns the slot in its own ring, and is sure of that), and whether a
record from a peer is fit to be taken. Never asks another node anything: each call is synchronous.

A peer that asks for a slot of somebody else's learns this node's view, and may have to wait for its own to change. One
that asks while this node is not sure (`zephyr.confirmation`) is told so, with what is held here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, TypeAlias

from zephyr.config import KEY_BYTES_MAX, Settings
from zephyr.model import Instant, Version
from zephyr.peer.wire import Operation, Status
from zephyr.replication.hints import Hints, kept_for
from zephyr.ring.ring import Ring, key_slot
from zephyr.store.record import (
    VERSION_BYTES,
    HybridLogicalClock,
    record_is_valid,
    record_version,
)
from zephyr.store.store import Applied, Store

MANY_CALLS_MAX = 512
"""Calls within one frame: under 5 ms of work."""
MANY_BYTES_MAX = 512 << 10
"""Records within one frame, but for a single larger one."""

Answer: TypeAlias = tuple[int, tuple[Any, ...]]
"""(status, payload)."""

# Plain numbers: looking an enumeration's member up and comparing with it costs half of what a read does.
_READ, _WRITE, _DIGEST, _REPAIR = map(int, (Operation.READ, Operation.WRITE, Operation.DIGEST, Operation.REPAIR))
_KEEP, _MANY, _OK = int(Operation.KEEP), int(Operation.MANY), int(Status.OK)


class Replica:
    """The part of a node that holds records of the slots that it owns."""

    def __init__(
        self,
        settings: Settings,
        ring: Ring,
        store: Store,
        clock: HybridLogicalClock,
        is_level: Callable[[int], bool],
    ) -> None:
        """`is_level`: whether this node holds all that it should of a slot (`zephyr.replication.level`)."""
        self.store = store
        self.clock = clock
        self.ring = ring
        self.is_level = is_level
        self.hints = Hints(settings, self._take)
        self.digest = b""
        self.view_order = (0, 0)
        """(generation, revision) of the view whose ring is used: orders views for a peer that differs."""
        self.confirmed_until_s = inf
        """Monotonic seconds until which this node may take itself for an owner (`zephyr.confirmation`)."""
        self.view_doubted = False
        """A peer's ring differs from this one's: compare with etcd soon. The node resets it."""
        self.refused_stamp_count = 0
        """Writes of peers refused because their stamp is too far ahead of this node's clock."""
        self.not_owner_count = 0
        """Peers' requests for slots that this node does not own."""
        self.unconfirmed_count = 0
        """Requests for this node's slots that it could not be sure to own."""
        self._id = settings.id

    def _take(self, key: bytes, record: bytes, now: Instant) -> None:
        self.store.apply(key_slot(key), key, record, self.clock.now_unix_ms(now.unix_ms), cold=True)

    # --- this node's own ------------------------------------------------------------------------------

    def read(self, slot: int, key: bytes, now: Instant) -> tuple[bytes | None, bool, Version]:
        """Return (record or tombstone or None, whether the slot is level, mark); a value found counts as used."""
        record, mark = self.store.standing(slot, key, self.clock.now_unix_ms(now.unix_ms), is_use=True)
        return record, self.is_level(slot), mark

    def write(self, slot: int, key: bytes, record: bytes, now: Instant, *, is_cold: bool = False) -> Applied:
        """Take a record if it is newer than what stands."""
        return self.store.apply(slot, key, record, self.clock.now_unix_ms(now.unix_ms), cold=is_cold)

    # --- for peers ------------------------------------------------------------------------------------

    def serve(self, operation: int, arguments: tuple[Any, ...], digest: bytes, now: Instant) -> Answer:
        """Do what a coordinating peer asks: (status, payload)."""
        if operation == _MANY:
            return self._serve_many(arguments, digest, now)
        if operation == _KEEP:
            return self._serve_keep(arguments, now)
        key = arguments[0] if arguments else None
        if type(key) is not bytes or not 0 < len(key) <= KEY_BYTES_MAX:
            return Status.BAD_REQUEST, ("no key",)
        slot = key_slot(key)
        objection = self.objection(slot, digest, now)
        if objection is not None:
            if objection[0] == Status.UNCONFIRMED and operation == _READ:
                return Status.UNCONFIRMED, (self.store.peek(slot, key, self.clock.now_unix_ms(now.unix_ms)),)
            return objection
        if operation in (_WRITE, _REPAIR):
            return self._serve_write(slot, key, arguments, digest, now, is_repair=operation == _REPAIR)
        if operation == _DIGEST and len(arguments) == 1:
            record, mark = self.store.standing(slot, key, self.clock.now_unix_ms(now.unix_ms))
            return _OK, (b"" if record is None else record[:VERSION_BYTES], self.is_level(slot), mark)
        if operation == _READ and len(arguments) == 1:
            return _OK, self.read(slot, key, now)
        if operation == Operation.DROP:
            return self._serve_drop(slot, key, arguments, now)
        return Status.BAD_REQUEST, (f"unknown operation {operation}",)

    def objection(self, slot: int, digest: bytes, now: Instant) -> Answer | None:
        """Return why this node does not answer for a slot, or None."""
        if self._id not in self.ring.owners(slot):
            return self.not_owner(digest)
        if now.monotonic_s >= self.confirmed_until_s:
            self.unconfirmed_count += 1
            return Status.UNCONFIRMED, ()
        return None

    def not_owner(self, digest: bytes) -> Answer:
        """Answer that somebody else is to be asked. `digest`: of the caller's ring."""
        self.not_owner_count += 1
        self.view_doubted = self.view_doubted or digest != self.digest
        return Status.NOT_OWNER, (*self.view_order, self.digest)

    def _serve_write(
        self, slot: int, key: bytes, arguments: tuple[Any, ...], digest: bytes, now: Instant, *, is_repair: bool
    ) -> Answer:
        record = arguments[1] if len(arguments) == 2 else None
        if type(record) is not bytes or not record_is_valid(record):
            return Status.BAD_REQUEST, ("not a record",)
        if not self.clock.observe(record_version(record), now.unix_ms):
            self.refused_stamp_count += 1
            return Status.CLOCK_SKEW, (now.unix_ms,)
        applied = self.write(slot, key, record, now, is_cold=is_repair)
        if is_repair:
            return _OK, (applied.applied,)
        if applied.too_large:
            return Status.TOO_LARGE, ()
        if applied.applied and digest != self.digest:
            self._pass_on(slot, key, record, now)
        return _OK, (applied.applied, applied.existed, applied.newest, now.unix_ms)

    def _pass_on(self, slot: int, key: bytes, record: bytes, now: Instant) -> None:
        """Whoever has another ring may not know all owners of this one: see that they have what it wrote."""
        for owner in self.ring.owners(slot):
            if owner != self._id:
                self.hints.keep(owner, key, record, now.monotonic_s)

    def _serve_drop(self, slot: int, key: bytes, arguments: tuple[Any, ...], now: Instant) -> Answer:
        match arguments:
            case (_, bytes(mark)) if len(mark) == VERSION_BYTES and self.clock.observe(mark, now.unix_ms):
                return _OK, (self.store.drop_outdated(slot, key, mark),)
            case _:
                return Status.BAD_REQUEST, ("not a mark",)

    def _serve_keep(self, arguments: tuple[Any, ...], now: Instant) -> Answer:
        kept = kept_for(arguments)
        if kept is None or not 0 < len(kept[1]) <= KEY_BYTES_MAX or not record_is_valid(kept[2]):
            return Status.BAD_REQUEST, ("a target, a key and a record",)
        target, key, record = kept
        if target == self._id or not any(member.id == target for member in self.ring.members):
            return Status.BAD_REQUEST, ("no other member of the ring",)
        if not self.clock.observe(record_version(record), now.unix_ms):
            self.refused_stamp_count += 1
            return Status.CLOCK_SKEW, (now.unix_ms,)
        return (Status.OK, ()) if self.hints.keep(target, key, record, now.monotonic_s) else (Status.OVERLOADED, ())

    def _serve_many(self, calls: tuple[Any, ...], digest: bytes, now: Instant) -> Answer:
        if not 0 < len(calls) <= MANY_CALLS_MAX:
            return Status.BAD_REQUEST, (f"1 to {MANY_CALLS_MAX} calls",)
        answers: list[Answer] = []
        size_bytes = 0
        for call in calls:
            if is_pair(call) and call[0] not in (_MANY, _KEEP):
                answer = self.serve(call[0], call[1], digest, now)
            else:
                answer = Status.BAD_REQUEST, ("an operation and its arguments",)
            record = answer[1][0] if answer[1] else None
            if type(record) is bytes:
                size_bytes += len(record)
                if answers and size_bytes > MANY_BYTES_MAX:
                    size_bytes -= len(record)
                    answer = Status.ALONE, ()
            answers.append((int(answer[0]), answer[1]))
        return _OK, tuple(answers)


def is_pair(value: Any) -> bool:
    """Whether a value from a peer is (number, tuple), as calls and answers in a frame are. A match takes 1 us more."""
    return type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is tuple
