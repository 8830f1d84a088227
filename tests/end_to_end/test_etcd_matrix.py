"""What etcd can do to a cluster, one thing at a time: real nodes, real etcd."""

import asyncio
import contextlib
import json
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest
import trustme

from zephyr.etcd.embedded import EmbeddedEtcd, find_etcd

PREFIX = "/zephyrcache/members/"
LEASE_TTL_S = 3
"""Short, so that leases can end within a test."""
TTL = ("--lease-ttl", f"{LEASE_TTL_S}s")


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


def figure(what: str, took_s: float) -> None:
    """Print a measured time: shown by `pytest -s`, and by `make chaos`."""
    print(f"etcd matrix: {what}: {took_s:.2f} s")  # noqa: T201  # figures are for the reader of the run


async def serves(cluster) -> bool:
    """Whether every node writes and reads."""
    for node in cluster.nodes:
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


async def has_event(cluster, number: int, kind: str) -> bool:
    timeline = await cluster.json(cluster.nodes[number], "/debug/timeline")
    return any(event["kind"] == kind for event in timeline["events"])


async def test_a_stopped_etcd_changes_no_ring_and_is_used_again_when_it_goes_on(start_cluster):
    cluster = await start_cluster(3, *TTL)

    async def unreachable() -> bool:
        return (await view_of(cluster))["etcd"]["state"] == "unreachable"

    await cluster.etcd.pause()
    try:
        await until(unreachable, 10)
        assert (await view_of(cluster))["ring"]["owners"] == ["n1", "n2", "n3"]
        assert await serves(cluster)
    finally:
        cluster.etcd.resume()
    figure("all connected after SIGCONT", await until(lambda: all_connected(cluster), 5))


async def test_a_compaction_during_the_watch_loses_no_change(start_cluster):
    cluster = await start_cluster(3, *TTL)
    await etcdctl(cluster.etcd, "compaction", str(await revision_of(cluster.etcd)), "--physical")
    cluster.nodes[2].kill()
    took_s = await cluster.wait_rings(["n1", "n2"], LEASE_TTL_S + 3)
    figure(f"killed node out of every ring after a compaction, TTL {LEASE_TTL_S} s", took_s)
    cluster.start(cluster.nodes[2])
    await cluster.wait_rings(["n1", "n2", "n3"], 10)


async def test_a_lease_revoked_by_hand_is_replaced_and_the_node_is_back(start_cluster):
    cluster = await start_cluster(3, *TTL)
    answer = json.loads(await etcdctl(cluster.etcd, "get", PREFIX + "n2", "-w", "json"))
    epoch = (await cluster.json(cluster.nodes[1], "/info"))["epoch"]
    await etcdctl(cluster.etcd, "lease", "revoke", f"{answer['kvs'][0]['lease']:x}")

    async def is_back() -> bool:
        new_epoch = (await cluster.json(cluster.nodes[1], "/info"))["epoch"]
        return new_epoch > epoch and await all_connected(cluster)

    figure(
        f"registered again after its lease was revoked by hand, TTL {LEASE_TTL_S} s",
        await until(is_back, LEASE_TTL_S + 3),
    )
    await cluster.wait_rings(["n1", "n2", "n3"], 5)
    assert await serves(cluster)


async def test_a_registration_deleted_by_hand_is_there_again_at_once(start_cluster):
    cluster = await start_cluster(3)
    await etcdctl(cluster.etcd, "del", PREFIX + "n2")

    async def is_back() -> bool:
        return bool(await etcdctl(cluster.etcd, "get", PREFIX + "n2", "--keys-only"))

    figure("registered again after its key was deleted by hand", await until(is_back, 5))
    await cluster.wait_rings(["n1", "n2", "n3"], 5)


