"""Versions, clocks and packed records."""

from hypothesis import given
from hypothesis import strategies as st

from zephyr.store.digest import entry_digest
from zephyr.store.record import (
    CLOCK_DRIFT_MAX_MS,
    DEFAULT_CONTENT_TYPE,
    HEADER_BYTES,
    HybridLogicalClock,
    pack_record,
    record_content_type,
    record_expires_unix_ms,
    record_is_tombstone,
    record_is_valid,
    record_value,
    record_version,
    version_unix_ms,
)

NOW_MS = 1_700_000_000_000


def _nearly_records(version):
    """Flags that exist, and anything after them."""
    return st.builds(lambda flags, rest: version + bytes([flags]) + rest, st.integers(0, 8), st.binary(max_size=40))


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=2000),
    st.integers(0, (1 << 48) - 1),
    st.binary(min_size=1, max_size=255),
    st.booleans(),
)
def test_a_record_survives_its_packing(version, value, expires_unix_ms, content_type, tombstone):
    record = pack_record(
        version, value, expires_unix_ms=expires_unix_ms, content_type=content_type, tombstone=tombstone
    )
    assert record_is_valid(record)
    assert record_version(record) == version
    assert record_value(record) == value
    assert record_expires_unix_ms(record) == expires_unix_ms
    assert record_content_type(record) == content_type
    assert record_is_tombstone(record) == tombstone


def test_the_usual_content_type_takes_no_room():
    assert len(pack_record(bytes(16), b"value")) == HEADER_BYTES + 5


@given(st.binary(max_size=60) | st.binary(min_size=16, max_size=16).flatmap(_nearly_records))
def test_arbitrary_bytes_are_a_record_only_if_they_can_be_read_as_one(data):
    if record_is_valid(data):
        content_type, value = record_content_type(data), record_value(data)
        expires_unix_ms, tombstone = record_expires_unix_ms(data), record_is_tombstone(data)
        packed = pack_record(
            record_version(data), value, expires_unix_ms=expires_unix_ms, content_type=content_type, tombstone=tombstone
        )
        assert packed == data or content_type == DEFAULT_CONTENT_TYPE


@given(st.lists(st.tuples(st.booleans(), st.integers(-2000, 2000)), min_size=1, max_size=60))
def test_a_clock_never_goes_back_and_stays_near_the_wall(steps):
    clock, other = HybridLogicalClock("n1"), HybridLogicalClock("n2")
    wall_ms, last, highest_ms = NOW_MS, b"", NOW_MS
    for observe, drift_ms in steps:
        wall_ms += drift_ms
        highest_ms = max(highest_ms, wall_ms)
        if observe:
            remote = other.stamp(wall_ms + drift_ms)
            taken = clock.observe(remote, wall_ms)
            if taken:
                highest_ms = max(highest_ms, wall_ms + CLOCK_DRIFT_MAX_MS)
        version = clock.stamp(wall_ms)
        assert version > last
        assert version_unix_ms(version) <= highest_ms + 1
        last = version


def test_a_stamp_beyond_the_drift_is_refused_and_changes_nothing():
    clock, ahead = HybridLogicalClock("n1"), HybridLogicalClock("n2")
    assert not clock.observe(ahead.stamp(NOW_MS + CLOCK_DRIFT_MAX_MS + 1), NOW_MS)
    assert version_unix_ms(clock.stamp(NOW_MS)) == NOW_MS
    assert clock.observe(ahead.stamp(NOW_MS + CLOCK_DRIFT_MAX_MS - 100), NOW_MS) is False, "it never goes back"
    honest = HybridLogicalClock("n3").stamp(NOW_MS + 200)
    assert clock.observe(honest, NOW_MS)
    assert clock.stamp(NOW_MS) > honest


def test_two_writers_of_one_millisecond_are_told_apart():
    first, second = HybridLogicalClock("n1").stamp(NOW_MS), HybridLogicalClock("n2").stamp(NOW_MS)
    assert first != second
    assert version_unix_ms(first) == version_unix_ms(second)


def test_a_digest_differs_by_key_version_and_tombstone_but_not_by_deadline():
    version, later = HybridLogicalClock("n1").stamp(NOW_MS), HybridLogicalClock("n1").stamp(NOW_MS + 1)
    plain = entry_digest(b"key", pack_record(version, b"v"))
    assert plain == entry_digest(b"key", pack_record(version, b"v", expires_unix_ms=5))
    others = {
        entry_digest(b"yek", pack_record(version, b"v")),
        entry_digest(b"key", pack_record(later, b"v")),
        entry_digest(b"key", pack_record(version, b"", tombstone=True)),
    }
    assert len(others | {plain}) == 4
