"""From looks to seconds: what counts as known, unroutable, out, equal and whole."""

import math

import pytest

from chaos.convergence import (
    Repetition,
    Times,
    first_s,
    is_whole,
    is_without,
    measure_etcd,
    measure_node,
    percentiles,
    settled_s,
)
from chaos.watch import Look

EVERYBODY = ("n1", "n2", "n3")


def look(at_s: float, **changes: object) -> Look:
    """Return what a node of a healthy cluster of three shows, but for these changes."""
    healthy = Look(
        at_s, EVERYBODY, "d3", "7", "both", "connected", dict.fromkeys(EVERYBODY, "alive"), frozenset(EVERYBODY),
        frozenset(EVERYBODY), (),
    )  # fmt: skip
    return healthy._replace(**changes)


def gossip(state: str) -> dict[str, str]:
    return {"n1": "alive", "n2": "alive", "n3": state}


WITHOUT_N3 = {
    "owners": ("n1", "n2"), "digest": "d2", "gossip": gossip("dead"), "routable": frozenset({"n1", "n2"}),
}  # fmt: skip


@pytest.fixture
def kill() -> dict[str, list[Look]]:
    """What n1 and n2 showed of n3's death at second 10."""
    routable = frozenset({"n1", "n2"})
    return {
        "n1": [
            look(9.9),
            look(10.1, routable=routable),
            look(10.3, routable=routable, gossip=gossip("dead")),
            look(15.0, **WITHOUT_N3),
        ],
        "n2": [
            look(9.8),
            look(10.2, routable=routable, gossip=gossip("suspect")),
            look(10.5, routable=routable, gossip=gossip("dead")),
            look(15.2, **WITHOUT_N3),
        ],
    }


def test_each_time_ends_with_the_look_that_shows_it_at_the_last_node(kill):
    times = measure_node(kill, "n3", 10.0)
    assert times.first_knows_s == pytest.approx(0.3)
    assert times.all_know_s == pytest.approx(0.5)
    assert times.unroutable_s == pytest.approx(0.2)
    assert times.out_s == times.equal_s == pytest.approx(5.2)
    assert times.back_s is None


def test_who_is_suspected_is_not_known_to_be_gone(kill):
    kill["n2"] = kill["n2"][:2]
    times = measure_node(kill, "n3", 10.0)
    assert math.isfinite(times.first_knows_s)
    assert times.all_know_s == math.inf


def test_two_rings_without_the_victim_are_not_equal(kill):
    kill["n2"][-1] = look(15.2, **{**WITHOUT_N3, "digest": "another"})
    times = measure_node(kill, "n3", 10.0)
    assert times.out_s == pytest.approx(5.2)
    assert times.equal_s == math.inf


def test_what_did_not_last_counts_from_when_it_came_again(kill):
    kill["n1"] += [look(16.0), look(17.0, **WITHOUT_N3)]
    times = measure_node(kill, "n3", 10.0)
    assert times.out_s == times.equal_s == pytest.approx(7.0)
    assert times.first_knows_s == pytest.approx(0.3)


def test_a_node_that_was_never_seen_has_shown_nothing(kill):
    kill["n2"] = []
    assert measure_node(kill, "n3", 10.0).all_know_s == math.inf


def test_a_member_that_is_forgotten_is_gone(kill):
    forgotten = {"n1": "alive", "n2": "alive"}
    latest = {name: looks[-1]._replace(gossip=forgotten) for name, looks in kill.items()}
    assert is_without("n3", ["n1", "n2"])(latest)


@pytest.mark.parametrize(
    "change", [{"gossip": gossip("suspect")}, {"routable": frozenset(EVERYBODY)}, {"owners": EVERYBODY}, {"digest": ""}]
)
def test_one_node_that_still_counts_with_the_victim_is_enough(kill, change):
    latest = {name: looks[-1] for name, looks in kill.items()}
    assert is_without("n3", ["n1", "n2"])(latest)
    latest["n2"] = latest["n2"]._replace(**change)
    assert not is_without("n3", ["n1", "n2"])(latest)


@pytest.mark.parametrize(
    "change",
    [
        {"authority": "gossip"},
        {"etcd": "unreachable"},
        {"registered": frozenset({"n1", "n2"})},
        {"owners": ("n1", "n2")},
        {"digest": "another"},
        {"generation": "6"},
    ],
)
def test_a_cluster_is_whole_when_no_node_shows_anything_else(change):
    latest = {name: look(1.0) for name in EVERYBODY}
    is_whole_again = is_whole(EVERYBODY, past_generations=["6"])
    assert is_whole_again(latest)
    latest["n2"] = latest["n2"]._replace(**change)
    assert not is_whole_again(latest)


def test_rings_that_were_never_anything_else_were_equal_all_the_while():
    away = {"etcd": "unreachable"}
    looks = {
        "n1": [look(9.9), look(10.2, **away), look(11.0)],  # Back before n2 has seen it go.
        "n2": [look(9.9), look(10.1), look(12.0, **away)],
        "n3": [look(9.9), look(10.3, authority="gossip")],
    }
    times = measure_etcd(looks, 10.0)
    assert times.first_knows_s == pytest.approx(0.2)
    assert times.all_know_s == pytest.approx(2.0)
    assert times.equal_s == 0.0
    assert times.unroutable_s is times.out_s is None


def test_what_was_so_before_does_not_count_as_the_first_to_know():
    assert first_s({"n1": [look(9.0, etcd="unreachable")]}, lambda item: item.etcd != "connected", 10.0) == math.inf


def test_settled_needs_a_look_at_every_node():
    assert settled_s({"n1": [look(1.0)], "n2": []}, lambda _: True, 0.0) == math.inf
    assert settled_s({"n1": [look(1.0)], "n2": [look(3.0)]}, lambda _: True, 0.0) == pytest.approx(3.0)


def test_percentiles_leave_out_what_is_no_question_and_keep_what_never_came():
    repetitions = [Repetition("n1", Times(all_know_s=value, back_s=1.0)) for value in (None, 0.3, 0.1, 0.2, math.inf)]
    assert percentiles(repetitions, 0.5)["all_know_s"] == pytest.approx(0.2)
    assert percentiles(repetitions, 0.99)["all_know_s"] == math.inf
    assert percentiles(repetitions, 0.5)["out_s"] is None
    assert percentiles(repetitions, 0.5)["back_s"] == 1.0


def test_a_document_has_null_for_what_never_came_and_names_it():
    repetition = Repetition("", Times(first_knows_s=0.12345, all_know_s=math.inf), missed=["known to all"])
    document = repetition.document()
    assert document["victim"] == "etcd"
    assert document["first_knows_s"] == 0.123
    assert document["all_know_s"] is document["out_s"] is None
    assert document["missed"] == ["known to all"]
