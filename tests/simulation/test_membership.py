"""The membership table (`zephyr.policy`), row by row, on whole nodes in virtual time."""

from dataclasses import replace

import pytest

from chaos import simulator
from chaos.cluster_scenarios import SETTINGS
from chaos.simulator import Simulation
from zephyr.etcd.registration import encode_registration
from zephyr.events import EvictionRequested, HoldReleaseRequested
from zephyr.model import Failure, Member, MemberView, Outcome, ReadRequest, WriteRequest
from zephyr.replication import leftovers
from zephyr.replication.level import Levels
from zephyr.ring.ring import key_slot

IDS = ["n1", "n2", "n3", "n4", "n5"]
KEYS = [b"key-%d" % number for number in range(20)]
PROCESS_GONE_S = 1.0
"""A process that ended is dead for everybody by then."""
MACHINE_SILENT_S = 12.0
"""A silent machine is dead for everybody by then."""


class Cluster:
    """Five nodes, registered, with equal rings."""

    def __init__(self, seed: int = 1, **changes: object) -> None:
        settings = replace(SETTINGS, join=tuple(f"n{number}:79" for number in range(1, 9)), **changes)
        self.simulation = Simulation(seed, settings=settings)
        self.simulation.tick_etcd(0.5, 600)
        self.keys = KEYS

    def started(self) -> "Cluster":
        for node_id in IDS:
            self.simulation.start(node_id)
        self.wait(4)
        assert self.rings() == dict.fromkeys(IDS, IDS)
        self.changes = self.change_counts()
        return self

    def wait(self, duration_s: float) -> None:
        self.simulation.run_until(self.simulation.now_s + duration_s)

    def node(self, node_id: str):
        return self.simulation.nodes[node_id].node

    def rings(self) -> dict[str, list[str]]:
        return {node_id: list(self.node(node_id).view.owners) for node_id in self.simulation.nodes}

    def authorities(self) -> dict[str, str]:
        return {node_id: self.node(node_id).view.authority for node_id in self.simulation.nodes}

    def row(self, observer: str, subject: str) -> MemberView:
        return next(row for row in self.node(observer).view.members if row.member.id == subject)

    def change_counts(self) -> dict[str, int]:
        return {node_id: self.node(node_id).ring_change_count for node_id in self.simulation.nodes}

    def no_ring_changed(self) -> bool:
        return self.change_counts() == self.changes

    def etcd_fails(self) -> None:
        self.simulation.etcd_up = False
        self.simulation.break_watches()

    def etcd_returns(self) -> None:
        self.simulation.etcd_up = True
        self.simulation.etcd.restart(self.simulation.now_s)

    def cut_from_etcd(self, *node_ids: str) -> None:
        self.simulation.cut_from_etcd = dict.fromkeys(node_ids, True)
        self.simulation.break_watches()

    def split(self, *side: str) -> None:
        for one in self.simulation.nodes:
            for other in self.simulation.nodes:
                if (one in side) != (other in side):
                    self.simulation.cuts[one, other] = True

    def heal(self) -> None:
        self.simulation.cuts.clear()
        self.simulation.cut_from_etcd.clear()

    def ask(self, node_id: str, request: ReadRequest | WriteRequest) -> Outcome:
        result = self.simulation.submit(node_id, request)
        if isinstance(result, Outcome):
            return result
        self.wait(3)
        return self.simulation.outcomes[result]

    def write_all(self, value: bytes) -> None:
        """Write every key through the first node, which stands on the majority's side in each test."""
        asked = [self.simulation.submit("n1", WriteRequest(key, value)) for key in self.keys]
        self.wait(0.5)
        outcomes = [item if isinstance(item, Outcome) else self.simulation.outcomes[item] for item in asked]
        assert not any(outcome.failure for outcome in outcomes)

    def stale_reads(self, node_id: str, duration_s: float) -> int:
        """Read every key at one node, of one replica, again and again: how many were old, and not marked?"""
        asked = []
        for _ in range(round(duration_s / 0.1)):
            asked += [self.simulation.submit(node_id, ReadRequest(key, quorum="1")) for key in self.keys]
            self.wait(0.1)
        self.wait(3)
        outcomes = [item if isinstance(item, Outcome) else self.simulation.outcomes[item] for item in asked]
        return sum(
            outcome.record is not None and outcome.record.endswith(b"old") and not outcome.is_unconfirmed
            for outcome in outcomes
        )

    def log(self, word: str) -> int:
        return sum(word in line for line in self.simulation.log)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster().started()


# --- registered ---------------------------------------------------------------------------------------


def test_registered_and_alive_is_an_owner_and_all_agree(cluster):
    cluster.wait(20)
    assert set(cluster.authorities().values()) == {"both"}
    assert {row.verdict for node_id in IDS for row in cluster.node(node_id).view.members} == {"agree"}
    assert cluster.no_ring_changed()


