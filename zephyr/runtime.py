"""The composition root: builds the node and its adapters, starts them in order, carries out effects.

The only place that knows all parts. It decides nothing: events go into `Node.handle`, effects go to the
adapter that can carry them out. One timer follows `Node.deadline()`. Start is ports first, so that a
taken one stops everything before anyone was told, then etcd and the peers; stop is the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import math
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import uvloop

from zephyr import __version__
from zephyr.api.http import HttpApi
from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError, WireError
from zephyr.etcd.client import EtcdClient
from zephyr.etcd.registration import Keyspace
from zephyr.events import (
    CONTROL_CALL_ID_MIN,
    CheckKeys,
    CompleteRequest,
    CompleteSurvey,
    Effect,
    Event,
    EvictMember,
    GrantLease,
    IdentityProbed,
    KeepLeaseAlive,
    LeaveRequested,
    LoopLagged,
    Note,
    OpenStream,
    PeerAnswered,
    PeerCallFailed,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    ProbeIdentity,
    PublishView,
    ReadSnapshot,
    ReplyStream,
    ResolveSeeds,
    RevokeLease,
    SendDatagram,
    SendNews,
    SendPeer,
    SetPeers,
    Started,
    Stop,
    TimerFired,
    TransactKey,
    WatchKeys,
)
from zephyr.gossip.messages import Alive
from zephyr.gossip.udp import GossipHost, GossipTransport
from zephyr.gossip.wire import Envelope, Keyring, encode_message
from zephyr.metrics import Metrics
from zephyr.model import (
    Address,
    Explanation,
    Instant,
    Member,
    Outcome,
    ReadRequest,
    Request,
    ScanPage,
    ScanRequest,
    WriteRequest,
)
from zephyr.node import Node
from zephyr.peer.tcp import PeerHost, PeerTransport
from zephyr.peer.wire import Operation, Status
from zephyr.replication.coordinator import Pending
from zephyr.replication.update import encode_outcome

LAG_PERIOD_S = 0.1
"""How often the event loop's lag is measured."""
LAG_TOLD_S = 0.05
"""From this lag on the core is told, and once more when it is over: less does not concern it."""
FILES_BESIDE_CLIENTS = 2048
"""File descriptors beside clients' connections: peers, both ways, etcd, and what a process has anyway."""
COLLECT_AFTER = 20_000
"""New containers after which the garbage collector looks for cycles: what a request makes goes by itself, and CPython's
700 are made, and looked at in vain, several times in one batch."""
EXIT_CONFIG = 64
"""Exit code of unusable settings."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("zephyr")


def now() -> Instant:
    """Read both clocks."""
    return Instant(time.monotonic(), time.time_ns() // 1_000_000)


def configure_logging(settings: Settings) -> None:
    """Log events with fields to stderr, for people or as JSON."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class Runtime:
    """One running node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started = now()
        self._rng = random.Random()  # noqa: S311  # jitter and back-off, not secrets
        self._waiting: dict[int, asyncio.Future[Any] | _Together] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._stop: asyncio.Future[Stop] | None = None
        self._carry_out: dict[type, Callable[[Any], None]] = {}
        self.etcd: EtcdClient | None = None

    async def run(self) -> int:
        """Run until the node leaves, is told to stop, or cannot go on. Return the exit code."""
        self._loop = asyncio.get_running_loop()
        self._stop = self._loop.create_future()
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            stop = await self._stop
        if stop.exit_code:
            log.error("stopped", reason=stop.reason)
        return stop.exit_code

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start part after part; the stack stops them in reverse."""
        settings = self.settings
        host = PeerHost(
            identity=lambda: self.node.member,
            ring_digest=lambda: self.node.view.digest,
            serve=self._serve_peer,
            replied=self._peer_replied,
            failed=self._peer_failed,
            connected=lambda member: self.dispatch(PeerConnected(member)),
            disconnected=lambda node_id, reason, goodbye: self.dispatch(PeerDisconnected(node_id, reason, goodbye)),
            refused=lambda node_id, epoch: self.dispatch(PeerRefused(node_id, epoch)),
            probed=lambda address, member, reason: self.dispatch(IdentityProbed(address, member, reason)),
        )
        self.peers = PeerTransport(settings, host, self._rng)
        await self.peers.bind()
        stack.push_async_callback(self.peers.close)
        self.envelope = Envelope(settings.cluster, settings.id, read_keyring(settings), os.urandom)
        gossip_host = GossipHost(dispatch=self.dispatch, epoch=lambda: self.node.member.epoch)
        self.gossip = GossipTransport(settings, self.envelope, gossip_host)
        await self.gossip.bind()
        stack.push_async_callback(self.gossip.close)
        self.metrics = Metrics()
        self.api = HttpApi(settings, backend=self, dispatch=self.dispatch, now=now, metrics=self.metrics)
        await self.api.bind()
        stack.push_async_callback(self.api.close)
        self.node = Node(settings, self._announcement(), self._rng, now())
        self.metrics.peer_results = self.peers.counters.results
        self.metrics.peer_totals = self.peers.counters.totals
        counters = self.gossip.counters
        self.metrics.gossip_totals = lambda: (counters.messages, counters.drops)
        self.metrics.gossip_transport = lambda: {"send_errors": counters.send_errors, "streams": counters.streams}
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        if settings.etcd:
            keyspace = Keyspace(settings.cluster)
            self.etcd = EtcdClient(settings, keyspace.range_start, keyspace.range_end, self.dispatch, self._rng)
            stack.push_async_callback(self.etcd.close)
        self._carry_out = self._table_of_effects()
        await self.peers.start()
        self.gossip.start()
        lag = tasks.create_task(self._measure_lag())
        stack.callback(lag.cancel)
        self._listen_to_signals()
        self.api.serve(self.node)
        log.info(
            "started", id=settings.id, version=__version__, http=self.node.member.http, peer=self.node.member.peer,
            etcd=",".join(settings.etcd) or "none",
        )  # fmt: skip
        self.dispatch(Started())

    def _announcement(self) -> Member:
        """Say who this node is: its bound ports under the host that others can reach. Raises ConfigError."""
        settings = self.settings
        member = Member(
            id=settings.id,
            http=self._advertised(self.api.bound_address),
            gossip=self._advertised(self.gossip.address),
            peer=self._advertised(self.peers.address),
            epoch=self.started.unix_ms,
            weight=settings.weight,
            zone=settings.zone,
        )
        try:
            encode_message(Alive(member, 0))
        except WireError as error:
            raise ConfigError(f"--id, --zone and --advertise: together too long, {error}") from None
        return member

    def _advertised(self, bound: Address) -> Address:
        host, port = parse_address(bound)
        if self.settings.advertise:
            host = self.settings.advertise
        elif _is_any(host):
            host = default_route_host()
        return format_address(host, port)

    def _listen_to_signals(self) -> None:
        asked = False

        def on_signal() -> None:
            nonlocal asked
            if asked:
                self._end(Stop(1, "told twice to stop"))
                return
            asked = True
            log.info("leaving", drain_timeout_s=self.settings.drain_timeout)
            self.api.stop_accepting()
            self._loop.call_later(self.settings.drain_timeout, self._end, Stop(0, "the drain time-out passed"))
            self.dispatch(LeaveRequested())

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, on_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_keyring)

    def _reload_keyring(self) -> None:
        """Read the keys anew; a file that is unusable now changes nothing."""
        try:
            self.envelope.keyring = read_keyring(self.settings)
        except ConfigError as error:
            log.error("keyring", detail=str(error))  # noqa: TRY400  # one line tells all
            return
        keyring = self.envelope.keyring
        log.info("keyring", keys=len(keyring.keys) if keyring else 0)

    # --- events in ------------------------------------------------------------------------------------

    def dispatch(self, event: Event) -> None:
        """Hand an event to the core and carry out what it wants."""
        self.execute(self.node.handle(event, now()))
        self._arm()

    def submit(self, request: Request) -> Outcome | asyncio.Future[Outcome]:
        """Begin a client's request: its outcome at once, or a future of it."""
        if type(request) is ReadRequest:
            result = self.node.begin_read(request, now())
        elif type(request) is WriteRequest:
            result = self.node.begin_write(request, now())
        else:
            result = self.node.begin_update(request, now())  # type: ignore[arg-type]
        return result if type(result) is Outcome else self._awaited(result)  # type: ignore[arg-type]

    def submit_all(
        self, requests: Sequence[ReadRequest | WriteRequest]
    ) -> list[Outcome] | asyncio.Future[list[Outcome]]:
        """Begin many requests at once: what goes to one peer goes in one frame."""
        begun, effects = self.node.begin_all(requests, now())
        together = _Together(begun, self._loop.create_future())
        self._waiting.update(dict.fromkeys(together.rows, together))
        self.execute(effects)
        self._arm()
        return together.future if together.rows else together.outcomes

    def scan(self, request: ScanRequest) -> asyncio.Future[ScanPage]:
        """List a page of keys."""
        return self._surveyed(self.node.begin_scan(request, now()))

    def explain(self, key: bytes) -> asyncio.Future[Explanation]:
        """Ask every member what it holds of a key."""
        return self._surveyed(self.node.begin_explain(key, now()))

    def _future(self, request_id: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[request_id] = future
        return future

    def _awaited(self, pending: Pending) -> asyncio.Future[Any]:
        """Do what a request begins with; its end comes as an effect, maybe one of these."""
        future = self._future(pending.request_id)
        self.execute(pending.effects)
        self._arm_for_request()
        return future

    def _surveyed(self, pending: Pending) -> asyncio.Future[Any]:
        future = self._awaited(pending)
        self._arm()
        return future

    def _serve_peer(
        self, operation: int, arguments: tuple[Any, ...], digest: bytes
    ) -> tuple[int, tuple[Any, ...]] | asyncio.Future[tuple[int, tuple[Any, ...]]]:
        if operation == Operation.NEWS:
            return self._receive_news(arguments)
        reply = self.node.serve_peer(operation, arguments, digest, now())
        if type(reply) is Pending:
            answer: asyncio.Future[tuple[int, tuple[Any, ...]]] = self._loop.create_future()
            made = self._awaited(reply)
            made.add_done_callback(lambda done: answer.set_result((Status.OK, encode_outcome(done.result()))))
            return answer
        if operation in (Operation.VIEW, Operation.KEEP):
            self._arm()  # A lease may have to be renewed for the peer; what is kept may be due.
        return reply  # type: ignore[return-value]

    def _receive_news(self, arguments: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        match arguments:
            case (bytes(packet),):
                self.gossip.receive_news(packet)
                return Status.OK, ()
            case _:
                return Status.BAD_REQUEST, ("no packet",)

    def _send_news(self, effect: SendNews) -> None:
        self.peers.tell(effect.node_ids, Operation.NEWS, (self.gossip.seal_news(effect.messages),))

    def _peer_replied(self, call_id: int, status: int, payload: tuple[Any, ...]) -> None:
        if call_id >= CONTROL_CALL_ID_MIN:
            self.dispatch(PeerAnswered(call_id, status, payload))
        else:
            self.execute(self.node.peer_replied(call_id, status, payload, now()))
            self._arm_for_request()

    def _peer_failed(self, call_id: int, reason: str, sent: bool) -> None:  # noqa: FBT001  # the transport's callback
        if call_id >= CONTROL_CALL_ID_MIN:
            self.dispatch(PeerCallFailed(call_id, reason))
        else:
            self.execute(self.node.peer_failed(call_id, reason, now(), sent=sent))
            self._arm_for_request()

    def _arm(self) -> None:
        """Move the one timer forward to the node's deadline; a later deadline is found when it fires."""
        deadline_s = self.node.deadline()
        if deadline_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = deadline_s
            # The loop counts in ms and would fire before a moment that it rounds down.
            delay_ms = math.ceil(max(0.0, deadline_s - time.monotonic()) * 1000)
            self._timer = self._loop.call_later(delay_ms / 1000, self._fire)

    def _arm_for_request(self) -> None:
        """Move the timer forward where a request waits for an earlier moment; nothing else has changed."""
        if self.node.coordinator.due_s < self._timer_s:
            self._arm()

    def _fire(self) -> None:
        self._timer, self._timer_s = None, float("inf")
        if self.node.deadline() > time.monotonic():
            self._arm()  # Whoever waited for this moment has what it waited for: a read grows impatient in vain.
            return
        self.gossip.drain()  # After a stall, the answers that waited count before the time-outs do.
        self.dispatch(TimerFired())

    # --- effects out ----------------------------------------------------------------------------------

    def execute(self, effects: list[Effect]) -> None:
        """Carry out effects in order."""
        for effect in effects:
            self._carry_out[type(effect)](effect)

    def _table_of_effects(self) -> dict[type, Callable[[Any], None]]:
        table: dict[type, Callable[[Any], None]] = {
            SendPeer: self.peers.send,
            CompleteRequest: lambda effect: self._complete(effect.request_id, effect.outcome),
            CompleteSurvey: lambda effect: self._complete(effect.request_id, effect.result),
            SetPeers: lambda effect: self.peers.set_peers(effect.members),
            ProbeIdentity: lambda effect: self.peers.probe(effect.address),
            PublishView: lambda _effect: self.api.happened(),  # Pages read the view from the node.
            Note: self._log,
            Stop: self._end,
            SendNews: self._send_news,
        }
        table |= dict.fromkeys((SendDatagram, OpenStream, ReplyStream, ResolveSeeds), self.gossip.execute)
        if self.etcd is not None:
            for kind in (
                ReadSnapshot,
                CheckKeys,
                WatchKeys,
                GrantLease,
                KeepLeaseAlive,
                RevokeLease,
                TransactKey,
                EvictMember,
            ):
                table[kind] = self.etcd.execute
        return table

    def _complete(self, request_id: int, result: Outcome | ScanPage | Explanation) -> None:
        waiting = self._waiting.pop(request_id)
        if type(waiting) is _Together:
            waiting.take(request_id, result)  # type: ignore[arg-type]
        elif not waiting.done():  # type: ignore[union-attr]  # The client may have gone.
            waiting.set_result(result)  # type: ignore[union-attr]

    def _log(self, effect: Note) -> None:
        entry = effect.entry
        log.info(entry.kind, source=entry.source, member=entry.member, detail=entry.detail)
        self.api.happened()

    def _end(self, stop: Stop) -> None:
        assert self._stop is not None
        if not self._stop.done():
            self._stop.set_result(stop)

    async def _measure_lag(self) -> None:
        """Measure how late the event loop wakes a task: a node that stalls must know it."""
        was_told = False
        while True:
            asked_s = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_S)
            lag_s = max(0.0, time.monotonic() - asked_s - LAG_PERIOD_S)
            self.metrics.observe_event_loop_lag(lag_s)
            if lag_s >= LAG_TOLD_S or was_told:
                was_told = lag_s >= LAG_TOLD_S
                self.dispatch(LoopLagged(lag_s))


class _Together:
    """Requests that were begun together, and one future for all of them."""

    __slots__ = ("future", "outcomes", "rows")

    def __init__(self, begun: Sequence[Outcome | Pending], future: asyncio.Future[list[Outcome]]) -> None:
        self.future = future
        self.outcomes: list[Any] = list(begun)
        self.rows = {item.request_id: row for row, item in enumerate(begun) if type(item) is Pending}
        """Those that wait, by their ids."""

    def take(self, request_id: int, outcome: Outcome) -> None:
        self.outcomes[self.rows.pop(request_id)] = outcome
        if not self.rows and not self.future.done():  # The client may have gone.
            self.future.set_result(self.outcomes)


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def default_route_host() -> str:
    """Return the address this machine uses towards the outside; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 of RFC 5737: routed like any outside address.
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def read_keyring(settings: Settings) -> Keyring | None:
    """Read the file of `--gossip-keyring`. Raises ConfigError with one line."""
    if not settings.gossip_keyring:
        return None
    try:
        text = Path(settings.gossip_keyring).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise ConfigError(f"--gossip-keyring: cannot read {settings.gossip_keyring}: {reason}") from None
    try:
        return Keyring.parse(text)
    except ConfigError as error:
        raise ConfigError(f"--gossip-keyring: {settings.gossip_keyring}: {error}") from None


def raise_file_limit(connections_max: int) -> None:
    """Let this process open as many sockets as the settings allow, as far as the system lets it."""
    wanted = connections_max + FILES_BESIDE_CLIENTS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("file-limit", allowed=allowed, wanted=wanted, detail="raise ulimit -n or lower --connections-max")


def tune_collector() -> None:
    """Have the garbage collector look at what is new more rarely, and never again at what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def run(settings: Settings) -> int:
    """Run a node to its end. Return the exit code: 0 left, 1 could not go on, 64 unusable settings."""
    configure_logging(settings)
    raise_file_limit(settings.connections_max)
    tune_collector()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Runtime(settings).run())
    except ConfigError as error:
        print(f"zephyr: {error}", file=sys.stderr)  # noqa: T201  # one line for the person who started it
        return EXIT_CONFIG
