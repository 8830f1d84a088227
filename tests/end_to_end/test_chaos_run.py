"""`zephyr chaos run` on real processes: what it measures, and that nothing of it is left, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos.drivers import Fault, processes
from chaos.drivers.namespaces import can_make_networks
from chaos.drivers.processes import ProcessDriver

NODES = 3
EVICT_AFTER_S = 5.0
SLOW_S = 15.0
"""What is added to bounds of seconds: tests run side by side on a busy machine."""
STAGE_MAX_S = 90.0
"""Until the run is where a test wants to interrupt it."""


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a run; its temporary files and its progress go where the test can see them."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "zephyr", "chaos", "run", *arguments, "-n", str(NODES)]
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        # What this shell has set for another cluster is nothing to its nodes.
        environment = {**os.environ, "TMPDIR": str(temporary), "ZEPHYR_CLUSTER": "another", "ZEPHYR_REPLICAS": "7"}
        with (tmp_path / "progress").open("w") as progress:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=progress, text=True, env=environment, start_new_session=True
            )
        started.append(process)
        return process

    yield start
    print((tmp_path / "progress").read_text())  # noqa: T201  # shown when the test fails
    for process in started:
        with process:
            process.kill()


def left_of(process: subprocess.Popen[str], tmp_path: Path) -> list[str]:
    """Return what is still there of a run: processes, namespaces, links and files."""
    found = [str(path) for path in (tmp_path / "temporary").iterdir()]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # It ended.
            continue
        if f"--cluster chaos-{process.pid} " in line or str(tmp_path) in line:
            found.append(line)
    if can_make_networks():
        for what in (["ip", "netns"], ["ip", "-oneline", "link"]):
            lines = subprocess.run(what, check=True, capture_output=True, text=True).stdout.splitlines()
            found += [line for line in lines if f"zephyr-{process.pid}-" in line or f"zephyr{process.pid}@" in line]
    return found


def wait_for(text: str, process: subprocess.Popen[str], tmp_path: Path) -> None:
    """Wait until the progress says so."""
    give_up_s = time.monotonic() + STAGE_MAX_S
    while text not in (tmp_path / "progress").read_text():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < give_up_s, f"never: {text}"
        time.sleep(0.02)


@pytest.mark.timeout(180)
def test_a_killed_process_is_measured_and_nothing_is_left(start_run, tmp_path, figure):
    process = start_run("kill-one", "--repeat", "1", "-o", "json")
    out, _ = process.communicate()
    assert process.returncode == 0
    document = json.loads(out)
    assert (document["driver"], document["nodes"], document["converged"]) == ("process", NODES, True)
    (repetition,) = document["repetitions"]
    assert repetition["victim"] in {"n1", "n2", "n3"}
    assert 0 < repetition["first_knows_s"] <= repetition["all_know_s"] < SLOW_S
    assert 0 < repetition["unroutable_s"] < SLOW_S
    assert EVICT_AFTER_S < repetition["out_s"] <= repetition["equal_s"] < EVICT_AFTER_S + SLOW_S
    assert repetition["back_s"] > 0
    assert repetition["requests"] > 10 * repetition["equal_s"] / 2
    assert repetition["failed"] == 0, repetition["failures"]
    figure("zephyr chaos run kill-one: all know", repetition["all_know_s"])
    figure("zephyr chaos run kill-one: back and level, from the start of its process", repetition["back_s"])
    assert left_of(process, tmp_path) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("scenario", "stage"),
    [
        ("kill-one", "gossip dead"),
        ("pause-one", "no answer"),  # The stopped process cannot be told to end; it can be killed.
        ("disconnect-one", "gossip suspect"),
    ],
)
def test_ctrl_c_leaves_no_process_namespace_or_rule_behind(start_run, tmp_path, scenario, stage, skip_without_networks):
    if scenario == "disconnect-one":
        skip_without_networks()
    process = start_run(scenario)
    wait_for(stage, process, tmp_path)
    assert len(left_of(process, tmp_path)) > NODES  # There is something that could be left.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # Whoever is impatient.
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert left_of(process, tmp_path) == []


@pytest.mark.timeout(120)
def test_ctrl_c_while_the_cluster_starts_leaves_nothing_behind(start_run, tmp_path):
    process = start_run("kill-one")
    give_up_s = time.monotonic() + STAGE_MAX_S
    while not left_of(process, tmp_path):  # Its first file, or process.
        assert time.monotonic() < give_up_s
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert left_of(process, tmp_path) == []


@pytest.mark.timeout(180)
def test_logs_are_kept_of_what_did_not_converge(start_run, tmp_path):
    process = start_run("kill-one", "--limit", "2s")
    out, _ = process.communicate()
    assert process.returncode == 1
    assert out.splitlines()[1].split("\t")[5] == "never"
    (line,) = [
        text for text in (tmp_path / "progress").read_text().splitlines() if text.startswith("the nodes' logs: ")
    ]
    kept = Path(line.partition(": ")[2])
    assert sorted(path.name for path in kept.iterdir()) == ["n1.log", "n2.log", "n3.log"]
    assert left_of(process, tmp_path) == [str(kept)]


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_processes_have_every_fault_of_the_network_and_heal(skip_without_networks):
    skip_without_networks()
    driver = ProcessDriver(NODES, frozenset(Fault))
    try:
        await driver.open()

        async def until(node_id: str, authority: str, owners: list[str]) -> None:
            async def is_so() -> bool:
                page = await driver.page(node_id)
                return page is not None and (page["authority"], page["ring"]["owners"]) == (authority, owners)

            await processes.until(is_so, 40, f"{node_id} has {authority} and {owners}")

        everybody = ["n1", "n2", "n3"]
        await driver.block_udp(["n1"])
        await until("n1", "etcd", everybody)
        await driver.heal()
        await until("n1", "both", everybody)
        await driver.cut_from_etcd(["n2"])
        await until("n2", "relayed", everybody)
        await driver.heal()
        await until("n2", "both", everybody)
        await driver.cut_one_way(["n3"], ["n1", "n2"])  # Nobody hears it any more, and it does not know.
        await until("n1", "both", ["n1", "n2"])
        await driver.heal()
        await until("n1", "both", everybody)
        assert await driver.add() == "n4"
        for node_id in [*everybody, "n4"]:
            await until(node_id, "both", [*everybody, "n4"])
    finally:
        assert await driver.close(is_failed=False) == ""
