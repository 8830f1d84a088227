"""What a change makes of a record, and how it travels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.model import Condition, Failure, Outcome, UpdateRequest
from zephyr.replication.update import (
    COUNTER_MAX,
    COUNTER_MIN,
    UPDATES_IN_LINE_MAX,
    Change,
    Lines,
    decide,
    decode_outcome,
    decode_update,
    encode_outcome,
    encode_update,
)
from zephyr.store.record import pack_record

NOW_UNIX_MS = 1_700_000_000_000
VERSION = (5).to_bytes(8, "big") + bytes(8)
OTHER = (6).to_bytes(8, "big") + bytes(8)
ANY = ()


def standing(value: bytes = b"old", **more: object) -> bytes:
    return pack_record(VERSION, value, **more)


def put(*conditions: Condition) -> UpdateRequest:
    return UpdateRequest(b"key", "put", conditions, value=b"new", content_type=b"text/plain")


@pytest.mark.parametrize(
    ("condition", "record", "is_met"),
    [
        (Condition(True, ANY), standing(), True),
        (Condition(True, ANY), None, False),
        (Condition(True, (VERSION, OTHER)), standing(), True),
        (Condition(True, (OTHER,)), standing(), False),
        (Condition(True, (b"no version of ours",)), standing(), False),
        (Condition(False, ANY), standing(), False),
        (Condition(False, ANY), None, True),
        (Condition(False, (VERSION,)), standing(), False),
        (Condition(False, (OTHER,)), standing(), True),
        (Condition(False, (VERSION,)), None, True),
    ],
)
def test_a_condition_is_about_what_stands(condition, record, is_met):
    decided = decide(put(condition), record, NOW_UNIX_MS)
    if is_met:
        assert decided == Change(b"new", b"text/plain", 0)
    else:
        assert decided.failure is Failure.PRECONDITION


def test_all_conditions_must_be_met():
    both = put(Condition(True, (VERSION,)), Condition(False, ANY))
    assert decide(both, standing(), NOW_UNIX_MS).failure is Failure.PRECONDITION


def increment(step: int, **more: object) -> UpdateRequest:
    return UpdateRequest(b"key", "increment", step=step, **more)


@pytest.mark.parametrize(
    ("value", "step", "becomes"),
    [
        (b"41", 1, b"42"),
        (b"-1", 1, b"0"),
        (b"007", 1, b"8"),
        (b"%d" % (COUNTER_MAX - 1), 1, b"%d" % COUNTER_MAX),
        (b"%d" % COUNTER_MAX, 1, None),
        (b"%d" % COUNTER_MIN, -1, None),
        (b"%d" % (COUNTER_MAX + 1), -1, None),
        (b"", 1, None),
        (b"1.5", 1, None),
        (b"+1", 1, None),
        (b"1\n", 1, None),
        (b"\xd9\xa1", 1, None),
        (b"9" * 30, 1, None),
    ],
)
def test_a_counter_is_an_integer_of_64_bits(value, step, becomes):
    decided = decide(increment(step), standing(value), NOW_UNIX_MS)
    if becomes is None:
        assert decided.failure is Failure.NOT_A_NUMBER
    else:
        assert decided.value == becomes


def test_a_counter_keeps_its_deadline_and_type_and_begins_at_zero():
    record = standing(b"1", expires_unix_ms=NOW_UNIX_MS + 9, content_type=b"text/plain")
    assert decide(increment(1, ttl_ms=60_000), record, NOW_UNIX_MS) == Change(b"2", b"text/plain", NOW_UNIX_MS + 9)
    created = decide(increment(-7, ttl_ms=60_000), None, NOW_UNIX_MS)
    assert (created.value, created.expires_unix_ms) == (b"-7", NOW_UNIX_MS + 60_000)


def test_a_deadline_is_set_and_taken_away_and_needs_a_value():
    record = standing(b"v", expires_unix_ms=NOW_UNIX_MS + 9, content_type=b"text/plain")
    later = UpdateRequest(b"key", "expire", ttl_ms=1000)
    assert decide(later, record, NOW_UNIX_MS) == Change(b"v", b"text/plain", NOW_UNIX_MS + 1000)
    assert decide(UpdateRequest(b"key", "expire"), record, NOW_UNIX_MS).expires_unix_ms == 0
    assert decide(later, None, NOW_UNIX_MS).failure is Failure.ABSENT


versions = st.binary(max_size=16)
conditions = st.tuples(st.booleans(), st.lists(versions, max_size=4).map(tuple)).map(lambda pair: Condition(*pair))
updates = st.builds(
    UpdateRequest,
    st.binary(min_size=1, max_size=64),
    st.sampled_from(["put", "delete", "increment", "expire"]),
    st.lists(conditions, max_size=8).map(tuple),
    st.binary(max_size=64),
    st.binary(max_size=255),
    st.none() | st.integers(1, 10**12),
    st.integers(COUNTER_MIN, COUNTER_MAX),
    st.none() | st.sampled_from(["1", "quorum", "all", "3"]),
)


@given(updates)
def test_an_update_travels_unchanged(request_):
    read = decode_update(encode_update(request_, 1500))
    request_.timeout_s = 1.5
    assert read == request_


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.binary(max_size=20) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=10).map(tuple),
        max_leaves=20,
    )
)
def test_anything_else_is_no_update_and_no_outcome(value):
    arguments = value if isinstance(value, tuple) else (value,)
    assert decode_update(arguments) is None or len(arguments) == 9
    assert decode_outcome(arguments) is None or len(arguments) == 8


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, b""), (0, bytes(2000)), (1, "append"), (2, ((True, (b"x" * 17,)),)), (2, ((True, ()),) * 9), (4, bytes(256)),
     (5, 0), (6, 1 << 63), (7, "many"), (7, "-1"), (8, 0), (8, 10**9)],
)  # fmt: skip
def test_an_update_out_of_bounds_is_refused(place, value):
    arguments = list(encode_update(put(), 1000))
    arguments[place] = value
    assert decode_update(tuple(arguments)) is None


def test_an_outcome_travels_unchanged():
    for failure in (None, *Failure):
        outcome = Outcome(failure, "why", standing(), VERSION, existed=True, answered=2, asked=3, hinted=("n3",))
        assert decode_outcome(encode_outcome(outcome)) == outcome


def test_updates_of_one_key_are_made_in_the_order_of_asking():
    lines = Lines()
    for request_id in (1, 2, 3):
        assert lines.join(b"key", request_id)
    assert lines.join(b"other", 4)
    assert lines.is_first(b"key", 1)
    assert not lines.is_first(b"key", 2)
    assert lines.is_first(b"other", 4)
    lines.leave(b"key", 2)
    assert lines.next_freed() is None, "the first is still at work"
    lines.leave(b"key", 1)
    assert lines.is_any_freed
    assert lines.next_freed() == 3
    assert lines.next_freed() is None
    for request_id, key in ((3, b"key"), (3, b"key"), (4, b"other")):
        lines.leave(key, request_id)
    assert lines.next_freed() is None
    assert not lines.has(b"key", 3)
    lines.check_invariants(())


def test_an_update_that_comes_again_keeps_its_place_and_a_full_line_takes_nobody():
    lines = Lines()
    for request_id in range(UPDATES_IN_LINE_MAX):
        assert lines.join(b"key", request_id)
    assert lines.join(b"key", 5)
    assert not lines.join(b"key", UPDATES_IN_LINE_MAX)
    assert not lines.has(b"key", UPDATES_IN_LINE_MAX)
    lines.leave(b"key", UPDATES_IN_LINE_MAX)
    assert not lines.is_any_freed
