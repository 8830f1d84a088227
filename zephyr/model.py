"""The nouns of the system: small immutable values that every layer shares.

Nothing here decides anything. Times are never fetched: an `Instant` is handed in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

NodeId: TypeAlias = str
"""Matches `[A-Za-z0-9._-]{1,64}`; see `zephyr.config.NODE_ID_PATTERN`."""

Address: TypeAlias = str
"""`host:port`; an IPv6 host stands in brackets."""

Version: TypeAlias = bytes
"""16 bytes that compare as the versions do: hybrid logical clock, then the writer's tag (`zephyr.store.record`)."""

MemberState: TypeAlias = Literal["joining", "serving", "leaving"]
Authority: TypeAlias = Literal["both", "etcd", "gossip", "relayed", "held", "none"]
EtcdState: TypeAlias = Literal["connected", "relayed", "unreachable", "off"]
EtcdWitness: TypeAlias = Literal["registered", "absent", "unreachable", "off"]
GossipWitness: TypeAlias = Literal["alive", "suspect", "dead", "left", "unknown"]

PROTOCOL_MIN = 1
"""Oldest peer protocol this program speaks."""
PROTOCOL_MAX = 1
"""Newest peer protocol this program speaks."""


class Instant(NamedTuple):
    """The only clock value in the core: one reading of both clocks, taken by the shell."""

    monotonic_s: float
    """Seconds of a clock that never steps: all time-outs."""
    unix_ms: int
    """Milliseconds since 1970, UTC: versions and TTL deadlines."""


@dataclass(frozen=True, slots=True)
class Member:
    """One life of one node, as it announces itself."""

    id: NodeId
    http: Address
    gossip: Address
    peer: Address
    epoch: int
    """Boot epoch, unix ms at least: orders two lives of one id."""
    weight: float = 1.0
    zone: str = ""
    state: MemberState = "serving"
    protocol: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX)


@dataclass(frozen=True, slots=True)
class Registration:
    """A member as etcd holds it."""

    member: Member
    mod_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class CommittedView:
    """What etcd has registered, as somebody read it last."""

    generation: int
    revision: int
    """(generation, revision) orders views: a wiped etcd begins at revision 1 again."""
    settings: tuple[int, int, int]
    """(replicas, virtual nodes, hash version) of the cluster."""
    registrations: tuple[Registration, ...]
    departed: tuple[tuple[NodeId, str], ...]
    """How members that are gone lately went: `left`, `evicted` or `expired`."""


@dataclass(frozen=True, slots=True)
class MemberView:
    """One row of a cluster view: what each witness says of a member, and what follows."""

    member: Member
    gossip: GossipWitness
    gossip_since_s: float | None
    """Monotonic seconds at which `gossip` took its value; None while it is unknown."""
    incarnation: int
    """What gossip last heard of this life; 0 while it is unknown."""
    etcd: EtcdWitness
    etcd_revision: int
    etcd_since_s: float
    """Monotonic seconds at which `etcd` took its value."""
    in_ring: bool
    routable: bool
    verdict: str
    reason: str
    """One sentence for a person, with `{gossip_age}` and `{etcd_age}` where durations go: see `told`."""

    def told(self, now: Instant) -> str:
        """Return the sentence as it reads now."""
        gossip_s = self.etcd_since_s if self.gossip_since_s is None else self.gossip_since_s
        ages = {"gossip_age": now.monotonic_s - gossip_s, "etcd_age": now.monotonic_s - self.etcd_since_s}
        return self.reason.format(**{name: f"{max(0.0, age_s):.1f} s" for name, age_s in ages.items()})


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """How this node stands with etcd."""

    state: EtcdState
    revision: int
    lease_deadline_s: float | None
    """Monotonic seconds until which the lease is known to live; None without a lease."""
    reason: str
    """Why it is unreachable, or what it waits for; empty when all is well."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What this node believes about the cluster at one moment."""

    authority: Authority
    authority_since_s: float
    etcd: EtcdStatus
    generation: int
    """Unix ms of the writing of the cluster's settings: orders views across a wiped etcd."""
    revision: int
    digest: bytes
    """8 bytes that identify the ring: equal digests, equal owners."""
    members: tuple[MemberView, ...]
    """Sorted by id."""
    owners: tuple[NodeId, ...]
    """Ids of the ring's members, sorted."""
    committed_count: int = 0
    """Members of the last committed ring: where gossip leads, more than there are in the ring now."""


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """Something that happened, for people: shown at /debug/timeline and logged."""

    at_unix_ms: int
    kind: str
    member: NodeId
    source: Literal["gossip", "etcd", "ring", "repair", "authority", "node"]
    detail: str


