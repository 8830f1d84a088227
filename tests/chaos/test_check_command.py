"""`zephyr chaos check`: what it prints, and what it exits with."""

import json

import pytest

from chaos.history import Fault, History, Operation, Run, Sample, write_history
from zephyr.cli import main

UNIX_MS = 1_700_000_000_000
RUN = Run("story", ("n1",), 3, UNIX_MS, 200, 2.0, 10.0)


def version(number: int) -> bytes:
    return ((UNIX_MS + number * 1000) << 16).to_bytes(8, "big") + b"n1-n1-n1"


def operation(kind: str, number: int, at_s: float) -> Operation:
    return Operation("c1", kind, "k", f"v{number}", version(number), at_s, at_s + 0.1, "ok", "n1")


@pytest.fixture
def history() -> History:
    """Two hundred operations of one process, one after the other."""
    history = History(RUN)
    for number in range(100):
        history.add(operation("put", number, number + 0.1))
        history.add(operation("get", number, number + 0.5))
    return history


@pytest.fixture
def checked(tmp_path, capfd):
    def checked(history: History, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "history.jsonl"
        write_history(path, history)
        code = main(["chaos", "check", str(path), *options])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return checked


def test_a_history_that_keeps_the_claims_is_a_table_and_exit_code_0(checked, history):
    code, out, err = checked(history)
    assert (code, err) == (0, "")
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head == ["check", "verdict", "judged", "unknown", "violations", "note"]
    assert ["stale-reads", "green", "100", "0", "0", ""] in rows
    assert ["hints-balance", "unknown", "0", "0", "0", "no node tells of its hints"] in rows


def test_a_broken_claim_is_exit_code_1_and_a_line_with_where_it_is(checked, history):
    history.add(operation("get", 3, 200))
    code, out, err = checked(history)
    assert code == 1
    assert "stale-reads\tred\t101\t0\t1\t" in out
    assert "stale-reads: a read found less than was acknowledged before it (lines 202, 200)" in err.splitlines()


def test_json_has_the_operations_that_broke_it(checked, history):
    history.add(operation("get", 3, 200))
    history.add(Fault("pause", ("n1",), 1, 2))
    history.add(Sample("n1", 3, "a", ("n1", "n2", "n3")))
    history.add(Sample("n1", 3.5, "a", ("n1", "n2", "n3")))
    code, out, _ = checked(history, "-o", "json")
    document = json.loads(out)
    assert code == 1
    assert (document["operations"], document["served"]) == (201, 201)
    [stale] = [row for row in document["verdicts"] if row["check"] == "monotonic-reads"]
    assert (stale["verdict"], stale["violations"]) == ("red", 1)
    read, earlier = stale["examples"][0]["operations"]
    assert (read["line"], read["version"], read["value"]) == (202, version(3).hex(), "v3")
    assert earlier["value"] == "v99"
    [rings] = [row for row in document["verdicts"] if row["check"] == "rings-converge"]
    assert rings["figures"] == {"converged_s": 1.0}


def test_a_run_that_served_too_little_is_exit_code_1(checked, history):
    history.operations = history.operations[:20]
    code, out, err = checked(history)
    assert code == 1
    assert "\tgreen\t" not in out
    assert err == "zephyr: 20 of 20 operations were served: the run shows nothing\n"


@pytest.mark.parametrize("content", ["", "{}\n", "not json\n"])
def test_a_file_that_is_no_history_is_one_line_and_exit_code_1(tmp_path, capfd, content):
    path = tmp_path / "h"
    path.write_text(content)
    assert main(["chaos", "check", str(path)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"zephyr: {path}")


def test_a_file_that_is_not_there_is_one_line_and_exit_code_1(tmp_path, capfd):
    assert main(["chaos", "check", str(tmp_path / "absent")]) == 1
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["chaos"], ["chaos", "check"], ["chaos", "check", "h", "--loud"], ["chaos", "x"]]
)
def test_a_command_that_is_misspelt_is_exit_code_64(arguments, capfd):
    assert main(arguments) == 64
    assert capfd.readouterr().err.count("\n") == 1