def test_registered_and_suspect_is_an_owner_and_sent_requests(cluster):
    cluster.simulation.pause("n3", 6.0)
    for _ in range(60):
        cluster.wait(0.1)
        row = cluster.row("n1", "n3")
        if row.gossip == "suspect":
            assert (row.in_ring, row.routable, row.verdict) == (True, True, "gossip-first")
            break
    else:
        pytest.fail("it was never suspected")
    cluster.wait(5)
    assert cluster.row("n1", "n3").verdict == "agree"
    assert cluster.no_ring_changed()


def test_registered_and_never_met_is_an_owner_until_it_is_overdue(cluster):
    stranger = Member("n9", "n9:80", "n9:79", "n9:99", 1)
    etcd, first = cluster.simulation.etcd, cluster.node("n1")
    etcd.revision += 1
    key = first.etcd.keyspace.member("n9")
    from zephyr.events import KeyChange, KeyValue  # noqa: PLC0415

    etcd.pairs[key] = KeyValue(key, encode_registration(stranger), etcd.revision, 0)
    etcd._publish((KeyChange(key, encode_registration(stranger), etcd.revision, 0),))
    cluster.wait(2)
    row = cluster.row("n1", "n9")
    assert (row.gossip, row.in_ring, row.routable, row.verdict) == ("unknown", True, True, "etcd-first")
    cluster.wait(SETTINGS.unknown_timeout - 3)
    assert cluster.rings()["n1"] == [*IDS, "n9"]
    cluster.wait(3)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_registered_and_dead_is_sent_nothing_and_leaves_when_its_eviction_commits(cluster):
    cluster.simulation.crash("n2")
    cluster.wait(PROCESS_GONE_S)
    row = cluster.row("n4", "n2")
    assert (row.gossip, row.etcd, row.in_ring, row.routable) == ("dead", "registered", True, False)
    cluster.wait(SETTINGS.evict_after + 0.5)
    assert set(map(tuple, cluster.rings().values())) == {("n1", "n3", "n4", "n5")}


def test_registered_and_left_is_evicted_at_once(cluster):
    cluster.cut_from_etcd("n2")
    cluster.simulation.leave("n2")
    cluster.wait(1)
    assert cluster.rings()["n1"] == ["n1", "n3", "n4", "n5"]


def test_an_operator_evicts_a_member_and_it_is_back_when_it_hears_a_majority(cluster):
    assert cluster.node("n1").eviction_objection("n3") == ""
    assert cluster.node("n1").eviction_objection("n7") == "n7 is not registered"
    cluster.simulation._handle(cluster.simulation.nodes["n1"], EvictionRequested("n3"))
    cluster.wait(2)
    assert cluster.log("note registration-gone n3 evicted") == len(IDS)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


# --- absent -------------------------------------------------------------------------------------------


def test_absent_without_a_mark_and_alive_registers_again_and_changes_no_ring(cluster):
    cluster.simulation.etcd.delete(cluster.node("n1").etcd.keyspace.member("n3"))
    cluster.wait(5)
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.no_ring_changed()


def test_absent_after_the_grace_owns_nothing_and_may_coordinate():
    cluster = Cluster(expiry_grace=1.0).started()
    cluster.cut_from_etcd("n3")
    cluster.simulation.nodes["n3"].node.relay.poll = lambda *_: []  # Nobody renews its lease.
    cluster.wait(SETTINGS.lease_ttl + 3)
    row = cluster.row("n1", "n3")
    assert (row.gossip, row.etcd, row.in_ring, row.routable) == ("alive", "absent", False, True)
    assert row.verdict == "unregistered"


def test_absent_and_dead_is_shown_in_agreement_and_forgotten_in_time():
    cluster = Cluster(dead_memory=30.0).started()
    cluster.simulation.crash("n2")
    cluster.wait(SETTINGS.evict_after + 2)
    row = cluster.row("n1", "n2")
    assert (row.gossip, row.etcd, row.verdict, row.routable) == ("dead", "absent", "agree", False)
    cluster.wait(60)
    assert [item.member.id for item in cluster.node("n1").view.members] == ["n1", "n3", "n4", "n5"]


def test_a_mass_loss_holds_the_whole_ring_until_all_are_back(cluster):
    cluster.simulation.etcd.revoke_all()
    cluster.wait(5)
    assert cluster.log("note hold ") > 0
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.no_ring_changed()


def test_gossip_leads_when_etcd_goes_away_after_it_lost_everything(cluster):
    cluster.simulation.etcd.revoke_all()
    cluster.wait(0.006)
    assert not any(cluster.node(node_id).etcd.registrations for node_id in IDS)
    cluster.etcd_fails()
    cluster.wait(6)
    assert set(cluster.authorities().values()) == {"gossip"}
    assert cluster.no_ring_changed()
    cluster.simulation.crash("n5")
    cluster.wait(SETTINGS.gossip_evict_after + MACHINE_SILENT_S)
    assert cluster.rings() == dict.fromkeys(IDS[:4], IDS[:4])


