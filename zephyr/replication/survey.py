"""Questions that go to every member at once: a page of keys, and what is held of one key.

Decides when enough has been heard, and puts the answers together. Never changes what is stored.

A page of keys covers a stretch of slots, from a cursor on. Each member lists what it holds of the slots that it owns,
up to where its page is full; the page of all ends where the first of them ended. It counts only as far as, for each
slot, as many level owners have answered as a quorum read needs: so a key that stays all the while is never left out.
Its newest version decides whether a key is there.

    LIST request   (first slot, key to go on after or empty, end slot, prefix, how many keys)
    reply          (triples of key, version, whether it is a tombstone; the slot and the key after which it goes on;
                    those of the slots of which it is not level)
    EXPLAIN        (key,) -> (state, version, unix ms of its end or 0, level, owner, members for which it is kept)
"""

from __future__ import annotations

from collections.abc import Container
from math import inf
from typing import Any, NamedTuple

from zephyr.config import KEY_BYTES_MAX, SLOTS, Settings
from zephyr.events import CONTROL_CALL_ID_MIN, CompleteSurvey, Effect, PeerAnswered, PeerCallFailed, SendPeer
from zephyr.model import (
    Explanation,
    Failure,
    Instant,
    NodeId,
    ReplicaState,
    ScanCursor,
    ScanPage,
    ScanRequest,
    Version,
)
from zephyr.peer.wire import Operation, Status
from zephyr.replication.coordinator import Pending
from zephyr.replication.replica import Replica
from zephyr.ring.ring import key_slot
from zephyr.store.record import (
    VERSION_BYTES,
    VERSION_ZERO,
    record_expires_unix_ms,
    record_is_tombstone,
    record_version,
)

CALL_ID_MIN = CONTROL_CALL_ID_MIN + (1 << 61) + (1 << 59)
"""Calls and requests of this machine are numbered from here on."""
SURVEYS_MAX = 64
"""Questions under way at one node; one more is refused as overload."""
TIMEOUT_S = 1.0
"""For members to answer, unless the client names its own; who is silent is told of as such."""
PAGE_SLOTS = 2048
"""Slots covered by one page at most."""
PAGE_KEYS_MAX = 1000
"""Keys in one member's page."""
PAGE_BYTES_MAX = 256 << 10
"""Their bytes."""
LOOKED_MAX = 5000
"""Entries looked at for one page: a prefix may match few of them."""

_Listed = tuple[bytes, Version, bool]


class _Listing(NamedTuple):
    """One member's part of a page."""

    entries: tuple[_Listed, ...]
    end: ScanCursor
    unlevel: frozenset[int]


class _Survey:
    """One question under way."""

    __slots__ = ("answers", "deadline_s", "key", "request_id", "scan", "waiting")

    def __init__(self, request_id: int, deadline_s: float, key: bytes, scan: ScanRequest | None) -> None:
        self.request_id = request_id
        self.deadline_s = deadline_s
        self.key = key
        self.scan = scan
        self.waiting: dict[int, NodeId] = {}
        self.answers: dict[NodeId, Any] = {}


