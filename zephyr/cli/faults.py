"""The commands that break a cluster on purpose: `zephyr chaos run` and `zephyr chaos list`.

Decides how that reads: a live line a node on stderr, the table or the document on stdout, the exit code. What is done,
and what it showed, is the package chaos's, which a machine that only serves need not have.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import click
from click.core import ParameterSource

from zephyr.cli.client import duration_s
from zephyr.cli.output import (
    EXIT_ERROR,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandError,
    output_option,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from chaos.drivers import Driver
    from chaos.episode import State
    from chaos.fault_scenarios import Scenario
    from chaos.repeat import Progress, Report

DRIVERS = ("process", "docker", "simulator")
NODES_MIN, NODES_MAX = 3, 30
"""Of fewer nodes than three no majority is left that could evict one; more than thirty starve on one machine."""
NODES_DEFAULT = 5
REPEAT_MAX = 1000
FAILURES_SHOWN = 5
STATE_COLUMNS = ("node", "gossip", "etcd", "ring", "authority")


@click.command("run")
@click.argument("name", metavar="SCENARIO")
@click.option(
    "--driver", "driver_name", type=click.Choice(DRIVERS), default=DRIVERS[0], show_default=True,
    help="What kind of cluster: processes of this machine, the Compose cluster, or simulated nodes in virtual time.",
)  # fmt: skip
@click.option(
    "-n", "--nodes", type=click.IntRange(NODES_MIN, NODES_MAX), metavar="COUNT",
    help=f"How many nodes. Default: {NODES_DEFAULT}, or as many containers as run.",
)  # fmt: skip
@click.option("--repeat", type=click.IntRange(1, REPEAT_MAX), default=1, show_default=True, help="How often.")
@click.option(
    "--hold", "hold_s", callback=duration_s, metavar="DURATION",
    help="How long the fault lasts at least. Default: until the others have dealt with it; for kill-etcd 10s.",
)  # fmt: skip
@click.option(
    "--limit", "limit_s", callback=duration_s, default="60s", show_default=True, metavar="DURATION",
    help="Longest wait for the views to agree, with the fault and again after it.",
)  # fmt: skip
@click.option(
    "--project", envvar="COMPOSE_PROJECT_NAME", metavar="NAME",
    help="With docker: the Compose project of a running cluster. Default: that of deploy/ if it runs, else one that is "
    "brought up and taken down.",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="With docker: bring up a cluster and take it down, even where one runs.")
@click.option("--seed", type=int, help="Of the choice of victims and keys. Default: another one each time.")
@output_option
def run_scenario(
    *,
    name: str,
    driver_name: str,
    nodes: int | None,
    repeat: int,
    hold_s: float | None,
    limit_s: float,
    project: str | None,
    fresh: bool,
    seed: int | None,
    output: str,
) -> int:
    """Do something to a cluster, and watch how soon all views are one again.

    SCENARIO is one of those that `zephyr chaos list` shows. Exit code 1 when the views did not agree in time, 2 when
    there is no cluster to do it to. Ctrl-C undoes what was done.
    """
    with _chaos_installed():
        from chaos.drivers import ClusterUnavailableError, FaultUnavailableError  # noqa: PLC0415  # the whole program
        from chaos.fault_scenarios import SCENARIOS  # noqa: PLC0415
        from chaos.repeat import Plan, run  # noqa: PLC0415
    if name not in SCENARIOS:
        raise click.BadParameter(f"there is no {name!r}; there are {', '.join(SCENARIOS)}.", param_hint="SCENARIO")
    is_named = click.get_current_context().get_parameter_source("project") is ParameterSource.COMMANDLINE
    if driver_name != "docker" and (is_named or fresh):
        raise click.UsageError(f"--project and --fresh are of the driver docker, not of {driver_name}.")
    if is_named and fresh:
        raise click.UsageError("--project names a cluster that runs, --fresh asks for another one.")
    scenario, seed = SCENARIOS[name], secrets.randbits(32) if seed is None else seed
    driver = _driver(driver_name, nodes, scenario, project=project, is_fresh=fresh, seed=seed)
    plan = Plan(repeat, limit_s, hold_s, seed)
    display = _Terminal(repeat) if sys.stderr.isatty() else _Lines(repeat)
    try:
        with display:
            report = run(driver, scenario, plan, display.tell, display.say)
    except FaultUnavailableError as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ClusterUnavailableError as error:
        raise CommandError(str(error), EXIT_UNREACHABLE) from None
    if output == "json":
        print_json(report.document())
    else:
        print_table(*_table(report))
        for text in [text for item in report.repetitions for text in item.failures][:FAILURES_SHOWN]:
            click.echo(f"failed: {text}", err=True)
    return 0 if report.has_converged else EXIT_ERROR


@click.command("list")
@output_option
def list_scenarios(*, output: str) -> None:
    """List what can be done to a cluster, and with which drivers."""
    with _chaos_installed():
        from chaos.drivers.containers import ContainerDriver  # noqa: PLC0415
        from chaos.drivers.processes import NETWORK_FAULTS, ProcessDriver  # noqa: PLC0415
        from chaos.drivers.simulated import SimulatedDriver  # noqa: PLC0415
        from chaos.fault_scenarios import SCENARIOS  # noqa: PLC0415
    kinds = {
        "process": ProcessDriver.faults_possible, "docker": ContainerDriver.faults, "simulator": SimulatedDriver.faults,
    }  # fmt: skip
    rows, documents = [], []
    for scenario in SCENARIOS.values():
        drivers = [name for name, faults in kinds.items() if scenario.needs <= faults]
        as_root = [] if NETWORK_FAULTS.isdisjoint(scenario.needs) else ["process"]
        shown = ", ".join(f"{name} (root)" if name in as_root else name for name in drivers)
        rows.append((scenario.name, scenario.summary, shown))
        documents.append(
            {"scenario": scenario.name, "does": scenario.summary, "drivers": drivers, "drivers_as_root": as_root}
        )
    if output == "json":
        print_json({"scenarios": documents})
    else:
        print_table(("scenario", "what is done", "drivers"), rows)


def _driver(
    name: str, nodes: int | None, scenario: Scenario, *, project: str | None, is_fresh: bool, seed: int
) -> Driver:
    """Make a driver, which does not do anything yet."""
    if name == "docker":
        from chaos.drivers.containers import ContainerDriver  # noqa: PLC0415  # each of them brings much along

        return ContainerDriver(nodes, project, is_fresh=is_fresh)
    if name == "process":
        from chaos.drivers.processes import ProcessDriver  # noqa: PLC0415

        return ProcessDriver(nodes or NODES_DEFAULT, scenario.needs)
    from chaos.drivers.simulated import SimulatedDriver  # noqa: PLC0415

    return SimulatedDriver(nodes or NODES_DEFAULT, seed)


@contextlib.contextmanager
def _chaos_installed() -> Iterator[None]:
    """Say so in a line where it is not: the image of deploy/ has what serves, and nothing else."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "chaos":
            raise
        raise CommandError("the package chaos is not installed here: run this from a checkout", EXIT_ERROR) from None


