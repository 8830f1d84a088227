"""What etcd can do to a cluster, one thing at a time: real nodes, real etcd."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import aiohttp
import grpc
import pytest
import trustme
from etcd3.etcdrpc import rpc_pb2, rpc_pb2_grpc

from zephyr.etcd.embedded import EmbeddedEtcd, find_etcd

CLUSTER_PREFIX = f"/zephyrcache/test-{os.getpid()}/"
PREFIX = f"{CLUSTER_PREFIX}members/"
LEASE_TTL_S = 3
"""Short, so that leases can end within a test."""
TTL = ("--lease-ttl", f"{LEASE_TTL_S}s")
WATCH_CHANGES_HELD, WATCH_CHANGE_BYTES = 400, 64 << 10
"""etcd holds 128 changes for a watch, and sockets take some MiB that nobody reads: this is more than both."""


async def etcdctl(etcd: EmbeddedEtcd, *words: str) -> str:
    """Run etcdctl, as an operator would."""
    command = [str(Path(find_etcd()).parent / "etcdctl"), "--endpoints", etcd.endpoint, *words]
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, env={"ETCDCTL_API": "3"}
    )
    return done.stdout


async def revision_of(etcd: EmbeddedEtcd) -> int:
    return json.loads(await etcdctl(etcd, "get", PREFIX, "--prefix", "-w", "json"))["header"]["revision"]


async def view_of(cluster, number: int = 0):
    return await cluster.json(cluster.nodes[number], "/debug/views")


async def until(condition, timeout_s: float) -> float:
    began_s = time.monotonic()
    while not await condition():
        assert time.monotonic() - began_s < timeout_s, "not in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - began_s


async def serves(cluster) -> bool:
    """Whether every running node writes and reads."""
    for node in cluster.nodes:
        if node.process is None:
            continue
        if (await cluster.request(node, "PUT", f"/kv/through-{node.id}", node.id.encode()))[0] not in (201, 204):
            return False
        if await cluster.request(node, "GET", f"/kv/through-{node.id}") != (200, node.id.encode()):
            return False
    return True


async def all_connected(cluster) -> bool:
    for number in range(len(cluster.nodes)):
        view = await view_of(cluster, number)
        registered = [member["etcd"]["state"] for member in view["members"]] == ["registered"] * len(cluster.nodes)
        if view["etcd"]["state"] != "connected" or not registered:
            return False
    return True


async def is_registered(etcd: EmbeddedEtcd, node_id: str) -> bool:
    return bool(await etcdctl(etcd, "get", PREFIX + node_id, "--keys-only"))


async def takes_a_change(etcd: EmbeddedEtcd) -> bool:
    """Whether there is a leader: etcd may lose what it was told before, and says nothing for seconds."""
    try:
        await etcdctl(etcd, "--command-timeout=500ms", "put", "/elsewhere", "x")
    except subprocess.CalledProcessError:
        return False
    return True


async def ring_changes(cluster) -> list[int]:
    """How often each node's ring has changed: equal before and after means that it was held all the while."""
    timelines = [await cluster.json(node, "/debug/timeline") for node in cluster.nodes]
    return [sum(event["kind"] == "ring-changed" for event in timeline["events"]) for timeline in timelines]


async def has_event(cluster, number: int, kind: str) -> bool:
    timeline = await cluster.json(cluster.nodes[number], "/debug/timeline")
    return any(event["kind"] == kind for event in timeline["events"])


async def test_a_stopped_etcd_changes_no_ring_and_is_used_again_when_it_goes_on(start_cluster, figure):
    cluster = await start_cluster(3, "--lease-ttl", "20s")  # Longer than it is stopped.

    async def unreachable() -> bool:
        return (await view_of(cluster))["etcd"]["state"] == "unreachable"

    changes = await ring_changes(cluster)
    await cluster.etcd.pause()
    try:
        figure("silence noticed after SIGSTOP", await until(unreachable, 12))
        assert await serves(cluster)
    finally:
        cluster.etcd.resume()
    figure("all connected after SIGCONT", await until(lambda: all_connected(cluster), 5))
    assert await ring_changes(cluster) == changes


async def test_an_etcd_stopped_for_longer_than_a_lease_changes_no_ring(start_cluster):
    cluster = await start_cluster(3, *TTL)
    changes = await ring_changes(cluster)
    await cluster.etcd.pause()
    await asyncio.sleep(LEASE_TTL_S + 2)  # For every lease to end, so this long must pass.
    cluster.etcd.resume()
    await until(lambda: all_connected(cluster), 10)
    assert await ring_changes(cluster) == changes


async def test_a_compaction_during_the_watch_loses_no_change(start_cluster, figure):
    cluster = await start_cluster(3, *TTL)
    await etcdctl(cluster.etcd, "compaction", str(await revision_of(cluster.etcd)), "--physical")
    cluster.nodes[2].kill()
    took_s = await cluster.wait_rings(["n1", "n2"], LEASE_TTL_S + 3)
    figure(f"killed node out of every ring after a compaction, TTL {LEASE_TTL_S} s", took_s)
    cluster.start(cluster.nodes[2])
    await cluster.wait_ready()
    await cluster.wait_rings(["n1", "n2", "n3"], 10)


