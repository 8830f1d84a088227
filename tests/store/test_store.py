"""The store against a naive model, over random sequences of operations; and its promises one by one."""

import random

import pytest

from zephyr.config import SLOTS
from zephyr.ring.ring import key_slot
from zephyr.store.record import (
    VERSION_ZERO,
    HybridLogicalClock,
    pack_record,
    record_expires_unix_ms,
    record_is_tombstone,
    record_value,
    record_version,
)
from zephyr.store.store import (
    COLD_FILL_MAX,
    ENTRY_OVERHEAD_BYTES,
    GHOSTS_OF_SLOT_MAX,
    TOMBSTONE_OVERHEAD_BYTES,
    Store,
)

START_MS = 1_700_000_000_000
GRACE_MS = 60_000


def make(policy: str = "sieve", *, memory: int = 1 << 20, tombstones: int = 1 << 16, ghosts: int = 100) -> Store:
    return Store(
        memory_bytes_max=memory,
        tombstone_bytes_max=tombstones,
        tombstone_grace_ms=GRACE_MS,
        ghosts_max=ghosts,
        eviction=policy,
        slot_of=key_slot,
    )


class Writer:
    """Stamps records as a coordinator would."""

    def __init__(self) -> None:
        self.clock = HybridLogicalClock("n1")

    def value(self, at_ms: int, value: bytes = b"v", ttl_ms: int = 0) -> bytes:
        return pack_record(self.clock.stamp(at_ms), value, expires_unix_ms=at_ms + ttl_ms if ttl_ms else 0)

    def tombstone(self, at_ms: int) -> bytes:
        return pack_record(self.clock.stamp(at_ms), b"", tombstone=True)


def put(store: Store, key: bytes, record: bytes, at_ms: int, *, cold: bool = False):
    return store.apply(key_slot(key), key, record, at_ms, cold=cold)


def get(store: Store, key: bytes, at_ms: int) -> bytes | None:
    record = store.get(key_slot(key), key, at_ms)
    return None if record is None else record_value(record)


@pytest.mark.parametrize("policy", ["sieve", "lru"])
@pytest.mark.parametrize("seed", range(12))
def test_random_operations_agree_with_a_naive_model(policy: str, seed: int):
    """The model keeps the highest version ever seen of each key, and never forgets.

    What the store answers is what the model says, or nothing (a cache may miss); with room for everything
    it misses nothing. After each step the store's own books must balance.
    """
    rng = random.Random(f"{policy}/{seed}")
    roomy = seed % 2 == 0
    store = make(
        policy, memory=1 << 20 if roomy else 6000, tombstones=1 << 16 if roomy else 1500, ghosts=10_000 if roomy else 8
    )
    writer, now_ms = Writer(), START_MS
    newest: dict[bytes, bytes] = {}
    history: list[tuple[bytes, bytes]] = []
    dropped: dict[bytes, bool] = {}
    for step in range(400):
        now_ms += rng.choice([0, 1, 10, 400, 3000])
        key = b"key-%d" % rng.randrange(30)
        action = rng.random()
        if action < 0.35:
            ttl_ms = rng.choice([0, 0, 5, 1000, 20_000])
            record = writer.value(now_ms, b"%d" % step * rng.randrange(1, 40), ttl_ms)
            history.append((key, record))
            applied = put(store, key, record, now_ms)
            assert applied.applied
            assert applied.newest == record_version(record)
            newest[key] = record
            dropped.pop(key, None)
        elif action < 0.45:
            record = writer.tombstone(now_ms)
            history.append((key, record))
            assert put(store, key, record, now_ms).applied
            newest[key] = record
        elif action < 0.65 and history:
            key, record = rng.choice(history)  # An old record arrives again: a late write, or repair.
            standing = newest[key]
            applied = put(store, key, record, now_ms, cold=rng.random() < 0.5)
            if record_version(record) < record_version(standing) and key not in dropped:
                assert not applied.applied
        elif action < 0.70:
            store.expire(now_ms, rng.choice([1, 1000]))
        elif action < 0.72:
            store.drop_slot(key_slot(key))
            dropped[key] = True
        found = get(store, key, now_ms)
        expected = newest.get(key)
        live = expected is not None and not record_is_tombstone(expected)
        live = live and not 0 < record_expires_unix_ms(expected) <= now_ms
        if found is not None and key not in dropped:
            assert live, f"step {step}: {key!r} came back"
            assert found == record_value(expected)
        if roomy and live and key not in dropped:
            assert found is not None, f"step {step}: {key!r} is missing though there is room"
        store.check_invariants()