def _table(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows: one row a repetition, then the percentiles. Times are in seconds."""
    from chaos.convergence import TITLES, percentiles  # noqa: PLC0415
    from chaos.repeat import SHARES  # noqa: PLC0415

    columns = ["run", "victim", *(f"{title} (s)" for title in TITLES.values()), "failed", "requests"]
    rows: list[list[Any]] = [
        [str(number), item.victim or "etcd", *(_seconds(getattr(item.times, name)) for name in TITLES),
         item.failed, item.requests]
        for number, item in enumerate(report.repetitions, 1)
    ]  # fmt: skip
    for row, share in SHARES.items():
        rows.append([row, "", *map(_seconds, percentiles(report.repetitions, share).values()), "", ""])
    return columns, rows


def _seconds(value_s: float | None) -> str:
    """Write a time; that it never came; or that it is no question."""
    if value_s is None:
        return "-"
    return "never" if math.isinf(value_s) else f"{value_s:.2f}"


def _headline(progress: Progress, repetitions: int) -> str:
    """Say where a run is: which time, to whom, and for how long."""
    words = {"before": "before", "fault": "since the fault", "healing": "since its end"}
    where = f"{progress.repetition}/{repetitions} {progress.victim}"
    return f"{where}, {progress.since_s:.2f} s {words[progress.stage]}"


def _line(state: State) -> str:
    if not state.ring:
        return "no answer"
    return f"gossip {state.gossip}, etcd {state.etcd}, ring {state.ring}, authority {state.authority}"


class _Lines:
    """For a pipe: a line whenever a node shows something else."""

    def __init__(self, repetitions: int) -> None:
        self._repetitions = repetitions
        self._shown: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def tell(self, progress: Progress) -> None:
        headline = _headline(progress, self._repetitions)
        for state in progress.states:
            if self._shown.get(state.node) != state:
                self._shown[state.node] = state
                click.echo(f"{headline}: {state.node}: {_line(state)}", err=True)


class _Terminal:
    """For a person: a line a node, which changes in its place."""

    def __init__(self, repetitions: int) -> None:
        from rich.console import Console  # noqa: PLC0415  # slow, and only a terminal needs it
        from rich.live import Live  # noqa: PLC0415

        self._repetitions = repetitions
        self._live = Live(console=Console(stderr=True), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def tell(self, progress: Progress) -> None:
        from rich.table import Table  # noqa: PLC0415

        table = Table(*STATE_COLUMNS, title=_headline(progress, self._repetitions), title_justify="left")
        for state in progress.states:
            table.add_row(*state)
        self._live.update(table, refresh=True)
