"""Clients' connections: aiohttp's protocol, guarded in every moment in which it waits for its client.

aiohttp reads and parses; what a request means is nobody's business here. Decides how long a client may take
for each step, and how a connection ends:

    opened -> headers -> [body] -> handled -> written -> [rest drained] -> idle -> headers ...
                                                      -> [lingering] -> closed

An answer without an end (a `Stream`) is written piece by piece, each of which the client has to take in time.

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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from zephyr.api import contract
from zephyr.api.contract import Problem
from zephyr.metrics import Metrics

SWEEP_PERIOD_MAX_S = 1.0
"""How often the guard looks for connections that waited too long; shorter limits are looked at more often."""
SWEEP_MAX = 200
"""Connections that one look ends or looks at, in each queue: under 5 ms. The rest follows in the next turn."""
STALL_LOOKS = 6
"""How often an answer that is not taken is looked at before it is given up."""
JOINED_BODY_BYTES_MAX = 64 << 10
"""A larger body is handed to the socket by itself: copying it would cost more than one more call."""


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
    bodies_bytes_max: int = 64 << 20
    """Of all bodies that are being received: else `--connections-max` slow uploads would hold 10 GiB."""
    drain_bytes_max: int = 256 << 10
    """Rest of a body that is read for the connection's sake after the request was refused: cheaper than a new
    connection."""
    linger_s: float = 10.0
    """For which a connection that is to be closed reads and drops what its client still sends."""
    streams_max: int = 32
    """Answers without an end: people and dashboards that watch this node, each of which costs work at every event."""
    stream_idle_s: float = 15.0
    """After which such an answer gives a sign of life: shorter than any proxy's patience, and finds out who is gone."""
    close_s: float = 2.0
    """For requests in flight when the adapter closes: the default deadline of a request."""


class BodyTooSlowError(Exception):
    """A body made no progress, or too little."""


class BodyMalformedError(Exception):
    """A body breaks its transfer coding."""


BODY_ERRORS = (ConnectionError, web.RequestPayloadError, BodyTooSlowError, BodyMalformedError)
"""Why a body cannot be read to its end."""


def fresh(error: BaseException) -> Exception:
    """Return an error of the same meaning, which nobody keeps."""
    if isinstance(error, ConnectionError):
        return ConnectionResetError("the client is gone")
    return BodyTooSlowError() if isinstance(error, BodyTooSlowError) else BodyMalformedError(str(error))


class HeadersTooLargeError(HttpProcessingError):
    """A header block is larger than allowed."""


class Ending(enum.Enum):
    """What becomes of a connection after an answer."""

    KEEP = "keep"
    CLOSE = "close"
    """Everything was read: it can be closed at once."""
    DRAIN = "drain"
    """A small rest of the body is read, then it is kept."""
    LINGER = "linger"
    """The client may still be sending: it is closed slowly."""


class Stream:
    """The body of an answer without an end: whatever `take` has to say, each time it is woken, until it is ended.

    It keeps nothing: who takes long to read is told later, by as much as `take` still knows then.
    """

    __slots__ = ("_idle_s", "_sign", "_take", "_waiter", "is_over")

    def __init__(self, take: Callable[[], bytes], sign: bytes, idle_s: float) -> None:
        """`take`: returns what is new, or nothing. `sign`: sent when nothing was new for `idle_s`."""
        self._take = take
        self._sign = sign
        self._idle_s = idle_s
        self._waiter: asyncio.Future[None] | None = None
        self.is_over = False

    def wake(self) -> None:
        """There is something new."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        """Say what is still to be said, and no more after that."""
        self.is_over = True
        self.wake()

    async def piece(self) -> bytes:
        """Wait for the next piece; empty: it is over."""
        while not (piece := self._take()) and not self.is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait_for(self._waiter, self._idle_s)
            except TimeoutError:
                return self._sign
            finally:
                self._waiter = None
        return piece


class Answer(NamedTuple):
    """An answer that is bytes already."""

    head: bytes
    """Status line and headers."""
    body: bytes
    ending: Ending
    stream: Stream | None = None
    """Follows the body."""


class Parser:
    """aiohttp's parser, and a watch over what it is fed: it bounds one line, not a whole header block."""

    __slots__ = (
        "_bytes_max", "_carried_bytes", "_connection", "_parser", "_partial_bytes", "_payload",
        "feed_eof", "message_consumed", "pause_reading", "set_upgraded",
    )  # fmt: skip

    def __init__(self, parser: Any, connection: Connection, header_bytes_max: int) -> None:
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
                self._payload.set_exception(BodyMalformedError(error.message))
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
        message, self._payload = messages[-1]
        if message.upgrade:
            # Declined, and llhttp drops what came with it: whoever sent more is to send it again elsewhere.
            self._connection.is_ending = True
        self._partial_bytes, self._carried_bytes = 0, size
        self._connection.request_arrived()

    def _count_partial(self, size: int) -> None:
        """Note a part of a header block. Raises `HeadersTooLargeError` when there are too many."""
        self._partial_bytes += size
        if self._partial_bytes > self._bytes_max:
            self._connection.request_arrived()
            raise HeadersTooLargeError(message=f"the most is {self._bytes_max} bytes")
        self._connection.headers_began()

    @property
    def body_is_whole(self) -> bool:
        """Whether the body of the last request has arrived."""
        return self._payload is None or self._payload.is_eof()

    @property
    def has_partial(self) -> bool:
        """Whether bytes of a further request have arrived."""
        return self._partial_bytes > 0


