"""Level slots: machines of one cluster, joined in memory."""

import random
import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zephyr.config import SLOTS, Settings
from zephyr.events import DatagramReceived, PeerAnswered, PeerCallFailed, SendPeer, Started, TimerFired
from zephyr.gossip.messages import Alive, Packet
from zephyr.model import Instant, Member
from zephyr.node import Node
from zephyr.peer.wire import Operation, Status
from zephyr.replication.level import (
    CALL_TIMEOUT_S,
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
    RETRY_S,
    RINGS_DIFFER_MAX_S,
    RINGS_KEPT_S,
    SLOTS_MAX,
    Levels,
)
from zephyr.ring.ring import RingMember, build_ring, key_slot
from zephyr.store.record import HybridLogicalClock, pack_record
from zephyr.store.store import Store

UNIX_MS = 1_700_000_000_000


def at(second: float) -> Instant:
    return Instant(second, UNIX_MS + int(second * 1000))


def ring(*ids: str, replicas: int = 3):
    return build_ring(tuple(RingMember(node_id) for node_id in ids), replicas, 64)


class Side:
    """One node's store and what it knows of its slots."""

    def __init__(self, node_id: str, memory: int = 64 << 20, ghosts: int = 1000):
        self.id = node_id
        self.store = Store(
            memory_bytes_max=memory, tombstone_bytes_max=1 << 20, tombstone_grace_ms=3_600_000, ghosts_max=ghosts,
            eviction="sieve", slot_of=key_slot,
        )  # fmt: skip
        self.clock = HybridLogicalClock(node_id)
        self.levels = Levels(node_id, ring(), self.store, self.clock)

    def put(self, key: bytes, value: bytes | None, second: float = 0.0) -> bytes:
        version = self.clock.stamp(at(second).unix_ms)
        record = pack_record(version, value or b"", tombstone=value is None)
        assert self.store.apply(key_slot(key), key, record, at(second).unix_ms).applied
        return record

    def take(self, key: bytes, record: bytes) -> None:
        self.store.apply(key_slot(key), key, record, UNIX_MS)

    def value(self, key: bytes) -> bytes | None:
        record = self.store.get(key_slot(key), key, UNIX_MS + 60_000)
        return None if record is None else record[17:]


class Cluster:
    """Sides with one ring, whose pages travel at once."""

    def __init__(self, *ids: str, replicas: int = 3):
        self.replicas = replicas
        self.sides = {node_id: Side(node_id) for node_id in ids}
        self.dead: dict[str, bool] = {}
        self.second = 1.0
        self.pages: list[SendPeer] = []
        for side in self.sides.values():
            side.levels.ring_changed(ring(*ids, replicas=replicas), at(1))
        self.settle()

    def living(self) -> dict[str, bool]:
        return {node_id: True for node_id in self.sides if node_id not in self.dead}

    def change(self, *ids: str) -> None:
        """Use another ring everywhere."""
        for node_id in ids:
            self.sides.setdefault(node_id, Side(node_id))
        for node_id in self.living():
            self.sides[node_id].levels.ring_changed(ring(*ids, replicas=self.replicas), at(self.second))

    def step(self, duration_s: float = 0.01) -> None:
        """Let every living node ask once, and take in the answers."""
        self.second += duration_s
        for node_id in self.living():
            side = self.sides[node_id]
            for call in side.levels.poll(self.living(), at(self.second)):
                self.pages.append(call)
                if call.node_id not in self.dead:
                    status, payload = self.sides[call.node_id].levels.serve(call.arguments)
                    side.levels.on_answered(PeerAnswered(call.call_id, status, payload), at(self.second))
            side.levels.check_invariants()
            side.store.check_invariants()

    def settle(self, steps: int = 400) -> None:
        for _ in range(steps):
            if all(self.sides[node_id].levels.is_done for node_id in self.living()):
                return
            self.step()
        pytest.fail(f"not level: { {node_id: side.levels.pending for node_id, side in self.sides.items()} }")

    def owners(self, key: bytes) -> tuple[str, ...]:
        return ring(*self.living(), replicas=self.replicas).owners(key_slot(key))

    def write(self, key: bytes, value: bytes | None) -> None:
        owners = self.owners(key)
        record = self.sides[owners[0]].put(key, value, self.second)
        for node_id in owners[1:]:
            self.sides[node_id].take(key, record)