def test_an_operator_lets_a_held_ring_go(cluster):
    for node_id in IDS[1:]:  # They cannot register again.
        cluster.node(node_id).relay.poll = lambda *_: []
        cluster.node(node_id).relay.serve = lambda *_: (5, ())
    cluster.cut_from_etcd(*IDS[1:])
    cluster.wait(SETTINGS.lease_ttl + 5)
    assert cluster.authorities()["n1"] == "held"
    assert cluster.rings()["n1"] == IDS
    cluster.simulation._handle(cluster.simulation.nodes["n1"], HoldReleaseRequested())
    cluster.wait(1)
    assert cluster.rings()["n1"] == ["n1"]
    assert cluster.log("n1 note hold-ended  an operator let it go") == 1


# --- etcd cannot be reached ---------------------------------------------------------------------------


def test_a_node_cut_from_etcd_alone_shows_relayed_and_changes_no_ring(cluster):
    cluster.cut_from_etcd("n3")
    cluster.wait(60)
    view = cluster.node("n3").view
    assert (view.authority, view.etcd.state) == ("relayed", "relayed")
    assert cluster.row("n3", "n1").etcd == "registered"
    assert cluster.no_ring_changed()
    assert cluster.log("registration-gone n3") == 0, "a peer renewed its lease"
    assert not cluster.node("n3").readiness()
    cluster.heal()
    cluster.wait(5)
    assert set(cluster.authorities().values()) == {"both"}


def test_a_node_cut_from_etcd_alone_sees_a_death_commit(cluster):
    cluster.cut_from_etcd("n3")
    cluster.wait(10)
    cluster.simulation.crash("n5")
    cluster.wait(SETTINGS.evict_after + 3)
    assert set(map(tuple, cluster.rings().values())) == {("n1", "n2", "n3", "n4")}


def test_when_nobody_reaches_etcd_gossip_leads_and_no_ring_changes(cluster):
    cluster.etcd_fails()
    cluster.wait(60)
    assert set(cluster.authorities().values()) == {"gossip"}
    assert all(cluster.node(node_id).confirmation.until_s > cluster.simulation.now_s for node_id in IDS)
    assert cluster.ask("n2", WriteRequest(b"key", b"value")).failure is None
    cluster.etcd_returns()
    cluster.wait(5)
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.no_ring_changed()


@pytest.mark.parametrize("period_s", [1.0, 3.0, 6.0])
def test_an_etcd_that_comes_and_goes_changes_no_ring(cluster, period_s):
    for _ in range(20):
        cluster.etcd_fails()
        cluster.wait(period_s)
        cluster.etcd_returns()
        cluster.wait(period_s)
        assert set(map(tuple, cluster.rings().values())) == {tuple(IDS)}
    assert cluster.no_ring_changed()


def test_who_joins_while_gossip_leads_coordinates_and_becomes_an_owner_when_etcd_is_back(cluster):
    cluster.etcd_fails()
    cluster.wait(10)
    cluster.simulation.start("n6")
    cluster.wait(5)
    assert cluster.rings()["n6"] == IDS
    assert cluster.node("n6").readiness() == ()
    assert cluster.ask("n6", WriteRequest(b"key", b"value")).failure is None
    assert cluster.ask("n6", ReadRequest(b"key")).record is not None
    row = cluster.row("n1", "n6")
    assert (row.in_ring, row.routable, row.verdict) == (False, True, "unconfirmed")
    cluster.etcd_returns()
    cluster.wait(5)
    assert set(map(tuple, cluster.rings().values())) == {(*IDS, "n6")}
    later = cluster.change_counts()
    assert all(later[node_id] == cluster.changes[node_id] + 1 for node_id in IDS), "one change, not two"


def test_who_dies_while_gossip_leads_leaves_after_long_and_stays_out_when_etcd_is_back(cluster):
    cluster.etcd_fails()
    cluster.wait(5.3)  # Not in the moment of a roll call: a packet under way would speak for it.
    cluster.simulation.crash("n4")
    cluster.wait(SETTINGS.gossip_evict_after - 1)
    assert cluster.rings()["n1"] == IDS
    assert not cluster.row("n1", "n4").routable
    cluster.wait(3)
    assert set(map(tuple, cluster.rings().values())) == {("n1", "n2", "n3", "n5")}
    changes = cluster.change_counts()
    cluster.etcd_returns()
    cluster.wait(1.5)
    assert cluster.change_counts() == changes, "it has its lease back, and stays out"
    cluster.wait(3)
    assert cluster.log("note registration-gone n4 evicted") > 0
    assert cluster.change_counts() == changes


def test_who_leaves_while_gossip_leads_is_out_at_once(cluster):
    cluster.etcd_fails()
    cluster.wait(5)
    cluster.simulation.leave("n4")
    cluster.wait(1)
    assert cluster.rings()["n1"] == ["n1", "n2", "n3", "n5"]


def test_who_begins_anew_while_gossip_leads_keeps_its_place(cluster):
    cluster.etcd_fails()
    cluster.wait(5)
    cluster.simulation.crash("n4")
    cluster.wait(2)
    cluster.simulation.start("n4")
    cluster.wait(5)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert len({cluster.node(node_id).view.digest for node_id in IDS}) == 1
    cluster.etcd_returns()
    cluster.wait(5)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert set(cluster.authorities().values()) == {"both"}


