"""Many light gossip peers in one process: `python -m bench.light_peers COUNT CLUSTER PROFILE` prints some addresses.

Each is the product's own `Swim` machine behind the product's own sockets and codec, with a port of its own; it has no
data, no HTTP and no ring, and accepts peer connections without making any. They know each other from the start, so
that they are a settled cluster that a real node can join. It prints their first gossip addresses, with commas between,
and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

from zephyr.config import Settings
from zephyr.events import (
    Effect,
    Event,
    Note,
    OpenStream,
    ReplyStream,
    ResolveSeeds,
    SendDatagram,
    SendNews,
    Stop,
)
from zephyr.gossip.swim import Swim
from zephyr.gossip.udp import GossipHost, GossipTransport
from zephyr.gossip.wire import Envelope
from zephyr.model import Instant, Member
from zephyr.peer.tcp import PeerHost, PeerTransport
from zephyr.peer.wire import Operation, Status

SEEDS = 3
"""Addresses printed: more than one, as in any cluster."""


def _now() -> Instant:
    return Instant(time.monotonic(), time.time_ns() // 1_000_000)


def _ignore(*_arguments: Any) -> None:
    pass


class LightPeer:
    """One machine and its sockets."""

    swim: Swim

    def __init__(self, settings: Settings) -> None:
        """Bind nothing yet."""
        self.settings = settings
        self.epoch = _now().unix_ms
        self.rng = random.Random()  # jitter, not secrets
        self._timer: asyncio.TimerHandle | None = None
        envelope = Envelope(settings.cluster, settings.id, None, os.urandom)
        self.gossip = GossipTransport(settings, envelope, GossipHost(self._dispatch, lambda: self.swim.member.epoch))
        host = PeerHost(
            identity=lambda: self.swim.member, ring_digest=lambda: bytes(8), serve=self._serve, replied=_ignore,
            failed=_ignore, connected=_ignore, disconnected=_ignore, refused=_ignore, probed=_ignore,
        )  # fmt: skip
        self.peers = PeerTransport(settings, host, self.rng)
        self._carry_out: dict[type, Callable[[Any], None]] = dict.fromkeys((Note, SendNews, Stop), _ignore)
        self._carry_out |= dict.fromkeys((SendDatagram, OpenStream, ReplyStream, ResolveSeeds), self.gossip.execute)

    async def bind(self) -> Member:
        """Take ports; return who it is."""
        await self.gossip.bind()
        await self.peers.bind()
        gossip, peer = self.gossip.address, self.peers.address
        member = Member(self.settings.id, peer, gossip, peer, self.epoch)
        self.swim = Swim(self.settings, member, self.rng)
        return member

    async def start(self, members: list[Member]) -> None:
        """Begin as one of a settled cluster."""
        self.swim.assume(members, _now())
        await self.peers.start()
        self.gossip.start()
        self._execute(self.swim.start(_now()))

    def _dispatch(self, event: Event) -> None:
        self._execute(self.swim.handle(event, _now()))

    def _serve(self, operation: int, arguments: tuple[Any, ...], _digest: bytes) -> tuple[int, tuple[Any, ...]]:
        if operation != Operation.NEWS:
            return Status.BAD_REQUEST, ("a light peer",)
        self.gossip.receive_news(*arguments)
        return Status.OK, ()

    def _execute(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._carry_out[type(effect)](effect)
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, self.swim.deadline() - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self.gossip.drain()
        self._execute(self.swim.poll(_now()))


async def run(count: int, cluster: str, profile: str) -> None:
    """Run so many peers until the process is ended."""
    anywhere = "127.0.0.1:0"
    peers = [
        LightPeer(
            Settings(
                id=f"light{number}", cluster=cluster, gossip=anywhere, peer=anywhere, etcd=(), gossip_profile=profile
            )
        )
        for number in range(1, count + 1)
    ]
    members = [await peer.bind() for peer in peers]
    for peer in peers:
        await peer.start(members)
    print(",".join(member.gossip for member in members[:SEEDS]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