async def test_a_change_that_was_compacted_away_before_a_slow_watch_had_it_is_not_lost(start_cluster, figure):
    # Its periodic comparison with etcd, every third of a TTL, would often be the first to see what is missing.
    cluster = await start_cluster(3, "--lease-ttl", "60s")
    slow, _, victim = cluster.nodes
    slow.process.send_signal(signal.SIGSTOP)
    try:
        await fill_watches(cluster.etcd)
        victim.kill()
        await revoke_lease_of(cluster.etcd, victim.id)
        await etcdctl(cluster.etcd, "compaction", str(await revision_of(cluster.etcd)), "--physical")
    finally:
        slow.process.send_signal(signal.SIGCONT)
    took_s = await cluster.wait_rings(["n1", "n2"], 5)
    figure("revoked node out of the ring of one whose watch was compacted", took_s)

    async def said() -> bool:
        timeline = (await cluster.json(slow, "/debug/timeline"))["events"]
        ends = [event["detail"] for event in timeline if event["kind"] == "etcd-watch-ended"]
        return any("compacted at revision" in detail for detail in ends)

    await until(said, 5)
    assert await serves(cluster)


async def fill_watches(etcd: EmbeddedEtcd) -> None:
    """Write more than etcd sends to a watch that nobody reads, or keeps for one."""
    async with grpc.aio.insecure_channel(etcd.endpoint) as channel:
        put = rpc_pb2_grpc.KVStub(channel).Put
        for _ in range(WATCH_CHANGES_HELD):
            await put(rpc_pb2.PutRequest(key=f"{PREFIX}filler".encode(), value=bytes(WATCH_CHANGE_BYTES)))
        await rpc_pb2_grpc.KVStub(channel).DeleteRange(rpc_pb2.DeleteRangeRequest(key=f"{PREFIX}filler".encode()))


async def revoke_lease_of(etcd: EmbeddedEtcd, node_id: str) -> None:
    answer = json.loads(await etcdctl(etcd, "get", PREFIX + node_id, "-w", "json"))
    await etcdctl(etcd, "lease", "revoke", f"{answer['kvs'][0]['lease']:x}")


async def test_a_lease_revoked_by_hand_is_replaced_and_the_node_is_back(start_cluster, figure):
    cluster = await start_cluster(3, *TTL)
    epoch = (await cluster.json(cluster.nodes[1], "/info"))["epoch"]
    await revoke_lease_of(cluster.etcd, "n2")

    async def is_back() -> bool:
        new_epoch = (await cluster.json(cluster.nodes[1], "/info"))["epoch"]
        return new_epoch > epoch and await all_connected(cluster)

    figure(
        f"registered again after its lease was revoked by hand, TTL {LEASE_TTL_S} s",
        await until(is_back, LEASE_TTL_S + 3),
    )
    await cluster.wait_rings(["n1", "n2", "n3"], 5)
    assert await serves(cluster)


async def test_a_registration_deleted_by_hand_is_there_again_at_once(start_cluster, figure):
    cluster = await start_cluster(3)
    await etcdctl(cluster.etcd, "del", PREFIX + "n2")
    took_s = await until(lambda: is_registered(cluster.etcd, "n2"), 5)
    figure("registered again after its key was deleted by hand", took_s)
    await cluster.wait_rings(["n1", "n2", "n3"], 5)


async def test_garbage_under_the_prefix_is_shown_and_stops_nobody(start_cluster, figure):
    cluster = await start_cluster(2)
    for key, value in (
        (PREFIX + "n9", "nonsense"),
        (PREFIX + "n8", '{"id": "n7"}'),
        (PREFIX + "a b", "{}"),
        (PREFIX + "n6", "x" * 100_000),
        (f"{CLUSTER_PREFIX}evictions/", "?"),
        ("/zephyrcache/other/members/n1", "{}"),
    ):
        await etcdctl(cluster.etcd, "put", key, value)
    figure("garbage on the timeline", await until(lambda: has_event(cluster, 0, "unusable-key"), 5))
    assert await serves(cluster)
    assert (await view_of(cluster))["ring"]["owners"] == ["n1", "n2"]
    node = cluster.nodes[1]
    node.kill()
    cluster.start(node)
    await cluster.wait_ready()
    await cluster.wait_rings(["n1", "n2"], 10)


async def test_settings_that_differ_are_refused_in_words(start_cluster):
    cluster = await start_cluster(1)
    node = cluster.nodes[0]
    await etcdctl(cluster.etcd, "get", f"{CLUSTER_PREFIX}settings")
    node.kill()
    node.start(*cluster.arguments, "--replicas", "2")
    code = await asyncio.to_thread(node.process.wait, 20)
    node.process = None
    assert code == 1
    assert "replicas is 3 there and 2 here" in node.log.read_text()


