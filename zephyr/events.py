"""The catalogue: every event that goes into the core and every effect that comes out of it.

Events are in the past tense, effects in the imperative. Both are plain values. What etcd and the
network say arrives raw: its meaning is decided in the core, so adapters translate and decide nothing.
The request path does not appear here but for `SendPeer` and `CompleteRequest`: it goes through typed
methods of `zephyr.node.Node`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from zephyr.gossip.messages import Packet
from zephyr.model import Address, ClusterView, Explanation, Member, NodeId, Outcome, ScanPage, TimelineEntry

CONTROL_CALL_ID_MIN = 1 << 62
"""Calls of the control plane are numbered from here on: their ends are events, those of requests typed calls."""

# --- events: the shell ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The shell's sockets are bound and effects can be carried out. The first event, exactly once."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """`Node.deadline()` has passed. Harmless when early."""


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """Somebody asked this node to leave in good order."""


@dataclass(frozen=True, slots=True)
class EvictionRequested:
    """An operator wants a member out of etcd, whatever gossip says; `Node.eviction_objection` had none."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class HoldReleaseRequested:
    """An operator takes etcd's word for it: the held ring is let go. Nothing happens where none is held."""


# --- events: etcd -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key of etcd as it stands."""

    key: bytes
    value: bytes
    mod_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One change of one key. A deletion carries no value."""

    key: bytes
    value: bytes | None
    mod_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class EtcdSnapshotRead:
    """A linearizable listing of the cluster's keys arrived: everything, as of `revision`."""

    revision: int
    pairs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class EtcdKeysChecked:
    """The linearizable check arrived: which keys exist as of `revision`, and when each last changed."""

    revision: int
    keys: tuple[tuple[bytes, int], ...]
    """(key, mod_revision), sorted by key."""


@dataclass(frozen=True, slots=True)
class EtcdWatched:
    """The watch delivered all changes of one revision."""

    watch_id: int
    revision: int
    changes: tuple[KeyChange, ...]


@dataclass(frozen=True, slots=True)
class EtcdWatchEnded:
    """The watch is over: the stream broke, or its start revision was compacted."""

    watch_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """etcd granted a lease."""

    lease_id: int
    ttl_s: int
    sent_s: float
    """Monotonic seconds at which the request was sent: the lease lives at least until this + ttl."""


@dataclass(frozen=True, slots=True)
class LeaseKeptAlive:
    """etcd answered a keep-alive. A `ttl_s` of 0 means that it knows no such lease."""

    lease_id: int
    ttl_s: int
    sent_s: float


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    """etcd ended a lease, and every key under it, because we asked."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class EtcdTransactionDone:
    """A `TransactKey` was decided: applied at `revision`, or refused because the key had changed."""

    tag: str
    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class EtcdCallFailed:
    """A call got no answer or an error."""

    effect: EtcdEffect
    reason: str
    definite: bool
    """etcd itself answered, so the call had no effect."""


# --- events: peers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IdentityProbed:
    """A `ProbeIdentity` ended: who answered there, or nobody (then `reason` says why)."""

    address: Address
    member: Member | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """The kept connection to a member is up and it said who it is."""

    member: Member


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The kept connection to a member ended or could not be made."""

    node_id: NodeId
    reason: str
    is_goodbye: bool = False
    """One of the two sides ended it on purpose and said so."""


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """After the kept connection to a member ended without a goodbye, an attempt to make it again was refused."""

    node_id: NodeId
    epoch: int
    """Boot epoch of the life that the ended connection led to."""


@dataclass(frozen=True, slots=True)
class PeerAnswered:
    """A peer answered a `SendPeer` of the control plane (`CONTROL_CALL_ID_MIN`)."""

    call_id: int
    status: int
    payload: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class PeerCallFailed:
    """A `SendPeer` of the control plane got no answer."""

    call_id: int
    reason: str


# --- events: gossip ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """An authentic packet arrived by UDP, or over an open peer connection."""

    source: Address
    """Where answers go; empty when it came over a peer connection."""
    packet: Packet


@dataclass(frozen=True, slots=True)
class StreamReceived:
    """An authentic packet arrived over a gossip stream, whose other side waits for a `ReplyStream`."""

    stream_id: int
    packet: Packet


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """An `OpenStream` was answered."""

    stream_id: int
    packet: Packet


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """An `OpenStream` got no answer within its deadline, or none that is authentic."""

    stream_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class SeedsResolved:
    """A `ResolveSeeds` ended: gossip addresses, in the seeds' order, without repetitions."""

    addresses: tuple[Address, ...]
    failures: tuple[str, ...]
    """One sentence for each seed that gave no address."""


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """The event loop ran a task this much later than asked."""

    lag_s: float


