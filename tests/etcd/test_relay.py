"""etcd through peers: two machines joined in memory."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.etcd.relay import CURRENT_S, FANOUT, RENEWALS_MAX, RENEWALS_UNDER_WAY_MAX, ROUND_S, Relay
from zephyr.events import (
    EtcdCallFailed,
    KeepLeaseAlive,
    LeaseKeptAlive,
    PeerAnswered,
    PeerCallFailed,
    ReadSnapshot,
    SendPeer,
)
from zephyr.model import Instant, Member, Registration
from zephyr.peer.wire import Operation, Status

PEERS = {"n2": True, "n3": True}


def at(second: float) -> Instant:
    return Instant(second, 1_700_000_000_000 + int(second * 1000))


def member(node_id: str, **changes: object) -> Member:
    return replace(Member(node_id, "a:1", "a:2", "a:3", epoch=7), **changes)


class Side:
    """One node's dealings with etcd, which it reaches or not."""

    def __init__(self, node_id: str, *registered: str, revision: int = 5, reaches: bool = False):
        self.settings = Settings(id=node_id)
        self.etcd = EtcdMembership(self.settings, member(node_id), random.Random(1), at(0))
        self.relay = Relay(self.settings, self.etcd)
        self.etcd.registrations = {item: Registration(member(item), 3, 77) for item in registered}
        self.etcd.revision, self.etcd.listed = revision, bool(registered)
        if reaches:
            self.etcd._synced, self.etcd._reason_since_s = True, None

    def asked(self, second: float, peers: dict[str, bool] | None = None) -> list[SendPeer]:
        effects = self.relay.poll(PEERS if peers is None else peers, at(second))
        return [effect for effect in effects if isinstance(effect, SendPeer)]

    def answered_by(self, other: "Side", call: SendPeer, second: float):
        status, payload = other.relay.serve(call.arguments, at(second))
        return self.relay.on_answered(PeerAnswered(call.call_id, status, payload), at(second))


def test_nobody_is_asked_while_etcd_answers():
    assert Side("n1", "n1", reaches=True).asked(1) == []


def test_connected_peers_are_asked_each_round_while_it_does_not():
    cut = Side("n1", "n1")
    calls = cut.asked(1, {"n2": True, "n3": True, "n4": False})
    assert [call.node_id for call in calls] == ["n2", "n3"]
    assert {call.operation for call in calls} == {Operation.VIEW}
    assert cut.asked(1.5) == []
    assert cut.relay.deadline() == 1 + ROUND_S
    assert len(cut.asked(1 + ROUND_S)) == 2


def test_in_a_large_cluster_they_take_turns():
    cut = Side("n1", "n1")
    peers = {f"p{number:02}": True for number in range(40)}
    asked = [call.node_id for second in (1, 2, 3) for call in cut.asked(second, peers)]
    assert len(asked) == 3 * FANOUT
    assert set(asked) == set(peers)


def test_who_reaches_etcd_is_asked_in_each_round_of_a_large_cluster():
    cut, peer = Side("n1", "n1"), Side("p03", "n1", "p03", reaches=True)
    peers = {f"p{number:02}": True for number in range(100)}
    [call] = [item for item in cut.asked(1, peers) if item.node_id == "p03"]
    cut.answered_by(peer, call, 1.1)
    for second in range(2, 12):
        calls = cut.asked(second, peers)
        assert len(calls) == FANOUT
        [call] = [item for item in calls if item.node_id == "p03"]
        assert cut.etcd.status(at(second)).state == "relayed"
        cut.answered_by(peer, call, second + 0.1)
    peers["p03"] = False
    assert "p03" not in [item.node_id for second in range(12, 20) for item in cut.asked(second, peers)]


def test_after_a_restore_of_etcd_the_older_revision_of_who_reaches_it_is_taken_and_no_late_watch_is():
    cut, peer, late = Side("n1", "n1"), Side("n2", "n1", "n2", revision=9, reaches=True), Side("n3", "n1", reaches=True)
    calls = cut.asked(1)
    cut.answered_by(peer, calls[0], 1.1)
    cut.answered_by(late, calls[1], 1.2)
    assert list(cut.etcd.registrations) == ["n1", "n2"]
    assert cut.etcd.verified_sent_s == 1
    peer.etcd.registrations.pop("n2")
    peer.etcd.revision = 6
    for second in (2, 3, 4):
        [call, _] = cut.asked(second)
        cut.answered_by(peer, call, second + 0.1)
    assert list(cut.etcd.registrations) == ["n1"]
    assert cut.etcd.status(at(4.2)).state == "relayed"


def test_the_word_of_who_reaches_etcd_counts_for_two_rounds():
    cut, peer = Side("n1", "n1", revision=5), Side("n2", "n1", "n2", revision=9, reaches=True)
    [call, _] = cut.asked(1)
    cut.answered_by(peer, call, 1.1)
    assert list(cut.etcd.registrations) == ["n1", "n2"]
    assert cut.etcd.status(at(1.2)).state == "relayed"
    assert cut.etcd.silent_since_s() == 1.1 + CURRENT_S
    assert cut.etcd.status(at(1.1 + CURRENT_S)).state == "unreachable"


