"""Docker's commands, as somebody presses Ctrl-C: what was begun is over before anybody undoes it."""

import asyncio
import os
import signal
import sys

import pytest

from chaos.drivers.containers import run
from chaos.drivers.namespaces import run as run_at_once

SLOW = "import sys, time; time.sleep(0.2); open(sys.argv[1], 'w').close()"
TURNS = 12
"""Of the event loop: a command is cancelled before, while and after its process is made."""
IMPATIENT = """
import asyncio, signal, sys
from chaos.drivers.containers import run
from chaos.drivers.namespaces import run as run_at_once

async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, told.set)
    print("ready", flush=True)
    await told.wait()
    for _ in range(30):
        await run("true")
        run_at_once("true")
    print("done", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""
"""Runs commands once it is told to stop, as whoever undoes things does; each of them must succeed."""


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_command_that_is_cancelled_has_ended_or_was_never_begun(tmp_path, turns):
    done = tmp_path / "done"
    running = asyncio.ensure_future(run(sys.executable, "-c", SLOW, str(done)))
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    was_done = done.exists()
    await asyncio.sleep(0.6)
    assert done.exists() == was_done, "it went on behind the back of whoever undoes it"


async def test_no_command_dies_of_the_ctrl_c_that_an_impatient_person_presses_again_and_again():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", IMPATIENT, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert await process.stdout.readline() == b"ready\n"
    answering = asyncio.ensure_future(process.stdout.readline())
    while not answering.done() and process.returncode is None:
        os.killpg(process.pid, signal.SIGINT)
        await asyncio.sleep(0.0005)
    _, errors = await process.communicate(b"")
    assert await answering == b"done\n", errors.decode()


async def test_signals_are_held_from_nobody_but_the_commands():
    await run("true")
    run_at_once("true")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
