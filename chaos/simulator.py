"""Many real `Node`s in one process, in virtual time, with a simulated network and a modelled etcd.

The nodes are the product's own core; what stands in for the world is the clock, the network and etcd
(`chaos.etcd_model`). Everything random comes from one seed, and nothing depends on hash order or the wall
clock, so the same seed gives the same event log to the byte. A run of a minute takes a fraction of a second.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.etcd_model import EtcdModel
from zephyr.config import Settings
from zephyr.events import (
    CONTROL_CALL_ID_MIN,
    CompleteRequest,
    CompleteSurvey,
    DatagramReceived,
    Effect,
    EtcdCallFailed,
    EtcdEffect,
    EtcdEvent,
    EtcdWatched,
    EtcdWatchEnded,
    Event,
    EvictMember,
    GossipEffect,
    IdentityProbed,
    LeaveRequested,
    Note,
    OpenStream,
    PeerAnswered,
    PeerCallFailed,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    ProbeIdentity,
    PublishView,
    ReplyStream,
    ResolveSeeds,
    SeedsResolved,
    SendDatagram,
    SendNews,
    SendPeer,
    SetPeers,
    Started,
    Stop,
    StreamFailed,
    StreamReceived,
    StreamReplied,
    TimerFired,
    WatchKeys,
)
from zephyr.gossip.wire import Envelope
from zephyr.model import (
    Explanation,
    Instant,
    Member,
    NodeId,
    Outcome,
    ReadRequest,
    Request,
    ScanPage,
    ScanRequest,
    UpdateRequest,
    WriteRequest,
)
from zephyr.node import Node
from zephyr.peer.wire import Status
from zephyr.replication.coordinator import Pending
from zephyr.replication.update import encode_outcome

EPOCH_UNIX_MS = 1_700_000_000_000
"""Unix ms at virtual second 0."""
RECONNECT_S = 0.5
"""How often a node looks after the connections that are down."""
TIMER_STEP_S = 1e-6
"""Least advance between two timer calls of a node: a deadline of *now* takes some time too."""


@dataclass
class SimulatedNode:
    """One life of one node and what the shell would keep for it."""

    node: Node
    address: str
    envelope: Envelope
    peers: tuple[Member, ...] = ()
    connected: dict[NodeId, int] = field(default_factory=dict)
    """Peers with a standing connection -> the epoch it was made to."""
    streams: dict[int, Callable[[tuple[bytes, ...]], None]] = field(default_factory=dict)
    """Gossip streams that wait for this node's answer."""
    forwarded: dict[int, Callable[[Outcome], None]] = field(default_factory=dict)
    """Requests that peers sent here -> how to answer them."""
    timer_s: float = float("inf")
    watch_id: int = 0
    stopped: str = ""
    """Why this life ended by itself; empty while it runs."""
    etcd_line_s: float = 0.0
    """Arrival of the last watch event: a stream keeps its order."""
    resumes_s: float = 0.0
    """Virtual second until which the process is stopped; what comes meanwhile waits."""


