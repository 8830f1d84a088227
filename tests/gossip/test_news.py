"""The queue of news: what goes next, how often, and what the cap pushes out."""

from __future__ import annotations

import random

from zephyr.gossip.news import MISFITS_MAX, NEWS_MAX, News


def test_the_latest_word_about_a_subject_replaces_the_one_before() -> None:
    news = News()
    news.put("a", b"old")
    news.put("b", b"other")
    news.put("a", b"new")
    assert news.take(1000, 9) == [b"new", b"other"]
    assert len(news) == 2


def test_what_was_sent_least_often_goes_first_and_then_the_newest() -> None:
    news = News()
    news.put("a", b"a")
    news.take(1, 9)
    news.put("b", b"b")
    news.put("c", b"c")
    assert news.take(1000, 9) == [b"c", b"b", b"a"]


def test_a_message_is_sent_as_often_as_asked_and_then_forgotten() -> None:
    news = News()
    news.put("a", b"a")
    assert [news.take(1000, 3) for _ in range(4)] == [[b"a"], [b"a"], [b"a"], []]
    assert len(news) == 0


def test_a_message_that_does_not_fit_lets_shorter_ones_pass_and_is_not_counted_as_sent() -> None:
    news = News()
    news.put("short", b"s")
    news.put("long", b"l" * 9)
    assert news.take(5, 1) == [b"s"]
    assert news.take(9, 1) == [b"l" * 9]


def test_filling_a_packet_ends_after_some_misfits() -> None:
    news = News()
    news.put("short", b"s")
    for number in range(MISFITS_MAX):
        news.put(f"long {number}", b"l" * 9)
    assert news.take(5, 1) == []
    assert len(news) == MISFITS_MAX + 1


def test_the_cap_pushes_out_what_was_sent_most_often() -> None:
    news = News()
    news.put("often", b"often")
    news.take(1000, 9)
    for number in range(NEWS_MAX):
        news.put(f"n{number}", b"seldom")
    assert len(news) == NEWS_MAX
    assert news.dropped_count == 1
    news.put("often", b"often")
    assert news.dropped_count == 2  # It was forgotten, so this was one more.


def test_any_order_of_puts_and_takes_is_that_of_a_list_sorted_anew_each_time() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        news = News()
        model: dict[str, tuple[int, int, bytes]] = {}
        for step in range(300):
            if rng.random() < 0.4:
                subject, message = f"n{rng.randrange(20)}", bytes(rng.randrange(1, 30))
                news.put(subject, message)
                model[subject] = (0, -step, message)
                continue
            room_bytes, sends_max = rng.randrange(100), rng.randrange(1, 6)
            expected, misfits = [], 0
            for subject, (sends, order, message) in sorted(model.items(), key=lambda item: item[1][:2]):
                if misfits == MISFITS_MAX:
                    break
                if len(message) > room_bytes:
                    misfits += 1
                    continue
                room_bytes -= len(message)
                expected.append(message)
                model[subject] = (sends + 1, order, message)
                if sends + 1 >= sends_max:
                    del model[subject]
            taken = news.take(room_bytes + sum(map(len, expected)), sends_max)
            assert taken == expected, f"seed {seed}, step {step}"
            assert len(news) == len(model)
