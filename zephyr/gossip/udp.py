"""The sockets of gossip: datagrams and streams on one port number, sealed packets in both.

Decides how an address becomes a socket's, how much is read at once, and when a stream has taken too long.
Never decides what a message means, whom to ask or when to ask again: messages go to the core as events, and the
core's effects say what to send. A packet that the `Envelope` refuses is counted by cause and leaves no other
trace, so whoever cannot seal a packet is never answered.

A stream is one exchange: connect, one frame there, one frame back, close. A frame is a length of 4 bytes
(big-endian) and a sealed stream packet.

Invariants:
- Each `OpenStream` ends in exactly one `StreamReplied` or `StreamFailed`, unless this transport is closed first.
- Sending never raises: what the network does not take is counted, and lost like any datagram.
- Streams, what they read, and datagrams that wait for a name are bounded in number, bytes and time.
- Events are dispatched from the event loop alone, but for `drain` and `receive_news`, which are called to do so.
- Closing takes a bounded time, and leaves no socket, task or timer behind.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError, WireError
from zephyr.events import (
    DatagramReceived,
    Event,
    GossipEffect,
    OpenStream,
    ReplyStream,
    ResolveSeeds,
    SendDatagram,
    StreamFailed,
    StreamReceived,
    StreamReplied,
)
from zephyr.gossip.dns import Resolver, resolve_seeds
from zephyr.gossip.messages import Packet
from zephyr.gossip.wire import MESSAGE_NAMES, PACKET_BYTES_MAX, STREAM_BYTES_MAX, Envelope, message_name
from zephyr.model import Address
from zephyr.peer.connection import error_name

READ_MAX = 64
"""Datagrams read in one turn of the event loop: some 3 ms of work, so that clients do not wait behind a flood."""
DRAIN_MAX = 1024
"""Datagrams that `drain` reads: more than the receive buffer holds of the smallest, so all that waited."""
RECEIVE_BUFFER_BYTES = 1 << 20
"""Wanted for datagrams that arrive while the event loop is busy; the system may grant less."""

TARGETS_MAX = 4096
"""Addresses whose socket form is remembered, either way: several for each member of the largest ring."""
NAMES_MAX = 1024
"""Host names whose addresses are remembered: several for each member of the largest ring."""
NAME_TTL_S = 30.0
"""A name is looked up again after this: a container that began anew elsewhere is found within it."""
NAME_RETRY_S = 1.0
"""As above, for a name that had no address."""
NAME_WAITING_MAX = 16
"""Datagrams that wait for one name; by then the first of them are out of date."""
LOOKUPS_MAX = 64
"""Names looked up at once."""

STREAMS_OPEN_MAX = 64
"""Streams of this node's own under way: a TCP ping ends with its probe, and a push-pull comes every 15 s or more."""
STREAMS_SERVED_MAX = 64
"""Streams of others under way. Each may hold a frame, so this bounds their memory as well: 16 MiB."""
ACCEPT_MAX = 16
"""Connections accepted in one turn of the event loop."""
ACCEPT_PAUSE_S = 1.0
"""Rest after the system had no file descriptor or memory for another connection."""
REQUEST_TIMEOUT_S = 5.0
"""From accepted to the whole request read. Honest senders write it at once."""
REPLY_TIMEOUT_S = 5.0
"""From the request to the whole reply written. The core answers at once, or never."""
READ_BYTES_MAX = 64 << 10
"""Read from a stream at once."""
LENGTH_BYTES = 4

PORT_TRIES = 16
"""Ports that the system picks for TCP, until one is free for UDP too."""
CLOSE_TIMEOUT_S = 1.0
"""For the tasks, all of them cancelled, to end."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

SocketAddress: TypeAlias = tuple[Any, ...]
"""(host, port), or for IPv6 (host, port, flow, scope), with a literal as the host."""
Target: TypeAlias = tuple[socket.AddressFamily, SocketAddress]


@dataclass(frozen=True, slots=True)
class GossipHost:
    """What the transport asks of, and tells, the program around it. Neither may block or raise."""

    dispatch: Callable[[Event], None]
    epoch: Callable[[], int]
    """Boot epoch of this node."""


@dataclass(slots=True)
class GossipCounters:
    """Running totals since the start, for metrics. A transport is udp, tcp or peer; a direction is sent or received."""

    packets: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (transport, direction); received ones whether good or not."""
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of these packets."""
    messages: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (type, direction); of good packets only."""
    drops: Counter[str] = field(default_factory=Counter)
    """Received packets that were refused, by `WireError.cause`."""
    send_errors: Counter[str] = field(default_factory=Counter)
    """Packets that could not be sent: by the system's name of the error (EPERM, ENETUNREACH, ...), or oversized,
    no-address (it is none, or its name has none) or waiting (too many wait for the name)."""
    streams: Counter[str] = field(default_factory=Counter)
    """opened and answered here; served; refused (too many of either) and late (cut for taking too long)."""