def test_a_record_comes_back_as_it_was_put():
    store, writer = make(), Writer()
    record = pack_record(writer.clock.stamp(START_MS), bytes(range(256)), content_type=b"text/plain")
    assert put(store, b"\x00\xff{", record, START_MS) == (True, False, record_version(record), False, False)
    assert store.get(key_slot(b"\x00\xff{"), b"\x00\xff{", START_MS) == record
    assert put(store, b"\x00\xff{", record, START_MS).applied, "the same record again changes nothing"
    assert store.items == 1


def test_the_higher_version_wins_in_either_order():
    writer = Writer()
    older, newer = writer.value(START_MS, b"older"), writer.value(START_MS + 1, b"newer")
    for order in ((older, newer), (newer, older)):
        store = make()
        results = [put(store, b"key", record, START_MS + 2) for record in order]
        assert get(store, b"key", START_MS + 2) == b"newer"
        assert results[-1].newest == record_version(newer)


def test_a_deadline_is_kept_to_the_millisecond_without_active_expiry():
    store, writer = make(), Writer()
    put(store, b"key", writer.value(START_MS, b"v", ttl_ms=100), START_MS)
    assert get(store, b"key", START_MS + 99) == b"v"
    assert get(store, b"key", START_MS + 100) is None
    assert store.items == 1, "active expiry has not come by yet"
    assert store.expire(START_MS + 2000, 100) == 1
    assert (store.items, store.expired) == (0, 1)
    store.check_invariants()


def test_active_expiry_takes_no_more_than_its_limit_and_forgets_nothing():
    store, writer = make(), Writer()
    for number in range(100):
        put(store, b"key-%d" % number, writer.value(START_MS, b"v", ttl_ms=10 + number), START_MS)
    assert store.next_expiry_unix_ms() is not None
    counts = [store.expire(START_MS + 5000, 30) for _ in range(5)]
    assert counts == [30, 30, 30, 10, 0]
    assert store.next_expiry_unix_ms() is None
    store.check_invariants()


def test_a_deadline_that_is_replaced_or_removed_no_longer_counts():
    store, writer = make(), Writer()
    put(store, b"key", writer.value(START_MS, b"short", ttl_ms=100), START_MS)
    put(store, b"key", writer.value(START_MS + 1, b"endless"), START_MS + 1)
    assert store.expire(START_MS + 10_000, 10) == 0
    assert get(store, b"key", START_MS + 10_000) == b"endless"
    store.check_invariants()


@pytest.mark.parametrize("policy", ["sieve", "lru"])
def test_an_item_larger_than_the_bound_is_refused_and_evicts_nothing(policy):
    store, writer = make(policy, memory=100_000), Writer()
    for number in range(100):
        put(store, b"key-%d" % number, writer.value(START_MS, bytes(100)), START_MS)
    before = (store.items, store.bytes_used)
    refused = put(store, b"large", writer.value(START_MS, bytes(100_000)), START_MS)
    assert refused.too_large
    assert not refused.applied
    assert (store.items, store.bytes_used) == before
    assert store.evictions == 0


@pytest.mark.parametrize("policy", ["sieve", "lru"])
def test_the_bound_holds_for_items_of_any_size_up_to_it(policy):
    store, writer, rng = make(policy, memory=50_000), Writer(), random.Random(1)
    for number in range(2000):
        size = rng.choice([0, 10, 1000, 40_000])
        key = b"key-%d" % number
        assert put(store, key, writer.value(START_MS + number, bytes(size)), START_MS + number).applied
        assert store.bytes_used <= store.bytes_max
        assert get(store, key, START_MS + number) is not None, "what was just written is not what goes"
    assert store.evictions > 0
    store.check_invariants()


@pytest.mark.parametrize("ghosts", [100, 2])
@pytest.mark.parametrize("end", ["deleted", "expired", "evicted"])
def test_what_is_gone_does_not_come_back_through_repair(end: str, ghosts: int):
    """Also when its ghost or its tombstone was itself forgotten: then the slot's floor stands in the way."""
    store, writer = make(memory=20_000, tombstones=1000, ghosts=ghosts), Writer()
    old = writer.value(START_MS, b"old", ttl_ms=1000 if end == "expired" else 0)
    put(store, b"{tag}victim", old, START_MS)
    now_ms = START_MS + 5000
    if end == "deleted":
        put(store, b"{tag}victim", writer.tombstone(now_ms), now_ms)
        for number in range(50):  # More tombstones than their budget keeps.
            put(store, b"{tag}%d" % number, writer.tombstone(now_ms), now_ms)
    elif end == "expired":
        assert store.expire(now_ms, 10) == 1
    for number in range(500):
        put(store, b"{tag}filler-%d" % number, writer.value(now_ms, bytes(100), ttl_ms=10_000), now_ms)
    assert get(store, b"{tag}victim", now_ms) is None
    store.expire(now_ms + 20_000, 10_000)
    for cold in (True, False):
        again = put(store, b"{tag}victim", old, now_ms + 20_000, cold=cold)
        assert not again.applied
        assert again.newest >= record_version(old)
    assert get(store, b"{tag}victim", now_ms + 20_000) is None
    store.check_invariants()


