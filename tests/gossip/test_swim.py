"""One member's gossip, event by event: what it asks, what it believes, what it tells."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from zephyr.config import GOSSIP_PACES, Settings
from zephyr.events import (
    DatagramReceived,
    LoopLagged,
    Note,
    OpenStream,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    ReplyStream,
    ResolveSeeds,
    SeedsResolved,
    SendDatagram,
    SendNews,
    Stop,
    StreamFailed,
    StreamReceived,
    StreamReplied,
)
from zephyr.gossip import news, swim, table
from zephyr.gossip.messages import (
    Ack,
    Alive,
    Dead,
    Exit,
    Left,
    Nack,
    Packet,
    Ping,
    PingRequest,
    Suspect,
    Sync,
    SyncEntry,
    UserEvent,
)
from zephyr.gossip.news import retransmits
from zephyr.gossip.swim import (
    CONFLICT_PAUSE_S,
    DEAD_PING_INTERVAL_S,
    EXIT_REST_S,
    EXIT_TESTIMONY_S,
    HELPERS,
    PAUSE_S,
    QUESTION_SHARES,
    RELAYS_MAX,
    SEED_RETRY_FIRST_S,
    SEED_RETRY_MAX_S,
    SEED_REVISIT_S,
    Swim,
)
from zephyr.gossip.table import PHI_PROBE
from zephyr.gossip.wire import Envelope, encode_message
from zephyr.model import Instant, Member

PACE = GOSSIP_PACES["lan"]
EPOCH = 1_700_000_000_000
MIN_S = PACE.suspicion_multiplier * PACE.probe_interval_s
"""Shortest suspicion with up to ten members."""


def at(second: float) -> Instant:
    return Instant(second, 1_000_000 + int(second * 1000))


def member(node_id: str, epoch: int = EPOCH) -> Member:
    return Member(node_id, f"{node_id}:1", f"{node_id}:2", f"{node_id}:3", epoch)


class One:
    """One machine, `me`, that knows others; time goes by the second."""

    def __init__(self, *others: str, epoch: int = EPOCH, **settings: object) -> None:
        self.swim = Swim(Settings(id="me", **settings), member("me", epoch), random.Random(1))
        self.reader = Envelope("dev", "reader", None, bytes)
        self.effects: list[object] = []
        self.swim.assume([member(node_id) for node_id in others], at(0))
        self.now_s = 0.0
        self._did(self.swim.start(at(0)))

    def _did(self, effects: list[object]) -> list[object]:
        self.effects += effects
        self.swim.check_invariants()
        return effects

    def until(self, second: float) -> list[object]:
        """Fire every timer that is due until then; return what was done."""
        done: list[object] = []
        while self.swim.deadline() <= second:
            self.now_s = max(self.now_s, self.swim.deadline())
            done += self._did(self.swim.poll(at(self.now_s)))
        self.now_s = second
        return done

    def hear(self, sender: str, *messages: object, epoch: int = EPOCH, news: bool = False) -> list[object]:
        return self.hear_from("" if news else f"{sender}:2", sender, *messages, epoch=epoch)

    def hear_from(self, source: str, sender: str, *messages: object, epoch: int = EPOCH) -> list[object]:
        encoded = [encode_message(message) for message in messages]
        size_bytes = len(Envelope("dev", sender, None, bytes).seal(encoded, epoch))
        return self.event(DatagramReceived(source, Packet(sender, epoch, messages, size_bytes)))

    def event(self, event: object) -> list[object]:
        return self._did(self.swim.handle(event, at(self.now_s)))

    def messages(self, effects: list[object]) -> list[tuple[str, object]]:
        """Return (address, message) of every datagram among the effects."""
        found = []
        for effect in effects:
            if isinstance(effect, SendDatagram):
                packet = self.reader.open(Envelope("dev", "me", None, bytes).seal(effect.messages, EPOCH))
                found += [(effect.address, message) for message in packet.messages]
        return found

    def said(self, effects: list[object], kind: type) -> list[tuple[str, object]]:
        return [(address, message) for address, message in self.messages(effects) if type(message) is kind]

    def state(self, node_id: str) -> str:
        return self.swim.table.members[node_id].state

    def ping(self) -> tuple[str, Ping]:
        """Let time pass until the next probe; return (address, ping)."""
        while True:
            for address, message in self.messages(self.until(self.swim.deadline())):
                if type(message) is Ping:
                    return address, message

    def answer(self, address: str, ping: Ping) -> None:
        self.hear(address.partition(":")[0], Ack(ping.sequence, b"", 0))


def notes(effects: list[object]) -> list[str]:
    return [effect.entry.kind for effect in effects if isinstance(effect, Note)]


# --- probing ------------------------------------------------------------------------------------------


def test_each_member_is_asked_once_in_each_round():
    one = One("a", "b", "c", "d")
    for _ in range(3):
        asked = []
        for _ in range(4):
            address, ping = one.ping()
            one.answer(address, ping)
            asked.append(address)
        assert sorted(asked) == ["a:2", "b:2", "c:2", "d:2"]


def test_who_does_not_answer_is_asked_through_three_others_and_by_tcp():
    one = One("a", "b", "c", "d", "e")
    address, ping = one.ping()
    effects = one.until(one.now_s + PACE.probe_timeout_s)
    requests = one.said(effects, PingRequest)
    assert len({helper for helper, _ in requests}) == HELPERS
    assert address not in [helper for helper, _ in requests]
    assert {request.target.id for _, request in requests} == {ping.target}
    [stream] = [effect for effect in effects if isinstance(effect, OpenStream)]
    assert stream.address == address
    assert stream.timeout_s <= PACE.probe_interval_s - PACE.probe_timeout_s + 1e-9


def test_helpers_are_those_whose_silence_surprises_least():
    one = One("a", "b", "c", "d", "e")
    for second in range(60):
        for node_id in ("a", "b", "c", "d", "e") if second < 40 else ("a", "c", "d", "e"):
            one.hear(node_id, Nack(0))
        for address, ping in one.said(one.until(float(second)), Ping):
            one.answer(address, ping)
    helpers: set[str] = set()
    while len(helpers) < 4:
        one.hear("a", *(Alive(member(node_id), int(one.now_s)) for node_id in "abcde"))
        effects = one.until(one.swim.deadline())
        helpers |= {address for address, _ in one.said(effects, PingRequest)}
        for node_id in "acde":
            one.hear(node_id, Nack(0))
    assert helpers == {"a:2", "c:2", "d:2", "e:2"}


def test_who_answers_by_tcp_alone_is_not_suspected():
    one = One("a", "b")
    address, ping = one.ping()
    stream = next(item for item in one.until(one.now_s + PACE.probe_timeout_s) if isinstance(item, OpenStream))
    effects = one.event(StreamReplied(stream.stream_id, Packet(ping.target, EPOCH, (Ack(ping.sequence, b"", 0),))))
    assert notes(effects) == ["udp-blocked"]
    one.until(one.now_s + PACE.probe_interval_s)
    assert one.state(ping.target) == "alive"
    assert address


def test_who_answers_a_helper_is_not_suspected():
    one = One("a", "b", "c")
    _, ping = one.ping()
    requests = one.said(one.until(one.now_s + PACE.probe_timeout_s), PingRequest)
    helper = requests[0][0].partition(":")[0]
    one.hear(helper, Ack(requests[0][1].sequence, b"", 0))
    one.until(one.now_s + PACE.probe_interval_s)
    assert one.state(ping.target) == "alive"


def test_the_ack_of_a_stranger_or_for_another_probe_counts_for_nothing():
    one = One("a", "b")
    _, ping = one.ping()
    other = "b" if ping.target == "a" else "a"
    one.hear(other, Ack(ping.sequence, b"", 0))
    one.hear(ping.target, Ack(ping.sequence + 100, b"", 0))
    one.until(one.now_s + PACE.probe_interval_s)
    assert one.state(ping.target) == "suspect"


def test_who_answers_nobody_is_suspected_and_then_dead():
    one = One("a")
    one.ping()
    one.until(one.now_s + PACE.probe_interval_s)
    assert one.state("a") == "suspect"
    since_s = one.swim.table.members["a"].since_s
    one.until(since_s + MIN_S - 0.01)
    assert one.state("a") == "suspect"
    one.until(since_s + MIN_S)
    assert one.state("a") == "dead"


def test_a_helper_pings_and_passes_the_answer_on():
    one = One("a", "b")
    effects = one.hear("a", PingRequest(77, member("b")))
    [(address, ping)] = one.said(effects, Ping)
    assert address == "b:2"
    effects = one.hear("b", Ack(ping.sequence, bytes(8), 3))
    assert one.said(effects, Ack) == [("a:2", Ack(77, bytes(8), 3))]


@pytest.mark.parametrize(("profile", "nack_s"), [("lan", 0.8 * 0.5), ("local", 0.8 * 0.2)])
def test_a_helpers_nack_arrives_before_the_asker_judges(profile, nack_s):
    one = One("a", "b", gossip_profile=profile)
    one.hear("a", PingRequest(77, member("b")))
    assert one.said(one.until(one.now_s + nack_s - 0.001), Nack) == []
    assert one.said(one.until(one.now_s + 0.001), Nack) == [("a:2", Nack(77))]
    [late] = one.said(one.hear("b", Ack(one.swim._sequence, b"", 0)), Ack)
    assert late == ("a:2", Ack(77, b"", 0)), "an answer that comes still counts"


def test_a_helper_that_had_an_answer_sends_no_nack():
    one = One("a", "b")
    [(_, ping)] = one.said(one.hear("a", PingRequest(77, member("b"))), Ping)
    one.hear("b", Ack(ping.sequence, b"", 0))
    assert one.said(one.until(1.0), Nack) == []


def test_a_suspect_is_told_by_its_helpers_and_by_tcp_as_well():
    one = One("a", "b", "c")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    accusation = Suspect("a", EPOCH, 0, "b")
    assert ("a:2", accusation) in one.said(one.hear("b", PingRequest(77, member("a"))), Suspect)
    streams: list[OpenStream] = []
    while not streams:
        effects = one.until(one.swim.deadline())
        streams = [effect for effect in effects if isinstance(effect, OpenStream)]
        for address, ping in one.said(effects, Ping):
            if address != "a:2":
                one.answer(address, ping)
    opened = one.reader.open_stream(Envelope("dev", "me", None, bytes).seal_stream(streams[0].messages, EPOCH))
    assert (opened.messages[0].target, opened.messages[1]) == ("a", accusation)


def test_who_is_told_of_a_suspicion_by_tcp_refutes_it():
    one = One("a", "b")
    one.event(StreamReceived(9, Packet("b", EPOCH, (Ping(4, "me"), Suspect("me", EPOCH, 0, "b")))))
    assert one.swim.incarnation == 1


def test_a_silent_life_says_nothing_of_the_next_one():
    one = One("a")
    one.ping()
    one.hear("a", Alive(member("a", EPOCH + 1), 0), epoch=EPOCH + 1)
    one.until(one.now_s + PACE.probe_interval_s)
    assert one.state("a") == "alive"


def test_pings_for_others_are_bounded_and_those_beyond_it_counted():
    one = One("a", "b")
    for number in range(RELAYS_MAX + 5):
        one.hear("a", PingRequest(number, member("b")))
    assert one.swim.overflows == {"ping-requests": 5}


def test_members_are_bounded_and_strangers_beyond_it_counted(monkeypatch):
    monkeypatch.setattr(table, "MEMBERS_KNOWN_MAX", 2)
    one = One("a", "b")
    one.hear("a", Alive(member("x"), 0))
    assert list(one.swim.table.members) == ["a", "b"]
    assert one.swim.overflows == {"members": 1}


def test_streams_are_bounded_and_those_beyond_it_counted(monkeypatch):
    monkeypatch.setattr(swim, "STREAMS_MAX", 1)
    one = One("a", "b")
    one._did(one.swim.introduce([member("x"), member("y"), member("z")], at(0)))
    assert one.swim.overflows == {"streams": 2}


def test_a_stranger_gets_no_more_than_it_sent():
    one = One("a")
    one.hear("a", Suspect("a", EPOCH, 0, "b"))  # There is news to tell.
    effects = one.hear("stranger", Ping(5, "me"))
    assert one.messages(effects) == [("stranger:2", Ack(5, b"", 0))]


def sent_bytes(one: One, effects: list[object]) -> int:
    sealed = (Envelope("dev", "me", None, bytes).seal(item.messages, one.swim.member.epoch) for item in effects)
    return sum(map(len, sealed))


ELSEWHERE = "victim:9"
"""An address that somebody put into a packet it did not come from."""


@pytest.mark.parametrize(
    ("sender", "epoch", "messages"),
    [
        ("x", EPOCH, (Ping(5, "me"),)),
        ("x", 0, (Ping(5, "me"),)),
        ("x", 0, (Suspect("a", EPOCH, 0, "x"),) * 20),
        ("x", EPOCH, (Dead("a", EPOCH, 0, "x"),) * 20),
        ("x", EPOCH, (PingRequest(1, replace(member("a"), gossip=ELSEWHERE)),)),
        ("a", 0, (Ping(5, "me"),)),
        ("a", EPOCH - 1, (Ping(5, "me"), Alive(replace(member("a", EPOCH - 1), gossip=ELSEWHERE), 0))),
        ("a", 0, (Alive(member("a", 0), 0),)),
        ("b", 0, (Ping(5, "me"), Alive(member("b", 0), 0))),
    ],
)
def test_who_is_not_known_gets_no_more_than_it_sent_wherever_it_says_to_be(sender, epoch, messages):
    one = One("a", "b", "c")
    one.hear("a", Alive(replace(member("a"), http="h" * 150 + ":1"), 3))
    one.hear("c", Dead("b", EPOCH, 0, "c"))  # There is news to tell, too.
    effects = one.hear_from(ELSEWHERE, sender, *messages, epoch=epoch)
    size_bytes = len(Envelope("dev", sender, None, bytes).seal([encode_message(item) for item in messages], epoch))
    datagrams = [effect for effect in effects if isinstance(effect, SendDatagram)]
    assert sent_bytes(one, datagrams) <= size_bytes
    assert {effect.address for effect in datagrams} <= {ELSEWHERE}


def test_a_helper_pings_an_address_that_is_not_a_members_without_news():
    one = One("a", "b")
    one.hear("a", Suspect("b", EPOCH, 0, "a"))
    effects = one.hear("a", PingRequest(77, replace(member("b"), gossip=ELSEWHERE)))
    assert [(address, type(message)) for address, message in one.messages(effects)] == [(ELSEWHERE, Ping)]


def test_a_member_is_answered_in_full_where_it_is_not_at_home_too():
    one = One("a", "b")
    one.hear("a", Alive(member("a"), 3))
    effects = one.hear_from(ELSEWHERE, "b", Suspect("a", EPOCH, 2, "b"))
    assert (ELSEWHERE, Alive(member("a"), 3)) in one.said(effects, Alive)


def test_a_ping_for_another_id_is_not_answered():
    assert One("a").hear("a", Ping(5, "somebody")) == []


def test_an_ack_tells_of_its_senders_ring():
    one = One("a")
    address, ping = one.ping()
    one.hear("a", Ack(ping.sequence, b"12345678", 0))
    assert one.swim.table.members["a"].ring_digest == b"12345678"
    assert address == "a:2"


def test_an_answer_by_tcp_is_a_sign_of_life_as_any_packet():
    one = One("a")
    one.until(0.2)
    one.event(StreamReceived(9, Packet("a", EPOCH, (Ping(4, "me"),))))
    one.until(0.3)
    one.event(StreamReceived(10, Packet("a", EPOCH - 1, (Ping(4, "me"),))))
    record = one.swim.table.members["a"]
    assert record.heard_s == record.phi_estimate.last_s == 0.2, "not that of another life"


def test_how_long_a_death_took_to_be_known_is_counted_from_the_last_sign_of_life():
    one = One("a", "b")
    one.hear("a", Nack(0))
    one.now_s = 4.0
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    assert (one.swim.detections, one.swim.detections_s) == (1, 4.0)


# --- doubt of itself ----------------------------------------------------------------------------------


def test_missed_nacks_make_a_node_doubt_itself_and_slow_down():
    one = One("a", "b", "c", "d")
    one.ping()
    one.until(one.now_s + PACE.probe_interval_s)
    assert one.swim.health == HELPERS
    assert one.swim.probe_interval_s == PACE.probe_interval_s * (1 + HELPERS)


def test_each_answered_probe_restores_some_trust_in_itself():
    one = One("a", "b", "c", "d")
    one.swim.health = 2
    for expected in (1, 0, 0):
        one.answer(*one.ping())
        one.until(one.now_s + one.swim.probe_interval_s - 0.001)
        one.ping()
        assert one.swim.health == expected
        one.swim._probe.answered = True


def test_nacks_say_that_ones_own_network_works():
    one = One("a", "b", "c", "d")
    one.ping()
    requests = one.said(one.until(one.now_s + PACE.probe_timeout_s), PingRequest)
    for address, request in requests:
        one.hear(address.partition(":")[0], Nack(request.sequence))
    one.until(one.now_s + PACE.probe_interval_s - PACE.probe_timeout_s)
    assert one.swim.health == 0


def test_a_lagging_event_loop_makes_a_node_doubt_itself():
    one = One("a")
    one.event(LoopLagged(0.1))
    assert one.swim.health == 0
    one.event(LoopLagged(0.5))
    assert one.swim.health == 1
    one.event(LoopLagged(0.5))
    assert one.swim.health == 1, "once in an interval"


def test_whoever_stood_still_judges_nobody_by_that_time():
    one = One("a", "b", "c")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    left_s = one.swim.table.members["a"].suspicion.deadline_s - one.now_s
    one.now_s += 100.0 + PAUSE_S
    one._did(one.swim.poll(at(one.now_s)))
    assert one.state("a") == "suspect"
    assert {one.state("b"), one.state("c")} == {"alive"}
    assert one.swim.table.members["a"].suspicion.deadline_s - one.now_s > left_s - 1.5
    assert one.swim.health >= 1


def test_the_packets_that_waited_while_a_node_stood_still_are_no_silence_of_their_senders():
    one = One("a", "b")
    for second in range(1, 30):
        one.until(float(second))
        one.hear("a", Nack(0))
    record = one.swim.table.members["a"]
    one.now_s += 100.0
    one.hear("a", Nack(0))  # Read before any timer fires, as a shell does.
    one._did(one.swim.poll(at(one.now_s)))
    one.until(one.now_s + 1.0)
    assert 0.0 < one.swim.phi(record, at(one.now_s)) < PHI_PROBE, "neither overdue nor out of measure"
    one.until(one.now_s + 9.0)
    assert one.swim.phi(record, at(one.now_s)) > PHI_PROBE, "its rhythm was not forgotten"


# --- what is believed ---------------------------------------------------------------------------------

LIFE = {"older": EPOCH - 1, "same": EPOCH, "newer": EPOCH + 1}


@pytest.mark.parametrize(
    ("known", "message", "expected"),
    [
        ("alive", Alive(member("a"), 5), ("alive", EPOCH, 5)),
        ("alive", Alive(member("a"), 3), ("alive", EPOCH, 4)),
        ("alive", Alive(member("a", EPOCH - 1), 9), ("alive", EPOCH, 4)),
        ("alive", Alive(member("a", EPOCH + 1), 0), ("alive", EPOCH + 1, 0)),
        ("alive", Suspect("a", EPOCH, 4, "b"), ("suspect", EPOCH, 4)),
        ("alive", Suspect("a", EPOCH, 3, "b"), ("alive", EPOCH, 4)),
        ("alive", Suspect("a", EPOCH - 1, 9, "b"), ("alive", EPOCH, 4)),
        ("alive", Suspect("a", EPOCH + 1, 9, "b"), ("alive", EPOCH, 4)),
        ("alive", Dead("a", EPOCH, 4, "b"), ("dead", EPOCH, 4)),
        ("alive", Dead("a", EPOCH, 3, "b"), ("alive", EPOCH, 4)),
        ("alive", Left("a", EPOCH, 0), ("left", EPOCH, 4)),
        ("suspect", Alive(member("a"), 4), ("suspect", EPOCH, 4)),
        ("suspect", Alive(member("a"), 5), ("alive", EPOCH, 5)),
        ("suspect", Suspect("a", EPOCH, 6, "b"), ("suspect", EPOCH, 6)),
        ("suspect", Dead("a", EPOCH, 4, "b"), ("dead", EPOCH, 4)),
        ("dead", Alive(member("a"), 4), ("dead", EPOCH, 4)),
        ("dead", Alive(member("a"), 5), ("alive", EPOCH, 5)),
        ("dead", Alive(member("a", EPOCH + 1), 0), ("alive", EPOCH + 1, 0)),
        ("dead", Suspect("a", EPOCH, 9, "b"), ("dead", EPOCH, 4)),
        ("dead", Left("a", EPOCH, 4), ("left", EPOCH, 4)),
        ("left", Alive(member("a"), 9), ("left", EPOCH, 4)),
        ("left", Suspect("a", EPOCH, 9, "b"), ("left", EPOCH, 4)),
        ("left", Dead("a", EPOCH, 9, "b"), ("left", EPOCH, 4)),
        ("left", Alive(member("a", EPOCH + 1), 0), ("alive", EPOCH + 1, 0)),
    ],
)
def test_words_about_a_member_are_ordered_by_life_and_incarnation(known, message, expected):
    one = One("a", "b")
    one.hear("b", Alive(member("a"), 4))
    before = {"suspect": Suspect("a", EPOCH, 4, "b"), "dead": Dead("a", EPOCH, 4, "b"), "left": Left("a", EPOCH, 4)}
    if known in before:
        one.hear("b", before[known])
    one.hear("b", message)
    record = one.swim.table.members["a"]
    assert (record.state, record.member.epoch, record.incarnation) == expected


def test_a_dead_or_left_stranger_creates_nobody():
    one = One("a")
    one.hear("a", Dead("x", EPOCH, 0, "a"), Suspect("y", EPOCH, 0, "a"), Left("z", EPOCH, 0))
    assert list(one.swim.table.members) == ["a"]


def test_a_new_member_is_told_on():
    one = One("a")
    effects = one.hear("a", Alive(member("x"), 0))
    assert notes(effects) == ["member-alive"]
    told = one.said(one.until(one.now_s + PACE.gossip_interval_s), Alive)
    assert member("x") in [message.member for _, message in told]


@pytest.mark.parametrize(
    ("members", "count"), [(1, 4), (2, 4), (9, 4), (10, 8), (50, 8), (99, 8), (100, 12), (200, 12), (1000, 16)]
)
def test_news_is_sent_four_times_for_each_digit_of_the_clusters_size(members, count):
    assert retransmits(members) == count


def test_news_beyond_its_bound_is_counted(monkeypatch):
    monkeypatch.setattr(news, "NEWS_MAX", 2)
    one = One("a")
    one.hear("a", *(Alive(member(node_id), 0) for node_id in "xyz"))
    assert one.swim.overflows == {"news": 1}


def test_without_news_nothing_but_probes_is_sent():
    one = One("a", "b", "c")
    for _ in range(6):
        one.answer(*one.ping())
    kinds = [type(message) for _, message in one.messages(one.effects)]
    assert set(kinds) == {Ping}


def test_confirmations_shorten_the_time_to_refute():
    one = One("a", "b", "c", "d")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    suspicion = one.swim.table.members["a"].suspicion
    deadlines_s = [suspicion.deadline_s]
    for accuser in ("b", "c", "d"):
        one.hear(accuser, Suspect("a", EPOCH, 0, accuser))
        deadlines_s.append(suspicion.deadline_s)
    assert deadlines_s[0] == deadlines_s[1] == 6 * MIN_S, "who spoke already confirms nothing"
    assert deadlines_s[1] > deadlines_s[2] > deadlines_s[3] == MIN_S


def test_a_suspicion_of_a_higher_incarnation_begins_anew():
    one = One("a", "b", "c", "d")
    for accuser in ("b", "c", "d"):
        one.hear(accuser, Suspect("a", EPOCH, 0, accuser))
    one.until(MIN_S - 1)
    one.hear("b", Suspect("a", EPOCH, 1, "b"))  # It refuted meanwhile, and that word was lost here.
    one.until(MIN_S + 1)
    assert one.state("a") == "suspect"


def test_a_suspicion_is_shown_to_the_suspect_and_to_others():
    one = One("a", "b", "c", "d", "e")
    one.hear("b", Suspect("a", EPOCH, 0, "b"))
    effects = one.until(QUESTION_SHARES[0] * MIN_S)
    assert "a:2" in [address for address, _ in one.said(effects, Suspect)]


def test_who_repeats_what_was_refuted_is_set_right():
    one = One("a", "b")
    one.hear("a", Alive(member("a"), 3))
    effects = one.hear("b", Suspect("a", EPOCH, 2, "b"))
    assert ("b:2", Alive(member("a"), 3)) in one.said(effects, Alive)


def test_who_suspects_a_member_that_left_is_told_of_its_goodbye():
    one = One("a", "b")
    one.hear("a", Left("a", EPOCH, 0))
    assert ("b:2", Left("a", EPOCH, 0)) in one.said(one.hear("b", Suspect("a", EPOCH, 0, "b")), Left)
    assert one.state("a") == "left"


def test_a_suspect_is_told_in_the_ping_itself():
    one = One("a")
    one.hear("a", Suspect("a", EPOCH, 0, "b"))
    while True:
        effects = one.until(one.swim.deadline())
        if one.said(effects, Ping):
            break
    assert [message.id for _, message in one.said(effects, Suspect)].count("a") >= 1


def test_a_node_refutes_what_is_said_of_it_by_a_higher_incarnation():
    one = One("a", "b")
    effects = one.hear("a", Suspect("me", EPOCH, 4, "b"))
    assert one.swim.incarnation == 5
    assert any(isinstance(effect, SendNews) for effect in effects)
    assert one.swim.health == 1
    again = one.hear("a", Suspect("me", EPOCH, 4, "b"))
    assert one.swim.incarnation == 5, "that is refuted already"
    assert [(address, message.incarnation) for address, message in one.said(again, Alive)] == [("a:2", 5)]
    assert one.hear("a", Dead("me", EPOCH - 1, 99, "b")) == [], "that was another life"


def test_the_dead_that_still_speak_are_told_what_is_held_against_them():
    one = One("a", "b")
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    assert ("a:2", Dead("a", EPOCH, 0, "me")) in one.said(one.hear("a", Ping(1, "me")), Dead)
    assert ("a:2", Dead("a", EPOCH, 0, "me")) in one.said(one.hear("a", Alive(member("a"), 0)), Dead)


def test_a_stale_word_that_came_over_a_peer_connection_is_answered_at_its_senders_address():
    one = One("a", "b")
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    assert ("a:2", Dead("a", EPOCH, 0, "me")) in one.said(one.hear("a", Alive(member("a"), 0), news=True), Dead)


@pytest.mark.parametrize("keyring", ["", "keys"])
@pytest.mark.parametrize("state", ["alive", "suspect", "dead"])
def test_a_process_that_began_anew_with_an_earlier_clock_is_told_of_the_life_to_outdo(state, keyring):
    one = One("a", "b", gossip_keyring=keyring)
    if state != "alive":
        one.hear("b", (Dead if state == "dead" else Suspect)("a", EPOCH, 0, "b"))
    stale = Alive(member("a", EPOCH - 9), 0)
    effects = one.hear("a", stale, epoch=EPOCH - 9)
    if keyring:
        assert ("a:2", Alive(member("a"), 0)) in one.said(effects, Alive)
    else:
        assert [effect.address for effect in effects if isinstance(effect, OpenStream)] == ["a:2"], "by a push-pull"


def test_the_dead_are_asked_now_and_then_so_that_a_healed_partition_mends():
    one = One("a", "b")
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    effects = one.until(1.5 * DEAD_PING_INTERVAL_S)
    assert "a:2" in [address for address, message in one.said(effects, Dead) if message.id == "a"]


def test_who_left_is_asked_too_and_is_found_when_its_address_is_used_again():
    one = One("a", "b")
    one.hear("b", Left("a", EPOCH, 0))
    said = one.messages(one.until(100 * DEAD_PING_INTERVAL_S))
    assert any(address == "a:2" and type(message) is Ping for address, message in said)
    assert ("a:2", Alive(one.swim.member, one.swim.incarnation)) in said
    one.hear("a", Alive(member("a", EPOCH + 1), 0), epoch=EPOCH + 1)
    assert one.state("a") == "alive"


def test_the_goodbye_of_a_life_that_came_and_went_unheard_ends_the_one_before():
    one = One("a", "b")
    one.hear("b", Left("a", EPOCH + 1, 0))
    assert (one.state("a"), one.swim.table.members["a"].member.epoch) == ("left", EPOCH + 1)
    one.hear("b", Alive(member("a"), 9), Suspect("a", EPOCH + 1, 0, "b"), Dead("a", EPOCH, 9, "b"))
    assert one.state("a") == "left"


def test_who_dies_and_comes_back_again_and_again_takes_no_more_room_or_turns():
    one = One("a", "b", "c")
    for incarnation in range(2000):
        one.hear("b", Dead("a", EPOCH, incarnation, "b"), Alive(member("a"), incarnation + 1))
    assert len(one.swim._timers) < 20
    asked = []
    for _ in range(9):
        address, ping = one.ping()
        one.answer(address, ping)
        asked.append(address)
    assert asked.count("a:2") <= 4


def test_who_comes_back_is_forgotten_that_long_after_its_last_death():
    one = One("a", "b", dead_memory=60.0)
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    one.until(30)
    one.hear("b", Alive(member("a"), 1), Dead("a", EPOCH, 1, "b"))
    one.until(89)
    assert "a" in one.swim.table.members
    one.until(91)
    assert "a" not in one.swim.table.members


def test_the_dead_are_forgotten_in_the_end():
    one = One("a", "b", dead_memory=60.0)
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    one.until(59)
    assert "a" in one.swim.table.members
    one.until(61)
    assert "a" not in one.swim.table.members


def test_who_leaves_says_so_to_all_and_refutes_nothing_any_more():
    one = One("a", "b")
    effects = one._did(one.swim.leave(at(0)))
    [news] = [effect for effect in effects if isinstance(effect, SendNews)]
    assert set(news.node_ids) == {"a", "b"}
    assert one.said(effects, Left)
    assert one.hear("a", Suspect("me", EPOCH, 0, "a")) == []
    assert not one.said(one.until(5), Ping)


def test_a_change_of_what_a_node_announces_raises_its_incarnation():
    one = One("a")
    one._did(one.swim.update(replace(one.swim.member, weight=2.0), at(0)))
    assert (one.swim.incarnation, one.swim.member.weight) == (1, 2.0)
    one._did(one.swim.update(replace(one.swim.member, epoch=EPOCH + 1), at(0)))
    assert (one.swim.incarnation, one.swim.member.epoch) == (0, EPOCH + 1)


# --- names ----------------------------------------------------------------------------------------------

NAMESAKE = replace(member("me", EPOCH + 5), gossip="elsewhere:2")


def namesake_answers(one: One, *, lives: bool) -> list[object]:
    """Let it be asked at its address, twice, and answer or not."""
    done = one.hear("a", Alive(NAMESAKE, 0))
    for _ in range(2):
        streams = [effect for effect in done if isinstance(effect, OpenStream) and effect.address == "elsewhere:2"]
        assert len(streams) == 1
        reply = Packet("me", EPOCH + 5, (Ack(1, b"", 0),))
        stream_id = streams[0].stream_id
        done = one.event(StreamReplied(stream_id, reply) if lives else StreamFailed(stream_id, "refused"))
        if not any(isinstance(effect, Stop) for effect in done):
            done = done + one.until(one.now_s + CONFLICT_PAUSE_S)
    return done


def test_of_two_live_processes_with_one_id_the_one_that_began_first_stops():
    [stop] = [effect for effect in namesake_answers(One("a"), lives=True) if isinstance(effect, Stop)]
    assert "another live process has the id me, at elsewhere:2" in stop.reason


def test_a_memory_of_a_later_life_stops_nobody_but_is_outdone():
    one = One("a")
    assert not any(isinstance(effect, Stop) for effect in namesake_answers(one, lives=False))
    assert one.swim.member.epoch == EPOCH + 6


def test_an_earlier_life_that_runs_elsewhere_is_told_of_the_later_one_by_tcp():
    one = One("a", "b")
    effects = one.hear_from(ELSEWHERE, "a", Ping(5, "me"), Ping(6, "me"), epoch=EPOCH - 1)
    [stream] = [effect for effect in effects if isinstance(effect, OpenStream)]
    assert stream.address == ELSEWHERE
    opened = one.reader.open_stream(Envelope("dev", "me", None, bytes).seal_stream(stream.messages, EPOCH))
    assert SyncEntry(member("a"), 0, "alive") in opened.messages[0].entries
    assert [address for address, _ in one.said(effects, Ack)] == [ELSEWHERE]


@pytest.mark.parametrize("kind", [Suspect, Dead])
def test_an_accusation_of_a_later_life_is_outdone_by_who_is_asked_in_its_place(kind):
    one = One("a")
    accusation = kind("me", EPOCH + 5, 0, "a")
    one.hear("a", accusation)
    one.hear("a", Ping(1, "somebody"), accusation)
    assert one.swim.member.epoch == EPOCH, "that may be a namesake elsewhere"
    one.hear("a", Ping(1, "me"), accusation)
    assert one.swim.member.epoch == EPOCH + 6


def test_an_earlier_namesake_is_ignored():
    one = One("a")
    assert one.hear("a", Alive(replace(NAMESAKE, epoch=EPOCH - 1), 0)) == []


def test_in_a_cluster_that_grew_nobody_is_overdue_by_the_rhythm_of_the_small_one():
    one = One("a", "b")
    for second in range(1, 30):
        for address, ping in one.said(one.until(float(second)), Ping):
            one.answer(address, ping)
        one.hear("a", Nack(0))
    one.hear("a", *(Alive(member(f"n{number}"), 0) for number in range(10)))
    one.hear("a", *(Alive(member(f"m{number}"), 0) for number in range(10)))
    record = one.swim.table.members["a"]
    for second in range(30, 42):
        for address, ping in one.said(one.until(float(second)), Ping):
            if address != "a:2":
                one.answer(address, ping)
    assert one.swim.phi(record, at(one.now_s)) < PHI_PROBE
    one.until(one.now_s + 60.0)
    assert one.swim.phi(record, at(one.now_s)) > PHI_PROBE


# --- seeds ----------------------------------------------------------------------------------------------


def resolve_times(one: One, seconds: float, answer: object) -> list[float]:
    """Return when the seeds were asked for, each time answered."""
    times_s = [0.0] if any(isinstance(effect, ResolveSeeds) for effect in one.effects) else []
    if times_s:
        one.event(answer)
    while one.swim.deadline() <= seconds:
        effects = one.until(one.swim.deadline())
        for address, ping in one.said(effects, Ping):
            one.answer(address, ping)
        if any(isinstance(effect, ResolveSeeds) for effect in effects):
            times_s.append(one.now_s)
            one.event(answer)
    return times_s


def test_while_alone_a_name_that_does_not_resolve_is_asked_for_again_and_again_with_growing_pauses():
    one = One(join=("dns:zephyr:7946",))
    failed = SeedsResolved((), ("seed dns:zephyr:7946: no address",))
    times_s = resolve_times(one, 600.0, failed)
    pauses_s = [later - sooner for sooner, later in pairwise(times_s)]
    assert pauses_s[0] < 1.3 * SEED_RETRY_FIRST_S
    assert max(pauses_s) <= 1.25 * SEED_RETRY_MAX_S
    assert len(times_s) > 600 / (1.25 * SEED_RETRY_MAX_S)
    assert notes(one.effects) == ["seed-unresolved"], "which is said once"


def test_a_seed_that_resolves_is_asked_for_all_it_knows():
    one = One(join=("a:2",))
    effects = one.event(SeedsResolved(("a:2", "me:2"), ()))
    [stream] = [effect for effect in effects if isinstance(effect, OpenStream)]
    assert stream.address == "a:2"
    one.event(
        StreamReplied(stream.stream_id, Packet("a", EPOCH, (Sync((SyncEntry(member("a"), 0, "alive"),), False),)))
    )
    assert one.state("a") == "alive"


def test_seeds_are_visited_now_and_then_even_when_all_is_well():
    one = One("a", "b", join=("a:2", "x:2"))
    times_s = resolve_times(one, 300.0, SeedsResolved(("a:2", "x:2"), ()))
    assert 300 / (1.25 * SEED_REVISIT_S) - 1 <= len(times_s) <= 300 / (0.75 * SEED_REVISIT_S) + 1
    streams = [effect for effect in one.effects if isinstance(effect, OpenStream)]
    assert "x:2" in [stream.address for stream in streams], "where no member is known to be"


# --- push-pull ------------------------------------------------------------------------------------------


def sync(*entries: SyncEntry) -> Packet:
    return Packet("b", EPOCH, (Sync(entries, False),))


def test_a_push_pull_is_answered_with_all_that_is_known():
    one = One("a", "b")
    one.hear("b", Dead("a", EPOCH, 0, "b"))
    effects = one.event(StreamReceived(9, sync(SyncEntry(member("b"), 0, "alive"), SyncEntry(member("x"), 0, "alive"))))
    [reply] = [effect for effect in effects if isinstance(effect, ReplyStream)]
    opened = one.reader.open_stream(Envelope("dev", "me", None, bytes).seal_stream(reply.messages, EPOCH))
    states = {entry.member.id: entry.state for entry in opened.messages[0].entries}
    assert states == {"me": "alive", "a": "dead", "b": "alive", "x": "alive"}


def test_a_push_pull_leaves_the_dead_out_rather_than_be_too_long():
    one = One()
    for number in range(1000):
        long = replace(member(f"n{number}"), http="h" * 250 + ":1", peer="p" * 120 + ":1")
        one.hear("n0", Alive(long, 0), *([Dead(f"n{number}", EPOCH, 0, "n0")] if number % 2 else []))
    effects = one.event(StreamReceived(9, sync()))
    [reply] = [effect for effect in effects if isinstance(effect, ReplyStream)]
    opened = one.reader.open_stream(Envelope("dev", "me", None, bytes).seal_stream(reply.messages, EPOCH))
    states = [entry.state for entry in opened.messages[0].entries]
    assert states.count("alive") == 501
    assert 20 < states.count("dead") < 500
    assert one.swim.overflows == {"sync-entries": 500 - states.count("dead")}


def test_a_remote_dead_is_only_suspected_here_and_creates_nobody():
    one = One("a", "b")
    one.event(StreamReceived(9, sync(SyncEntry(member("a"), 0, "dead"), SyncEntry(member("x"), 0, "dead"))))
    assert one.state("a") == "suspect"
    assert "x" not in one.swim.table.members


def test_a_node_that_others_remember_as_left_speaks_louder():
    one = One("b")
    one.event(StreamReceived(9, sync(SyncEntry(member("me", EPOCH + 3), 0, "left"))))
    assert one.swim.member.epoch == EPOCH + 4


def test_a_tcp_ping_is_answered():
    one = One("b")
    effects = one.event(StreamReceived(9, Packet("b", EPOCH, (Ping(4, "me"),))))
    assert [type(effect) for effect in effects] == [ReplyStream]


# --- exit evidence --------------------------------------------------------------------------------------


def ended(one: One, node_id: str = "a", epoch: int = EPOCH, *, refused: bool = True) -> list[object]:
    effects = one.event(PeerDisconnected(node_id, "the connection ended"))
    if refused:
        effects = effects + one.event(PeerRefused(node_id, epoch))
    return effects


def test_the_end_of_a_connection_alone_counts_for_nothing():
    one = One("a", "b", "c")
    assert one.said(ended(one, refused=False), Ping), "it is asked by UDP at once"
    one.until(0.3)
    assert one.state("a") == "alive"


def test_a_refused_connection_seen_by_two_while_udp_is_silent_makes_dead_soon():
    one = One("a", "b", "c")
    ended(one)
    assert one.state("a") == "alive", "UDP has a moment to answer"
    one.until(0.06)
    assert one.state("a") == "suspect"
    one.hear("b", Exit("a", EPOCH, "b"), news=True)
    one.until(0.06 + 0.26)
    assert one.state("a") == "dead"


def test_seen_by_one_of_several_it_shortens_nothing():
    one = One("a", "b", "c")
    ended(one)
    one.until(1.0)
    assert one.state("a") == "suspect"
    assert one.swim.table.members["a"].suspicion.exit_deadline_s is None


def test_of_two_members_one_witness_is_all_there_is():
    one = One("a")
    ended(one)
    one.until(0.06 + 0.26)
    assert one.state("a") == "dead"


def test_a_refusing_port_while_udp_answers_kills_nobody():
    one = One("a", "b", "c")
    [(_, ping)] = one.said(ended(one), Ping)
    one.hear("a", Ack(ping.sequence, b"", 0))
    for number in range(3):
        one.until(one.now_s + 0.1)
        one.event(PeerRefused("a", EPOCH))
        assert one.now_s < EXIT_REST_S, number
    assert one.state("a") == "alive"


@pytest.mark.parametrize("sign", ["packet", "connection", "late answer"])
def test_any_sign_of_life_takes_the_evidence_back(sign):
    one = One("a", "b", "c")
    [(_, ping)] = one.said(ended(one), Ping)
    one.until(0.06)
    one.hear("b", Exit("a", EPOCH, "b"), news=True)
    if sign == "packet":
        one.hear("a", Nack(1))
    elif sign == "connection":
        one.event(PeerConnected(member("a")))
    else:
        one.hear("a", Ack(ping.sequence, b"", 0))
    assert one.swim.table.members["a"].suspicion.exit_deadline_s is None
    one.until(0.5)
    assert one.state("a") == "suspect", "which it refutes as any other"


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        ("x", Exit("a", EPOCH, "x")),
        ("x", Exit("a", EPOCH, "b")),
        ("b", Exit("a", EPOCH - 1, "b")),
        ("b", Exit("a", EPOCH, "x")),
    ],
)
def test_witnesses_are_members_and_name_the_life_they_saw(sender, message):
    one = One("a", "b", "c")
    ended(one)
    one.until(0.06)
    one.hear(sender, message)
    assert one.swim.table.members["a"].suspicion.exit_deadline_s is None


def test_the_word_of_a_witness_comes_from_a_living_member_in_its_present_life():
    for sender, epoch in (("c", EPOCH), ("b", EPOCH - 1)):
        one = One("a", "b", "c")
        one.hear("b", Dead("c", EPOCH, 0, "b"))
        ended(one)
        one.until(0.06)
        one.hear(sender, Exit("a", EPOCH, "b"), epoch=epoch)
        assert one.swim.table.members["a"].suspicion.exit_deadline_s is None


def test_what_a_witness_saw_long_ago_counts_for_nothing():
    one = One("a", "b", "c")
    one.hear("b", Exit("a", EPOCH, "b"), news=True)
    while one.now_s <= EXIT_TESTIMONY_S:
        one.answer(*one.ping())
    began_s = one.now_s
    ended(one)
    one.until(began_s + 0.06)
    assert one.state("a") == "suspect"
    assert one.swim.table.members["a"].suspicion.exit_deadline_s is None
    one.hear("c", Exit("a", EPOCH, "c"), news=True)
    assert one.swim.table.members["a"].suspicion.exit_deadline_s is not None


def test_a_slow_member_might_still_be_a_witness_so_one_alone_shortens_nothing():
    one = One("a", "b")
    one.hear("b", Suspect("b", EPOCH, 0, "a"))
    ended(one)
    one.until(0.5)
    assert one.state("a") == "suspect"
    assert one.swim.table.members["a"].suspicion.exit_deadline_s is None


def test_when_all_others_ended_at_once_no_witness_is_waited_for():
    one = One("a", "b")
    ended(one)
    ended(one, "b")
    one.until(0.06)
    one.event(PeerRefused("a", EPOCH))  # It is dialled again and again.
    one.event(PeerRefused("b", EPOCH))
    one.until(0.06 + 0.26)
    assert (one.state("a"), one.state("b")) == ("dead", "dead")


def test_evidence_of_an_earlier_life_counts_for_nothing():
    one = One("a")
    ended(one, epoch=EPOCH - 1)
    one.until(0.5)
    assert one.state("a") == "alive"


def test_a_slow_witness_waits_longer():
    one = One("a")
    one.swim.health = 3
    ended(one)
    one.until(0.15)
    assert one.state("a") == "alive"


def test_who_is_seen_to_exit_and_lives_refutes():
    one = One("a", "b")
    one.hear("a", Exit("me", EPOCH, "a"))
    assert one.swim.incarnation == 1


# --- events of operators --------------------------------------------------------------------------------


def test_an_operators_event_is_shown_once_and_told_on():
    one = One("a", "b")
    event = UserEvent("a", EPOCH, 1, "deploy", b"v2")
    assert notes(one.hear("a", event)) == ["user-event"]
    assert notes(one.hear("b", event)) == []
    assert [message for _, message in one.said(one.until(0.2), UserEvent)]
    assert notes(one._did(one.swim.send_user_event("mine", b"", at(1)))) == ["user-event"]