def asked(side: Side, living: dict[str, bool]) -> list[SendPeer]:
    """Have a node look at all of its slots; return what it asked meanwhile."""
    calls = side.levels.poll(living, at(2))
    while side.levels.pending and side.levels.deadline() == float("-inf"):
        calls += side.levels.poll(living, at(2))
    return calls


KEYS = [b"key-%d" % number for number in range(600)]


def filled(*ids: str, replicas: int = 3) -> Cluster:
    cluster = Cluster(*ids, replicas=replicas)
    for key in KEYS:
        cluster.write(key, b"value of " + key)
    return cluster


def assert_complete(cluster: Cluster) -> None:
    for key in KEYS:
        for node_id in cluster.owners(key):
            assert cluster.sides[node_id].value(key) == b"value of " + key, (node_id, key)


def test_an_empty_cluster_is_level_within_a_few_pages():
    cluster = Cluster("n1", "n2", "n3", "n4", "n5")
    assert len(cluster.pages) < 200
    assert {call.operation for call in cluster.pages} == {Operation.PULL}


def test_alone_a_node_is_level_at_once():
    cluster = Cluster("n1")
    assert cluster.pages == []


def test_who_takes_a_dead_members_place_fetches_what_it_had():
    cluster = filled("n1", "n2", "n3", "n4", "n5")
    cluster.dead["n2"] = True
    cluster.change("n1", "n3", "n4", "n5")
    assert not all(cluster.sides[node_id].levels.is_done for node_id in cluster.living())
    cluster.settle()
    assert_complete(cluster)


def test_a_node_that_began_anew_has_everything_again():
    cluster = filled("n1", "n2", "n3", "n4", "n5")
    cluster.sides["n2"] = Side("n2")
    cluster.sides["n2"].levels.ring_changed(ring("n1", "n2", "n3", "n4", "n5"), at(1))
    cluster.settle()
    assert_complete(cluster)


def test_one_after_the_other_may_die_and_nothing_is_lost():
    cluster = filled("n1", "n2", "n3", "n4", "n5", "n6")
    for victim, rest in (("n1", "23456"), ("n4", "2356"), ("n6", "235")):
        cluster.dead[victim] = True
        cluster.change(*(f"n{number}" for number in rest))
        cluster.settle()
        assert_complete(cluster)


def test_a_newcomer_fetches_its_share():
    cluster = filled("n1", "n2", "n3", "n4")
    cluster.change("n1", "n2", "n3", "n4", "n5")
    cluster.settle()
    assert_complete(cluster)


def test_a_slot_is_level_when_all_others_have_been_asked_and_not_before():
    cluster = filled("n1", "n2", "n3")
    newcomer = cluster.sides["n2"] = Side("n2")
    newcomer.levels.ring_changed(ring("n1", "n2", "n3"), at(1))
    slot = key_slot(KEYS[0])
    assert not newcomer.levels.is_level(slot), "not even before anybody looked at it"
    calls = asked(newcomer, cluster.living())
    assert not newcomer.levels.is_level(slot)
    assert {call.node_id for call in calls} == {"n1", "n3"}
    cluster.settle()
    assert newcomer.levels.is_level(slot)


def test_what_an_owner_keeps_over_a_change_of_the_ring_stays_level():
    cluster = filled("n1", "n2", "n3", "n4", "n5")
    cluster.change("n1", "n2", "n3", "n4")
    kept = ring("n1", "n2", "n3", "n4", "n5")
    levels = cluster.sides["n1"].levels
    assert all(levels.is_level(slot) for slot in range(SLOTS) if "n1" in kept.owners(slot))


def test_deletions_travel_and_newer_values_stay():
    cluster = filled("n1", "n2", "n3")
    cluster.write(KEYS[0], None)
    newcomer = cluster.sides["n2"] = Side("n2")
    newcomer.put(KEYS[1], b"written meanwhile", second=30.0)
    newcomer.take(KEYS[0], pack_record(HybridLogicalClock("n9").stamp(UNIX_MS - 1000), b"long ago"))
    newcomer.levels.ring_changed(ring("n1", "n2", "n3"), at(1))
    cluster.settle()
    assert newcomer.value(KEYS[0]) is None
    assert newcomer.value(KEYS[1]) == b"written meanwhile"


