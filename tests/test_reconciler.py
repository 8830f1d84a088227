"""The reconciler: who owns data, and what is said about each member."""

import random
from dataclasses import replace

import pytest

from zephyr.cluster import GATHER_S, Reconciler
from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.etcd.registration import EvictionMark
from zephyr.events import DatagramReceived, EvictMember, SendDatagram
from zephyr.gossip.messages import Alive, Dead, Left, Packet
from zephyr.gossip.swim import Swim
from zephyr.model import Instant, Member, Registration

SETTINGS = Settings(id="n1", join=("h:1", "h:2"))
OWN = Member("n1", "a:1", "a:2", "a:3", epoch=5)


def at(second: float) -> Instant:
    return Instant(second, 1_000_000 + int(second * 1000))


def member(node_id: str, **changes: object) -> Member:
    return replace(Member(node_id, "a:1", "a:2", f"{node_id}:3", epoch=7), **changes)


class Registry:
    """An etcd membership whose registrations a test sets by hand, and the reconciler on top."""

    def __init__(self):
        self.etcd = EtcdMembership(SETTINGS, OWN, random.Random(1), at(0))
        self.etcd._synced, self.etcd._reason_since_s, self.etcd.listed = True, None, True
        self.swim = Swim(SETTINGS, OWN, random.Random(1))
        self.reconciler = Reconciler(SETTINGS, self.etcd, self.swim, at(0))

    def say(self, *members: Member, wiped: bool = False) -> None:
        self.etcd.registrations = {item.id: Registration(item, 3, 1) for item in members}
        self.etcd.wipe_count += wiped

    def view(self, second: float, connected: dict[str, bool] | None = None):
        self.swim.heard_s = float("inf")  # Somebody always gives a sign.
        return self.reconciler.reconcile(connected or {}, at(second))[0]

    def row(self, node_id: str, second: float, connected: dict[str, bool] | None = None):
        return next(row for row in self.view(second, connected).members if row.member.id == node_id)


def test_the_ring_is_what_etcd_has_registered_and_a_joining_member_owns_nothing_yet():
    registry = Registry()
    registry.say(OWN, member("n2"), member("n3", state="joining"), member("n4", state="leaving"))
    registry.swim.assume([member("n2")], at(0))
    view = registry.view(1)
    assert view.owners == ("n1", "n2", "n4")
    assert view.authority == "etcd", "half of the registered is no majority"
    assert {row.member.id: row.verdict for row in view.members}["n3"] == "pending"


def test_equal_members_give_equal_digests_and_a_new_life_another_one():
    one, other = Registry(), Registry()
    one.say(OWN, member("n2"))
    other.say(member("n2"), OWN)
    assert one.view(1).digest == other.view(9).digest
    other.say(member("n2", epoch=8), OWN)
    assert one.view(2).digest != other.view(10).digest


def test_a_wipe_holds_the_ring_until_all_are_back():
    registry = Registry()
    registry.swim.assume([member("n2"), member("n3")], at(0))
    registry.say(OWN, member("n2"), member("n3"))
    registry.view(1)
    registry.say(OWN, wiped=True)
    view = registry.view(2)
    assert (view.owners, view.authority) == (("n1", "n2", "n3"), "held")
    assert registry.row("n2", 2.5).told(at(4)) == (
        "etcd lost its registration 2.0 s ago, gossip says alive; the last ring is held until all register again"
    )
    registry.say(OWN, member("n2"), member("n3"), member("n4"))
    view = registry.view(5)
    assert (view.owners, view.authority) == (("n1", "n2", "n3", "n4"), "both")


def test_who_lists_a_wiped_etcd_when_all_but_one_are_back_holds_the_ring_as_those_do_who_listed_before():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, member("n2"), member("n3"), member("n4"), wiped=True)
    view = registry.view(2)
    assert (view.owners, view.authority) == (ALL, "held")
    assert registry.view(2 + SETTINGS.expiry_grace + 1).owners == ALL
    registry.swim.handle(said(Dead("n5", 7, 0, "n9")), at(7))
    view = registry.view(7)
    assert (view.owners, view.authority) == (ALL[:4], "both"), "and for no longer than they do"