class Survey:
    """The questions under way, and the answers for those of others."""

    def __init__(self, settings: Settings, replica: Replica) -> None:
        self._settings = settings
        self._id = settings.id
        self._replica = replica
        self._last_id = CALL_ID_MIN
        self._surveys: dict[int, _Survey] = {}
        self._calls: dict[int, _Survey] = {}

    def deadline(self) -> float:
        """Return the monotonic second at which the next question is answered without whoever is silent."""
        return min((survey.deadline_s for survey in self._surveys.values()), default=inf)

    # --- asking ---------------------------------------------------------------------------------------

    def begin_scan(self, request: ScanRequest, routable: Container[NodeId], now: Instant) -> Pending:
        """Ask every owner that can be reached for its part of a page."""
        cursor = request.cursor
        end_slot = min(cursor.slot + PAGE_SLOTS, SLOTS)
        limit = min(request.limit, PAGE_KEYS_MAX)
        arguments = (cursor.slot, cursor.after_key, end_slot, request.prefix, limit)
        owners = [member.id for member in self._replica.ring.members]
        survey = self._new(now, b"", request, request.timeout_s or self._settings.request_timeout)
        if not owners:
            return self._refused(survey, "this node knows no ring yet")
        return self._ask(survey, [item for item in owners if item in routable], Operation.LIST, arguments, now)

    def begin_explain(self, key: bytes, living: Container[NodeId], now: Instant) -> Pending:
        """Ask every member of the ring what it holds of a key."""
        survey = self._new(now, key, None, TIMEOUT_S)
        members = [member.id for member in self._replica.ring.members if member.id in living]
        return self._ask(survey, members, Operation.EXPLAIN, (key,), now)

    def _new(self, now: Instant, key: bytes, scan: ScanRequest | None, timeout_s: float) -> _Survey:
        self._last_id += 1
        return _Survey(self._last_id, now.monotonic_s + timeout_s, key, scan)

    def _refused(self, survey: _Survey, detail: str, failure: Failure = Failure.UNAVAILABLE) -> Pending:
        page = ScanPage(failure, detail)
        return Pending(survey.request_id, [CompleteSurvey(survey.request_id, page)])

    def _ask(
        self,
        survey: _Survey,
        members: list[NodeId],
        operation: Operation,
        arguments: tuple[Any, ...],
        now: Instant,
    ) -> Pending:
        if len(self._surveys) >= SURVEYS_MAX and survey.scan is not None:
            return self._refused(survey, f"{SURVEYS_MAX} listings are under way", Failure.OVERLOADED)
        effects: list[Effect] = []
        for node_id in members:
            if node_id == self._id:
                _, payload = self._answer(operation, arguments, now)
                survey.answers[node_id] = self._understood(survey, payload)
                continue
            self._last_id += 1
            survey.waiting[self._last_id] = node_id
            self._calls[self._last_id] = survey
            effects.append(SendPeer(node_id, self._last_id, operation, arguments, survey.deadline_s))
        self._surveys[survey.request_id] = survey
        if not survey.waiting:
            effects += self._complete(survey)
        return Pending(survey.request_id, effects)

    def on_answered(self, event: PeerAnswered) -> list[Effect]:
        """A member answered."""
        return self._heard(event.call_id, event.payload if event.status == Status.OK else None)

    def on_failed(self, event: PeerCallFailed) -> list[Effect]:
        """A member gave no answer."""
        return self._heard(event.call_id, None)

    def _heard(self, call_id: int, payload: tuple[Any, ...] | None) -> list[Effect]:
        survey = self._calls.pop(call_id, None)
        if survey is None:
            return []
        node_id = survey.waiting.pop(call_id)
        understood = self._understood(survey, payload) if payload is not None else None
        if understood is not None:
            survey.answers[node_id] = understood
        return [] if survey.waiting else self._complete(survey)

    def poll(self, now: Instant) -> list[Effect]:
        """End the questions whose time is over."""
        over = [survey for survey in self._surveys.values() if survey.deadline_s <= now.monotonic_s]
        return [effect for survey in over for effect in self._complete(survey)]

    def _complete(self, survey: _Survey) -> list[Effect]:
        del self._surveys[survey.request_id]
        for call_id in survey.waiting:
            del self._calls[call_id]
        result = self._explanation(survey) if survey.scan is None else self._page(survey.scan, survey.answers)
        return [CompleteSurvey(survey.request_id, result)]

    # --- putting together -----------------------------------------------------------------------------

    def _understood(self, survey: _Survey, payload: tuple[Any, ...]) -> Any:
        """Return an answer in its own terms; None for another form."""
        return _state(payload) if survey.scan is None else _listing(payload, survey.scan.cursor)

    def _page(self, request: ScanRequest, answers: dict[NodeId, _Listing]) -> ScanPage:
        cursor = request.cursor
        end = min((listing.end for listing in answers.values()), default=cursor)
        end = min(end, self._counted_end(cursor, end, answers))
        if end <= cursor:
            return ScanPage(Failure.UNAVAILABLE, "too few replicas of some keys answered")
        newest: dict[tuple[int, bytes], tuple[Version, bool]] = {}
        for listing in answers.values():
            for key, version, is_tombstone in listing.entries:
                place = (key_slot(key), key)
                if cursor < place <= end and (place not in newest or newest[place][0] < version):
                    newest[place] = (version, is_tombstone)
        places = sorted(place for place, (_, is_tombstone) in newest.items() if not is_tombstone)
        if len(places) > request.limit:
            places = places[: request.limit]
            end = ScanCursor(*places[-1])
        return ScanPage(keys=tuple(key for _, key in places), cursor=end if end.slot < SLOTS else None)

    def _counted_end(self, start: ScanCursor, end: ScanCursor, answers: dict[NodeId, _Listing]) -> ScanCursor:
        """Return up to where enough level owners have answered for every slot."""
        ring = self._replica.ring
        if len(answers) == len(ring.members) and not any(listing.unlevel for listing in answers.values()):
            return end
        for slot in range(start.slot, min(end.slot + 1, SLOTS)):
            owners = ring.owners(slot)
            level = sum(item in answers and slot not in answers[item].unlevel for item in owners)
            if level < self._settings.quorum(self._settings.read_quorum, len(owners)):
                return ScanCursor(slot, b"")
        return end

    def _explanation(self, survey: _Survey) -> Explanation:
        slot = key_slot(survey.key)
        owners = self._replica.ring.owners(slot)
        rows: list[ReplicaState] = []
        for node_id in owners:
            state = survey.answers.get(node_id)
            unknown = ReplicaState(node_id, "unreachable", b"", 0, is_level=False, is_owner=True, hinted=())
            rows.append(unknown if state is None else state._replace(node_id=node_id))
        for node_id, state in sorted(survey.answers.items()):
            if node_id not in owners and (state.state != "absent" or state.hinted):
                rows.append(state._replace(node_id=node_id))
        return Explanation(survey.key, slot, owners, tuple(rows))

    # --- answering ------------------------------------------------------------------------------------

    def _answer(self, operation: Operation, arguments: tuple[Any, ...], now: Instant) -> tuple[int, tuple[Any, ...]]:
        return self.serve_list(arguments, now) if operation is Operation.LIST else self.serve_explain(arguments, now)

    def serve_list(self, arguments: tuple[Any, ...], now: Instant) -> tuple[int, tuple[Any, ...]]:
        """Answer a peer with this node's part of a page: (status, payload)."""
        match arguments:
            case (int(first), bytes(after_key), int(end), bytes(prefix), int(limit)) if (
                0 <= first < end <= SLOTS and end - first <= PAGE_SLOTS and 0 < limit <= PAGE_KEYS_MAX
            ):
                pass
            case _:
                return Status.BAD_REQUEST, ("slots, a prefix and a limit",)
        replica, unix_ms = self._replica, self._replica.clock.now_unix_ms(now.unix_ms)
        entries: list[_Listed] = []
        unlevel: list[int] = []
        looked = size_bytes = 0
        last = (first, after_key)
        for slot in range(first, end):
            if self._id not in replica.ring.owners(slot):
                continue
            if not replica.is_level(slot):
                unlevel.append(slot)
            if not replica.store.slot_digest(slot):
                continue
            for key, record in sorted(replica.store.slot_items(slot)):
                if slot == first and key <= after_key:
                    continue
                if len(entries) >= limit or looked >= LOOKED_MAX or size_bytes > PAGE_BYTES_MAX:
                    return Status.OK, (tuple(entries), *last, tuple(unlevel))
                last = (slot, key)
                looked += 1
                expires_unix_ms = record_expires_unix_ms(record)
                if key.startswith(prefix) and not 0 < expires_unix_ms <= unix_ms:
                    entries.append((key, record_version(record), record_is_tombstone(record)))
                    size_bytes += len(key) + VERSION_BYTES
        return Status.OK, (tuple(entries), end, b"", tuple(unlevel))

    def serve_explain(self, arguments: tuple[Any, ...], now: Instant) -> tuple[int, tuple[Any, ...]]:
        """Answer what this node holds of a key: (status, payload)."""
        match arguments:
            case (bytes(key),) if 0 < len(key) <= KEY_BYTES_MAX:
                pass
            case _:
                return Status.BAD_REQUEST, ("a key",)
        replica, slot = self._replica, key_slot(key)
        record, _ = replica.store.standing(slot, key, replica.clock.now_unix_ms(now.unix_ms))
        ghost = replica.store.ghost(slot, key) if record is None else None
        state, version, expires_unix_ms = "absent", b"", 0
        if record is not None:
            state = "tombstone" if record_is_tombstone(record) else "value"
            version, expires_unix_ms = record_version(record), record_expires_unix_ms(record)
        elif ghost is not None:
            state, version = "ghost", ghost
        is_owner = self._id in replica.ring.owners(slot)
        is_level = is_owner and replica.is_level(slot)
        return Status.OK, (state, version, expires_unix_ms, is_level, is_owner, replica.hints.targets_of(key))


def _state(payload: tuple[Any, ...]) -> ReplicaState | None:
    match payload:
        case (
            "value" | "tombstone" | "absent" | "ghost" as state,
            bytes(version),
            int(expires_unix_ms),
            bool(is_level),
            bool(is_owner),
            tuple(hinted),
        ):
            ids = tuple(item for item in hinted if type(item) is str)
            return ReplicaState("", state, version, expires_unix_ms, is_level, is_owner, ids)
        case _:
            return None


def _listing(payload: tuple[Any, ...], start: ScanCursor) -> _Listing | None:
    match payload:
        case (tuple(entries), int(slot), bytes(key), tuple(unlevel)) if start.slot <= slot <= SLOTS:
            pass
        case _:
            return None
    for entry in entries:
        match entry:
            case (bytes(name), bytes(version), bool()) if 0 < len(name) <= KEY_BYTES_MAX and version > VERSION_ZERO:
                pass
            case _:
                return None
    return _Listing(entries, ScanCursor(slot, key), frozenset(item for item in unlevel if type(item) is int))
