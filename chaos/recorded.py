"""A simulation whose run is a history: clients that ask as real ones do, and everything that the checkers want to know.

A client's request takes a latency to its node and back. A node that does not run refuses the connection: nothing was
done. One that stands still takes the request when it goes on, however long the client has given up by then. One that is
killed takes its clients' connections with it: nobody knows what became of their requests.

What a run must say of itself and cannot see in its nodes (partitions, loss, clocks) its plan records, by `fault`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from chaos.history import (
    HINT_COUNTS,
    Death,
    Fault,
    History,
    Holding,
    HoldingState,
    Level,
    Operation,
    OperationKind,
    OutcomeWord,
    Run,
    Sample,
)
from chaos.simulator import EPOCH_UNIX_MS, SimulatedNode, Simulation
from zephyr.api.contract import key_text
from zephyr.config import Settings
from zephyr.events import CompleteRequest, Effect, Note, PublishView
from zephyr.model import Failure, NodeId, Outcome, ReadRequest, WriteRequest
from zephyr.ring.ring import key_slot
from zephyr.store.record import record_is_tombstone, record_value, record_version

SAMPLE_S = 0.2
"""Every node's ring is looked at this often, beside each change of it."""
CLIENT_TIMEOUT_S = 5.0
"""After this a client no longer waits: longer than a request may take at a node that runs."""
PATIENCE_S = 0.3
"""After this a client asks for the next thing, though it still waits for the answer."""
CLIENT_LATENCY_MAX_S = 0.003
SETTLE_S = 4.0
"""A watch may be 3 s late: nodes that take over a ring later than this after the others were cut off."""


@dataclass(slots=True)
class _Asked:
    """A request that a client waits for."""

    process: str
    request: ReadRequest | WriteRequest
    invoked_s: float
    coordinator: NodeId
    done: Callable[[], None]
    """Called once, when the client knows or is out of patience."""
    ring: str = ""
    epoch: str = ""
    is_over: bool = False
    has_gone_on: bool = False

    @property
    def kind(self) -> OperationKind:
        """What is asked for."""
        if isinstance(self.request, ReadRequest):
            return "get"
        return "delete" if self.request.value is None else "put"