def test_a_minority_without_etcd_keeps_its_ring_and_refuses_strict_requests(cluster):
    cluster.split("n4", "n5")
    cluster.cut_from_etcd("n4", "n5")
    cluster.wait(MACHINE_SILENT_S + SETTINGS.lease_ttl + SETTINGS.gossip_evict_after)
    assert cluster.rings()["n4"] == IDS
    assert cluster.authorities()["n4"] == "none"
    assert cluster.node("n4").readiness()
    assert cluster.rings()["n1"] == ["n1", "n2", "n3"]
    for number in range(20):
        assert cluster.ask("n4", WriteRequest(b"key-%d" % number, b"v")).failure is Failure.UNAVAILABLE
    cluster.heal()
    cluster.wait(15)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert cluster.change_counts()["n4"] <= cluster.changes["n4"] + 3


def test_who_was_alone_while_etcd_was_away_removes_nobody_when_it_hears_a_majority_again(cluster):
    cluster.etcd_fails()
    cluster.wait(5)
    for node_id in IDS:
        for other in IDS:
            if node_id != other:
                cluster.simulation.cuts[node_id, other] = True
    cluster.wait(MACHINE_SILENT_S + 2 * SETTINGS.gossip_evict_after)
    cluster.heal()
    cluster.wait(15)
    assert cluster.no_ring_changed(), "whom a minority called dead for long may well live"
    assert set(cluster.authorities().values()) == {"gossip"}


def test_a_split_into_halves_that_both_reach_etcd_changes_no_ring(cluster):
    cluster.simulation.crash("n5")
    cluster.wait(SETTINGS.evict_after + 3)
    assert cluster.rings() == dict.fromkeys(IDS[:4], IDS[:4])
    changes, proposals = cluster.change_counts(), cluster.log("eviction-proposed")
    cluster.split("n3", "n4")
    cluster.wait(60)
    assert set(cluster.authorities().values()) == {"etcd"}
    assert cluster.log("eviction-proposed") == proposals, "nobody hears more than half"
    cluster.heal()
    cluster.wait(15)
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.change_counts() == changes


def test_a_split_with_etcd_at_the_minority_mends(cluster):
    cluster.split("n4", "n5")
    cluster.cut_from_etcd("n1", "n2", "n3")
    cluster.wait(60)
    assert cluster.rings()["n4"] == ["n4", "n5"]
    assert cluster.rings()["n1"] == ["n1", "n2", "n3"]
    assert cluster.authorities() == {"n1": "gossip", "n2": "gossip", "n3": "gossip", "n4": "both", "n5": "both"}
    cluster.heal()
    cluster.wait(SETTINGS.evict_after + 5)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_etcd_wiped_while_it_was_away_takes_over_in_one_step(cluster):
    cluster.etcd_fails()
    cluster.wait(20)
    cluster.simulation.etcd.wipe()
    cluster.etcd_returns()
    for _ in range(50):
        cluster.wait(0.1)
        assert set(map(tuple, cluster.rings().values())) == {tuple(IDS)}
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.no_ring_changed()


def test_a_wiped_etcd_that_comes_and_goes_at_one_node_shrinks_no_ring(cluster):
    cluster.etcd_fails()
    cluster.wait(20)
    cluster.simulation.etcd.wipe()
    cluster.cut_from_etcd(*IDS[1:])
    cluster.etcd_returns()
    cluster.wait(4)
    assert list(cluster.node("n3").etcd.registrations) == ["n1"], "it took over what is registered, by n1's word"
    cluster.etcd_fails()
    cluster.wait(15)
    assert cluster.no_ring_changed()


def test_a_wiped_etcd_in_which_most_cannot_register_holds_the_ring_after_the_takeover(cluster):
    cluster.etcd_fails()
    cluster.wait(20)
    cluster.simulation.etcd.wipe()
    cluster.cut_from_etcd(*IDS[1:])
    cluster.etcd_returns()
    cluster.wait(SETTINGS.takeover_max + 10)
    assert set(cluster.authorities().values()) == {"held"}
    assert cluster.no_ring_changed()
    cluster.heal()
    cluster.wait(5)
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


# --- no view, no peers, no UDP ------------------------------------------------------------------------


def test_a_cold_start_without_etcd_makes_a_provisional_ring_that_etcd_takes_over():
    cluster = Cluster()
    cluster.etcd_fails()
    for node_id in IDS:
        cluster.simulation.start(node_id)
    cluster.wait(SETTINGS.bootstrap_after - 2)
    assert cluster.rings()["n1"] == []
    assert cluster.node("n1").readiness()
    cluster.wait(4)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert set(cluster.authorities().values()) == {"gossip"}
    assert cluster.node("n1").readiness() == ()
    assert cluster.ask("n3", WriteRequest(b"key", b"value")).failure is None
    changes = cluster.change_counts()
    cluster.etcd_returns()
    cluster.wait(5)
    assert set(cluster.authorities().values()) == {"both"}
    assert cluster.change_counts() == changes