class _Name:
    """What is known of one host name, and what waits for it."""

    __slots__ = ("hosts", "is_looked_up", "until_s", "waiting")

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.until_s = 0.0
        self.is_looked_up = False
        self.waiting: list[tuple[int, Sequence[bytes]]] = []
        """(port, messages)."""


class _Served:
    """One stream that somebody else opened."""

    __slots__ = ("is_authentic", "reply", "sock", "task")

    def __init__(self, sock: socket.socket, reply: asyncio.Future[Sequence[bytes]]) -> None:
        self.sock = sock
        self.reply = reply
        self.is_authentic = False
        self.task: asyncio.Task[None] | None = None


class GossipTransport:
    """The datagrams and streams of one node."""

    _loop: asyncio.AbstractEventLoop
    _family: socket.AddressFamily

    def __init__(
        self, settings: Settings, envelope: Envelope, host: GossipHost, resolver: Resolver | None = None
    ) -> None:
        """Bind nothing yet."""
        self.counters = GossipCounters()
        self._settings = settings
        self._envelope = envelope
        self._host = host
        self._resolver = Resolver() if resolver is None else resolver
        self._datagrams: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._accept_timer: asyncio.TimerHandle | None = None
        self._started = False
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._served: dict[int, _Served] = {}
        self._served_id = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._targets: dict[Address, Target] = {}
        self._sources: dict[SocketAddress, Address] = {}
        self._names: dict[str, _Name] = {}
        self._lookups = 0
        self._execute: dict[type, Callable[[Any], None]] = {
            SendDatagram: self._send,
            OpenStream: self._open,
            ReplyStream: self._reply,
            ResolveSeeds: self._resolve,
        }

    # --- opening and closing --------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """The bound address: differs from `settings.gossip` where that names a host or leaves the port open (`:0`)."""
        assert self._datagrams is not None
        return _format(self._datagrams.getsockname())

    async def bind(self) -> None:
        """Bind `settings.gossip` for UDP and TCP, and read nothing yet.

        Raises ConfigError, with nothing left open, when that is not possible.
        """
        self._loop = asyncio.get_running_loop()
        address = self._settings.gossip
        host, port = parse_address(address)
        try:
            hosts = await self._resolver.addresses(host)
            # A name with both goes to IPv4: the other nodes of a machine are told to use 127.0.0.1.
            literal = next((host for host in hosts if ":" not in host), hosts[0])
            self._family, bound = _target(literal, port)
            self._datagrams, self._listener = _bind_both(self._family, bound)
        except OSError as error:
            await self._resolver.close()
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"--gossip: {address} is taken by another program") from None
            raise ConfigError(f"--gossip: cannot listen at {address}: {error_name(error)}") from None

    def start(self) -> None:
        """Read datagrams and accept streams, from the next turn of the event loop on."""
        assert self._datagrams is not None
        assert self._listener is not None
        self._started = True
        self._loop.add_reader(self._datagrams, self._read, READ_MAX)
        self._loop.add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """Close everything, within `CLOSE_TIMEOUT_S`. Open streams end without an event."""
        if self._stopping:
            return
        self._stopping = True
        if self._accept_timer is not None:
            self._accept_timer.cancel()
        for sock in (self._datagrams, self._listener):
            if sock is not None:
                if self._started:
                    self._loop.remove_reader(sock)
                sock.close()
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
        await self._resolver.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what the runtime calls -----------------------------------------------------------------------

    def execute(self, effect: GossipEffect) -> None:
        """Carry out an effect, or begin to. `SendNews` is none of this transport's: see `seal_news`."""
        if not self._stopping:
            self._execute[type(effect)](effect)

    def drain(self) -> None:
        """Read and dispatch the datagrams that wait, `DRAIN_MAX` at most.

        To be called before a due timer is acted on: after a stall, the acks that were waiting must count before the
        time-outs do.
        """
        self._read(DRAIN_MAX)

    def seal_news(self, messages: Sequence[bytes]) -> bytes:
        """Seal a packet that goes over peer connections, and count it once. Raises WireError when it is too long."""
        packet = self._envelope.seal(messages, self._host.epoch())
        self._count_sent("peer", messages, packet)
        return packet

    def receive_news(self, packet: bytes) -> None:
        """Open and dispatch a packet that came over a peer connection."""
        if not self._stopping:
            self._receive(packet, "peer", "")

    # --- datagrams ------------------------------------------------------------------------------------

    def _read(self, count_max: int) -> None:
        """Read what waits, up to a bound; the event loop calls again for the rest."""
        for _ in range(count_max):
            if self._stopping or not self._started:
                return
            assert self._datagrams is not None
            try:
                # One byte more than is allowed shows that there was more.
                packet, source = self._datagrams.recvfrom(PACKET_BYTES_MAX + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # what became of an earlier datagram, on some systems
                self.counters.send_errors[_errno_name(error)] += 1
                continue
            self._receive(packet, "udp", self._source(source))

    def _receive(self, packet: bytes, transport: str, source: Address) -> None:
        try:
            content = self._opened(packet, transport)
        except WireError as error:
            self.counters.drops[error.cause] += 1
        else:
            self._host.dispatch(DatagramReceived(source, content))

    def _send(self, effect: SendDatagram) -> None:
        target = self._targets.get(effect.address)
        if target is None:
            try:
                host, port = parse_address(effect.address)
                target = _target(host, port)
            except ValueError:
                self.counters.send_errors["no-address"] += 1
                return
            except OSError:
                self._send_to_name(host, port, effect.messages)
                return
            _remember(self._targets, effect.address, target, TARGETS_MAX)
        self._put(effect.messages, target)

    def _put(self, messages: Sequence[bytes], target: Target) -> None:
        assert self._datagrams is not None
        family, address = target
        if family != self._family:
            self.counters.send_errors["EAFNOSUPPORT"] += 1
            return
        try:
            packet = self._envelope.seal(messages, self._host.epoch())
            self._datagrams.sendto(packet, address)
        except WireError as error:
            self.counters.send_errors[error.cause] += 1
        except OSError as error:
            self.counters.send_errors[_errno_name(error)] += 1
        else:
            self._count_sent("udp", messages, packet)

    def _source(self, address: SocketAddress) -> Address:
        source = self._sources.get(address)
        if source is None:
            source = _format(address)
            _remember(self._sources, address, source, TARGETS_MAX)
        return source

    # --- names of datagrams' destinations -------------------------------------------------------------

    def _send_to_name(self, host: str, port: int, messages: Sequence[bytes]) -> None:
        """Send to a name's address. While it is looked up again, the address known so far still serves."""
        name = self._names.get(host)
        if name is None:
            name = _Name()
            _remember(self._names, host, name, NAMES_MAX)
        if not name.is_looked_up and time.monotonic() >= name.until_s and self._lookups < LOOKUPS_MAX:
            name.is_looked_up = True
            self._lookups += 1
            self._spawn(self._look_up(host, name)).add_done_callback(self._looked_up)
        if not name.hosts and not name.is_looked_up:
            self.counters.send_errors["no-address"] += 1
        elif not name.hosts and len(name.waiting) >= NAME_WAITING_MAX:
            self.counters.send_errors["waiting"] += 1
        elif not name.hosts:
            name.waiting.append((port, messages))
        else:
            self._put_to_name(name, port, messages)

    async def _look_up(self, host: str, name: _Name) -> None:
        try:
            name.hosts = await self._resolver.addresses(host)
            name.until_s = time.monotonic() + NAME_TTL_S
        except OSError:  # the address known so far is the best guess there is
            name.until_s = time.monotonic() + NAME_RETRY_S
        name.is_looked_up = False
        waiting, name.waiting = name.waiting, []
        for port, messages in waiting:
            self._put_to_name(name, port, messages)

    def _looked_up(self, _task: asyncio.Task[None]) -> None:
        self._lookups -= 1

    def _put_to_name(self, name: _Name, port: int, messages: Sequence[bytes]) -> None:
        targets = [_target(host, port) for host in name.hosts]
        # Where none is reachable from this socket, the first is as good as any to count the error.
        targets.sort(key=lambda target: target[0] != self._family)
        if targets:
            self._put(messages, targets[0])
        else:
            self.counters.send_errors["no-address"] += 1

    # --- streams that this node opens -----------------------------------------------------------------

    def _open(self, effect: OpenStream) -> None:
        if len(self._asking) >= STREAMS_OPEN_MAX:
            self.counters.streams["refused"] += 1
            self._loop.call_soon(self._refuse, effect.stream_id)
            return
        task = self._spawn(self._exchange(effect))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _exchange(self, effect: OpenStream) -> None:
        """Send a frame, read one, and report what came of it."""
        event = await self._outcome(effect)
        # Before the event, which may ask for another stream.
        self._asking.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        self._host.dispatch(event)

    async def _outcome(self, effect: OpenStream) -> StreamReplied | StreamFailed:
        address = effect.address
        try:
            async with asyncio.timeout(effect.timeout_s):
                answer = await self._ask(address, effect.messages)
            packet = self._opened(answer, "tcp", is_stream=True)
        except TimeoutError:
            self.counters.streams["late"] += 1
            return StreamFailed(effect.stream_id, f"{address} is silent: no answer within {effect.timeout_s:g} s")
        except WireError as error:
            self.counters.drops[error.cause] += 1
            return StreamFailed(effect.stream_id, f"the answer of {address} is not authentic: {error}")
        except OSError as error:
            return StreamFailed(effect.stream_id, _describe_failure(error, address))
        self.counters.streams["answered"] += 1
        return StreamReplied(effect.stream_id, packet)

    async def _ask(self, address: Address, messages: Sequence[bytes]) -> bytes:
        """Return the sealed answer. Raises OSError, or WireError for what is no frame."""
        with await self._connect(address) as sock:
            self.counters.streams["opened"] += 1
            if not await self._write_frame(sock, messages):
                raise OSError(None, "what there is to say is longer than a stream may carry")
            return await self._read_frame(sock)

    async def _connect(self, address: Address) -> socket.socket:
        """Connect to the first address of a name that accepts; those like this node's own are tried first."""
        try:
            host, port = parse_address(address)
        except ValueError:
            raise OSError(None, "it is no HOST:PORT") from None
        targets = [_target(literal, port) for literal in await self._resolver.addresses(host)]
        targets.sort(key=lambda target: target[0] != self._family)
        refusal = OSError(None, f"{host} has no address")
        for target in targets:
            try:
                return await self._dial(target)
            except OSError as error:
                refusal = error
        raise refusal

    async def _dial(self, target: Target) -> socket.socket:
        family, address = target
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address)
            if sock.getsockname() == sock.getpeername():
                # TCP lets a socket meet itself when the free port dialled is also the one dialled from.
                raise ConnectionRefusedError
            stack.pop_all()
        return sock

    def _refuse(self, stream_id: int) -> None:
        if not self._stopping:
            self._host.dispatch(StreamFailed(stream_id, f"{STREAMS_OPEN_MAX} streams are open, no more"))

    # --- streams that others open ---------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept what waits, up to a bound; the event loop calls again for the rest."""
        assert self._listener is not None
        for _ in range(ACCEPT_MAX):
            if self._stopping:
                return
            try:
                sock, _source = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._loop.remove_reader(self._listener)
                    self._accept_timer = self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again)
                    return
                continue  # the other side is gone already
            sock.setblocking(False)
            self._admit(sock)

    def _accept_again(self) -> None:
        assert self._listener is not None
        self._accept_timer = None
        self._loop.add_reader(self._listener, self._accept)

    def _admit(self, sock: socket.socket) -> None:
        """Serve a stream. When too many are, the one that owes its request longest makes room."""
        if len(self._served) >= STREAMS_SERVED_MAX:
            self.counters.streams["refused"] += 1
            owing = next((key for key, served in self._served.items() if not served.is_authentic), None)
            if owing is None:
                sock.close()
                return
            task = self._served.pop(owing).task
            assert task is not None
            task.cancel()
        self._served_id += 1
        stream_id = self._served_id
        served = self._served[stream_id] = _Served(sock, self._loop.create_future())
        served.task = self._spawn(self._serve(stream_id, served))

        def close(_task: asyncio.Task[None]) -> None:
            # Not at the end of the task, which may be cancelled before it begins.
            self._served.pop(stream_id, None)
            sock.close()

        served.task.add_done_callback(close)

    async def _serve(self, stream_id: int, served: _Served) -> None:
        """Read a frame, hand it to the core, write the core's answer."""
        counters = self.counters
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await self._read_frame(served.sock)
            packet = self._opened(request, "tcp", is_stream=True)
            served.is_authentic = True
            counters.streams["served"] += 1
            self._host.dispatch(StreamReceived(stream_id, packet))
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await self._write_frame(served.sock, await served.reply)
        except TimeoutError:
            counters.streams["late"] += 1
        except WireError as error:
            counters.drops[error.cause] += 1
        except OSError:  # the other side is gone
            pass

    def _reply(self, effect: ReplyStream) -> None:
        served = self._served.get(effect.stream_id)
        if served is not None and not served.reply.done():
            served.reply.set_result(effect.messages)

    # --- what both sides of a stream do ---------------------------------------------------------------

    async def _read_frame(self, sock: socket.socket) -> bytes:
        """Return a frame's content. Raises WireError for what is none, ConnectionResetError when nothing came."""
        received = bytearray()
        wanted_bytes = LENGTH_BYTES
        while len(received) < wanted_bytes:
            data = await self._loop.sock_recv(sock, READ_BYTES_MAX)
            if not data:
                if received:
                    raise WireError("truncated", f"{len(received)} of {wanted_bytes} bytes")
                raise ConnectionResetError
            received += data
            if len(received) >= LENGTH_BYTES:
                length = int.from_bytes(received[:LENGTH_BYTES], "big")
                if length > STREAM_BYTES_MAX:
                    raise WireError("oversized", f"a frame of {length} bytes")
                wanted_bytes = LENGTH_BYTES + length
        if len(received) > wanted_bytes:
            raise WireError("malformed", f"{len(received) - wanted_bytes} bytes after the frame")
        return bytes(received[LENGTH_BYTES:])

    async def _write_frame(self, sock: socket.socket, messages: Sequence[bytes]) -> bool:
        """Seal and write a frame. Return false, with nothing written, when the messages do not fit."""
        try:
            packet = self._envelope.seal_stream(messages, self._host.epoch())
        except WireError as error:
            self.counters.send_errors[error.cause] += 1
            return False
        if len(packet) > STREAM_BYTES_MAX:
            self.counters.send_errors["oversized"] += 1
            return False
        await self._loop.sock_sendall(sock, len(packet).to_bytes(LENGTH_BYTES, "big") + packet)
        self._count_sent("tcp", messages, packet)
        return True

    # --- seeds ----------------------------------------------------------------------------------------

    def _resolve(self, effect: ResolveSeeds) -> None:
        self._spawn(self._resolve_seeds(effect.seeds))

    async def _resolve_seeds(self, seeds: Sequence[str]) -> None:
        resolved = await resolve_seeds(seeds, self._resolver)
        if not self._stopping:
            self._host.dispatch(resolved)

    # --- opening and counting packets -----------------------------------------------------------------

    def _opened(self, packet: bytes, transport: str, *, is_stream: bool = False) -> Packet:
        counters = self.counters
        counters.packets[transport, "received"] += 1
        counters.bytes[transport, "received"] += len(packet)
        content = self._envelope.open_stream(packet) if is_stream else self._envelope.open(packet)
        for message in content.messages:
            counters.messages[MESSAGE_NAMES[type(message)], "received"] += 1
        return content

    def _count_sent(self, transport: str, messages: Sequence[bytes], packet: bytes) -> None:
        counters = self.counters
        counters.packets[transport, "sent"] += 1
        counters.bytes[transport, "sent"] += len(packet)
        for message in messages:
            counters.messages[message_name(message), "sent"] += 1


