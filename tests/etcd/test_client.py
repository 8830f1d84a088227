"""The adapter to etcd against a real etcd."""

import asyncio
import random
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from zephyr.config import Settings
from zephyr.errors import ConfigError
from zephyr.etcd.client import PING_PERIOD_MS, PING_TIMEOUT_MS, EtcdClient
from zephyr.etcd.embedded import EmbeddedEtcd, find_etcd, free_port
from zephyr.etcd.registration import Keyspace
from zephyr.events import (
    CheckKeys,
    EtcdCallFailed,
    EtcdKeysChecked,
    EtcdSnapshotRead,
    EtcdTransactionDone,
    EtcdWatched,
    EtcdWatchEnded,
    GrantLease,
    KeepLeaseAlive,
    LeaseGranted,
    LeaseKeptAlive,
    LeaseRevoked,
    ReadSnapshot,
    RevokeLease,
    TransactKey,
    WatchKeys,
)

KEYS = Keyspace("dev")
KEY = KEYS.member("n1")


class Dialogue:
    """A client, and its answers in order."""

    def __init__(self, *endpoints: str, **settings: object):
        self.events: asyncio.Queue = asyncio.Queue()
        changed = replace(Settings(id="n1", etcd=endpoints), **{"etcd_timeout": 2.0, **settings})
        self.client = EtcdClient(changed, KEYS.range_start, KEYS.range_end, self.events.put_nowait, random.Random(1))

    async def next(self, kind: type, timeout_s: float = 10):
        """Return the next event, which must be of this kind."""
        event = await asyncio.wait_for(self.events.get(), timeout_s)
        assert isinstance(event, kind), event
        return event

    async def ask(self, effect, kind: type):
        self.client.execute(effect)
        return await self.next(kind)

    async def until_answered(self, timeout_s: float = 5) -> float:
        """Ask for a listing until one comes; return the seconds it took."""
        began_s = time.monotonic()
        while True:
            self.client.execute(ReadSnapshot())
            if isinstance(await asyncio.wait_for(self.events.get(), 10), EtcdSnapshotRead):
                return time.monotonic() - began_s
            assert time.monotonic() - began_s < timeout_s
            await asyncio.sleep(0.05)


@pytest.fixture
async def etcd():
    embedded = EmbeddedEtcd()
    await embedded.start()
    yield embedded
    await embedded.close()


@pytest.fixture
async def dialogue(etcd):
    made = Dialogue(etcd.endpoint)
    yield made
    await made.client.close()


async def test_each_call_is_answered_by_its_own_event(dialogue):
    assert await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead) == EtcdSnapshotRead(1, ())
    lease = await dialogue.ask(GrantLease(30), LeaseGranted)
    assert lease.ttl_s == 30
    assert lease.sent_s <= time.monotonic()
    put = TransactKey("register", KEY, b"value", lease.lease_id, 0)
    assert await dialogue.ask(put, EtcdTransactionDone) == EtcdTransactionDone("register", True, 2)
    assert (await dialogue.ask(put, EtcdTransactionDone)).succeeded is False, "the key exists by now"
    again = replace(put, expected_mod_revision=2, value=b"other")
    assert (await dialogue.ask(again, EtcdTransactionDone)).succeeded
    [pair] = (await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead)).pairs
    assert (pair.key, pair.value, pair.mod_revision, pair.lease_id) == (KEY, b"other", 3, lease.lease_id)
    assert await dialogue.ask(CheckKeys(), EtcdKeysChecked) == EtcdKeysChecked(3, ((KEY, 3),))
    assert (await dialogue.ask(KeepLeaseAlive(lease.lease_id), LeaseKeptAlive)).ttl_s == 30
    await dialogue.ask(RevokeLease(lease.lease_id), LeaseRevoked)
    assert (await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead)).pairs == ()


async def test_a_lease_that_is_gone_is_told_as_such(dialogue):
    assert (await dialogue.ask(KeepLeaseAlive(12345), LeaseKeptAlive)).ttl_s == 0
    assert await dialogue.ask(RevokeLease(12345), LeaseRevoked) == LeaseRevoked(12345)
    failed = await dialogue.ask(TransactKey("register", KEY, b"value", 12345, 0), EtcdCallFailed)
    assert failed.definite
    assert "lease not found" in failed.reason