def test_a_cold_start_waits_for_as_many_as_expected():
    cluster = Cluster()
    cluster.etcd_fails()
    for node_id in IDS[:2]:
        cluster.simulation.start(node_id)
    cluster.wait(60)
    assert cluster.rings() == {"n1": [], "n2": []}
    cluster.simulation.start("n3")
    cluster.wait(SETTINGS.bootstrap_after + 2)
    assert cluster.rings() == dict.fromkeys(IDS[:3], IDS[:3])


def test_a_committed_view_comes_before_a_provisional_one():
    cluster = Cluster().started()
    cluster.etcd_fails()
    cluster.wait(5)
    strangers = ("n6", "n7", "n8")
    for one in strangers:
        for other in IDS:
            cluster.simulation.cuts[one, other] = cluster.simulation.cuts[other, one] = True
        cluster.simulation.start(one)
    cluster.wait(SETTINGS.bootstrap_after + 3)
    assert cluster.rings()["n6"] == ["n6", "n7", "n8"]
    cluster.heal()
    cluster.wait(20)
    assert cluster.rings()["n6"] == IDS
    assert cluster.rings()["n1"] == IDS


@pytest.mark.parametrize("seed", range(1, 7))  # With some of them the lease ends before the eviction commits.
def test_whose_lease_ended_long_ago_registers_when_it_hears_a_majority_and_not_before(seed):
    cluster = Cluster(seed).started()
    cluster.split("n3")
    cluster.cut_from_etcd("n3")
    cluster.wait(MACHINE_SILENT_S + SETTINGS.gossip_evict_after)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    changes = cluster.change_counts()
    cluster.simulation.cut_from_etcd.clear()
    cluster.wait(20)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    assert cluster.change_counts()["n1"] == changes["n1"]
    cluster.heal()
    cluster.wait(5)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_who_reaches_etcd_and_hears_nobody_is_isolated_and_proposes_nothing(cluster):
    cluster.split("n3")
    cluster.wait(MACHINE_SILENT_S)
    assert cluster.authorities()["n3"] == "none"
    assert cluster.node("n3").readiness() in (
        ("none of the other members can be heard",),
        ("not in the ring yet",),
    )
    assert cluster.log("n3 note eviction-proposed") == 0
    cluster.heal()
    cluster.wait(12)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_blocked_udp_at_all_has_etcd_lead_and_changes_no_ring(cluster):
    cluster.simulation.udp_blocked = dict.fromkeys(IDS, True)
    cluster.wait(60)
    assert set(cluster.authorities().values()) == {"etcd"}
    assert cluster.no_ring_changed()
    cluster.simulation.crash("n5")
    cluster.wait(SETTINGS.lease_ttl + 3)
    assert set(map(tuple, cluster.rings().values())) == {("n1", "n2", "n3", "n4")}
    cluster.simulation.udp_blocked.clear()
    cluster.wait(30)
    assert set(cluster.authorities().values()) == {"both"}


def test_blocked_udp_at_one_node_changes_no_ring(cluster):
    cluster.simulation.udp_blocked = {"n2": True}
    cluster.wait(60)
    assert cluster.authorities() == {**dict.fromkeys(IDS, "both"), "n2": "etcd"}
    assert cluster.no_ring_changed()


def test_who_is_evicted_where_udp_is_blocked_hears_the_others_by_tcp_and_comes_back(cluster):
    cluster.simulation.udp_blocked = dict.fromkeys(IDS, True)
    cluster.wait(60)
    cluster.simulation._handle(cluster.simulation.nodes["n1"], EvictionRequested("n3"))
    cluster.wait(3)
    assert cluster.log("note registration-gone n3 evicted") == len(IDS)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_an_outage_of_etcd_where_udp_is_blocked_stops_nobody(cluster):
    cluster.simulation.udp_blocked = dict.fromkeys(IDS, True)
    cluster.wait(60)
    cluster.etcd_fails()
    cluster.wait(SETTINGS.lease_ttl + 2)
    for _ in range(100):
        cluster.wait(0.1)
        sure = [cluster.node(node_id).confirmation.until_s > cluster.simulation.now_s for node_id in IDS]
        assert all(sure)


# --- confirmed views ----------------------------------------------------------------------------------


def test_a_node_that_stood_still_serves_nothing_before_its_view_is_confirmed():
    cluster = Cluster(replicas=3).started()
    cluster.write_all(b"old")
    cluster.simulation.pause("n3", 30.0)
    resumes_s = cluster.simulation.nodes["n3"].resumes_s
    cluster.wait(20)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    cluster.write_all(b"new")
    # Its own clients ask at the very moment it goes on, before anything else reached it.
    cluster.simulation.run_until(resumes_s - 1e-6)
    assert any("n3" in cluster.node("n3").ring.owners(key_slot(key)) for key in KEYS)
    assert cluster.stale_reads("n3", 3.0) == 0
    cluster.wait(10)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_a_cut_off_minority_marks_what_it_reads(cluster):
    key = b"key-1"
    assert cluster.ask("n1", WriteRequest(key, b"value")).failure is None
    cluster.split("n4", "n5")
    cluster.cut_from_etcd("n4", "n5")
    cluster.wait(60)
    outcome = cluster.ask("n4", ReadRequest(key, quorum="1"))
    assert outcome.is_unconfirmed or outcome.failure is Failure.UNAVAILABLE
    assert cluster.ask("n4", ReadRequest(key)).failure is Failure.UNAVAILABLE


