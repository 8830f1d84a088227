"""What happens, as it happens: the events of `/debug/events` (Server-Sent Events, WHATWG HTML, section 9.2).

Each entry of the timeline is an event with its number as id, so that `Last-Event-ID` goes on after it; a view that
changed is one without. Reads the node's timeline where it stands and keeps no queue of its own: that is the bound,
and who falls further behind than the timeline reaches is told how many entries it lost.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from zephyr.api.debug import timeline_event, view_event
from zephyr.model import ClusterView
from zephyr.node import Node

ENTRIES_MAX = 100
"""Entries in one piece: tens of kilobytes, and under 5 ms."""
SIGN_OF_LIFE = b": still here\n\n"
"""A comment, which clients skip."""


class Follower:
    """Where one client stands."""

    __slots__ = ("_next", "_node", "_view")

    def __init__(self, node: Node, last_id: int | None) -> None:
        """`last_id`: the last number that the client has seen; None: what happens from now on.

        A number that this life of the node has not given out is one of another life: all that is kept is new then.
        """
        self._node = node
        self._view: ClusterView | None = None
        if last_id is None:
            self._next = node.timeline_end
        else:
            self._next = last_id + 1 if node.timeline_first <= last_id < node.timeline_end else node.timeline_first

    def take(self) -> bytes:
        """Return the next events; nothing, when the client has them all."""
        node = self._node
        pieces: list[bytes] = []
        oldest = node.timeline_end - len(node.timeline)
        if self._next < oldest:
            pieces.append(_event("overflow", {"lost": oldest - self._next}))
            self._next = oldest
        for entry in islice(node.timeline, self._next - oldest, self._next - oldest + ENTRIES_MAX):
            pieces.append(_event(entry.kind, timeline_event(self._next, entry), self._next))
            self._next += 1
        if self._next == node.timeline_end and node.view is not self._view:
            self._view = node.view
            pieces.append(_event("view", view_event(node.view)))
        return b"".join(pieces)


def _event(kind: str, data: dict[str, Any], number: int | None = None) -> bytes:
    """Write one event. JSON of one line holds no line break."""
    identity = "" if number is None else f"id: {number}\n"
    return f"{identity}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
