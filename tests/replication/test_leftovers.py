"""What a node keeps of slots that it owns no more, and for how long."""

import random

from zephyr.config import Settings
from zephyr.model import Instant, Member
from zephyr.node import Node as CoreNode
from zephyr.peer.wire import Operation, Status
from zephyr.replication.leftovers import KEPT_S, SLICE_SLOTS, Leftovers
from zephyr.ring.ring import RingMember, build_ring, key_slot
from zephyr.store.record import HybridLogicalClock, pack_record
from zephyr.store.store import Store

UNIX_MS = 1_700_000_000_000
KEYS = [b"key-%d" % number for number in range(300)]
OWN = build_ring((RingMember("n1"),), 1, 64)
SHARED = build_ring((RingMember("n1"), RingMember("n2")), 1, 64)


def at(second: float) -> Instant:
    return Instant(second, UNIX_MS + int(second * 1000))


class Node:
    """A store with all keys, of which the node owned every slot."""

    def __init__(self):
        self.store = Store(
            memory_bytes_max=64 << 20, tombstone_bytes_max=1 << 20, tombstone_grace_ms=3_600_000, ghosts_max=1000,
            eviction="sieve", slot_of=key_slot,
        )  # fmt: skip
        clock = HybridLogicalClock("n1")
        for key in KEYS:
            self.store.apply(key_slot(key), key, pack_record(clock.stamp(UNIX_MS), b"v"), UNIX_MS)
        self.leftovers = Leftovers("n1", self.store, evict_after_s=5.0)

    def poll(self, ring, second: float) -> bool:
        """Poll until nothing is due at this second; whether everything was dropped."""
        has_dropped_all = False
        while self.leftovers.deadline() <= second:
            has_dropped_all |= self.leftovers.poll(ring, at(second))
        return has_dropped_all

    def kept(self) -> set[bytes]:
        return {key for key in KEYS if self.store.peek(key_slot(key), key, UNIX_MS) is not None}


def owned(ring) -> set[bytes]:
    return {key for key in KEYS if "n1" in ring.owners(key_slot(key))}


def test_what_is_owned_no_more_is_kept_for_a_while_and_then_dropped():
    node = Node()
    node.leftovers.ring_changed()
    node.poll(SHARED, 1)
    assert node.kept() == set(KEYS)
    assert node.leftovers.deadline() == 1 + KEPT_S
    node.poll(SHARED, 1 + KEPT_S)
    assert node.kept() == owned(SHARED) < set(KEYS)
    assert node.leftovers.deadline() == float("inf")


def test_what_comes_back_meanwhile_stays():
    node = Node()
    node.leftovers.ring_changed()
    node.poll(SHARED, 1)
    node.leftovers.ring_changed()
    node.poll(OWN, 2)
    assert node.leftovers.deadline() == float("inf")
    node.poll(OWN, 100)
    assert node.kept() == set(KEYS)


def test_another_change_gives_no_slot_more_time():
    node = Node()
    node.leftovers.ring_changed()
    node.poll(SHARED, 1)
    node.leftovers.ring_changed()
    node.poll(SHARED, 2)
    assert node.leftovers.deadline() == 1 + KEPT_S
    node.poll(SHARED, 1 + KEPT_S)
    assert node.kept() == owned(SHARED)


def test_what_comes_back_empty_and_is_written_then_stays():
    node = Node()
    node.leftovers.ring_changed()
    node.poll(SHARED, 1)
    key = next(key for key in KEYS if key not in owned(SHARED))
    node.store.drop_slot(key_slot(key))
    node.leftovers.ring_changed()
    node.poll(OWN, 2)
    record = pack_record(HybridLogicalClock("n1").stamp(UNIX_MS + 2000), b"w")
    node.store.apply(key_slot(key), key, record, UNIX_MS + 2000)
    node.poll(OWN, 100)
    assert key in node.kept()


def test_who_was_out_of_the_ring_drops_all_at_once_whatever_the_ring_is_by_then():
    node = Node()
    node.leftovers.ring_changed()
    node.poll(SHARED, 1)
    node.leftovers.drop_all()
    node.leftovers.ring_changed()
    assert node.leftovers.is_dropping_all
    assert node.poll(OWN, 2)
    assert not node.leftovers.is_dropping_all
    assert node.kept() == set()
    assert node.leftovers.deadline() == float("inf")


def test_who_drops_all_hands_out_nothing_of_it():
    now = at(1)
    node = CoreNode(
        Settings(id="n1", etcd=(), memory=1 << 24), Member("n1", "h:1", "h:2", "h:3", epoch=1), random.Random(1), now
    )
    request = (Operation.PULL, (b"\0\1", b""), b"", now)
    assert node.serve_peer(*request)[0] == Status.OK
    node.store.apply(1, b"key", pack_record(HybridLogicalClock("n1").stamp(UNIX_MS), b"v"), UNIX_MS)
    node.leftovers.drop_all()
    assert node.serve_peer(*request)[0] == Status.UNCONFIRMED


def test_no_poll_looks_at_more_than_a_slice():
    node = Node()
    for number in range(4000):
        key = b"more-%d" % number
        record = pack_record(HybridLogicalClock("n1").stamp(UNIX_MS), b"v")
        node.store.apply(key_slot(key), key, record, UNIX_MS)
    slots = len(node.store.occupied_slots())
    node.leftovers.drop_all()
    node.leftovers.poll(SHARED, at(1))
    left = len(node.store.occupied_slots())
    assert 0 < slots - left <= SLICE_SLOTS
    assert node.leftovers.is_dropping_all
