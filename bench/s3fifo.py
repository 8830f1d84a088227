"""S3-FIFO behind the product's seam: the third candidate of the eviction traces, no part of the product.

Three queues: what is new waits in a small one (a tenth of what is listed); what was used there twice moves to
the main one, what was not goes, and its key is remembered as a ghost; a key that comes back while it is
a ghost goes straight into the main one, which reinserts what was used since it was last looked at. Source: Yang
et al., "FIFO Queues are All You Need for Cache Eviction" (SOSP 2023), algorithm 1.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

SMALL_SHARE = 0.1
USES_MAX = 3
USES_TO_MOVE = 2


class S3Fifo:
    """The policy; `forget` is exact, by leaving the key in its queue and passing over it."""

    overhead_bytes = 80

    def __init__(self) -> None:
        self._small: deque[bytes] = deque()
        self._main: deque[bytes] = deque()
        self._uses: dict[bytes, int] = {}
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()

    def admit(self, key: bytes, *, cold: bool) -> None:
        """List a key: in the small queue, or in the main one when it was there not long ago."""
        self._uses[key] = 0
        if cold:
            self._small.appendleft(key)
        elif key in self._ghosts:
            del self._ghosts[key]
            self._main.append(key)
        else:
            self._small.append(key)

    def touch(self, key: bytes) -> None:
        """Count a use, up to three."""
        uses = self._uses[key]
        if uses < USES_MAX:
            self._uses[key] = uses + 1

    def forget(self, key: bytes) -> bool:
        """Take a key off its queue. Linear: the traces remove nothing."""
        del self._uses[key]
        (self._small if key in self._small else self._main).remove(key)
        return True

    def next_victim(self) -> bytes | None:
        """Take the key that should go off its queue."""
        while self._uses:
            if self._small and len(self._small) >= SMALL_SHARE * len(self._uses):
                key = self._small.popleft()
                if self._uses[key] >= USES_TO_MOVE:
                    self._uses[key] = 0
                    self._main.append(key)
                    continue
                self._remember(key)
            elif self._main:
                key = self._main.popleft()
                if self._uses[key]:
                    self._uses[key] -= 1
                    self._main.append(key)
                    continue
            else:
                key = self._small.popleft()
            del self._uses[key]
            return key
        return None

    def _remember(self, key: bytes) -> None:
        """Keep as many ghosts as the main queue has keys."""
        self._ghosts[key] = None
        while len(self._ghosts) > max(1, len(self._main)):
            self._ghosts.popitem(last=False)

    def collect(self, is_empty: Callable[[bytes], bool]) -> None:
        """Nothing is left behind by `forget`."""