class Guard:
    """Every open connection, and which ones wait for their client since when. Ends those that wait too long."""

    def __init__(
        self,
        limits: HttpLimits,
        connections_max: int,
        metrics: Metrics,
        problem: Callable[[Problem, str], bytes],
    ) -> None:
        self.limits = limits
        self.open: dict[Connection, None] = {}
        """All but those that are being ended."""
        # The queues: connection -> the second at which it began to wait, the longest first.
        self.headers: dict[Connection, float] = {}
        self.idle: dict[Connection, float] = {}
        self.body: dict[Connection, float] = {}
        """Since the last piece."""
        self.body_whole: dict[Connection, float] = {}
        """Since the first."""
        self.unread: dict[Connection, float] = {}
        """Answers that the client does not take, since the last look."""
        self.closing: dict[Connection, float] = {}
        self._loop = asyncio.get_running_loop()
        self._connections_max = connections_max
        self._closed = metrics.connections_closed
        self._problem = problem
        self._quiet: asyncio.Event | None = None
        self._period_s = min(SWEEP_PERIOD_MAX_S, *(value / 4 for value in _durations(limits)))
        self._timer = self._loop.call_later(self._period_s, self._sweep)

    def admit(self, connection: Connection) -> None:
        """Take up a connection. At the bound, another one goes, or this one if all others are busy."""
        self.open[connection] = None
        if len(self.open) > self._connections_max:
            victim = next(iter(self.idle or self.headers or (connection,)))
            if victim is connection:
                connection.say(self._problem(contract.TOO_MANY_CONNECTIONS, "every connection is busy"))
            self.end(victim, "crowded")
        if connection in self.open:
            self.headers[connection] = self._loop.time()

    def forget(self, connection: Connection) -> None:
        """The connection is gone, or as good as gone."""
        self.open.pop(connection, None)
        for queue in (self.headers, self.idle, self.body, self.body_whole, self.unread, self.closing):
            queue.pop(connection, None)
        if self._quiet is not None and not self.open:
            self._quiet.set()

    def end(self, connection: Connection, cause: str) -> None:
        """Close a connection; what was written is still sent, for as long as a connection may linger."""
        self._closed[cause] += 1
        self.let_go(connection)
        connection.force_close()

    def let_go(self, connection: Connection) -> None:
        """Count a connection no longer; it is cut should it not be gone when it has lingered."""
        self.forget(connection)
        self.closing[connection] = self._loop.time()

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
        more = False
        try:
            more = self._look() >= SWEEP_MAX
        finally:
            self._timer = self._loop.call_later(0 if more else self._period_s, self._sweep)

    def _look(self) -> int:
        """End what waited too long; return how many connections were dealt with."""
        now_s, limits = self._loop.time(), self.limits
        idle = _overdue(self.idle, now_s - limits.idle_s)
        for connection in idle:
            self.end(connection, "idle")
        slow = _overdue(self.headers, now_s - limits.header_s)
        for connection in slow:
            if connection.is_in_headers:
                connection.say(self._problem(contract.TOO_SLOW, "the headers took too long"))
            self.end(connection, "slow-headers")
        uploading = [
            *_overdue(self.body, now_s - limits.body_progress_s),
            *_overdue(self.body_whole, now_s - limits.body_s),
        ]
        for connection in uploading:
            self._give_up_body(connection)
        unread = _overdue(self.unread, now_s - limits.stall_s / STALL_LOOKS)
        for connection in unread:
            self._look_at_answer(connection, now_s)
        lingering = _overdue(self.closing, now_s - limits.linger_s)
        for connection in lingering:
            self.forget(connection)
            connection.abort()
        return max(map(len, (idle, slow, uploading, unread, lingering)))

    def _give_up_body(self, connection: Connection) -> None:
        if self.body_whole.pop(connection, None) is not None:
            self.body.pop(connection, None)
            self._closed["slow-body"] += 1
            connection.give_up_body()

    def _look_at_answer(self, connection: Connection, now_s: float) -> None:
        if connection.takes_its_answer(now_s):
            del self.unread[connection]
            self.unread[connection] = now_s
        else:
            self._closed["slow-reader"] += 1
            self.forget(connection)
            connection.abort()


