"""The embedded etcd, and the ports it and the nodes of a test are given."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zephyr.errors import EtcdError, ZephyrError
from zephyr.etcd import embedded
from zephyr.etcd.embedded import PORTS_FIRST, PORTS_PER_BLOCK, EmbeddedEtcd, claim_ports, free_port

PAUSES = 60
"""Where nobody waits, one in ten finds a thread that still runs."""


@pytest.fixture
async def etcd():
    made = EmbeddedEtcd()
    await made.start()
    yield made
    await made.close()


def thread_states(pid: int) -> set[str]:
    """Return the state of each thread: the field after the name, which ends with the last bracket."""
    states = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # A thread may end meanwhile.
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states


async def test_after_a_pause_every_thread_has_stopped(etcd):
    for _ in range(PAUSES):
        await etcd.pause()
        assert thread_states(etcd.pid) == {"T"}
        etcd.resume()


async def test_a_paused_etcd_can_be_paused_again_and_goes_on_after_one_resume(etcd):
    await etcd.pause()
    await etcd.pause()
    assert thread_states(etcd.pid) == {"T"}
    etcd.resume()
    await asyncio.wait_for(serves(etcd), 10)


async def serves(etcd) -> None:
    """Return when it answers."""
    host, port = etcd.endpoint.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    assert b"200 OK" in await reader.readline()
    writer.close()


async def test_a_pause_of_an_etcd_that_has_ended_or_does_not_stop_is_an_error(etcd, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(embedded, "PAUSE_MAX_S", 0.1)
        changed.setattr(embedded.signal, "SIGSTOP", signal.SIGURG)  # It goes on, as if the signal were lost.
        with pytest.raises(EtcdError, match="has not stopped"):
            await etcd.pause()
    process = etcd._process
    os.kill(etcd.pid, signal.SIGKILL)
    await process.wait()
    with pytest.raises(EtcdError, match="has ended"):
        await etcd.pause()


PROCESS = """
import os
os.getpid = lambda: 4242
from zephyr.etcd.embedded import free_port
print(*(free_port() for _ in range(5)), flush=True)
input()
"""
"""Takes ports and stays. All are given one process id: ids that repeat modulo the number of blocks are ordinary."""


def test_processes_side_by_side_are_given_no_port_twice():
    with contextlib.ExitStack() as stack:
        given = []
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            given += [int(word) for word in process.stdout.readline().split()]
    assert len(given) == 15
    assert len({(port - PORTS_FIRST) // PORTS_PER_BLOCK for port in given}) == 3
    assert len(set(given)) == 15


def test_a_claim_ends_when_it_is_closed():
    first = 100_000 + os.getpid()  # No block begins there, and nobody else asks for it.
    claim = claim_ports(first)
    assert claim_ports(first) is None
    claim.close()
    again = claim_ports(first)
    assert again is not None
    again.close()


def test_without_a_block_left_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(embedded, "claim_ports", lambda first: None)
    monkeypatch.setattr(embedded.os, "getpid", lambda: -1)  # One that has no block yet.
    with pytest.raises(ZephyrError, match="all 80 blocks of ports from 10000 on are claimed"):
        free_port()