class RecordedSimulation(Simulation):
    """The world, and its history."""

    def __init__(self, seed: int, *, settings: Settings, run: Run) -> None:
        super().__init__(seed, settings=settings)
        self.history = History(run._replace(unix_ms_at_zero=EPOCH_UNIX_MS))
        self._waiting: dict[str, dict[int, _Asked]] = {}
        """Address of the life that was asked -> its requests that go on."""
        self._down: dict[NodeId, float] = {}
        """Nodes that were killed -> when."""
        self.at(SAMPLE_S, self._sample_all)

    # --- faults -------------------------------------------------------------------------------------------

    def fault(self, fault: str, nodes: tuple[NodeId, ...], at_s: float, until_s: float, detail: str = "") -> None:
        """Write down what is done to nodes; none named: to all."""
        self.history.add(Fault(fault, nodes, at_s, until_s, detail))

    def start(self, node_id: NodeId) -> None:
        """Start a node."""
        if node_id in self._down:
            self.fault("kill", (node_id,), self._down.pop(node_id), self.now_s)
        super().start(node_id)

    def crash(self, node_id: NodeId) -> None:
        """End a node; whoever waited for it sees that."""
        address = self.nodes[node_id].address
        self._down[node_id] = self.now_s
        super().crash(node_id)
        for asked in self._waiting.pop(address, {}).values():
            self._answer_later(asked, None)

    def pause(self, node_id: NodeId, duration_s: float) -> None:
        """Stop a node for a while."""
        self.fault("pause", (node_id,), self.now_s, self.now_s + duration_s)
        super().pause(node_id, duration_s)

    # --- clients ------------------------------------------------------------------------------------------

    def ask(
        self,
        process: str,
        node_id: NodeId,
        request: ReadRequest | WriteRequest,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Have a client send a request to a node. `done` is called when it knows, or is out of patience.

        It goes on to listen then: an answer that comes late is written down as one that came.
        """
        asked = _Asked(process, request, self.now_s, node_id, done)
        self.at(self.now_s + self._client_latency_s(), lambda: self._deliver(asked))
        self.at(self.now_s + PATIENCE_S, lambda: self._go_on(asked))
        self.at(self.now_s + CLIENT_TIMEOUT_S, lambda: self._end(asked, "info", Outcome(), inf))

    def _client_latency_s(self) -> float:
        return self.rng.uniform(0.0001, CLIENT_LATENCY_MAX_S)

    def _deliver(self, asked: _Asked, address: str = "") -> None:
        """Hand a request to the node. `address`: the life that has accepted it, and stood still since."""
        simulated = self.nodes.get(asked.coordinator)
        if address and (simulated is None or simulated.address != address):
            self._answer_later(asked, None)
        elif simulated is None or simulated.stopped:
            self._answer_later(asked, Outcome(Failure.UNAVAILABLE, "connection refused"))
        elif not self._is_paused(simulated, lambda: self._deliver(asked, simulated.address)):
            view, node = simulated.node.view, simulated.node
            asked.ring, asked.epoch = node.coordinator.digest.hex(), f"{view.generation}-{view.revision}"
            result = self.submit(asked.coordinator, asked.request)
            if isinstance(result, Outcome):
                self._answer_later(asked, result)
            elif result in self.outcomes:
                self._answer_later(asked, self.outcomes.pop(result))
            else:
                self._waiting.setdefault(result[0], {})[result[1]] = asked

    def _carry_out(self, simulated: SimulatedNode, effects: list[Effect]) -> None:
        super()._carry_out(simulated, effects)
        node_id = simulated.node.settings.id
        for effect in effects:
            match effect:
                case CompleteRequest(request_id, outcome):
                    asked = self._waiting.get(simulated.address, {}).pop(request_id, None)
                    if asked is not None:
                        self.outcomes.pop((simulated.address, request_id))
                        self._answer_later(asked, outcome)
                case PublishView():
                    self._sample(simulated)
                case Note(entry) if entry.kind == "member-dead":
                    self.history.add(Death(node_id, entry.member, self.now_s))
                case _:
                    pass

    def _answer_later(self, asked: _Asked, outcome: Outcome | None) -> None:
        """Have an answer arrive; None: the connection ends without one."""
        word: OutcomeWord = "ok"
        if outcome is None or outcome.failure is Failure.UNKNOWN:
            word = "info"
        elif outcome.failure is not None:
            word = "fail"
        self.at(self.now_s + self._client_latency_s(), lambda: self._end(asked, word, outcome or Outcome(), self.now_s))

    def _end(self, asked: _Asked, word: OutcomeWord, outcome: Outcome, completed_s: float) -> None:
        """Write an operation down, once."""
        if asked.is_over:
            return
        asked.is_over = True
        request, kind = asked.request, asked.kind
        value, version, ttl_ms, is_sloppy = None, b"", 0, False
        if isinstance(request, WriteRequest):
            value = None if request.value is None else request.value.decode()
            version, ttl_ms, is_sloppy = outcome.version, request.ttl_ms or 0, request.is_sloppy
        elif word == "ok" and outcome.record is not None:
            value, version = record_value(outcome.record).decode(), record_version(outcome.record)
        key, quorum, line = key_text(request.key), request.quorum or "quorum", len(self.history.operations) + 2
        self.history.add(
            Operation(
                asked.process, kind, key, value, version, asked.invoked_s, completed_s, word, asked.coordinator, quorum,
                ttl_ms, is_sloppy, asked.ring, asked.epoch, line,
            )
        )  # fmt: skip
        what = f"{kind} {key} {value} {word} {version.hex()} at {asked.coordinator} since {asked.invoked_s:.6f}"
        self.record(asked.process, f"{what}: {outcome.detail}" if outcome.failure else what)
        self._go_on(asked)

    def _go_on(self, asked: _Asked) -> None:
        if not asked.has_gone_on:
            asked.has_gone_on = True
            asked.done()

    # --- what nodes show ----------------------------------------------------------------------------------

    def _sample_all(self) -> None:
        for node_id, simulated in self.nodes.items():
            if self.is_running(node_id):
                self._sample(simulated)
        self.at(self.now_s + SAMPLE_S, self._sample_all)

    def _sample(self, simulated: SimulatedNode) -> None:
        node = simulated.node
        hints: Any = getattr(node, "hints", None)
        counts = () if hints is None else tuple(getattr(hints, name) for name in HINT_COUNTS)
        self.history.add(Sample(node.settings.id, self.now_s, node.view.digest.hex(), node.view.owners, counts))

    def is_running(self, node_id: NodeId) -> bool:
        """Whether a node runs and does not stand still."""
        simulated = self.nodes.get(node_id)
        return simulated is not None and not simulated.stopped and self.now_s >= simulated.resumes_s

    def is_level(self, node_ids: list[NodeId]) -> bool:
        """Whether all of these run, in the one ring, with all that they should hold. If so, it is written down."""
        if not all(map(self.is_running, node_ids)):
            return False
        nodes = [self.nodes[node_id].node for node_id in node_ids]
        is_one = len({node.coordinator.digest for node in nodes}) == 1 and list(nodes[0].view.owners) == sorted(
            node_ids
        )
        if not is_one or any(node.readiness() or not node.levels.is_done for node in nodes):
            return False
        self.history.add(Level(self.now_s))
        return True

    def take_stock(self, keys: list[bytes]) -> None:
        """Write down what every node keeps of every key."""
        for node_id, simulated in self.nodes.items():
            node, now = simulated.node, self.instant(node_id)
            for key in keys:
                slot = key_slot(key)
                record, ghost = (
                    node.store.peek(slot, key, node.clock.now_unix_ms(now.unix_ms)),
                    node.store.ghost(slot, key),
                )
                state: HoldingState = "absent"
                version = b""
                if record is not None:
                    state = "tombstone" if record_is_tombstone(record) else "value"
                    version = record_version(record)
                elif ghost is not None:
                    state, version = "ghost", ghost
                is_owner = node_id in node.ring.owners(slot)
                self.history.add(
                    Holding(
                        node_id, key_text(key), state, version,
                        is_owner=is_owner, is_level=is_owner and node.levels.is_level(slot), at_s=self.now_s,
                    )
                )  # fmt: skip