def expiring(cluster: Cluster, key: bytes, second: float, *, missed_by: str) -> None:
    """Have a value of a key replaced by one that expires a second later, everywhere but at one owner."""
    cluster.write(key, b"old")
    owners = cluster.owners(key)
    writer = cluster.sides[owners[0]]
    unix_ms = at(second).unix_ms
    record = pack_record(writer.clock.stamp(unix_ms), b"short", expires_unix_ms=unix_ms + 1000)
    for node_id in owners:
        if node_id != missed_by:
            cluster.sides[node_id].store.apply(key_slot(key), key, record, unix_ms)


@pytest.mark.parametrize("is_expired", [True, False])
def test_what_expired_at_the_others_does_not_come_back_from_one_that_missed_it(is_expired):
    cluster = Cluster("n1", "n2", "n3", "n4")
    keys = [key for key in KEYS if cluster.owners(key)[0] != "n1"]
    for key in keys:
        expiring(cluster, key, 5, missed_by=cluster.owners(key)[2])
    if is_expired:
        for side in cluster.sides.values():
            side.store.expire(at(7).unix_ms, 10_000)
    cluster.second = 8.0
    cluster.dead["n1"] = True
    cluster.change("n2", "n3", "n4")
    cluster.settle()
    newcomers = 0
    for key in keys:
        before = ring("n1", "n2", "n3", "n4").owners(key_slot(key))
        for node_id in cluster.owners(key):
            if node_id not in before and before[2] != "n1":
                newcomers += 1
                assert cluster.sides[node_id].value(key) is None, key
    assert newcomers > 50


def test_what_one_owner_evicted_is_fetched_from_another_in_whatever_order_they_answer():
    cluster = filled("n1", "n2", "n3", "n4", "n5")
    for key in KEYS:
        evictor, slot = cluster.sides[cluster.owners(key)[1]].store, key_slot(key)
        version = evictor.get(slot, key, UNIX_MS)[:16]
        evictor.drop_slot(slot)
        evictor.apply(slot, key, pack_record(version, b"", expires_unix_ms=UNIX_MS), UNIX_MS - 1, fetched=True)
        evictor.expire(UNIX_MS, 1)
    cluster.dead["n5"] = True
    cluster.change("n1", "n2", "n3", "n4")
    cluster.settle()
    fetched = 0
    for key in KEYS:
        before = ring("n1", "n2", "n3", "n4", "n5").owners(key_slot(key))
        for node_id in cluster.owners(key):
            if node_id not in before:
                fetched += 1
                assert cluster.sides[node_id].value(key) == b"value of " + key
    assert fetched > 200


def test_ghosts_fill_pages_of_their_own_and_a_slot_is_done_with_the_last_of_them():
    source, slots = Side("n1", ghosts=100_000), tuple(range(40))
    source.levels.ring_changed(ring("n1"), at(1))
    version = source.clock.stamp(UNIX_MS)
    for slot in slots:
        source.store.remember_ghosts(slot, dict.fromkeys(range(slot * 20), version))
    source.put(KEYS[0], b"x" * PAGE_BYTES_MAX)
    slots = (key_slot(KEYS[0]), *slots)
    after_key, found, pages = b"", 0, 0
    while slots:
        packed = struct.pack(f">{len(slots)}H", *slots)
        status, (pairs, done, after_key, _, ghosts) = source.levels.serve((packed, after_key))
        assert status == Status.OK
        assert len(ghosts) <= PAGE_BYTES_MAX
        assert done or after_key or pairs, "every page goes on"
        slots, found, pages = slots[done:], found + len(ghosts) // 26, pages + 1
    assert found == sum(slot * 20 for slot in range(40))
    assert 10 < pages < 20


def test_who_has_nothing_of_a_slot_and_did_not_own_it_lately_sends_no_ghosts_and_skips_no_key():
    source = Side("n1")
    version = source.clock.stamp(UNIX_MS)
    first, second = key_slot(KEYS[0]), key_slot(KEYS[1])
    source.store.remember_ghosts(first, {1: version})
    source.put(KEYS[1], b"value")
    status, payload = source.levels.serve((struct.pack(">2H", first, second), b"zzz"))
    assert status == Status.OK
    assert [key for key, _ in payload[0]] == [KEYS[1]]
    assert payload[4] == b""
    source.levels.ring_changed(ring("n1"), at(1))
    source.levels.ring_changed(ring("n2"), at(2))
    assert len(source.levels.serve((struct.pack(">2H", first, second), b""))[1][4]) == 26