def _durations(limits: HttpLimits) -> tuple[float, ...]:
    return (
        limits.header_s, limits.body_progress_s, limits.body_s, limits.idle_s, limits.stall_s, limits.answer_s,
        limits.linger_s,
    )  # fmt: skip


def _overdue(queue: dict[Connection, float], before_s: float) -> list[Connection]:
    """Return the connections that wait since before a moment, the longest first, `SWEEP_MAX` at most."""
    overdue: list[Connection] = []
    for connection, since_s in queue.items():
        if since_s > before_s or len(overdue) == SWEEP_MAX:
            break
        overdue.append(connection)
    return overdue


class Connection(web.RequestHandler):
    """One client's connection: aiohttp's protocol, reporting to the guard what it waits for."""

    __slots__ = (
        "_answer_began_s", "_answer_bytes", "_answer_moved_s", "_guard", "_handle", "_is_half_closed", "_is_lingering",
        "_link", "_lost", "_report", "_stream", "_unread_body", "is_busy", "is_continued", "is_ending", "is_oversized",
    )  # fmt: skip

    def __init__(
        self,
        server: Server,
        handle: Handle,
        guard: Guard,
        report: Report,
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
            keepalive_timeout=0,  # The guard keeps time.
            lingering_time=0,  # This module lingers by itself.
        )
        self._parser = Parser(self._parser, self, limits.header_bytes_max)  # type: ignore[assignment]
        self._handle = handle
        self._guard = guard
        self._report = report
        self._link: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None
        self._unread_body: StreamReader | None = None
        self._stream: Stream | None = None
        self._is_lingering = False
        self._is_half_closed = False
        self.is_ending = False
        """No request comes after those that have arrived."""
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
        """Report to the guard, and wait for the first request."""
        super().connection_made(transport)
        self._link = cast("asyncio.Transport", transport)
        # An answer counts as taken when the kernel has all of it: then nothing is left to be flushed at a close.
        self._link.set_write_buffer_limits(high=0)
        self._guard.admit(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Leave the guard, and wake whoever waits for the end."""
        self._guard.forget(self)
        self._link = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        if self._stream is not None:
            self._stream.end()
        if self._unread_body is not None:  # aiohttp tells only a handler, not the one who drains after it.
            self._unread_body.set_exception(ConnectionResetError("the client is gone"))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, or drop what a client sends that was answered for good."""
        if not self._is_lingering:
            super().data_received(data)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002  # aiohttp's signature
        """Go on reading, if it was paused: aiohttp asks for it with every body that fits its buffer."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for a bool: True keeps the connection
        """Answer what has arrived whole: a client may end its direction once it has asked.

        It then gets what there is, but none of what is still to come: mostly it is gone, and an answer without an end
        would find that out only at the second write.
        """
        self._is_half_closed = self.is_ending = True
        if self._stream is not None:
            self._stream.end()
        return self.is_busy and not self._is_lingering and cast("Parser", self._parser).body_is_whole

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
        return self._parser is not None and cast("Parser", self._parser).has_partial

    # --- reading ------------------------------------------------------------------------------------

    async def read_body(self, payload: StreamReader, take: Callable[[bytes], None]) -> None:
        """Hand over a body piece by piece. Raises what `take` raises, `ConnectionError`, or one of the body errors."""
        if self._link is None:
            raise ConnectionResetError("the client is gone")
        guard, loop = self._guard, self._loop
        self._unread_body = payload
        guard.body[self] = guard.body_whole[self] = loop.time()
        try:
            while not payload.at_eof():
                try:
                    piece = await payload.readany()
                except BODY_ERRORS as error:
                    # The stream keeps its error: with the traceback, and so this body, on it, all of the connection
                    # would wait for the garbage collector, which in a large heap hardly ever looks at everything.
                    error.__traceback__ = None
                    raise fresh(error) from None
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
            self._unread_body.set_exception(BodyTooSlowError())

    # --- writing ------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport. Raises ConnectionError when the client is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(data)

    def _send(self, head: bytes, body: bytes) -> None:
        if len(body) <= JOINED_BODY_BYTES_MAX:
            self.write(head + body)
        else:
            self.write(head)
            self.write(body)

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
        except ConnectionError as error:
            error.__traceback__ = None  # As in `read_body`: else the answer would outlive its connection.
            raise fresh(error) from None
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

    async def start(self) -> None:
        """Answer request after request, all in this one task.

        aiohttp's own makes a task for each of them, and objects for whatever a handler may want to know of a request
        or do to an answer. Here that would cost more than the read itself.
        """
        try:
            while not self._force_close:
                if not self._messages:
                    await self._message()
                if not await self._answer(*self._messages.popleft()):
                    break
        except ConnectionError:
            self.force_close()  # The client is gone: nobody is to be answered.
        except BaseException:
            self.force_close()
            raise
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _message(self) -> None:
        """Wait for a request to arrive."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _answer(self, message: Any, payload: StreamReader) -> bool:
        """Answer a request, or what never became one. Return whether the connection is kept."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        if type(message) is RawRequestMessage:
            try:
                answer = await self._handle(message, payload, self)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001  # the report logs it
                answer = self._report(error)
        else:
            answer = self._report(message.exc)
        self._send(answer.head, answer.body)
        if self.writing_paused:
            await self.flushed()
        if answer.stream is not None:
            await self._pour(answer.stream)
        if answer.ending is Ending.KEEP:
            self.rest()
            return True
        return await self._end(answer.ending, payload)

    async def _pour(self, stream: Stream) -> None:
        """Write an answer without an end, until somebody ends it or the client is gone."""
        self._stream = stream
        if self._is_half_closed:
            stream.end()
        try:
            while piece := await stream.piece():
                self.write(piece)
                if self.writing_paused:
                    await self.flushed()
        finally:
            self._stream = None
            stream.end()

    async def _end(self, ending: Ending, payload: StreamReader) -> bool:
        """See to a connection that is not simply kept. Return whether another request may follow."""
        if ending is Ending.DRAIN:
            await self.drain(payload)
            return True
        if ending is Ending.LINGER:
            await self.linger()
        return False

    @property
    def is_last(self) -> bool:
        """Whether the request at hand is the last one."""
        return self.is_ending and not self._messages

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
        except BODY_ERRORS:
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
                self._guard.let_go(self)
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


async def _refuse_to_handle(_request: web.BaseRequest) -> web.StreamResponse:
    """Stand where aiohttp wants a handler of its own kind: `Connection.start` never asks it."""
    raise NotImplementedError


class Server(web.Server):
    """Makes connections that report to the guard."""

    def __init__(self, handle: Handle, guard: Guard, report: Report) -> None:
        super().__init__(_refuse_to_handle)
        self._handle = handle
        self._guard = guard
        self._report = report

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of one connection."""
        return Connection(self, self._handle, self._guard, self._report, self._loop)


Handle: TypeAlias = Callable[[RawRequestMessage, StreamReader, Connection], Awaitable[Answer]]
"""Answers a request, given its body and its connection. Raises ConnectionError: the client is gone."""
Report: TypeAlias = Callable[[BaseException], Answer]
"""Answers what never became a request, or a request that could not be answered."""
