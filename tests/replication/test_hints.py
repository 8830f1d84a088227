"""Hints: kept within bounds, sent at the target's pace, and always in balance."""

from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zephyr.config import Settings
from zephyr.events import PeerAnswered, PeerCallFailed
from zephyr.model import Instant
from zephyr.peer.wire import Operation, Status
from zephyr.replication.hints import CALL_TIMEOUT_S, PAGE_HINTS_MAX, PAUSE_S, RETRY_S, Hints
from zephyr.ring.ring import RingMember, build_ring, key_slot
from zephyr.store.record import HybridLogicalClock, pack_record

UNIX_MS = 1_700_000_000_000
IDS = ("n1", "n2", "n3", "n4")
LEFT = ("n1", "n3", "n4")


def at(second: float) -> Instant:
    return Instant(second, UNIX_MS + int(second * 1000))


def ring(*ids: str):
    return build_ring(tuple(RingMember(node_id) for node_id in ids), 3, 64)


def record(second: float, value: bytes = b"v", **more: object) -> bytes:
    return pack_record(HybridLogicalClock("n1").stamp(UNIX_MS + int(second * 1000)), value, **more)


@pytest.fixture
def taken():
    return []


@pytest.fixture
def hints(taken):
    return Hints(Settings(id="n1"), lambda key, content, _now: taken.append((key, content)))


def answer(call, statuses):
    return PeerAnswered(call.call_id, Status.OK, tuple((status, ()) for status in statuses))


def test_the_newest_of_a_key_is_kept_and_sent_as_a_repair(hints):
    for second in (1, 3, 2):
        hints.keep("n2", b"key", record(second), 1.0)
    assert (hints.queued, hints.pending) == (1, 1)
    [call] = hints.poll(ring(*IDS), {"n2": True}, at(5))
    assert call.operation == Operation.MANY
    assert call.arguments == ((Operation.REPAIR, (b"key", record(3))),)
    assert hints.poll(ring(*IDS), {"n2": True}, at(5.1)) == [], "one call at a time"
    hints.on_answered(answer(call, [Status.OK]), ring(*IDS), at(5.2))
    assert (hints.delivered, hints.pending, hints.pending_bytes) == (1, 0, 0)
    hints.check_invariants()


def test_who_cannot_be_reached_is_sent_nothing(hints):
    hints.keep("n2", b"key", record(1), 1.0)
    assert hints.poll(ring(*IDS), {}, at(2)) == []
    assert len(hints.poll(ring(*IDS), {"n2": True}, at(hints.deadline()))) == 1


def test_pages_are_bounded_and_follow_each_other(hints):
    for number in range(PAGE_HINTS_MAX + 10):
        hints.keep("n2", b"key-%d" % number, record(1), 1.0)
    [first] = hints.poll(ring(*IDS), {"n2": True}, at(2))
    assert len(first.arguments) == PAGE_HINTS_MAX
    hints.on_answered(answer(first, [Status.OK] * PAGE_HINTS_MAX), ring(*IDS), at(2.01))
    assert hints.deadline() == pytest.approx(2.01 + PAUSE_S)
    [second] = hints.poll(ring(*IDS), {"n2": True}, at(2.1))
    assert len(second.arguments) == 10


def test_a_call_that_fails_or_is_never_answered_loses_nothing(hints):
    hints.keep("n2", b"key", record(1), 1.0)
    [call] = hints.poll(ring(*IDS), {"n2": True}, at(2))
    hints.on_failed(PeerCallFailed(call.call_id, "lost"), at(2.1))
    assert hints.deadline() == pytest.approx(2.1 + RETRY_S)
    [silent] = hints.poll(ring(*IDS), {"n2": True}, at(3.2))
    [again] = hints.poll(ring(*IDS), {"n2": True}, at(3.2 + CALL_TIMEOUT_S))
    hints.on_answered(answer(silent, [Status.OK]), ring(*IDS), at(6))
    assert hints.pending == 1, "the answer to a call that was given up"
    hints.on_answered(answer(again, [Status.OK]), ring(*IDS), at(6))
    assert hints.pending == 0


def test_a_newer_record_that_came_meanwhile_is_sent_too(hints):
    hints.keep("n2", b"key", record(1), 1.0)
    [call] = hints.poll(ring(*IDS), {"n2": True}, at(2))
    hints.keep("n2", b"key", record(2), 1.0)
    hints.on_answered(answer(call, [Status.OK]), ring(*IDS), at(2.1))
    assert hints.pending == 1
    [call] = hints.poll(ring(*IDS), {"n2": True}, at(3))
    assert call.arguments == ((Operation.REPAIR, (b"key", record(2))),)


def test_a_hint_for_who_left_the_ring_goes_to_the_present_owners(hints, taken):
    hints.keep("n2", b"key", record(1), 1.0)
    hints.poll(ring(*LEFT), {"n3": True, "n4": True}, at(2))
    assert hints.redirected == 1
    assert hints.targets_of(b"key") == tuple(owner for owner in ring(*LEFT).owners(key_slot(b"key")) if owner != "n1")
    assert taken == [(b"key", record(1))], "this node is an owner too"
    assert len(hints.poll(ring(*LEFT), {"n3": True, "n4": True}, at(2.1))) == 2


