"""Calls to etcd: effects in, events out, on grpc.aio.

Carries out single calls with the generated stubs of python3-etcd3 and says how each ended. It decides
nothing: when to call, and what an answer means, is `zephyr.etcd.lease`'s.

One channel an endpoint. gRPC's own round robin balances over the addresses of *one* name and takes lists
of IP addresses only; here endpoints may be host names, and an endpoint that does not answer is left for
the next one at once. All calls go to one endpoint until it fails. A call that may be repeated safely is
tried a second time there, within the same deadline.

Invariants: every effect ends in exactly one event, the watch in a stream of `EtcdWatched` and at most one
`EtcdWatchEnded`; nothing is emitted after `close`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

# Every failure reaches the log as an event; gRPC's own lines do not help.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Nothing here forks but to start another program, which gRPC's handlers can break: its child has their threads' locks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from etcd3.etcdrpc import rpc_pb2 as messages
from etcd3.etcdrpc import rpc_pb2_grpc as stubs

from zephyr.config import Settings
from zephyr.errors import ConfigError, EtcdError
from zephyr.events import (
    CheckKeys,
    EtcdCallFailed,
    EtcdEffect,
    EtcdEvent,
    EtcdKeysChecked,
    EtcdSnapshotRead,
    EtcdTransactionDone,
    EtcdWatched,
    EtcdWatchEnded,
    EvictMember,
    GrantLease,
    KeepLeaseAlive,
    KeyChange,
    KeyValue,
    LeaseGranted,
    LeaseKeptAlive,
    LeaseRevoked,
    ReadSnapshot,
    RevokeLease,
    TransactKey,
    WatchKeys,
)

KEYS_MAX = 4096
"""Most keys listed: 200 members and their marks, twenty times over. More means that something else writes there."""
MESSAGE_BYTES_MAX = 32 << 20
"""Longest answer taken: `KEYS_MAX` values of 4 KiB, and room."""
CALLS_MAX = 64
"""Calls under way; the core has at most one of each kind."""
RECONNECT_FIRST_MS = 100
CONNECT_TIME_MS = 1000
"""Least time that an attempt to connect is given (gRPC calls it the least back-off): a busy machine needs some."""
RECONNECT_MAX_MS = 1000
"""gRPC's own back-off is 120 s at most, which left a client deaf for 12 s after a minute's outage."""
PING_PERIOD_MS = 5000
"""A silent etcd (stopped, cut off) ends the watch within this and `PING_TIMEOUT_MS`. etcd allows one every 5 s."""
PING_TIMEOUT_MS = 2000
RETRY_PAUSE_MAX_S = 0.05
"""Jitter before the second try at another endpoint."""
WATCH_METADATA = (("hasleader", "true"),)
"""A member of etcd that lost its leader ends the stream instead of keeping it silent."""

_CLOSED = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY")
"""How gRPC says that the connection ended under a call; which one is chance."""
_IDEMPOTENT = (ReadSnapshot, CheckKeys, KeepLeaseAlive, RevokeLease)
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_UNCERTAIN = (*_ELSEWHERE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIME_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.keepalive_time_ms", PING_PERIOD_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_PERIOD_MS),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
)


class EtcdClient:
    """The adapter to etcd. `emit` is called in the event loop, never from within `execute`."""

    def __init__(
        self,
        settings: Settings,
        range_start: bytes,
        range_end: bytes,
        emit: Callable[[EtcdEvent], None],
        rng: random.Random,
    ) -> None:
        """Raises ConfigError when a certificate file cannot be read."""
        self._settings = settings
        self._range_start = range_start
        self._range_end = range_end
        self._emit = emit
        self._rng = rng
        self._credentials = _credentials(settings)
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._endpoint = rng.randrange(len(settings.etcd))
        self._token = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    def execute(self, effect: EtcdEffect) -> None:
        """Start a call; its end is emitted."""
        if isinstance(effect, WatchKeys):
            if self._watch is not None:
                self._watch.cancel()
            self._watch = self._spawn(self._run_watch(effect))
            return
        assert len(self._tasks) < CALLS_MAX, "the core has one call of each kind under way"
        self._spawn(self._run_call(effect))

    async def close(self) -> None:
        """End every call; emit nothing more."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _channel(self) -> grpc.aio.Channel:
        """Return the channel of the endpoint in use; made at first need."""
        number = self._endpoint
        if number not in self._channels:
            address = self._settings.etcd[number]
            if self._credentials is None:
                self._channels[number] = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
            else:
                self._channels[number] = grpc.aio.secure_channel(address, self._credentials, options=_CHANNEL_OPTIONS)
        return self._channels[number]

    # --- single calls ---------------------------------------------------------------------------------

    async def _run_call(self, effect: EtcdEffect) -> None:
        deadline_s = time.monotonic() + self._settings.etcd_timeout
        tries = 2 if isinstance(effect, _IDEMPOTENT) and len(self._settings.etcd) > 1 else 1
        for remaining in range(tries - 1, -1, -1):
            endpoint = self._endpoint
            # A first try leaves half of the time to the second one.
            timeout_s = (deadline_s - time.monotonic()) / (remaining + 1)
            try:
                event = await self._call(effect, timeout_s)
            except grpc.aio.AioRpcError as error:
                event = self._failure(effect, endpoint, error)
                if error.code() in _ELSEWHERE and remaining:
                    await asyncio.sleep(self._rng.uniform(0, RETRY_PAUSE_MAX_S))
                    continue
            except EtcdError as error:
                event = EtcdCallFailed(effect, str(error), definite=error.definite)
            if not self._closed:
                self._emit(event)
            return

    async def _call(self, effect: EtcdEffect, timeout_s: float) -> EtcdEvent:
        """Make one call, with a fresh token if the one in use has become invalid."""
        try:
            return await self._invoke(effect, timeout_s, await self._metadata(timeout_s))
        except grpc.aio.AioRpcError as error:
            if not self._token or "invalid auth token" not in (error.details() or ""):
                raise
        self._token = ""
        return await self._invoke(effect, timeout_s, await self._metadata(timeout_s))

    async def _metadata(self, timeout_s: float) -> tuple[tuple[str, str], ...]:
        if not self._settings.etcd_user:
            return ()
        if not self._token:
            request = messages.AuthenticateRequest(name=self._settings.etcd_user, password=self._settings.etcd_password)
            answer = await stubs.AuthStub(self._channel()).Authenticate(request, timeout=timeout_s)
            self._token = answer.token
        return (("token", self._token),)

    async def _invoke(self, effect: EtcdEffect, timeout_s: float, metadata: tuple[tuple[str, str], ...]) -> EtcdEvent:
        channel, options = self._channel(), {"timeout": timeout_s, "metadata": metadata}
        sent_s = time.monotonic()
        match effect:
            case ReadSnapshot():
                answer = await self._list(channel, options, keys_only=False)
                pairs = tuple(KeyValue(pair.key, pair.value, pair.mod_revision, pair.lease) for pair in answer.kvs)
                return EtcdSnapshotRead(answer.header.revision, pairs)
            case CheckKeys():
                answer = await self._list(channel, options, keys_only=True)
                keys = tuple((pair.key, pair.mod_revision) for pair in answer.kvs)
                return EtcdKeysChecked(answer.header.revision, keys)
            case GrantLease(ttl_s):
                answer = await stubs.LeaseStub(channel).LeaseGrant(messages.LeaseGrantRequest(TTL=ttl_s), **options)
                return LeaseGranted(answer.ID, answer.TTL, sent_s)
            case KeepLeaseAlive(lease_id):
                return LeaseKeptAlive(lease_id, await self._keep_alive(channel, options, lease_id), sent_s)
            case RevokeLease(lease_id):
                await self._revoke(channel, options, lease_id)
                return LeaseRevoked(lease_id)
            case TransactKey():
                return await self._transact(channel, options, effect)
            case EvictMember():
                return await self._evict(channel, options, effect)
            case WatchKeys():
                raise AssertionError("a watch is no single call")

    async def _list(self, channel: grpc.aio.Channel, options: dict[str, Any], *, keys_only: bool) -> Any:
        request = messages.RangeRequest(
            key=self._range_start, range_end=self._range_end, limit=KEYS_MAX, keys_only=keys_only
        )
        answer = await stubs.KVStub(channel).Range(request, **options)
        if answer.more:
            raise EtcdError(f"more than {KEYS_MAX} keys under {self._range_start!r}: not ours alone", definite=True)
        return answer

    async def _keep_alive(self, channel: grpc.aio.Channel, options: dict[str, Any], lease_id: int) -> int:
        """Renew once. A stream of one request: the answer to it tells the time to live, 0 for an unknown lease."""

        async def one() -> AsyncIterator[Any]:
            yield messages.LeaseKeepAliveRequest(ID=lease_id)

        async for answer in stubs.LeaseStub(channel).LeaseKeepAlive(one(), **options):
            return int(answer.TTL)
        raise EtcdError("etcd ended the keep-alive without an answer")

    async def _revoke(self, channel: grpc.aio.Channel, options: dict[str, Any], lease_id: int) -> None:
        try:
            await stubs.LeaseStub(channel).LeaseRevoke(messages.LeaseRevokeRequest(ID=lease_id), **options)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise  # A lease that is gone is what was wanted.

    async def _transact(self, channel: grpc.aio.Channel, options: dict[str, Any], effect: TransactKey) -> EtcdEvent:
        unchanged = messages.Compare(
            key=effect.key,
            target=messages.Compare.MOD,
            result=messages.Compare.EQUAL,
            mod_revision=effect.expected_mod_revision,
        )
        put = messages.PutRequest(key=effect.key, value=effect.value, lease=effect.lease_id)
        request = messages.TxnRequest(compare=[unchanged], success=[messages.RequestOp(request_put=put)])
        answer = await stubs.KVStub(channel).Txn(request, **options)
        return EtcdTransactionDone(effect.tag, answer.succeeded, answer.header.revision)

    async def _evict(self, channel: grpc.aio.Channel, options: dict[str, Any], effect: EvictMember) -> EtcdEvent:
        unchanged = messages.Compare(
            key=effect.key,
            target=messages.Compare.MOD,
            result=messages.Compare.EQUAL,
            mod_revision=effect.expected_mod_revision,
        )
        put = messages.PutRequest(key=effect.mark_key, value=effect.mark, lease=effect.lease_id)
        delete = messages.DeleteRangeRequest(key=effect.key)
        done = [messages.RequestOp(request_put=put), messages.RequestOp(request_delete_range=delete)]
        answer = await stubs.KVStub(channel).Txn(messages.TxnRequest(compare=[unchanged], success=done), **options)
        return EtcdTransactionDone(effect.tag, answer.succeeded, answer.header.revision)

    def _failure(self, effect: EtcdEffect, endpoint: int, error: grpc.aio.AioRpcError) -> EtcdCallFailed:
        """Say in one line what went wrong; go to the next endpoint when this one is to blame."""
        if error.code() in _ELSEWHERE and endpoint == self._endpoint:
            self._endpoint = (endpoint + 1) % len(self._settings.etcd)
        reason = _reason(self._settings.etcd[endpoint], error)
        return EtcdCallFailed(effect, reason, definite=error.code() not in _UNCERTAIN)

    # --- the watch ------------------------------------------------------------------------------------

    async def _run_watch(self, effect: WatchKeys) -> None:
        endpoint = self._endpoint
        try:
            reason = await self._follow(effect)
        except grpc.aio.AioRpcError as error:
            if error.code() in _ELSEWHERE and endpoint == self._endpoint:
                self._endpoint = (endpoint + 1) % len(self._settings.etcd)
            reason = _reason(self._settings.etcd[endpoint], error)
        if not self._closed:
            self._emit(EtcdWatchEnded(effect.watch_id, reason))

    async def _follow(self, effect: WatchKeys) -> str:
        """Emit every revision's changes until the stream ends; return why it ended."""
        create = messages.WatchCreateRequest(
            key=self._range_start, range_end=self._range_end, start_revision=effect.revision
        )
        metadata = (*WATCH_METADATA, *await self._metadata(self._settings.etcd_timeout))
        call = stubs.WatchStub(self._channel()).Watch(metadata=metadata)
        try:
            await call.write(messages.WatchRequest(create_request=create))
            async for answer in call:
                if answer.canceled:
                    if answer.compact_revision:
                        return f"compacted at revision {answer.compact_revision}"
                    return answer.cancel_reason or "etcd canceled the watch"
                self._emit_changes(effect.watch_id, answer.events)
        finally:
            call.cancel()
        return "etcd ended the stream"

    def _emit_changes(self, watch_id: int, events: Any) -> None:
        """Group the events of one answer by revision: it may hold several, each whole."""
        by_revision: dict[int, list[KeyChange]] = {}
        for event in events:
            pair = event.kv
            deleted = event.type == event.DELETE
            change = KeyChange(pair.key, None if deleted else pair.value, pair.mod_revision, pair.lease)
            by_revision.setdefault(pair.mod_revision, []).append(change)
        for revision in sorted(by_revision):
            self._emit(EtcdWatched(watch_id, revision, tuple(by_revision[revision])))


def _reason(endpoint: str, error: grpc.aio.AioRpcError) -> str:
    """Return one short line for a person."""
    code, details = error.code(), (error.details() or "").strip()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{endpoint}: no answer in time"
    if "Connection refused" in details:
        return f"{endpoint}: connection refused"
    if any(word in details for word in _CLOSED):
        return f"{endpoint}: connection closed"
    if code is grpc.StatusCode.UNAVAILABLE:
        tail = details.rpartition(":")[2].strip() or "unavailable"
        return f"{endpoint}: {tail[:120]}"
    return f"{endpoint}: {details.removeprefix('etcdserver: ')[:200]}"


def _credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    if not settings.etcd_ca:
        return None

    def read(path: str, flag: str) -> bytes | None:
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from None

    return grpc.ssl_channel_credentials(
        read(settings.etcd_ca, "--etcd-ca"),
        read(settings.etcd_key, "--etcd-key"),
        read(settings.etcd_cert, "--etcd-cert"),
    )