def test_an_outage_of_etcd_stops_nobody(cluster):
    cluster.etcd_fails()
    for number in range(60):
        cluster.wait(0.5)
        key = b"key-%d" % number
        assert cluster.ask(IDS[number % 5], WriteRequest(key, b"v")).failure is None
        outcome = cluster.ask(IDS[(number + 1) % 5], ReadRequest(key, quorum="1"))
        assert not outcome.is_unconfirmed


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_was_evicted_while_it_was_cut_off_serves_nothing_that_it_kept(seed):
    cluster = Cluster(seed, replicas=3).started()
    cluster.write_all(b"old")
    cluster.split("n3")
    cluster.cut_from_etcd("n3")
    cluster.wait(MACHINE_SILENT_S + SETTINGS.gossip_evict_after)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    cluster.write_all(b"new")
    cluster.heal()
    assert cluster.stale_reads("n3", 6.0) == 0
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_was_removed_while_etcd_was_away_serves_nothing_that_it_kept_though_its_lease_is_back(seed):
    cluster = Cluster(seed, replicas=3).started()
    cluster.write_all(b"old")
    cluster.etcd_fails()
    cluster.wait(3)
    cluster.simulation.pause("n3", 60.0)
    resumes_s = cluster.simulation.nodes["n3"].resumes_s
    cluster.wait(MACHINE_SILENT_S + SETTINGS.gossip_evict_after)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    cluster.write_all(b"new")
    assert cluster.simulation.now_s < resumes_s
    cluster.simulation.run_until(resumes_s - 1)
    cluster.etcd_returns()
    assert cluster.stale_reads("n3", 10.0) == 0
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert cluster.log("note registration-gone n3 evicted") > 0


@pytest.mark.parametrize("removed", ["n1", "n3", "n5"])
def test_who_was_removed_while_etcd_was_away_is_evicted_whoever_is_first_to_propose(cluster, removed):
    cluster.etcd_fails()
    cluster.wait(3)
    cluster.simulation.pause(removed, 60.0)
    resumes_s = cluster.simulation.nodes[removed].resumes_s
    cluster.wait(MACHINE_SILENT_S + SETTINGS.gossip_evict_after)
    cluster.simulation.run_until(resumes_s + 2)
    assert removed not in cluster.rings()["n2"]
    cluster.etcd_returns()
    cluster.wait(5)
    assert cluster.log(f"note registration-gone {removed} evicted") > 0
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_who_was_out_of_the_ring_of_the_others_without_seeing_it_is_not_level_when_it_is_back():
    cluster = Cluster(replicas=3).started()
    cluster.write_all(b"old")
    cluster.cut_from_etcd(*IDS)
    cluster.wait(3)
    for other in IDS:  # It hears the others, and they do not hear it.
        cluster.simulation.cuts["n3", other] = True
    cluster.wait(MACHINE_SILENT_S + SETTINGS.lease_ttl)
    cluster.cut_from_etcd("n3")
    cluster.wait(SETTINGS.lease_ttl)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    assert "n3" in cluster.rings()["n3"]
    cluster.write_all(b"new")
    cluster.heal()
    while "n3" not in cluster.rings()["n1"]:
        cluster.wait(0.01)
    cluster.wait(0.02)
    held = [key for key in KEYS if cluster.node("n3").store.peek(key_slot(key), key, 0) is not None]
    owned = [key for key in held if "n3" in cluster.node("n3").ring.owners(key_slot(key))]
    stale = [key for key in owned if cluster.node("n3").store.peek(key_slot(key), key, 0).endswith(b"old")]
    assert not any(cluster.node("n3").levels.is_level(key_slot(key)) for key in stale)
    cluster.wait(10)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert all(cluster.node("n3").levels.is_level(key_slot(key)) for key in KEYS)


def test_who_was_removed_while_etcd_was_away_is_not_confirmed_by_its_lease_alone():
    cluster = Cluster(replicas=3).started()
    cluster.write_all(b"old")
    cluster.etcd_fails()
    cluster.wait(3)
    cluster.simulation.pause("n3", 60.0)
    resumes_s = cluster.simulation.nodes["n3"].resumes_s
    cluster.wait(MACHINE_SILENT_S + SETTINGS.gossip_evict_after)
    cluster.write_all(b"new")
    cluster.simulation.run_until(resumes_s - 0.5)
    cluster.cut_from_etcd("n1", "n2", "n4", "n5")  # Nobody else can evict it.
    cluster.etcd_returns()
    assert cluster.stale_reads("n3", 10.0) == 0
    cluster.heal()
    cluster.wait(5)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_a_long_lease_confirms_nobody_who_is_cut_off_and_may_be_evicted():
    cluster = Cluster(replicas=3, lease_ttl=25.0).started()
    cluster.write_all(b"old")
    cluster.split("n3")
    cluster.cut_from_etcd("n3")
    cluster.wait(MACHINE_SILENT_S + SETTINGS.evict_after)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    cluster.write_all(b"new")
    assert cluster.stale_reads("n3", 1.0) == 0