def test_a_newer_write_lands_over_every_mark():
    store, writer = make(), Writer()
    put(store, b"key", writer.tombstone(START_MS), START_MS)
    fresh = writer.value(START_MS + 1, b"again")
    applied = put(store, b"key", fresh, START_MS + 1)
    assert applied.applied
    assert not applied.existed
    assert (store.tombstones, store.tombstone_bytes) == (0, 0)
    assert get(store, b"key", START_MS + 1) == b"again"
    store.check_invariants()


def test_a_tombstone_is_seen_by_peek_and_hidden_from_get():
    store, writer = make(), Writer()
    tombstone = writer.tombstone(START_MS)
    put(store, b"key", tombstone, START_MS)
    assert store.peek(key_slot(b"key"), b"key", START_MS) == tombstone
    assert store.get(key_slot(b"key"), b"key", START_MS) is None


def test_a_tombstone_goes_after_its_grace_and_leaves_its_version_as_the_floor():
    store, writer = make(), Writer()
    tombstone = writer.tombstone(START_MS)
    put(store, b"key", tombstone, START_MS)
    assert store.expire(START_MS + GRACE_MS - 1, 10) == 0
    assert store.expire(START_MS + GRACE_MS, 10) == 1
    assert store.tombstones == 0
    assert store.floor(key_slot(b"key")) == record_version(tombstone)
    assert store.floor((key_slot(b"key") + 1) % SLOTS) == VERSION_ZERO


def test_values_never_push_tombstones_out():
    store, writer = make(memory=20_000), Writer()
    for number in range(20):
        put(store, b"gone-%d" % number, writer.tombstone(START_MS), START_MS)
    for number in range(1000):
        put(store, b"key-%d" % number, writer.value(START_MS, bytes(100)), START_MS)
    assert store.tombstones == 20


def test_repair_inserts_at_the_cold_end_and_stops_at_high_water():
    store, writer = make(memory=100_000), Writer()
    number = 0
    while not (
        applied := put(store, b"cold-%d" % number, writer.value(START_MS, bytes(100)), START_MS, cold=True)
    ).full:
        number += 1
    assert not applied.applied
    assert store.evictions == 0
    assert store.bytes_used <= store.bytes_max * COLD_FILL_MAX
    while store.evictions == 0:
        number += 1
        put(store, b"warm-%d" % number, writer.value(START_MS, bytes(100)), START_MS)
    assert all(get(store, b"warm-%d" % item, START_MS) for item in range(number + 1) if item > number - 10)


def test_a_dropped_slot_is_gone_without_marks():
    store, writer = make(), Writer()
    record = writer.value(START_MS, b"v", ttl_ms=1000)
    put(store, b"{a}1", record, START_MS)
    put(store, b"{a}2", writer.tombstone(START_MS), START_MS)
    put(store, b"{b}1", writer.value(START_MS), START_MS)
    slot = key_slot(b"{a}1")
    assert sorted(store.occupied_slots()) == sorted({slot, key_slot(b"{b}1")})
    assert store.drop_slot(slot) == 2
    assert (store.items, store.tombstones) == (1, 0)
    assert store.slot_digest(slot) == 0
    assert list(store.slot_items(slot)) == []
    assert put(store, b"{a}1", record, START_MS).applied, "it may come back when the slot does"
    store.check_invariants()


def test_equal_entries_give_equal_digests_whatever_their_history():
    writer, rng = Writer(), random.Random(5)
    records = [(b"{t}%d" % rng.randrange(20), writer.value(START_MS + n, b"%d" % n)) for n in range(100)]
    records += [(b"{t}%d" % n, writer.tombstone(START_MS + 200)) for n in range(5)]
    slot = key_slot(b"{t}")
    digests = []
    for _ in range(3):
        store = make()
        rng.shuffle(records)
        for key, record in records:
            put(store, key, record, START_MS + 300)
        digests.append(store.slot_digest(slot))
    assert len(set(digests)) == 1
    assert digests[0] != 0