def test_who_comes_when_all_leases_have_ended_owns_nothing_before_the_living_are_back():
    registry = Registry()
    registry.etcd.found_all_lapsed = True
    registry.say(OWN)
    view = registry.view(1)
    assert (view.owners, view.authority) == ((), "none")
    assert registry.reconciler.deadline() == 1 + GATHER_S
    registry.swim.assume([member("n2"), member("n3")], at(2))
    registry.say(OWN, member("n2"))
    assert registry.view(2.5).owners == registry.view(4).owners == ()
    registry.say(OWN, member("n2"), member("n3"))
    view = registry.view(5)
    assert (view.owners, view.authority) == (("n1", "n2", "n3"), "both")


def test_who_comes_when_all_leases_have_ended_waits_no_longer_than_for_a_takeover():
    registry = Registry()
    registry.etcd.found_all_lapsed = True
    registry.swim.assume([member("n2")], at(0))
    registry.say(OWN)
    assert registry.view(1).owners == registry.view(SETTINGS.takeover_max).owners == ()
    assert registry.view(1 + SETTINGS.takeover_max).owners == ("n1",)


def test_who_comes_when_all_leases_have_ended_and_loses_etcd_again_is_not_the_only_owner():
    registry = Registry()
    registry.etcd.found_all_lapsed = True
    registry.swim.assume([member(node_id) for node_id in ALL[1:]], at(0))
    registry.say(OWN)
    registry.view(1)
    registry.etcd._reason_since_s = 2.0
    assert registry.view(3).owners == ()
    for second in (SETTINGS.bootstrap_after, SETTINGS.bootstrap_after + 1):
        assert registry.view(second).owners == ALL, "provisional: what etcd last said is of nobody's ring"


def test_an_etcd_that_fails_for_a_moment_starts_no_wait_anew():
    registry = Registry()
    registry.etcd.found_all_lapsed = True
    registry.say(OWN)
    registry.view(1)
    registry.etcd._reason_since_s = 1.5
    registry.view(1.6)
    registry.etcd._reason_since_s = None
    assert registry.view(2).owners == ()
    assert registry.view(1 + GATHER_S).owners == ("n1",)


def test_who_comes_alone_when_all_leases_have_ended_is_ready_after_a_moment():
    registry = Registry()
    registry.etcd.found_all_lapsed = True
    registry.say(OWN)
    assert registry.view(1).owners == ()
    assert registry.view(1 + GATHER_S).owners == ("n1",)


def test_a_hold_ends_by_itself_but_never_with_an_empty_ring():
    registry = Registry()
    registry.swim.assume([member("n2", epoch=9)], at(0))
    registry.say(OWN, member("n2"))
    registry.view(1)
    registry.say()
    assert registry.view(2).owners == registry.view(2).owners == ("n1", "n2")
    assert registry.reconciler.deadline() == float("inf"), "nothing to switch to"
    assert registry.view(100).owners == ("n1", "n2")
    registry.say(member("n2", epoch=9))
    assert registry.view(50).owners == ("n1", "n2")
    assert registry.reconciler.deadline() == 2 + SETTINGS.hold_max
    assert registry.view(61).owners == ("n1", "n2")
    assert registry.view(62).owners == ("n2",)


def heard(*ids: str) -> Registry:
    """Return five registered members, of which gossip hears these."""
    registry = Registry()
    registry.swim.assume([member(node_id) for node_id in ids], at(0))
    registry.say(OWN, *(member(f"n{number}") for number in range(2, 6)))
    registry.view(1)
    return registry


ALL = ("n1", "n2", "n3", "n4", "n5")


def test_when_most_registrations_vanish_and_gossip_hears_them_the_whole_ring_is_held():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, member("n2"))
    view = registry.view(2)
    assert (view.owners, view.authority) == (ALL, "held")
    registry.say(OWN, *(member(node_id, epoch=9) for node_id in ALL[1:]))
    view = registry.view(3)
    assert (view.owners, view.authority) == (ALL, "both")


