"""The HTTP adapter: aiohttp's low-level server under `zephyr.api.contract`.

Moves bytes and keeps time; what a request means and what an answer says stands in the contract, how long a
client may take for anything in `zephyr.api.connection`. The request line is taken as it came, since a router would
normalise it, and each answer is written as one piece.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from zephyr.api import batch, contract, debug, openapi
from zephyr.api.assets import assets
from zephyr.api.backend import Backend
from zephyr.api.batch import Batch
from zephyr.api.connection import (
    Answer,
    BodyMalformedError,
    BodyTooSlowError,
    Connection,
    Ending,
    Guard,
    HeadersTooLargeError,
    HttpLimits,
    Server,
    Stream,
)
from zephyr.api.contract import KV_PREFIX, Contract, Problem, RefusedError, Response, Target
from zephyr.api.events import SIGN_OF_LIFE, Follower
from zephyr.api.gather import Gatherer
from zephyr.api.scan import Scan
from zephyr.config import Settings, format_address, parse_address
from zephyr.errors import ConfigError
from zephyr.events import EvictionRequested, HoldReleaseRequested, OperatorEvent
from zephyr.gossip.certificate import Stub
from zephyr.metrics import BATCH, DELETE, GET, HEAD, INCR, OTHER, PAGE, PATCH, PUT, SCAN, Metrics
from zephyr.model import Address, Condition, Instant, NodeId, Outcome, UpdateRequest, WriteRequest
from zephyr.node import Node

LISTEN_BACKLOG = 1024
"""Connections that wait to be accepted: a burst while the loop is busy for a few ms."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

log: structlog.stdlib.BoundLogger = structlog.get_logger("zephyr")

BATCH_PATH = b"/batch"
SCAN_PATH = b"/scan"
EVENTS_PATH = b"/debug/events"
EXPLAIN_PREFIX = b"/cluster/explain/"
"""What follows is a key, as under `/kv/`."""

