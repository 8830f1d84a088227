"""What the HTTP adapter wants of the node that it stands before: the runtime has it, and a stand-in in the tests."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from zephyr.model import Explanation, Outcome, ReadRequest, Request, ScanPage, ScanRequest, WriteRequest


class Backend(Protocol):
    """Carries out what clients ask. Each answer comes within the deadline of its request, or the cluster's."""

    def submit(self, request: Request) -> Outcome | Awaitable[Outcome]:
        """Begin one request: its outcome at once, or later."""
        ...

    def submit_all(self, requests: Sequence[ReadRequest | WriteRequest]) -> list[Outcome] | Awaitable[list[Outcome]]:
        """Begin requests for as many different keys together: their outcomes in the same order, at once or later."""
        ...

    def scan(self, request: ScanRequest) -> Awaitable[ScanPage]:
        """List keys from the cursor on: fewer than asked for, or none, as long as the page says where to go on."""
        ...

    def explain(self, key: bytes) -> Awaitable[Explanation]:
        """Ask every node that may hold something of a key what it holds."""
        ...
