"""The demonstration, as `make demo` runs it in a pipe: its tour passes, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zephyr.demo import GOSSIP_PORT_OFFSET, PEER_PORT_OFFSET
from zephyr.etcd.embedded import claim_ports

NODES = 3
DEMO_MAX_S = 90


def is_free(port: int) -> bool:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def base_port():
    """Return a base port of which all ports of a demo are free, and claimed against demos of other tests."""
    for base in range(20_080, 32_000, 500):  # Below the ports that systems hand out by themselves.
        claim = claim_ports(base)
        if claim is None:
            continue
        with claim:
            ports = [base + offset + i for offset in (0, PEER_PORT_OFFSET, GOSSIP_PORT_OFFSET) for i in range(NODES)]
            if all(is_free(port) for port in ports):
                yield base
                return
    raise AssertionError("no free ports")


@pytest.fixture
def start_demo(tmp_path, base_port):
    """Return a function that starts a demo; its temporary files go where the test can see them."""
    started = []

    def start(*arguments, **settings):
        # Clusters of other tests run on this machine, and ports are used again.
        name = f"demo-{os.getpid()}-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "zephyr", "demo", "-n", str(NODES), "--cluster", name, *arguments]
        environment = {**os.environ, "TMPDIR": str(tmp_path), **settings}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def processes_with(text: str) -> list[str]:
    """Return the command lines of all processes that have this in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # It ended.
            continue
        if text in line:
            found.append(line)
    return found


def assert_nothing_is_left(tmp_path, base_port):
    assert processes_with(str(tmp_path)) == [], "etcd has its data there"
    assert processes_with(f"127.0.0.1:{base_port} ") == []
    assert all(is_free(base_port + number) for number in range(NODES))


@pytest.mark.timeout(120)
def test_the_tour_loses_nothing_and_leaves_nothing_behind(start_demo, tmp_path, base_port):
    # What this shell has set for another cluster is nothing to the demo's nodes.
    process = start_demo("--base-port", str(base_port), "-o", "json", ZEPHYR_CLUSTER="another", ZEPHYR_REPLICAS="7")
    out, err = process.communicate(timeout=DEMO_MAX_S)
    assert process.returncode == 0, err
    report = json.loads(out)
    measures = report["measures"]
    assert report["failures"] == []
    assert [node["id"] for node in report["nodes"]] == ["n1", "n2", "n3"]
    assert measures["reads_before_the_kill"] == NODES * measures["keys"] == NODES * 1000
    assert measures["keys_lost_before_the_kill"] == measures["keys_lost_after_the_kill"] == 0
    assert measures["requests_meanwhile"] > 0
    assert measures["requests_failed_meanwhile"] == 0
    assert 0 < measures["out_of_every_ring_s"] <= 12
    assert measures["back_in_every_ring_s"] > 0
    assert list(tmp_path.iterdir()) == []
    assert_nothing_is_left(tmp_path, base_port)


def test_a_cluster_without_etcd_plays_the_tour_too(start_demo, tmp_path, base_port):
    out, err = start_demo("--base-port", str(base_port), "--no-etcd").communicate(timeout=DEMO_MAX_S)
    measures = dict(line.split("\t") for line in out.splitlines() if line.count("\t") == 1)
    assert measures["etcd"] == "none", err
    assert measures["keys_lost_after_the_kill"] == "0"
    assert float(measures["out_of_every_ring_s"]) < 15
    assert list(tmp_path.iterdir()) == []
    assert_nothing_is_left(tmp_path, base_port)


def test_a_demo_told_to_stop_stops_everything(start_demo, tmp_path, base_port):
    process = start_demo("--base-port", str(base_port), "--no-etcd")
    assert process.stdout.readline() == "id\turl\tpid\n"  # It is up.
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEMO_MAX_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert_nothing_is_left(tmp_path, base_port)


def test_a_demo_that_is_killed_takes_its_nodes_along(start_demo, tmp_path, base_port):
    process = start_demo("--base-port", str(base_port))
    assert process.stdout.readline() == "id\turl\tpid\n"
    assert processes_with(str(tmp_path))
    process.kill()
    process.wait()
    deadline_s = time.monotonic() + 10
    while processes_with(str(tmp_path)) or processes_with(f"127.0.0.1:{base_port} "):
        assert time.monotonic() < deadline_s, "processes are left"
        time.sleep(0.05)


def test_a_taken_port_is_one_line_and_nothing_is_started(start_demo, tmp_path, base_port):
    with socket.create_server(("127.0.0.1", base_port + 1)):
        process = start_demo("--base-port", str(base_port))
        out, err = process.communicate(timeout=DEMO_MAX_S)
    assert (process.returncode, out) == (1, "")
    assert err == f"zephyr: taken: 127.0.0.1:{base_port + 1}; choose another --base-port\n"
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_cannot_start_is_named_with_its_reason_and_its_log_is_kept(start_demo, tmp_path, base_port):
    # A package of the same name, found first, that ends at once.
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "structlog.py").write_text("raise SystemExit('broken on purpose')\n")
    process = start_demo("--base-port", str(base_port), "--no-etcd", PYTHONPATH=str(fake))
    out, err = process.communicate(timeout=DEMO_MAX_S)
    assert (process.returncode, out) == (1, "")
    last = err.splitlines()[-1]  # Any of the nodes may be the first to end.
    assert "ended by itself with 1, saying at last: broken on purpose" in last
    kept = next(line.removeprefix("Logs: ") for line in err.splitlines() if line.startswith("Logs: "))
    assert "broken on purpose" in (Path(kept) / f"{last.split()[1]}.log").read_text()