def test_the_count_of_bytes_is_that_of_keys_records_and_a_named_overhead():
    store, writer = make(), Writer()
    record = writer.value(START_MS, bytes(28))
    put(store, b"k" * 24, record, START_MS)
    assert store.bytes_used >= 24 + len(record) + ENTRY_OVERHEAD_BYTES
    put(store, b"k" * 24, writer.tombstone(START_MS), START_MS)
    assert store.tombstone_bytes == 24 + TOMBSTONE_OVERHEAD_BYTES


def test_hits_and_misses_are_counted():
    store, writer = make(), Writer()
    put(store, b"key", writer.value(START_MS), START_MS)
    get(store, b"key", START_MS)
    get(store, b"other", START_MS)
    assert (store.hits, store.misses) == (1, 1)


def test_emptied_entries_do_not_pile_up():
    store, writer = make(memory=64 << 20), Writer()
    for number in range(20_000):
        key = b"key-%d" % number
        put(store, key, writer.value(START_MS + number), START_MS + number)
        put(store, key, writer.tombstone(START_MS + number), START_MS + number)
    assert store._emptied < 2000
    store.check_invariants()


@pytest.mark.parametrize(("tag", "ghosts_max"), [(b"", 1000), (b"{tag}", 10_000)])
def test_ghosts_stay_within_their_bounds_and_what_is_forgotten_raises_the_floor(tag: bytes, ghosts_max: int):
    store, writer = make(ghosts=ghosts_max), Writer()
    keys = [tag + b"k%d" % number for number in range(2 * GHOSTS_OF_SLOT_MAX)]
    for first in range(0, len(keys), 500):
        for key in keys[first : first + 500]:
            assert put(store, key, writer.value(START_MS, ttl_ms=1000), START_MS).applied
        while store.expire(START_MS + 2000, 200):
            pass
    assert store.ghosts == min(ghosts_max, GHOSTS_OF_SLOT_MAX if tag else ghosts_max)
    for key in keys:
        assert store.ghost(key_slot(key), key) or store.floor(key_slot(key)) > VERSION_ZERO
    store.check_invariants()


def test_the_ghosts_of_another_owner_outdate_what_is_older_and_nothing_else():
    mine, other, writer = make(), make(), Writer()
    old, same, new = (writer.value(START_MS, value, ttl_ms=1000) for value in (b"old", b"same", b"new"))
    put(mine, b"{a}older", old, START_MS)
    put(mine, b"{a}same", same, START_MS)
    put(mine, b"{a}newer", new, START_MS)
    for key in (b"{a}older", b"{a}same", b"{a}newer", b"{a}unknown"):
        put(other, key, same, START_MS)
    assert other.expire(START_MS + 2000, 10) == 4
    slot = key_slot(b"{a}")
    mine.remember_ghosts(slot, other.slot_ghosts(slot))
    assert [get(mine, key, START_MS) for key in (b"{a}older", b"{a}same", b"{a}newer")] == [None, b"same", b"new"]
    assert not put(mine, b"{a}unknown", old, START_MS).applied
    mine.check_invariants()


def test_what_another_owner_evicted_is_taken_from_whoever_has_it_yet():
    store, other, writer = make(), make(memory=2000), Writer()
    older, evicted = writer.value(START_MS, b"older"), writer.value(START_MS, b"evicted")
    put(other, b"key", evicted, START_MS)
    for number in range(20):
        put(other, b"filler-%d" % number, writer.value(START_MS, bytes(100)), START_MS)
    slot = key_slot(b"key")
    assert other.ghost(slot, b"key") == record_version(evicted)
    store.remember_ghosts(slot, other.slot_ghosts(slot))
    assert not put(store, b"key", older, START_MS).applied
    assert put(store, b"key", evicted, START_MS, cold=True).applied
    store.check_invariants()


def fetch(store: Store, key: bytes, record: bytes, at_ms: int):
    return store.apply(key_slot(key), key, record, at_ms, cold=True, fetched=True)


def test_what_this_node_evicted_or_forgot_is_fetched_again_and_nothing_older_than_what_it_knows():
    store, writer = make(ghosts=1), Writer()
    older, forgotten, expired = (writer.value(START_MS, value, ttl_ms=1000) for value in (b"o", b"f", b"e"))
    put(store, b"{a}1", expired, START_MS)
    put(store, b"{a}2", forgotten, START_MS)
    put(store, b"{a}3", writer.tombstone(START_MS), START_MS)
    store.expire(START_MS + 2000, 10)
    assert store.ghost(key_slot(b"{a}"), b"{a}1") == record_version(expired)
    assert store.floor(key_slot(b"{a}")) == record_version(forgotten)
    for key, record in ((b"{a}1", expired), (b"{a}2", forgotten)):
        assert not put(store, key, record, START_MS, cold=True).applied
        assert fetch(store, key, record, START_MS).applied
    assert not fetch(store, b"{a}1", older, START_MS).applied
    assert not fetch(store, b"{a}3", expired, START_MS).applied
    store.check_invariants()


