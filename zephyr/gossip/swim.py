"""Membership by gossip: who is there, who answers, who is gone. SWIM with Lifeguard and exit evidence.

This machine decides what this node believes of every other member, and whom it asks. It never decides who
owns data (that is `zephyr.cluster`'s), and it holds no socket and no clock: events and the time go in,
effects come out.

How a death is found (Das et al., "SWIM", 2002, with the Lifeguard changes of arXiv 1707.00788):

- Each probe interval one member is pinged, round robin over a shuffled list. When it does not answer in time, three
  others are asked to ping it, and a ping by TCP goes beside them: UDP that is blocked is not death.
- Who still does not answer is *suspected*, which everyone is told, the suspect first of all. It refutes by
  raising its incarnation. When it does not, the time-out (`zephyr.gossip.suspicion`) makes it *dead*.
- A node doubts itself first: the local health (0 well, 8 worst) stretches its own intervals and time-outs. It grows
  with nacks that do not come, own refutations and event-loop lag, and shrinks with each answered probe.
- *Exit evidence* is what an ended process does and a slow one cannot: its connections end and new ones are
  refused. Seen by two members while UDP is silent too, it shortens the suspicion to `exit_suspicion`.

Words about one life are ordered by (boot epoch, incarnation). Invariants, checked by the simulator:

- Incarnations of a life never decrease; a member that left is never suspected and stays left.
- Nobody is called dead by phi, by a packet that came late, or by a remote `dead` in a push-pull: that only
  suspects, and never creates a member.
- Every queue and table is bounded by a constant here or in `zephyr.gossip.news`.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from math import inf, log2
from typing import Any

from zephyr.config import GOSSIP_PACES, Settings
from zephyr.events import (
    DatagramReceived,
    Effect,
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
from zephyr.gossip.certificate import Certificates, ExitEvidence, FailedProbe, Verdict
from zephyr.gossip.messages import (
    Ack,
    Alive,
    Dead,
    Exit,
    GossipState,
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
from zephyr.gossip.news import News, retransmits
from zephyr.gossip.phi import PhiEstimate
from zephyr.gossip.suspicion import Suspicion, confirmations_expected, suspicion_min_s
from zephyr.gossip.table import Record, Table
from zephyr.gossip.wire import SYNC_BYTES_MAX, encode_message, packet_room_bytes, plain_overhead_bytes
from zephyr.model import Address, Instant, Member, NodeId, TimelineEntry

HELPERS = 3
"""Members asked to ping on this node's behalf (k of the paper)."""
ROLL_MAX = 200
"""Members asked in a roll call: as many as a ring may have."""
ROLL_STREAMS_MAX = 32
"""Streams under way beyond which a roll call opens none: probes need some."""
NEWS_REACH = 64
"""Up to this many members, each has a connection to each (`zephyr.peer.tcp`)."""
GOSSIP_FANOUT = 3
"""Members that news is sent to in each gossip interval."""
HEALTH_MAX = 8
"""Worst local health: intervals and time-outs are stretched nine times."""
NACK_SHARE = 0.8
"""A helper gives up after this share of the time that its asker waits, so that its nack arrives before the verdict."""
QUESTION_SHARES = (0.5, 0.85)
"""Of the shortest time-out: when a suspicion is shown around. News of a refutation misses a member in e^-8 of cases,
which is often enough where a slow member is suspected again and again."""
PROBE_TIMEOUT_LOW_SHARE = 0.2
"""The probe time-out adapts to the round trip, down to this share of the profile's."""
RELAYS_MAX = 256
"""Pings made for others that wait for an answer. Beyond it requests are dropped; the asker counts a missed nack."""
STREAMS_MAX = 64
"""Streams of this node that are under way."""
USER_EVENTS_SEEN_MAX = 512
"""Events of operators remembered, so that each is shown once."""

SYNC_TIMEOUT_S = 10.0
"""For one push-pull: connecting, and half a megabyte each way on a slow line."""
SYNC_TRIM = 0.9
"""Share kept of the entries that fit on average where not all do: members' lengths differ."""
CROWD = 64
"""From so much news on, which is six packets full, a push-pull each probe interval tells more than packets can."""
SYNC_SCALE_MEMBERS = 32
"""Up to this many members the profile's push-pull interval holds; each doubling adds one interval."""
DEAD_PING_INTERVAL_S = 5.0
"""One member that is thought dead is told so this often: if it lives it refutes, so a healed partition mends."""
LEFT_PING_SHARE = 0.2
"""Of these pings that go to members that left: they are not expected to live, but their addresses may be used again."""
SEED_RETRY_FIRST_S = 0.25
SEED_RETRY_MAX_S = 5.0
"""Pause between two attempts to join while alone, doubling from the first."""
SEED_REVISIT_S = 30.0
"""How often seeds that no living member answers for are tried again, however long the cluster has lived."""
JOIN_ADDRESSES_MAX = 8
"""Seed addresses asked in one attempt: one answer is enough, and the rest follow in the next."""
INTRODUCE_RETRY_S = 2.0
"""Time between two attempts to reach members that etcd names and gossip does not know."""

EXIT_UNANSWERED_MIN_S = 0.05
"""A refused connection counts from here on, when UDP has been silent for that long (or for four round trips)."""
EXIT_ROUND_TRIPS = 4
EXIT_REST_S = 1.0
"""After a UDP answer, refusals of that member count for nothing for so long: its process lives."""
EXIT_REFUTE_REST_S = 0.1
"""One refutation answers all who saw this node exit at the same time."""
LIFE_SETTLED_S = 1.0
"""A life that is known for so long when a connection ends is the one that it led to: a process that began anew would
have ended the connection before it was heard of."""
EXIT_OBSERVERS_MAX = 8
"""Witnesses counted of one exit: two are enough."""
EXIT_TESTIMONY_S = 10.0
"""So long another witness's word holds: what was seen much earlier was another fault, which its member survived."""
EXIT_PING_REMEMBERED_S = 5.0
"""A late answer to such a ping still counts, since it takes back an accusation."""

LAG_DOUBT_S = 0.2
"""An event loop this late makes a node doubt itself: it is a fifth of a probe interval."""
PAUSE_S = 0.5
"""A timer this late means that the node did not run: what waited meanwhile gets that time on top."""
NAMESAKE_TOLD_S = 0.9
"""At most one namesake is told of another in that time, and given it to answer: less than a connect's second try."""
CONFLICT_TIMEOUT_S = 2.0
"""How long a process that claims this node's id has to answer before it counts as a memory."""
CONFLICT_PAUSE_S = 3.0
"""It must answer twice, so far apart: a newcomer that finds this node registered in etcd stops by itself meanwhile."""


class Probe:
    """One round of asking after one member."""

    __slots__ = (
        "answered",
        "direct_timeout_s",
        "epoch",
        "helpers",
        "is_tcp_tried",
        "nackers",
        "sent_s",
        "sequence",
        "target",
    )

    def __init__(self, target: Record, sequence: int, sent_s: float) -> None:
        self.target = target
        self.epoch = target.member.epoch
        """Which life was asked: a silent one says nothing of the next."""
        self.sequence = sequence
        self.sent_s = sent_s
        self.answered = False
        self.helpers: dict[NodeId, None] = {}
        self.nackers: dict[NodeId, None] = {}
        self.direct_timeout_s: float | None = None
        self.is_tcp_tried = False


