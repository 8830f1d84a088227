"""The HTTP adapter: aiohttp's low-level server under `zephyr.api.contract`.

Moves bytes and keeps time; what a request means and what an answer says stands in the contract. aiohttp
reads and parses; this module takes the request line as it came (a router would normalise it), writes each
answer as one piece, and guards every moment in which a connection waits for its client:

    opened -> headers -> [body] -> handled -> written -> [rest drained] -> idle -> headers ...
                                                      -> [lingering] -> closed

A connection is in at most one of the guard's queues, each ordered by time, so one slow timer looks at their
heads alone. Nothing here waits without a limit of `HttpLimits`, or of the request's own deadline.

*Lingering.* Closing a socket on bytes that were not read makes the kernel reset the connection, and the
reset may destroy an answer that is still on its way (RFC 9112, section 9.6). So where a client may still be
sending, this side ends its direction, reads and drops what comes until the client is done, and closes then.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader

from zephyr.api import contract, debug
from zephyr.api.contract import KV_PREFIX, Contract, Problem, RefusedError, Response, Target
from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError
from zephyr.metrics import DELETE, GET, HEAD, OTHER, PAGE, PUT, Metrics
from zephyr.model import Address, Instant, Outcome, ReadRequest, WriteRequest
from zephyr.node import Node

LISTEN_BACKLOG = 1024
"""Connections that wait to be accepted: a burst while the loop is busy for a few ms."""
SWEEP_PERIOD_MAX_S = 1.0
"""How often the guard looks for connections that waited too long; shorter limits are looked at more often."""
SWEEP_MAX = 200
"""Connections that one look ends or looks at, in each queue: under 5 ms. The rest follows in the next turn."""
STALL_LOOKS = 6
"""How often an answer that is not taken is looked at before it is given up."""
JOINED_BODY_BYTES_MAX = 64 << 10
"""A larger body is handed to the socket by itself: copying it would cost more than one more call."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

log: structlog.stdlib.BoundLogger = structlog.get_logger("zephyr")