def test_a_floor_stands_in_the_way_of_nothing_that_is_fetched_anew():
    cluster = filled("n1", "n2", "n3")
    for key in KEYS:
        store = cluster.sides["n1"].store
        store.drop_slot(key_slot(key))
        store._raise_floor(key_slot(key), cluster.sides["n2"].clock.stamp(at(50).unix_ms))
    cluster.sides["n1"].levels.begin_anew(at(cluster.second))
    cluster.settle()
    assert_complete(cluster)
    assert not any(cluster.sides["n1"].store.floor(key_slot(key)).strip(b"\0") for key in KEYS)


def test_a_ghost_from_a_clock_far_ahead_is_refused():
    side = Side("n1")
    side.levels.ring_changed(ring("n1", "n2"), at(1))
    [call] = asked(side, {"n2": True})[-1:]
    [slot] = struct.unpack(">H", call.arguments[0][:2])
    ghosts = b"".join(
        struct.pack(">HQ16s", slot, number, HybridLogicalClock("n2").stamp(at(2).unix_ms + ahead_ms))
        for number, ahead_ms in enumerate((0, 10_000))
    )
    side.levels.on_answered(PeerAnswered(call.call_id, Status.OK, ((), 1, b"", b"", ghosts)), at(2))
    assert list(side.store.slot_ghosts(slot)) == [0]


def test_pages_are_bounded_by_keys_and_by_bytes():
    cluster = Cluster("n1", "n2", replicas=2)
    tag = b"{one slot}"
    for number in range(PAGE_KEYS_MAX + 100):
        cluster.write(tag + b"%d" % number, b"x")
    for number in range(20):
        cluster.write(tag + b"large-%d" % number, b"y" * 10_000)
    cluster.sides["n2"] = Side("n2")
    cluster.sides["n2"].levels.ring_changed(ring("n1", "n2", replicas=2), at(1))
    sizes = []
    serve = cluster.sides["n1"].levels.serve

    def measured(arguments):
        status, payload = serve(arguments)
        pairs = payload[0]
        sizes.append((len(pairs), sum(len(key) + len(record) for key, record in pairs)))
        return status, payload

    cluster.sides["n1"].levels.serve = measured
    cluster.settle()
    assert cluster.sides["n2"].store.items == PAGE_KEYS_MAX + 120
    assert max(count for count, _ in sizes) <= PAGE_KEYS_MAX
    assert max(size for _, size in sizes) <= PAGE_BYTES_MAX


def test_a_record_larger_than_a_page_travels_alone():
    cluster = Cluster("n1", "n2", replicas=2)
    cluster.write(b"large", b"z" * (4 * PAGE_BYTES_MAX))
    cluster.sides["n2"] = Side("n2")
    cluster.sides["n2"].levels.ring_changed(ring("n1", "n2", replicas=2), at(1))
    cluster.settle()
    assert len(cluster.sides["n2"].value(b"large")) == 4 * PAGE_BYTES_MAX


def test_fetching_evicts_nothing():
    cluster = Cluster("n1", "n2", replicas=2)
    for number in range(300):
        cluster.write(b"key-%d" % number, b"v" * 1000)
    small = cluster.sides["n2"] = Side("n2", memory=100_000)
    small.put(b"own", b"value", second=5.0)
    small.levels.ring_changed(ring("n1", "n2", replicas=2), at(1))
    cluster.settle()
    assert small.store.evictions == 0
    assert small.value(b"own") == b"value"


def test_a_source_that_fails_is_asked_again_and_one_that_dies_is_waited_for_until_it_is_out_of_the_ring():
    cluster = filled("n1", "n2", "n3")
    newcomer = cluster.sides["n2"] = Side("n2")
    newcomer.levels.ring_changed(ring("n1", "n2", "n3"), at(1))
    calls = asked(newcomer, cluster.living())
    for call in calls:
        newcomer.levels.on_failed(PeerCallFailed(call.call_id, "lost"), at(2))
    assert newcomer.levels.poll(cluster.living(), at(2 + RETRY_S / 2)) == []
    again = newcomer.levels.poll(cluster.living(), at(2 + RETRY_S))
    assert {call.node_id for call in again} == {"n1", "n3"}
    silent = newcomer.levels.poll(cluster.living(), at(2 + RETRY_S + CALL_TIMEOUT_S))
    assert {call.node_id for call in silent} == {"n1", "n3"}, "silence ends too"
    assert newcomer.levels.poll({"n2": True}, at(10)) == []
    assert not newcomer.levels.is_done, "those that are called dead may only be cut off"
    assert newcomer.levels.deadline() > 10
    newcomer.levels.ring_changed(ring("n2"), at(1))
    while newcomer.levels.deadline() == float("-inf"):
        newcomer.levels.poll({"n2": True}, at(20))
    assert newcomer.levels.is_done