async def test_the_watch_tells_puts_deletions_and_the_end_of_leases_one_revision_at_a_time(dialogue):
    dialogue.client.execute(WatchKeys(1, 2))
    lease = await dialogue.ask(GrantLease(2), LeaseGranted)
    for name in ("n1", "n2"):
        dialogue.client.execute(TransactKey(name, KEYS.member(name), b"value", lease.lease_id, 0))
    events = [await dialogue.next((EtcdWatched, EtcdTransactionDone)) for _ in range(4)]
    watched = [event for event in events if isinstance(event, EtcdWatched)]
    assert [event.revision for event in watched] == [2, 3]
    assert {event.changes[0].value for event in watched} == {b"value"}
    ended = await dialogue.next(EtcdWatched)
    assert ended.revision == 4
    assert [change.value for change in ended.changes] == [None, None], "both keys went at one revision"


async def test_a_new_watch_ends_the_old_one_without_a_word(dialogue):
    dialogue.client.execute(WatchKeys(1, 2))
    dialogue.client.execute(WatchKeys(2, 2))
    await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead)
    dialogue.client.execute(TransactKey("settings", KEYS.settings, b"{}", 0, 0))
    events = [await dialogue.next((EtcdWatched, EtcdTransactionDone)) for _ in range(2)]
    assert [event.watch_id for event in events if isinstance(event, EtcdWatched)] == [2]


async def test_a_compacted_start_revision_ends_the_watch_with_the_reason(etcd, dialogue):
    for number in range(3):
        await dialogue.ask(TransactKey("x", KEYS.member(f"n{number}"), b"v", 0, 0), EtcdTransactionDone)
    etcdctl = Path(find_etcd()).parent / "etcdctl"
    command = [str(etcdctl), "--endpoints", etcd.endpoint, "compaction", "4"]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, env={"ETCDCTL_API": "3"})
    ended = await dialogue.ask(WatchKeys(1, 2), EtcdWatchEnded)
    assert ended == EtcdWatchEnded(1, "compacted at revision 4")


async def test_after_a_kill_calls_fail_with_a_reason_and_work_again_soon_after_the_restart(etcd, dialogue):
    dialogue.client.execute(WatchKeys(1, 2))
    await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead)
    await etcd.kill()
    assert (await dialogue.next(EtcdWatchEnded)).watch_id == 1
    # The end of the watch may come before gRPC is done with the connection: the next call can still be put on that.
    closed, refused = f"{etcd.endpoint}: connection closed", f"{etcd.endpoint}: connection refused"
    async with asyncio.timeout(5):
        while (failed := await dialogue.ask(ReadSnapshot(), EtcdCallFailed)).reason != refused:
            assert failed.reason == closed
            assert not failed.definite
    assert not failed.definite
    await etcd.start()
    assert await dialogue.until_answered() < 5


async def test_a_stopped_etcd_costs_each_call_its_deadline_and_ends_the_watch(etcd):
    # Far below the time-out of a ping that may be under way, or either could be the first to end.
    dialogue = Dialogue(etcd.endpoint, etcd_timeout=PING_TIMEOUT_MS / 1000 / 2)
    await dialogue.until_answered()
    dialogue.client.execute(WatchKeys(1, 2))
    await dialogue.until_answered()
    await etcd.pause()
    try:
        failed = await dialogue.ask(CheckKeys(), EtcdCallFailed)
        assert failed.reason == f"{etcd.endpoint}: no answer in time"
        ended = await dialogue.next(EtcdWatchEnded, timeout_s=2 * (PING_PERIOD_MS + PING_TIMEOUT_MS) / 1000)
        assert ended.watch_id == 1
        etcd.resume()
        await dialogue.until_answered()
    finally:
        await dialogue.client.close()


async def test_a_dead_endpoint_among_several_fails_no_call_that_may_be_repeated(etcd):
    dead = f"127.0.0.1:{free_port()}"
    for endpoints in ((dead, etcd.endpoint), (etcd.endpoint, dead)):
        dialogue = Dialogue(*endpoints)
        try:
            for _ in range(3):
                await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead)
        finally:
            await dialogue.client.close()


