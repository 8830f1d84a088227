"""Death certificates: what led one member to call another dead, and who has that of other deaths."""

from __future__ import annotations

import random

import pytest

from zephyr.config import GOSSIP_PACES, Settings
from zephyr.events import DatagramReceived, LoopLagged, PeerDisconnected, PeerRefused, SendDatagram
from zephyr.gossip.certificate import CERTIFICATES_MAX, PROBES_MAX, Certificate, Certificates, FailedProbe, Stub
from zephyr.gossip.messages import Alive, Dead, Exit, Nack, Packet, PingRequest, Suspect
from zephyr.gossip.swim import HELPERS, PAUSE_S, Swim
from zephyr.gossip.wire import Envelope
from zephyr.model import Instant, Member

PACE = GOSSIP_PACES["lan"]
EPOCH = 7
MIN_S = PACE.suspicion_multiplier * PACE.probe_interval_s
"""Shortest suspicion with up to ten members."""
UNIX_MS = 1_000_000


def at(second: float) -> Instant:
    return Instant(second, UNIX_MS + round(second * 1000))


def member(node_id: str, epoch: int = EPOCH) -> Member:
    return Member(node_id, f"{node_id}:1", f"{node_id}:2", f"{node_id}:3", epoch)


class One:
    """One machine, `me`, that nobody answers unless told so."""

    def __init__(self, *others: str, **settings: object) -> None:
        self.swim = Swim(Settings(id="me", **settings), member("me"), random.Random(1))
        self.swim.assume([member(node_id) for node_id in others], at(0))
        self.swim.start(at(0))
        self.now_s = 0.0

    def until(self, second: float) -> list[object]:
        effects: list[object] = []
        while self.swim.deadline() <= second:
            self.now_s = max(self.now_s, self.swim.deadline())
            effects += self.swim.poll(at(self.now_s))
            self.swim.check_invariants()
        self.now_s = second
        return effects

    def until_suspected(self, node_id: str) -> list[object]:
        effects: list[object] = []
        while self.swim.table.members[node_id].state == "alive":
            effects += self.until(self.swim.deadline())
        return effects

    def event(self, event: object) -> None:
        self.swim.handle(event, at(self.now_s))
        self.swim.check_invariants()

    def hear(self, sender: str, *messages: object) -> None:
        self.event(DatagramReceived(f"{sender}:2", Packet(sender, EPOCH, messages)))

    def certificate(self, node_id: str) -> Certificate:
        held = self.swim.certificates.of(node_id)
        assert isinstance(held, Certificate)
        return held


def test_who_calls_a_member_dead_keeps_the_probe_that_failed_and_its_own_state():
    one = One("a")
    one.until_suspected("a")
    suspected_s = one.now_s
    one.event(LoopLagged(0.125))
    one.until(suspected_s + MIN_S)
    certificate = one.certificate("a")
    assert (certificate.member, certificate.accuser, certificate.accuser_http) == (member("a"), "me", "me:1")
    assert certificate.suspected_unix_ms == at(suspected_s).unix_ms
    assert certificate.declared_unix_ms == at(suspected_s + MIN_S).unix_ms
    assert (certificate.cause, certificate.accusers, certificate.confirmations_expected) == ("silence", ("me",), 0)
    assert certificate.min_s == certificate.max_s == certificate.timeout_s == MIN_S
    first = certificate.probes[0]
    assert first.sent_unix_ms == at(suspected_s - PACE.probe_interval_s).unix_ms
    assert first.direct_timeout_s == pytest.approx(PACE.probe_timeout_s)
    assert (first.helpers, first.nackers, first.is_tcp_tried) == ((), (), True)
    assert (certificate.verdict.event_loop_lag_s, certificate.verdict.members) == (0.125, 2)
    assert certificate.verdict.local_health == one.swim.health > 0
    assert not certificate.exit.observers
    assert certificate.own_pause_s == 0.0


def test_a_certificate_names_the_helpers_and_those_who_nacked():
    one = One("a", "b", "c", "d")
    target = None
    while target is None:
        effects = one.until(one.swim.deadline())
        reader = Envelope("dev", "reader", None, bytes)
        for effect in effects:
            if isinstance(effect, SendDatagram):
                packet = reader.open(Envelope("dev", "me", None, bytes).seal(effect.messages, EPOCH))
                for message in packet.messages:
                    if isinstance(message, PingRequest) and target is None:
                        target, helper = message.target.id, effect.address.partition(":")[0]
                        sequence = message.sequence
    one.hear(helper, Nack(sequence))
    one.until_suspected(target)
    one.hear(helper, Suspect(target, EPOCH, 0, helper))
    one.until(one.now_s + MIN_S * 6)
    probe = one.certificate(target).probes[0]
    assert len(probe.helpers) == HELPERS
    assert probe.nackers == (helper,)


