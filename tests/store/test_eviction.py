"""The policies against plain models of themselves."""

import random
from collections import OrderedDict

import pytest

from zephyr.store import eviction
from zephyr.store.eviction import (
    VISITED_BITS_FIRST,
    VISITED_BITS_PER_KEY,
    LeastRecentlyUsed,
    Sieve,
    make_eviction,
)


class PlainSieve:
    """SIEVE as the paper writes it: one list, oldest first, one bit a key."""

    def __init__(self):
        self.queue: list[bytes] = []
        self.visited: dict[bytes, bool] = {}
        self.hand = 0

    def admit(self, key):
        self.queue.append(key)
        self.visited[key] = False

    def touch(self, key):
        self.visited[key] = True

    def next_victim(self):
        while True:
            if self.hand >= len(self.queue):
                self.hand = 0
            key = self.queue[self.hand]
            if not self.visited[key]:
                return self.queue.pop(self.hand)
            self.visited[key] = False
            self.hand += 1


@pytest.mark.parametrize("seed", range(10))
def test_sieve_names_the_victims_of_the_paper(seed, monkeypatch):
    monkeypatch.setattr(eviction, "SEGMENT_KEYS", 8)  # Many segments for few keys.
    rng, ours, plain = random.Random(seed), Sieve(), PlainSieve()
    listed: dict[bytes, None] = {}
    for number in range(2000):
        action = rng.random()
        if action < 0.4 or not listed:
            key = b"key-%d" % number
            listed[key] = None
            ours.admit(key, cold=False)
            plain.admit(key)
        elif action < 0.75:
            key = rng.choice(list(listed))
            ours.touch(key)
            plain.touch(key)
        else:
            victim = plain.next_victim()
            assert ours.next_victim() == victim
            del listed[victim]


def test_sieve_keeps_what_is_used_and_lets_a_scan_pass():
    sieve = Sieve()
    hot = [b"hot-%d" % number for number in range(50)]
    for key in hot:
        sieve.admit(key, cold=False)
        sieve.touch(key)
    for number in range(500):
        sieve.admit(b"scan-%d" % number, cold=False)
    for number in range(500):
        assert sieve.next_victim().startswith(b"scan-"), number


def test_sieve_looks_at_a_bounded_number_of_keys_when_all_are_in_use(monkeypatch):
    monkeypatch.setattr(eviction, "EXAMINED_MAX", 10)
    sieve = Sieve()
    for number in range(1000):
        sieve.admit(b"key-%d" % number, cold=False)
        sieve.touch(b"key-%d" % number)
    assert sieve.next_victim() == b"key-10"


@pytest.mark.parametrize("seed", range(5))
def test_sieve_hands_out_each_listed_key_exactly_once_whatever_is_collected(seed, monkeypatch):
    monkeypatch.setattr(eviction, "SEGMENT_KEYS", 8)
    rng, sieve = random.Random(seed), Sieve()
    held: dict[bytes, bool] = {}

    def is_empty(key: bytes) -> bool:
        if held[key]:
            return False
        del held[key]
        return True

    for number in range(3000):
        action = rng.random()
        if action < 0.5:
            key = b"key-%d" % number
            held[key] = True
            sieve.admit(key, cold=rng.random() < 0.3)
        elif action < 0.7 and held:
            key = rng.choice(list(held))
            held[key] = False
            assert not sieve.forget(key)
        elif action < 0.85:
            sieve.collect(is_empty)
        elif held:
            del held[sieve.next_victim()]
    rest = []
    while (key := sieve.next_victim()) is not None:
        rest.append(key)
    assert sorted(rest) == sorted(held)


@pytest.mark.parametrize("seed", range(3))
def test_lru_names_what_was_unused_for_longest(seed):
    rng, lru, plain = random.Random(seed), LeastRecentlyUsed(), OrderedDict()
    for number in range(2000):
        action = rng.random()
        if action < 0.4 or not plain:
            key = b"key-%d" % number
            lru.admit(key, cold=False)
            plain[key] = None
        elif action < 0.7:
            key = rng.choice(list(plain))
            lru.touch(key)
            plain.move_to_end(key)
        elif action < 0.8:
            key = rng.choice(list(plain))
            assert lru.forget(key)
            del plain[key]
        else:
            assert lru.next_victim() == plain.popitem(last=False)[0]


@pytest.mark.parametrize("name", ["sieve", "lru"])
def test_a_cold_key_is_the_next_to_go(name):
    policy = make_eviction(name)
    for number in range(2000):
        policy.admit(b"key-%d" % number, cold=False)
    policy.admit(b"cold", cold=True)
    assert policy.next_victim() == b"cold"


@pytest.mark.parametrize("name", ["sieve", "lru"])
def test_nothing_listed_means_no_victim(name):
    assert make_eviction(name).next_victim() is None


def test_sieve_knows_which_keys_are_in_use_when_its_bitmap_has_grown():
    policy = Sieve()
    policy.admit(b"first", cold=False)
    policy.touch(b"first")
    for number in range(3 * VISITED_BITS_FIRST // VISITED_BITS_PER_KEY):
        policy.admit(b"%d" % number, cold=False)
    assert policy.next_victim() == b"0"
