"""Death certificates: what led this node to call a member dead, kept for people to read.

A *case* is open while this node suspects a member, and gathers what is said and tried meanwhile. When this node's
own timer ends the suspicion, the case becomes a *certificate*; when the member refutes, it is thrown away. Of
a death that somebody else declared, only a *stub* is kept, which names the accuser: it holds the certificate.

Decides nothing, and is asked nothing by gossip: without it every verdict would be the same. Times are
unix ms, durations seconds, as read from the `Instant`s that were handed in.

Invariants: a case is open only for a member that is suspected (`zephyr.gossip.swim` checks it); what is kept is
bounded by the constants here, and by the number of members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from zephyr.model import Address, Instant, Member, NodeId

CERTIFICATES_MAX = 64
"""Certificates and stubs kept, the newest ones: one of each member that people may still ask about."""
PROBES_MAX = 16
"""Failed probes kept of one suspicion, the newest ones: more than fit into the longest one of a small cluster."""
TIMEOUTS_MAX = 16
"""Steps kept of one time-out, the first ones: as many as there are accusers (`zephyr.gossip.suspicion`)."""


@dataclass(frozen=True, slots=True)
class FailedProbe:
    """One round of asking after the member, without an answer."""

    sent_unix_ms: int
    direct_timeout_s: float | None
    """After this long without an answer others were asked; None: the round ended before."""
    helpers: tuple[NodeId, ...]
    """Who was asked to ping it."""
    nackers: tuple[NodeId, ...]
    """Those who said in time that it does not answer them either; the others did not say a word."""
    is_tcp_tried: bool


@dataclass(frozen=True, slots=True)
class TimeoutStep:
    """How long the member had to refute from the beginning of the suspicion on, as of one accusation."""

    at_unix_ms: int
    accuser: NodeId
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ExitEvidence:
    """What showed that its process ended."""

    is_refused: bool
    """A connection ended and the next one was refused, seen from here."""
    is_silent: bool
    """The UDP ping beside was not answered in time."""
    observers: tuple[NodeId, ...]
    """Who saw both, in the order in which that was heard."""
    timeout_s: float | None
    """From the beginning of the suspicion to the end that the evidence set; None: it set none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How this node was itself, and how the member looked from here, when it called the member dead."""

    phi: float
    rtt_s: float
    """Smoothed round trip; 0.0: never measured."""
    local_health: int
    """0 is well, 8 the worst."""
    event_loop_lag_s: float
    """As last reported to the core; below 50 ms it is reported as 0."""
    members: int
    """Alive or suspected, this node and the dead one included."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Why this node called a member dead."""

    member: Member
    """The life that ended."""
    incarnation: int
    accuser: NodeId
    """This node."""
    accuser_http: Address
    suspected_unix_ms: int
    declared_unix_ms: int
    min_s: float
    """Shortest time-out, with every confirmation."""
    max_s: float
    """Longest time-out, with none."""
    confirmations_expected: int
    timeout_s: float
    """The one that ended the suspicion, from its beginning."""
    own_pause_s: float
    """How long this node itself did not run meanwhile: the member got that time on top."""
    accusers: tuple[NodeId, ...]
    """Who suspected it, in the order in which that was heard; all but the first confirmed."""
    timeouts: tuple[TimeoutStep, ...]
    """The time-out as it shrank."""
    probes: tuple[FailedProbe, ...]
    """Of this node. None of them: it took the word of others."""
    exit: ExitEvidence
    verdict: Verdict

    @property
    def cause(self) -> Literal["exit", "silence"]:
        """Whether exit evidence ended the suspicion, or the time-out."""
        return "silence" if self.exit.timeout_s is None or self.exit.timeout_s > self.timeout_s else "exit"


@dataclass(frozen=True, slots=True)
class Stub:
    """Somebody else called a member dead."""

    member: Member
    accuser: NodeId
    accuser_http: Address
    """Empty when this node does not know the accuser."""
    declared_unix_ms: int
    """When this node heard of it."""


Held: TypeAlias = Certificate | Stub


@dataclass(slots=True)
class _Case:
    """What is gathered while a member is suspected."""

    suspected_unix_ms: int
    own_pause_s: float
    """Of this node in all, at that moment."""
    min_s: float
    expected: int
    probes: tuple[FailedProbe, ...] = ()
    timeouts: tuple[TimeoutStep, ...] = ()


class Certificates:
    """The open cases, and what became of the last ones."""

    __slots__ = ("_cases", "_held")

    def __init__(self) -> None:
        self._cases: dict[NodeId, _Case] = {}
        self._held: dict[NodeId, Held] = {}
        """In the order of the deaths."""

    @property
    def open(self) -> tuple[NodeId, ...]:
        """Whose cases are open."""
        return tuple(self._cases)

    def of(self, node_id: NodeId) -> Held | None:
        """Return what is held of the last death of a member."""
        return self._held.get(node_id)

    def probe_failed(self, node_id: NodeId, probe: FailedProbe) -> None:
        """A probe of a suspected member ended without an answer, the one that began the suspicion included."""
        case = self._cases.get(node_id)
        if case is not None:
            case.probes = (*case.probes, probe)[-PROBES_MAX:]

    def suspected(
        self, node_id: NodeId, accuser: NodeId, *, min_s: float, timeout_s: float, expected: int, pause_s: float,
        now: Instant,
    ) -> None:  # fmt: skip
        """A suspicion began, perhaps anew. `pause_s`: how long this node has not run, ever."""
        self._cases[node_id] = _Case(now.unix_ms, pause_s, min_s, expected)
        self.shortened(node_id, accuser, timeout_s, now)

    def shortened(self, node_id: NodeId, accuser: NodeId, timeout_s: float, now: Instant) -> None:
        """Another accuser changed the time-out."""
        case = self._cases.get(node_id)
        if case is not None and len(case.timeouts) < TIMEOUTS_MAX:
            case.timeouts = (*case.timeouts, TimeoutStep(now.unix_ms, accuser, timeout_s))

    def closed(self, node_id: NodeId) -> None:
        """The suspicion is over."""
        self._cases.pop(node_id, None)

    def certify(
        self, member: Member, incarnation: int, accuser: Member, *, timeout_s: float, pause_s: float,
        accusers: tuple[NodeId, ...], evidence: ExitEvidence, verdict: Verdict, now: Instant,
    ) -> None:  # fmt: skip
        """This node's timer ended the suspicion: make the certificate. `accuser`: this node."""
        case = self._cases.pop(member.id, None)
        if case is None:
            return
        certificate = Certificate(
            member=member,
            incarnation=incarnation,
            accuser=accuser.id,
            accuser_http=accuser.http,
            suspected_unix_ms=case.suspected_unix_ms,
            declared_unix_ms=now.unix_ms,
            min_s=case.min_s,
            max_s=case.timeouts[0].timeout_s,
            confirmations_expected=case.expected,
            timeout_s=timeout_s,
            own_pause_s=pause_s - case.own_pause_s,
            accusers=accusers,
            timeouts=case.timeouts,
            probes=case.probes,
            exit=evidence,
            verdict=verdict,
        )
        self._keep(certificate)

    def heard(self, member: Member, accuser: NodeId, accuser_http: Address, now: Instant) -> None:
        """Somebody else's timer ended it, or this node's in an earlier life: nothing more is known of that here."""
        self._keep(Stub(member, accuser, accuser_http, now.unix_ms))

    def _keep(self, held: Held) -> None:
        self._held.pop(held.member.id, None)
        self._held[held.member.id] = held
        if len(self._held) > CERTIFICATES_MAX:
            del self._held[next(iter(self._held))]