def test_expired_values_and_old_hints_are_dropped(hints):
    hints.keep("n2", b"short", record(1, expires_unix_ms=UNIX_MS + 5000), 1.0)
    hints.keep("n2", b"long", record(1), 1.0)
    hints.poll(ring(*IDS), {}, at(6))
    assert (hints.expired, hints.pending) == (1, 1)
    hints.poll(ring(*IDS), {}, at(1 + Settings(id="n1").hint_window + 1))
    assert (hints.expired, hints.pending) == (2, 0)
    hints.check_invariants()


def test_a_wall_clock_that_jumps_ends_no_hint(hints):
    hints.keep("n2", b"key", record(1), 1.0)
    hints.poll(ring(*IDS), {}, Instant(2.0, UNIX_MS + 3_600_000 * 24))
    assert (hints.expired, hints.pending) == (0, 1)


def test_a_stamp_that_is_refused_as_ahead_is_sent_again_and_lets_the_others_pass(hints):
    hints.keep("n2", b"ahead", record(1), 1.0)
    for number in range(PAGE_HINTS_MAX):
        hints.keep("n2", b"key-%d" % number, record(1), 1.0)
    [call] = hints.poll(ring(*IDS), {"n2": True}, at(2))
    statuses = [Status.CLOCK_SKEW] + [Status.OK] * (PAGE_HINTS_MAX - 1)
    hints.on_answered(answer(call, statuses), ring(*IDS), at(2.1))
    [call] = hints.poll(ring(*IDS), {"n2": True}, at(2.1 + RETRY_S))
    assert [arguments[0] for _, arguments in call.arguments] == [b"key-%d" % (PAGE_HINTS_MAX - 1), b"ahead"]
    hints.on_answered(answer(call, [Status.OK, Status.OK]), ring(*IDS), at(4))
    assert (hints.delivered, hints.pending) == (PAGE_HINTS_MAX + 1, 0)


def test_beyond_the_bounds_hints_are_dropped_and_their_slots_named():
    bounds = replace(Settings(id="n1"), hint_memory=3000, hint_memory_target=2000)
    hints = Hints(bounds, lambda *_: None)
    assert hints.keep("n2", b"a", record(1, bytes(1000)), 1.0)
    assert not hints.keep("n2", b"b", record(1, bytes(1000)), 1.0), "for one target"
    assert hints.keep("n3", b"a", record(1, bytes(1000)), 1.0)
    assert not hints.keep("n4", b"a", record(1, bytes(1000)), 1.0), "in all"
    assert not hints.keep("n2", b"a", record(2, bytes(2000)), 1.0), "the older one goes too"
    assert hints.targets_of(b"a") == ("n3",)
    assert list(hints.overflowed) == [key_slot(b"b"), key_slot(b"a")]
    hints.check_invariants()


class Balance(RuleBasedStateMachine):
    """Whatever happens in whatever order, no hint is lost from the books."""

    def __init__(self) -> None:
        super().__init__()
        bounds = replace(Settings(id="n1"), hint_memory=6000, hint_memory_target=2500, hint_window=60.0)
        self.hints = Hints(bounds, lambda *_: None)
        self.now_s = 1.0
        self.ring = ring(*IDS)
        self.calls = []

    @rule(target_id=st.sampled_from(IDS[1:]), key=st.integers(0, 5), size=st.integers(0, 900), ttl_s=st.integers(0, 9))
    def keep(self, target_id, key, size, ttl_s):
        expires_unix_ms = at(self.now_s + ttl_s).unix_ms if ttl_s else 0
        kept = record(self.now_s, bytes(size), expires_unix_ms=expires_unix_ms)
        self.hints.keep(target_id, b"key-%d" % key, kept, self.now_s)

    @rule(step_s=st.sampled_from([0.01, 1.0, 3.0, 30.0]), routable=st.sets(st.sampled_from(IDS)))
    def poll(self, step_s, routable):
        self.now_s += step_s
        self.calls += self.hints.poll(self.ring, dict.fromkeys(routable, True), at(self.now_s))

    @rule(ids=st.sampled_from([IDS, LEFT, ("n1", "n2")]))
    def change_ring(self, ids):
        self.ring = ring(*ids)

    @rule(status=st.sampled_from(list(Status)), short=st.booleans())
    def answer(self, status, short):
        if self.calls:
            call = self.calls.pop(0)
            statuses = [status] * (len(call.arguments) - short)
            self.hints.on_answered(answer(call, statuses), self.ring, at(self.now_s))

    @rule()
    def fail(self):
        if self.calls:
            self.hints.on_failed(PeerCallFailed(self.calls.pop(0).call_id, "lost"), at(self.now_s))

    @invariant()
    def balanced(self):
        self.hints.check_invariants()


TestBalance = Balance.TestCase
TestBalance.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