def test_registrations_that_vanish_one_after_the_other_within_a_lease_are_one_loss():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, member("n2"), member("n3"), member("n4"))
    assert registry.view(2).owners == ALL, "a grace for the first"
    registry.say(OWN, member("n2"), member("n3"))
    assert registry.view(6).owners == ("n1", "n2", "n3", "n4"), "which is over"
    registry.say(OWN, member("n2"))
    view = registry.view(7)
    assert (view.owners, view.authority) == (ALL, "held")


def test_a_mass_death_is_not_held():
    registry = heard("n2")
    registry.swim.assume([member(node_id) for node_id in ("n3", "n4", "n5")], at(0))
    registry.swim.handle(said(*(Dead(node_id, 7, 0, "n9") for node_id in ("n3", "n4", "n5"))), at(1.5))
    registry.say(OWN, member("n2"))
    view = registry.view(2)
    assert (view.owners, view.authority) == (("n1", "n2"), "both")


def test_a_hold_ends_when_gossip_loses_half_of_those_who_vanished():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN)
    assert registry.view(2).authority == "held"
    registry.swim.handle(said(Dead("n4", 7, 0, "n9")), at(3))
    assert registry.view(3).owners == ALL
    registry.swim.handle(said(Dead("n5", 7, 0, "n9")), at(4))
    assert registry.view(4).owners == ("n1",)


def test_a_hold_does_not_wait_for_the_dead():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN)
    registry.view(2)
    registry.swim.handle(said(Dead("n5", 7, 0, "n9")), at(3))
    registry.say(OWN, *(member(node_id, epoch=9) for node_id in ALL[1:4]))
    assert registry.view(4).owners == ALL[:4]


def test_a_hold_ends_by_itself_with_whoever_is_registered():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, member("n2"))
    assert registry.view(2).owners == registry.view(2).owners == ALL
    assert registry.reconciler.deadline() == 2 + SETTINGS.hold_max
    assert registry.view(62).owners == ("n1", "n2")


def test_a_lease_that_lapsed_for_a_moment_changes_no_ring():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, *(member(node_id) for node_id in ALL[1:4]))
    view = registry.view(2)
    assert view.owners == ALL
    assert registry.row("n5", 2).told(at(2.5)) == (
        "gossip says alive, etcd lost its registration 0.5 s ago; it has a moment to register again"
    )
    assert registry.reconciler.deadline() == 2 + SETTINGS.expiry_grace
    registry.say(OWN, *(member(node_id) for node_id in ALL[1:4]), member("n5", epoch=9))
    assert registry.view(3).owners == ALL


def test_whoever_does_not_register_again_within_the_grace_leaves():
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, *(member(node_id) for node_id in ALL[1:4]))
    registry.view(2)
    assert registry.view(5).owners == ALL[:4]


@pytest.mark.parametrize("manner", ["left", "evicted"])
def test_whoever_left_or_was_evicted_has_no_grace(manner):
    registry = heard("n2", "n3", "n4", "n5")
    registry.say(OWN, member("n2"))
    registry.etcd.departed = dict.fromkeys(("n3", "n4", "n5"), manner)
    view = registry.view(2)
    assert (view.owners, view.authority) == (("n1", "n2"), "both")


def test_one_registration_that_goes_and_is_not_heard_leaves_the_ring_at_once():
    registry = Registry()
    registry.say(OWN, member("n2"), member("n3"))
    registry.view(1)
    registry.say(OWN, member("n3"))
    assert registry.view(2).owners == ("n1", "n3")


@pytest.mark.parametrize(
    ("connected", "verdict", "sentence"),
    [
        (True, "agree", "registered and serving"),
        (False, "unreachable", "registered and serving; it cannot be reached from here"),
    ],
)
def test_each_row_says_in_a_sentence_how_things_stand(connected, verdict, sentence):
    registry = Registry()
    registry.swim.assume([member("n2")], at(0))
    registry.say(OWN, member("n2"))
    row = registry.row("n2", 1, {"n2": connected})
    assert (row.verdict, row.reason, row.routable) == (verdict, sentence, connected)


def granted(registry: Registry) -> Registry:
    """Give the node a lease, under which its proposals' marks stand."""
    registry.etcd.lease_id = 77
    return registry


