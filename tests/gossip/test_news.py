"""The queue of what is still to be told: what goes first, how often, and what goes when there is too much."""

from __future__ import annotations

import random

import pytest

from zephyr.gossip import news
from zephyr.gossip.news import MISFITS_MAX, NEWS_MAX, NEWS_ROOM, News, retransmits

ROOM = 1000


@pytest.mark.parametrize(
    ("members", "count"), [(1, 4), (2, 4), (9, 4), (10, 8), (50, 8), (99, 8), (100, 12), (200, 12), (1000, 16)]
)
def test_each_message_is_sent_four_times_for_each_digit_of_the_clusters_size(members, count):
    assert retransmits(members) == count


def test_a_message_is_sent_as_often_as_wanted_and_then_no_more():
    queue = News()
    queue.put("a", b"alive")
    assert [queue.take(ROOM, 3) for _ in range(4)] == [[b"alive"]] * 3 + [[]]
    assert len(queue) == 0


def test_what_was_sent_least_often_goes_first():
    queue = News()
    for subject in "abc":
        queue.put(subject, subject.encode())
    assert queue.take(1, 5) == [b"c"], "of equals the newest"
    queue.put("d", b"d")
    assert queue.take(2, 5) == [b"d", b"b"]
    assert queue.take(2, 5)[0] == b"a"


def test_the_newest_word_about_a_member_replaces_the_one_before_and_starts_anew():
    queue = News()
    queue.put("a", b"suspect")
    assert queue.take(ROOM, 2) == [b"suspect"]
    queue.put("a", b"refuted")
    assert len(queue) == 1
    assert [queue.take(ROOM, 2) for _ in range(3)] == [[b"refuted"], [b"refuted"], []]


def test_a_packet_is_filled_up_to_its_room_and_no_further():
    queue = News()
    queue.put("long", bytes(60))
    for number in range(4):
        queue.put(f"n{number}", bytes(30))
    assert [len(message) for message in queue.take(100, 9)] == [30, 30, 30]
    assert [len(message) for message in queue.take(100, 9)] == [30, 60], "who had to wait is before who was sent"


def test_what_fits_nowhere_ends_the_search_before_long():
    queue = News()
    queue.put("short", b"x")
    for number in range(MISFITS_MAX):
        queue.put(f"n{number}", bytes(500))
    assert queue.take(100, 9) == []
    assert len(queue) == MISFITS_MAX + 1


def test_above_the_cap_what_was_sent_most_often_goes_and_that_is_told():
    queue = News()
    for number in range(NEWS_MAX):
        assert queue.put(f"n{number}", b"%d" % number) == 0
    sent = queue.take(2 * NEWS_ROOM, 9)
    assert queue.put("new", b"new") == NEWS_ROOM
    assert len(queue) == NEWS_MAX + 1 - NEWS_ROOM
    left = {message for _ in range(20) for message in queue.take(ROOM, 2)}
    assert b"new" in left
    assert not set(sent[-10:]) & set(queue.take(1 << 20, 9)), "they had been sent"


def test_a_storm_about_the_same_members_leaves_no_more_than_the_cap(monkeypatch):
    monkeypatch.setattr(news, "NEWS_MAX", 64)
    monkeypatch.setattr(news, "NEWS_ROOM", 8)
    queue, rng = News(), random.Random(1)
    for number in range(5000):
        queue.put(f"n{rng.randrange(100)}", b"%d" % number)
        if rng.random() < 0.2:
            queue.take(rng.randrange(200), 3)
        assert len(queue) <= 64
        assert len(queue._heap) <= 128
        assert {entry[2] for entry in queue._heap if queue._is_latest(entry)} == set(queue._latest)
