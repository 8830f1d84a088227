"""`.ci/containers` where no engine can be had: it says so loudly, and never passes over a failure of the tests.

The programs it calls are stand-ins: what they do is what such a machine does.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "containers"
TOOLS = ("bash", "cat", "dirname", "mkdir", "mktemp", "rm", "setsid", "sleep", "tail", "tar", "touch")
"""What it takes from this machine, and nothing else."""
ANSWERS = "exit 0"
FAILS = "exit 1"
RUNS_CONTAINERS = """
case "$1" in
    run) echo 'exec: "/directory": permission denied' >&2; exit 126 ;;
    import) cat >/dev/null ;;
esac
"""
ENGINE_STARTS_WITH_DOCKERD = '[ "$1" != info ] || [ -e "$TMPDIR/started" ] || exit 1' + RUNS_CONTAINERS


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the script, by default as root and with an engine that answers."""

    def run(environment: dict[str, str] | None = None, **programs: str | None) -> subprocess.CompletedProcess[str]:
        """`programs`: the body of each stand-in, None for a program that is not there."""
        for name in TOOLS:
            (tmp_path / name).symlink_to(shutil.which(name))
        usual = {
            "id": "echo 0", "docker": RUNS_CONTAINERS, "docker_compose": ANSWERS, "dockerd": FAILS,
            "debootstrap": ANSWERS, "apt_get": FAILS, "make": 'echo "make $*"',
        }  # fmt: skip
        for name, body in {**usual, **programs}.items():
            if body is not None:
                path = tmp_path / name.replace("_", "-")
                path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
                path.chmod(0o755)
        own = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path), **(environment or {})}
        return subprocess.run([str(SCRIPT)], env=own, capture_output=True, text=True, timeout=60, check=False)

    return run


def assert_skipped(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode == 0
    assert "make" not in done.stdout
    before, line, after = done.stderr.splitlines()[-3:]
    assert line == f"SKIPPED: the container tests did not run: {why}"
    assert set(before) == set(after) == {"="}


def test_with_an_engine_the_tests_run(run):
    done = run()
    assert (done.returncode, done.stdout) == (0, "make containers\n")
    assert "SKIPPED" not in done.stderr


def test_a_failing_test_fails_it(run):
    assert run(make="exit 2").returncode == 2


def test_an_engine_that_is_not_running_is_started(run, tmp_path):
    done = run(docker=ENGINE_STARTS_WITH_DOCKERD, dockerd='touch "$TMPDIR/started"; sleep 5')
    assert (done.returncode, done.stdout) == (0, "make containers\n")
    assert "starting dockerd" in done.stderr
    assert str(tmp_path / "zephyrcache-dockerd.log") in done.stderr


def test_an_engine_that_does_not_start_is_skipped_with_the_end_of_its_log(run):
    done = run(docker=FAILS, dockerd="echo no iptables here; exit 1")
    assert_skipped(done, "dockerd does not start on this machine")
    assert "no iptables here" in done.stderr


def test_without_root_no_engine_is_started(run, tmp_path):
    done = run(docker=FAILS, id="echo 1000", dockerd='touch "$TMPDIR/started"')
    assert_skipped(done, "no Docker engine answers, and only root can start one")
    assert not (tmp_path / "started").exists()


def test_an_engine_elsewhere_that_does_not_answer_is_not_replaced_by_one_here(run, tmp_path):
    done = run({"DOCKER_HOST": "tcp://192.0.2.1:2375"}, docker=FAILS, dockerd='touch "$TMPDIR/started"')
    assert_skipped(done, "no Docker engine answers at DOCKER_HOST=tcp://192.0.2.1:2375")
    assert not (tmp_path / "started").exists()


def test_an_engine_that_may_start_no_container_is_skipped_with_its_words(run):
    forbidden = RUNS_CONTAINERS.replace('exec: "/directory": permission denied', "mount proc: operation not permitted")
    assert_skipped(run(docker=forbidden), "the engine starts no container: mount proc: operation not permitted")


def test_packages_that_cannot_be_installed_are_named(run):
    done = run(docker=FAILS, dockerd=None, debootstrap=None)
    assert_skipped(done, "apt-get could not install docker.io debootstrap")


def test_packages_that_only_root_can_install_are_named(run):
    done = run(docker=None, dockerd=None, docker_compose=None, id="echo 1000")
    assert_skipped(done, "docker.io docker-compose missing, and only root can install them")