def _bind_both(family: socket.AddressFamily, address: SocketAddress) -> tuple[socket.socket, socket.socket]:
    """Bind a datagram socket and a listening one to the same address; port 0 picks one. Raises OSError."""
    for _ in range(PORT_TRIES - 1 if address[1] == 0 else 0):
        with suppress(OSError):
            return _bind_once(family, address)
    return _bind_once(family, address)


def _bind_once(family: socket.AddressFamily, address: SocketAddress) -> tuple[socket.socket, socket.socket]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        datagrams = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        for sock in (listener, datagrams):
            sock.setblocking(False)
            if family == socket.AF_INET6:  # as the other listeners of a node
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # For TCP alone: it ignores connections that just ended. For UDP it would share the port with another program.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Before anyone is told of the port: two programs may bind it, but one only may listen.
        listener.listen(STREAMS_SERVED_MAX)
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        datagrams.bind((address[0], listener.getsockname()[1], *address[2:]))
        stack.pop_all()
    return datagrams, listener


def _target(host: str, port: int) -> Target:
    """Turn a literal into what sockets take. Raises OSError for a name."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except UnicodeError:
        raise OSError(None, "it is no name") from None
    family, _, _, _, address = found[0]
    return family, address


def _format(address: SocketAddress) -> Address:
    """Write a socket's address, with the scope of a link-local one."""
    host, port = address[:2]
    if len(address) == 4 and address[3] and "%" not in host:
        host = f"{host}%{address[3]}"
    return format_address(host, port)


def _remember(known: dict[Any, Any], key: Any, value: Any, count_max: int) -> None:
    """Add to what is known; what was added first makes room."""
    if len(known) >= count_max:
        del known[next(iter(known))]
    known[key] = value


def _errno_name(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number, type(error).__name__) if number else type(error).__name__


def _describe_failure(error: OSError, address: Address) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"{address} refused the connection"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return f"{address} closed without an answer"
    return f"{address} cannot be reached: {error_name(error)}"
