"""Many real `Swim` machines in one process, in virtual time, on the simulated network.

The machines and their packets are the product's own, sealed and opened by the real codec; what stands in for the world
is the clock and `chaos.network`. This module is the shell around each machine, and keeps count of what they conclude.

A run records who declared whom dead, and whether that process lived: a *false death* is a live process that was called
dead, counted once for each member, life and incarnation. A paused process lives.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import mmh3

from chaos.network import CrashKind, EventLog, Host, Name, Network, Path, Process, Scheduler, Stream
from zephyr.config import Settings
from zephyr.errors import WireError
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
from zephyr.gossip.messages import Packet
from zephyr.gossip.swim import Swim
from zephyr.gossip.wire import Envelope, Keyring
from zephyr.model import Address, Instant, Member, NodeId, TimelineEntry

EPOCH_UNIX_MS = 1_700_000_000_000
"""Unix ms at virtual second 0."""
RESOLVE_S = 0.02
"""How long a name takes to resolve."""
LAG_PERIOD_S = 0.1
"""As `zephyr.runtime` measures the event loop's lag: a node that stood still tells after so long that it is well."""
LEAVE_LINGER_S = 1.0
"""From a goodbye to the end of the process."""

LINKS_ALL_KEPT_MAX = 64
LINKS_KEPT = 16
"""As `zephyr.peer.tcp` chooses the connections that are kept."""
LINK_STABLE_S = 1.0
RECONNECT_DELAYS_S = (0.0, 0.010, 0.050, 0.150)
RECONNECT_DELAY_MAX_S = 1.0
"""As `zephyr.peer.link` waits before it tries again."""


LogKind: TypeAlias = Literal["none", "hash", "lines"]
"""Of the event log of a run: nothing of it, its fingerprint, or its lines too."""


class Death(NamedTuple):
    """One member called another dead."""

    at_s: float
    observer: NodeId
    member: NodeId
    epoch: int
    incarnation: int
    """That the accusation was about."""
    condition: Literal["gone", "running", "paused", "unreachable"]
    """Of that life at that time, as seen from outside; all but `gone` are alive."""


@dataclass(slots=True)
class _Link:
    """A kept connection and when to make it again."""

    member: Member
    is_up: bool = False
    up_since_s: float = 0.0
    failures: int = 0
    reason: str = ""
    ended_epoch: int = 0
    """The life that the connection led to which ended without a goodbye; 0: none did since it was up."""
    serial: int = 0
    """Tells the present attempt to reconnect from earlier ones."""