def test_who_does_not_reach_it_tells_only_a_newer_last_word():
    cut, newer, older = Side("n1", "n1"), Side("n2", "n1", "n2", revision=9), Side("n3", "n1", "n3", revision=2)
    newer_call, older_call = cut.asked(1)
    cut.answered_by(newer, newer_call, 1.1)
    cut.answered_by(older, older_call, 1.2)
    assert list(cut.etcd.registrations) == ["n1", "n2"]
    assert cut.etcd.status(at(1.2)).state == "unreachable"


def test_an_empty_word_is_never_taken():
    cut, peer = Side("n1", "n1"), Side("n2", revision=9, reaches=True)
    peer.etcd.listed = True
    [call, _] = cut.asked(1)
    cut.answered_by(peer, call, 1.1)
    assert list(cut.etcd.registrations) == ["n1"]


def test_how_members_went_is_told_too():
    cut, peer = Side("n1", "n1", "n2", "n3"), Side("n2", "n1", "n2", revision=9, reaches=True)
    peer.etcd.departed["n3"] = "evicted"
    [call, _] = cut.asked(1)
    cut.answered_by(peer, call, 1.1)
    assert cut.etcd.departed == {"n3": "evicted"}


def test_a_lease_is_renewed_by_one_peer_and_lives_from_the_question_before_the_keep_alive():
    cut, peer = Side("n1", "n1"), Side("n2", "n1", reaches=True)
    cut.etcd.lease_id = 77
    [call, _] = cut.asked(1)
    cut.answered_by(peer, call, 1.1)
    assert peer.relay.poll({}, at(1.1)) == [KeepLeaseAlive(77)]
    assert peer.relay.took_renewal(LeaseKeptAlive(77, 10, 1.1))
    calls = cut.asked(2)
    assert [call.arguments[2] for call in calls] == [77, 0], "only who reached etcd is asked to renew"
    cut.answered_by(peer, calls[0], 2.1)
    # Asked at 2, answered no earlier, and by then the keep-alive was a second old at most.
    assert cut.etcd.lease_deadline_s == pytest.approx(2 - 1.0 + 10)


def test_a_lease_that_etcd_no_longer_knows_confirms_nothing():
    cut, peer = Side("n1", "n1"), Side("n2", "n1", reaches=True)
    cut.etcd.lease_id, cut.etcd.lease_deadline_s = 77, 50.0
    [call, _] = cut.asked(1)
    cut.answered_by(peer, call, 1.1)
    peer.relay.poll({}, at(1.1))
    peer.relay.took_renewal(LeaseKeptAlive(77, 0, 1.1))
    [call, _] = cut.asked(2)
    cut.answered_by(peer, call, 2.1)
    assert cut.etcd.lease_deadline_s is None


def test_a_failed_renewal_is_tried_again_and_no_failure_of_etcd_for_the_peer_itself():
    peer = Side("n2", "n1", reaches=True)
    peer.relay.serve((0, 0, 77), at(1))
    peer.relay.poll({}, at(1))
    assert peer.relay.took_renewal(EtcdCallFailed(KeepLeaseAlive(77), "timeout", definite=False))
    assert not peer.relay.took_renewal(EtcdCallFailed(ReadSnapshot(), "timeout", definite=False))
    peer.relay.serve((0, 0, 77), at(2))
    assert peer.relay.poll({}, at(2)) == [KeepLeaseAlive(77)]


def test_renewals_are_bounded_and_forgotten_when_nobody_asks():
    peer = Side("n2", "n1", reaches=True)
    for lease_id in range(1, RENEWALS_MAX + 10):
        peer.relay.serve((0, 0, lease_id), at(1))
    assert len(peer.relay.poll({}, at(1))) == RENEWALS_UNDER_WAY_MAX
    assert len(peer.relay._renewals) == RENEWALS_MAX
    for lease_id in range(1, RENEWALS_UNDER_WAY_MAX + 1):
        peer.relay.took_renewal(LeaseKeptAlive(lease_id, 10, 1.0))
    peer.relay.serve((0, 0, 9999), at(60))
    assert list(peer.relay._renewals) == [9999]


def test_a_peer_that_fails_is_not_relied_upon_for_the_lease():
    cut, peer = Side("n1", "n1"), Side("n2", "n1", reaches=True)
    cut.etcd.lease_id = 77
    [call, _] = cut.asked(1)
    cut.answered_by(peer, call, 1.1)
    [call, _] = cut.asked(2)
    cut.relay.on_failed(PeerCallFailed(call.call_id, "lost"), at(2.1))
    assert [call.arguments[2] for call in cut.asked(3)] == [77, 77]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@given(payload=st.lists(VALUES, max_size=8).map(tuple))
def test_an_answer_of_another_form_changes_nothing(payload):
    cut = Side("n1", "n1")
    [call, _] = cut.asked(1)
    assert cut.relay.on_answered(PeerAnswered(call.call_id, Status.OK, payload), at(1.1)) == []
    assert list(cut.etcd.registrations) == ["n1"]


@given(arguments=st.lists(VALUES, max_size=4).map(tuple))
def test_a_question_of_another_form_is_refused(arguments):
    peer = Side("n2", "n1", reaches=True)
    status, _ = peer.relay.serve(arguments, at(1))
    assert status in (Status.OK, Status.BAD_REQUEST)
    is_good = len(arguments) == 3 and all(type(item) is int and item >= 0 for item in arguments)
    assert (status == Status.OK) == is_good