class Simulation:
    """The world. Faults are switched on and off by its attributes and methods; `run_until` lets time pass."""

    def __init__(self, seed: int, *, settings: Settings) -> None:
        self.rng = random.Random(seed)
        self.settings = settings
        self.seed = seed
        self.now_s = 0.0
        self.log: list[str] = []
        self.nodes: dict[NodeId, SimulatedNode] = {}
        self.etcd = EtcdModel()
        self.etcd_up = True
        self.cut_from_etcd: dict[NodeId, bool] = {}
        self.cuts: dict[tuple[NodeId, NodeId], bool] = {}
        """Pairs (from, to) whose packets vanish."""
        self.udp_blocked: dict[NodeId, bool] = {}
        """Nodes from and to which datagrams vanish; TCP passes."""
        self.loss = 0.0
        """Share of peer messages that vanish."""
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        """(address of the life that was asked, request id) -> how its request ended."""
        self.surveys: dict[tuple[str, int], ScanPage | Explanation] = {}
        """The same of listings and explanations."""
        self._lives = 0
        self._streams = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    # --- time -----------------------------------------------------------------------------------------

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        """Do something at a virtual second."""
        self._sequence += 1
        heapq.heappush(self._queue, (max(at_s, self.now_s), self._sequence, action))

    def run_until(self, end_s: float) -> None:
        """Let time pass, checking every node's invariants after each of its events."""
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, action = heapq.heappop(self._queue)
            action()
        self.now_s = end_s

    def instant(self) -> Instant:
        """Return both clocks."""
        return Instant(self.now_s, EPOCH_UNIX_MS + int(self.now_s * 1000))

    def record(self, who: str, what: str) -> None:
        """Write one line of the event log."""
        self.log.append(f"{self.now_s:.6f} {who} {what}")

    def _latency_s(self) -> float:
        return self.rng.uniform(0.0002, 0.005)

    # --- nodes ----------------------------------------------------------------------------------------

    def start(self, node_id: NodeId) -> None:
        """Start a node, or start it again after a crash: empty, with a new epoch."""
        self._lives += 1
        number = self._lives
        address = f"{node_id}:{number}"
        now = self.instant()
        member = Member(node_id, f"{node_id}:80", f"{node_id}:79", address, now.unix_ms + number)
        settings = self.settings_of(node_id)
        rng = random.Random(f"{self.seed}/{node_id}/{number}")
        envelope = Envelope(settings.cluster, node_id, None, rng.randbytes)
        simulated = SimulatedNode(Node(settings, member, rng, now), address, envelope)
        self.nodes[node_id] = simulated
        self.record(node_id, f"started epoch={member.epoch}")
        self._handle(simulated, Started())
        self.at(self.now_s + RECONNECT_S, lambda: self._look_after_connections(simulated))

    def settings_of(self, node_id: NodeId) -> Settings:
        """Return the settings of a node: the cluster's, with its id."""
        names = {name: getattr(self.settings, name) for name in Settings.__slots__}
        return Settings(**{**names, "id": node_id})

    def crash(self, node_id: NodeId) -> None:
        """End a node as kill -9 would: its connections end, its lease stays."""
        self.nodes.pop(node_id).stopped = "crashed"
        self.etcd.watchers.pop(node_id, None)
        self.record(node_id, "crashed")
        for other in list(self.nodes.values()):
            epoch = other.connected.pop(node_id, None)
            if epoch is not None:
                self._handle(other, PeerDisconnected(node_id, "connection ended"))
                self._handle(other, PeerRefused(node_id, epoch))

    def pause(self, node_id: NodeId, duration_s: float) -> None:
        """Stop a node as SIGSTOP would, and let it go on."""
        self.nodes[node_id].resumes_s = self.now_s + duration_s
        self.record(node_id, f"paused for {duration_s:.1f} s")

    def _is_paused(self, simulated: SimulatedNode, action: Callable[[], None], after_s: float = 0.0) -> bool:
        """Whether a node does not run; the action is then done when it goes on, in the order of arrival."""
        if self.now_s >= simulated.resumes_s:
            return False
        self.at(simulated.resumes_s + after_s, action)
        return True

    def leave(self, node_id: NodeId) -> None:
        """Ask a node to leave in good order."""
        self._handle(self.nodes[node_id], LeaveRequested())

    def submit(self, node_id: NodeId, request: Request | ScanRequest) -> Outcome | tuple[str, int]:
        """Hand a client's request to a node: its outcome, or the key under which `outcomes` will hold it.

        A listing ends in `surveys`.
        """
        simulated = self.nodes[node_id]
        node, now = simulated.node, self.instant()
        match request:
            case ReadRequest():
                result = node.begin_read(request, now)
            case WriteRequest():
                result = node.begin_write(request, now)
            case UpdateRequest():
                result = node.begin_update(request, now)
            case ScanRequest():
                result = node.begin_scan(request, now)
        if isinstance(result, Outcome):
            return result
        self._carry_out(simulated, result.effects)
        self._arm(simulated)
        return simulated.address, result.request_id

    def _handle(self, simulated: SimulatedNode, event: Event) -> None:
        if not simulated.stopped and not self._is_paused(simulated, lambda: self._handle(simulated, event)):
            self._carry_out(simulated, simulated.node.handle(event, self.instant()))
            simulated.node.check_invariants()
            self._arm(simulated)

    def _arm(self, simulated: SimulatedNode) -> None:
        """One timer a node, moved to its deadline."""
        deadline_s = max(simulated.node.deadline(), self.now_s + TIMER_STEP_S)
        if deadline_s < simulated.timer_s:
            simulated.timer_s = deadline_s
            self.at(deadline_s, lambda: self._fire(simulated, deadline_s))

    def _fire(self, simulated: SimulatedNode, deadline_s: float) -> None:
        # The shell drains what has arrived before a timer fires.
        if self._is_paused(simulated, lambda: self._fire(simulated, deadline_s), TIMER_STEP_S):
            return
        if simulated.timer_s == deadline_s:
            simulated.timer_s = float("inf")
            self._handle(simulated, TimerFired())

    # --- effects --------------------------------------------------------------------------------------

    def _carry_out(self, simulated: SimulatedNode, effects: list[Effect]) -> None:
        node_id = simulated.node.settings.id
        for effect in effects:
            match effect:
                case SendPeer():
                    self._send(simulated, effect)
                case CompleteRequest() | CompleteSurvey():
                    self._complete(simulated, effect)
                case SetPeers(members):
                    simulated.peers = members
                    self.at(self.now_s, lambda: self._connect_all(simulated))
                case ProbeIdentity(address):
                    self._probe(simulated, address)
                case PublishView(view):
                    self.record(node_id, f"view {view.authority} {view.digest.hex()} {','.join(view.owners)}")
                case Note(entry):
                    self.record(node_id, f"note {entry.kind} {entry.member} {entry.detail}")
                case Stop(exit_code, reason):
                    self.record(node_id, f"stopped {exit_code} {reason}")
                    simulated.stopped = reason
                case SendDatagram() | SendNews() | OpenStream() | ReplyStream() | ResolveSeeds():
                    self._gossip(simulated, effect)
                case _:
                    self._call_etcd(simulated, effect)

    def _complete(self, simulated: SimulatedNode, effect: CompleteRequest | CompleteSurvey) -> None:
        """Keep the end of a client's request, or answer the peer that sent it here."""
        match effect:
            case CompleteRequest(request_id, outcome) if request_id in simulated.forwarded:
                simulated.forwarded.pop(request_id)(outcome)
            case CompleteRequest(request_id, outcome):
                self.outcomes[simulated.address, request_id] = outcome
            case CompleteSurvey(request_id, result):
                self.surveys[simulated.address, request_id] = result

    def _call_etcd(self, simulated: SimulatedNode, effect: EtcdEffect) -> None:
        """Each way takes a latency; an etcd that cannot be reached fails the call at its deadline."""
        node_id, sent_s = simulated.node.settings.id, self.now_s
        if isinstance(effect, EvictMember):
            _check_proposal(simulated.node, effect)
        if isinstance(effect, WatchKeys):
            simulated.watch_id = effect.watch_id
            self.etcd.watchers.pop(node_id, None)

        def deliver(event: EtcdEvent) -> None:
            if not isinstance(event, EtcdWatched):  # Only the watch is a stream with an order of its own.
                self.at(self.now_s + self._latency_s(), lambda: self._handle(simulated, event))
                return
            simulated.etcd_line_s = max(simulated.etcd_line_s, self.now_s + self._latency_s())
            self.at(simulated.etcd_line_s, lambda: self._handle(simulated, event))

        def arrive() -> None:
            if simulated.stopped or (isinstance(effect, WatchKeys) and effect.watch_id != simulated.watch_id):
                return  # A watch that was given up before it began.
            if self.etcd_reachable(node_id):
                answer = self.etcd.execute(node_id, effect, sent_s, self.now_s, deliver)
                if answer is not None:
                    deliver(answer)
            elif isinstance(effect, WatchKeys):
                deliver(EtcdWatchEnded(effect.watch_id, "etcd is unreachable"))
            else:
                failure = EtcdCallFailed(effect, "etcd is unreachable", definite=False)
                self.at(sent_s + self.settings.etcd_timeout, lambda: self._handle(simulated, failure))

        self.at(self.now_s + self._latency_s(), arrive)

    def etcd_reachable(self, node_id: NodeId) -> bool:
        """Whether a call of this node reaches etcd now."""
        return self.etcd_up and node_id not in self.cut_from_etcd

    def break_watches(self) -> None:
        """End the streams of every node that etcd no longer reaches."""
        for node_id, simulated in list(self.nodes.items()):
            if not self.etcd_reachable(node_id) and node_id in self.etcd.watchers:
                del self.etcd.watchers[node_id]
                self._handle(simulated, EtcdWatchEnded(simulated.watch_id, "stream ended"))

    def tick_etcd(self, period_s: float, end_s: float) -> None:
        """Let leases end while etcd is up, as a clock of its own."""
        if self.etcd_up:
            self.etcd.expire(self.now_s)
        if self.now_s < end_s:
            self.at(self.now_s + period_s, lambda: self.tick_etcd(period_s, end_s))

    # --- gossip ---------------------------------------------------------------------------------------

    def _gossip(self, simulated: SimulatedNode, effect: GossipEffect) -> None:
        match effect:
            case SendDatagram(address, messages):
                self._send_packet(simulated, address.partition(":")[0], messages, simulated.node.member.gossip)
            case SendNews(node_ids, messages):
                for receiver in node_ids:
                    if receiver in simulated.connected:
                        self._send_packet(simulated, receiver, messages, "")
            case OpenStream():
                self._open_stream(simulated, effect)
            case ReplyStream(stream_id, messages):
                simulated.streams.pop(stream_id)(messages)
            case ResolveSeeds(seeds):
                self.at(self.now_s + self._latency_s(), lambda: self._handle(simulated, SeedsResolved(seeds, ())))

    def _send_packet(self, sender: SimulatedNode, receiver: NodeId, messages: tuple[bytes, ...], source: str) -> None:
        """Seal a packet, and have whoever runs at the other end by then open it."""
        me = sender.node.settings.id
        is_blocked = source and (me in self.udp_blocked or receiver in self.udp_blocked)
        if is_blocked or not self._passes(me, receiver):
            return
        packet = sender.envelope.seal(messages, sender.node.member.epoch)

        def arrive() -> None:
            target = self.nodes.get(receiver)
            if target is None or target.stopped or self._is_paused(target, arrive):
                return
            self._handle(target, DatagramReceived(source, target.envelope.open(packet)))

        self.at(self.now_s + self._latency_s(), arrive)

    def _open_stream(self, sender: SimulatedNode, effect: OpenStream) -> None:
        """Ask and answer, each after a latency; silence ends at the stream's deadline."""
        me, receiver = sender.node.settings.id, effect.address.partition(":")[0]
        packet = sender.envelope.seal_stream(effect.messages, sender.node.member.epoch)
        outcome: list[StreamReplied] = []

        def end() -> None:
            if not outcome:
                self._handle(sender, StreamFailed(effect.stream_id, "silent"))

        def arrive() -> None:
            target = self.nodes.get(receiver)
            if target is None or target.stopped or self._is_paused(target, arrive):
                return

            def reply(messages: tuple[bytes, ...]) -> None:
                answer = target.envelope.seal_stream(messages, target.node.member.epoch)
                if self._passes(receiver, me):
                    self.at(self.now_s + self._latency_s(), lambda: receive(answer))

            self._streams += 1
            target.streams[self._streams] = reply
            self._handle(target, StreamReceived(self._streams, target.envelope.open_stream(packet)))

        def receive(answer: bytes) -> None:
            if not outcome and not sender.stopped and not self._is_paused(sender, lambda: receive(answer)):
                outcome.append(StreamReplied(effect.stream_id, sender.envelope.open_stream(answer)))
                self._handle(sender, outcome[0])

        self.at(self.now_s + effect.timeout_s, end)
        if self._passes(me, receiver):
            self.at(self.now_s + 2 * self._latency_s(), arrive)

    # --- peers ----------------------------------------------------------------------------------------

    def _passes(self, sender: NodeId, receiver: NodeId) -> bool:
        lost = self.loss > 0 and self.rng.random() < self.loss
        return not lost and (sender, receiver) not in self.cuts

    def _send(self, caller: SimulatedNode, effect: SendPeer) -> None:
        self.at(self.now_s, lambda: self._depart(caller, effect))  # After the connections that were asked for.

    def _depart(self, caller: SimulatedNode, effect: SendPeer) -> None:
        if effect.node_id not in caller.connected:
            if caller.stopped:
                return
            if effect.call_id >= CONTROL_CALL_ID_MIN:
                self._handle(caller, PeerCallFailed(effect.call_id, "no connection"))
                return
            failed = caller.node.peer_failed(effect.call_id, "no connection", self.instant(), sent=False)
            self._carry_out(caller, failed)
        elif self._passes(caller.node.settings.id, effect.node_id):
            self.at(self.now_s + self._latency_s(), lambda: self._arrive(caller, effect))

    def _arrive(self, caller: SimulatedNode, effect: SendPeer) -> None:
        target = self.nodes.get(effect.node_id)
        if target is None or target.stopped or self._is_paused(target, lambda: self._arrive(caller, effect)):
            return
        digest, now = caller.node.view.digest, self.instant()
        reply = target.node.serve_peer(effect.operation, effect.arguments, digest, now)
        if isinstance(reply, Pending):
            # Answered when the request that it began has ended.
            target.forwarded[reply.request_id] = lambda outcome: self._answer(
                caller, effect, (Status.OK, encode_outcome(outcome))
            )
            self._carry_out(target, reply.effects)
        else:
            self._answer(caller, effect, reply)
        self._arm(target)

    def _answer(self, caller: SimulatedNode, effect: SendPeer, reply: tuple[int, tuple[object, ...]]) -> None:
        if self._passes(effect.node_id, caller.node.settings.id):
            self.at(self.now_s + self._latency_s(), lambda: self._return(caller, effect.call_id, reply))

    def _return(self, caller: SimulatedNode, call_id: int, reply: tuple[int, tuple[object, ...]]) -> None:
        if caller.stopped or self._is_paused(caller, lambda: self._return(caller, call_id, reply)):
            return
        if call_id >= CONTROL_CALL_ID_MIN:
            self._handle(caller, PeerAnswered(call_id, *reply))
            return
        self._carry_out(caller, caller.node.peer_replied(call_id, *reply, self.instant()))
        self._arm(caller)

    def _look_after_connections(self, simulated: SimulatedNode) -> None:
        if not simulated.stopped:
            if self.now_s >= simulated.resumes_s:
                self._connect_all(simulated)
            self.at(self.now_s + RECONNECT_S, lambda: self._look_after_connections(simulated))

    def _connect_all(self, simulated: SimulatedNode) -> None:
        """Make the connections that can be made; a cut one stays until somebody ends it."""
        me = simulated.node.settings.id
        for peer in simulated.peers:
            target = self.nodes.get(peer.id)
            standing = simulated.connected.get(peer.id)
            if target is None or target.stopped or target.address != peer.peer:
                if simulated.connected.pop(peer.id, None) is not None:
                    self._handle(simulated, PeerDisconnected(peer.id, "connection ended"))
            elif standing is None and (me, peer.id) not in self.cuts and (peer.id, me) not in self.cuts:
                simulated.connected[peer.id] = target.node.member.epoch
                self._handle(simulated, PeerConnected(target.node.member))

    def _probe(self, simulated: SimulatedNode, address: str) -> None:
        def answer() -> None:
            here = [
                item
                for item in self.nodes.values()
                if item.address == address and not item.stopped and self.now_s >= item.resumes_s
            ]
            member = here[0].node.member if here else None
            self._handle(simulated, IdentityProbed(address, member, "" if member else "refused"))

        self.at(self.now_s + 2 * self._latency_s(), answer)


def _check_proposal(node: Node, effect: EvictMember) -> None:
    """A minority proposes nothing, and nobody whom gossip hears is proposed, but by an operator or who removed it."""
    assert node.etcd is not None
    states = {item: record.state for item, record in node.swim.table.members.items()}
    states[node.settings.id] = "alive"
    registered = list(node.etcd.registrations)
    heard = sum(states.get(item) == "alive" for item in registered)
    if b"operator" not in effect.mark:
        assert 2 * heard > len(registered), f"{node.settings.id} proposes for a minority: {heard} of {len(registered)}"
        subject = effect.key.rpartition(b"/")[2].decode()
        is_removed = b"removed while etcd was away" in effect.mark
        assert is_removed or states.get(subject) != "alive", f"{node.settings.id} proposes {subject}, which it hears"
