"""`zephyr chaos run` and `list`: what they print, and what they exit with."""

from __future__ import annotations

import itertools
import json
import os
import pty
import subprocess
import sys

import pytest

from chaos.drivers.containers import find_compose
from chaos.repeat import Report
from zephyr.cli import main


@pytest.fixture
def run_command(capfd):
    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = main(["chaos", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run_command


SIMULATED = ("--driver", "simulator", "-n", "3", "--seed", "1")


def test_a_table_has_a_row_a_repetition_and_the_percentiles(run_command):
    code, out, err = run_command("run", "kill-one", *SIMULATED, "--repeat", "2")
    assert code == 0
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head == [
        "run", "victim", "first to know (s)", "all know (s)", "unroutable (s)", "out of the ring (s)",
        "digests equal (s)", "back and level (s)", "failed", "requests",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["1", "2", "p50", "p99"]
    for row in rows:
        assert len(row) == len(head)
        assert all(0 < float(value) < 60 for value in row[2:8])
    assert all(row[8] == "0" and int(row[9]) > 50 for row in rows[:2])
    assert err.splitlines()[0] == "kill-one: 3 simulated nodes, seed 1"


def test_progress_has_a_line_for_each_node_whenever_it_shows_something_else(run_command):
    _, out, err = run_command("run", "kill-one", *SIMULATED)
    victim = out.splitlines()[1].split("\t")[1]
    survivors = {"n1", "n2", "n3"} - {victim}
    for node in survivors:
        lines = [line for line in err.splitlines() if f" {node}: " in line and line.startswith(f"1/1 {victim}, ")]
        shown = [line.partition(f" {node}: ")[2] for line in lines]
        assert [text.split(",")[0] for text in shown[:3]] == ["gossip alive", "gossip suspect", "gossip dead"]
        assert "etcd absent" in " ".join(shown)
        assert shown[-1].startswith("gossip alive, etcd registered, ring ")
        assert all(one != two for one, two in itertools.pairwise(shown))
    assert f" {victim}: no answer" in err


def test_json_is_the_document_and_etcd_has_nothing_to_be_unroutable(run_command):
    code, out, _ = run_command("run", "kill-etcd", *SIMULATED, "-o", "json")
    document = json.loads(out)
    assert code == 0
    assert {name: document[name] for name in ("scenario", "driver", "nodes", "seed", "converged")} == {
        "scenario": "kill-etcd", "driver": "simulator", "nodes": 3, "seed": 1, "converged": True,
    }  # fmt: skip
    (repetition,) = document["repetitions"]
    assert repetition["victim"] == "etcd"
    assert repetition["unroutable_s"] is repetition["out_s"] is None
    assert document["p50"]["back_s"] == document["p99"]["back_s"] == repetition["back_s"] > 0


def test_views_that_do_not_agree_in_time_are_exit_code_1(run_command):
    code, out, err = run_command("run", "kill-one", *SIMULATED, "--limit", "2s")
    assert code == 1
    assert out.splitlines()[1].split("\t")[5] == "never"
    assert "repetition 1: not within 2 s: gone for all others" in err
    assert "the same again: --seed 1" in err


def test_failed_requests_are_shown(run_command, monkeypatch):
    from chaos.drivers.simulated import SimulatedDriver  # noqa: PLC0415

    async def refuse(self, node_id: str, key: str) -> str:
        return "refused"

    monkeypatch.setattr(SimulatedDriver, "read", refuse)
    code, out, err = run_command("run", "wipe-etcd", *SIMULATED)
    assert code == 0  # The views agreed again, which is what it is about.
    assert int(out.splitlines()[1].split("\t")[8]) > 0
    assert "failed: GET through n" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run"], "Missing argument 'SCENARIO'"),
        (["run", "kill-none"], "there is no 'kill-none'; there are kill-one, pause-one"),
        (["run", "kill-one", "--driver", "cloud"], "'cloud' is not one of"),
        (["run", "kill-one", "-n", "2"], "2 is not in the range 3<=x<=30"),
        (["run", "kill-one", "--repeat", "0"], "0 is not in the range"),
        (["run", "kill-one", "--limit", "soon"], "'soon' is not a duration"),
        (["run", "kill-one", "--hold", "0s"], "0s is not above 0"),
        (["run", "kill-one", "--project", "mine"], "--project and --fresh are of the driver docker, not of process"),
        (["run", "kill-one", "--driver", "docker", "--project", "mine", "--fresh"], "--fresh asks for another one"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_64(run_command, arguments, complaint):
    code, out, err = run_command(*arguments)
    assert (code, out) == (64, "")
    (line,) = err.splitlines()
    assert line.startswith("zephyr: ")
    assert complaint in line


def test_a_fault_that_cannot_be_had_here_is_exit_code_64(run_command, monkeypatch):
    monkeypatch.setattr("chaos.drivers.processes.can_make_networks", lambda: False)
    code, out, err = run_command("run", "disconnect-one", "-n", "3")
    assert (code, out) == (64, "")
    assert "the driver process cannot disconnect here" in err


def test_no_cluster_to_do_it_to_is_exit_code_2(run_command, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")  # Nobody listens there, whether Docker is installed or not.
    code, out, err = run_command("run", "kill-one", "--driver", "docker")
    assert (code, out) == (2, "")
    assert err.startswith("zephyr: docker")
    assert len(err.splitlines()) == 1


def test_a_machine_without_the_package_says_so(run_command, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("chaos")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "chaos", None)
    code, _, err = run_command("list")
    assert code == 1
    assert err == "zephyr: the package chaos is not installed here: run this from a checkout\n"


def test_the_list_tells_which_drivers_can_do_what(run_command):
    code, out, _ = run_command("list")
    rows = dict(line.split("\t")[::2] for line in out.splitlines()[1:])
    assert code == 0
    assert rows == {
        "kill-one": "process, docker, simulator",
        "pause-one": "process, docker, simulator",
        "disconnect-one": "process (root), docker, simulator",
        "kill-etcd": "process, docker, simulator",
        "wipe-etcd": "process, docker, simulator",
    }
    code, out, _ = run_command("list", "-o", "json")
    document = json.loads(out)
    assert [item["scenario"] for item in document["scenarios"]] == list(rows)
    assert document["scenarios"][2]["drivers_as_root"] == ["process"]


@pytest.mark.timeout(120)
def test_a_terminal_has_a_line_a_node_that_changes_in_its_place():
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        command = [sys.executable, "-m", "zephyr", "chaos", "run", "kill-one", *SIMULATED]
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = screen.read(4096)
            except OSError:  # Linux: the other end is closed.
                break
            if not part:
                break
            seen += part
        out, _ = process.communicate()
    assert process.returncode == 0
    assert len(out.splitlines()) == 4
    text = seen.decode()
    assert "since the fault" in text
    assert "dead" in text
    assert "\x1b[1A" in text  # Up again: the next picture takes the place of this one.


def test_an_empty_report_has_not_converged():
    assert not Report("kill-one", "simulator").has_converged


def test_a_compose_command_can_be_chosen(monkeypatch):
    monkeypatch.setenv("COMPOSE", "docker compose --ansi never")
    assert find_compose() == ["docker", "compose", "--ansi", "never"]