async def test_a_host_name_is_as_good_as_an_address(etcd):
    dialogue = Dialogue(etcd.endpoint.replace("127.0.0.1", "localhost"))
    try:
        await dialogue.ask(ReadSnapshot(), EtcdSnapshotRead)
    finally:
        await dialogue.client.close()


async def test_too_many_keys_are_refused_with_a_reason(dialogue, monkeypatch):
    monkeypatch.setattr("zephyr.etcd.client.KEYS_MAX", 2)
    for number in range(3):
        await dialogue.ask(TransactKey("x", KEYS.member(f"n{number}"), b"v", 0, 0), EtcdTransactionDone)
    failed = await dialogue.ask(ReadSnapshot(), EtcdCallFailed)
    assert "more than 2 keys" in failed.reason


@pytest.fixture
def certificates(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@example.test")
    for name, issued in (("server", server), ("client", client)):
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    return tmp_path


async def test_tls_with_a_client_certificate(certificates):
    etcd = EmbeddedEtcd(
        scheme="https",
        arguments=(
            "--cert-file", str(certificates / "server.pem"), "--key-file", str(certificates / "server.key"),
            "--trusted-ca-file", str(certificates / "ca.pem"), "--client-cert-auth",
        ),
    )  # fmt: skip
    await etcd.start()
    ours = {
        "etcd_ca": str(certificates / "ca.pem"),
        "etcd_cert": str(certificates / "client.pem"),
        "etcd_key": str(certificates / "client.key"),
    }
    trusted, stranger = Dialogue(etcd.endpoint, **ours), Dialogue(etcd.endpoint, etcd_ca=ours["etcd_ca"])
    try:
        await trusted.until_answered(10)
        failed = await stranger.ask(ReadSnapshot(), EtcdCallFailed)
        assert etcd.endpoint in failed.reason
    finally:
        await trusted.client.close()
        await stranger.client.close()
        await etcd.close()


async def test_an_unreadable_certificate_is_one_line():
    with pytest.raises(ConfigError, match=r"--etcd-ca: /nowhere/ca.pem cannot be read: No such file"):
        Dialogue("127.0.0.1:1", etcd_ca="/nowhere/ca.pem")


async def test_user_and_password(etcd):
    etcdctl = Path(find_etcd()).parent / "etcdctl"
    for words in ("user add root:secret", "user grant-role root root", "auth enable"):
        command = [str(etcdctl), "--endpoints", etcd.endpoint, *words.split()]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, env={"ETCDCTL_API": "3"})
    right = Dialogue(etcd.endpoint, etcd_user="root", etcd_password="secret")  # noqa: S106  # the test's own etcd
    wrong = Dialogue(etcd.endpoint, etcd_user="root", etcd_password="guess")  # noqa: S106
    nobody = Dialogue(etcd.endpoint)
    try:
        await right.ask(ReadSnapshot(), EtcdSnapshotRead)
        right.client.execute(WatchKeys(1, 2))
        right.client.execute(TransactKey("settings", KEYS.settings, b"{}", 0, 0))
        events = [await right.next((EtcdWatched, EtcdTransactionDone)) for _ in range(2)]
        assert any(isinstance(event, EtcdWatched) for event in events)
        right.client._token = "stale.1"  # noqa: S105  # as after a restart of etcd, which forgets its tokens
        await right.ask(ReadSnapshot(), EtcdSnapshotRead)
        failed = await wrong.ask(ReadSnapshot(), EtcdCallFailed)
        assert "authentication failed" in failed.reason
        assert failed.definite
        assert (await nobody.ask(ReadSnapshot(), EtcdCallFailed)).definite
    finally:
        for dialogue in (right, wrong, nobody):
            await dialogue.client.close()


async def test_nothing_is_emitted_after_the_end(etcd):
    dialogue = Dialogue(etcd.endpoint)
    dialogue.client.execute(WatchKeys(1, 2))
    dialogue.client.execute(ReadSnapshot())
    await dialogue.client.close()
    assert dialogue.events.empty()