Submit = Callable[[ReadRequest | WriteRequest], Outcome | Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a client may cost. The defaults are the contract's; tests shorten them."""

    header_bytes_max: int = 32 << 10
    """Request line and headers: a key of 1,024 bytes, percent-encoded, and generous cookies fit many times."""
    headers_max: int = 128
    """Headers of a request: each costs objects, whatever its length."""
    header_s: float = 10.0
    """From the first byte of a request (of the first one: from the connection) to the end of its headers."""
    body_progress_s: float = 10.0
    """Between two pieces of a body."""
    body_s: float = 120.0
    """For a whole body: one byte every nine seconds is progress, but no upload."""
    idle_s: float = 75.0
    """Between two requests: longer than the 60 s for which proxies keep a connection, so that they end it."""
    stall_s: float = 30.0
    """For which a client may take nothing of its answer."""
    answer_s: float = 120.0
    """For a client to take a whole answer: as long as for a body in the other direction."""
    drain_bytes_max: int = 256 << 10
    """Rest of a body that is read for the connection's sake after the request was refused: cheaper than a new
    connection."""
    linger_s: float = 10.0
    """For which a connection that is to be closed reads and drops what its client still sends."""
    close_s: float = 2.0
    """For requests in flight when the adapter closes: the default deadline of a request."""


class _BodyTooSlowError(Exception):
    """A body made no progress, or too little."""


class _BodyMalformedError(Exception):
    """A body breaks its transfer coding."""


class _HeadersTooLargeError(HttpProcessingError):
    """A header block is larger than allowed."""


class _Ending(enum.Enum):
    """What becomes of a connection after an answer."""

    KEEP = "keep"
    CLOSE = "close"
    """Everything was read: it can be closed at once."""
    DRAIN = "drain"
    """A small rest of the body is read, then it is kept."""
    LINGER = "linger"
    """The client may still be sending: it is closed slowly."""


class _Parser:
    """aiohttp's parser, and a watch over what it is fed: it bounds one line, not a whole header block."""

    __slots__ = (
        "_bytes_max", "_carried_bytes", "_connection", "_parser", "_partial_bytes", "_payload",
        "feed_eof", "message_consumed", "pause_reading", "set_upgraded",
    )  # fmt: skip

    def __init__(self, parser: Any, connection: _Connection, header_bytes_max: int) -> None:
        self._parser = parser
        self._connection = connection
        self._bytes_max = header_bytes_max
        self._payload: StreamReader | None = None
        self._partial_bytes = 0
        self._carried_bytes = 0
        self.feed_eof = parser.feed_eof
        self.message_consumed = parser.message_consumed
        self.pause_reading = parser.pause_reading
        self.set_upgraded = parser.set_upgraded

    def feed_data(self, data: bytes) -> Any:
        """Parse, as aiohttp's parser does. Raises `HttpProcessingError`."""
        in_headers = self.body_is_whole
        try:
            parsed = self._parser.feed_data(data)
        except HttpProcessingError as error:
            if self._payload is not None and not in_headers:
                self._payload.set_exception(_BodyMalformedError(error.message))
            self._connection.request_arrived()
            raise
        if parsed[0]:
            self._count_blocks(parsed[0], len(data))
        elif not in_headers:
            self._carried_bytes = len(data)
        elif data:
            self._count_partial(len(data))
        return parsed

    def _count_blocks(self, messages: Any, size: int) -> None:
        """Note whole header blocks. What else came with them may be the beginning of the next one."""
        if self._carried_bytes + self._partial_bytes + size > self._bytes_max:
            self._connection.is_oversized = True
        self._payload = messages[-1][1]
        self._partial_bytes, self._carried_bytes = 0, size
        self._connection.request_arrived()

    def _count_partial(self, size: int) -> None:
        """Note a part of a header block. Raises `_HeadersTooLargeError` when there are too many."""
        self._partial_bytes += size
        if self._partial_bytes > self._bytes_max:
            self._connection.request_arrived()
            raise _HeadersTooLargeError(message=f"the most is {self._bytes_max} bytes")
        self._connection.headers_began()

    @property
    def body_is_whole(self) -> bool:
        """Whether the body of the last request has arrived."""
        return self._payload is None or self._payload.is_eof()

    @property
    def has_partial(self) -> bool:
        """Whether bytes of a further request have arrived."""
        return self._partial_bytes > 0


class _Guard:
    """Every open connection, and which ones wait for their client since when. Ends those that wait too long."""

    def __init__(
        self,
        limits: HttpLimits,
        connections_max: int,
        metrics: Metrics,
        problem: Callable[[Problem, str], bytes],
    ) -> None:
        self.limits = limits
        self.open: dict[_Connection, None] = {}
        """All but those that are being ended."""
        # The queues: connection -> the second at which it began to wait, the longest first.
        self.headers: dict[_Connection, float] = {}
        self.idle: dict[_Connection, float] = {}
        self.body: dict[_Connection, float] = {}
        """Since the last piece."""
        self.body_whole: dict[_Connection, float] = {}
        """Since the first."""
        self.unread: dict[_Connection, float] = {}
        """Answers that the client does not take, since the last look."""
        self.closing: dict[_Connection, float] = {}
        self._loop = asyncio.get_running_loop()
        self._connections_max = connections_max
        self._closed = metrics.connections_closed
        self._problem = problem
        self._quiet: asyncio.Event | None = None
        self._period_s = min(SWEEP_PERIOD_MAX_S, *(value / 4 for value in _durations(limits)))
        self._timer = self._loop.call_later(self._period_s, self._sweep)

    def admit(self, connection: _Connection) -> None:
        """Take up a connection. At the bound, another one goes, or this one if all others are busy."""
        self.open[connection] = None
        if len(self.open) > self._connections_max:
            victim = next(iter(self.idle or self.headers or (connection,)))
            if victim is connection:
                connection.say(self._problem(contract.TOO_MANY_CONNECTIONS, "every connection is busy"))
            self.end(victim, "crowded")
        if connection in self.open:
            self.headers[connection] = self._loop.time()

    def forget(self, connection: _Connection) -> None:
        """The connection is gone, or as good as gone."""
        self.open.pop(connection, None)
        for queue in (self.headers, self.idle, self.body, self.body_whole, self.unread, self.closing):
            queue.pop(connection, None)
        if self._quiet is not None and not self.open:
            self._quiet.set()

    def end(self, connection: _Connection, cause: str) -> None:
        """Close a connection; what was written is still sent, for as long as a connection may linger."""
        self._closed[cause] += 1
        self.forget(connection)
        self.closing[connection] = self._loop.time()
        connection.force_close()

    async def quiet(self, timeout_s: float) -> None:
        """Let the waiting connections go, and wait until the busy ones are done, or the time is over."""
        for connection in [*self.idle, *self.headers]:
            self.end(connection, "stopping")
        if self.open:
            self._quiet = asyncio.Event()
            try:
                await asyncio.wait_for(self._quiet.wait(), timeout_s)
            except TimeoutError:
                self._closed["stopping"] += len(self.open)

    def stop(self) -> None:
        """Stop looking."""
        self._timer.cancel()

    def _sweep(self) -> None:
        now_s, limits = self._loop.time(), self.limits
        overdue = 0
        for connection in _overdue(self.idle, now_s - limits.idle_s):
            overdue += 1
            self.end(connection, "idle")
        for connection in _overdue(self.headers, now_s - limits.header_s):
            overdue += 1
            if connection.is_in_headers:
                connection.say(self._problem(contract.TOO_SLOW, "the headers took too long"))
            self.end(connection, "slow-headers")
        for queue, limit_s in ((self.body, limits.body_progress_s), (self.body_whole, limits.body_s)):
            for connection in _overdue(queue, now_s - limit_s):
                overdue += 1
                self._closed["slow-body"] += 1
                self.body.pop(connection, None)
                self.body_whole.pop(connection, None)
                connection.give_up_body()
        for connection in _overdue(self.unread, now_s - limits.stall_s / STALL_LOOKS):
            overdue += 1
            if connection.takes_its_answer(now_s):
                del self.unread[connection]
                self.unread[connection] = now_s
            else:
                self._closed["slow-reader"] += 1
                self.forget(connection)
                connection.abort()
        for connection in _overdue(self.closing, now_s - limits.linger_s):
            overdue += 1
            self.forget(connection)
            connection.abort()
        more = overdue >= SWEEP_MAX
        self._timer = self._loop.call_later(0 if more else self._period_s, self._sweep)


def _durations(limits: HttpLimits) -> tuple[float, ...]:
    return (
        limits.header_s, limits.body_progress_s, limits.body_s, limits.idle_s, limits.stall_s, limits.answer_s,
        limits.linger_s,
    )  # fmt: skip


def _overdue(queue: dict[_Connection, float], before_s: float) -> list[_Connection]:
    """Return the connections that wait since before a moment, the longest first, `SWEEP_MAX` at most."""
    overdue: list[_Connection] = []
    for connection, since_s in queue.items():
        if since_s > before_s or len(overdue) == SWEEP_MAX:
            break
        overdue.append(connection)
    return overdue


class _Connection(web.RequestHandler):
    """One client's connection: aiohttp's protocol, reporting to the guard what it waits for."""

    __slots__ = (
        "_answer_began_s", "_answer_bytes", "_answer_moved_s", "_guard", "_is_half_closed", "_is_lingering", "_link",
        "_lost", "_report", "_unread_body", "is_busy", "is_continued", "is_oversized",
    )  # fmt: skip

    def __init__(
        self,
        server: _Server,
        guard: _Guard,
        report: Callable[[BaseException | None], web.StreamResponse],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        limits = guard.limits
        super().__init__(
            server,
            loop=loop,
            # One more for each header than for the target tells the two refusals apart.
            max_line_size=limits.header_bytes_max,
            max_field_size=limits.header_bytes_max + 1,
            max_headers=limits.headers_max,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # None turns it off; aiohttp's annotation forgets that
            keepalive_timeout=2 * limits.idle_s,  # The guard is quicker.
            lingering_time=0,  # This module lingers by itself.
        )
        self._parser = _Parser(self._parser, self, limits.header_bytes_max)  # type: ignore[assignment]
        self._guard = guard
        self._report = report
        self._link: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None
        self._unread_body: StreamReader | None = None
        self._is_lingering = False
        self._is_half_closed = False
        self.is_busy = False
        """A request has arrived and is not answered yet."""
        self.is_oversized = False
        """Some header block may be too large: each one on this connection is to be measured."""
        self.is_continued = False
        """The client was told to go on with the body of this request."""
        self._answer_began_s = self._answer_moved_s = 0.0
        self._answer_bytes = 0

    # --- what the transport reports -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._link = cast("asyncio.Transport", transport)
        # An answer counts as taken when the kernel has all of it: then nothing is left to be flushed at a close.
        self._link.set_write_buffer_limits(high=0)
        self._guard.admit(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._guard.forget(self)
        self._link = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_lingering:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for a bool: True keeps the connection
        """Answer what has arrived whole: a client may end its direction once it has asked."""
        self._is_half_closed = True
        return self.is_busy and not self._is_lingering and cast("_Parser", self._parser).body_is_whole

    # --- what the parser reports --------------------------------------------------------------------

    def request_arrived(self) -> None:
        """A whole header block was read."""
        if not self.is_busy:
            self.is_busy = True
            self._guard.idle.pop(self, None)
            self._guard.headers.pop(self, None)

    def headers_began(self) -> None:
        """A part of a header block was read."""
        if self._guard.idle.pop(self, None) is not None:
            self._guard.headers[self] = self._loop.time()

    @property
    def is_in_headers(self) -> bool:
        """Whether a part of a header block has arrived."""
        return self._parser is not None and cast("_Parser", self._parser).has_partial

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  # aiohttp's signature
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Build the answer to what the parser rejected, or to a handler that failed."""
        return self._report(exc)

    # --- reading ------------------------------------------------------------------------------------

    async def read_body(self, payload: StreamReader, take: Callable[[bytes], None]) -> None:
        """Hand over a body piece by piece. Raises what `take` raises, `ConnectionError`, or one of the body errors."""
        guard, loop = self._guard, self._loop
        self._unread_body = payload
        guard.body[self] = guard.body_whole[self] = loop.time()
        try:
            while not payload.at_eof():
                piece = await payload.readany()
                guard.body.pop(self, None)
                guard.body[self] = loop.time()
                take(piece)
        finally:
            self._unread_body = None
            guard.body.pop(self, None)
            guard.body_whole.pop(self, None)

    def give_up_body(self) -> None:
        """Let the one who reads the body fail."""
        if self._unread_body is not None:
            self._unread_body.set_exception(_BodyTooSlowError())

    # --- writing ------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport. Raises ConnectionError when the client is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(data)

    def say(self, data: bytes) -> None:
        """Write last words, which nobody may be there to hear."""
        with contextlib.suppress(ConnectionError):
            self.write(data)

    async def flushed(self) -> None:
        """Wait until the client has taken what was written. Raises ConnectionError."""
        if self._link is None:
            raise ConnectionResetError("the client is gone")
        self._answer_began_s = self._answer_moved_s = self._loop.time()
        self._answer_bytes = self._link.get_write_buffer_size()
        self._guard.unread[self] = self._answer_began_s
        try:
            await self._drain_helper()
        finally:
            self._guard.unread.pop(self, None)

    def takes_its_answer(self, now_s: float) -> bool:
        """Tell whether the client took something of its answer lately, and is not at it for too long."""
        left_bytes = 0 if self._link is None else self._link.get_write_buffer_size()
        if left_bytes < self._answer_bytes:
            self._answer_bytes, self._answer_moved_s = left_bytes, now_s
        limits = self._guard.limits
        return now_s - self._answer_moved_s < limits.stall_s and now_s - self._answer_began_s < limits.answer_s

    # --- between requests and at the end ------------------------------------------------------------

    @property
    def is_last(self) -> bool:
        """Whether no further request can come."""
        return self._is_half_closed and not self._messages

    def rest(self) -> None:
        """The answer is out: wait for the next request."""
        self.is_continued = False
        if not self._messages and self in self._guard.open:
            self.is_busy = False
            (self._guard.headers if self.is_in_headers else self._guard.idle)[self] = self._loop.time()

    async def drain(self, payload: StreamReader) -> None:
        """Read and drop the small rest of a body, then go on; a client that does not send it is let go."""
        try:
            await self.read_body(payload, lambda _piece: None)
        except (ConnectionError, _BodyTooSlowError, _BodyMalformedError, web.RequestPayloadError):
            self._guard.end(self, "unfinished-body")
        else:
            self.rest()

    async def linger(self) -> None:
        """End this direction, drop what still comes, and close when the client has closed or the time is over."""
        link = self._link
        if link is None:
            return
        self._is_lingering = True
        try:
            if not self._is_half_closed:
                self._guard.closing[self] = self._loop.time()
                self._lost = self._loop.create_future()
                with contextlib.suppress(OSError, RuntimeError):  # The client may just have gone.
                    link.write_eof()
                self._resume_transport_reading()
                await self._lost
        finally:
            self.force_close()

    def abort(self) -> None:
        """Close at once, whatever was not sent."""
        self._force_close = True
        if self._link is not None:
            self._link.abort()

    def cancel(self) -> asyncio.Task[None] | None:
        """Stop handling, close at once, and return what is still to end."""
        task = self._task_handler
        if task is not None:
            task.cancel()
        self.abort()
        return task


class _Server(web.Server):
    """Makes connections that report to the guard."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        guard: _Guard,
        report: Callable[[BaseException | None], web.StreamResponse],
    ) -> None:
        super().__init__(handler)
        self._guard = guard
        self._report = report

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._guard, self._report, self._loop)


class _Answer(web.StreamResponse):
    """An answer that is bytes already: aiohttp says when to send it."""

    def __init__(self, head: bytes, body: bytes, ending: _Ending) -> None:
        # The headers that aiohttp would build and serialise are never asked for: its constructor has nothing to do.
        self._head = head
        self._content = body
        self._ending = ending
        self._keep_alive = ending is _Ending.KEEP or ending is _Ending.DRAIN
        self._request: web.BaseRequest | None = None

    async def prepare(self, request: web.BaseRequest) -> None:
        self._request = request

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002  # aiohttp passes none
        """Send it all and see to the connection. Raises ConnectionError when the client is gone."""
        request = self._request
        assert request is not None
        connection = cast("_Connection", request.protocol)
        body = self._content
        if len(body) <= JOINED_BODY_BYTES_MAX:
            connection.write(self._head + body)
        else:
            connection.write(self._head)
            connection.write(body)
        if connection.writing_paused:
            await connection.flushed()
        if self._ending is _Ending.KEEP:
            connection.rest()
        elif self._ending is _Ending.DRAIN:
            await connection.drain(request.content)
        elif self._ending is _Ending.LINGER:
            await connection.linger()


class HttpApi:
    """The HTTP side of a node.

    `bind` first, so that a taken port stops everything before anyone was told; until `serve` hands over the
    node, every request but a probe of the process is answered 503. `stop_accepting` begins the end: no new
    connections, and each kept one is closed with its next answer. `drain` waits for the requests in flight,
    `close` ends what is left.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        submit: Submit,
        now: Callable[[], Instant],
        metrics: Metrics,
        limits: HttpLimits | None = None,
    ) -> None:
        self._settings = settings
        self._submit = submit
        self._now = now
        self._metrics = metrics
        self._limits = limits or HttpLimits()
        self._contract = Contract(settings)
        self._node: Node | None = None
        self._is_draining = False
        self._started = now()
        self._date_s = -1
        self._date = b""
        self._guard: _Guard | None = None
        self._server: _Server | None = None
        self._listener: asyncio.Server | None = None
        self._bound_address: Address = settings.http
        self._pages: dict[bytes, Callable[[web.BaseRequest, Target], Awaitable[Response]]] = {
            b"/healthz": self._alive,
            b"/livez": self._alive,
            b"/readyz": self._ready,
            b"/info": self._info,
            b"/metrics": self._show_metrics,
            b"/debug/views": self._views,
            b"/debug/ring": self._ring,
            b"/debug/timeline": self._timeline,
        }

    # --- life ---------------------------------------------------------------------------------------

    async def bind(self) -> None:
        """Listen at `settings.http`. Raises ConfigError, in one line, when that cannot be."""
        loop = asyncio.get_running_loop()
        host, port = parse_address(self._settings.http)
        metrics, limits = self._metrics, self._limits
        self._guard = _Guard(limits, self._settings.connections_max, metrics, self._last_words)
        self._server = _Server(self._handle, self._guard, self._report)
        try:
            self._listener = await loop.create_server(self._server, host, port, backlog=LISTEN_BACKLOG)
        except (OSError, UnicodeError) as error:
            self._guard.stop()
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"--http: cannot listen on {self._settings.http}: {reason}") from None
        host, port, *_ = self._listener.sockets[0].getsockname()
        self._bound_address = format_address(host, port)
        metrics.connections = self._guard.open.__len__
        metrics.now = self._now

    @property
    def bound_address(self) -> Address:
        """Where clients are served: the port that was chosen where 0 was asked for."""
        return self._bound_address

    def serve(self, node: Node) -> None:
        """Answer for this node from now on."""
        self._node = node
        self._metrics.node = node

    def stop_accepting(self) -> None:
        """Take no new connections, and close each one with its next answer."""
        self._is_draining = True
        if self._listener is not None:
            self._listener.close()

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, close what waits for a request, and finish the requests in flight."""
        self.stop_accepting()
        if self._guard is not None:
            await self._guard.quiet(timeout_s)

    async def close(self) -> None:
        """Drain for `HttpLimits.close_s`, then end what is left."""
        if self._guard is None or self._server is None:
            return
        await self.drain(self._limits.close_s)
        self._guard.stop()
        connections = cast("list[_Connection]", self._server.connections)
        tasks = [task for task in [connection.cancel() for connection in connections] if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.wait_closed()

    # --- one request --------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens."""
        began = self._now()
        operation = OTHER
        connection = cast("_Connection", request.protocol)
        try:
            if connection.is_oversized:
                self._check_header_block(request)
            target = contract.parse_target(request.raw_path)
            if not target.path.startswith(KV_PREFIX):
                page = self._page(request, target)
                operation = PAGE
                response = await page(request, target)
            elif (method := request.method) == "GET" or method == "HEAD":
                operation = GET if method == "GET" else HEAD
                response = await self._read(request, method, target, began)
            elif method in contract.KV_METHODS:
                operation = DELETE if method == "DELETE" else PUT
                response = await self._write(request, connection, method, target)
            else:
                raise contract.method_not_allowed(contract.KV_METHODS)  # noqa: TRY301  # refused like the rest
        except RefusedError as refused:
            response = self._contract.refusal(refused)
        except _BodyTooSlowError:
            response = self._contract.problem(contract.TOO_SLOW, "the body took too long")
        except (_BodyMalformedError, web.RequestPayloadError) as error:
            response = self._contract.problem(contract.MALFORMED, f"the body is malformed: {error}")
        except ConnectionError:
            raise  # The client is gone: nobody is to be answered.
        except Exception:
            log.exception("request-failed", method=request.method)
            response = self._contract.problem(contract.INTERNAL_ERROR, "the node's log says more")
        self._metrics.observe_request(operation, response.status, time.monotonic() - began.monotonic_s)
        ending = self._ending(request, connection)
        body = b"" if request.method == "HEAD" else response.body
        return _Answer(self._head(response, request, ending), body, ending)

    async def _read(self, request: web.BaseRequest, method: str, target: Target, began: Instant) -> Response:
        headers = request.headers
        self._contract.check_headers(method, headers)
        condition = b""
        if "If-None-Match" in headers:
            condition = _raw(", ".join(headers.getall("If-None-Match")))
        self._check_node()
        outcome = self._submit(self._contract.read_request(method, target))
        if type(outcome) is not Outcome:
            outcome = await cast("Awaitable[Outcome]", outcome)
            began = self._now()
        if outcome.failure is None:
            if outcome.record is None:
                self._metrics.misses += 1
            else:
                self._metrics.hits += 1
        return self._contract.outcome_of_read(outcome, began.unix_ms, condition)

    async def _write(self, request: web.BaseRequest, connection: _Connection, method: str, target: Target) -> Response:
        headers = request.headers
        self._contract.check_headers(method, headers)
        write = self._contract.write_request(method, target, _raw(headers.get("Content-Type", "")))
        self._check_node()
        if method != "DELETE":
            write.value = await self._value(request, connection)
        outcome = self._submit(write)
        if type(outcome) is not Outcome:
            outcome = await cast("Awaitable[Outcome]", outcome)
        return self._contract.outcome_of_write(method, outcome)

    async def _value(self, request: web.BaseRequest, connection: _Connection) -> bytes:
        """Read a whole value, within its limits. Raises `RefusedError`, ConnectionError or a body error."""
        check_length = self._contract.check_length
        headers, payload = request.headers, request.content
        length = headers.get("Content-Length")
        if length is not None:
            check_length(int(length))
        if payload.is_eof():
            value = payload.read_nowait()
            check_length(len(value))
            return value
        expectation = headers.get("Expect")
        if expectation is not None:
            if expectation.lower() != "100-continue":
                raise RefusedError(contract.EXPECTATION_FAILED, "only 100-continue can be expected here")
            if request.version >= HttpVersion11 and not payload.total_bytes:
                connection.write(CONTINUE)
            connection.is_continued = True
        pieces: list[bytes] = []
        size = 0

        def take(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            check_length(size)
            pieces.append(piece)

        await connection.read_body(payload, take)
        return b"".join(pieces)

    def _check_node(self) -> None:
        if self._node is None:
            raise RefusedError(contract.NOT_READY, "the node is starting")

    def _check_header_block(self, request: web.BaseRequest) -> None:
        """Measure a header block as it came: each line has a separator and an end."""
        lines = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        size = len(request.method) + len(request.raw_path) + len(" HTTP/1.1\r\n ") + lines + 2
        if size > self._limits.header_bytes_max:
            raise RefusedError(contract.HEADERS_TOO_LARGE, f"the most is {self._limits.header_bytes_max} bytes")

    # --- answers ------------------------------------------------------------------------------------

    def _ending(self, request: web.BaseRequest, connection: _Connection) -> _Ending:
        """Decide what becomes of the connection, before the answer says so."""
        keep = request.keep_alive and not self._is_draining and not connection.is_last
        payload = request.content
        if payload.is_eof():
            return _Ending.KEEP if keep else _Ending.CLOSE
        length = request.headers.get("Content-Length")
        awaits_continue = "Expect" in request.headers and not connection.is_continued and not payload.total_bytes
        if not keep or length is None or awaits_continue or payload.exception() is not None:
            return _Ending.LINGER
        is_small = int(length) - payload.total_bytes <= self._limits.drain_bytes_max
        return _Ending.DRAIN if is_small else _Ending.LINGER

    def _head(self, response: Response, request: web.BaseRequest, ending: _Ending) -> bytes:
        """Write the status line and the headers."""
        if ending is _Ending.KEEP or ending is _Ending.DRAIN:
            connection = b"" if request.version >= HttpVersion11 else b"Connection: keep-alive\r\n"
        else:
            connection = b"Connection: close\r\n"
        return self._head_bytes(response, connection)

    def _head_bytes(self, response: Response, connection: bytes) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in response.headers]
        return b"".join((contract.STATUS_LINES[response.status], self._date_line(), *lines, connection, b"\r\n"))

    def _date_line(self) -> bytes:
        unix_s = int(time.time())
        if unix_s != self._date_s:
            self._date_s = unix_s
            self._date = b"Date: %b\r\n" % contract.http_date(unix_s)
        return self._date

    def _last_words(self, problem: Problem, detail: str) -> bytes:
        """Write an answer to a client whose connection is being ended."""
        response = self._contract.problem(problem, detail)
        return self._head_bytes(response, b"Connection: close\r\n") + response.body

    def _report(self, error: BaseException | None) -> web.StreamResponse:
        """Answer what never became a request, or a request that could not be answered."""
        line_bytes_max = self._limits.header_bytes_max
        if isinstance(error, _HeadersTooLargeError) or (
            isinstance(error, LineTooLong) and error.args[1] != line_bytes_max
        ):
            response = self._contract.problem(contract.HEADERS_TOO_LARGE, f"the most is {line_bytes_max} bytes")
        elif isinstance(error, LineTooLong):
            response = self._contract.problem(contract.KEY_TOO_LONG, "the request line is too long")
        elif isinstance(error, HttpProcessingError):
            sentence = error.message.partition("\n")[0][:200]
            response = self._contract.problem(contract.MALFORMED, sentence or "it is no HTTP")
        elif isinstance(error, ConnectionError):
            response = self._contract.problem(contract.INTERNAL_ERROR, "the client is gone")
        else:
            log.error("answer-failed", exc_info=error)
            response = self._contract.problem(contract.INTERNAL_ERROR, "the node's log says more")
        if not isinstance(error, ConnectionError):
            self._metrics.count_request(OTHER, response.status)
        return _Answer(self._head_bytes(response, b"Connection: close\r\n"), response.body, _Ending.LINGER)

    # --- pages --------------------------------------------------------------------------------------

    def _page(
        self, request: web.BaseRequest, target: Target
    ) -> Callable[[web.BaseRequest, Target], Awaitable[Response]]:
        page = self._pages.get(target.path)
        if page is None:
            raise RefusedError(contract.UNKNOWN_PAGE, "this path leads nowhere")
        if request.method not in contract.PAGE_METHODS:
            raise contract.method_not_allowed(contract.PAGE_METHODS)
        return page

    def _served_node(self) -> Node:
        self._check_node()
        assert self._node is not None
        return self._node

    async def _alive(self, _request: web.BaseRequest, _target: Target) -> Response:
        """Whoever reads this knows that the loop turns."""
        return self._contract.page(b"ok\n", b"text/plain; charset=utf-8")

    async def _ready(self, _request: web.BaseRequest, _target: Target) -> Response:
        missing = list(self._served_node().readiness())
        if self._is_draining:
            missing.append("draining")
        if missing:
            return self._contract.problem(contract.NOT_READY, "; ".join(missing))
        return self._contract.page(b"ready\n", b"text/plain; charset=utf-8")

    async def _info(self, _request: web.BaseRequest, _target: Target) -> Response:
        return self._json(debug.info_page(self._served_node(), os.getpid(), self._started, self._now()))

    async def _show_metrics(self, request: web.BaseRequest, _target: Target) -> Response:
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return self._contract.page(body, content_type.encode())

    async def _views(self, _request: web.BaseRequest, _target: Target) -> Response:
        lag_s = self._metrics.event_loop_lag_s
        return self._json(debug.views_page(self._served_node(), lag_s, self._started, self._now()))

    async def _ring(self, _request: web.BaseRequest, target: Target) -> Response:
        node = self._served_node()
        raw_key = contract.lenient_parameter(target.query, "key")
        if raw_key is not None:
            return self._json(debug.ring_key_page(node, contract.checked_key(raw_key)))
        while not node.ring.fill():  # noqa: ASYNC110  # it works and waits for nothing: slice by slice: filling it at once would stall the loop
            await asyncio.sleep(0)
        return self._json(debug.ring_page(node))

    async def _timeline(self, _request: web.BaseRequest, target: Target) -> Response:
        node = self._served_node()
        since = contract.lenient_parameter(target.query, "since")
        return self._json(debug.timeline_page(node, contract.parse_unix_ms(since) if since else 0))

    def _json(self, document: dict[str, Any]) -> Response:
        return self._contract.page(json.dumps(document).encode() + b"\n", b"application/json")


def _raw(text: str) -> bytes:
    """Return the bytes of a header as they came."""
    return text.encode("utf-8", "surrogateescape")
