"""Until when a node may take itself for an owner."""

import random
from dataclasses import replace
from math import inf

import pytest

from zephyr.config import Settings
from zephyr.confirmation import Confirmation
from zephyr.etcd.lease import EtcdMembership
from zephyr.events import SendDatagram
from zephyr.gossip.swim import Swim
from zephyr.model import Instant, Member, Registration

SETTINGS = Settings(id="n1")
DIGEST = b"the-ring"
IDS = ["n1", "n2", "n3", "n4", "n5"]


def at(second: float) -> Instant:
    return Instant(second, 1_700_000_000_000 + int(second * 1000))


def member(node_id: str) -> Member:
    return Member(node_id, "a:1", "a:2", f"{node_id}:3", epoch=7)


class One:
    """One node of five, with a lease granted at second 1."""

    def __init__(self) -> None:
        self.etcd = EtcdMembership(SETTINGS, member("n1"), random.Random(1), at(0))
        self.swim = Swim(SETTINGS, member("n1"), random.Random(1))
        self.swim.assume([member(node_id) for node_id in IDS[1:]], at(0))
        self.confirmation = Confirmation(SETTINGS, self.etcd, self.swim, at(0))
        self.etcd.registrations = {item: Registration(member(item), 3, 77) for item in IDS}
        self.etcd.lease_id, self.etcd.lease_sent_s, self.etcd.lease_deadline_s = 77, 1.0, 11.0
        self.etcd.verified_sent_s = 1.0

    def until(self, second: float, owners=tuple(IDS)) -> float:
        self.effects = self.confirmation.update(IDS, DIGEST, at(second), is_owner="n1" in owners)
        return self.confirmation.until_s

    def shown(self, sent_s: float, *ids: str, digest: bytes = DIGEST) -> None:
        for node_id in ids:
            record = self.swim.table.members[node_id]
            record.ring_digest, record.ring_digest_s = digest, sent_s
            self.swim.shown_count += 1


def test_a_lease_confirms_until_its_deadline_but_not_beyond_half_a_lease_without_an_event():
    one = One()
    assert one.until(2) == 2 + SETTINGS.lease_ttl / 2
    assert one.until(8) == 11
    assert one.effects == [], "nobody needs to be asked"


def test_who_is_no_owner_is_confirmed_in_nothing():
    assert One().until(2, owners=("n2", "n3")) == -inf


def test_without_a_lease_a_majority_that_shows_the_same_ring_confirms():
    one = One()
    one.etcd.lease_deadline_s = None
    assert one.until(2) == -inf
    assert sum(isinstance(effect, SendDatagram) for effect in one.effects) == 4, "everybody is asked"
    one.shown(2.0, "n2")
    assert one.until(2.1) == -inf, "two of five"
    one.shown(2.05, "n3")
    assert one.until(2.1) == 2.0 + SETTINGS.confirm_max, "counted from the older question"
    one.shown(2.05, "n3", digest=b"another!")
    assert one.until(2.2) == -inf


def test_everybody_is_asked_twice_in_each_confirm_max_and_no_more():
    one = One()
    one.etcd.lease_deadline_s = None
    asked = [second / 10 for second in range(20, 60) if one.until(second / 10) is not None and one.effects]
    assert len(asked) == 4
    assert one.confirmation.deadline() == pytest.approx(6.0)


def test_after_standing_still_nothing_counts_that_was_asked_before():
    one = One()
    assert not one.confirmation.stood_still(at(2))
    one.shown(2.0, *IDS[1:])
    assert one.confirmation.stood_still(at(2 + SETTINGS.lease_ttl / 2 + 0.1))
    now_s = 7.2
    assert one.until(now_s) == -inf, "neither the lease nor what the others showed"
    one.etcd.lease_sent_s, one.etcd.lease_deadline_s = now_s, now_s + 10
    assert one.until(now_s) == -inf, "it may have been evicted meanwhile"
    one.etcd.verified_sent_s = now_s
    assert one.until(now_s) == now_s + SETTINGS.lease_ttl / 2


