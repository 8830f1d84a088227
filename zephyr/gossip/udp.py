"""Gossip's sockets: datagrams by UDP, push-pull and TCP pings by short streams on the same port number.

Translates packets to events and effects to packets, and decides nothing: what is not authentic and well-formed
is counted by cause and dropped (`zephyr.gossip.wire`), the rest goes to the core.

A stream carries one packet each way, each after its length in 4 bytes, big-endian; then it is closed.

Invariants:
- Reading a datagram socket takes a bounded time a turn; `drain` reads what waits before time-outs are judged.
- Streams are bounded in number, size and time, on both sides. A stream whose first packet is not authentic is closed
  without a word, so that strangers learn nothing.
- Each `OpenStream` ends in exactly one StreamReplied or StreamFailed, unless the transport closes.
- Closing leaves no socket, task or timer behind.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError, WireError
from zephyr.events import (
    DatagramReceived,
    Event,
    OpenStream,
    ReplyStream,
    ResolveSeeds,
    SendDatagram,
    StreamFailed,
    StreamReceived,
    StreamReplied,
)
from zephyr.gossip.dns import Resolver, is_ip
from zephyr.gossip.messages import Packet
from zephyr.gossip.wire import PACKET_BYTES_MAX, STREAM_BYTES_MAX, Envelope
from zephyr.model import Address

RECEIVE_BUFFER_BYTES = 1 << 20
"""Asked of the kernel: a thousand datagrams, which is a stall of seconds in the largest ring."""
DATAGRAMS_A_TURN = 64
"""Read in one turn of the event loop, so that a flood leaves time for clients."""
DRAIN_MAX = 2048
"""Read before time-outs are judged: more than the kernel holds."""
PORT_ATTEMPTS = 16
"""Tries to find a port number that is free for UDP and TCP where any will do."""

STREAMS_SERVED_MAX = 128
"""Streams of others at once: each holds up to a megabyte for a moment."""
STREAM_SERVE_TIMEOUT_S = 10.0
"""For all of one such stream."""
LENGTH_BYTES = 4
FRAME_BYTES_MAX = STREAM_BYTES_MAX + PACKET_BYTES_MAX

DESTINATIONS_MAX = 4096
"""Addresses kept parsed."""
NAME_LIFETIME_S = 30.0
"""How long the address of a name is believed."""
NAMES_MAX = 256
"""Names that are resolved or being resolved; members announce IP addresses nearly always."""


@dataclass(slots=True)
class GossipCounters:
    """Running totals since the start, for metrics."""

    messages: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind of packet, direction): datagram, stream or news; in or out."""
    drops: Counter[str] = field(default_factory=Counter)
    """Packets dropped, by cause."""
    send_errors: Counter[str] = field(default_factory=Counter)
    """Datagrams that the system did not take, by the name of the error."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Of datagrams, by direction."""


@dataclass(frozen=True, slots=True)
class GossipHost:
    """What the transport asks of, and tells, the program around it."""

    dispatch: Callable[[Event], None]
    epoch: Callable[[], int]
    """Boot epoch of this node as it is now."""


class _Service(asyncio.Protocol):
    """Reads one frame of a stream."""

    transport: asyncio.Transport

    def __init__(self, owner: GossipTransport, *, stream_id: int = 0, request: bytes = b"") -> None:
        """With `request` this side asks: it sends the frame, and waits for the answer."""
        self._owner = owner
        self._request = request
        self._buffer = bytearray()
        self._stream_id = stream_id
        self._is_done = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self._request:
            self.transport.write(self._request)
        elif not self._owner.served_began(self):
            self.transport.abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(STREAM_SERVE_TIMEOUT_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._is_done:
            return
        self._buffer += data
        if len(self._buffer) < LENGTH_BYTES:
            return
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if length > FRAME_BYTES_MAX:
            self._owner.counters.drops["oversized"] += 1
            self._end(None, "the answer is too long")
        elif len(self._buffer) >= LENGTH_BYTES + length:
            self._read(bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + length]))

    def eof_received(self) -> None:
        self._end(None, "closed without an answer")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the reason changes nothing
        if self._timer is not None:
            self._timer.cancel()
        self._end(None, "closed without an answer")
        if not self._request:
            self._owner.served_ended(self, self._stream_id)

    def _read(self, frame: bytes) -> None:
        packet = self._owner.opened_stream(frame)
        if packet is None:
            self._end(None, "the answer is not authentic")
            return
        self._is_done = True
        self._buffer.clear()
        if self._request:
            self._owner.stream_ended(self._stream_id, packet, "")
            self.transport.close()
        else:
            self._stream_id = self._owner.stream_received(self, packet)

    def _end(self, packet: Packet | None, reason: str) -> None:
        if not self._is_done:
            self._is_done = True
            if self._request:
                self._owner.stream_ended(self._stream_id, packet, reason)
            self.transport.abort()