class GossipNode(Process):
    """The shell of one machine: one life of one node."""

    def __init__(self, world: GossipWorld, host: Host, settings: Settings, member: Member) -> None:
        self.world = world
        self.network = world.network
        self.host = host
        self.id = settings.id
        self.swim = Swim(
            settings, member, random.Random(f"{world.seed}/swim/{settings.id}/{host.life}"), lifeguard=world.lifeguard
        )
        nonce = random.Random(f"{world.seed}/nonce/{settings.id}/{host.life}").randbytes
        self.envelope = Envelope(world.settings.cluster, settings.id, world.keyring, nonce)
        self.links: dict[Address, _Link] = {}
        """By gossip address, which is the name of the host."""
        self.stopped = ""
        """Why the machine ended by itself."""
        self._link_rng = random.Random(f"{world.seed}/link/{settings.id}/{host.life}")
        self._kept_floor = -1
        """Greatest hash among the kept links; -1 while all are kept."""
        self._streams: dict[int, Stream] = {}
        self._stream_number = 0
        self._actions: dict[type, Callable[[Any], None]] = {
            SendDatagram: self._send_datagram,
            SendNews: self._send_news,
            OpenStream: self._open_stream,
            ReplyStream: self._reply_stream,
            ResolveSeeds: self._resolve_seeds,
            Note: self._note,
            Stop: self._stop,
        }

    def now(self) -> Instant:
        """Read this host's clocks."""
        now_s = self.network.scheduler.now_s
        return Instant(now_s, EPOCH_UNIX_MS + self.host.skew_ms + int(now_s * 1000))

    def start(self) -> None:
        """Let the machine begin."""
        self.carry_out(self.swim.start(self.now()))

    def handle(self, event: object) -> None:
        """Hand an event to the machine."""
        self.carry_out(self.swim.handle(event, self.now()))

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the machine asked for, and set its timer anew."""
        actions = self._actions
        for effect in effects:
            actions[type(effect)](effect)
        if self.host.process is self:
            self.network.arm(self.host, self.swim.deadline())
            if self.world.checking:
                self.world.check(self)

    # --- effects --------------------------------------------------------------------------------------

    def _send_datagram(self, effect: SendDatagram) -> None:
        data = self.envelope.seal(effect.messages, self.swim.member.epoch)
        self.network.send(self.host, effect.address, data)

    def _send_news(self, effect: SendNews) -> None:
        wanted = dict.fromkeys(effect.node_ids)
        open_links = [name for name, link in self.links.items() if link.is_up and link.member.id in wanted]
        if open_links:
            data = self.envelope.seal(effect.messages, self.swim.member.epoch)
            for name in open_links:
                self.network.send_frame(self.host, name, data)

    def _open_stream(self, effect: OpenStream) -> None:
        data = self.envelope.seal_stream(effect.messages, self.swim.member.epoch)
        self.network.open_stream(self.host, effect.address, effect.stream_id, data, effect.timeout_s)

    def _reply_stream(self, effect: ReplyStream) -> None:
        stream = self._streams.pop(effect.stream_id, None)
        if stream is not None:
            data = self.envelope.seal_stream(effect.messages, self.swim.member.epoch)
            self.network.reply(stream, data)

    def _resolve_seeds(self, effect: ResolveSeeds) -> None:
        def resolved() -> None:
            addresses: dict[Address, None] = {}
            failures: list[str] = []
            for seed in effect.seeds:
                scheme, separator, _ = seed.partition(":")
                if separator and scheme in ("dns", "srv"):
                    found = self.world.names.get(seed, ())
                    addresses.update(dict.fromkeys(found))
                    if not found:
                        failures.append(f"{seed} does not resolve")
                else:
                    addresses[seed] = None
            self.handle(SeedsResolved(tuple(addresses), tuple(failures)))

        self.network.call_at(self.host, self.network.scheduler.now_s + RESOLVE_S, resolved)

    def _note(self, effect: Note) -> None:
        entry = effect.entry
        self.world.noted(self, entry)
        if entry.kind == "member-alive":
            self._add_peer(entry.member)
        elif entry.kind in ("member-dead", "member-left"):
            self._drop_peer(entry.member)

    def _stop(self, effect: Stop) -> None:
        self.stopped = effect.reason
        self.network.record(f"{self.id} stopped: {effect.reason}")
        if self.host.process is self:
            self.network.stop(self.host)

    # --- what arrives ---------------------------------------------------------------------------------

    def datagram_received(self, source: Name, data: bytes) -> None:
        """Open a packet and hand it on."""
        packet = self._opened(self.envelope.open, data)
        if packet is not None:
            self.handle(DatagramReceived(source, packet))

    def frame_received(self, source: Name, data: bytes) -> None:  # noqa: ARG002  # news needs no answer
        """Open a packet that came over a kept connection."""
        packet = self._opened(self.envelope.open, data)
        if packet is not None:
            self.handle(DatagramReceived("", packet))

    def stream_received(self, stream: Stream, data: bytes) -> None:
        """Open the question of a stream."""
        packet = self._opened(self.envelope.open_stream, data)
        if packet is not None:
            self._stream_number += 1
            self._streams[self._stream_number] = stream
            self.handle(StreamReceived(self._stream_number, packet))
            self._streams.pop(self._stream_number, None)

    def stream_replied(self, stream_id: int, data: bytes) -> None:
        """Open the answer of an own stream."""
        packet = self._opened(self.envelope.open_stream, data)
        self.handle(StreamReplied(stream_id, packet) if packet is not None else StreamFailed(stream_id, "bad answer"))

    def stream_failed(self, stream_id: int, reason: str) -> None:
        """An own stream got no answer."""
        self.handle(StreamFailed(stream_id, reason))

    def timer_fired(self) -> None:
        """Fire the machine's due timers."""
        if self.swim.deadline() > self.network.scheduler.now_s:
            self.network.arm(self.host, self.swim.deadline())
        else:
            self.carry_out(self.swim.poll(self.now()))

    def resumed(self, paused_s: float) -> None:
        """Tell the machine that its event loop stood still, and a little later that it does so no more."""
        self.handle(LoopLagged(paused_s))
        self.network.call_at(
            self.host, self.network.scheduler.now_s + LAG_PERIOD_S, lambda: self.handle(LoopLagged(0.0))
        )

    def _opened(self, opening: Callable[[bytes], Packet], data: bytes) -> Packet | None:
        try:
            return opening(data)
        except WireError as error:
            self.world.refused[error.cause] += 1
            return None

    # --- kept connections -----------------------------------------------------------------------------

    def _weight(self, node_id: NodeId) -> int:
        return mmh3.hash64(f"{self.id}\0{node_id}".encode(), 0, True, signed=False)[0]

    def assume(self, members: list[Member]) -> None:
        """Start out with all of these known and the connections to them up."""
        self.swim.assume(members, self.now())
        if not self.world.connections:
            return
        others = [member for member in members if member.id != self.id]
        if len(others) > LINKS_ALL_KEPT_MAX:
            others = heapq.nsmallest(LINKS_KEPT, others, key=lambda member: self._weight(member.id))
            self._kept_floor = self._weight(others[-1].id)
        for member in others:
            self.links[member.gossip] = _Link(member, is_up=True)
            self.network.connect_at_once(self.host, self.network.hosts[member.gossip])

    def _add_peer(self, node_id: NodeId) -> None:
        record = self.swim.table.members.get(node_id)
        if record is None or not self.world.connections:
            return
        member = record.member
        link = self.links.get(member.gossip)
        if link is not None:
            if link.member.epoch < member.epoch and not link.is_up:
                link.failures = 0
                self._dial(link)
            link.member = member
            return
        self._choose_links(member)

    def _drop_peer(self, node_id: NodeId) -> None:
        record = self.swim.table.members.get(node_id)
        if record is None:
            return
        link = self.links.pop(record.member.gossip, None)
        if link is not None:
            link.serial += 1
            self.network.hang_up(self.host, record.member.gossip)
        keeps_all = len(self.swim.table.live) <= LINKS_ALL_KEPT_MAX
        if self._kept_floor >= 0 and (link is not None or keeps_all):
            self._choose_links(None)

    def _choose_links(self, stranger: Member | None) -> None:
        """Keep a link to everyone, or to those whose hashes are least."""
        live = self.swim.table.live
        if stranger is not None and self._kept_floor >= 0 and self._weight(stranger.id) > self._kept_floor:
            return
        members = [record.member for record in live]
        self._kept_floor = -1
        if len(members) > LINKS_ALL_KEPT_MAX:
            members = heapq.nsmallest(LINKS_KEPT, members, key=lambda member: self._weight(member.id))
            self._kept_floor = self._weight(members[-1].id)
        wanted = {member.gossip: member for member in members}
        for name in [name for name in self.links if name not in wanted]:
            self.links.pop(name).serial += 1
            self.network.hang_up(self.host, name)
        for name, member in wanted.items():
            if name not in self.links:
                self.links[name] = link = _Link(member)
                self._dial(link)

    def _dial(self, link: _Link) -> None:
        link.serial += 1
        name = link.member.gossip
        if self.host.connections.get(self.network.hosts[name]) is None:
            self.network.connect(self.host, name)

    def _dial_after(self, link: _Link, serial: int) -> None:
        if link.serial == serial:
            self._dial(link)

    def _try_again(self, link: _Link) -> None:
        link.serial += 1
        if link.failures < len(RECONNECT_DELAYS_S):
            delay_s = RECONNECT_DELAYS_S[link.failures]
        else:
            doublings = min(link.failures - len(RECONNECT_DELAYS_S) + 1, 10)
            ceiling_s = min(RECONNECT_DELAYS_S[-1] * 2**doublings, RECONNECT_DELAY_MAX_S)
            delay_s = self._link_rng.uniform(ceiling_s / 2, ceiling_s)
        at_s = self.network.scheduler.now_s + delay_s
        self.network.call_at(self.host, at_s, self._dial_after, link, link.serial)

    def connected(self, peer: Name) -> None:
        """A kept connection is up, and the other side said who it is."""
        link = self.links.get(peer)
        node = self.world.at(peer)
        if link is None or node is None:
            self.network.hang_up(self.host, peer)
            return
        link.is_up = True
        link.up_since_s = self.network.scheduler.now_s
        link.reason = ""
        link.ended_epoch = 0
        link.member = node.swim.member
        self.handle(PeerConnected(link.member))

    def disconnected(self, peer: Name, *, goodbye: bool, reason: str) -> None:
        """A kept connection ended."""
        link = self.links.get(peer)
        if link is None:
            return
        stable = self.network.scheduler.now_s - link.up_since_s >= LINK_STABLE_S
        link.is_up = False
        link.reason = reason
        if goodbye:
            link.failures = max(link.failures + 1, len(RECONNECT_DELAYS_S))
        else:
            link.ended_epoch = link.member.epoch
            link.failures = 0 if stable else link.failures + 1
        self._try_again(link)
        self.handle(PeerDisconnected(link.member.id, reason, is_goodbye=goodbye))

    def connect_failed(self, peer: Name, reason: str) -> None:
        """A kept connection could not be made, for the first time or again."""
        link = self.links.get(peer)
        if link is None:
            return
        link.failures += 1
        is_news = reason != link.reason
        link.reason = reason
        self._try_again(link)
        if reason == "refused" and link.ended_epoch:
            self.handle(PeerRefused(link.member.id, link.ended_epoch))
        if is_news:
            self.handle(PeerDisconnected(link.member.id, reason))


