"""Whom to ask next, and whom to choose: round robin, at random, and the silent first."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from zephyr.gossip.phi import PhiEstimate
from zephyr.gossip.table import LOOKAHEAD, PHI_PROBE, Record, Table
from zephyr.model import Member


def record(node_id: str) -> Record:
    return Record(Member(node_id, "h:1", f"{node_id}:2", "h:3", 1), 0, 0.0)


def a_table(count: int, seed: int = 1) -> Table:
    table = Table(random.Random(seed))
    for number in range(count):
        table.add(record(f"n{number}"))
    return table


def round_of(table: Table, count: int) -> list[str]:
    chosen = [table.next_target(0.0) for _ in range(count)]
    table.check_invariants()
    return [item.member.id for item in chosen if item is not None]


def set_state(table: Table, node_id: str, state: str) -> None:
    item = table.members[node_id]
    item.state = state
    table.move(item)


def test_each_member_has_one_turn_in_a_round_and_rounds_differ():
    table = a_table(20)
    rounds = [round_of(table, 20) for _ in range(5)]
    assert all(sorted(found) == sorted(rounds[0]) and len(set(found)) == 20 for found in rounds)
    assert len(set(map(tuple, rounds))) == 5


def test_nobody_waits_longer_than_two_rounds():
    table = a_table(10)
    turns = round_of(table, 200)
    for node_id in table.members:
        at = [index for index, found in enumerate(turns) if found == node_id]
        assert max(later - sooner for sooner, later in pairwise(at)) <= 2 * 10 - 1


def test_a_new_member_gets_a_random_place_in_the_present_round():
    places = Counter()
    for seed in range(400):
        table = a_table(10, seed)
        round_of(table, 5)
        table.add(record("new"))
        places[round_of(table, 6).index("new")] += 1
    assert sorted(places) == list(range(6))
    assert min(places.values()) > 400 / 6 / 2


@pytest.mark.parametrize("state", ["dead", "left"])
def test_who_is_gone_has_no_turn_and_who_comes_back_has_one(state):
    table = a_table(5)
    set_state(table, "n2", state)
    assert sorted(round_of(table, 4)) == ["n0", "n1", "n3", "n4"]
    for _ in range(50):
        set_state(table, "n2", "alive")
        set_state(table, "n2", state)
    set_state(table, "n2", "alive")
    assert 1 <= round_of(table, 6).count("n2") <= 2, "what is left of this round, and the next"


def test_nobody_alive_is_nobody_to_ask():
    assert a_table(0).next_target(0.0) is None


def test_a_member_whose_silence_is_no_chance_is_asked_before_its_turn():
    table = a_table(LOOKAHEAD)
    now_s = 100.0
    for item in table.live:
        item.phi_estimate = PhiEstimate(1.0)
        item.phi_estimate.heard(now_s)
    silent = table.members["n3"].phi_estimate = PhiEstimate(1.0)
    silent.heard(now_s - 9.0)
    assert silent.phi(now_s) > PHI_PROBE
    first = table.next_target(now_s)
    assert first is not None
    assert first.member.id == "n3"
    found = {item.member.id for item in (table.next_target(now_s) for _ in range(LOOKAHEAD - 1)) if item is not None}
    assert found == set(table.members) - {"n3"}, "the others keep their turns"


def test_some_are_different_living_and_without_the_one_that_is_not_wanted():
    table = a_table(10)
    set_state(table, "n4", "dead")
    seen = Counter()
    for _ in range(300):
        chosen = [item.member.id for item in table.some(3, "n7")]
        assert len(set(chosen)) == len(chosen) == 3
        seen.update(chosen)
    assert set(seen) == {f"n{number}" for number in range(10)} - {"n4", "n7"}
    assert [item.member.id for item in a_table(2).some(3, "n0")] == ["n1"]