def test_half_of_a_cluster_whose_leases_ended_while_it_was_cut_off_serves_nothing_that_it_kept():
    cluster = Cluster(replicas=3).started()
    cluster.simulation.crash("n5")
    cluster.wait(SETTINGS.evict_after + 3)
    cluster.write_all(b"old")
    cluster.split("n3", "n4")
    cluster.cut_from_etcd("n3", "n4")
    cluster.wait(MACHINE_SILENT_S + SETTINGS.lease_ttl)
    assert cluster.rings()["n1"] == ["n1", "n2"]
    cluster.write_all(b"new")
    cluster.heal()
    assert cluster.stale_reads("n3", 6.0) == 0
    assert cluster.rings() == dict.fromkeys(IDS[:4], IDS[:4])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whom_the_others_went_on_without_fetches_what_they_wrote_though_all_owners_of_a_key_are_back_at_once(seed):
    ids = [*IDS, "n6", "n7"]
    cluster = Cluster(seed, replicas=3)
    cluster.keys = [b"key-%d" % number for number in range(300)]
    for node_id in ids:
        cluster.simulation.start(node_id)
    cluster.wait(4)
    assert cluster.rings() == dict.fromkeys(ids, ids)
    for node_id in ids[3:]:  # Each alone, and a minority.
        cluster.split(node_id)
    cluster.cut_from_etcd(*ids[3:])
    cluster.wait(MACHINE_SILENT_S + SETTINGS.lease_ttl)
    assert cluster.rings()["n1"] == ids[:3]
    cluster.write_all(b"new")
    cluster.heal()
    cluster.wait(10)
    assert cluster.rings() == dict.fromkeys(ids, ids)
    asked = [cluster.simulation.submit(ids[3], ReadRequest(key)) for key in cluster.keys]
    cluster.wait(3)
    outcomes = [item if isinstance(item, Outcome) else cluster.simulation.outcomes[item] for item in asked]
    assert [key for key, outcome in zip(cluster.keys, outcomes, strict=True) if outcome.record is None] == []


@pytest.mark.parametrize(("seed", "split_s"), [(1, 14), (2, 20)])
def test_a_majority_whose_leases_ended_fetches_what_a_minority_wrote(seed, split_s):
    cluster = Cluster(seed, replicas=3)
    cluster.keys = [b"key-%d" % number for number in range(100)]
    cluster.started()
    cluster.split("n4", "n5")
    cluster.cut_from_etcd("n1", "n2", "n3")
    cluster.wait(split_s)
    assert cluster.rings()["n4"] == ["n4", "n5"]
    assert cluster.rings()["n1"] == IDS
    for key in cluster.keys:
        cluster.simulation.submit("n4", WriteRequest(key, b"new"))
    cluster.wait(0.3)
    assert cluster.node("n4").store.items == len(cluster.keys)
    cluster.heal()
    cluster.wait(12)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    for key in cluster.keys:
        slot = key_slot(key)
        for owner in cluster.node("n1").ring.owners(slot):
            assert cluster.node(owner).store.peek(slot, key, 0) is not None, (owner, key)


@pytest.mark.parametrize("is_wiped", [True, False])
def test_nobody_begins_anew_after_an_outage_of_etcd_in_which_all_leases_ended(cluster, monkeypatch, is_wiped):
    anew = []
    monkeypatch.setattr(Levels, "begin_anew", lambda self, now: anew.append(now))
    cluster.cut_from_etcd(*IDS)
    cluster.wait(SETTINGS.lease_ttl + 10)
    if is_wiped:
        cluster.simulation.etcd.wipe()
    cluster.heal()
    cluster.wait(SETTINGS.takeover_max + 5)
    assert set(cluster.authorities().values()) == {"both"}
    assert anew == []


