"""etcd through peers: for a node that cannot reach it, what those know who can.

Decides whom to ask for etcd's word and when, what an answer is worth, and whose lease to renew on a peer's behalf. It
never decides who owns data (that is `zephyr.cluster`), and keeps no registrations (that is `zephyr.etcd.lease`).

While etcd does not answer here, all connected peers are asked each second, `FANOUT` of them at most, and always the one
that was found to reach it:

    request   (generation, revision, lease id)
    reply     (reaches etcd, generation, revision, settings, registrations or None, departed, renewal)

The registrations are left out where the asker has them already. A reply from who *reaches etcd* counts as etcd's own
word for two rounds, so that one lost reply changes nothing; any other only tells a newer last word. A lease id has the
peer send a keep-alive (which needs no more than that); the *renewal* tells of the last one: (age in ms, TTL in s),
or () before there was one. So a node that is cut off from etcd alone keeps its registration and its view.

One that reaches etcd and knows less than the asker vouches for nothing: its watch may be late. If they all do, after a
restore of etcd, their word is taken when the two rounds are over.

Nothing is relayed at second hand: who knows etcd's word from a peer does not reach it.
"""

from __future__ import annotations

from math import inf
from typing import Any

from zephyr.config import Settings
from zephyr.etcd.lease import EtcdMembership
from zephyr.events import (
    CONTROL_CALL_ID_MIN,
    Effect,
    EtcdCallFailed,
    KeepLeaseAlive,
    LeaseKeptAlive,
    PeerAnswered,
    PeerCallFailed,
    SendPeer,
)
from zephyr.model import CommittedView, Instant, Member, NodeId, Registration
from zephyr.peer.wire import Operation, Status, encode_member
from zephyr.wire import checked_member, is_id

FANOUT = 16
"""Peers asked in one round; larger clusters take several rounds to ask everybody."""
ROUND_S = 1.0
PAUSE_S = 0.1
"""Least time between two rounds, however many peers answer *not owner*."""
CALL_TIMEOUT_S = 2.0
CURRENT_S = 2.5
"""How long the word of who reaches etcd counts: two rounds and some."""
RENEWALS_MAX = 256
"""Leases of peers that are renewed here: more than a ring has members."""
RENEWALS_UNDER_WAY_MAX = 16
RENEWAL_ASKED_S = 10.0
"""A lease whose owner has not asked for so long is renewed no more, and forgotten."""
REGISTRATIONS_MAX = 256
"""Registrations taken from one reply: more than a ring may have."""
NUMBER_MAX = (1 << 63) - 1


class _Renewal:
    """A lease that is renewed for a peer."""

    __slots__ = ("asked_s", "sent_s", "ttl_s", "under_way")

    def __init__(self) -> None:
        self.asked_s = -inf
        self.sent_s = -inf
        """Of the last keep-alive that was answered."""
        self.ttl_s = 0
        self.under_way = False


