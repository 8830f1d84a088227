"""The table of requests in flight: whom it asks, when it gives up, what it answers peers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from zephyr.config import Settings
from zephyr.events import CompleteRequest, SendPeer
from zephyr.model import ClusterView, EtcdStatus, Failure, Instant, Outcome, ReadRequest, UpdateRequest, WriteRequest
from zephyr.peer.wire import Operation, Status
from zephyr.replication import coordinator as module
from zephyr.replication.coordinator import (
    CONFIRMATION_WAIT_S,
    DOUBTED_MAX,
    NOT_OWNER_PAUSE_S,
    PHI_DOUBTED,
    RANKS_KEPT_S,
    Coordinator,
    Pending,
)
from zephyr.replication.latency import BUDGET_MAX, PATIENCE_UNKNOWN_S
from zephyr.replication.skew import AGE_MAX_S, STEADY_S
from zephyr.ring.ring import RingMember, build_ring, key_slot
from zephyr.store.record import (
    CLOCK_DRIFT_MAX_MS,
    VERSION_ZERO,
    HybridLogicalClock,
    pack_record,
    record_value,
    record_version,
    version_unix_ms,
)
from zephyr.store.store import Store

SETTINGS = Settings(id="n1", virtual_nodes=64)
UNIX_MS = 1_700_000_000_000


def at(second: float) -> Instant:
    return Instant(second, UNIX_MS + int(second * 1000))


def view(digest: bytes = b"ring-one", revision: int = 5) -> ClusterView:
    return ClusterView("etcd", 0.0, EtcdStatus("connected", revision, None, ""), 1, revision, digest, (), ())


def ring(*ids: str, replicas: int = 3):
    return build_ring(tuple(RingMember(node_id) for node_id in ids), replicas, 64)


def build(*ids: str, replicas: int = 3, **settings: object) -> Coordinator:
    changed = replace(SETTINGS, replicas=replicas, **settings)
    store = Store(
        memory_bytes_max=changed.memory,
        tombstone_bytes_max=changed.tombstone_memory,
        tombstone_grace_ms=3_600_000,
        ghosts_max=1000,
        eviction="sieve",
        slot_of=key_slot,
    )
    coordinator = Coordinator(changed, ring(), store, HybridLogicalClock("n1"))
    coordinator.ring_changed(ring(*ids, replicas=replicas), view(), at(0))
    return coordinator


def sends(effects) -> list[SendPeer]:
    return [effect for effect in effects if isinstance(effect, SendPeer)]


def completed(effects) -> Outcome:
    [outcome] = [effect.outcome for effect in effects if isinstance(effect, CompleteRequest)]
    return outcome


def key_owned_by(coordinator: Coordinator, wanted) -> bytes:
    for number in range(100_000):
        key = b"key-%d" % number
        if wanted(coordinator.ring.owners(key_slot(key))):
            return key
    raise AssertionError("no such key")


def record_at(second: float, value: bytes = b"v", node_id: str = "n2") -> bytes:
    return pack_record(HybridLogicalClock(node_id).stamp(UNIX_MS + int(second * 1000)), value)


def test_the_only_owner_answers_in_one_call():
    alone = build("n1")
    written = alone.begin_write(WriteRequest(b"key", b"value", b"text/plain", ttl_ms=1000), at(1))
    assert isinstance(written, Outcome)
    assert written.failure is None
    assert not written.existed
    assert record_value(alone.begin_read(ReadRequest(b"key"), at(1.5)).record) == b"value"
    assert alone.begin_write(WriteRequest(b"key", b"again"), at(1.6)).existed
    assert alone.begin_write(WriteRequest(b"key", None), at(1.7)).failure is None
    assert alone.begin_read(ReadRequest(b"key"), at(1.8)).record is None


def test_a_deadline_is_set_by_the_coordinator_once():
    alone = build("n1")
    alone.begin_write(WriteRequest(b"key", b"value", ttl_ms=1000), at(1))
    assert alone.begin_read(ReadRequest(b"key"), at(1.99)).record is not None
    assert alone.begin_read(ReadRequest(b"key"), at(2.01)).record is None


def test_without_a_ring_requests_are_refused():
    lost = build()
    assert lost.begin_read(ReadRequest(b"key"), at(1)).failure is Failure.UNAVAILABLE


def test_a_node_that_owns_nothing_of_a_key_coordinates_its_write():
    coordinator = build("n1", "n2", "n3", "n4")
    key = key_owned_by(coordinator, lambda owners: "n1" not in owners)
    pending = coordinator.begin_write(WriteRequest(key, b"value"), at(1))
    assert isinstance(pending, Pending)
    calls = sends(pending.effects)
    assert {call.node_id for call in calls} == {"n2", "n3", "n4"}
    assert len({call.arguments for call in calls}) == 1, "one stamp for all replicas"
    version = record_version(calls[0].arguments[1])
    assert coordinator.replied(calls[0].call_id, Status.OK, acknowledged(newest=version), at(1.1)) == []
    outcome = completed(
        coordinator.replied(calls[2].call_id, Status.OK, acknowledged(existed=True, newest=version), at(1.2))
    )
    assert (outcome.failure, outcome.existed, outcome.answered, outcome.asked) == (None, True, 2, 3)
    assert (
        coordinator.replied(calls[1].call_id, Status.OK, acknowledged(existed=True, newest=version), at(1.3)) == []
    ), "late"
    assert coordinator.hints.pending == 0
    assert coordinator.requests_in_flight == 0


def acknowledged(*, existed: bool = False, newest: bytes = b"", applied: bool = True) -> tuple[object, ...]:
    """The payload of a reply to a write."""
    return applied, existed, newest, UNIX_MS


def found(record: bytes | None, *, is_level: bool = True, mark: bytes = VERSION_ZERO) -> tuple[object, ...]:
    """The payload of a reply to a read of a record."""
    return record, is_level, mark


def version_found(record: bytes | None, *, is_level: bool = True, mark: bytes = VERSION_ZERO) -> tuple[object, ...]:
    """The payload of a reply to a read of a version."""
    return record_version(record) if record else b"", is_level, mark


def route(coordinator, unreachable=(), suspects=()):
    """Have it take from a view whom to send to."""
    rows = [
        SimpleNamespace(
            member=SimpleNamespace(id=node_id),
            routable=node_id not in unreachable,
            in_ring=True,
            gossip="suspect" if node_id in suspects else "alive",
        )
        for node_id in ("n1", "n2", "n3", "n4")
    ]
    coordinator.route(SimpleNamespace(members=rows, committed_count=0))


def test_a_read_prefers_this_node_and_then_owners_that_can_be_reached():
    coordinator = build("n1", "n2", "n3")
    route(coordinator, unreachable=["n2"])
    pending = coordinator.begin_read(ReadRequest(b"key"), at(1))
    assert [call.node_id for call in sends(pending.effects)] == ["n3"]


def test_a_read_asks_suspects_last_and_those_that_cannot_be_reached_never():
    coordinator = build("n1", "n2", "n3", "n4")
    key = key_owned_by(coordinator, lambda owners: "n1" not in owners)
    route(coordinator, suspects=["n2", "n4"])
    pending = coordinator.begin_read(ReadRequest(key), at(1))
    assert sends(pending.effects)[0].node_id == "n3"
    route(coordinator, unreachable=["n2"])
    pending = coordinator.begin_read(ReadRequest(key), at(1))
    calls = sends(pending.effects)
    assert {call.node_id for call in calls} == {"n3", "n4"}
    assert coordinator.failed(calls[1].call_id, "lost", at(1.1), sent=True) == [], "nobody else is asked"
    assert completed(coordinator.failed(calls[0].call_id, "lost", at(1.1), sent=True)).failure is Failure.UNAVAILABLE


def test_what_is_known_of_a_replicas_silence_stands_for_a_moment():
    coordinator, silence = build("n1", "n2", "n3"), {"n2": 0.0, "n3": 0.0}
    coordinator._phi = lambda node_id, _now: silence[node_id]
    key = key_owned_by(coordinator, lambda owners: owners == ("n1", "n2", "n3"))

    def asked(second: float) -> str:
        return sends(coordinator.begin_read(ReadRequest(key), at(second)).effects)[0].node_id

    assert asked(1) == "n2"
    silence["n2"] = PHI_DOUBTED
    assert asked(1 + RANKS_KEPT_S / 2) == "n2"
    assert asked(1 + RANKS_KEPT_S) == "n3"
    silence["n3"] = PHI_DOUBTED
    route(coordinator, suspects=["n3"])
    assert asked(1 + RANKS_KEPT_S) == "n2", "a suspicion is heard at once"


def test_a_write_is_not_sent_to_who_cannot_be_reached():
    coordinator = build("n1", "n2", "n3")
    route(coordinator, unreachable=["n2"])
    pending = coordinator.begin_write(WriteRequest(b"key", b"value"), at(1))
    assert [call.node_id for call in sends(pending.effects)] == ["n3"]


def test_a_leaving_node_counts_its_own_acknowledgement_once():
    coordinator = build("n1", "n2", "n3")
    route(coordinator, unreachable=["n1"])
    key = key_owned_by(coordinator, lambda owners: "n1" in owners)
    pending = coordinator.begin_write(WriteRequest(key, b"v", quorum="all"), at(1))
    first, second = sends(pending.effects)
    assert coordinator.replied(first.call_id, Status.OK, acknowledged(), at(1.1)) == []
    assert completed(coordinator.replied(second.call_id, Status.OK, acknowledged(), at(1.2))).failure is None


def test_a_read_fetches_the_newest_of_its_quorum_and_hides_tombstones():
    coordinator = build("n1", "n2", "n3")
    coordinator.store.apply(key_slot(b"key"), b"key", record_at(1, b"old"), UNIX_MS + 1000)
    newer = record_at(1.5, b"new")
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    assert digest.operation == Operation.DIGEST
    [fetch] = sends(coordinator.replied(digest.call_id, Status.OK, version_found(newer), at(2.1)))
    assert (fetch.operation, fetch.node_id) == (Operation.READ, digest.node_id)
    effects = coordinator.replied(fetch.call_id, Status.OK, found(newer), at(2.2))
    assert record_value(completed(effects).record) == b"new"
    assert record_value(coordinator.store.get(key_slot(b"key"), b"key", UNIX_MS)) == b"new", "it is repaired"
    [told] = sends(effects)
    assert told.operation == Operation.REPAIR, "so is the owner that was not asked, in the background"

    tombstone = pack_record(record_version(record_at(1.6)), b"", tombstone=True)
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(3)).effects)
    [fetch] = sends(coordinator.replied(digest.call_id, Status.OK, version_found(tombstone), at(3.1)))
    assert completed(coordinator.replied(fetch.call_id, Status.OK, found(tombstone), at(3.1))).record is None


def test_a_read_waits_until_the_replica_that_it_asked_has_the_newest():
    coordinator = build("n1", "n2", "n3")
    newest = record_at(1, b"new")
    coordinator.store.apply(key_slot(b"key"), b"key", newest, UNIX_MS + 1000)
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    [repair] = sends(coordinator.replied(digest.call_id, Status.OK, version_found(record_at(0.5)), at(2.1)))
    assert (repair.operation, repair.arguments) == (Operation.REPAIR, (b"key", newest))
    assert record_value(completed(coordinator.replied(repair.call_id, Status.OK, (True,), at(2.2))).record) == b"new"


def test_a_repair_that_fails_asks_another_owner():
    coordinator = build("n1", "n2", "n3")
    newest = record_at(1, b"new")
    coordinator.store.apply(key_slot(b"key"), b"key", newest, UNIX_MS + 1000)
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    [repair] = sends(coordinator.replied(digest.call_id, Status.OK, version_found(None), at(2.1)))
    [other] = sends(coordinator.failed(repair.call_id, "lost", at(2.2), sent=True))
    assert other.node_id not in (digest.node_id, "n1")
    outcome = completed(coordinator.replied(other.call_id, Status.OK, version_found(newest), at(2.3)))
    assert record_value(outcome.record) == b"new"


def test_a_value_below_another_replicas_mark_is_a_miss_and_is_dropped():
    coordinator = build("n1", "n2", "n3")
    coordinator.store.apply(key_slot(b"key"), b"key", record_at(1, b"gone"), UNIX_MS + 1000)
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    mark = record_version(record_at(1.5))
    outcome = completed(coordinator.replied(digest.call_id, Status.OK, version_found(None, mark=mark), at(2.1)))
    assert (outcome.failure, outcome.record) == (None, None)
    assert coordinator.store.items == 0
    assert not coordinator.store.apply(key_slot(b"key"), b"key", record_at(1.2), UNIX_MS + 3000).applied


def test_an_evicted_value_is_a_hit_elsewhere_and_is_not_brought_back():
    coordinator = build("n1", "n2", "n3")
    standing = record_at(1, b"kept")
    coordinator.store.apply(key_slot(b"key"), b"key", standing, UNIX_MS + 1000)
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    ghost = version_found(None, mark=record_version(standing))
    effects = coordinator.replied(digest.call_id, Status.OK, ghost, at(2.1))
    assert record_value(completed(effects).record) == b"kept"
    assert sends(effects) == []


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_write_that_waits_for_its_turn_here_is_not_kept_in_a_slot_that_was_lost_meanwhile(is_lost):
    coordinator = build("n1", "n2", "n3")
    later = ring("n1", "n2", "n3", "n4", "n5")
    key = next(key for key in (b"%d" % number for number in range(1000)) if "n1" not in later.owners(key_slot(key)))
    calls = sends(coordinator.begin_write(WriteRequest(key, b"value"), at(1)).effects)
    assert coordinator.store.items == 0, "until a peer's clock agrees"
    if is_lost:
        coordinator.ring_changed(later, view(b"ring-two", 6), at(1.1))
    applied = (True, False, VERSION_ZERO, at(1.2).unix_ms)
    coordinator.replied(calls[0].call_id, Status.OK, applied, at(1.2))
    assert coordinator.store.items == (0 if is_lost else 1)


@pytest.mark.parametrize("acknowledged", [1, 2])
def test_who_was_not_sure_to_own_the_key_at_its_turn_keeps_what_enough_others_have(acknowledged):
    coordinator = build("n1", "n2", "n3")
    calls = sends(coordinator.begin_write(WriteRequest(b"key", b"value"), at(1)).effects)
    coordinator.confirm(1.1, at(1.1))
    for call in calls[:acknowledged]:
        applied = (True, False, VERSION_ZERO, at(1.2).unix_ms)
        coordinator.replied(call.call_id, Status.OK, applied, at(1.2))
    assert coordinator.store.items == (1 if acknowledged == 2 else 0)


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_the_only_owner_does_not_follow_a_jump_of_its_clock_for_a_while(jump_ms):
    coordinator = build("n1")
    coordinator.skew.heard("n2", at(1).unix_ms, at(1))
    jumped = Instant(2.0, at(2).unix_ms + jump_ms)
    written = coordinator.begin_write(WriteRequest(b"key", b"v", ttl_ms=5000), jumped)
    assert version_unix_ms(written.version) == at(2).unix_ms
    assert coordinator.begin_read(ReadRequest(b"key"), jumped).record is not None, "deadlines are the wall clock's"
    counted = coordinator.begin_update(UpdateRequest(b"other", "increment", step=1), jumped)
    assert version_unix_ms(counted.version) == at(2).unix_ms
    if jump_ms > 0:
        later = Instant(2.0 + STEADY_S, jumped.unix_ms + round(STEADY_S * 1000))
        assert version_unix_ms(coordinator.begin_write(WriteRequest(b"key", b"w"), later).version) == later.unix_ms


def test_the_only_owner_stamps_nothing_beside_what_others_refused_since_its_clock_jumped():
    coordinator = build("n1", "n2", "n3")
    coordinator.skew.heard("n2", at(1).unix_ms, at(1))
    jumped = Instant(2.0, at(2).unix_ms + 3_600_000)
    for call in sends(coordinator.begin_write(WriteRequest(b"key", b"v"), jumped).effects):
        coordinator.replied(call.call_id, Status.CLOCK_SKEW, (at(2).unix_ms,), jumped)
    coordinator.ring_changed(ring("n1"), view(b"ring-two", 6), at(2))
    later = Instant(3.0, at(3).unix_ms + 3_600_000)
    assert version_unix_ms(coordinator.begin_write(WriteRequest(b"key", b"w"), later).version) == at(3).unix_ms
    counted = coordinator.begin_update(UpdateRequest(b"other", "increment", step=1), later)
    assert version_unix_ms(counted.version) == at(3).unix_ms


def test_the_only_owner_follows_its_clock_where_no_peer_ever_agreed_or_one_agrees_now():
    for peer in ("", "n2"):
        coordinator = build("n1")
        coordinator.poll(at(1))
        jumped = Instant(2.0, at(2).unix_ms + 3_600_000)
        if peer:
            coordinator.skew.heard(peer, at(1).unix_ms, at(1))
            coordinator.skew.heard(peer, jumped.unix_ms, jumped)
        written = coordinator.begin_write(WriteRequest(b"key", b"v"), Instant(3.0, jumped.unix_ms + 1000))
        assert version_unix_ms(written.version) == jumped.unix_ms + 1000


def test_a_slow_replica_is_not_waited_for_and_is_repaired_when_it_answers():
    coordinator = build("n1", "n2", "n3")
    newest = record_at(1, b"new")
    coordinator.store.apply(key_slot(b"key"), b"key", newest, UNIX_MS + 1000)
    [slow] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    assert coordinator.deadline() == pytest.approx(2 + PATIENCE_UNKNOWN_S)
    [second] = sends(coordinator.poll(at(2 + PATIENCE_UNKNOWN_S)))
    assert second.node_id not in ("n1", slow.node_id)
    outcome = completed(coordinator.replied(second.call_id, Status.OK, version_found(newest), at(2.2)))
    assert record_value(outcome.record) == b"new"
    assert coordinator.requests_in_flight == 0
    [repair] = sends(coordinator.replied(slow.call_id, Status.OK, version_found(None), at(2.3)))
    assert (repair.node_id, repair.operation) == (slow.node_id, Operation.REPAIR)
    coordinator.check_invariants()


def test_whoever_holds_the_timer_hears_of_each_moment_that_a_request_waits_for():
    coordinator = build("n1", "n2", "n3")
    assert coordinator.due_s == coordinator.deadline() == float("inf")
    coordinator.begin_write(WriteRequest(b"key", b"value"), at(1))
    assert coordinator.due_s == 1 + SETTINGS.request_timeout
    [call] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    assert coordinator.due_s == pytest.approx(2 + PATIENCE_UNKNOWN_S)
    coordinator.replied(call.call_id, Status.NOT_OWNER, (1, 6, b"ring-two"), at(2.01))
    coordinator.poll(at(2 + PATIENCE_UNKNOWN_S))
    assert coordinator.due_s == coordinator.deadline() == pytest.approx(2.01 + NOT_OWNER_PAUSE_S)
    route(coordinator, unreachable=["n2"])
    coordinator.begin_write(WriteRequest(b"key", b"value"), at(2.2))
    assert coordinator.due_s > 2.2, "a hint is kept once the write is decided"
    coordinator.skew.heard("n3", at(2.1).unix_ms, at(2.1))
    coordinator.begin_write(WriteRequest(b"key", b"value", quorum="1"), at(2.2))
    assert coordinator.due_s == coordinator.hints.deadline() == -float("inf")
    assert coordinator.deadline() > 2.2


def test_second_askings_have_a_budget():
    coordinator = build("n1", "n2", "n3")
    for number in range(200):
        coordinator.begin_read(ReadRequest(b"key-%d" % number), at(2))
    asked = sends(coordinator.poll(at(2 + PATIENCE_UNKNOWN_S)))
    assert len(asked) == int(BUDGET_MAX)


def test_a_failed_replica_is_replaced_by_the_next_one():
    coordinator = build("n1", "n2", "n3")
    pending = coordinator.begin_read(ReadRequest(b"key"), at(1))
    [call] = sends(pending.effects)
    [second] = sends(coordinator.failed(call.call_id, "connection lost", at(1.1), sent=True))
    assert second.node_id != call.node_id
    outcome = completed(coordinator.failed(second.call_id, "connection lost", at(1.2), sent=True))
    assert outcome.failure is Failure.UNAVAILABLE
    assert "connection lost" in outcome.detail


def test_a_quorum_that_cannot_be_met_is_refused_before_anything_is_sent():
    coordinator = build("n1", "n2", "n3")
    route(coordinator, unreachable=["n2", "n3"])
    outcome = coordinator.begin_write(WriteRequest(b"key", b"value"), at(1))
    assert outcome.failure is Failure.UNAVAILABLE
    assert coordinator.store.items == 0
    assert coordinator.begin_write(WriteRequest(b"key", b"v", quorum="7"), at(1)).failure is Failure.UNAVAILABLE


def test_a_ring_that_shrank_while_gossip_leads_needs_as_many_replicas_as_before():
    coordinator = build("n1", "n2", "n3", replicas=5)
    coordinator.committed_count = 5
    pending = coordinator.begin_write(WriteRequest(b"key", b"value"), at(1))
    first, second = sends(pending.effects)
    assert coordinator.replied(first.call_id, Status.OK, acknowledged(), at(1.1)) == [], "two of three are not enough"
    assert completed(coordinator.replied(second.call_id, Status.OK, acknowledged(), at(1.2))).failure is None
    assert coordinator.begin_read(ReadRequest(b"key", quorum="all"), at(2)).failure is Failure.UNAVAILABLE


def test_a_write_decided_by_this_node_alone_still_reaches_the_others():
    coordinator = build("n1", "n2", "n3")
    coordinator.skew.heard("n2", at(0.9).unix_ms, at(0.9))  # So its clock is known to be right.
    pending = coordinator.begin_write(WriteRequest(b"key", b"value", quorum="1"), at(1))
    assert {call.node_id for call in sends(pending.effects)} == {"n2", "n3"}
    assert completed(pending.effects).failure is None


def test_a_clock_that_jumped_is_not_trusted_any_more():
    coordinator = build("n1", "n2", "n3")
    coordinator.skew.heard("n2", at(0.9).unix_ms, at(0.9))
    jumped = Instant(1.0, at(1.0).unix_ms + 60_000)
    pending = coordinator.begin_write(WriteRequest(b"key", b"value", quorum="1"), jumped)
    assert len(sends(pending.effects)) == len(pending.effects) == 2
    assert coordinator.store.items == 0
    for call in sends(pending.effects):
        effects = coordinator.replied(call.call_id, Status.CLOCK_SKEW, (at(1.1).unix_ms,), jumped)
    assert completed(effects).failure is Failure.CLOCK_SKEW
    assert coordinator.store.items == 0


def test_a_clock_that_nobody_vouches_for_stamps_nothing():
    coordinator = build("n1", "n2", "n3")
    pending = coordinator.begin_write(WriteRequest(b"key", b"value", quorum="1"), at(1))
    for call in sends(pending.effects):
        effects = coordinator.failed(call.call_id, "no connection", at(1.1), sent=False)
    assert completed(effects).failure is Failure.UNAVAILABLE
    assert coordinator.store.items == 0


def test_a_write_that_one_round_may_have_applied_is_not_said_to_be_nowhere():
    coordinator = build("n1", "n2", "n3")
    first, _second = sends(coordinator.begin_write(WriteRequest(b"key", b"value"), at(1)).effects)
    coordinator.replied(first.call_id, Status.NOT_OWNER, (1, 6, b"ring-two"), at(1.1))
    effects = coordinator.poll(at(1.1 + NOT_OWNER_PAUSE_S))
    for call in sends(effects):
        effects = coordinator.failed(call.call_id, "no connection", at(1.5), sent=False)
    assert completed(effects).failure is Failure.UNKNOWN


def test_a_passed_deadline_leaves_the_outcome_of_a_write_unknown():
    coordinator = build("n1", "n2", "n3")
    pending = coordinator.begin_write(WriteRequest(b"key", b"value"), at(1))
    assert coordinator.deadline() == 1 + SETTINGS.request_timeout
    assert coordinator.poll(at(2.9)) == []
    outcome = completed(coordinator.poll(at(3)))
    assert outcome.failure is Failure.UNKNOWN
    assert coordinator.requests_in_flight == 0
    assert coordinator.failed(sends(pending.effects)[0].call_id, "late", at(4), sent=True) == []


def test_clients_own_timeouts_end_in_their_order():
    coordinator = build("n1", "n2", "n3")
    slow = coordinator.begin_read(ReadRequest(b"a", timeout_s=30), at(1))
    quick = coordinator.begin_read(ReadRequest(b"b", timeout_s=0.5), at(1))
    default = coordinator.begin_read(ReadRequest(b"c"), at(1))
    ended = []
    for _ in range(4):
        effects = coordinator.poll(at(coordinator.deadline()))
        ended += [effect.request_id for effect in effects if isinstance(effect, CompleteRequest)]
    assert ended == [quick.request_id, default.request_id, slow.request_id]
    assert coordinator.deadline() == float("inf")


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_deadlines_of_finished_requests_do_not_pile_up(timeout_s, monkeypatch):
    monkeypatch.setattr(module, "DEADLINES_SPARE", 10)
    coordinator = build("n1", "n2", "n3")
    for _ in range(200):
        pending = coordinator.begin_read(ReadRequest(b"key", timeout_s=timeout_s), at(1))
        [call] = sends(pending.effects)
        completed(coordinator.replied(call.call_id, Status.OK, version_found(None), at(1.1)))
    assert len(coordinator._deadlines) + len(coordinator._deadlines_own) <= 12
    assert len(coordinator._impatience) <= 12
    still_open = coordinator.begin_read(ReadRequest(b"key", timeout_s=timeout_s), at(1))
    coordinator.poll(at(1 + PATIENCE_UNKNOWN_S))
    [effect] = coordinator.poll(at(coordinator.deadline()))
    assert effect.request_id == still_open.request_id


def test_what_a_batch_sends_to_one_peer_goes_in_one_frame_and_each_call_has_its_answer():
    coordinator = build("n1", "n2", "n3")
    requests = [WriteRequest(b"key-%d" % number, b"value", quorum="all") for number in range(3)]
    begun, effects = coordinator.begin_all(requests, at(1))
    frames = {call.node_id: call for call in sends(effects)}
    assert {call.operation for call in frames.values()} == {Operation.MANY}
    assert [operation for operation, _ in frames["n2"].arguments] == [Operation.WRITE] * 3
    assert completions(coordinator, frames["n3"], ((0, acknowledged()),) * 3) == {}
    answers = ((0, acknowledged()), (0, list(acknowledged())), (int(Status.TOO_LARGE), ()))
    ended = completions(coordinator, frames["n2"], answers)
    assert [ended[pending.request_id].failure for pending in begun] == [None, Failure.UNKNOWN, Failure.UNKNOWN]
    coordinator.check_invariants()


def test_the_late_answer_of_a_read_is_no_latency_since_somebody_else_was_asked_meanwhile():
    coordinator = build("n1", "n2", "n3")
    pending = coordinator.begin_read(ReadRequest(b"key"), at(1))
    [first] = sends(pending.effects)
    [second] = sends(coordinator.poll(at(1 + PATIENCE_UNKNOWN_S)))
    assert completed(coordinator.replied(second.call_id, Status.OK, version_found(None), at(1.3)))
    assert coordinator.replied(first.call_id, Status.OK, version_found(None), at(1.9)) == []
    assert list(coordinator.latencies._peers) == [second.node_id]


def test_a_frame_is_one_answer_where_latencies_are_counted():
    coordinator = build("n1", "n2", "n3")
    requests = [WriteRequest(b"key-%d" % number, b"value") for number in range(3)]
    _, effects = coordinator.begin_all(requests, at(1))
    for frame in sends(effects):
        completions(coordinator, frame, ((0, acknowledged()),) * 3)
    assert {node_id: len(peer.samples) for node_id, peer in coordinator.latencies._peers.items()} == {"n2": 1, "n3": 1}


@pytest.mark.parametrize("answers", [(), ((0, ()),) * 2, (0, ()), (b"", (), "")])
def test_a_frame_whose_answer_has_another_form_answers_none_of_its_calls(answers):
    coordinator = build("n1", "n2", "n3")
    requests = [WriteRequest(b"key-%d" % number, b"value", quorum="all") for number in range(3)]
    begun, effects = coordinator.begin_all(requests, at(1))
    ended = completions(coordinator, sends(effects)[0], answers)
    assert {ended[pending.request_id].failure for pending in begun} == {Failure.UNKNOWN}


def completions(coordinator: Coordinator, frame: SendPeer, answers: tuple[object, ...]) -> dict[int, Outcome]:
    """Answer a frame; return what ended by it, by request."""
    effects = coordinator.replied(frame.call_id, Status.OK, answers, at(1.1))
    return {effect.request_id: effect.outcome for effect in effects if isinstance(effect, CompleteRequest)}


@pytest.mark.parametrize("call", [(), (1,), [1, (b"key",)], (1, [b"key"]), ("1", (b"key",)), (True, (b"key",)), b"ab"])
def test_a_call_of_another_form_within_a_frame_costs_that_call(call):
    replica = build("n1").replica
    status, answers = replica.serve(Operation.MANY, (call, (1, (b"key",))), replica.digest, at(1))
    assert status == Status.OK
    assert [answer for answer, _ in answers] == [Status.BAD_REQUEST, Status.OK]


def test_a_write_overtaken_by_a_newer_one_is_stamped_above_it():
    coordinator = build("n1", "n2", "n3")
    pending = coordinator.begin_write(WriteRequest(b"key", b"mine"), at(1))
    first = sends(pending.effects)
    newer = record_version(record_at(1.3))
    second = sends(
        coordinator.replied(
            first[0].call_id, Status.OK, acknowledged(existed=True, newest=newer, applied=False), at(1.1)
        )
    )
    assert {call.node_id for call in second} == {"n2", "n3"}
    assert all(record_version(call.arguments[1]) > newer for call in second)
    version = record_version(second[0].arguments[1])
    reply = acknowledged(existed=True, newest=version)
    assert completed(coordinator.replied(second[0].call_id, Status.OK, reply, at(1.2))).failure is None


def test_this_node_takes_its_own_write_once_somebody_else_has_taken_the_stamp():
    coordinator = build("n1", "n2", "n3")
    pending = coordinator.begin_write(WriteRequest(b"key", b"value"), at(1))
    assert coordinator.store.items == 0
    outcome = completed(coordinator.replied(sends(pending.effects)[0].call_id, Status.OK, acknowledged(), at(1.1)))
    assert (outcome.failure, outcome.answered) == (None, 2)
    assert coordinator.store.items == 1


def test_a_stamp_that_all_others_refuse_stays_nowhere_and_makes_this_node_doubt_its_clock():
    coordinator = build("n1", "n2", "n3")
    route(coordinator)
    pending = coordinator.begin_write(WriteRequest(b"key", b"value"), at(3600))
    first, second = sends(pending.effects)
    theirs = (at(1).unix_ms,)
    assert coordinator.replied(first.call_id, Status.CLOCK_SKEW, theirs, at(3600)) == []
    outcome = completed(coordinator.replied(second.call_id, Status.CLOCK_SKEW, theirs, at(3600)))
    assert outcome.failure is Failure.CLOCK_SKEW
    assert coordinator.store.items == 0
    assert coordinator.hints.pending == 0
    coordinator.poll(at(3600))
    assert coordinator.skew.is_off
    refused = coordinator.begin_write(WriteRequest(b"key", b"value"), at(3600.1))
    assert refused.failure is Failure.CLOCK_SKEW
    coordinator.poll(at(3600 + AGE_MAX_S + 1))
    assert not coordinator.skew.is_off, "it is asked again after a while"


def test_an_owner_that_refused_the_stamp_as_ahead_is_sent_it_again_where_others_took_it():
    coordinator = build("n1", "n2", "n3")
    first, second = sends(coordinator.begin_write(WriteRequest(b"key", b"value"), at(1)).effects)
    assert completed(coordinator.replied(first.call_id, Status.OK, acknowledged(), at(1.1))).failure is None
    coordinator.replied(second.call_id, Status.CLOCK_SKEW, (at(0).unix_ms,), at(1.2))
    assert coordinator.hints.targets_of(b"key") == (second.node_id,)


def test_a_node_whose_clock_was_set_back_stamps_like_the_others_again():
    coordinator = build("n1", "n2", "n3")
    coordinator.committed_count = 3
    coordinator.clock.stamp(at(3600).unix_ms)
    coordinator.poll(at(2))
    pending = coordinator.begin_write(WriteRequest(b"key", b"value"), at(2))
    record = sends(pending.effects)[0].arguments[1]
    assert version_unix_ms(record_version(record)) == at(2).unix_ms


def test_what_stands_under_a_stamp_from_far_ahead_counts_for_nothing():
    coordinator = build("n1", "n2", "n3")
    ahead = record_at(3600, b"ahead")
    [digest] = sends(coordinator.begin_read(ReadRequest(b"key"), at(2)).effects)
    [other] = sends(coordinator.replied(digest.call_id, Status.OK, version_found(ahead), at(2.1)))
    outcome = completed(coordinator.replied(other.call_id, Status.OK, version_found(None), at(2.2)))
    assert (outcome.failure, outcome.record) == (None, None)
    first, second = sends(coordinator.begin_write(WriteRequest(b"key", b"v"), at(2)).effects)
    refused = acknowledged(existed=True, newest=record_version(ahead), applied=False)
    assert coordinator.replied(first.call_id, Status.OK, refused, at(2.1)) == []
    assert completed(coordinator.replied(second.call_id, Status.OK, acknowledged(), at(2.2))).failure is None


def test_not_owner_waits_for_the_ring_and_starts_again_with_the_new_owners():
    coordinator = build("n1", "n2", "n3", "n4", replicas=1)
    key = key_owned_by(coordinator, lambda owners: owners == ("n4",))
    pending = coordinator.begin_read(ReadRequest(key), at(1))
    [call] = sends(pending.effects)
    assert coordinator.replied(call.call_id, Status.NOT_OWNER, (1, 6, b"ring-two"), at(1.01)) == []
    assert coordinator.replica.view_doubted
    coordinator.check_invariants()
    effects = coordinator.ring_changed(ring("n1", "n2", "n3", replicas=1), view(b"ring-two"), at(1.05))
    if not sends(effects):
        assert completed(effects).failure is None, "this node owns the slot now"
    else:
        [again] = sends(effects)
        assert again.node_id in ("n2", "n3")
        assert completed(coordinator.replied(again.call_id, Status.OK, found(None), at(1.1))).failure is None


def test_a_second_not_owner_ends_the_request():
    coordinator = build("n1", "n2", replicas=1)
    key = key_owned_by(coordinator, lambda owners: owners == ("n2",))
    pending = coordinator.begin_write(WriteRequest(key, b"v"), at(1))
    [call] = sends(pending.effects)
    coordinator.replied(call.call_id, Status.NOT_OWNER, (1, 6, b"ring-two"), at(1.0))
    assert coordinator.deadline() == pytest.approx(1 + NOT_OWNER_PAUSE_S)
    [again] = sends(coordinator.poll(at(coordinator.deadline())))
    outcome = completed(coordinator.replied(again.call_id, Status.NOT_OWNER, (1, 6, b"ring-two"), at(1.4)))
    assert outcome.failure is Failure.UNAVAILABLE


def test_overload_is_refused_and_nothing_is_sent(monkeypatch):
    monkeypatch.setattr(module, "REQUESTS_MAX", 3)
    coordinator = build("n1", "n2", "n3")
    for number in range(3):
        assert isinstance(coordinator.begin_read(ReadRequest(b"key-%d" % number), at(1)), Pending)
    assert coordinator.begin_read(ReadRequest(b"one more"), at(1)).failure is Failure.OVERLOADED


def test_an_item_above_the_memory_bound_is_refused_before_anything_is_sent():
    coordinator = build("n1", "n2", "n3", memory=1 << 20)
    outcome = coordinator.begin_write(WriteRequest(b"key", bytes(2 << 20)), at(1))
    assert isinstance(outcome, Outcome)
    assert outcome.failure is Failure.TOO_LARGE


@pytest.mark.parametrize(
    ("operation", "arguments", "status"),
    [
        (Operation.READ, (), Status.BAD_REQUEST),
        (Operation.READ, ("text",), Status.BAD_REQUEST),
        (Operation.READ, (b"",), Status.BAD_REQUEST),
        (Operation.READ, (bytes(2000),), Status.BAD_REQUEST),
        (Operation.READ, (b"key", b"more"), Status.BAD_REQUEST),
        (Operation.WRITE, (b"key",), Status.BAD_REQUEST),
        (Operation.WRITE, (b"key", b"short"), Status.BAD_REQUEST),
        (Operation.WRITE, (b"key", bytes(16) + b"\x09\x00"), Status.BAD_REQUEST),
        (Operation.WRITE, (b"key", bytes(16) + b"\x02\x00\x00"), Status.BAD_REQUEST),
        (Operation.WRITE, (b"key", bytes(16) + b"\x04\xff"), Status.BAD_REQUEST),
        (99, (b"key",), Status.BAD_REQUEST),
        (Operation.READ, (b"key",), Status.OK),
        (Operation.WRITE, (b"key", record_at(1)), Status.OK),
    ],
)
def test_a_peers_request_is_checked_before_it_is_served(operation, arguments, status):
    coordinator = build("n1", "n2", "n3")
    answered, _ = coordinator.replica.serve(operation, arguments, b"ring-one", at(2))
    assert answered == status


def test_a_peer_whose_ring_differs_is_served_where_this_node_owns_the_slot():
    coordinator = build("n1", "n2", "n3", "n4", replicas=1)
    mine = key_owned_by(coordinator, lambda owners: owners == ("n1",))
    other = key_owned_by(coordinator, lambda owners: owners == ("n2",))
    assert coordinator.replica.serve(Operation.READ, (mine,), b"ring-two", at(1))[0] == Status.OK
    assert not coordinator.replica.view_doubted
    assert coordinator.replica.serve(Operation.READ, (other,), b"ring-two", at(1)) == (
        Status.NOT_OWNER,
        (1, 5, b"ring-one"),
    )
    assert coordinator.replica.view_doubted
    assert coordinator.replica.not_owner_count == 1


def test_what_a_peer_with_another_ring_writes_is_passed_on_to_the_other_owners():
    coordinator = build("n1", "n2", "n3")
    replica, record = coordinator.replica, record_at(0.5)
    assert replica.serve(Operation.WRITE, (b"key", record), b"ring-one", at(1))[0] == Status.OK
    assert replica.serve(Operation.REPAIR, (b"other", record), b"ring-two", at(1))[0] == Status.OK
    assert coordinator.hints.pending == 0, "it knows them all, or was itself told"
    assert replica.serve(Operation.WRITE, (b"key", record_at(0.8)), b"ring-two", at(1))[0] == Status.OK
    assert replica.serve(Operation.WRITE, (b"key", record_at(0.7)), b"ring-two", at(1))[1][0] is False
    assert coordinator.hints.pending == 2


def test_a_stamp_too_far_ahead_is_refused_and_counted():
    coordinator = build("n1", "n2", "n3")
    ahead = record_at(1 + CLOCK_DRIFT_MAX_MS / 1000 + 0.1)
    assert coordinator.replica.serve(Operation.WRITE, (b"key", ahead), b"ring-one", at(1))[0] == Status.CLOCK_SKEW
    assert coordinator.replica.refused_stamp_count == 1
    assert coordinator.store.items == 0


def test_a_replica_tells_what_stands_above_an_older_write():
    coordinator = build("n1", "n2", "n3")
    newer, older = record_at(1), record_at(0.5)
    assert coordinator.replica.serve(Operation.WRITE, (b"key", newer), b"ring-one", at(1))[1][0] is True
    status, payload = coordinator.replica.serve(Operation.WRITE, (b"key", older), b"ring-one", at(1))
    assert (status, payload) == (Status.OK, (False, True, record_version(newer), at(1).unix_ms))
    assert coordinator.replica.serve(Operation.WRITE, (b"key", newer), b"ring-one", at(1))[0] == Status.OK, "idempotent"


# --- views that are not confirmed ---------------------------------------------------------------------------


def unconfirmed(*ids: str, replicas: int = 3):
    coordinator = build(*ids, replicas=replicas)
    coordinator.confirm(0.5, at(0))
    coordinator.store.apply(key_slot(b"key"), b"key", record_at(0.1, b"old"), UNIX_MS)
    return coordinator


def test_what_an_owner_would_do_alone_waits_until_its_view_is_confirmed():
    coordinator = unconfirmed("n1", replicas=1)
    read = coordinator.begin_read(ReadRequest(b"key"), at(1))
    write = coordinator.begin_write(WriteRequest(b"other", b"value"), at(1))
    assert (read.effects, write.effects) == ([], [])
    effects = coordinator.confirm(9.0, at(1.2))
    outcomes = {item.request_id: item.outcome for item in effects}
    assert record_value(outcomes[read.request_id].record) == b"old"
    assert outcomes[write.request_id].failure is None
    assert not outcomes[read.request_id].is_unconfirmed
    assert coordinator.requests_in_flight == 0
    assert coordinator.deadline() == float("inf")


def test_without_a_confirmation_one_replica_reads_with_a_mark_and_everything_else_is_refused():
    coordinator = unconfirmed("n1", "n2", "n3")
    one = coordinator.begin_read(ReadRequest(b"key", quorum="1"), at(1))
    strict = coordinator.begin_read(ReadRequest(b"key"), at(1))
    write = coordinator.begin_write(WriteRequest(b"key", b"new"), at(1))
    assert coordinator.deadline() == 1 + CONFIRMATION_WAIT_S
    outcomes = {item.request_id: item.outcome for item in coordinator.poll(at(1 + CONFIRMATION_WAIT_S))}
    assert outcomes[one.request_id].is_unconfirmed
    assert record_value(outcomes[one.request_id].record) == b"old"
    for pending in (strict, write):
        assert outcomes[pending.request_id].failure is Failure.UNAVAILABLE
    assert coordinator.store.get(key_slot(b"key"), b"key", UNIX_MS)[-3:] == b"old", "nothing was written"


def test_a_request_with_a_short_deadline_waits_no_longer_than_that():
    coordinator = unconfirmed("n1", "n2", "n3")
    coordinator.begin_write(WriteRequest(b"a", b"v"), at(1))
    short = coordinator.begin_write(WriteRequest(b"b", b"v", timeout_s=0.1), at(1))
    [ended] = coordinator.poll(at(1.1))
    assert (ended.request_id, ended.outcome.failure) == (short.request_id, Failure.UNAVAILABLE)


def test_a_peer_is_told_that_this_node_is_not_sure_to_own_a_key():
    coordinator = unconfirmed("n1", "n2", "n3")
    status, payload = coordinator.replica.serve(Operation.READ, (b"key",), b"", at(1))
    assert (status, record_value(payload[0])) == (Status.UNCONFIRMED, b"old")
    record = record_at(1, b"new")
    assert coordinator.replica.serve(Operation.WRITE, (b"key", record), b"", at(1)) == (Status.UNCONFIRMED, ())
    assert coordinator.replica.unconfirmed_count == 2


def test_a_read_that_nobody_is_sure_of_is_tried_for_a_second_and_then_served_with_a_mark():
    coordinator = build("n1", "n2", "n3", "n4")
    key = key_owned_by(coordinator, lambda owners: "n1" not in owners)
    coordinator.latencies.budget = -100.0  # Nobody else is asked meanwhile.
    effects = coordinator.begin_read(ReadRequest(key, quorum="1"), at(1)).effects
    now_s, rounds = 1.0, 0
    while not any(isinstance(effect, CompleteRequest) for effect in effects):
        rounds += not sends(effects)
        if calls := sends(effects):
            effects = coordinator.replied(calls[0].call_id, Status.UNCONFIRMED, (record_at(0.5, b"v"),), at(now_s))
        else:
            now_s += NOT_OWNER_PAUSE_S
            effects = coordinator.poll(at(now_s))
    assert (rounds, now_s) == (DOUBTED_MAX, 1 + CONFIRMATION_WAIT_S)
    assert completed(effects).is_unconfirmed
    assert record_value(completed(effects).record) == b"v"


def test_a_write_that_nobody_is_sure_of_begins_again_a_moment_later():
    coordinator = build("n1", "n2", "n3", "n4")
    key = key_owned_by(coordinator, lambda owners: "n1" not in owners)
    pending = coordinator.begin_write(WriteRequest(key, b"value"), at(1))
    for call in sends(pending.effects)[:2]:
        assert not coordinator.replied(call.call_id, Status.UNCONFIRMED, (), at(1.1))
    again = sends(coordinator.poll(at(1.1 + NOT_OWNER_PAUSE_S)))
    assert len(again) == 3
    version = record_version(again[0].arguments[1])
    coordinator.replied(again[0].call_id, Status.OK, acknowledged(newest=version), at(1.4))
    reply = acknowledged(newest=version)
    assert completed(coordinator.replied(again[1].call_id, Status.OK, reply, at(1.4))).failure is None


def test_a_read_that_too_few_level_owners_answer_asks_them_again_a_moment_later():
    coordinator = build("n1", "n2", "n3", "n4")
    key = key_owned_by(coordinator, lambda owners: "n1" not in owners)
    effects = coordinator.begin_read(ReadRequest(key), at(1)).effects
    while calls := sends(effects):
        effects = []
        for call in calls:
            reply = (
                found(None, is_level=False) if call.operation is Operation.READ else version_found(None, is_level=False)
            )
            effects += coordinator.replied(call.call_id, Status.OK, reply, at(1.1))
    assert effects == [], "it has not failed"
    again = sends(coordinator.poll(at(1.1 + NOT_OWNER_PAUSE_S)))
    assert again
    record = record_at(0.5)
    for call in again:
        reply = found(record) if call.operation is Operation.READ else version_found(record)
        effects += coordinator.replied(call.call_id, Status.OK, reply, at(1.5))
    assert record_value(completed(effects).record) == b"v"