def proposals(registry: Registry, second: float, *, signs: bool = True) -> list[EvictMember]:
    """Return whom it proposes. `signs`: whoever gossip calls alive has just been heard."""
    registry.swim.heard_s = float("inf")
    for record in registry.swim.table.live:
        if signs and record.state == "alive":
            record.heard_s = second
    _, effects = registry.reconciler.reconcile({}, at(second))
    return [effect for effect in effects if isinstance(effect, EvictMember)]


def dead(registry: Registry, *ids: str, second: float = 2) -> None:
    registry.swim.assume([member(node_id) for node_id in ids if node_id not in registry.swim.table.members], at(0))
    registry.swim.handle(said(*(Dead(node_id, 7, 0, "n9") for node_id in ids)), at(second))


def test_a_majority_proposes_the_eviction_of_who_is_dead_for_long_enough():
    registry = granted(heard("n2", "n3", "n4"))
    dead(registry, "n5")
    assert proposals(registry, 3) == []
    assert registry.reconciler.deadline() == 2 + SETTINGS.evict_after
    [proposal] = proposals(registry, 7)
    assert proposal.key == b"/zephyrcache/members/n5"
    assert proposal.expected_mod_revision == 3
    assert proposal.mark_key == b"/zephyrcache/evictions/n5"
    assert EvictionMark.decode(proposal.mark) == EvictionMark("n1", 7, "gossip says dead")
    assert proposals(registry, 8) == [], "not twice at once"
    assert len(proposals(registry, 9)) == 1, "but again while it stands there"


def test_others_propose_a_moment_later_in_the_order_of_ids():
    settings = replace(SETTINGS, id="n3")
    registry = granted(heard("n2", "n4"))
    registry.reconciler.settings = registry.reconciler.evictions.settings = settings
    registry.swim.assume([member("n3"), member("n5")], at(0))
    dead(registry, "n5")
    assert proposals(registry, 7.4) == []
    assert len(proposals(registry, 7.5)) == 1


def test_who_left_by_gossips_word_is_proposed_at_once():
    registry = granted(heard("n2", "n3", "n4", "n5"))
    registry.swim.handle(said(Left("n5", 7, 0)), at(2))
    assert len(proposals(registry, 2)) == 1


def test_who_hears_a_majority_again_gives_the_dead_their_time_anew():
    registry = granted(heard("n2"))
    dead(registry, "n3", "n4", "n5")
    assert proposals(registry, 60) == []
    registry.swim.handle(said(Alive(member("n3"), 1), Alive(member("n4"), 1)), at(61))
    assert proposals(registry, 61) == [], "it may be dead by the word of a minority"
    assert proposals(registry, 61 + SETTINGS.evict_after - 0.1) == []
    assert len(proposals(registry, 61 + SETTINGS.evict_after)) == 1


def test_who_has_not_heard_a_majority_since_the_death_asks_everybody_first():
    registry = granted(heard("n2", "n3", "n4"))
    dead(registry, "n5")
    registry.swim.heard_s = float("inf")
    _, effects = registry.reconciler.reconcile({}, at(7))
    assert not any(isinstance(effect, EvictMember) for effect in effects), "it may be the one that is cut off"
    assert sum(isinstance(effect, SendDatagram) for effect in effects) >= 3
    assert proposals(registry, 7.05, signs=False) == []
    for node_id in ("n2", "n3"):
        registry.swim.handle(DatagramReceived("a:1", Packet(node_id, 7, ())), at(7.06))
    assert len(proposals(registry, 7.1, signs=False)) == 1


def test_a_minority_proposes_nothing():
    registry = granted(heard("n2"))
    dead(registry, "n3", "n4", "n5")
    assert proposals(registry, 60) == []


def test_half_of_the_registered_is_no_majority():
    registry = granted(Registry())
    registry.say(OWN, member("n2"))
    dead(registry, "n2")
    assert proposals(registry, 60) == []