def test_a_source_whose_ring_is_older_is_asked_again_for_a_while():
    before = ring("n1", "n2", "n3", "n4", replicas=2)
    key = next(key for key in KEYS if "n3" in before.owners(key_slot(key)) and "n2" not in before.owners(key_slot(key)))
    for is_late in (True, False):
        cluster = Cluster("n1", "n2", "n3", "n4", replicas=2)
        cluster.dead = {"n1": True, "n4": True}
        cluster.second = 2.0
        cluster.sides["n2"].levels.ring_changed(ring("n2", "n3", replicas=2), at(2))
        for _ in range(round(RINGS_DIFFER_MAX_S / 0.01) - 10):
            cluster.step()
            assert not cluster.sides["n2"].levels.is_done, "it may still take a write for an owner of before"
        cluster.sides["n3"].put(key, b"late")
        if not is_late:
            cluster.sides["n3"].levels.ring_changed(ring("n2", "n3", replicas=2), at(cluster.second))
        for _ in range(100):
            cluster.step(0.05)
        assert cluster.sides["n2"].levels.is_done
        assert cluster.sides["n2"].value(key) == b"late"


def test_after_it_dropped_all_a_node_fetches_all_again():
    cluster = filled("n1", "n2", "n3")
    side = cluster.sides["n2"]
    for slot in side.store.occupied_slots():
        side.store.drop_slot(slot)
    side.levels.begin_anew(at(1))
    assert not side.levels.is_level(key_slot(KEYS[0]))
    cluster.settle()
    assert_complete(cluster)


def joined_by_two() -> tuple[Cluster, Side, list[bytes]]:
    """Two nodes join at once: the cluster, one of them, and the keys of which both and nobody else are the owners."""
    old = ("n1", "n2", "n3", "n4", "n5", "n6")
    cluster = filled(*old, replicas=2)
    for node_id in ("n7", "n8"):
        cluster.sides[node_id] = Side(node_id)
        cluster.sides[node_id].levels.ring_changed(ring(*old, replicas=2), at(1))
    cluster.change(*old, "n7", "n8")
    keys = [key for key in KEYS if set(cluster.owners(key)) == {"n7", "n8"}]
    assert keys
    return cluster, cluster.sides["n8"], keys


def test_who_begins_anew_still_asks_those_who_owned_a_slot_before():
    cluster, newcomer, keys = joined_by_two()
    newcomer.levels.begin_anew(at(1))
    cluster.sides["n7"].levels.begin_anew(at(1))
    cluster.settle()
    assert [key for key in keys if newcomer.value(key) is None] == []


def test_who_begins_anew_still_asks_those_who_owned_a_slot_before_an_earlier_change():
    cluster, newcomer, keys = joined_by_two()
    cluster.change("n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9")
    newcomer.levels.begin_anew(at(1))
    cluster.settle()
    kept = [key for key in keys if "n8" in cluster.owners(key)]
    assert kept
    assert [key for key in kept if newcomer.value(key) is None] == []


def test_a_page_that_broke_off_in_a_slot_that_was_lost_meanwhile_skips_nothing_of_the_next():
    cluster = filled("n1", "n2", replicas=1)
    newcomer = cluster.sides["n3"] = Side("n3")
    newcomer.levels.ring_changed(ring("n1", "n2", replicas=1), at(1))
    newcomer.levels.ring_changed(ring("n1", "n2", "n3", replicas=1), at(1))
    [call] = [item for item in asked(newcomer, cluster.living()) if item.node_id == "n1"]
    wanted = [key_slot(key) for key in KEYS if ring("n1", "n2", "n3", replicas=1).owners(key_slot(key)) == ("n3",)]
    broken_off = next(iter(newcomer.levels._sources["n1"].slots))
    newcomer.levels._settle(broken_off)
    answer = PeerAnswered(call.call_id, Status.OK, ((), 0, b"zzzz", ()))
    newcomer.levels.on_answered(answer, at(2))
    assert newcomer.levels._sources["n1"].after_key == b""
    cluster.settle()
    kept = [key for key in KEYS if key_slot(key) in wanted and key_slot(key) != broken_off]
    assert [key for key in kept if newcomer.value(key) is None] == []


