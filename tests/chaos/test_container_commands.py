"""Docker's commands, as somebody cancels them: what was begun is over before anybody undoes it."""

import asyncio
import sys

import pytest

from chaos.drivers.containers import run

SLOW = "import sys, time; time.sleep(0.2); open(sys.argv[1], 'w').close()"
TURNS = 12
"""Of the event loop: a command is cancelled before, while and after its process is made."""


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