async def test_three_etcd_members_losing_their_leader_and_then_their_quorum(start_cluster, figure):
    members = [EmbeddedEtcd(name=f"e{number}") for number in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for member in members:
            member.join(*members)
            stack.push_async_callback(member.close)
        await asyncio.gather(*(member.start() for member in members))
        endpoints = ",".join(member.endpoint for member in members)
        cluster = await start_cluster(3, etcd=members[0], endpoints=endpoints)
        status = [
            json.loads(await etcdctl(member, "endpoint", "status", "-w", "json"))[0]["Status"] for member in members
        ]
        leader = next(number for number, item in enumerate(status) if item["header"]["member_id"] == item["leader"])
        follower = (leader + 1) % 3
        began_s = time.monotonic()
        await members[leader].kill()
        assert await serves(cluster)
        await until(lambda: takes_a_change(members[follower]), 15)
        await etcdctl(members[follower], "del", PREFIX + "n2")
        await until(lambda: is_registered(members[follower], "n2"), 5)
        figure("registration deleted and there again after the death of the leader", time.monotonic() - began_s)
        await cluster.wait_rings(["n1", "n2", "n3"], 5)

        changes = await ring_changes(cluster)
        await members[follower].kill()

        async def unreachable() -> bool:
            return (await view_of(cluster))["etcd"]["state"] == "unreachable"

        figure("loss of the quorum noticed", await until(unreachable, 10))
        assert await serves(cluster)
        await members[follower].start()
        figure("all connected after the quorum was back", await until(lambda: all_connected(cluster), 10))
        assert await ring_changes(cluster) == changes
        assert await serves(cluster)


@pytest.fixture
def certificates(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    return tmp_path


async def test_tls_and_a_password_right_and_wrong(start_cluster, certificates, figure):
    tls = ("--cert-file", str(certificates / "server.pem"), "--key-file", str(certificates / "server.key"))
    etcd = EmbeddedEtcd(scheme="https", arguments=tls)
    await etcd.start()
    try:
        ca = ("--etcd-ca", str(certificates / "ca.pem"))
        for words in ("user add root:secret", "user grant-role root root", "auth enable"):
            await etcdctl(etcd, "--cacert", str(certificates / "ca.pem"), *words.split())
        began_s = time.monotonic()
        cluster = await start_cluster(2, *ca, "--etcd-user", "root", "--etcd-password", "secret", etcd=etcd)
        assert await serves(cluster)
        figure("two nodes started, in one ring over TLS and with a password", time.monotonic() - began_s)

        strangers = await start_cluster(
            1, *ca, "--etcd-user", "root", "--etcd-password", "guess", etcd=etcd, wait=False
        )
        node = strangers.nodes[0]

        async def says_why() -> bool:
            try:
                status, body = await strangers.request(node, "GET", "/readyz")
            except aiohttp.ClientError:
                return False
            return status == 503 and b"authentication failed" in body

        figure("wrong password named by /readyz of a node that was started", await until(says_why, 20))
        assert "secret" not in node.log.read_text()
        assert "guess" not in node.log.read_text()
    finally:
        await etcd.close()


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_after_sixty_seconds_without_etcd_it_is_usable_within_five(start_cluster, figure):
    cluster = await start_cluster(3)
    changes = await ring_changes(cluster)
    await cluster.etcd.kill()
    for _ in range(12):
        await asyncio.sleep(5)  # The promise is about sixty seconds of outage, so they must pass.
        assert await serves(cluster)
    await cluster.etcd.start()
    took_s = await until(lambda: all_connected(cluster), 5)
    figure("usable after 60 s without etcd", took_s)
    assert await ring_changes(cluster) == changes


async def test_an_etcd_that_is_killed_and_restarted_is_used_again_at_once(start_cluster, figure):
    cluster = await start_cluster(3)
    changes = await ring_changes(cluster)
    await cluster.etcd.kill()
    assert await serves(cluster)
    await cluster.etcd.start()
    figure("all connected after kill -9 and restart", await until(lambda: all_connected(cluster), 5))
    assert await ring_changes(cluster) == changes
    assert await serves(cluster)


async def test_a_wiped_data_directory_has_all_registered_again(start_cluster, figure):
    cluster = await start_cluster(3)
    changes = await ring_changes(cluster)
    await cluster.etcd.wipe()
    await cluster.etcd.start()

    async def all_keys() -> bool:
        keys = await etcdctl(cluster.etcd, "get", PREFIX, "--prefix", "--keys-only")
        return len(keys.split()) == len(cluster.nodes)

    figure("all registered after a wipe", await until(all_keys, 5))
    assert await serves(cluster)
    await until(lambda: all_connected(cluster), 12)
    assert await ring_changes(cluster) == changes
