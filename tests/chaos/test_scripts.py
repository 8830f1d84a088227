"""The scripts that break a Compose cluster by hand: how they are called, and that they can read what nodes show.

What they do to real containers is in tests/containers.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from chaos.drivers.simulated import SimulatedDriver

CHAOS = Path(__file__).parents[2] / "chaos"
NODE_SCRIPTS = ("kill_node.sh", "pause_node.sh", "disconnect_node.sh")
ETCD_SCRIPTS = ("kill_etcd.sh", "wipe_etcd.sh")
NO_ENGINE = {"DOCKER_HOST": "tcp://127.0.0.1:1"}
"""Nobody listens there, whether Docker is installed or not."""


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **NO_ENGINE}
    return subprocess.run([CHAOS / name, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", NODE_SCRIPTS + ETCD_SCRIPTS)
@pytest.mark.parametrize(
    "arguments", [("--what",), ("--limit",), ("--limit", "soon"), ("--limit", "0"), ("",), ("one", "two")]
)
def test_wrong_usage_is_one_line_and_exit_code_64(name, arguments):
    done = run_script(name, *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ETCD_SCRIPTS)
def test_etcd_has_no_nodes_to_choose_from(name):
    assert run_script(name, "one").returncode == 64


@pytest.mark.parametrize("name", NODE_SCRIPTS + ETCD_SCRIPTS)
def test_help_is_the_head_of_the_script(name):
    done = run_script(name, "--help")
    assert done.returncode == 0
    assert f"chaos/{name} [--keep] [--limit SECONDS]" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("name", NODE_SCRIPTS + ETCD_SCRIPTS)
def test_no_cluster_to_do_it_to_is_exit_code_2(name):
    done = run_script(name, "--limit", "5")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


async def pages_after_a_kill(driver: SimulatedDriver) -> dict[str, str]:
    """Return what two of three nodes show a second after the third was killed: as they would send it."""
    await driver.open()
    await driver.kill("n3")
    await asyncio.sleep(1)
    return {node_id: json.dumps(await driver.page(node_id)) for node_id in ("n1", "n2")}


def test_bash_reads_of_a_page_what_python_reads(tmp_path):
    driver = SimulatedDriver(3, 1)
    with asyncio.Runner(loop_factory=driver.new_loop) as runner:
        pages = runner.run(pages_after_a_kill(driver))
    for node_id, page in pages.items():
        (tmp_path / node_id).write_text(page)
    program = f"""
        set -euo pipefail
        . "{CHAOS}/watch.sh"
        curl() {{ local url="${{*: -1}}"; cp "{tmp_path}/${{url%/debug/views}}" "$pages/${{url%/debug/views}}"; }}
        nodes=(n1 n2 n3) victim="$1"
        declare -A url=([n1]=n1 [n2]=n2)
        look n1 n2
        for id in n1 n2; do
            echo "${{gossip[$id]:-}} ${{etcd[$id]}} ${{routable[$id]:-}} ${{in_ring[$id]:-}} ${{authority[$id]}}" \\
                "${{ring[$id]}} ${{epoch[$id]}} $(wc -w <<<"${{owners[$id]}}")"
        done
    """

    def read(victim: str) -> list[list[str]]:
        done = subprocess.run(["bash", "-c", program, "-", victim], capture_output=True, text=True, check=True)
        return [line.split(" ") for line in done.stdout.splitlines()]

    for line, page in zip(read("n3"), map(json.loads, pages.values()), strict=True):
        (row,) = [row for row in page["members"] if row["id"] == "n3"]
        assert (row["gossip"]["state"], row["etcd"]["state"], row["routable"]) == ("dead", "registered", False)
        generation = page["ring"]["epoch"].partition("-")[0]
        assert line == ["dead", "registered", "false", "true", "both", page["ring"]["digest"], generation, "3"]
    for line in read("n4"):
        assert line[:4] == ["forgotten", "absent", "false", "false"]
    for line in read(""):  # Etcd is the victim: what counts is whether the node has it.
        assert line[:4] == ["", "connected", "", ""]