Page = Callable[[RawRequestMessage, Target], Awaitable[Response]]


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
        backend: Backend,
        dispatch: Callable[[OperatorEvent], None],
        now: Callable[[], Instant],
        metrics: Metrics,
        limits: HttpLimits | None = None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._submit = backend.submit
        self._dispatch = dispatch
        self._now = now
        self._metrics = metrics
        self._limits = limits or HttpLimits()
        self._contract = Contract(settings)
        self._node: Node | None = None
        self._is_draining = False
        self._openapi_document: Response | None = None
        self._bodies_bytes = 0
        """Of values and batches that are being received."""
        self._started = now()
        self._date_s = -1
        self._date = b""
        self._guard: Guard | None = None
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None
        self._bound_address: Address = settings.http
        self._gatherer = Gatherer(settings.id)
        self._streams: dict[Stream, Connection] = {}
        """Answers without an end, and some that have just ended."""
        self._pages: dict[bytes, Page] = {
            b"/healthz": self._alive,
            b"/livez": self._alive,
            b"/readyz": self._ready,
            b"/info": self._info,
            b"/metrics": self._show_metrics,
            **dict.fromkeys(assets(), self._asset),
            b"/debug/cluster": self._cluster,
            b"/debug/cluster/certificate/": self._cluster_certificate,
            b"/openapi.json": self._openapi,
            b"/debug/views": self._views,
            b"/debug/ring": self._ring,
            b"/debug/timeline": self._timeline,
            b"/debug/certificate/": self._certificate,
            EVENTS_PATH: self._events,
            EXPLAIN_PREFIX: self._explain,
            SCAN_PATH: self._scan,
        }
        """By path; one that ends with a slash is followed by a name."""
        self._actions: dict[bytes, Page] = {
            b"/cluster/evict/": self._evict,
            b"/cluster/release": self._release,
        }

    # --- life ---------------------------------------------------------------------------------------

    async def bind(self) -> None:
        """Listen at `settings.http`. Raises ConfigError, in one line, when that cannot be."""
        loop = asyncio.get_running_loop()
        host, port = parse_address(self._settings.http)
        metrics, limits = self._metrics, self._limits
        self._guard = Guard(limits, self._settings.connections_max, metrics, self._last_words)
        self._server = Server(self._handle, self._guard, self._report)
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
        """Take no new connections, close each one with its next answer, and end the answers that have no end."""
        self._is_draining = True
        if self._listener is not None:
            self._listener.close()
        for stream, connection in self._streams.items():
            stream.end()
            if self._guard is not None and connection.writing_paused:
                self._guard.end(connection, "stopping")  # It would wait for a client that does not read.

    def happened(self) -> None:
        """The node's timeline or view has changed: tell those who watch."""
        for stream in self._streams:
            stream.wake()

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
        await self._gatherer.close()
        self._guard.stop()
        connections = cast("list[Connection]", self._server.connections)
        tasks = [task for task in [connection.cancel() for connection in connections] if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.wait_closed()

    # --- one request --------------------------------------------------------------------------------

    async def _handle(self, request: RawRequestMessage, payload: StreamReader, connection: Connection) -> Answer:
        """Answer one request, whatever happens."""
        began = self._now()
        operation = OTHER
        stream: Stream | None = None
        try:
            if connection.is_oversized:
                self._check_header_block(request)
            target = contract.parse_target(request.path)
            if not target.path.startswith(KV_PREFIX):
                operation, answering = self._beside(request, payload, connection, target)
                response = await answering
                stream = self._stream(request, target, connection)
            elif (method := request.method) == "GET" or method == "HEAD":
                operation = GET if method == "GET" else HEAD
                response = await self._read(request, method, target, began)
            elif method in contract.KV_METHODS:
                operation = PUT if method == "PUT" else _operation_of(method, target)
                response = await self._write(request, payload, connection, method, target)
            else:
                raise contract.method_not_allowed(contract.KV_METHODS)  # noqa: TRY301  # refused like the rest
        except RefusedError as refused:
            response = self._contract.refusal(refused)
        except BodyTooSlowError:
            response = self._contract.problem(contract.TOO_SLOW, "the body took too long")
        except BodyMalformedError as error:
            response = self._contract.problem(contract.MALFORMED, f"the body is malformed: {_sentence(str(error))}")
        except ConnectionError:
            raise  # The client is gone: nobody is to be answered.
        except Exception:
            log.exception("request-failed", method=request.method)
            response = self._contract.problem(contract.INTERNAL_ERROR, "the node's log says more")
        self._metrics.observe_request(operation, response.status, time.monotonic() - began.monotonic_s)
        ending = Ending.LINGER if stream is not None else self._ending(request, payload, connection)
        body = b"" if request.method == "HEAD" else response.body
        return Answer(self._head(response, request, ending), body, ending, stream)

    async def _read(self, request: RawRequestMessage, method: str, target: Target, began: Instant) -> Response:
        headers = request.headers
        conditions = _conditions(headers) if self._contract.check_headers(method, headers) else ()
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
        return self._contract.outcome_of_read(outcome, began.unix_ms, conditions)

    async def _write(
        self, request: RawRequestMessage, payload: StreamReader, connection: Connection, method: str, target: Target
    ) -> Response:
        headers = request.headers
        conditions = _conditions(headers) if self._contract.check_headers(method, headers) else ()
        content_type = _raw(headers.get("Content-Type", ""))
        write = self._contract.write_request(method, target, content_type, conditions)
        self._check_node()
        if type(write) is WriteRequest:
            if method != "DELETE":
                write.value = await self._body(request, payload, connection, self._contract.check_length)
            outcome = self._submit(write)
            if type(outcome) is not Outcome:
                outcome = await cast("Awaitable[Outcome]", outcome)
            return self._contract.outcome_of_write(method, outcome)
        return await self._update(request, payload, connection, method, cast("UpdateRequest", write))

    async def _update(
        self,
        request: RawRequestMessage,
        payload: StreamReader,
        connection: Connection,
        method: str,
        update: UpdateRequest,
    ) -> Response:
        """Make a change that depends on what stands."""
        if update.kind == "put":
            update.value = await self._body(request, payload, connection, self._contract.check_length)
        elif update.kind != "delete":
            await self._body(request, payload, connection, contract.check_no_body)
        outcome = await _awaited(self._submit(update))
        return self._contract.outcome_of_update(method, update, outcome)

    async def _batch(
        self, request: RawRequestMessage, payload: StreamReader, connection: Connection, target: Target
    ) -> Response:
        if request.method not in contract.ACTION_METHODS:
            raise contract.method_not_allowed(contract.ACTION_METHODS)
        contract.check_batch_headers(request.headers)
        operations = Batch(self._contract, target, self._settings.request_timeout)
        self._check_node()
        operations.read(await self._body(request, payload, connection, batch.check_length))
        began_s = time.monotonic()
        while requests := operations.due(time.monotonic() - began_s):
            outcomes = self._backend.submit_all(requests)
            operations.take(outcomes if isinstance(outcomes, list) else await outcomes)
        self._metrics.hits += operations.hits
        self._metrics.misses += operations.misses
        return operations.response()

    async def _scan(self, _request: RawRequestMessage, target: Target) -> Response:
        scan = Scan(self._contract, target, self._settings.request_timeout)
        self._check_node()
        began_s = time.monotonic()
        while (request := scan.due(time.monotonic() - began_s)) is not None:
            scan.take(await self._backend.scan(request))
        return scan.response()

    async def _body(
        self,
        request: RawRequestMessage,
        payload: StreamReader,
        connection: Connection,
        check_length: Callable[[int], None],
    ) -> bytes:
        """Read a whole body, within its limits. Raises `RefusedError`, ConnectionError or a body error."""
        headers = request.headers
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
            self._bodies_bytes += len(piece)
            check_length(size)
            if self._bodies_bytes > self._limits.bodies_bytes_max:
                raise RefusedError(contract.TOO_MANY_BODIES, "too much is being received; try again")
            pieces.append(piece)

        try:
            await connection.read_body(payload, take)
        finally:
            self._bodies_bytes -= size
        return b"".join(pieces)

    def _check_node(self) -> None:
        if self._node is None:
            raise RefusedError(contract.NOT_READY, "the node is starting")

    def _check_header_block(self, request: RawRequestMessage) -> None:
        """Measure a header block as it came: each line has a separator and an end."""
        lines = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        size = len(request.method) + len(request.path) + len(" HTTP/1.1\r\n ") + lines + 2
        if size > self._limits.header_bytes_max:
            raise RefusedError(contract.HEADERS_TOO_LARGE, f"the most is {self._limits.header_bytes_max} bytes")

    # --- answers ------------------------------------------------------------------------------------

    def _ending(self, request: RawRequestMessage, payload: StreamReader, connection: Connection) -> Ending:
        """Decide what becomes of the connection, before the answer says so."""
        keep = not request.should_close and not self._is_draining and not connection.is_last
        if payload.is_eof():
            if keep:
                return Ending.KEEP
            # Who did not ask for the end may be sending the next request.
            return Ending.CLOSE if request.should_close else Ending.LINGER
        length = request.headers.get("Content-Length")
        awaits_continue = "Expect" in request.headers and not connection.is_continued and not payload.total_bytes
        if not keep or length is None or awaits_continue or payload.exception() is not None:
            return Ending.LINGER
        is_small = int(length) - payload.total_bytes <= self._limits.drain_bytes_max
        return Ending.DRAIN if is_small else Ending.LINGER

    def _head(self, response: Response, request: RawRequestMessage, ending: Ending) -> bytes:
        """Write the status line and the headers."""
        if ending is Ending.KEEP or ending is Ending.DRAIN:
            connection = b"" if request.version >= HttpVersion11 else b"Connection: keep-alive\r\n"
        else:
            connection = b"Connection: close\r\n"
        return self._head_bytes(response, connection)

    def _head_bytes(self, response: Response, connection: bytes) -> bytes:
        lines = b"\r\n".join([b": ".join(header) for header in response.headers])
        return b"%b%b%b\r\n%b\r\n" % (contract.STATUS_LINES[response.status], self._date_line(), lines, connection)

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

    def _report(self, error: BaseException) -> Answer:
        """Answer what never became a request, or a request that could not be answered."""
        line_bytes_max = self._limits.header_bytes_max
        if _is_of_headers(error, line_bytes_max):
            response = self._contract.problem(contract.HEADERS_TOO_LARGE, f"the most is {line_bytes_max} bytes")
        elif isinstance(error, LineTooLong):
            response = self._contract.problem(contract.KEY_TOO_LONG, "the request line is too long")
        elif isinstance(error, HttpProcessingError):
            error.__traceback__ = None  # As in `read_body`.
            response = self._contract.problem(contract.MALFORMED, _sentence(error.message))
        else:
            log.error("answer-failed", exc_info=error)
            response = self._contract.problem(contract.INTERNAL_ERROR, "the node's log says more")
        self._metrics.count_request(OTHER, response.status)
        return Answer(self._head_bytes(response, b"Connection: close\r\n"), response.body, Ending.LINGER)

    # --- pages --------------------------------------------------------------------------------------

    def _beside(
        self, request: RawRequestMessage, payload: StreamReader, connection: Connection, target: Target
    ) -> tuple[int, Awaitable[Response]]:
        """Find who answers a request for anything but one key, and name it for the metrics."""
        if target.path == BATCH_PATH:
            return BATCH, self._batch(request, payload, connection, target)
        return SCAN if target.path == SCAN_PATH else PAGE, self._page(request, target)(request, target)

    def _page(self, request: RawRequestMessage, target: Target) -> Page:
        path = target.path
        if path.startswith(EXPLAIN_PREFIX):
            path = EXPLAIN_PREFIX  # A key may hold slashes.
        for pages, methods in ((self._pages, contract.PAGE_METHODS), (self._actions, contract.ACTION_METHODS)):
            page = pages.get(path) or pages.get(path[: path.rfind(b"/") + 1])
            if page is not None:
                if request.method not in methods:
                    raise contract.method_not_allowed(methods)
                return page
        raise RefusedError(contract.UNKNOWN_PAGE, "this path leads nowhere")

    def _served_node(self) -> Node:
        self._check_node()
        assert self._node is not None
        return self._node

    async def _alive(self, _request: RawRequestMessage, _target: Target) -> Response:
        """Whoever reads this knows that the loop turns."""
        return self._contract.page(b"ok\n", b"text/plain; charset=utf-8")

    async def _ready(self, _request: RawRequestMessage, _target: Target) -> Response:
        missing = list(self._served_node().readiness())
        if self._is_draining:
            missing.append("draining")
        if missing:
            return self._contract.problem(contract.NOT_READY, "; ".join(missing))
        return self._contract.page(b"ready\n", b"text/plain; charset=utf-8")

    async def _asset(self, request: RawRequestMessage, target: Target) -> Response:
        """Serve the page for people: it asks for everything else by itself, so it is there before the node is."""
        asset = assets().get(target.path)
        if asset is None:
            raise RefusedError(contract.UNKNOWN_PAGE, "this path leads nowhere")
        return asset.response(_raw(", ".join(request.headers.getall("If-None-Match", ()))))

    async def _cluster(self, _request: RawRequestMessage, _target: Target) -> Response:
        node = self._served_node()
        own = lambda: (self._own_views(), self._own_info())  # noqa: E731  # read when the others are asked
        return self._contract.page(await self._gatherer.cluster(lambda: node.view, own), b"application/json")

    async def _cluster_certificate(self, request: RawRequestMessage, target: Target) -> Response:
        """Answer as `_certificate`, or as the accuser itself where it can be asked."""
        node, node_id = self._served_node(), _named(target)
        held = node.swim.certificates.of(node_id)
        if isinstance(held, Stub):
            told = await self._gatherer.certificate(node.view, held.accuser, node_id)
            if told is not None:
                return self._json(told)
        return await self._certificate(request, target)

    def _own_info(self) -> dict[str, Any]:
        return debug.info_page(self._served_node(), self._metrics, os.getpid(), self._started, self._now())

    def _own_views(self) -> dict[str, Any]:
        lag_s = self._metrics.event_loop_lag_s
        return debug.views_page(self._served_node(), lag_s, self._started, self._now())

    async def _info(self, _request: RawRequestMessage, _target: Target) -> Response:
        return self._json(self._own_info())

    async def _show_metrics(self, request: RawRequestMessage, _target: Target) -> Response:
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return self._contract.page(body, content_type.encode())

    async def _openapi(self, _request: RawRequestMessage, _target: Target) -> Response:
        if self._openapi_document is None:
            self._openapi_document = self._json(openapi.document(self._settings))
        return self._openapi_document

    async def _views(self, _request: RawRequestMessage, _target: Target) -> Response:
        return self._json(self._own_views())

    async def _ring(self, _request: RawRequestMessage, target: Target) -> Response:
        node = self._served_node()
        raw_key = contract.lenient_parameter(target.query, "key")
        if raw_key is not None:
            key = contract.checked_key(raw_key)
            explanation = EXPLAIN_PREFIX.decode() + contract.key_text(key) if EXPLAIN_PREFIX in self._pages else None
            return self._json({**debug.ring_key_page(node, key), "explain": explanation})
        while not node.ring.fill():  # noqa: ASYNC110  # it works and waits for nothing: slice by slice: filling it at once would stall the loop
            await asyncio.sleep(0)
        return self._json(debug.ring_page(node))

    async def _timeline(self, _request: RawRequestMessage, target: Target) -> Response:
        node = self._served_node()
        since = contract.lenient_parameter(target.query, "since")
        return self._json(debug.timeline_page(node, contract.parse_unix_ms(since) if since else 0))

    async def _certificate(self, _request: RawRequestMessage, target: Target) -> Response:
        node_id = _named(target)
        held = self._served_node().swim.certificates.of(node_id)
        if held is None:
            raise RefusedError(contract.NO_CERTIFICATE, f"nothing is known here of a death of {node_id}")
        return self._json(debug.certificate_page(held))

    async def _explain(self, _request: RawRequestMessage, target: Target) -> Response:
        key = contract.parse_key(target.path, EXPLAIN_PREFIX)
        self._check_node()
        return self._json(debug.explain_page(await self._backend.explain(key)))

    async def _events(self, _request: RawRequestMessage, _target: Target) -> Response:
        """Begin an answer without an end, if there is room for one more."""
        self._check_node()
        self._streams = {
            stream: connection
            for stream, connection in self._streams.items()
            if not stream.is_over and connection.transport is not None
        }
        if len(self._streams) >= self._limits.streams_max:
            raise RefusedError(contract.TOO_MANY_STREAMS, f"the most is {self._limits.streams_max}")
        return self._contract.event_stream()

    def _stream(self, request: RawRequestMessage, target: Target, connection: Connection) -> Stream | None:
        """Make the rest of that answer; None where a page was all of it."""
        if target.path != EVENTS_PATH or request.method == "HEAD":
            return None
        follower = Follower(self._served_node(), contract.parse_event_id(request.headers.get("Last-Event-ID")))
        stream = Stream(follower.take, SIGN_OF_LIFE, self._limits.stream_idle_s)
        self._streams[stream] = connection
        if self._is_draining:
            stream.end()
        return stream

    # --- what operators ask for ---------------------------------------------------------------------

    async def _evict(self, _request: RawRequestMessage, target: Target) -> Response:
        node_id, node = _named(target), self._served_node()
        objection = node.eviction_objection(node_id)
        if objection:
            is_unknown = node.etcd is not None and node_id not in node.etcd.registrations
            raise RefusedError(contract.UNKNOWN_MEMBER if is_unknown else contract.CANNOT_EVICT, objection)
        self._dispatch(EvictionRequested(node_id))
        return self._json({"member": node_id, "proposed": True}, 202)

    async def _release(self, _request: RawRequestMessage, _target: Target) -> Response:
        authority = self._served_node().view.authority
        if authority != "held":
            raise RefusedError(contract.NOTHING_HELD, f"the ring is not held: authority is {authority}")
        self._dispatch(HoldReleaseRequested())
        return self._json({"released": True}, 202)

    def _json(self, document: dict[str, Any], status: int = 200) -> Response:
        return self._contract.page(json.dumps(document).encode() + b"\n", b"application/json", status)


def _operation_of(method: str, target: Target) -> int:
    """Name a write in the metrics."""
    if method == "POST" and target.query and b"incr=" in target.query:
        return INCR
    return _OPERATIONS.get(method, PUT)


_OPERATIONS = {"DELETE": DELETE, "PATCH": PATCH}


async def _awaited(outcome: Outcome | Awaitable[Outcome]) -> Outcome:
    return outcome if isinstance(outcome, Outcome) else await outcome


def _conditions(headers: CIMultiDictProxy[str]) -> tuple[Condition, ...]:
    """Read the conditions of a request; the lines of one header are one list. Raises `RefusedError` (400)."""
    if_match, if_none_match = (
        _raw(", ".join(headers.getall(name))) if name in headers else None for name in ("If-Match", "If-None-Match")
    )
    return contract.parse_conditions(if_match, if_none_match)


def _named(target: Target) -> NodeId:
    """Return the id at the end of a path. Raises `RefusedError` (404)."""
    return contract.parse_node_id(target.path[target.path.rfind(b"/") + 1 :])


def _is_of_headers(error: BaseException, line_bytes_max: int) -> bool:
    """Tell whether the parser gave up over headers that are too long or too many, not over the request line."""
    if isinstance(error, LineTooLong):
        return bool(error.args[1] != line_bytes_max)
    too_many = isinstance(error, BadHttpMessage) and error.message.startswith("Too many headers")
    return too_many or isinstance(error, HeadersTooLargeError)


def _sentence(message: str) -> str:
    """Return the first line of what the parser says; the others draw a picture."""
    return message.partition("\n")[0].rstrip(":")[:200] or "it is no HTTP"


def _raw(text: str) -> bytes:
    """Return the bytes of a header as they came."""
    return text.encode("utf-8", "surrogateescape")