EtcdEvent: TypeAlias = (
    EtcdSnapshotRead
    | EtcdKeysChecked
    | EtcdWatched
    | EtcdWatchEnded
    | LeaseGranted
    | LeaseKeptAlive
    | LeaseRevoked
    | EtcdTransactionDone
    | EtcdCallFailed
)
PeerEvent: TypeAlias = IdentityProbed | PeerConnected | PeerDisconnected | PeerRefused | PeerAnswered | PeerCallFailed
OperatorEvent: TypeAlias = EvictionRequested | HoldReleaseRequested
GossipEvent: TypeAlias = DatagramReceived | StreamReceived | StreamReplied | StreamFailed | SeedsResolved | LoopLagged
Event: TypeAlias = Started | TimerFired | LeaveRequested | OperatorEvent | EtcdEvent | PeerEvent | GossipEvent

# --- effects: etcd ----------------------------------------------------------------------------------
# Each is one call with a deadline (`Settings.etcd_timeout`), and is answered by exactly one event:
# its own, or EtcdCallFailed. The watch is answered by a stream of EtcdWatched and one EtcdWatchEnded.


@dataclass(frozen=True, slots=True)
class ReadSnapshot:
    """List every key of the cluster, linearizably -> EtcdSnapshotRead."""


@dataclass(frozen=True, slots=True)
class CheckKeys:
    """List every key of the cluster without values, linearizably -> EtcdKeysChecked."""


@dataclass(frozen=True, slots=True)
class WatchKeys:
    """Watch every key of the cluster from `revision` on; ends any earlier watch without an event."""

    watch_id: int
    revision: int


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Ask for a lease -> LeaseGranted."""

    ttl_s: int


@dataclass(frozen=True, slots=True)
class KeepLeaseAlive:
    """Renew a lease -> LeaseKeptAlive."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class RevokeLease:
    """End a lease and its keys -> LeaseRevoked."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class TransactKey:
    """Put `key` if its mod_revision is still `expected_mod_revision` (0: it must not exist) -> EtcdTransactionDone."""

    tag: str
    key: bytes
    value: bytes
    lease_id: int
    """0: no lease."""
    expected_mod_revision: int


@dataclass(frozen=True, slots=True)
class EvictMember:
    """Delete the registration `key` and put `mark_key` in one transaction -> EtcdTransactionDone.

    Refused unless the registration's mod_revision is still `expected_mod_revision`, so that a new life is not hit.
    """

    tag: str
    key: bytes
    expected_mod_revision: int
    mark_key: bytes
    mark: bytes
    lease_id: int
    """Of the mark: the proposer's own."""


EtcdEffect: TypeAlias = (
    ReadSnapshot | CheckKeys | WatchKeys | GrantLease | KeepLeaseAlive | RevokeLease | TransactKey | EvictMember
)

# --- effects: peers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbeIdentity:
    """Connect to a peer address once, ask who is there, hang up -> IdentityProbed."""

    address: Address


@dataclass(frozen=True, slots=True)
class SetPeers:
    """These are the members to hold connections to, this node left out. Replaces the earlier set."""

    members: tuple[Member, ...]


@dataclass(slots=True)
class SendPeer:
    """Send one request to a peer; its end comes back through `Node.peer_replied` or `Node.peer_failed`."""

    node_id: NodeId
    call_id: int
    operation: int
    """One of `zephyr.peer.wire.Operation`."""
    arguments: tuple[Any, ...]
    """msgpack values, bytes mostly."""
    deadline_s: float
    """Monotonic seconds after which the answer is of no use."""


@dataclass(slots=True)
class CompleteRequest:
    """Answer the client whose request has this id."""

    request_id: int
    outcome: Outcome


@dataclass(slots=True)
class CompleteSurvey:
    """Answer the client whose listing, or explanation, has this id."""

    request_id: int
    result: ScanPage | Explanation


# --- effects: gossip --------------------------------------------------------------------------------
# Messages are encoded already (`zephyr.gossip.wire.encode_message`); together they fit into one packet.


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send one packet by UDP."""

    address: Address
    messages: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SendNews:
    """Send one packet to each of these members whose peer connection is open; skip the others."""

    node_ids: tuple[NodeId, ...]
    messages: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Connect to a gossip address by TCP, send one packet, read one -> StreamReplied or StreamFailed."""

    stream_id: int
    address: Address
    messages: tuple[bytes, ...]
    timeout_s: float
    """For all of it."""


@dataclass(frozen=True, slots=True)
class ReplyStream:
    """Answer a `StreamReceived`, if its other side still waits."""

    stream_id: int
    messages: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ResolveSeeds:
    """Turn seeds (HOST:PORT, dns:NAME:PORT, srv:NAME) into gossip addresses -> SeedsResolved."""

    seeds: tuple[str, ...]


# --- effects: people --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishView:
    """The cluster view changed."""

    view: ClusterView


@dataclass(frozen=True, slots=True)
class Note:
    """Log this. It stands on the timeline already."""

    entry: TimelineEntry


@dataclass(frozen=True, slots=True)
class Stop:
    """End the program: it left (0), or cannot go on (not 0)."""

    exit_code: int
    reason: str


PeerEffect: TypeAlias = ProbeIdentity | SetPeers | SendPeer
GossipEffect: TypeAlias = SendDatagram | SendNews | OpenStream | ReplyStream | ResolveSeeds
Effect: TypeAlias = (
    EtcdEffect | PeerEffect | GossipEffect | CompleteRequest | CompleteSurvey | PublishView | Note | Stop
)