class Relay:
    """Both sides: asks peers while etcd is silent here, and answers those for whom it is."""

    def __init__(self, settings: Settings, etcd: EtcdMembership) -> None:
        self.etcd = etcd
        self.renewed_count = 0
        """Keep-alives sent for peers."""
        self._period_s = settings.lease_ttl_s / 6
        self._calls: dict[int, tuple[NodeId, float]] = {}
        """Call id -> (peer, when it was asked)."""
        self._last_call_id = CONTROL_CALL_ID_MIN
        self._next_s, self._asked_s = inf, -inf
        self._turn = 0
        self._renewer: NodeId = ""
        """The peer that renews this node's lease: who reached etcd when it was asked last."""
        self._renewals: dict[int, _Renewal] = {}
        self._wanted: list[int] = []
        """Leases to renew now."""

    def deadline(self) -> float:
        """Return the monotonic second at which `poll` has something to do."""
        return -inf if self._wanted else self._next_s

    # --- asking ---------------------------------------------------------------------------------------

    def poll(self, connected: dict[NodeId, bool], now: Instant) -> list[Effect]:
        """Ask peers while etcd does not answer here; renew the leases that peers asked for."""
        effects: list[Effect] = [KeepLeaseAlive(lease_id) for lease_id in self._wanted]
        self.renewed_count += len(self._wanted)
        self._wanted.clear()
        if self.etcd.reachable or self.etcd.left:
            self._next_s = inf
            return effects
        if self._next_s < inf and now.monotonic_s < self._next_s:
            return effects
        self._next_s, self._asked_s = now.monotonic_s + ROUND_S, now.monotonic_s
        self._calls = {key: call for key, call in self._calls.items() if now.monotonic_s < call[1] + CALL_TIMEOUT_S}
        peers = sorted(node_id for node_id, is_up in connected.items() if is_up)
        chosen = [peers[(self._turn + step) % len(peers)] for step in range(min(FANOUT, len(peers)))]
        self._turn += len(chosen)
        if not connected.get(self._renewer):
            self._renewer = ""
        elif self._renewer not in chosen:
            chosen[-1] = self._renewer  # In a large cluster its turn would come too late.
            self._turn -= 1
        return effects + [self._ask(node_id, now) for node_id in chosen]

    def request(self, now: Instant) -> None:
        """Ask soon: somebody's view differs from ours. Nothing while etcd itself answers."""
        if not self.etcd.reachable:
            self._next_s = min(self._next_s, max(now.monotonic_s, self._asked_s + PAUSE_S))

    def _ask(self, node_id: NodeId, now: Instant) -> SendPeer:
        self._last_call_id += 1
        self._calls[self._last_call_id] = (node_id, now.monotonic_s)
        lease_id = self.etcd.lease_id if self._renewer in ("", node_id) else 0
        arguments = (self.etcd.generation, self.etcd.revision, lease_id)
        return SendPeer(node_id, self._last_call_id, Operation.VIEW, arguments, now.monotonic_s + CALL_TIMEOUT_S)

    def on_failed(self, event: PeerCallFailed, _now: Instant) -> list[Effect]:
        """A peer gave no answer."""
        node_id, _ = self._calls.pop(event.call_id, ("", 0.0))
        if node_id == self._renewer:
            self._renewer = ""
        return []

    def on_answered(self, event: PeerAnswered, now: Instant) -> list[Effect]:
        """Take what a peer knows. An answer of another form is no answer."""
        call = self._calls.pop(event.call_id, None)
        if call is None or event.status != Status.OK or self.etcd.reachable:
            return []
        node_id, asked_s = call
        try:
            is_current, view, renewal = _decoded(event.payload)
        except (ValueError, TypeError):
            return []
        effects: list[Effect] = []
        if is_current:
            self._renewer = self._renewer or node_id
        elif node_id == self._renewer:
            self._renewer = ""
        if renewal is not None and is_current:
            # The peer's keep-alive went out `age` before its answer, and that was made after the question was sent.
            self.etcd.renewed(asked_s - renewal[0] / 1000, renewal[1])
        if view is not None:
            effects = self.etcd.adopt(view, is_current=is_current, now=now)
        if is_current and event.payload[1:3] >= (self.etcd.generation, self.etcd.revision):
            self.etcd.relayed(asked_s, now.monotonic_s + CURRENT_S, now)
        return effects

    # --- answering ------------------------------------------------------------------------------------

    def serve(self, arguments: tuple[Any, ...], now: Instant) -> tuple[int, tuple[Any, ...]]:
        """Answer a peer: (status, payload)."""
        match arguments:
            case (int(generation), int(revision), int(lease_id)) if _are_numbers(generation, revision, lease_id):
                pass
            case _:
                return Status.BAD_REQUEST, ("generation, revision and lease id",)
        etcd = self.etcd
        view = etcd.committed_view()
        registrations = None
        if (generation, revision) != (view.generation, view.revision) and etcd.is_known:
            registrations = tuple(
                (encode_member(item.member), item.mod_revision, item.lease_id) for item in view.registrations
            )
        renewal = self._renew(lease_id, now) if lease_id and etcd.reachable else ()
        return Status.OK, (
            etcd.reachable,
            view.generation,
            view.revision,
            view.settings,
            registrations,
            view.departed if registrations is not None else (),
            renewal,
        )

    def _renew(self, lease_id: int, now: Instant) -> tuple[int, ...]:
        """Have a lease renewed soon; return what its last renewal brought."""
        renewal = self._renewals.get(lease_id)
        if renewal is None:
            self._forget_renewals(now)
            if len(self._renewals) >= RENEWALS_MAX:
                return ()
            renewal = self._renewals[lease_id] = _Renewal()
        renewal.asked_s = now.monotonic_s
        under_way = sum(item.under_way for item in self._renewals.values())
        is_due = now.monotonic_s >= renewal.sent_s + self._period_s / 2
        if is_due and not renewal.under_way and under_way < RENEWALS_UNDER_WAY_MAX:
            renewal.under_way = True
            self._wanted.append(lease_id)
        if renewal.sent_s == -inf:
            return ()
        return round((now.monotonic_s - renewal.sent_s) * 1000), renewal.ttl_s

    def _forget_renewals(self, now: Instant) -> None:
        for lease_id in [
            item
            for item, renewal in self._renewals.items()
            if not renewal.under_way and now.monotonic_s > renewal.asked_s + RENEWAL_ASKED_S
        ]:
            del self._renewals[lease_id]

    def took_renewal(self, event: LeaseKeptAlive | EtcdCallFailed) -> bool:
        """Take the end of a keep-alive that was sent for a peer; False: it was this node's own, or no keep-alive."""
        lease_id = event.lease_id if isinstance(event, LeaseKeptAlive) else _lease_of(event)
        renewal = self._renewals.get(lease_id)
        if renewal is None or not renewal.under_way or lease_id == self.etcd.lease_id:
            return False
        renewal.under_way = False
        if isinstance(event, LeaseKeptAlive):
            renewal.sent_s, renewal.ttl_s = event.sent_s, event.ttl_s
        return True