async def test_garbage_under_the_prefix_is_shown_and_stops_nobody(start_cluster):
    cluster = await start_cluster(2)
    for key, value in (
        (PREFIX + "n9", "nonsense"),
        (PREFIX + "n8", '{"id": "n7"}'),
        (PREFIX + "a b", "{}"),
        (PREFIX + "n6", "x" * 100_000),
        ("/zephyrcache/evictions/", "?"),
        ("/zephyrcache/other/members/n1", "{}"),
    ):
        await etcdctl(cluster.etcd, "put", key, value)
    await until(lambda: has_event(cluster, 0, "unusable-key"), 5)
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
    await etcdctl(cluster.etcd, "get", "/zephyrcache/settings")
    node.kill()
    node.start(*cluster.arguments, "--replicas", "2")
    code = await asyncio.to_thread(node.process.wait, 20)
    node.process = None
    assert code == 1
    assert "replicas is 3 there and 2 here" in node.log.read_text()


async def test_three_etcd_members_losing_their_leader_and_then_their_quorum(start_cluster):
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
        await members[leader].kill()
        assert await serves(cluster)
        figure("all connected after the leader of three was killed", await until(lambda: all_connected(cluster), 10))

        follower = (leader + 1) % 3
        await members[follower].kill()

        async def unreachable() -> bool:
            return (await view_of(cluster))["etcd"]["state"] == "unreachable"

        await until(unreachable, 10)
        assert await serves(cluster)
        assert (await view_of(cluster))["ring"]["owners"] == ["n1", "n2", "n3"]
        await members[follower].start()
        figure("all connected after the quorum was back", await until(lambda: all_connected(cluster), 10))
        assert await serves(cluster)


@pytest.fixture
def certificates(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    return tmp_path


async def test_tls_and_a_password_right_and_wrong(start_cluster, certificates):
    tls = ("--cert-file", str(certificates / "server.pem"), "--key-file", str(certificates / "server.key"))
    etcd = EmbeddedEtcd(scheme="https", arguments=tls)
    await etcd.start()
    try:
        ca = ("--etcd-ca", str(certificates / "ca.pem"))
        for words in ("user add root:secret", "user grant-role root root", "auth enable"):
            await etcdctl(etcd, "--cacert", str(certificates / "ca.pem"), *words.split())
        cluster = await start_cluster(2, *ca, "--etcd-user", "root", "--etcd-password", "secret", etcd=etcd)
        assert await serves(cluster)

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

        await until(says_why, 20)
        assert "secret" not in node.log.read_text()
        assert "guess" not in node.log.read_text()
    finally:
        await etcd.close()


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_after_sixty_seconds_without_etcd_it_is_usable_within_five(start_cluster):
    cluster = await start_cluster(3)
    await cluster.etcd.kill()
    for _ in range(12):
        await asyncio.sleep(5)  # The promise is about sixty seconds of outage, so they must pass.
        assert await serves(cluster)
    assert (await view_of(cluster))["ring"]["owners"] == ["n1", "n2", "n3"]
    await cluster.etcd.start()
    took_s = await until(lambda: all_connected(cluster), 5)
    figure("usable after 60 s without etcd", took_s)


async def test_an_etcd_that_is_killed_and_restarted_is_used_again_at_once(start_cluster):
    cluster = await start_cluster(3)
    await cluster.etcd.kill()
    assert await serves(cluster)
    await cluster.etcd.start()
    figure("all connected after kill -9 and restart", await until(lambda: all_connected(cluster), 5))
    assert await serves(cluster)


async def test_a_wiped_data_directory_has_all_registered_again(start_cluster):
    cluster = await start_cluster(3)
    await cluster.etcd.wipe()
    await cluster.etcd.start()

    async def all_keys() -> bool:
        keys = await etcdctl(cluster.etcd, "get", PREFIX, "--prefix", "--keys-only")
        return len(keys.split()) == len(cluster.nodes)

    figure("all registered after a wipe", await until(all_keys, 5))
    assert await serves(cluster)
    await cluster.wait_rings(["n1", "n2", "n3"], 12)