def test_a_deletion_before_a_value_that_expired_elsewhere_says_no_more_than_that_did():
    store, writer = make(), Writer()
    deletion, between, expired = writer.tombstone(START_MS), writer.value(START_MS), writer.value(START_MS, ttl_ms=1)
    put(store, b"key", deletion, START_MS)
    other = make()
    put(other, b"key", expired, START_MS)
    other.expire(START_MS + 2000, 10)
    slot = key_slot(b"key")
    store.remember_ghosts(slot, other.slot_ghosts(slot))
    assert store.standing(slot, b"key", START_MS)[1] > record_version(between)
    assert not fetch(store, b"key", between, START_MS).applied
    assert store.slot_digest(slot) == 0
    store.check_invariants()


def test_what_is_older_than_a_ghost_goes_even_where_there_is_no_room_for_the_ghost():
    store, other, writer = make(ghosts=1), make(), Writer()
    put(store, b"{a}own", writer.value(START_MS, ttl_ms=1000), START_MS)
    put(store, b"{a}key", writer.value(START_MS), START_MS)
    store.expire(START_MS + 2000, 10)
    put(other, b"{a}key", writer.value(START_MS, ttl_ms=1), START_MS)
    other.expire(START_MS + 2000, 10)
    store.remember_ghosts(key_slot(b"{a}"), other.slot_ghosts(key_slot(b"{a}")))
    assert get(store, b"{a}key", START_MS + 2000) is None
    store.check_invariants()


def test_a_deletion_stands_where_there_is_no_room_for_what_came_after_it():
    store, writer = make(ghosts=1), Writer()
    before, deletion = writer.value(START_MS), writer.tombstone(START_MS)
    put(store, b"{a}own", writer.value(START_MS, ttl_ms=1000), START_MS)
    put(store, b"{a}key", deletion, START_MS)
    store.expire(START_MS + 2000, 10)
    other = make()
    put(other, b"{a}key", writer.value(START_MS, ttl_ms=1), START_MS)
    other.expire(START_MS + 2000, 10)
    store.remember_ghosts(key_slot(b"{a}"), other.slot_ghosts(key_slot(b"{a}")))
    assert not fetch(store, b"{a}key", before, START_MS).applied
    store.check_invariants()


def test_ghosts_of_others_push_none_of_this_nodes_own_out():
    store, writer = make(ghosts=2), Writer()
    put(store, b"{a}own", writer.value(START_MS, ttl_ms=1000), START_MS)
    store.expire(START_MS + 2000, 10)
    slot = key_slot(b"{a}")
    store.remember_ghosts(slot, dict.fromkeys(range(5), record_version(writer.value(START_MS))))
    store.remember_ghosts(slot, {0: VERSION_ZERO})
    assert store.ghosts == 2
    assert store.ghost(slot, b"{a}own")
    assert store.floor(slot) == VERSION_ZERO
    store.check_invariants()


def test_a_slot_that_is_fetched_has_no_floor():
    store, writer = make(ghosts=1), Writer()
    for key in (b"{a}1", b"{a}2"):
        put(store, key, writer.value(START_MS, ttl_ms=1000), START_MS)
    store.expire(START_MS + 2000, 10)
    slot = key_slot(b"{a}")
    assert store.floor(slot) > VERSION_ZERO
    store.forget_floor(slot)
    assert store.floor(slot) == VERSION_ZERO


def test_a_full_store_takes_from_repair_what_is_no_larger_and_drops_what_it_would_replace():
    store, writer = make(memory=100_000), Writer()
    put(store, b"a", writer.value(START_MS, bytes(100)), START_MS)
    put(store, b"b", writer.value(START_MS, bytes(100)), START_MS)
    number = 0
    while not put(store, b"cold-%d" % number, writer.value(START_MS, bytes(100)), START_MS, cold=True).full:
        number += 1
    assert put(store, b"a", writer.value(START_MS, b"x" * 100), START_MS, cold=True).applied
    assert get(store, b"a", START_MS) == b"x" * 100
    larger = writer.value(START_MS, bytes(1000))
    refused = put(store, b"b", larger, START_MS, cold=True)
    assert (refused.applied, refused.full) == (False, True)
    assert get(store, b"b", START_MS) is None, "a miss, and nothing outdated"
    assert put(store, b"b", larger, START_MS).applied, "the write itself may come after a repair that was quicker"
    store.check_invariants()