@pytest.mark.parametrize(("seed", "outage_s"), [(3, 9.7), (3, 9.8), (6, 9.2), (5, 9.2)])
def test_who_thinks_the_others_went_on_without_it_fetches_what_those_kept_who_are_not_registered_yet(seed, outage_s):
    cluster = Cluster(seed, replicas=3)
    cluster.keys = [b"key-%d" % number for number in range(60)]
    for node_id in IDS:
        cluster.simulation.start(node_id)
        cluster.wait(0.7)
    cluster.wait(4)
    cluster.write_all(b"new")
    cluster.wait(1)
    for node_id in IDS:  # Everybody is alone, for about a lease: the leases of some end.
        cluster.split(node_id)
    cluster.cut_from_etcd(*IDS)
    cluster.wait(outage_s)
    cluster.heal()
    cluster.wait(20)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    for number in range(5):
        asked = [cluster.simulation.submit(IDS[number], ReadRequest(key)) for key in cluster.keys]
        cluster.wait(3)
        outcomes = [item if isinstance(item, Outcome) else cluster.simulation.outcomes[item] for item in asked]
        assert [key for key, outcome in zip(cluster.keys, outcomes, strict=True) if outcome.record is None] == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_write_that_one_owner_missed_survives_when_the_other_two_are_replaced_at_once(seed):
    ids = [*IDS, "n6", "n7", "n8"]
    cluster = Cluster(seed, replicas=3).started()
    cluster.keys = [b"key-%d" % number for number in range(100)]
    for other in IDS[:2] + IDS[3:]:  # It is heard, and no record reaches it.
        cluster.simulation.cuts[other, "n3"] = True
    cluster.write_all(b"new")
    for node_id in ids[5:]:
        cluster.simulation.start(node_id)
    cluster.wait(1.5)
    assert cluster.rings() == dict.fromkeys(ids, ids)
    asked = [cluster.simulation.submit("n6", ReadRequest(key)) for key in cluster.keys]
    cluster.wait(3)
    outcomes = [item if isinstance(item, Outcome) else cluster.simulation.outcomes[item] for item in asked]
    found = [outcome.record is not None for outcome in outcomes if outcome.failure is None]
    assert found == [True] * len(found)
    assert len(found) > 80


@pytest.mark.parametrize("seed", range(1, 6))
def test_who_starts_when_all_leases_have_ended_is_never_the_only_owner(seed):
    cluster = Cluster(seed, replicas=3).started()
    cluster.cut_from_etcd(*IDS)
    cluster.simulation.crash("n3")
    cluster.wait(3 * SETTINGS.lease_ttl)
    cluster.heal()
    log = cluster.simulation.log
    before = len(log)
    cluster.simulation.start("n3")
    cluster.wait(1)
    assert cluster.node("n3").etcd.registered
    assert cluster.node("n3").readiness() == (
        "not in the ring yet: all leases had ended, and whoever lives has a moment to register again",
    )
    cluster.wait(8)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    rings = [line.partition("owners: ")[2] for line in log[before:] if "n3 note ring-changed" in line]
    assert rings == [", ".join(IDS)]


def test_who_starts_while_etcd_is_away_takes_its_peers_word_however_late_it_reaches_them(cluster):
    cluster.simulation.crash("n3")
    cluster.etcd_fails()
    cluster.wait(3)
    cluster.simulation.start("n3")
    cluster.split("n3")
    cluster.wait(5)
    cluster.heal()
    cluster.wait(10)
    assert cluster.rings()["n3"] == IDS
    assert cluster.authorities()["n3"] == "gossip"


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_node_that_stood_still_past_its_lease_registers_once(seed):
    cluster = Cluster(seed).started()
    before = cluster.log("n3 note registered n3")
    cluster.simulation.pause("n3", 3 * SETTINGS.lease_ttl)
    cluster.wait(3 * SETTINGS.lease_ttl + 5)
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
    assert cluster.log("n3 note registered n3") == before + 1


def test_a_node_that_stood_still_compares_with_etcd_before_it_trusts_its_lease():
    cluster = Cluster(replicas=3).started()
    cluster.write_all(b"old")
    cluster.wait(1.5)
    cluster.simulation.pause("n3", 6.0)  # Its lease lives on.
    resumes_s = cluster.simulation.nodes["n3"].resumes_s
    cluster.simulation.nodes["n3"].etcd_line_s = resumes_s + 2.0  # Its watch is late.
    cluster.simulation._handle(cluster.simulation.nodes["n1"], EvictionRequested("n3"))
    cluster.wait(0.5)
    assert cluster.rings()["n1"] == ["n1", "n2", "n4", "n5"]
    cluster.write_all(b"new")
    cluster.simulation.run_until(resumes_s)
    assert cluster.stale_reads("n3", 3.0) == 0
    assert cluster.rings() == dict.fromkeys(IDS, IDS)


def test_however_soon_it_is_back_a_node_that_was_out_of_the_ring_drops_what_it_kept(monkeypatch):
    monkeypatch.setattr(simulator, "TIMER_STEP_S", 0.05)
    monkeypatch.setattr(leftovers, "SLICE_KEYS", 1)  # What it keeps takes long to drop.
    cluster = Cluster(replicas=3).started()
    cluster.keys = [b"key-%d" % number for number in range(400)]
    cluster.write_all(b"old")
    cluster.simulation.pause("n3", 25.0)
    resumes_s = cluster.simulation.nodes["n3"].resumes_s
    cluster.wait(15)
    cluster.write_all(b"new")
    cluster.simulation.run_until(resumes_s - 0.05)
    paused = cluster.node("n3")
    paused._build = lambda _now: []  # The ring without it is never finished: it is back before.
    cluster.simulation.at(resumes_s + 0.1, lambda: delattr(paused, "_build"))
    changes = paused.ring_change_count
    assert cluster.stale_reads("n3", 0.5) == 0
    assert paused.ring_change_count == changes
    assert cluster.rings() == dict.fromkeys(IDS, IDS)