def test_who_is_out_of_the_ring_and_never_answers_is_not_waited_for_for_ever():
    levels = Side("n3").levels
    levels.ring_changed(ring("n1", "n2", replicas=1), at(1))
    levels.ring_changed(ring("n2", "n3", replicas=1), at(1))
    living = {"n1": True, "n2": True}
    for second in range(2, 40):
        for call in levels.poll(living, at(second)):
            if call.node_id == "n2":
                done = len(call.arguments[0]) // 2
                levels.on_answered(PeerAnswered(call.call_id, Status.OK, ((), done, b"", b"", b"")), at(second))
        levels.check_invariants()
    assert levels.is_done


class Loner:
    """A node without etcd that has heard of nobody; whom it asks has nothing."""

    def __init__(self) -> None:
        self.members = {node_id: Member(node_id, "h:1", "h:2", "h:3", epoch=1) for node_id in ("n1", *"abcde")}
        self.node = Node(Settings(id="n1", etcd=(), memory=1 << 24), self.members["n1"], random.Random(1), at(1))
        self.second = 1.0
        self.node.handle(Started(), at(1))
        self.settle(1)

    def handle(self, event) -> int:
        """Return how many pages were asked for."""
        pages = 0
        for effect in self.node.handle(event, at(self.second)):
            if isinstance(effect, SendPeer) and effect.operation == Operation.PULL:
                answer = ((), len(effect.arguments[0]) // 2, b"", self.node.levels._ring_digest, b"")
                pages += 1 + self.handle(PeerAnswered(effect.call_id, Status.OK, answer))
        return pages

    def settle(self, members: int) -> int:
        pages, until = 0, self.second + 5
        while len(self.node.ring.members) != members or not self.node.levels.is_done:
            self.second += 0.01
            assert self.second < until
            pages += self.handle(TimerFired())
        return pages

    def hears_of(self, *ids: str) -> None:
        """Return when the ring has them, and every slot is level: how many pages were asked for."""
        members = len(self.node.ring.members) + len(ids)
        alive = tuple(Alive(self.members[node_id], 0) for node_id in ids)
        pages = self.handle(DatagramReceived("h:3", Packet(ids[0], 1, alive)))
        return pages + self.settle(members)


PAGES = SLOTS // SLOTS_MAX
"""From each source, where this node owns every slot."""


def test_without_etcd_who_was_alone_fetches_what_the_others_have():
    node = Loner()
    assert node.hears_of("a") >= PAGES
    assert node.hears_of("b") >= PAGES, "it has just started: this one may have been there before"
    node.second += RINGS_KEPT_S + 1
    assert node.hears_of("c") == 0


def test_without_etcd_newcomers_that_meet_first_fetch_what_the_others_have():
    node = Loner()
    node.hears_of("a")
    node.second += RINGS_KEPT_S + 1
    assert node.hears_of("b") < PAGES
    assert node.hears_of("c", "d") > 2 * PAGES, "with who came a moment before"


def test_without_etcd_a_member_that_comes_to_a_ring_is_asked_for_nothing():
    node = Loner()
    node.hears_of("a", "b", "c")
    node.second += RINGS_KEPT_S + 1
    assert node.hears_of("d", "e") == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=10,
)


class Asking:
    """A node that has a page under way, again and again."""

    def __init__(self) -> None:
        self.side = Side("n1")
        self.side.levels.ring_changed(ring("n1", "n2"), at(1))
        asked(self.side, {"n2": True})
        self.second = 10.0

    def call(self) -> SendPeer:
        self.second += CALL_TIMEOUT_S
        [call] = self.side.levels.poll({"n2": True}, at(self.second))
        return call


ASKING = Asking()


@given(payload=st.lists(VALUES, max_size=6).map(tuple), status=st.sampled_from(list(Status)))
def test_an_answer_of_another_form_is_none(payload, status):
    assume(len(payload) != 5 or type(payload[1]) is not int)
    levels = ASKING.side.levels
    levels.on_answered(PeerAnswered(ASKING.call().call_id, status, payload), at(ASKING.second))
    assert ASKING.side.store.items == 0
    assert levels.pending == SLOTS
    levels.check_invariants()


@given(arguments=st.lists(VALUES, max_size=3).map(tuple))
def test_a_question_of_another_form_is_refused(arguments):
    status, _ = ASKING.side.levels.serve(arguments)
    assert status in (Status.OK, Status.BAD_REQUEST)