def test_who_was_not_confirmed_for_long_needs_a_majority_once():
    one = One()
    assert one.until(2) > 2
    now_s = 2 + SETTINGS.gossip_evict_after - SETTINGS.lease_ttl + 0.1
    one.etcd.lease_sent_s, one.etcd.lease_deadline_s = now_s, now_s + 10
    assert one.until(now_s) == -inf, "others may have removed it while etcd was away"
    one.shown(now_s, "n2", "n3")
    assert one.until(now_s) == now_s + SETTINGS.confirm_max
    assert one.until(now_s) == now_s + SETTINGS.lease_ttl / 2, "from then on the lease is enough again"


def test_a_long_lease_needs_no_majority_from_one_event_to_the_next():
    one = One()
    assert one.until(2) == 7
    one.confirmation._absence_max_s = 0.0
    assert one.until(3) == 8
    assert one.effects == []


def test_a_lease_tells_nothing_of_a_ring_that_gossip_makes():
    one = One()
    assert one.until(2) == 7
    one.confirmation.update(IDS, DIGEST, at(3), is_owner=True, is_etcds_word=False)
    assert one.confirmation.until_s == -inf
    one.shown(3, "n2", "n3")
    one.confirmation.update(IDS, DIGEST, at(3.1), is_owner=True, is_etcds_word=False)
    assert one.confirmation.until_s == 3 + SETTINGS.confirm_max


def test_a_new_lease_without_a_registration_under_it_confirms_nothing():
    one = One()
    one.etcd.lease_id = 78
    assert one.until(2) == -inf


def test_alone_in_its_view_a_node_is_its_own_majority():
    one = One()
    one.etcd.lease_deadline_s = None
    one.confirmation.update(["n1"], DIGEST, at(2), is_owner=True)
    assert one.confirmation.until_s == 2 + SETTINGS.confirm_max


def test_without_etcd_a_view_is_always_confirmed():
    settings = replace(SETTINGS, etcd=())
    confirmation = Confirmation(settings, None, Swim(settings, member("n1"), random.Random(1)), at(0))
    assert not confirmation.stood_still(at(100))
    assert confirmation.update(IDS, DIGEST, at(100), is_owner=False) == []
    assert confirmation.until_s == inf


def registered_anew(one: One, second: float, epoch: int) -> bool:
    one.etcd.member = replace(one.etcd.member, epoch=epoch)
    one.etcd.registrations["n1"] = Registration(one.etcd.member, 3, 77)
    return one.confirmation.has_missed_writes(at(second), is_owner=True, may_be_left_out=False)


def owner_registered_at_second_2() -> One:
    one = One()
    one.etcd._reason_since_s = None  # It is reached.
    one.until(2)
    assert not registered_anew(one, 2, 7), "its first registration: it begins with nothing"
    return one


def test_who_registers_anew_after_it_was_long_unsure_of_its_view_may_have_missed_writes():
    one = owner_registered_at_second_2()
    one.until(20)
    assert not registered_anew(one, 20, 7)
    one.until(20 + SETTINGS.expiry_grace)
    assert registered_anew(one, 20 + SETTINGS.expiry_grace, 8)
    assert not registered_anew(one, 20 + SETTINGS.expiry_grace, 8), "it is said once"


@pytest.mark.parametrize("unsure_s", [0.0, SETTINGS.expiry_grace - 0.1])
def test_who_registers_anew_while_its_view_was_vouched_for_has_missed_nothing(unsure_s):
    one = owner_registered_at_second_2()
    one.until(20)
    one.confirmation.has_missed_writes(at(20), is_owner=True, may_be_left_out=False)
    one.etcd.lease_deadline_s = 40.0
    one.until(20 + unsure_s)
    assert not registered_anew(one, 20 + unsure_s, 8)


@pytest.mark.parametrize("may_be_left_out", [True, False])
def test_who_was_unsure_for_a_moment_and_may_have_been_left_out_may_have_missed_writes(may_be_left_out):
    one = owner_registered_at_second_2()
    one.until(20)
    one.confirmation.has_missed_writes(at(20), is_owner=True, may_be_left_out=may_be_left_out)
    one.etcd.lease_deadline_s = 40.0
    one.until(21)
    assert registered_anew(one, 21, 8) is may_be_left_out
