"""Gossip between real processes: who is called dead, and who is not."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zephyr.etcd.embedded import free_port

KNOWN_MAX_S = 5.0
"""Until all others call an ended process dead: it takes a third of a second, a silent one takes longer than this."""
PAUSE_S = 3.0
BACK_MAX_S = 10.0
"""Until all call a node alive that goes on after a pause."""
STALLING_NODE = """
import signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: time.sleep(2))
from zephyr.cli import main
sys.exit(main())
"""
"""A node whose event loop stands still for two seconds at SIGUSR2."""


async def states(cluster, node) -> dict[str, str]:
    """Return what gossip believes at a node, by member."""
    return {row["id"]: row["gossip"]["state"] for row in (await cluster.json(node, "/debug/views"))["members"]}


def running(cluster) -> list:
    return [node for node in cluster.nodes if node.process]


async def until_all_say(cluster, member: str, state: str, timeout_s: float) -> float:
    """Wait until every running node but the member itself says so."""
    began_s = time.monotonic()
    while True:
        said = [(await states(cluster, node)).get(member) for node in running(cluster) if node.id != member]
        if all(found == state for found in said):
            return time.monotonic() - began_s
        assert time.monotonic() - began_s < timeout_s, f"{member} is {said}, not {state}"
        await asyncio.sleep(0.02)


def deaths(cluster) -> list[tuple[str, str]]:
    """Return who called whom dead, from the logs."""
    found = []
    for node in cluster.nodes:
        for line in node.log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("event") == "member-dead":
                found.append((node.id, entry["member"]))
    return found


async def test_all_know_of_a_killed_process_at_once_and_of_its_next_life(start_cluster, figure):
    cluster = await start_cluster(5, "--log-format", "json", etcd=False)
    victim = cluster.nodes[2]
    for node in cluster.nodes:
        await until_all_say(cluster, node.id, "alive", 10)
    victim.kill()
    figure("killed process dead for all, by gossip", await until_all_say(cluster, "n3", "dead", KNOWN_MAX_S))
    assert {member for _, member in deaths(cluster)} == {"n3"}
    cluster.start(victim)
    await cluster.wait_ready(victim)
    await until_all_say(cluster, "n3", "alive", 10)


async def test_a_node_told_to_stop_has_left_and_is_not_called_dead(start_cluster):
    cluster = await start_cluster(3, "--log-format", "json", etcd=False)
    assert await asyncio.to_thread(cluster.nodes[2].terminate) == 0
    await until_all_say(cluster, "n3", "left", 5)
    await cluster.wait_rings(["n1", "n2"], 5)
    assert deaths(cluster) == []


async def test_a_stopped_process_kills_nobody_and_is_back_when_it_goes_on(start_cluster, figure):
    cluster = await start_cluster(5, "--log-format", "json", etcd=False)
    victim = cluster.nodes[1]
    victim.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(PAUSE_S)  # The fault itself takes this long.
    victim.process.send_signal(signal.SIGCONT)
    figure("stopped process alive for all again", await until_all_say(cluster, "n2", "alive", BACK_MAX_S))
    for node in cluster.nodes:
        await until_all_say(cluster, node.id, "alive", BACK_MAX_S)
    assert [pair for pair in deaths(cluster) if pair[1] != "n2"] == []


async def test_a_node_whose_event_loop_stands_still_accuses_nobody(start_cluster):
    cluster = await start_cluster(4, "--log-format", "json", etcd=False)
    staller = cluster.nodes[0]
    staller.terminate()
    staller.program = (sys.executable, "-c", STALLING_NODE)
    cluster.start(staller)
    await cluster.wait_ready(staller)
    for node in cluster.nodes:
        await until_all_say(cluster, node.id, "alive", 10)
    for _ in range(2):
        staller.process.send_signal(signal.SIGUSR2)
        await asyncio.sleep(4)  # Two of standing still, and two in which it could accuse somebody.
    assert deaths(cluster) == []
    accusations = [
        entry
        for entry in map(json.loads, filter(lambda line: line.startswith("{"), staller.log.read_text().splitlines()))
        if entry.get("event") == "member-suspected" and entry["detail"] == f"by {staller.id}"
    ]
    assert accusations == []


async def test_keys_are_rotated_under_a_live_cluster_without_a_member_lost(start_cluster, tmp_path):
    keyring = tmp_path / "keyring"
    old, new = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    keyring.write_text(f"# the first encrypts\n{old}\n")
    cluster = await start_cluster(3, "--log-format", "json", "--gossip-keyring", str(keyring), etcd=False)
    for step, keys in enumerate(([old, new], [new, old], [new]), 1):
        keyring.write_text("\n".join(keys))
        for node in cluster.nodes:
            node.process.send_signal(signal.SIGHUP)
            deadline_s = time.monotonic() + 5
            while node.log.read_text().count('"keys": ') < step:
                assert time.monotonic() < deadline_s, "it did not read its keys"
                await asyncio.sleep(0.02)
        await asyncio.sleep(1.5)  # Each is probed with what holds now.
    keyring.write_text("nonsense")
    cluster.nodes[0].process.send_signal(signal.SIGHUP)
    await asyncio.sleep(1.5)
    assert "line 1" in cluster.nodes[0].log.read_text()
    for node in cluster.nodes:
        assert set((await states(cluster, node)).values()) == {"alive"}
        metrics = (await cluster.request(node, "GET", "/metrics"))[1].decode()
        assert "zephyr_gossip_dropped_packets_total{" not in metrics
    assert deaths(cluster) == []


async def test_of_two_processes_with_one_id_the_one_that_began_first_says_so_and_stops(start_cluster, tmp_path):
    cluster = await start_cluster(3, "--log-format", "json", etcd=False)
    first = cluster.nodes[0]
    assert first.process is not None
    http, peer, gossip = (f"127.0.0.1:{free_port()}" for _ in range(3))
    namesake = replace(first, http=http, peer=peer, gossip=gossip, log=tmp_path / "namesake.log", process=None)
    cluster.nodes.append(namesake)
    cluster.start(namesake)
    assert await asyncio.to_thread(first.process.wait, 20) == 1
    first.process = None
    assert f"another live process has the id {first.id}, at {gossip}" in first.log.read_text()
    await cluster.wait_rings(["n1", "n2", "n3"], 10)
    assert deaths(cluster) == []


@pytest.mark.parametrize(
    ("arguments", "keyring", "says"),
    [
        (["--gossip-profile", "wan"], None, "--gossip-profile: 'wan' is none of lan, local"),
        (["--gossip", "no-such-host.invalid:7946"], None, "--gossip: cannot listen at no-such-host.invalid:7946: "),
        (["--peer", "no-such-host.invalid:7846"], None, "--peer: cannot listen at no-such-host.invalid:7846: "),
        (["--gossip", "203.0.113.7:7946"], None, "--gossip: cannot listen at 203.0.113.7:7946: "),
        (["--advertise", "a b"], None, "--advertise: 'a b' is not an IP address or a host name, without a port"),
        (["--advertise", "h" * 200], None, "--id, --zone and --advertise: together too long, "),
        ([], base64.b64encode(bytes(16)), "line 1: a key of 16 bytes, 32 expected"),
        ([], b"no key", "line 1: not base64"),
        ([], b"", "no key in it"),
        ([], b"\xff\xfe", "it is not plain text"),
        (["--gossip-keyring", "/nowhere/keys"], None, "cannot read /nowhere/keys: No such file or directory"),
        (["--gossip-keyring", "/"], None, "cannot read /: Is a directory"),
    ],
)
def test_a_node_with_an_unusable_setting_says_so_in_one_line_and_exits_with_64(tmp_path, arguments, keyring, says):
    command = [sys.executable, "-m", "zephyr", "node", "--id", "n1", "--etcd", "none"]
    for port in ("--http", "--peer", "--gossip"):
        command += [port, "127.0.0.1:0"]
    if keyring is not None:
        (tmp_path / "keyring").write_bytes(keyring)
        command += ["--gossip-keyring", str(tmp_path / "keyring")]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr.startswith("zephyr: --")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1


@contextlib.contextmanager
def network_namespace() -> Iterator[list[str]]:
    """Make a network of its own, with nothing but loopback; yields what to put before a command."""
    name = f"zephyr-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    inside = ["ip", "netns", "exec", name]
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.chaos
def test_a_peer_port_that_refuses_while_udp_answers_kills_nobody(tmp_path: Path):
    with network_namespace() as inside, contextlib.ExitStack() as stack:
        logs = []
        for number in (1, 2, 3):
            log = tmp_path / f"n{number}.log"
            logs.append(log)
            command = [*inside, sys.executable, "-m", "zephyr", "node", "--id", f"n{number}", "--etcd", "none"]
            command += ["--http", f"127.0.0.1:808{number}", "--peer", f"127.0.0.1:784{number}"]
            command += ["--gossip", f"127.0.0.1:794{number}", "--join", "127.0.0.1:7941,127.0.0.1:7942,127.0.0.1:7943"]
            with log.open("wb") as file:
                process = subprocess.Popen([*command, "--log-format", "json"], stdout=file, stderr=file)
            stack.callback(process.wait)
            stack.callback(process.kill)
        deadline_s = time.monotonic() + 20
        while not all(log.read_text().count('"peer-connected"') >= 2 for log in logs):
            assert time.monotonic() < deadline_s, [log.read_text() for log in logs]
            time.sleep(0.1)
        for side in ("--dport", "--sport"):
            rule = ["-p", "tcp", side, "7843", "-j", "REJECT", "--reject-with", "tcp-reset"]
            subprocess.run([*inside, "iptables", "-A", "INPUT", *rule], check=True)
        while not all('"peer-disconnected"' in log.read_text() for log in logs[:2]):
            assert time.monotonic() < deadline_s + 10, [log.read_text() for log in logs]
            time.sleep(0.1)
        time.sleep(8)  # More than a suspicion takes.
        for log in logs:
            assert '"member-dead"' not in log.read_text(), log.read_text()