def _lease_of(event: EtcdCallFailed) -> int:
    return event.effect.lease_id if isinstance(event.effect, KeepLeaseAlive) else 0


def _are_numbers(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value <= NUMBER_MAX for value in values)


def _decoded(payload: tuple[Any, ...]) -> tuple[bool, CommittedView | None, tuple[int, int] | None]:
    """Read a reply: (reaches etcd, view or None, renewal or None). Raises ValueError or TypeError."""
    is_current, generation, revision, settings, registrations, departed, renewal = payload
    if type(is_current) is not bool or not _are_numbers(generation, revision, *settings, *renewal):
        raise ValueError("numbers")
    if len(settings) != 3 or len(renewal) not in (0, 2):
        raise ValueError("lengths")
    told = (renewal[0], renewal[1]) if renewal else None
    if registrations is None:
        return is_current, None, told
    if len(registrations) > REGISTRATIONS_MAX or len(departed) > REGISTRATIONS_MAX:
        raise ValueError("too many")
    view = CommittedView(
        generation,
        revision,
        (settings[0], settings[1], settings[2]),
        tuple(_registration(*item) for item in registrations),
        tuple(_departure(*item) for item in departed),
    )
    return is_current, view, told


def _registration(member: Any, mod_revision: Any, lease_id: Any) -> Registration:
    if not _are_numbers(mod_revision, lease_id):
        raise ValueError("registration")
    checked: Member = checked_member(member)
    return Registration(checked, mod_revision, lease_id)


def _departure(node_id: Any, manner: Any) -> tuple[NodeId, str]:
    if not is_id(node_id) or manner not in ("left", "evicted", "expired"):
        raise ValueError("departure")
    return node_id, manner
