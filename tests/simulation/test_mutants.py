"""Mutants: with one safeguard of membership taken away, a named scenario must turn red, or it shows nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import pytest
import test_membership as scenarios
from test_membership import Cluster

from zephyr.cluster import Reconciler
from zephyr.confirmation import Confirmation
from zephyr.etcd.lease import EtcdMembership
from zephyr.evictions import Evictions
from zephyr.replication import leftovers
from zephyr.replication.leftovers import Leftovers
from zephyr.replication.level import Levels


def started(scenario: Callable[[Cluster], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Run a scenario on a fresh cluster."""
    return lambda _monkeypatch: scenario(Cluster().started())


def seeded(scenario: Callable[[int], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Run a scenario with several seeds: one that turns red is enough."""

    def run(_monkeypatch: pytest.MonkeyPatch) -> None:
        for seed in range(1, 6):
            scenario(seed)

    return run


def alone(scenario: Callable[[], None]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda _monkeypatch: scenario()


@dataclass
class Mutant:
    """What is replaced, by what, and the scenario that tells."""

    owner: object
    name: str
    replacement: object
    scenario: Callable[[pytest.MonkeyPatch], None]


BEGIN_ANEW = Levels.begin_anew


def asks_owners_alone(levels, now):
    BEGIN_ANEW(levels, now)
    levels._strangers = ()


def always_a_majority(evictions, heard, now):
    evictions.majority_since_s = -inf


def base_always_heard(reconciler, now):
    reconciler._base_heard_since_s = -inf


def heard_since_ever(reconciler, now):
    is_majority = 2 * sum(map(reconciler._is_heard, reconciler._base)) > len(reconciler._base)
    reconciler._base_heard_since_s = -inf if is_majority else inf


def always_confirmed(confirmation, voters, digest, now, *, is_owner, is_etcds_word):
    confirmation.until_s = inf
    return []


def forget_who_lives(reconciler, etcd):
    for node_id, epoch in list(reconciler._removed.items()):
        registration = etcd.registrations.get(node_id)
        if registration is None or registration.member.epoch > epoch or not reconciler._is_gone(node_id):
            del reconciler._removed[node_id]


def take_over_at_once(reconciler, etcd, now):
    reconciler._takeover_since_s = -inf
    return TAKE_OVER(reconciler, etcd, now)


def keep_own_ring(reconciler, etcd, settled, why, now):
    if settled:
        return END_TAKEOVER(reconciler, etcd, settled, why, now)
    reconciler.lead = "takeover"
    reconciler._standing.pop(reconciler.settings.id, None)
    return []


TAKE_OVER, END_TAKEOVER = Reconciler._take_over, Reconciler._end_takeover
NEVER = property(lambda self: False, lambda self, value: None)
"""An attribute that stays false, whatever is written to it."""

MUTANTS = {
    "a minority proposes evictions": Mutant(
        Evictions, "count", always_a_majority,
        started(scenarios.test_a_split_into_halves_that_both_reach_etcd_changes_no_ring),
    ),
    "a minority removes members while gossip leads": Mutant(
        Reconciler, "_listen_to_base", base_always_heard,
        started(scenarios.test_a_minority_without_etcd_keeps_its_ring_and_refuses_strict_requests),
    ),
    "the dead have no time anew with a majority": Mutant(
        Reconciler, "_listen_to_base", heard_since_ever,
        started(scenarios.test_who_was_alone_while_etcd_was_away_removes_nobody_when_it_hears_a_majority_again),
    ),
    "etcd takes over with the first to register": Mutant(
        Reconciler, "_take_over", take_over_at_once,
        alone(scenarios.test_a_cold_start_without_etcd_makes_a_provisional_ring_that_etcd_takes_over),
    ),
    "no mass loss is ever seen": Mutant(
        Reconciler, "_is_mass_loss", lambda *_: False, started(scenarios.test_an_operator_lets_a_held_ring_go),
    ),
    "a hold ends when anything is registered": Mutant(
        Reconciler, "_hold_ending", lambda _self, committed, _now: "some registered" if committed else "",
        started(scenarios.test_a_mass_loss_holds_the_whole_ring_until_all_are_back),
    ),
    "a wiped etcd's listing is taken at once": Mutant(
        Reconciler, "_is_doubtful", lambda *_: False,
        seeded(
            lambda seed: scenarios.test_a_wiped_etcd_that_comes_and_goes_at_one_node_shrinks_no_ring(
                Cluster(seed).started()
            )
        ),
    ),
    "whoever registers anew believes itself level": Mutant(
        Confirmation, "has_missed_writes", lambda *_, **__: False,
        alone(scenarios.test_who_was_out_of_the_ring_of_the_others_without_seeing_it_is_not_level_when_it_is_back),
    ),
    "who was removed and lives is an owner again": Mutant(
        Reconciler, "_forget_removed", forget_who_lives,
        seeded(
            scenarios.test_who_was_removed_while_etcd_was_away_serves_nothing_that_it_kept_though_its_lease_is_back
        ),
    ),
    "a view is always confirmed": Mutant(
        Confirmation, "update", always_confirmed,
        alone(scenarios.test_a_node_that_stood_still_serves_nothing_before_its_view_is_confirmed),
    ),
    "nobody ever stood still": Mutant(
        Confirmation, "stood_still", lambda *_: False,
        alone(scenarios.test_a_node_that_stood_still_compares_with_etcd_before_it_trusts_its_lease),
    ),
    "a lease is enough after any absence": Mutant(
        Confirmation, "_needs_majority", NEVER,
        alone(scenarios.test_who_was_removed_while_etcd_was_away_is_not_confirmed_by_its_lease_alone),
    ),
    "who was out of the ring for a moment keeps what it had": Mutant(
        Leftovers, "is_dropping_all", NEVER,
        scenarios.test_however_soon_it_is_back_a_node_that_was_out_of_the_ring_drops_what_it_kept,
    ),
    "whom the others went on without asks those of its own ring": Mutant(
        Reconciler, "_end_takeover", keep_own_ring,
        seeded(
            scenarios.test_whom_the_others_went_on_without_fetches_what_they_wrote_though_all_owners_of_a_key_are_back_at_once
        ),
    ),
    "what is owned no more is dropped at once": Mutant(
        leftovers, "KEPT_S", 0.0,
        seeded(scenarios.test_a_write_that_one_owner_missed_survives_when_the_other_two_are_replaced_at_once),
    ),
    "a majority whose leases ended has missed nothing": Mutant(
        Reconciler, "may_be_left_out", NEVER,
        alone(lambda: scenarios.test_a_majority_whose_leases_ended_fetches_what_a_minority_wrote(1, 14)),
    ),
    "who begins anew asks the owners it knows alone": Mutant(
        Levels, "begin_anew", asks_owners_alone,
        alone(lambda: scenarios.test_a_majority_whose_leases_ended_fetches_what_a_minority_wrote(1, 14)),
    ),
    "the first to come when all leases have ended waits for nobody": Mutant(
        EtcdMembership, "found_all_lapsed", NEVER,
        seeded(scenarios.test_who_starts_when_all_leases_have_ended_is_never_the_only_owner),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_scenario_turns_red(monkeypatch, name):
    mutant = MUTANTS[name]
    with monkeypatch.context() as changed:
        changed.setattr(mutant.owner, mutant.name, mutant.replacement, raising=False)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            mutant.scenario(changed)