class GossipWorld:
    """A cluster of machines, its network, its faults and what it concluded."""

    def __init__(
        self,
        seed: int,
        *,
        profile: str = "lan",
        lifeguard: bool = True,
        connections: bool = True,
        path: Path | None = None,
        log: LogKind = "none",
        keyring: Keyring | None = None,
        settings: Settings | None = None,
    ) -> None:
        """`lifeguard=False` and no kept `connections` are plain SWIM, for comparison."""
        self.seed = seed
        self.lifeguard = lifeguard
        self.connections = connections
        self.keyring = keyring
        self.settings = replace(settings or Settings(id="unnamed"), gossip_profile=profile)
        self.scheduler = Scheduler()
        self.log = None if log == "none" else EventLog(self.scheduler, keep=log == "lines")
        self.network = Network(self.scheduler, seed, path=path, log=self.log)
        self.rng = random.Random(f"{seed}/world")
        """For what a scenario draws."""
        self.nodes: dict[NodeId, GossipNode] = {}
        """The present or last life of each."""
        self.names: dict[str, tuple[Address, ...]] = {}
        """What seeds that are names resolve to."""
        self.checking = False
        """Check the machine's invariants after each of its events: costs time in proportion to the members."""
        self.deaths: list[Death] = []
        self.false_deaths: dict[tuple[NodeId, int, int], Death] = {}
        """The first word of each: (member, epoch, incarnation) -> who said it."""
        self.refutations: Counter[NodeId] = Counter()
        self.refused: Counter[str] = Counter()
        """Packets that the codec refused, by cause."""
        self.on_death: Callable[[Death], None] | None = None
        self._by_name: dict[Name, GossipNode] = {}
        self._lives = 0
        self._highest: dict[tuple[NodeId, NodeId], tuple[int, int]] = {}

    @property
    def now_s(self) -> float:
        """The virtual second."""
        return self.scheduler.now_s

    def run_until(self, end_s: float) -> None:
        """Let time pass."""
        self.scheduler.run_until(end_s)

    # --- nodes ----------------------------------------------------------------------------------------

    def at(self, name: Name) -> GossipNode | None:
        """Return the life that runs on a host."""
        return self._by_name.get(name)

    def running(self) -> list[GossipNode]:
        """Return every life whose process runs, paused ones included."""
        return [node for node in self.nodes.values() if node.host.process is node]

    def _make(self, node_id: NodeId, join: tuple[str, ...]) -> GossipNode:
        known = self.nodes.get(node_id)
        number = len(self.nodes)
        name = known.host.name if known else f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:7946"
        host = known.host if known else self.network.hosts.get(name) or self.network.add(name)
        self._lives += 1
        self._forget_life(node_id)
        epoch = EPOCH_UNIX_MS + host.skew_ms + int(self.now_s * 1000) + self._lives
        address = name.partition(":")[0]
        member = Member(node_id, f"{address}:8080", name, f"{address}:7947", epoch)
        node = GossipNode(self, host, replace(self.settings, id=node_id, join=join), member)
        self.nodes[node_id] = self._by_name[name] = node
        self.network.run(host, node)
        return node

    def start(self, node_id: NodeId, join: tuple[str, ...] = ()) -> GossipNode:
        """Start a node, or start it again after its end, with a new epoch. It knows its seeds and nobody."""
        node = self._make(node_id, join)
        node.start()
        return node

    def converged_start(self, count: int, join: int = 3) -> list[GossipNode]:
        """Start n1, n2, ... that know each other and hold their connections already; the first few are the seeds."""
        seeds = tuple(f"10.0.0.{number}:7946" for number in range(min(join, count)))
        nodes = [self._make(f"n{number}", seeds) for number in range(1, count + 1)]
        members = [node.swim.member for node in nodes]
        for node in nodes:
            node.assume(members)
        for node in nodes:
            node.start()
        return nodes

    def crash(self, node: GossipNode, kind: CrashKind = "process") -> None:
        """End a node's process; see `Network.crash`."""
        self.network.crash(node.host, kind)

    def leave(self, node: GossipNode) -> None:
        """Let a node take its leave in good order."""
        self.network.record(f"{node.id} leaves")
        node.carry_out(node.swim.leave(node.now()))
        node.stopped = "left"
        self.network.call_at(node.host, self.now_s + LEAVE_LINGER_S, self.network.stop, node.host)

    # --- what they conclude ---------------------------------------------------------------------------

    def condition(self, observer: GossipNode, node_id: NodeId, epoch: int) -> Literal[
        "gone", "running", "paused", "unreachable"
    ]:  # fmt: skip
        """Return how that life really is, as somebody outside sees it."""
        node = self.nodes.get(node_id)
        if node is None or node.host.process is not node or node.stopped or node.swim.member.epoch != epoch:
            return "gone"
        if node.host.paused_since_s is not None:
            return "paused"
        return "running" if self.network.is_open(observer.host, node.host) else "unreachable"

    def noted(self, node: GossipNode, entry: TimelineEntry) -> None:
        """Count what a machine says happened."""
        if self.log is not None:
            self.log.write(f"{node.id} {entry.kind} {entry.member} {entry.detail}")
        if entry.kind == "refuted":
            self.refutations[node.id] += 1
        elif entry.kind == "member-dead":
            record = node.swim.table.members[entry.member]
            epoch, incarnation = record.member.epoch, record.incarnation
            condition = self.condition(node, entry.member, epoch)
            death = Death(self.now_s, node.id, entry.member, epoch, incarnation, condition)
            self.deaths.append(death)
            if condition != "gone":
                self.false_deaths.setdefault((entry.member, epoch, incarnation), death)
            if self.on_death is not None:
                self.on_death(death)

    def check(self, node: GossipNode) -> None:
        """Assert what must hold of a machine after each of its events."""
        swim = node.swim
        swim.check_invariants()
        highest = self._highest
        for node_id, record in swim.table.members.items():
            key, order = (node.id, node_id), (record.member.epoch, record.incarnation)
            assert highest.get(key, order) <= order, f"{node.id}: the incarnation of {node_id} went back to {order}"
            highest[key] = order
        assert len(node.host.inbox) <= 10_000

    def _forget_life(self, node_id: NodeId) -> None:
        """A new life knows nothing: its own highest incarnations begin anew."""
        for key in [key for key in self._highest if key[0] == node_id]:
            del self._highest[key]

    def disagreements(self) -> list[str]:
        """Return a sentence for each running node whose live members are not exactly the lives that run."""
        running = self.running()
        expected = {node.id: node.swim.member.epoch for node in running}
        sentences = []
        for node in running:
            seen = {record.member.id: record.member.epoch for record in node.swim.table.live}
            seen[node.id] = node.swim.member.epoch
            if seen != expected:
                missing = [node_id for node_id in expected if node_id not in seen]
                extra = [node_id for node_id in seen if node_id not in expected]
                old = [node_id for node_id in seen if expected.get(node_id, seen[node_id]) != seen[node_id]]
                parts = (("misses", missing), ("still has", extra), ("has an earlier life of", old))
                sentences.append(f"{node.id} " + ", ".join(f"{what} {','.join(ids)}" for what, ids in parts if ids))
        return sentences

    def detection(self, member: Member, since_s: float, observers: Iterable[GossipNode]) -> Detection:
        """Return how long after its end these observers called a life dead."""
        times_s: dict[NodeId, float] = {}
        for death in self.deaths:
            if (death.member, death.epoch) == (member.id, member.epoch) and death.at_s >= since_s:
                times_s.setdefault(death.observer, death.at_s - since_s)
        known_s = sorted(times_s.get(node.id, math.inf) for node in observers)
        return Detection(known_s[0], known_s[(len(known_s) - 1) // 2], known_s[-1])


class Detection(NamedTuple):
    """How long a death took to be known to the first, to half and to all; infinite: it was not."""

    first_s: float
    half_s: float
    all_s: float