def test_a_new_life_is_not_evicted_for_the_death_of_the_old_one():
    registry = granted(heard("n2", "n3", "n4"))
    dead(registry, "n5")
    registry.say(OWN, *(member(node_id) for node_id in ALL[1:4]), member("n5", epoch=9))
    assert proposals(registry, 20) == []


def test_a_registered_life_that_gossip_never_meets_counts_as_dead_in_the_end():
    registry = granted(heard("n2", "n3", "n4"))
    assert registry.reconciler.deadline() == 1 + SETTINGS.unknown_timeout
    assert proposals(registry, 30) == []
    [proposal] = proposals(registry, 31)
    assert proposal.key == b"/zephyrcache/members/n5"


def test_who_is_unknown_to_gossip_but_connected_is_left_alone():
    registry = granted(heard("n2", "n3", "n4"))
    _, effects = registry.reconciler.reconcile({"n5": True}, at(31))
    assert not any(isinstance(effect, EvictMember) for effect in effects)


def test_who_was_evicted_registers_again_only_when_it_has_heard_most_of_the_registered_since():
    registry = heard("n2", "n3", "n4")
    registry.etcd._set_departed("n1", "evicted", at(1.9))
    registry.say(member("n2"), member("n3"), member("n4"))
    _, effects = registry.reconciler.reconcile({}, at(2))
    assert sum(isinstance(effect, SendDatagram) for effect in effects) == 3, "it asks them all"
    assert not registry.etcd._registration_allowed, "what it believed before counts for nothing"
    for node_id in ("n2", "n3"):
        registry.swim.handle(DatagramReceived("a:1", Packet(node_id, 7, ())), at(3))
    registry.view(3)
    assert registry.etcd._registration_allowed


def gossip_only(**changes: object) -> tuple[Swim, Reconciler]:
    settings = replace(SETTINGS, etcd=(), **changes)
    swim = Swim(settings, OWN, random.Random(1))
    swim.assume([member("n2"), member("n3")], at(0))
    return swim, Reconciler(settings, None, swim, at(0))


def said(*messages: object) -> DatagramReceived:
    return DatagramReceived("", Packet("n9", 1, messages))


def test_without_etcd_the_ring_is_whoever_gossip_calls_alive():
    _, reconciler = gossip_only()
    view, _ = reconciler.reconcile({"n2": False}, at(2))
    assert (view.owners, view.authority) == (("n1", "n2", "n3"), "gossip")
    assert view.members[1].reason == "gossip says alive; no etcd is configured; it cannot be reached from here"


def test_without_etcd_the_dead_leave_after_a_while_and_those_who_said_goodbye_at_once():
    swim, reconciler = gossip_only(gossip_evict_after=30.0)
    reconciler.reconcile({}, at(1))
    swim.handle(said(Dead("n2", 7, 0, "n9"), Left("n3", 7, 0)), at(2))
    view, _ = reconciler.reconcile({}, at(2))
    assert view.owners == ("n1", "n2")
    assert reconciler.deadline() == 32
    rows = {row.member.id: row for row in view.members}
    assert (rows["n2"].verdict, rows["n2"].routable) == ("gossip-first", False)
    assert (rows["n3"].verdict, rows["n3"].in_ring) == ("agree", False)
    assert reconciler.reconcile({}, at(32))[0].owners == ("n1",)


def test_whom_gossip_calls_dead_is_not_routed_to_while_etcd_holds_its_lease():
    registry = Registry()
    registry.say(OWN, member("n2"))
    registry.swim.assume([member("n2")], at(0))
    registry.swim.handle(said(Dead("n2", 7, 0, "n9")), at(2))
    row = registry.row("n2", 3)
    assert (row.gossip, row.etcd, row.in_ring, row.routable) == ("dead", "registered", True, False)
    assert row.told(at(6.2)) == (
        "gossip says dead for 4.2 s, etcd still holds its lease; "
        "leaves the ring when its eviction commits or the lease ends"
    )


def test_whom_gossip_knows_and_etcd_does_not_owns_nothing():
    registry = Registry()
    registry.say(OWN)
    registry.swim.assume([member("n2")], at(0))
    row = registry.row("n2", 3)
    assert (row.verdict, row.in_ring, row.routable) == ("unregistered", False, True)
