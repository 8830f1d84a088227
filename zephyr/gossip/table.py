"""Whom this node knows, and whose turn it is.

Holds the records of the other members and chooses among them: at random, or round robin with the silent ones
first. What a record should say is decided elsewhere (`zephyr.gossip.swim`).

Invariants: a record is among the live ones exactly while it is alive or suspected; each live member is chosen once
in each round.
"""

from __future__ import annotations

import random
from math import inf

from zephyr.gossip.messages import GossipState
from zephyr.gossip.phi import PhiEstimate
from zephyr.gossip.suspicion import Suspicion
from zephyr.model import Member, NodeId

MEMBERS_KNOWN_MAX = 2047
"""Members remembered, dead and left ones included: with this node, what one push-pull may name. Beyond it strangers are
ignored until some are forgotten."""
LOOKAHEAD = 8
"""Members at the head of the round that phi may reorder: the silent one is probed first."""
PHI_PROBE = 3.0
"""From this phi on a member is probed before its turn: one chance in a thousand that it is merely late."""
ATTEMPTS_FACTOR = 4
"""Random choices made for each member wanted, before fewer are taken."""


class Record:
    """What this node knows of another member."""

    __slots__ = (
        "alive_message",
        "ended_epoch",
        "exit_observers",
        "exit_rest_s",
        "exit_sequence",
        "exit_told_s",
        "forget_armed",
        "heard_s",
        "incarnation",
        "is_in_round",
        "is_refused",
        "is_silent",
        "is_udp_blocked",
        "life_since_s",
        "live_index",
        "member",
        "phi_estimate",
        "ring_digest",
        "ring_digest_s",
        "since_s",
        "state",
        "suspicion",
    )

    def __init__(self, member: Member, incarnation: int, now_s: float) -> None:
        self.member = member
        self.incarnation = incarnation
        self.state: GossipState = "alive"
        self.since_s = now_s
        """Monotonic seconds at which `state` took its value."""
        self.life_since_s = now_s
        """Monotonic seconds at which this life was first heard of."""
        self.phi_estimate: PhiEstimate | None = None
        """None until it was heard."""
        self.suspicion: Suspicion | None = None
        """While, and only while, the state is suspect."""
        self.live_index = -1
        """Place among the live ones, or -1."""
        self.is_in_round = False
        """Its turn to be probed is still to come in this round."""
        self.forget_armed = False
        """A timer will see whether it is to be forgotten."""
        self.is_udp_blocked = False
        """TCP answered where UDP did not."""
        self.alive_message: bytes | None = None
        """Its encoded `Alive`, or None when it changed."""
        self.heard_s = -inf
        """Monotonic seconds of the last packet that came from that life itself."""
        self.ring_digest = b""
        """The ring that it showed last."""
        self.ring_digest_s = -inf
        """Monotonic seconds at which the question was sent that it answered with that."""
        self.ended_epoch = -1
        """Boot epoch of the life that was known when its connection ended without a goodbye."""
        self.exit_rest_s = -inf
        """Monotonic seconds until which refusals count for nothing."""
        self.exit_told_s = -inf
        """Monotonic seconds at which another member last told that it saw it end."""
        self.clear_exit()

    def clear_exit(self) -> None:
        """Forget all exit evidence: a living process gave a sign."""
        self.is_refused = False
        """Its connection ended and a new one was refused, seen from here."""
        self.is_silent = False
        """The UDP ping that went beside was not answered in time."""
        self.exit_sequence = 0
        """The number of that ping; 0: none was sent."""
        self.exit_observers: tuple[NodeId, ...] = ()
        """Who saw it end, this node included."""
        if self.suspicion is not None:
            self.suspicion.exit_deadline_s = None

    @property
    def has_exited_from_here(self) -> bool:
        """Whether this node sees both signs of an ended process: a refused connection, and silence by UDP."""
        return self.is_refused and self.is_silent

    def phi(self, running_s: float) -> float:
        """Return how surprising its silence is, in time that this node itself ran."""
        return self.phi_estimate.phi(running_s) if self.phi_estimate is not None else 0.0

    @property
    def rtt_s(self) -> float:
        """Its smoothed round trip; 0 before it was measured."""
        return self.phi_estimate.rtt_s if self.phi_estimate is not None else 0.0


class Table:
    """The records, by id."""

    __slots__ = ("_rng", "_round", "live", "members")

    def __init__(self, rng: random.Random) -> None:
        self.members: dict[NodeId, Record] = {}
        self.live: list[Record] = []
        """Alive and suspected, in no order."""
        self._round: list[Record] = []
        """Whom to probe in this round; taken from the end."""
        self._rng = rng

    @property
    def is_full(self) -> bool:
        """Whether nobody can be added."""
        return len(self.members) >= MEMBERS_KNOWN_MAX

    def add(self, record: Record) -> None:
        """Know another member."""
        self.members[record.member.id] = record
        self._enlist(record)

    def move(self, record: Record) -> None:
        """Put a record among the live ones or take it out, as its state says."""
        is_live = record.state in ("alive", "suspect")
        if is_live and record.live_index < 0:
            self._enlist(record)
        elif not is_live and record.live_index >= 0:
            last = self.live.pop()
            if last is not record:
                self.live[record.live_index] = last
                last.live_index = record.live_index
            record.live_index = -1

    def _enlist(self, record: Record) -> None:
        """Take a member in, at a random place of the round (SWIM, section 4.3)."""
        record.live_index = len(self.live)
        self.live.append(record)
        if not record.is_in_round:  # Who died and came back may have its turn still to come.
            record.is_in_round = True
            self._round.insert(int(self._rng.random() * (len(self._round) + 1)), record)

    def some(self, count: int, without: NodeId = "") -> list[Record]:
        """Choose up to `count` live members at random, all different."""
        live = self.live
        if len(live) <= count:
            return [record for record in live if record.member.id != without]
        chosen: dict[int, Record] = {}
        for _ in range(ATTEMPTS_FACTOR * count):
            index = int(self._rng.random() * len(live))
            if live[index].member.id != without:
                chosen[index] = live[index]
                if len(chosen) == count:
                    break
        return list(chosen.values())

    def next_target(self, running_s: float) -> Record | None:
        """Take the next member of the round, or a silent one a little further on; None when nobody is live."""
        if not self._round:
            self._round = self.live.copy()
            self._rng.shuffle(self._round)
            for record in self._round:
                record.is_in_round = True
        while self._round:
            self._bring_forward_the_silent(running_s)
            record = self._round.pop()
            record.is_in_round = False
            if record.live_index >= 0:
                return record
        return None

    def _bring_forward_the_silent(self, running_s: float) -> None:
        """Swap the most suspicious of the next few to the front, when phi says that its silence is no chance."""
        ahead = self._round
        first = len(ahead) - 1
        best, best_phi = first, PHI_PROBE
        for index in range(first, max(-1, first - LOOKAHEAD), -1):
            record = ahead[index]
            if record.state == "alive":
                phi = record.phi(running_s)
                if phi > best_phi:
                    best, best_phi = index, phi
        ahead[first], ahead[best] = ahead[best], ahead[first]

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; for tests and the simulator."""
        live = 0
        for node_id, record in self.members.items():
            assert node_id == record.member.id
            assert (record.suspicion is not None) == (record.state == "suspect")
            is_live = record.state in ("alive", "suspect")
            assert (record.live_index >= 0) == is_live
            assert not is_live or self.live[record.live_index] is record
            live += is_live
        assert live == len(self.live)
        assert len(set(map(id, self._round))) == len(self._round)
        assert len(self.members) <= MEMBERS_KNOWN_MAX
