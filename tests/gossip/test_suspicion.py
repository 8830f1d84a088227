"""How long a suspect has to refute: the formulas, and what shortens it."""

from __future__ import annotations

import math

import pytest

from zephyr.gossip.suspicion import (
    ACCUSERS_MAX,
    SUSPICION_MAX_FACTOR,
    Suspicion,
    confirmations_expected,
    suspicion_min_s,
    suspicion_timeout_s,
)


@pytest.mark.parametrize(
    ("multiplier", "members", "interval_s", "expected_s"),
    [
        (4, 2, 1.0, 4.0), (4, 10, 1.0, 4.0), (4, 100, 1.0, 8.0), (4, 1000, 1.0, 12.0), (3, 5, 1.0, 3.0),
        (4, 50, 2.0, 8 * math.log10(50)),
    ],
)  # fmt: skip
def test_the_shortest_time_to_refute_grows_with_the_logarithm_of_the_members(
    multiplier, members, interval_s, expected_s
):
    assert suspicion_min_s(multiplier, members, interval_s) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("multiplier", "members", "expected"),
    [(4, 1, 0), (4, 2, 0), (4, 3, 1), (4, 4, 2), (4, 5, 2), (4, 200, 2), (3, 2, 0), (3, 3, 1), (3, 200, 1)],
)
def test_no_more_confirmations_are_expected_than_there_are_others_to_confirm(multiplier, members, expected):
    assert confirmations_expected(multiplier, members) == expected


def test_with_nobody_to_confirm_the_shortest_time_holds():
    assert suspicion_timeout_s(4.0, 0, 0) == 4.0
    assert Suspicion("b", 10.0, 4.0, 0).deadline_s == 14.0


def test_of_three_members_one_confirmation_shortens_it_all_the_way():
    assert suspicion_timeout_s(4.0, 0, 1) == SUSPICION_MAX_FACTOR * 4.0
    assert suspicion_timeout_s(4.0, 1, 1) == 4.0


def test_the_time_to_refute_shrinks_with_the_logarithm_of_the_confirmations():
    times_s = [suspicion_timeout_s(4.0, count, 4) for count in range(7)]
    assert times_s[0] == 24.0
    assert times_s[2] == pytest.approx(24.0 - 20.0 * math.log(3) / math.log(5))
    assert times_s[4:] == [pytest.approx(4.0)] * 3, "never below the shortest"


def test_each_accuser_counts_once_and_those_beyond_the_expected_change_nothing():
    suspicion = Suspicion("b", 0.0, 4.0, 1)
    assert not suspicion.confirm("b")
    assert suspicion.confirm("c")
    assert not suspicion.confirm("c")
    assert not suspicion.confirm("d")
    assert suspicion.deadline_s == 4.0
    for number in range(2 * ACCUSERS_MAX):
        suspicion.confirm(f"n{number}")
    assert len(suspicion.accusers) == ACCUSERS_MAX


def test_exit_evidence_only_ever_shortens_and_a_pause_of_this_node_gives_time_back():
    suspicion = Suspicion("b", 0.0, 4.0, 0)
    suspicion.exit_deadline_s = 9.0
    assert suspicion.deadline_s == 4.0
    suspicion.exit_deadline_s = 0.25
    assert suspicion.deadline_s == 0.25
    suspicion.shift(2.0)
    assert suspicion.deadline_s == 2.25
    suspicion.exit_deadline_s = None
    assert suspicion.deadline_s == 6.0