class GossipTransport:
    """Every gossip socket of one node."""

    def __init__(
        self, settings: Settings, envelope: Envelope, host: GossipHost, resolver: Resolver | None = None
    ) -> None:
        """Bind nothing yet."""
        self.envelope = envelope
        self.counters = GossipCounters()
        self._settings = settings
        self._host = host
        self._resolver = resolver or Resolver()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._destinations: dict[Address, tuple[Any, ...]] = {}
        self._names: dict[str, tuple[str, float]] = {}
        """Host name -> (IP address or empty while it is asked for, believed until)."""
        self._served: dict[_Service, None] = {}
        self._answering: dict[int, _Service] = {}
        self._last_stream = 0
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- life ---------------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """The bound address: differs from `settings.gossip` where that leaves the port open (`:0`)."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return format_address(host, port)

    async def bind(self) -> None:
        """Bind UDP and TCP to the same port. Raises ConfigError, with nothing left open, when that is not possible."""
        self._loop = asyncio.get_running_loop()
        address = self._settings.gossip
        host, port = parse_address(address)
        try:
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise ConfigError(f"--gossip: cannot listen at {address}: {error.strerror}") from None
        family, _, _, _, where = found[0]
        for attempt in range(PORT_ATTEMPTS if port == 0 else 1):
            try:
                await self._bind(family, where)
            except OSError as error:
                self._unbind()
                if error.errno == errno.EADDRINUSE and port == 0 and attempt + 1 < PORT_ATTEMPTS:
                    continue
                if error.errno == errno.EADDRINUSE:
                    raise ConfigError(f"--gossip: {address} is taken by another program") from None
                raise ConfigError(f"--gossip: cannot listen at {address}: {error.strerror}") from None
            return

    async def _bind(self, family: int, where: tuple[Any, ...]) -> None:
        self._socket = sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)  # the socket's own interface
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind(where)
        host, port = sock.getsockname()[:2]
        self._server = await self._loop.create_server(
            lambda: _Service(self), host, port, backlog=STREAMS_SERVED_MAX, start_serving=False
        )

    def _unbind(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def start(self) -> None:
        """Begin to read."""
        assert self._socket is not None
        assert self._server is not None
        self._loop.add_reader(self._socket, self._readable)
        await self._server.start_serving()

    async def close(self) -> None:
        """Close everything. What is under way ends without a word."""
        self._closing = True
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
        if self._server is not None:
            self._server.close()
        for service in list(self._served):
            service.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._resolver.close()
        self._unbind()

    # --- datagrams ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Read every datagram that waits."""
        self._read_datagrams(DRAIN_MAX)

    def _readable(self) -> None:
        self._read_datagrams(DATAGRAMS_A_TURN)

    def _read_datagrams(self, count_max: int) -> None:
        sock = self._socket
        if sock is None or self._closing:
            return
        for _ in range(count_max):
            try:
                data, source = sock.recvfrom(PACKET_BYTES_MAX + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # An ICMP answer to an earlier packet: it belongs to no packet that waits.
                self.counters.send_errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1
                continue
            self.counters.bytes["in"] += len(data)
            self._take(data, format_address(source[0], source[1]), "datagram")

    def receive_news(self, packet: bytes) -> None:
        """Take in a packet that came over a peer connection."""
        self._take(packet, "", "news")

    def seal_news(self, messages: Sequence[bytes]) -> bytes:
        """Return a packet for peer connections."""
        self.counters.messages["news", "out"] += 1
        return self.envelope.seal(messages, self._host.epoch())

    def _take(self, data: bytes, source: Address, kind: str) -> None:
        try:
            packet = self.envelope.open(data)
        except WireError as error:
            self.counters.drops[error.cause] += 1
            return
        self.counters.messages[kind, "in"] += 1
        self._host.dispatch(DatagramReceived(source, packet))

    def execute(self, effect: SendDatagram | OpenStream | ReplyStream | ResolveSeeds) -> None:
        """Carry out an effect."""
        if self._closing:
            return
        match effect:
            case SendDatagram(address, messages):
                self._send(address, messages)
            case OpenStream():
                self._asking[effect.stream_id] = self._spawn(self._ask(effect))
            case ReplyStream(stream_id, messages):
                self._answer(stream_id, messages)
            case ResolveSeeds(seeds):
                self._spawn(self._resolve(seeds))

    def _send(self, address: Address, messages: Sequence[bytes]) -> None:
        destination = self._destinations.get(address) or self._destination(address)
        sock = self._socket
        if destination is None or sock is None:
            self.counters.send_errors["unresolved"] += 1
            return
        packet = self.envelope.seal(messages, self._host.epoch())
        try:
            sock.sendto(packet, destination)
        except OSError as error:  # Gossip bears loss; the core hears of it as silence.
            self.counters.send_errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1
            return
        self.counters.messages["datagram", "out"] += 1
        self.counters.bytes["out"] += len(packet)

    def _destination(self, address: Address) -> tuple[Any, ...] | None:
        """Return where to send to; None for a name that is being resolved."""
        host, port = parse_address(address)
        if is_ip(host):
            if len(self._destinations) >= DESTINATIONS_MAX:
                self._destinations.clear()
            self._destinations[address] = (host, port)
            return host, port
        known, until_s = self._names.get(host, ("", 0.0))
        if self._loop.time() >= until_s:
            if len(self._names) >= NAMES_MAX:
                self._names.clear()
            self._names[host] = (known, self._loop.time() + NAME_LIFETIME_S)
            self._spawn(self._look_up(host))
        return (known, port) if known else None

    async def _look_up(self, host: str) -> None:
        try:
            found = await self._resolver.hosts(host)
        except OSError:
            self._names.pop(host, None)
            return
        if found:
            self._names[host] = (found[0], self._loop.time() + NAME_LIFETIME_S)

    async def _resolve(self, seeds: tuple[str, ...]) -> None:
        self._host.dispatch(await self._resolver.resolve_seeds(seeds))

    # --- streams, asked by this node ----------------------------------------------------------------

    async def _ask(self, effect: OpenStream) -> None:
        """Connect, send, and leave the rest to the connection; it is closed when the time is over."""
        stream_id = effect.stream_id
        protocol: _Service | None = None
        try:
            frame = _framed(self.envelope.seal_stream(effect.messages, self._host.epoch()))
            self.counters.messages["stream", "out"] += 1
            async with asyncio.timeout(effect.timeout_s):
                host, port = parse_address(effect.address)
                hosts = await self._resolver.hosts(host)
                _, protocol = await self._loop.create_connection(
                    lambda: _Service(self, stream_id=stream_id, request=frame), hosts[0], port
                )
                await asyncio.Event().wait()  # `stream_ended` cancels.
        except TimeoutError:
            self.stream_ended(stream_id, None, "silent")
        except ConnectionRefusedError:
            self.stream_ended(stream_id, None, "refused")
        except (OSError, WireError) as error:
            self.stream_ended(stream_id, None, str(error))
        finally:
            if protocol is not None:
                protocol.transport.close()

    def stream_ended(self, stream_id: int, packet: Packet | None, reason: str) -> None:
        """One of this node's streams got its answer, or will get none. Later calls change nothing."""
        task = self._asking.pop(stream_id, None)
        if task is None or self._closing:
            return
        if task is not asyncio.current_task():
            task.cancel()
        event = StreamFailed(stream_id, reason) if packet is None else StreamReplied(stream_id, packet)
        self._loop.call_soon(self._host.dispatch, event)

    # --- streams, asked by others -------------------------------------------------------------------

    def served_began(self, service: _Service) -> bool:
        """Count a stream; False: there are too many."""
        if len(self._served) >= STREAMS_SERVED_MAX or self._closing:
            self.counters.drops["streams"] += 1
            return False
        self._served[service] = None
        return True

    def served_ended(self, service: _Service, stream_id: int) -> None:
        """Forget a stream."""
        self._served.pop(service, None)
        self._answering.pop(stream_id, None)

    def opened_stream(self, frame: bytes) -> Packet | None:
        """Return what a stream's packet says; None, and a count, when it says nothing that counts."""
        try:
            packet = self.envelope.open_stream(frame)
        except WireError as error:
            self.counters.drops[error.cause] += 1
            return None
        self.counters.messages["stream", "in"] += 1
        return packet

    def stream_received(self, service: _Service, packet: Packet) -> int:
        """Hand the packet on; the answer comes as a ReplyStream."""
        self._last_stream += 1
        self._answering[self._last_stream] = service
        self._host.dispatch(StreamReceived(self._last_stream, packet))
        return self._last_stream

    def _answer(self, stream_id: int, messages: Sequence[bytes]) -> None:
        service = self._answering.pop(stream_id, None)
        if service is None:
            return
        try:
            frame = _framed(self.envelope.seal_stream(messages, self._host.epoch()))
        except WireError as error:
            self.counters.drops[error.cause] += 1
            service.transport.abort()
            return
        self.counters.messages["stream", "out"] += 1
        service.transport.write(frame)
        service.transport.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(LENGTH_BYTES, "big") + packet