class Failure(enum.Enum):
    """Why a request did not succeed. Values are the stable last part of the problem type."""

    UNAVAILABLE = "unavailable"
    """Too few replicas can be reached; nothing was applied anywhere."""
    UNKNOWN = "outcome-unknown"
    """The deadline passed after something was sent; it may or may not have been applied."""
    TOO_LARGE = "memory-bound"
    """The item is larger than the memory bound; nothing was evicted."""
    OVERLOADED = "overloaded"
    """A bounded queue is full; nothing was done."""
    CLOCK_SKEW = "clock-skew"
    """A replica refused the stamp as too far ahead of its clock; nothing was applied."""
    PRECONDITION = "precondition-failed"
    """What stands does not meet the condition; nothing was applied."""
    CONFLICT = "conflict"
    """Another write won between the look at what stands and the change."""
    NOT_A_NUMBER = "not-a-number"
    """The value to be counted up is no integer of 64 bits, or would leave them; nothing was applied."""
    ABSENT = "not-found"
    """What was to be changed is not there; nothing was applied."""


@dataclass(slots=True)
class Outcome:
    """The end of one client request. Not frozen: built on the request path."""

    failure: Failure | None = None
    detail: str = ""
    record: bytes | None = None
    """Reads: the packed live record, or None when the key is absent."""
    version: Version = b""
    """Writes: the version written."""
    existed: bool = False
    """Writes: a live value stood there before, on some replica that answered."""
    answered: int = 1
    """Replicas that answered by the time the outcome was made."""
    asked: int = 1
    """Replicas that were asked."""
    is_unconfirmed: bool = False
    """Answered by a replica that could not make sure that it still is one."""
    hinted: tuple[NodeId, ...] = ()
    """Writes: owners that had not taken the record by then, and for which it is kept until they are back."""


@dataclass(slots=True)
class ReadRequest:
    """A client's read of one key, understood and within bounds."""

    key: bytes
    quorum: str | None = None
    """`1`, `quorum`, `all` or a number; None: the cluster's."""
    timeout_s: float | None = None
    """None: the cluster's."""


@dataclass(slots=True)
class WriteRequest:
    """A client's write or deletion of one key, understood and within bounds."""

    key: bytes
    value: bytes | None
    """None deletes."""
    content_type: bytes = b""
    """Empty: application/octet-stream."""
    ttl_ms: int | None = None
    """None: no deadline."""
    quorum: str | None = None
    timeout_s: float | None = None
    is_sloppy: bool = False
    """A record that another live node keeps for an owner counts as that owner's."""


class Condition(NamedTuple):
    """What must stand for a change to be made (RFC 9110, section 13)."""

    is_match: bool
    """True: one of `versions` must stand (If-Match). False: none of them may (If-None-Match)."""
    versions: tuple[Version, ...]
    """Empty: any (`*`)."""


@dataclass(slots=True)
class UpdateRequest:
    """A change that depends on what stands: made by the key's first live owner, one after the other."""

    key: bytes
    kind: Literal["put", "delete", "increment", "expire"]
    """`increment` keeps the content type and the deadline; an absent key starts at 0. `expire` sets the deadline."""
    conditions: tuple[Condition, ...] = ()
    """All must be met."""
    value: bytes = b""
    """Of a put."""
    content_type: bytes = b""
    ttl_ms: int | None = None
    """put: its deadline; increment: only where it creates; expire: None removes the deadline."""
    step: int = 0
    """Of an increment."""
    quorum: str | None = None
    timeout_s: float | None = None


Request: TypeAlias = ReadRequest | WriteRequest | UpdateRequest


class ScanCursor(NamedTuple):
    """Where a listing of keys goes on: after this key of this slot."""

    slot: int
    after_key: bytes
    """Empty: at the beginning of the slot."""


@dataclass(slots=True)
class ScanRequest:
    """A client's wish for a page of keys."""

    prefix: bytes
    limit: int
    cursor: ScanCursor
    timeout_s: float | None = None


@dataclass(slots=True)
class ScanPage:
    """Keys in the order of slots, then bytes. May have fewer than asked for, or none, and yet a next page."""

    failure: Failure | None = None
    detail: str = ""
    keys: tuple[bytes, ...] = ()
    cursor: ScanCursor | None = None
    """None: all slots were listed."""


class ReplicaState(NamedTuple):
    """What one node says that it holds of a key."""

    node_id: NodeId
    state: Literal["value", "tombstone", "absent", "ghost", "unreachable"]
    version: Version
    """Of the entry, or of the ghost; empty: none."""
    expires_unix_ms: int
    """0: never."""
    is_level: bool
    """Whether it holds all that it should of the key's slot."""
    is_owner: bool
    hinted: tuple[NodeId, ...]
    """Members for which this node keeps a record of the key."""


@dataclass(slots=True)
class Explanation:
    """Where a key is: owners first, in the ring's order, then others that keep something of it."""

    key: bytes
    slot: int
    owners: tuple[NodeId, ...]
    replicas: tuple[ReplicaState, ...]
