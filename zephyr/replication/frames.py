"""Calls to one peer in one frame: what a batch sends costs one round trip a peer.

Decides which calls share a frame, within bounds. What a call asks, and what becomes of its answer, is for the
coordinator to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

from zephyr.events import Effect, SendPeer
from zephyr.model import Instant, NodeId
from zephyr.peer.wire import Operation, Status
from zephyr.replication.replica import MANY_BYTES_MAX, MANY_CALLS_MAX, Answer, is_pair

GROUPED = (Operation.WRITE, Operation.READ, Operation.DIGEST)
"""Calls that may share a frame."""


class Frame:
    """Calls that go to one peer together."""

    __slots__ = ("asked_s", "calls", "deadline_s", "node_id", "size_bytes")

    def __init__(self, node_id: NodeId, asked_s: float) -> None:
        self.node_id = node_id
        self.asked_s = asked_s
        self.calls: list[SendPeer] = []
        self.size_bytes = 0
        self.deadline_s = -inf

    def add(self, call: SendPeer) -> bool:
        """Put a call into the frame, whose first always fits. False: there is no room."""
        size_bytes = self.size_bytes + sum(map(len, call.arguments))
        if self.calls and (len(self.calls) >= MANY_CALLS_MAX or size_bytes > MANY_BYTES_MAX):
            return False
        self.calls.append(call)
        self.size_bytes = size_bytes
        self.deadline_s = max(self.deadline_s, call.deadline_s)
        return True

    def answers(self, status: int, payload: tuple[Any, ...]) -> Iterator[tuple[SendPeer, Answer]]:
        """Iterate over the calls and the answer to each. A frame that was not understood answers none of them."""
        refused = (Status.BAD_REQUEST if status == Status.OK else status), ()
        is_whole = status == Status.OK and len(payload) == len(self.calls)
        for call, answer in zip(self.calls, payload if is_whole else (None,) * len(self.calls), strict=True):
            yield call, answer if is_pair(answer) else refused


class Frames:
    """The frames that are under way, by call id. One that is never answered goes when its deadline has passed."""

    def __init__(self) -> None:
        self._under_way: dict[int, Frame] = {}

    def group(self, effects: list[Effect], now: Instant) -> tuple[list[Effect], list[Frame]]:
        """Return (what is to be done as it is, frames of two calls or more)."""
        alive = {call_id: frame for call_id, frame in self._under_way.items() if now.monotonic_s < frame.deadline_s}
        self._under_way = alive
        others: list[Effect] = []
        frames: list[Frame] = []
        open_frames: dict[NodeId, Frame] = {}
        for effect in effects:
            if type(effect) is not SendPeer or effect.operation not in GROUPED:
                others.append(effect)
                continue
            frame = open_frames.get(effect.node_id)
            if frame is None or not frame.add(effect):
                frame = open_frames[effect.node_id] = Frame(effect.node_id, now.monotonic_s)
                frames.append(frame)
                frame.add(effect)
        others += [frame.calls[0] for frame in frames if len(frame.calls) == 1]
        return others, [frame for frame in frames if len(frame.calls) > 1]

    def send(self, frame: Frame, call_id: int) -> SendPeer:
        """Return the call that carries a frame."""
        self._under_way[call_id] = frame
        arguments = tuple((int(call.operation), call.arguments) for call in frame.calls)
        return SendPeer(frame.node_id, call_id, Operation.MANY, arguments, frame.deadline_s)

    def take(self, call_id: int) -> Frame | None:
        """Return the frame that a call carried, once; None where it carried none."""
        return self._under_way.pop(call_id, None)