class Swim:
    """One member's gossip."""

    def __init__(self, settings: Settings, member: Member, rng: random.Random, *, lifeguard: bool = True) -> None:
        """`lifeguard=False` is plain SWIM, for comparison only."""
        self.member = member
        self.incarnation = 0
        self.table = Table(rng)
        """The others, dead and left ones included until they are forgotten."""
        self.certificates = Certificates()  # For people: nothing here depends on them.
        self.health = 0
        self.lag_s = 0.0
        """The event loop's last known lag."""
        self.heard_s = -inf
        """Monotonic seconds of the last sign of any other member."""
        self.ring_digest = b""
        """Rides on acks; set by the node."""
        self.change_count = self.shown_count = 0
        """Grow with every change of what this node believes of somebody; with every ring that somebody shows."""
        self.refutation_count = 0
        self._overflows: Counter[str] = Counter()
        self.detections, self.detections_s = 0, 0.0
        """Deaths learned of, and together the time that had passed since each was last heard."""
        self.pace = GOSSIP_PACES[settings.gossip_profile]
        self._settings = settings
        self._rng = rng
        self._lifeguard = lifeguard
        self._room_bytes = packet_room_bytes(settings.cluster, member.id)
        self._plain_overhead_bytes = plain_overhead_bytes(settings.cluster, member.id)
        self._stranger_room_bytes = 0  # What is left of a packet's size for answers to who is not known.
        self._news = News()
        self._effects: list[Effect] = []
        self._timers: list[tuple[float, int, Callable[..., None], Any]] = []
        self._serial = self._sequence = self._user_event_number = self._seed_failures = self._conflict_epoch = 0
        self._phi_size = 0  # Of the cluster, by which phi expects packets.
        self._started = self._leaving = False
        self._paused_s = 0.0
        """Time in which this node did not run: phi counts without it."""
        self._probe: Probe | None = None
        self._relays: dict[int, tuple[Address, int, NodeId]] = {}
        """Own sequence -> (asker, the asker's sequence, target)."""
        self._exit_pings: dict[int, NodeId] = {}
        self._roll: dict[int, tuple[NodeId, float]] = {}
        """Pings of the last roll call: sequence -> (who was asked, when)."""
        self._streams: dict[int, Callable[[Packet | None, Instant], None]] = {}
        self._gossip_armed = self._resolving = self._introducing = False
        self._introduced: tuple[Member, ...] = ()
        self._exit_refuted_s = self._crowd_sync_s = self._lag_doubt_s = self._namesake_told_s = -inf
        self._conflict_since_s = -inf
        self._user_events_seen: dict[tuple[NodeId, int, int], None] = {}
        self._encoded_self = b""
        self._sync_cache: tuple[int, bytes] = (-1, b"")
        self._handlers, self._on_message = self._table_of_events(), self._table_of_messages()
        self._announce()

    def _table_of_events(self) -> dict[type, Callable[[Any, Instant], None]]:
        return {
            DatagramReceived: self._on_datagram,
            StreamReceived: self._on_stream,
            StreamReplied: lambda event, now: self._on_stream_ended(event.stream_id, event.packet, now),
            StreamFailed: lambda event, now: self._on_stream_ended(event.stream_id, None, now),
            SeedsResolved: self._on_seeds_resolved,
            LoopLagged: self._on_lag,
            PeerConnected: self._on_peer_connected,
            PeerDisconnected: self._on_peer_disconnected,
            PeerRefused: self._on_peer_refused,
        }

    def _table_of_messages(self) -> dict[type, Callable[[Any, Packet, Address, Instant], None]]:
        return {
            Ping: self._on_ping,
            Ack: self._on_ack,
            PingRequest: self._on_ping_request,
            Nack: self._on_nack,
            Alive: lambda message, packet, source, now: self._on_alive(message, now, packet, source),
            Suspect: lambda message, packet, source, now: self._on_suspect(message, now, packet, source),
            Exit: lambda message, packet, _source, now: self._on_exit(message, packet, now),
            Dead: lambda message, packet, source, now: self._on_dead(message, now, packet, source),
            Left: lambda message, _packet, _source, now: self._on_left(message, now),
            UserEvent: self._on_user_event,
            Sync: lambda _message, _packet, _source, _now: None,  # Only over streams.
        }

    # --- doors --------------------------------------------------------------------------------------

    def start(self, now: Instant) -> list[Effect]:
        """Begin to probe, and to look for others."""
        self._started = True
        pace = self.pace
        self._at(now.monotonic_s + pace.probe_interval_s * self._rng.random(), self._probe_next)
        self._at(now.monotonic_s + self._sync_interval_s() * (0.5 + self._rng.random()), self._sync_with_any)
        self._at(now.monotonic_s + DEAD_PING_INTERVAL_S * (0.5 + self._rng.random()), self._ping_a_dead)
        if self._settings.join:
            self._seek(now)
        return self._flush()

    def handle(self, event: Any, now: Instant) -> list[Effect]:
        """Take in one event of `zephyr.events` that concerns gossip."""
        timers = self._timers
        if timers and now.monotonic_s - timers[0][0] > PAUSE_S:  # Before the packets that waited are judged, too.
            self._did_not_run(now.monotonic_s - timers[0][0])
        self._handlers[type(event)](event, now)
        return self._flush()

    def deadline(self) -> float:
        """Return the monotonic second of the next timer."""
        return self._timers[0][0] if self._timers else inf

    def poll(self, now: Instant) -> list[Effect]:
        """Fire the timers that are due. Call it after the packets that wait have been handled."""
        timers = self._timers
        if timers and now.monotonic_s - timers[0][0] > PAUSE_S:
            self._did_not_run(now.monotonic_s - timers[0][0])
        while timers and timers[0][0] <= now.monotonic_s:
            _, _, action, argument = heapq.heappop(timers)
            if argument is None:
                action(now)
            else:
                action(argument, now)
        return self._flush()

    def update(self, member: Member, now: Instant) -> list[Effect]:
        """Announce a new state, weight, zone, address or epoch of this node itself."""
        if member != self.member:
            self._renew(member, self.incarnation + 1 if member.epoch == self.member.epoch else 0, now)
        return self._flush()

    def introduce(self, members: Iterable[Member], now: Instant) -> list[Effect]:
        """Know of members that somebody else names, such as etcd; seek the strangers among them. Replaces the last."""
        self._introduced = tuple(members)
        if not self._introducing:
            self._introduce(now)
        return self._flush()

    def _introduce(self, now: Instant) -> None:
        """Push-pull with those who are not known yet, or only as dead in an earlier life; again while there are any."""
        self._introducing = False
        strangers = [member for member in self._introduced if self._is_stranger(member)]
        if not strangers or self._leaving:
            return
        self._introducing = True
        for member in strangers[:JOIN_ADDRESSES_MAX]:
            self._sync_with(member.gossip, now)
        self._at(now.monotonic_s + INTRODUCE_RETRY_S, self._introduce)

    def _is_stranger(self, member: Member) -> bool:
        record = self.table.members.get(member.id)
        if record is None:
            return member.id != self.member.id
        return (
            record.member.epoch < member.epoch
        )  # An earlier life may yet die, and nobody would ask for this one then.

    def call_roll(self, now: Instant) -> list[Effect]:
        """Ping everybody at once, up to `ROLL_MAX`, by TCP too where UDP is blocked: who is there, with what ring."""
        self._roll = {}
        for record in self.table.some(ROLL_MAX):
            self._sequence += 1
            sequence, ping = self._sequence, self._ping(record, self._sequence)
            self._roll[sequence] = (record.member.id, now.monotonic_s)
            self._send(record.member.gossip, ping)
            if record.is_udp_blocked and len(self._streams) < ROLL_STREAMS_MAX:
                timeout_s = self.pace.probe_interval_s
                self._open_stream(record.member.gossip, ping, timeout_s, partial(self._on_roll_stream, sequence))
        return self._flush()

    def _on_roll_stream(self, sequence: int, packet: Packet | None, now: Instant) -> None:
        self._on_sign(packet, now)
        if packet is not None:
            for message in packet.messages:
                if type(message) is Ack and message.sequence == sequence:
                    self._on_roll_answered(message, packet)

    def _on_roll_answered(self, message: Ack, packet: Packet) -> None:
        node_id, sent_s = self._roll.pop(message.sequence, ("", -inf))
        if node_id == packet.sender and node_id in self.table.members:
            self._show(self.table.members[node_id], message, packet, sent_s)

    def ask_for_a_sign(self, now: Instant) -> list[Effect]:
        """Call the roll, and ask a few by TCP too: is there anybody at all? `heard_s` tells."""
        for record in self.table.some(HELPERS):
            self._sequence += 1
            ping = encode_message(Ping(self._sequence, record.member.id))
            self._open_stream(record.member.gossip, [ping], self.pace.probe_interval_s, self._on_sign)
        return self.call_roll(now)

    def _on_sign(self, packet: Packet | None, now: Instant) -> None:
        record = self.table.members.get(packet.sender) if packet is not None else None
        if packet is not None and record is not None:
            self.heard_s = now.monotonic_s
            if record.member.epoch == packet.epoch:
                record.heard_s = now.monotonic_s

    def leave(self, now: Instant) -> list[Effect]:
        """Say goodbye: final at once, for everyone who hears it."""
        if not self._leaving:
            self._leaving = True
            message = encode_message(Left(self.member.id, self.member.epoch, self.incarnation))
            self._spread(self.member.id, message, now, at_once=True)
            for record in self.table.some(GOSSIP_FANOUT):
                self._send(record.member.gossip, [message])
        return self._flush()

    def send_user_event(self, name: str, payload: bytes, now: Instant) -> list[Effect]:
        """Tell every member something on behalf of an operator."""
        self._user_event_number += 1
        event = UserEvent(self.member.id, self.member.epoch, self._user_event_number, name, payload)
        self._on_user_event(event, None, "", now)
        return self._flush()

    def assume(self, members: Iterable[Member], now: Instant) -> None:
        """Know these members as alive from the start: for simulations that begin with a settled cluster."""
        self.change_count += 1
        for member in members:
            if member.id != self.member.id:
                self.table.add(Record(member, 0, now.monotonic_s))

    def live_members(self) -> tuple[Member, ...]:
        """Return the others that are alive or suspected, sorted by id."""
        return tuple(sorted((record.member for record in self.table.live), key=lambda member: member.id))

    def phi(self, record: Record, now: Instant) -> float:
        """Return how surprising the silence of a member is: for people and for ordering, never a verdict."""
        return record.phi(now.monotonic_s - self._paused_s)

    @property
    def size(self) -> int:
        """Members alive or suspected, this node included."""
        return len(self.table.live) + 1

    @property
    def overflows(self) -> Counter[str]:
        """What a bound of this machine turned away, by what was bounded; a copy."""
        return self._overflows + Counter(news=self._news.dropped_count)

    @property
    def is_leaving(self) -> bool:
        """Whether this node said goodbye."""
        return self._leaving

    @property
    def probe_interval_s(self) -> float:
        """The interval as stretched by the local health."""
        return self.pace.probe_interval_s * (1 + self.health)

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; for tests and the simulator."""
        self.table.check_invariants()
        assert self.member.id not in self.table.members
        assert 0 <= self.health <= HEALTH_MAX
        assert len(self._relays) <= RELAYS_MAX
        assert all(self.table.members[node_id].state == "suspect" for node_id in self.certificates.open)

    # --- timers and effects -------------------------------------------------------------------------

    def _at(self, at_s: float, action: Callable[..., None], argument: Any = None) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (at_s, self._serial, action, argument))

    def _flush(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _note(self, now: Instant, kind: str, member: NodeId, detail: str) -> None:
        self._effects.append(Note(TimelineEntry(now.unix_ms, kind, member, "gossip", detail)))

    def _did_not_run(self, gap_s: float) -> None:
        """This node itself stood still: nobody is to be judged by that time, and it doubts itself."""
        self._paused_s += gap_s
        self._timers[:] = [(at_s + gap_s, serial, action, argument) for at_s, serial, action, argument in self._timers]
        for record in self.table.live:
            if record.suspicion is not None:
                record.suspicion.shift(gap_s)
        self._doubt(1)

    def _doubt(self, delta: int) -> None:
        if self._lifeguard:
            self.health = min(HEALTH_MAX, max(0, self.health + delta))

    def _on_lag(self, event: LoopLagged, now: Instant) -> None:
        self.lag_s = event.lag_s
        if event.lag_s >= LAG_DOUBT_S and now.monotonic_s >= self._lag_doubt_s + self.pace.probe_interval_s:
            self._lag_doubt_s = now.monotonic_s
            self._doubt(1)

    # --- sending ------------------------------------------------------------------------------------

    def _send(self, address: Address, messages: list[bytes], *, with_news: bool = True) -> None:
        """Send a packet, filled up with news."""
        if with_news and len(self._news):
            room_bytes = self._room_bytes - sum(map(len, messages))
            messages = messages + self._news.take(room_bytes, retransmits(self.size))
        if messages:
            self._effects.append(SendDatagram(address, tuple(messages)))

    def _answer(self, packet: Packet, source: Address, messages: list[bytes], *, with_news: bool = False) -> None:
        """Send an answer to where a packet came from; over a peer connection it came from its sender's own address.

        Whoever is not known, in the life that it claims, gets no more bytes than it sent, and what does not fit is left
        out: its address may be forged. Knowing a life's epoch is a proof of sorts, as is a key.
        """
        record = self.table.members.get(packet.sender)
        home = record.member.gossip if record is not None else ""
        source = source or home
        if not source:
            return
        if self._settings.gossip_keyring or (record is not None and record.member.epoch == packet.epoch):
            self._send(source, messages, with_news=with_news and source == home)
            return
        size_bytes = self._plain_overhead_bytes
        fitting = []
        for message in messages:
            if size_bytes + len(message) <= self._stranger_room_bytes:
                fitting.append(message)
                size_bytes += len(message)
        if fitting:  # All answers to one packet share its size.
            self._stranger_room_bytes -= size_bytes
            self._send(source, fitting, with_news=False)

    def _spread(self, subject: str, message: bytes, now: Instant, *, at_once: bool = False) -> None:
        """Tell everyone in time; `at_once`: by the open peer connections too."""
        self._news.put(subject, message)
        if not self._gossip_armed and self._started:
            self._gossip_armed = True
            self._at(now.monotonic_s + self.pace.gossip_interval_s, self._gossip)
        if at_once and self.table.live:
            self._effects.append(SendNews(tuple(record.member.id for record in self.table.live), (message,)))

    def _gossip(self, now: Instant) -> None:
        """Send news to a few members; rest when there is none."""
        self._gossip_armed = False
        for record in self.table.some(GOSSIP_FANOUT):
            self._send(record.member.gossip, [])
        if len(self._news) > CROWD and now.monotonic_s >= self._crowd_sync_s + self.pace.probe_interval_s:
            self._crowd_sync_s = now.monotonic_s
            for record in self.table.some(1):
                self._sync_with(record.member.gossip, now)
        if len(self._news):
            self._gossip_armed = True
            self._at(now.monotonic_s + self.pace.gossip_interval_s, self._gossip)

    def _announce(self) -> None:
        self._encoded_self = encode_message(Alive(self.member, self.incarnation))

    def _renew(self, member: Member, incarnation: int, now: Instant) -> None:
        """Speak anew of this node itself, louder than what was said before."""
        self.member = member
        self.incarnation = incarnation
        self.change_count += 1
        self._announce()
        if not self._leaving:
            self._spread(member.id, self._encoded_self, now, at_once=True)

    # --- probing ------------------------------------------------------------------------------------

    def _probe_next(self, now: Instant) -> None:
        """End the last probe, start the next one."""
        if self._probe is not None:
            self._judge(self._probe, now)
            self._probe = None
        self._expect_by_size()
        interval_s = self.probe_interval_s
        self._at(now.monotonic_s + interval_s, self._probe_next)
        target = None if self._leaving else self.table.next_target(now.monotonic_s - self._paused_s)
        if target is None:
            return
        self._sequence += 1
        self._probe = probe = Probe(target, self._sequence, now.monotonic_s)
        self._send(target.member.gossip, self._ping(target, probe.sequence))
        high_s = self.pace.probe_timeout_s
        timeout_s = (
            target.phi_estimate.timeout_s(high_s * PROBE_TIMEOUT_LOW_SHARE, high_s) if target.phi_estimate else high_s
        )
        self._at(now.monotonic_s + timeout_s * (1 + self.health), self._probe_indirectly, probe)

    def _ping(self, target: Record, sequence: int) -> list[bytes]:
        """Return the messages that ask a member; a suspected one is told of it (the buddy system)."""
        messages = [encode_message(Ping(sequence, target.member.id))]
        if target.state != "alive" and self._lifeguard:
            messages.append(self._accusation(target))
        return messages

    def _accusation(self, record: Record) -> bytes:
        """Return what is held against a member, for it to refute."""
        node_id, epoch = record.member.id, record.member.epoch
        if record.state == "dead":
            return encode_message(Dead(node_id, epoch, record.incarnation, self.member.id))
        if record.state == "left":
            return encode_message(Left(node_id, epoch, record.incarnation))
        accuser = next(iter(record.suspicion.accusers)) if record.suspicion else self.member.id
        return encode_message(Suspect(node_id, epoch, record.incarnation, accuser))

    def _probe_indirectly(self, probe: Probe, now: Instant) -> None:
        """The direct time-out: ask others to try, and try by TCP."""
        if probe.answered or probe is not self._probe or probe.target.live_index < 0:
            return
        probe.direct_timeout_s = now.monotonic_s - probe.sent_s
        probe.is_tcp_tried = len(self._streams) < STREAMS_MAX
        target = probe.target.member
        candidates = [record for record in self.table.some(2 * HELPERS, target.id) if record.state == "alive"]
        running_s = now.monotonic_s - self._paused_s
        candidates.sort(key=lambda record: record.phi(running_s))
        request = encode_message(PingRequest(probe.sequence, target))
        for record in candidates[:HELPERS]:
            probe.helpers[record.member.id] = None
            self._send(record.member.gossip, [request])
        left_s = probe.sent_s + self.probe_interval_s - now.monotonic_s
        ping = self._ping(probe.target, probe.sequence)
        self._open_stream(target.gossip, ping, left_s, lambda packet, at: self._on_tcp_ack(probe, packet, at))

    def _on_tcp_ack(self, probe: Probe, packet: Packet | None, now: Instant) -> None:
        if packet is None or packet.sender != probe.target.member.id or probe.answered:
            return
        acks = [item for item in packet.messages if type(item) is Ack and item.sequence == probe.sequence]
        if acks:
            probe.answered = True
            self._on_sign(packet, now)
            self._show(probe.target, acks[0], packet, probe.sent_s)
            if not probe.target.is_udp_blocked:
                self._set_udp_blocked(probe.target, blocked=True)
                self._note(now, "udp-blocked", packet.sender, "answers by TCP, not by UDP")

    def _judge(self, probe: Probe, now: Instant) -> None:
        """The probe's interval is over."""
        target = probe.target
        if probe.answered:
            self._doubt(-1)
            return
        if target.live_index < 0 or self.table.members.get(target.member.id) is not target:
            return
        if target.member.epoch != probe.epoch:
            return
        self._doubt(len(probe.helpers) - len(probe.nackers) if probe.helpers else 1)
        me = self.member.id
        self._on_suspect(Suspect(target.member.id, target.member.epoch, target.incarnation, me), now)
        sent_unix_ms = now.unix_ms - round((now.monotonic_s - probe.sent_s) * 1000)
        helpers, nackers = tuple(probe.helpers), tuple(probe.nackers)
        failed = FailedProbe(sent_unix_ms, probe.direct_timeout_s, helpers, nackers, probe.is_tcp_tried)
        self.certificates.probe_failed(target.member.id, failed)

    def _tell_namesake(self, source: Address, now: Instant) -> None:
        """Tell an earlier life of the later one that is known: by TCP, since its address may be forged."""
        if now.monotonic_s >= self._namesake_told_s + NAMESAKE_TOLD_S and not self._settings.gossip_keyring:
            self._namesake_told_s = now.monotonic_s
            self._sync_with(source, now, NAMESAKE_TOLD_S)

    def _on_ping(self, message: Ping, packet: Packet, source: Address, now: Instant) -> None:
        """Answer, with what is held against the sender."""
        if message.target != self.member.id or not source:
            return
        record = self.table.members.get(packet.sender)
        if record is None or record.member.epoch != packet.epoch:  # A stranger: no more than this may fit.
            answer = [encode_message(Ack(message.sequence, b"", 0))]
            if record is not None and record.member.epoch > packet.epoch:
                answer.append(self._alive(record))
                self._tell_namesake(source, now)
            self._answer(packet, source, answer)
            return
        answer = [encode_message(Ack(message.sequence, self.ring_digest, int(self.lag_s * 1000)))]
        if record.state != "alive" and (self._lifeguard or record.state != "suspect"):
            answer.append(self._accusation(record))
        self._send(source, answer, with_news=source == record.member.gossip)

    def _on_ack(self, message: Ack, packet: Packet, _source: Address, now: Instant) -> None:
        probe = self._probe
        if probe is not None and probe.sequence == message.sequence:
            self._on_probe_answered(probe, message, packet, now)
        elif message.sequence in self._relays:
            self._pass_on(message, packet)
        elif message.sequence in self._roll:
            self._on_roll_answered(message, packet)
        elif self._exit_pings.get(message.sequence) == packet.sender:
            self._on_exit_ping_answered(message.sequence, now)

    def _on_probe_answered(self, probe: Probe, message: Ack, packet: Packet, now: Instant) -> None:
        target = probe.target
        is_direct = packet.sender == target.member.id
        if probe.answered or not (is_direct or packet.sender in probe.helpers):
            return
        probe.answered = True
        if is_direct:
            self._show(target, message, packet, probe.sent_s)
            if target.is_udp_blocked:
                self._set_udp_blocked(target, blocked=False)
            self._phi_of(target).answered(max(0.0, now.monotonic_s - probe.sent_s - message.lag_ms / 1000))

    def _show(self, record: Record, message: Ack, packet: Packet, sent_s: float) -> None:
        """Note which ring a member showed in answer to a question."""
        if packet.epoch == record.member.epoch and sent_s > record.ring_digest_s:
            record.ring_digest, record.ring_digest_s = message.ring_digest, sent_s
            self.shown_count += 1

    def _set_udp_blocked(self, record: Record, *, blocked: bool) -> None:
        record.is_udp_blocked = blocked
        self.change_count += 1

    def _on_nack(self, message: Nack, packet: Packet, _source: Address, _now: Instant) -> None:
        probe = self._probe
        if probe is not None and probe.sequence == message.sequence and packet.sender in probe.helpers:
            probe.nackers[packet.sender] = None

    # --- probing for others -------------------------------------------------------------------------

    def _on_ping_request(self, message: PingRequest, packet: Packet, source: Address, now: Instant) -> None:
        record = self.table.members.get(packet.sender)
        if record is None or record.member.epoch != packet.epoch or not source or self._leaving:
            return
        if len(self._relays) >= RELAYS_MAX:
            self._overflows["ping-requests"] += 1
            return
        self._sequence += 1
        self._relays[self._sequence] = (source, message.sequence, message.target.id)
        target = self.table.members.get(message.target.id)
        if target is not None and target.member.gossip == message.target.gossip:
            self._send(target.member.gossip, self._ping(target, self._sequence))
        else:  # Nobody's address, as far as is known here: no more than what was asked for.
            ping = encode_message(Ping(self._sequence, message.target.id))
            self._send(message.target.gossip, [ping], with_news=False)
        pace = self.pace
        if self._lifeguard:
            nack_s = NACK_SHARE * min(pace.probe_timeout_s, pace.probe_interval_s - pace.probe_timeout_s)
            self._at(now.monotonic_s + nack_s, self._relay_late, self._sequence)
        self._at(now.monotonic_s + (1 + HEALTH_MAX) * pace.probe_interval_s, self._relay_over, self._sequence)

    def _relay_late(self, sequence: int, _now: Instant) -> None:
        relay = self._relays.get(sequence)
        if relay is not None:
            self._send(relay[0], [encode_message(Nack(relay[1]))])

    def _relay_over(self, sequence: int, _now: Instant) -> None:
        self._relays.pop(sequence, None)

    def _pass_on(self, message: Ack, packet: Packet) -> None:
        source, sequence, target = self._relays[message.sequence]
        if packet.sender == target:
            del self._relays[message.sequence]
            self._send(source, [encode_message(Ack(sequence, message.ring_digest, message.lag_ms))])

    # --- what is said of members --------------------------------------------------------------------

    def _on_datagram(self, event: DatagramReceived, now: Instant) -> None:
        packet, source = event.packet, event.source
        self._hear(packet, now)
        self._stranger_room_bytes = packet.size_bytes
        for message in packet.messages:
            self._on_message[type(message)](message, packet, source, now)

    def _hear(self, packet: Packet, now: Instant) -> None:
        """Take a packet, whatever it says, as a sign of its sender's life."""
        record = self.table.members.get(packet.sender)
        if record is not None and record.member.epoch == packet.epoch:
            record.heard_s = self.heard_s = now.monotonic_s
            self._phi_of(record).heard(now.monotonic_s - self._paused_s)
            if record.exit_sequence:
                record.clear_exit()

    def _on_alive(self, message: Alive, now: Instant, packet: Packet | None = None, source: Address = "") -> None:
        """`packet` and `source`: that it came in, if it was not part of a push-pull, which is answered anyway."""
        member = message.member
        if member.id == self.member.id:
            self._on_alive_about_self(message, now)
            return
        record = self.table.members.get(member.id)
        if record is None:
            if self.table.is_full:
                self._overflows["members"] += 1
                return
            self._add(member, message.incarnation, now)
            self._spread(member.id, self._alive(self.table.members[member.id]), now)
            return
        order = (member.epoch, message.incarnation)
        known = (record.member.epoch, record.incarnation)
        if order <= known or (record.state == "left" and member.epoch == record.member.epoch):
            if packet is not None and packet.sender == member.id:
                self._answer_stale(record, member.epoch, packet, source, now)
            return
        is_new_life = member.epoch > record.member.epoch
        before = record.state
        record.member, record.incarnation, record.alive_message = member, message.incarnation, None
        if is_new_life:
            record.phi_estimate, record.life_since_s = None, now.monotonic_s
        record.clear_exit()
        self._set_state(record, "alive", now)
        self._spread(member.id, self._alive(record), now)
        if before in ("dead", "left") or is_new_life:
            self._note(
                now, "member-alive", member.id, "began anew" if is_new_life else f"was called {before}, and refuted"
            )
        elif before == "suspect":
            self._note(now, "member-refuted", member.id, f"incarnation {message.incarnation}")

    def _answer_stale(self, record: Record, epoch: int, packet: Packet, source: Address, now: Instant) -> None:
        """Tell a member that says of itself what is out of date: of a later life, or what is held against this one.

        Else a process that began anew with a clock that went back, or missed an accusation, would stay dead.
        """
        if epoch < record.member.epoch and record.state != "left":
            self._tell_namesake(source or record.member.gossip, now)
            self._answer(packet, source, [self._alive(record)])
        elif record.state != "alive":
            self._answer(packet, source, [self._accusation(record)], with_news=True)

    def _on_alive_about_self(self, message: Alive, now: Instant) -> None:
        """Somebody speaks of this node: an echo, a memory of an earlier life, or another process with its id."""
        other, mine = message.member, self.member
        if other.epoch == mine.epoch and other.gossip == mine.gossip:
            if message.incarnation > self.incarnation:  # A life with this very epoch was here before: speak louder.
                self._renew(mine, message.incarnation + 1, now)
            return
        if (other.epoch, other.gossip) < (mine.epoch, mine.gossip) or other.epoch == self._conflict_epoch:
            return
        if other.gossip == mine.gossip:  # This very socket: nobody else can answer there.
            self._renew(replace(mine, epoch=other.epoch + 1), 0, now)
            return
        self._conflict_epoch, self._conflict_since_s = other.epoch, now.monotonic_s
        self._ask_namesake(other, now)
        self._at(now.monotonic_s + CONFLICT_PAUSE_S, self._ask_namesake, other)

    def _ask_namesake(self, other: Member, now: Instant) -> None:
        """Ask at the address of another process with this node's id whether it lives."""
        is_last = now.monotonic_s >= self._conflict_since_s + CONFLICT_PAUSE_S
        self._sequence += 1
        ping = [encode_message(Ping(self._sequence, self.member.id))]

        def answered(packet: Packet | None, at: Instant) -> None:
            lives = packet is not None and packet.sender == self.member.id and packet.epoch != self.member.epoch
            if lives and is_last:
                reason = f"another live process has the id {self.member.id}, at {other.gossip}, and began later"
                self._note(at, "name-conflict", self.member.id, reason)
                self._effects.append(Stop(1, reason))
            elif is_last:
                self._conflict_epoch = 0
                if other.epoch >= self.member.epoch:  # A memory: this life comes after it.
                    self._renew(replace(self.member, epoch=other.epoch + 1), 0, at)

        self._open_stream(other.gossip, ping, CONFLICT_TIMEOUT_S, answered)

    def _on_suspect(self, message: Suspect, now: Instant, packet: Packet | None = None, source: Address = "") -> None:
        if message.id == self.member.id:
            if not self._repeat_refutation(message, packet, source):
                self._refute(message.epoch, message.incarnation, f"suspected by {message.accuser}", now, packet)
            return
        record = self.table.members.get(message.id)
        if record is None or message.epoch != record.member.epoch:
            return
        if message.incarnation < record.incarnation or record.state == "left":
            self._set_right(record, packet, source)
        elif record.state == "suspect" and message.incarnation == record.incarnation:
            self._confirm(record, message, now)
        elif record.live_index >= 0:
            self._suspect(record, message, now)

    def _suspect(self, record: Record, message: Suspect, now: Instant) -> None:
        """Begin a suspicion; one of a higher incarnation begins anew, since the member refuted the one before."""
        if record.state == "alive":
            self._note(now, "member-suspected", message.id, f"by {message.accuser}")
        record.incarnation = message.incarnation
        pace = self.pace
        min_s = suspicion_min_s(pace.suspicion_multiplier, self.size, pace.probe_interval_s)
        expected = confirmations_expected(pace.suspicion_multiplier, self.size) if self._lifeguard else 0
        record.suspicion = suspicion = Suspicion(message.accuser, now.monotonic_s, min_s, expected)
        self._set_state(record, "suspect", now)
        timeout_s = suspicion.deadline_s - suspicion.started_s
        self.certificates.suspected(
            message.id, message.accuser, min_s=min_s, timeout_s=timeout_s, expected=expected, pause_s=self._paused_s,
            now=now,
        )  # fmt: skip
        if self._lifeguard:
            for share in QUESTION_SHARES:
                self._at(now.monotonic_s + share * min_s, self._ask_around, (record, suspicion))
        self._at(record.suspicion.deadline_s, self._suspicion_due, record)
        self._spread(message.id, encode_message(message), now, at_once=message.accuser == self.member.id)

    def _ask_around(self, argument: tuple[Record, Suspicion], _now: Instant) -> None:
        """Show the accusation to the suspect and a few others: who knows of a refutation answers with it."""
        record, suspicion = argument
        if record.suspicion is not suspicion or self._leaving:
            return
        self._sequence += 1
        self._send(record.member.gossip, self._ping(record, self._sequence))
        accusation = self._accusation(record)
        for other in self.table.some(HELPERS, record.member.id):
            self._send(other.member.gossip, [accusation])

    def _confirm(self, record: Record, message: Suspect, now: Instant) -> None:
        suspicion = record.suspicion
        assert suspicion is not None
        if suspicion.confirm(message.accuser):
            self._at(suspicion.deadline_s, self._suspicion_due, record)
            self.certificates.shortened(message.id, message.accuser, suspicion.deadline_s - suspicion.started_s, now)
            self._spread(message.id, encode_message(message), now)

    def _suspicion_due(self, record: Record, now: Instant) -> None:
        """Call a suspect dead, unless it refuted or got more time."""
        suspicion = record.suspicion
        if suspicion is None or self._leaving:
            return
        if suspicion.deadline_s > now.monotonic_s:
            self._at(suspicion.deadline_s, self._suspicion_due, record)
            return
        self._on_dead(Dead(record.member.id, record.member.epoch, record.incarnation, self.member.id), now)

    def _set_right(self, record: Record, packet: Packet | None, source: Address) -> None:
        """Tell who holds something against a member that it has refuted that since, or left in good order."""
        if packet is None or not source or not self._lifeguard:
            return
        if record.state == "alive":
            self._answer(packet, source, [self._alive(record)])
        elif record.state == "left":
            self._answer(packet, source, [self._accusation(record)])

    def _on_dead(self, message: Dead, now: Instant, packet: Packet | None = None, source: Address = "") -> None:
        if message.id == self.member.id:
            if not self._repeat_refutation(message, packet, source):
                self._refute(message.epoch, message.incarnation, f"called dead by {message.accuser}", now, packet)
            return
        record = self.table.members.get(message.id)
        if record is None or record.live_index < 0 or message.epoch != record.member.epoch:
            return
        if message.incarnation < record.incarnation:
            self._set_right(record, packet, source)
            return
        record.incarnation = message.incarnation
        self._certify(record, message.accuser, now)
        accusers = ", ".join(record.suspicion.accusers) if record.suspicion else ""
        self._set_state(record, "dead", now)
        self._spread(message.id, encode_message(message), now, at_once=message.accuser == self.member.id)
        self._remember(record, now)
        if record.heard_s > -inf:
            self.detections += 1
            self.detections_s += now.monotonic_s - record.heard_s
        how = "exit seen" if record.exit_observers else "silent"
        suspected = f", suspected by {accusers}" if accusers else ""
        self._note(now, "member-dead", message.id, f"declared by {message.accuser}; {how}{suspected}")

    def _certify(self, record: Record, accuser: NodeId, now: Instant) -> None:
        """Keep what led to this verdict, if it is this node's own; else who has that."""
        suspicion = record.suspicion
        if accuser != self.member.id or suspicion is None or suspicion.deadline_s > now.monotonic_s:
            other = self.table.members.get(accuser)
            self.certificates.heard(record.member, accuser, other.member.http if other else "", now)
            return
        exit_s = None if suspicion.exit_deadline_s is None else suspicion.exit_deadline_s - suspicion.started_s
        self.certificates.certify(
            record.member,
            record.incarnation,
            self.member,
            timeout_s=suspicion.deadline_s - suspicion.started_s,
            pause_s=self._paused_s,
            accusers=tuple(suspicion.accusers),
            evidence=ExitEvidence(record.is_refused, record.is_silent, record.exit_observers, exit_s),
            verdict=Verdict(self.phi(record, now), record.rtt_s, self.health, self.lag_s, self.size),
            now=now,
        )

    def _on_left(self, message: Left, now: Instant) -> None:
        if message.id == self.member.id:
            if message.epoch >= self.member.epoch and not self._leaving:  # Not by this process: its words live on.
                self._renew(replace(self.member, epoch=message.epoch + 1), 0, now)
            return
        record = self.table.members.get(message.id)
        if record is None or message.epoch < record.member.epoch:
            return
        if message.epoch > record.member.epoch:  # Of a life that came and went unheard: nor is the one before it there.
            record.member, record.incarnation = replace(record.member, epoch=message.epoch), message.incarnation
            record.phi_estimate, record.alive_message, record.life_since_s = None, None, now.monotonic_s
        elif record.state == "left":
            return
        self._set_state(record, "left", now)
        self._spread(message.id, encode_message(message), now)
        self._remember(record, now)
        self._note(now, "member-left", message.id, "said goodbye")

    def _repeat_refutation(self, message: Suspect | Dead, packet: Packet | None, source: Address) -> bool:
        """Tell who repeats what was refuted already: the refutation may have been lost with all that was sent then."""
        if message.epoch != self.member.epoch or message.incarnation >= self.incarnation:
            return False
        if packet is not None and source and self._lifeguard and not self._leaving:
            self._answer(packet, source, [self._encoded_self])
        return True

    def _refute(
        self, epoch: int, incarnation: int, accusation: str, now: Instant, packet: Packet | None = None
    ) -> None:
        """Speak up against an accusation.

        One of a later life that comes with a ping to this very socket is about this process: it began anew with its
        clock set back. In an encrypted cluster it is not even heard before its epoch is above the former life's.
        """
        if self._leaving:
            return
        if epoch > self.member.epoch and packet is not None:
            if any(type(message) is Ping and message.target == self.member.id for message in packet.messages):
                self._renew(replace(self.member, epoch=epoch + 1), 0, now)
            return
        if epoch != self.member.epoch:
            return
        self.refutation_count += 1
        self._doubt(1)
        self._renew(self.member, incarnation + 1, now)
        self._note(now, "refuted", self.member.id, f"was {accusation}; incarnation {self.incarnation}")

    # --- members come, change and are forgotten -----------------------------------------------------

    def _phi_of(self, record: Record) -> PhiEstimate:
        """Return the estimate of a member, made when it is first heard.

        A packet is expected for each probe, made or answered: two in each round over all members.
        """
        if record.phi_estimate is None:
            record.phi_estimate = PhiEstimate(self.pace.probe_interval_s * max(1.0, self.size / 2))
        return record.phi_estimate

    def _expect_by_size(self) -> None:
        """Where the cluster doubled or halved, every member is heard half or twice as often from now on."""
        size = self.size
        if size < 2 * self._phi_size and 2 * size > self._phi_size:
            return
        self._phi_size = size
        for record in self.table.live:
            if record.phi_estimate is not None:
                record.phi_estimate.expect(self.pace.probe_interval_s * max(1.0, size / 2))

    def _add(self, member: Member, incarnation: int, now: Instant) -> None:
        record = Record(member, incarnation, now.monotonic_s)
        self.table.add(record)
        self.change_count += 1
        self._note(now, "member-alive", member.id, f"at {member.gossip}")

    def _set_state(self, record: Record, state: GossipState, now: Instant) -> None:
        self.change_count += 1
        if state != "suspect":
            record.suspicion = None
            self.certificates.closed(record.member.id)
        if record.state == state:
            return
        record.state = state
        record.since_s = now.monotonic_s
        self.table.move(record)

    def _remember(self, record: Record, now: Instant) -> None:
        """Forget who died or left after a day; one timer for each, however often it comes back meanwhile."""
        if not record.forget_armed:
            record.forget_armed = True
            self._at(now.monotonic_s + self._settings.dead_memory, self._forget, record)

    def _forget(self, record: Record, now: Instant) -> None:
        record.forget_armed = False
        if record.live_index >= 0:
            return
        forget_s = record.since_s + self._settings.dead_memory
        if now.monotonic_s < forget_s:
            record.forget_armed = True
            self._at(forget_s, self._forget, record)
            return
        del self.table.members[record.member.id]
        self.change_count += 1

    def _alive(self, record: Record) -> bytes:
        if record.alive_message is None:
            record.alive_message = encode_message(Alive(record.member, record.incarnation))
        return record.alive_message

    def _ping_a_dead(self, now: Instant) -> None:
        """Tell one of the dead that it is thought dead; sometimes one that left, whose next life may be lost to us."""
        self._at(now.monotonic_s + DEAD_PING_INTERVAL_S, self._ping_a_dead)
        if len(self.table.members) == len(self.table.live) or self._leaving:
            return
        wanted = "left" if self._rng.random() < LEFT_PING_SHARE else "dead"
        gone = [record for record in self.table.members.values() if record.state == wanted]
        if gone:
            record = gone[int(self._rng.random() * len(gone))]
            self._sequence += 1
            ping = encode_message(Ping(self._sequence, record.member.id))
            self._send(record.member.gossip, [ping, self._accusation(record), self._encoded_self], with_news=False)

    # --- push-pull ----------------------------------------------------------------------------------

    def _sync_interval_s(self) -> float:
        scale = 1.0 + max(0.0, log2(self.size / SYNC_SCALE_MEMBERS))
        return self.pace.sync_interval_s * scale

    def _sync_with_any(self, now: Instant) -> None:
        self._at(now.monotonic_s + self._sync_interval_s() * (0.9 + 0.2 * self._rng.random()), self._sync_with_any)
        for record in self.table.some(1):
            self._sync_with(record.member.gossip, now)

    def _sync_with(self, address: Address, _now: Instant, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        def synced(packet: Packet | None, now: Instant) -> None:
            if packet is not None:
                self._merge(packet, now)

        self._open_stream(address, [self._sync()], timeout_s, synced)

    def _sync(self) -> bytes:
        """Return all that this node knows, encoded."""
        if self._sync_cache[0] != self.change_count:
            own = SyncEntry(self.member, self.incarnation, "left" if self._leaving else "alive")
            entries = [SyncEntry(item.member, item.incarnation, item.state) for item in self.table.members.values()]
            is_join = not self.table.live
            message = encode_message(Sync((own, *entries), is_join))
            while len(message) > SYNC_BYTES_MAX:  # Long names, and many of them: the dead have to wait.
                entries.sort(key=lambda entry: entry.state in ("dead", "left"))
                kept = int(len(entries) * SYNC_BYTES_MAX / len(message) * SYNC_TRIM)
                self._overflows["sync-entries"] += len(entries) - kept
                del entries[kept:]
                message = encode_message(Sync((own, *entries), is_join))
            self._sync_cache = (self.change_count, message)
        return self._sync_cache[1]

    def _on_stream(self, event: StreamReceived, now: Instant) -> None:
        packet = event.packet
        self._on_sign(packet, now)
        self._hear(packet, now)
        for message in packet.messages:
            if type(message) is Sync:
                self._merge(packet, now)
                self._effects.append(ReplyStream(event.stream_id, (self._sync(),)))
                return
            if type(message) is Ping and message.target == self.member.id:
                for accusation in packet.messages:  # Told by TCP where UDP is blocked.
                    if type(accusation) in (Suspect, Dead, Left):
                        self._on_message[type(accusation)](accusation, packet, "", now)
                ack = encode_message(Ack(message.sequence, self.ring_digest, int(self.lag_s * 1000)))
                self._effects.append(ReplyStream(event.stream_id, (ack,)))
                return

    def _merge(self, packet: Packet, now: Instant) -> None:
        """Take in all that another member knows. Its dead are only suspected here, and create nobody."""
        for message in packet.messages:
            if type(message) is not Sync:
                continue
            for member, incarnation, state in message.entries:
                if state == "left":
                    self._on_left(Left(member.id, member.epoch, incarnation), now)
                    continue
                if state != "dead" or member.id == self.member.id:
                    self._on_alive(Alive(member, incarnation), now)
                if state != "alive":
                    self._on_suspect(Suspect(member.id, member.epoch, incarnation, packet.sender), now)

    def _open_stream(
        self,
        address: Address,
        messages: list[bytes],
        timeout_s: float,
        done: Callable[[Packet | None, Instant], None],
    ) -> None:
        if timeout_s <= 0:
            return
        if len(self._streams) >= STREAMS_MAX:
            self._overflows["streams"] += 1
            return
        self._sequence += 1
        self._streams[self._sequence] = done
        self._effects.append(OpenStream(self._sequence, address, tuple(messages), timeout_s))

    def _on_stream_ended(self, stream_id: int, packet: Packet | None, now: Instant) -> None:
        done = self._streams.pop(stream_id, None)
        if packet is not None:
            self._hear(packet, now)
        if done is not None:
            done(packet, now)

    # --- seeds --------------------------------------------------------------------------------------

    def _seek(self, now: Instant) -> None:
        """Ask the names of the seeds anew, then whoever is there."""
        if self._leaving:
            return
        if not self._resolving:
            self._resolving = True
            self._effects.append(ResolveSeeds(self._settings.join))
        if self.table.live:
            self._seed_failures = 0
            pause_s = SEED_REVISIT_S
        else:
            pause_s = min(SEED_RETRY_FIRST_S * 2 ** min(self._seed_failures, 16), SEED_RETRY_MAX_S)
            self._seed_failures += 1
        self._at(now.monotonic_s + pause_s * (0.75 + 0.5 * self._rng.random()), self._seek)

    def _on_seeds_resolved(self, event: SeedsResolved, now: Instant) -> None:
        self._resolving = False
        living = {record.member.gossip: None for record in self.table.live}
        wanted = [item for item in event.addresses if item not in living and item != self.member.gossip]
        self._rng.shuffle(wanted)
        for address in wanted[:JOIN_ADDRESSES_MAX]:
            self._sync_with(address, now)
        if not self.table.live and self._seed_failures == 1:
            for failure in event.failures:
                self._note(now, "seed-unresolved", "", failure)

    # --- exit evidence ------------------------------------------------------------------------------

    def _on_peer_connected(self, event: PeerConnected, _now: Instant) -> None:
        record = self.table.members.get(event.member.id)
        if record is not None and event.member.epoch >= record.member.epoch:
            record.clear_exit()

    def _on_peer_disconnected(self, event: PeerDisconnected, now: Instant) -> None:
        """Ask by UDP at once: an end alone counts for nothing."""
        record = self.table.members.get(event.node_id)
        if record is not None and not event.is_goodbye:
            is_settled = now.monotonic_s >= record.life_since_s + LIFE_SETTLED_S
            record.ended_epoch = record.member.epoch if is_settled else -1
            self._ask_whether_it_exited(record, now)

    def _on_peer_refused(self, event: PeerRefused, now: Instant) -> None:
        record = self.table.members.get(event.node_id)
        if record is None or now.monotonic_s < record.exit_rest_s:
            return
        # One process may have had several epochs while its connection stood: the last one counts.
        if record.member.epoch not in (event.epoch, record.ended_epoch):
            return
        record.is_refused = True
        self._ask_whether_it_exited(record, now)
        self._weigh_exit(record, now)

    def _ask_whether_it_exited(self, record: Record, now: Instant) -> None:
        if record.live_index < 0 or record.exit_sequence or now.monotonic_s < record.exit_rest_s:
            return
        self._sequence += 1
        record.exit_sequence = self._sequence
        self._exit_pings[self._sequence] = record.member.id
        self._send(record.member.gossip, self._ping(record, self._sequence))
        # Who reads late would take its own slowness for silence.
        wait_s = max(EXIT_UNANSWERED_MIN_S, EXIT_ROUND_TRIPS * record.rtt_s) * (1 + self.health)
        self._at(now.monotonic_s + wait_s, self._exit_ping_due, (record, self._sequence))
        self._at(now.monotonic_s + EXIT_PING_REMEMBERED_S, self._exit_ping_over, self._sequence)

    def _exit_ping_due(self, argument: tuple[Record, int], now: Instant) -> None:
        record, sequence = argument
        if record.exit_sequence == sequence:
            record.is_silent = True
            self._weigh_exit(record, now)

    def _exit_ping_over(self, sequence: int, _now: Instant) -> None:
        self._exit_pings.pop(sequence, None)

    def _on_exit_ping_answered(self, sequence: int, now: Instant) -> None:
        record = self.table.members.get(self._exit_pings.pop(sequence))
        if record is not None:
            record.clear_exit()
            record.exit_rest_s = now.monotonic_s + EXIT_REST_S

    def _weigh_exit(self, record: Record, now: Instant) -> None:
        """Both signs seen from here: say so, suspect, and end the suspicion soon if another member saw it too."""
        me, member = self.member.id, record.member
        if not record.has_exited_from_here or record.live_index < 0 or self._leaving:
            return
        self._drop_old_testimony(record, now)
        if me not in record.exit_observers:
            record.exit_observers = (*record.exit_observers, me)
            message = Exit(member.id, member.epoch, me)
            encoded = encode_message(message)
            self._effects.append(SendNews(tuple(other.member.id for other in self.table.live), (encoded,)))
            for other in self.table.some(GOSSIP_FANOUT, member.id):
                self._send(other.member.gossip, [encoded])
            self._pass_exit_on(message, now)
            self._on_suspect(Suspect(member.id, member.epoch, record.incarnation, me), now)
        suspicion = record.suspicion
        if suspicion is None or suspicion.exit_deadline_s is not None:
            return
        if len(record.exit_observers) > 1 or not self._has_other_witness(record):
            suspicion.exit_deadline_s = now.monotonic_s + self._settings.exit_suspicion * (1 + self.health)
            self._at(suspicion.deadline_s, self._suspicion_due, record)

    def _has_other_witness(self, record: Record) -> bool:
        """Whether anybody else is left who could have seen it. Who is slow still can; who ended as well cannot."""
        return any(other is not record and not other.has_exited_from_here for other in self.table.live)

    def _drop_old_testimony(self, record: Record, now: Instant) -> None:
        if now.monotonic_s > record.exit_told_s + EXIT_TESTIMONY_S:
            record.exit_observers = tuple(observer for observer in record.exit_observers if observer == self.member.id)

    def _on_exit(self, message: Exit, packet: Packet, now: Instant) -> None:
        """Count an eyewitness, while it and whoever passes its word on are members in good standing."""
        teller = self.table.members.get(packet.sender)
        if teller is None or teller.live_index < 0 or teller.member.epoch != packet.epoch:
            return
        if message.id == self.member.id:
            if now.monotonic_s >= self._exit_refuted_s + EXIT_REFUTE_REST_S:  # All witnesses speak at once.
                self._exit_refuted_s = now.monotonic_s
                self._refute(message.epoch, self.incarnation, f"seen to exit by {message.observer}", now)
            return
        record = self.table.members.get(message.id)
        observer = self.table.members.get(message.observer)
        if record is None or observer is None or record.member.epoch != message.epoch or record.live_index < 0:
            return
        self._drop_old_testimony(record, now)
        known = record.exit_observers
        if observer.state == "alive" and message.observer not in known and len(known) < EXIT_OBSERVERS_MAX:
            record.exit_observers = (*known, message.observer)
            record.exit_told_s = now.monotonic_s
            self._pass_exit_on(message, now)
            self._weigh_exit(record, now)

    def _pass_exit_on(self, message: Exit, now: Instant) -> None:
        """Where not everybody has a connection to everybody, witnesses find each other by gossip."""
        if self.size > NEWS_REACH:
            self._spread(f"exit {message.id} {message.observer}", encode_message(message), now)

    # --- events of operators ------------------------------------------------------------------------

    def _on_user_event(self, message: UserEvent, _packet: Packet | None, _source: Address, now: Instant) -> None:
        key = (message.origin, message.epoch, message.number)
        if key in self._user_events_seen:
            return
        self._user_events_seen[key] = None
        if len(self._user_events_seen) > USER_EVENTS_SEEN_MAX:
            del self._user_events_seen[next(iter(self._user_events_seen))]
        self._spread(f"event {key}", encode_message(message), now)
        payload = message.payload.decode(errors="replace")
        self._note(now, "user-event", message.origin, f"{message.name}: {payload}" if payload else message.name)
