"""The vocabulary of gossip: every message one member can send another.

Nothing here decides anything. A message is a plain tuple, because thousands of them are built and read in
a second of a large cluster; `zephyr.gossip.wire` gives it bytes, `zephyr.gossip.swim` gives it meaning.

Two lives of one id are ordered by their boot epoch, two statements about one life by its incarnation, which
only that life itself raises (SWIM, Das et al. 2002, section 4.2).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from zephyr.model import Member, NodeId

GossipState: TypeAlias = Literal["alive", "suspect", "dead", "left"]
"""What gossip believes of a member it knows. Left is a member's own last word; dead is what others conclude."""


class Ping(NamedTuple):
    """Are you there? Answered by an `Ack` to where the packet came from."""

    sequence: int
    target: NodeId
    """Whoever has another id stays silent: an address may have changed hands."""


class Ack(NamedTuple):
    """I am here. Also what a helper passes on when the target answered it."""

    sequence: int
    ring_digest: bytes
    """8 bytes that identify the sender's ring, or none."""
    lag_ms: int
    """How late the sender's event loop ran lately: what of the round trip is not the network's."""


class PingRequest(NamedTuple):
    """Ping that member for me: pass its `Ack` on, or send a `Nack` in time."""

    sequence: int
    target: Member


class Nack(NamedTuple):
    """The target did not answer me in time; but I am here, so your own network works."""

    sequence: int


class Alive(NamedTuple):
    """This member lives, and says this of itself."""

    member: Member
    incarnation: int


class Suspect(NamedTuple):
    """The accuser got no answer from that life of that member."""

    id: NodeId
    epoch: int
    incarnation: int
    accuser: NodeId


class Exit(NamedTuple):
    """The observer's connection to that life of that member ended, and reconnecting was refused."""

    id: NodeId
    epoch: int
    observer: NodeId


class Dead(NamedTuple):
    """That life of that member did not refute a suspicion in time."""

    id: NodeId
    epoch: int
    incarnation: int
    accuser: NodeId


class Left(NamedTuple):
    """That life of that member said that it leaves."""

    id: NodeId
    epoch: int
    incarnation: int


class UserEvent(NamedTuple):
    """Something that an operator tells every member."""

    origin: NodeId
    epoch: int
    number: int
    """Counts the events of one life of their origin, from 1."""
    name: str
    payload: bytes


class SyncEntry(NamedTuple):
    """All that one member knows of another."""

    member: Member
    incarnation: int
    state: GossipState


class Sync(NamedTuple):
    """Everything the sender knows, itself included: half of a push-pull."""

    entries: tuple[SyncEntry, ...]
    is_join: bool
    """The sender knows nobody yet."""


GossipMessage: TypeAlias = Ping | Ack | PingRequest | Nack | Alive | Suspect | Exit | Dead | Left | UserEvent | Sync


class Packet(NamedTuple):
    """The content of one authentic, well-formed packet of this cluster."""

    sender: NodeId
    epoch: int
    """Boot epoch of the sender."""
    messages: tuple[GossipMessage, ...]
    size_bytes: int = 0
    """Of the whole packet, as it came."""