def test_each_confirmation_that_shortens_the_time_out_is_a_step_of_its_curve():
    one = One("a", "b", "c", "d")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    one.until(0.25)
    for accuser in ("c", "c", "d", "b"):
        one.hear(accuser, Suspect("a", EPOCH, 0, accuser))
    one.until(30.0)
    certificate = one.certificate("a")
    assert certificate.accusers[:3] == ("b", "c", "d")
    assert certificate.confirmations_expected == 2
    assert [(step.accuser, step.at_unix_ms - UNIX_MS) for step in certificate.timeouts] == [
        ("b", 0),
        ("c", 250),
        ("d", 250),
    ]
    first, second, third = (step.timeout_s for step in certificate.timeouts)
    assert first == pytest.approx(certificate.max_s)
    assert certificate.max_s > second > third == pytest.approx(certificate.min_s)
    assert certificate.timeout_s == third


def test_exit_evidence_stands_in_the_certificate_with_its_observers_and_time_out():
    one = One("a", "b", "c")
    one.event(PeerDisconnected("a", "reset"))
    one.event(PeerRefused("a", EPOCH))
    one.hear("b", Exit("a", EPOCH, "b"))
    one.until(0.9)
    certificate = one.certificate("a")
    assert certificate.cause == "exit"
    assert (certificate.exit.is_refused, certificate.exit.is_silent) == (True, True)
    assert set(certificate.exit.observers) == {"me", "b"}
    assert certificate.timeout_s == certificate.exit.timeout_s < certificate.min_s
    assert certificate.probes == (), "nobody had to be probed"


def test_a_member_that_refutes_leaves_no_certificate():
    one = One("a", "b")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    assert one.swim.certificates.open == ("a",)
    one.hear("a", Alive(member("a"), 1))
    assert one.swim.certificates.open == ()
    assert one.swim.certificates.of("a") is None


def test_what_led_to_a_suspicion_that_was_refuted_is_not_held_against_the_next_one():
    one = One("a")
    one.until_suspected("a")
    one.hear("a", Alive(member("a"), 1))
    one.until_suspected("a")
    since_s = one.now_s
    one.until(since_s + MIN_S)
    certificate = one.certificate("a")
    assert certificate.incarnation == 1
    assert certificate.probes[0].sent_unix_ms < certificate.suspected_unix_ms == at(since_s).unix_ms
    assert all(probe.sent_unix_ms >= at(since_s - 10).unix_ms for probe in certificate.probes)


def test_who_hears_of_a_death_knows_where_its_certificate_is():
    one = One("a", "b")
    one.hear("b", Suspect("a", EPOCH, 0, "b"), Dead("a", EPOCH, 0, "b"))
    assert one.swim.certificates.of("a") == Stub(member("a"), "b", "b:1", UNIX_MS)
    assert one.swim.certificates.open == ()


def test_an_accuser_that_is_not_known_has_no_address():
    one = One("a", "b")
    one.hear("b", Dead("a", EPOCH, 0, "somebody"))
    assert one.swim.certificates.of("a") == Stub(member("a"), "somebody", "", UNIX_MS)


def test_an_echo_of_a_verdict_from_an_earlier_life_of_this_node_is_no_certificate():
    one = One("a", "b")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    one.hear("b", Dead("a", EPOCH, 0, "me"))
    assert isinstance(one.swim.certificates.of("a"), Stub)


def test_the_latest_death_of_a_member_replaces_the_one_before():
    one = One("a", "b")
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    one.hear("a", Alive(member("a"), 1))
    assert isinstance(one.swim.certificates.of("a"), Stub), "it says why the member was gone for a while"
    one.hear("b", Suspect("a", EPOCH, 1, "b"))
    one.until(MIN_S * 6 + 1)
    assert one.certificate("a").incarnation == 1


def test_a_node_that_stood_still_says_so_in_the_certificate():
    one = One("a", "b")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    pause_s = 50.0
    one.now_s += pause_s + PAUSE_S
    one.swim.poll(at(one.now_s))
    one.until(one.now_s + MIN_S * 6 + 1)
    certificate = one.certificate("a")
    assert certificate.own_pause_s > pause_s - 2
    assert certificate.declared_unix_ms - certificate.suspected_unix_ms > (certificate.timeout_s + pause_s - 2) * 1000


def test_the_newest_certificates_are_kept():
    certificates = Certificates()
    for number in range(CERTIFICATES_MAX + 10):
        certificates.heard(member(f"m{number}"), "b", "b:1", at(number))
    assert certificates.of("m9") is None
    assert certificates.of("m10") is not None
    certificates.heard(member("m10"), "c", "c:1", at(99))
    certificates.heard(member("new"), "b", "b:1", at(100))
    assert certificates.of("m10") is not None, "it died again since"
    assert certificates.of("m11") is None


def test_failed_probes_of_one_suspicion_are_bounded_and_the_newest_kept():
    certificates = Certificates()
    certificates.suspected("a", "b", min_s=1.0, timeout_s=6.0, expected=2, pause_s=0.0, now=at(0))
    for number in range(PROBES_MAX + 5):
        certificates.probe_failed("a", FailedProbe(number, 0.5, (), (), True))
    certificates.probe_failed("somebody else", FailedProbe(0, 0.5, (), (), True))
    assert [probe.sent_unix_ms for probe in certificates._cases["a"].probes] == list(range(5, PROBES_MAX + 5))
    assert certificates.open == ("a",)
