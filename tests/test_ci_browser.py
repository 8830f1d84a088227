"""`.ci/browser` where no browser can be had: it says so loudly, and never passes over a failure of the tests.

The programs it calls are stand-ins: what they do is what such a machine does.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "browser"
RUNS = "echo Chromium 1.2"
FAILS = "exit 1"


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the script, by default as root and without a browser."""

    def write(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(**programs: str) -> subprocess.CompletedProcess[str]:
        """`programs`: the body of each stand-in."""
        for name in ("bash", "cat", "chmod", "dirname"):
            (tmp_path / name).symlink_to(shutil.which(name))
        for name, body in {"id": "echo 0", "apt_get": FAILS, "make": 'echo "make $*"', **programs}.items():
            write(name.replace("_", "-"), body)
        return subprocess.run(
            [str(SCRIPT)], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def assert_skipped(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode == 0
    assert "make" not in done.stdout
    before, line, after = done.stderr.splitlines()[-3:]
    assert line == f"SKIPPED: the browser tests did not run: {why}"
    assert set(before) == set(after) == {"="}


def test_with_a_browser_the_tests_run(run):
    done = run(google_chrome=RUNS)
    assert (done.returncode, done.stdout) == (0, "Chromium 1.2\nmake browser\n")
    assert "SKIPPED" not in done.stderr


def test_a_failing_test_fails_it(run):
    assert run(chromium=RUNS, make="exit 2").returncode == 2


def test_a_browser_is_installed_where_there_is_none(run, tmp_path):
    installs = f'[ "$1" = update ] || {{ echo "echo it runs" >{tmp_path}/chromium; chmod +x {tmp_path}/chromium; }}'
    done = run(apt_get=installs)
    assert (done.returncode, done.stdout) == (0, "it runs\nmake browser\n")


def test_where_it_cannot_be_installed_it_is_skipped(run):
    assert_skipped(run(), "apt-get could not install chromium")


def test_who_is_not_root_is_told_so(run):
    assert_skipped(run(id="echo 1000"), "Chromium is missing, and only root can install it")


def test_a_package_that_is_but_a_word_is_skipped(run):
    assert_skipped(run(chromium=FAILS), "what is installed as Chromium does not run")
