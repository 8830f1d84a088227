"""The machine that deals with etcd, driven event by event."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.etcd.registration import (
    ClusterSettings,
    EvictionMark,
    Keyspace,
    decode_registration,
    encode_registration,
)
from zephyr.events import (
    CheckKeys,
    EtcdCallFailed,
    EtcdKeysChecked,
    EtcdSnapshotRead,
    EtcdTransactionDone,
    EtcdWatched,
    EtcdWatchEnded,
    GrantLease,
    IdentityProbed,
    KeepLeaseAlive,
    KeyChange,
    KeyValue,
    LeaseGranted,
    LeaseKeptAlive,
    Note,
    ProbeIdentity,
    ReadSnapshot,
    RevokeLease,
    Stop,
    TransactKey,
    WatchKeys,
)
from zephyr.model import Instant, Member

SETTINGS = Settings(id="n1")
MEMBER = Member("n1", "h:1", "h:2", "h:3", epoch=1000)
KEYS = Keyspace("dev")
CLUSTER = ClusterSettings(3, 1024, 1, 500)


def at(second: float) -> Instant:
    return Instant(second, 1000 + int(second * 1000))


def pair(key: bytes, value: bytes, revision: int = 5, lease_id: int = 9) -> KeyValue:
    return KeyValue(key, value, revision, lease_id)


def registration(node_id: str, *, epoch: int = 700, state: str = "serving", revision: int = 5) -> KeyValue:
    member = Member(node_id, "h:1", "h:2", f"{node_id}:3", epoch, state=state)
    return pair(KEYS.member(node_id), encode_registration(member), revision)


def settings_pair(generation: int = 500) -> KeyValue:
    return pair(KEYS.settings, replace(CLUSTER, generation=generation).encode(), 2, 0)


def calls(effects):
    return [effect for effect in effects if not isinstance(effect, Note)]


def notes(effects):
    return [effect.entry.kind for effect in effects if isinstance(effect, Note)]


class Fixture:
    """A machine, and a shortcut to a registered one."""

    def __init__(self):
        self.machine = EtcdMembership(SETTINGS, MEMBER, random.Random(1), at(0))

    def registered(self, *others: KeyValue):
        machine = self.machine
        assert calls(machine.start(at(0))) == [ReadSnapshot()]
        effects = calls(machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(), *others)), at(0.1)))
        assert effects == [WatchKeys(1, 11), GrantLease(10)]
        [put] = calls(machine.on_granted(LeaseGranted(77, 10, 0.1), at(0.2)))
        assert isinstance(put, TransactKey)
        assert (put.key, put.lease_id, put.expected_mod_revision) == (KEYS.member("n1"), 77, 0)
        assert calls(machine.on_transacted(EtcdTransactionDone("register", True, 11), at(0.3))) == []
        assert machine.registered
        return machine


def test_a_node_lists_then_watches_then_registers_under_a_lease():
    machine = Fixture().registered(registration("n2"))
    assert list(machine.registrations) == ["n2", "n1"]
    assert machine.status(Instant(0.0, 0)).state == "connected"
    assert machine.lease_deadline_s == pytest.approx(10.1), "the lease lives from the sending on"


def test_a_lease_that_was_wanted_again_while_it_was_granted_is_granted_once():
    machine = Fixture().machine
    machine.start(at(0))
    effects = calls(machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(),)), at(0.1)))
    assert GrantLease(10) in effects
    machine.on_watched(EtcdWatched(1, 11, (KeyChange(KEYS.member("n2"), None, 11, 0),)), at(0.15))
    [put] = calls(machine.on_granted(LeaseGranted(77, 10, 0.1), at(0.2)))
    assert isinstance(put, TransactKey)
    assert calls(machine.poll(at(0.3))) == []


def test_a_registration_refused_after_an_outage_leads_to_a_new_lease_without_a_wait_for_the_old_ones_keep_alive():
    machine = Fixture().registered()
    [keep_alive] = calls(machine.poll(at(3.6)))[-1:]
    assert keep_alive == KeepLeaseAlive(77)
    machine.on_failed(EtcdCallFailed(keep_alive, "deadline", definite=False), at(5.6))
    machine.on_watch_ended(EtcdWatchEnded(1, "stream ended"), at(5.6))
    assert KeepLeaseAlive(77) in calls(machine.poll(at(5.9)))
    machine.on_snapshot(EtcdSnapshotRead(20, (settings_pair(),)), at(20))
    assert machine.must_be_heard, "its lease ended long ago"
    [put] = calls(machine.allow_registration(allowed=True, now=at(20)))
    assert isinstance(put, TransactKey)
    effects = calls(machine.on_failed(EtcdCallFailed(put, "requested lease not found", definite=True), at(20.1)))
    assert effects == [GrantLease(10)]
    [put] = calls(machine.on_granted(LeaseGranted(78, 10, 20.1), at(20.2)))
    assert put.lease_id == 78
    assert machine.reachable
    assert machine.on_failed(EtcdCallFailed(KeepLeaseAlive(77), "deadline", definite=False), at(20.3)) == []
    assert machine.reachable, "what became of the old lease's keep-alive tells nothing"


def test_a_second_listing_tells_only_what_changed():
    machine = Fixture().registered(registration("n2"), registration("n3"))
    machine.on_watch_ended(EtcdWatchEnded(1, "stream ended"), at(1))
    own = pair(KEYS.member("n1"), encode_registration(MEMBER), 11, 77)
    listing = EtcdSnapshotRead(14, (settings_pair(), own, registration("n2"), registration("n4")))
    told = [
        (effect.entry.kind, effect.entry.member, effect.entry.detail)
        for effect in machine.on_snapshot(listing, at(1.1))
        if isinstance(effect, Note)
    ]
    assert told == [("registration", "n4", "serving, epoch 700"), ("registration-gone", "n3", "expired")]


def test_the_first_node_writes_the_cluster_settings_and_reads_them_back():
    machine = Fixture().machine
    machine.start(at(0))
    effects = calls(machine.on_snapshot(EtcdSnapshotRead(1, ()), at(0.1)))
    assert effects[0] == WatchKeys(1, 2)
    put = effects[1]
    assert put.key == KEYS.settings
    assert json.loads(put.value) == {"replicas": 3, "virtual_nodes": 1024, "hash_version": 1, "generation": 1100}
    effects = calls(machine.on_transacted(EtcdTransactionDone("settings", True, 2), at(0.2)))
    assert effects == [ReadSnapshot()]


def test_a_node_whose_settings_differ_refuses_to_join():
    machine = Fixture().machine
    machine.start(at(0))
    other = replace(CLUSTER, replicas=5).encode()
    effects = calls(machine.on_snapshot(EtcdSnapshotRead(4, (pair(KEYS.settings, other, 2, 0),)), at(0.1)))
    [stop] = effects
    assert isinstance(stop, Stop)
    assert stop.exit_code == 1
    assert "replicas is 5 there and 3 here" in stop.reason


def test_settings_edited_later_do_not_stop_a_running_node():
    machine = Fixture().registered()
    change = KeyChange(KEYS.settings, replace(CLUSTER, replicas=5).encode(), 12, 0)
    assert not any(isinstance(effect, Stop) for effect in machine.on_watched(EtcdWatched(1, 12, (change,)), at(1)))


def test_a_lost_lease_leads_to_a_new_lease_and_a_new_epoch():
    machine = Fixture().registered()
    machine.poll(at(3.6))
    effects = machine.on_kept_alive(LeaseKeptAlive(77, 0, 3.6), at(3.7))
    assert "lease-lost" in notes(effects)
    assert ReadSnapshot() in calls(effects)
    effects = calls(machine.on_snapshot(EtcdSnapshotRead(12, (settings_pair(),)), at(3.8)))
    assert effects == [WatchKeys(2, 13), GrantLease(10)]
    [put] = calls(machine.on_granted(LeaseGranted(78, 10, 3.8), at(3.9)))
    assert decode_registration("n1", put.value).epoch > MEMBER.epoch


def test_a_registration_deleted_by_hand_is_put_again_with_a_new_epoch():
    machine = Fixture().registered()
    effects = machine.on_watched(EtcdWatched(1, 12, (KeyChange(KEYS.member("n1"), None, 12, 0),)), at(1))
    [put] = calls(effects)
    assert isinstance(put, TransactKey)
    assert decode_registration("n1", put.value).epoch > MEMBER.epoch


def test_two_registrations_within_a_moment_are_spaced():
    machine = Fixture().registered()
    gone = KeyChange(KEYS.member("n1"), None, 12, 0)
    assert calls(machine.on_watched(EtcdWatched(1, 12, (gone,)), at(0.35))) == []
    assert machine.deadline() == pytest.approx(0.5)
    assert isinstance(calls(machine.poll(at(0.5)))[0], TransactKey)


def test_a_revision_below_one_seen_before_the_call_means_that_etcd_was_wiped():
    machine = Fixture().registered(registration("n2"))
    assert calls(machine.poll(at(3.6)))[0] == CheckKeys()
    assert calls(machine.on_checked(EtcdKeysChecked(1, ()), at(3.7))) == [ReadSnapshot()]
    effects = machine.on_snapshot(EtcdSnapshotRead(1, ()), at(3.8))
    assert "etcd-wiped" in notes(effects)
    assert machine.wipe_count == 1


@pytest.mark.parametrize(
    ("pairs", "second", "expected"),
    [
        ((settings_pair(),), 10.0, True),
        ((settings_pair(),), 9.0, False),  # Younger than a lease: the first of a new cluster has yet to register.
        ((settings_pair(), registration("n1")), 60.0, True),  # A former life of this node.
        ((settings_pair(), registration("n1"), registration("n2")), 60.0, False),
        ((), 60.0, False),
    ],
)
def test_a_first_listing_tells_whether_a_cluster_had_lived_and_everybodys_lease_has_ended(pairs, second, expected):
    machine = Fixture().machine
    machine.on_snapshot(EtcdSnapshotRead(10, pairs), at(second))
    assert machine.found_all_lapsed is expected
    machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(),)), at(60))
    assert machine.found_all_lapsed is expected, "later ones tell nothing of it"


def test_a_check_overtaken_by_the_watch_is_no_wipe():
    machine = Fixture().registered()
    machine.poll(at(3.6))
    change = KeyChange(registration("n3").key, registration("n3").value, 12, 9)
    machine.on_watched(EtcdWatched(1, 12, (change,)), at(3.65))
    keys = tuple(sorted({KEYS.settings: 2, KEYS.member("n1"): 11}.items()))
    assert ReadSnapshot() not in calls(machine.on_checked(EtcdKeysChecked(11, keys), at(3.7)))


def test_a_check_that_differs_from_the_watch_leads_to_a_full_listing():
    machine = Fixture().registered()
    machine.poll(at(3.6))
    keys = ((KEYS.member("n1"), 11), (KEYS.member("n9"), 13), (KEYS.settings, 2))
    assert ReadSnapshot() in calls(machine.on_checked(EtcdKeysChecked(13, keys), at(3.7)))


def test_a_check_that_agrees_leads_to_nothing_but_the_next_one():
    machine = Fixture().registered()
    machine.poll(at(3.6))
    keys = ((KEYS.member("n1"), 11), (KEYS.settings, 2))
    assert calls(machine.on_checked(EtcdKeysChecked(11, keys), at(3.7))) == []
    assert machine.deadline() <= 3.7 + 10 / 3


def test_a_watch_that_ended_leads_to_a_full_listing_and_an_old_watch_is_ignored():
    machine = Fixture().registered()
    assert calls(machine.on_watch_ended(EtcdWatchEnded(99, "old"), at(1))) == []
    effects = machine.on_watch_ended(EtcdWatchEnded(1, "compacted"), at(1))
    assert calls(effects) == [ReadSnapshot()]
    assert notes(effects) == ["etcd-watch-ended"]
    gone = KeyChange(KEYS.member("n1"), None, 12, 0)
    assert machine.on_watched(EtcdWatched(1, 12, (gone,)), at(1.1)) == []


def test_silence_of_etcd_forgets_nobody_and_is_told_once():
    machine = Fixture().registered(registration("n2"))
    machine.on_watch_ended(EtcdWatchEnded(1, "stream ended"), at(1))
    effects = machine.on_failed(EtcdCallFailed(ReadSnapshot(), "connection refused", definite=False), at(3))
    assert notes(effects) == ["etcd-unreachable"]
    assert machine.status(Instant(0.0, 0)).state == "unreachable"
    assert machine.status(Instant(0.0, 0)).reason == "connection refused"
    machine.poll(at(3.2))
    assert notes(machine.on_failed(EtcdCallFailed(ReadSnapshot(), "connection refused", definite=False), at(4))) == []
    assert sorted(machine.registrations) == ["n1", "n2"]


def test_failed_listings_back_off_to_a_second_and_no_further():
    machine = Fixture().machine
    machine.start(at(0))
    now_s, pauses = 0.0, []
    for _ in range(12):
        machine.on_failed(EtcdCallFailed(ReadSnapshot(), "refused", definite=False), at(now_s))
        pauses.append(machine.deadline() - now_s)
        now_s = machine.deadline()
        machine.poll(at(now_s))
    assert pauses[0] < 0.2
    assert all(0.75 <= pause <= 1.25 for pause in pauses[5:])


def test_an_own_id_whose_old_address_is_silent_is_taken_over():
    machine = Fixture().machine
    machine.start(at(0))
    occupied = registration("n1", epoch=900, revision=8)
    machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(), occupied)), at(0.1))
    assert calls(machine.on_granted(LeaseGranted(77, 10, 0.1), at(0.2))) == [ProbeIdentity("n1:3")]
    effects = machine.on_probed(IdentityProbed("n1:3", None, "refused"), at(0.3))
    [put] = calls(effects)
    assert put.expected_mod_revision == 8
    assert decode_registration("n1", put.value).epoch == MEMBER.epoch


def test_the_new_life_takes_an_epoch_above_the_old_one_even_if_the_clock_went_back():
    machine = Fixture().machine
    machine.start(at(0))
    occupied = registration("n1", epoch=5_000_000, revision=8)
    machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(), occupied)), at(0.1))
    machine.on_granted(LeaseGranted(77, 10, 0.1), at(0.2))
    [put] = calls(machine.on_probed(IdentityProbed("n1:3", None, "refused"), at(0.3)))
    assert decode_registration("n1", put.value).epoch == 5_000_001


def test_an_own_id_whose_address_answers_as_that_id_stops_the_newcomer():
    machine = Fixture().machine
    machine.start(at(0))
    machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(), registration("n1", epoch=900))), at(0.1))
    machine.on_granted(LeaseGranted(77, 10, 0.1), at(0.2))
    living = Member("n1", "h:1", "h:2", "n1:3", epoch=900)
    effects = machine.on_probed(IdentityProbed("n1:3", living), at(0.3))
    assert any(isinstance(effect, Stop) and effect.exit_code == 1 for effect in effects)


def test_a_leave_says_leaving_first_and_revokes_then():
    machine = Fixture().registered()
    [put] = calls(machine.leave(at(1)))
    assert decode_registration("n1", put.value).state == "leaving"
    assert put.expected_mod_revision == 11
    assert calls(machine.on_transacted(EtcdTransactionDone("register", True, 12), at(1.1))) == [RevokeLease(77)]
    machine.on_revoked(at(1.2))
    assert machine.left


def test_a_leave_that_etcd_cannot_hear_ends_by_itself():
    machine = Fixture().registered()
    machine.leave(at(1))
    assert not machine.left
    machine.poll(at(1 + SETTINGS.drain_timeout / 2))
    assert machine.left


def test_a_mark_explains_the_end_of_the_life_it_names_and_of_no_later_one():
    machine = Fixture().registered(registration("n4"))
    mark = EvictionMark("n2", 699, "dead").encode()
    machine.on_watched(EtcdWatched(1, 12, (KeyChange(KEYS.eviction("n4"), mark, 12, 0),)), at(1))
    machine.on_watched(EtcdWatched(1, 13, (KeyChange(KEYS.member("n4"), None, 13, 0),)), at(1))
    assert machine.departed == {"n4": "expired"}


def test_a_departure_is_told_apart_by_what_came_before():
    machine = Fixture().registered(registration("n2"), registration("n3", state="leaving"), registration("n4"))
    mark = KeyChange(KEYS.eviction("n4"), EvictionMark("n2", 700, "dead").encode(), 12, 0)
    gone = [KeyChange(KEYS.member(name), None, 12, 0) for name in ("n2", "n3", "n4")]
    machine.on_watched(EtcdWatched(1, 12, (*gone, mark)), at(1))
    assert machine.departed == {"n2": "expired", "n3": "left", "n4": "evicted"}


def test_a_refused_registration_makes_the_machine_doubt_its_lease():
    machine = Fixture().machine
    machine.start(at(0))
    machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(),)), at(0.1))
    [put] = calls(machine.on_granted(LeaseGranted(77, 10, 0.1), at(0.2)))
    effects = machine.on_failed(EtcdCallFailed(put, "requested lease not found", definite=True), at(0.3))
    assert KeepLeaseAlive(77) in calls(effects)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"[]", b"nonsense", b'{"id": "n2"}', b"[" * 5000,
        encode_registration(replace(MEMBER, id="n3")),
        encode_registration(replace(MEMBER, id="n2", weight=1e9)),
        encode_registration(replace(MEMBER, id="n2", epoch=-1)),
        encode_registration(replace(MEMBER, id="n2", peer="nowhere")),
        encode_registration(replace(MEMBER, id="n2", zone="a b")),
        encode_registration(replace(MEMBER, id="n2", protocol=(2, 1))),
        encode_registration(replace(MEMBER, id="n2", state="dancing")),
        b'{"id": "n2", "http": "h:1", "gossip": "h:1", "peer": "h:1", "epoch": true, "weight": 1}',
    ],
)  # fmt: skip
def test_garbage_under_the_prefix_is_shown_and_ignored(value):
    machine = Fixture().machine
    machine.start(at(0))
    effects = machine.on_snapshot(EtcdSnapshotRead(10, (settings_pair(), pair(KEYS.member("n2"), value))), at(0.1))
    assert "unusable-key" in notes(effects)
    assert "n2" not in machine.registrations


def test_keys_of_other_clusters_within_the_range_are_not_ours():
    assert KEYS.kind(b"/zephyrcache/live/members/n1") == ("", "")
    assert KEYS.kind(b"/zephyrcache/members/a/b") == ("", "")
    assert KEYS.kind(b"/zephyrcache/members/n1") == ("members", "n1")
    assert Keyspace("live").kind(b"/zephyrcache/live/settings") == ("settings", "")


@given(
    st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    st.integers(0, 1 << 62),
    st.floats(0.1, 10),
    st.sampled_from(["joining", "serving", "leaving"]),
)
def test_a_registration_survives_its_encoding(node_id, epoch, weight, state):
    member = Member(node_id, "h:1", "h:2", "[::1]:3", epoch, weight, "z", state)
    assert decode_registration(node_id, encode_registration(member)) == member


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_a_reason(value):
    with pytest.raises(ValueError, match=r".+"):
        decode_registration("n1", value)
