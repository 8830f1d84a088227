"""The command line: `zephyr` and its commands.

Reads arguments, calls what does the work, and turns how it ended into an exit code: data goes to stdout,
one line per error to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial

import click

from zephyr import __version__
from zephyr.cli import client, faults, operators, values
from zephyr.cli.chaos import chaos
from zephyr.cli.output import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    CommandError,
    output_option,
    print_json,
    print_table,
)
from zephyr.cli.settings import setting_options, settings_from, source_of
from zephyr.config import CLUSTER_DEFAULT, SPECS, format_value
from zephyr.errors import ConfigError, ZephyrError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit code."""
    try:
        return zephyr.main(arguments, prog_name="zephyr", standalone_mode=False) or 0
    except CommandError as error:
        return _complain(str(error), error.exit_code)
    except ConfigError as error:
        return _complain(str(error), EXIT_USAGE)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "zephyr"
        return _complain(f"{error.format_message()} See {where} --help.", EXIT_USAGE)
    except (ZephyrError, click.ClickException) as error:
        return _complain(str(error), EXIT_ERROR)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; what Python flushes at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def _complain(line: str, exit_code: int) -> int:
    click.echo(f"zephyr: {' '.join(line.split())}", err=True)
    return exit_code


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="zephyr", message="%(prog)s %(version)s")
def zephyr() -> None:
    """ZephyrCache: a self-healing distributed cache."""


@zephyr.command()
@setting_options
@click.pass_context
def node(context: click.Context, /, **_texts: str) -> int:
    """Run one node until it is told to stop."""
    settings = settings_from(context)
    from zephyr.runtime import run  # noqa: PLC0415  # the whole program

    return run(settings)


@zephyr.group(no_args_is_help=False)
def config() -> None:
    """Look at settings."""


@config.command("show")
@setting_options
@output_option
@click.pass_context
def config_show(context: click.Context, /, output: str, **_texts: str) -> None:
    """Print each setting a node would have with these flags, and where it comes from."""
    settings = settings_from(context)
    rows = [
        (name.replace("_", "-"), format_value(spec, getattr(settings, name)), *source_of(context, name))
        for name, spec in SPECS.items()
    ]
    if output == "json":
        print_json({name: {"value": text, "source": source, "from": origin} for name, text, source, origin in rows})
    else:
        print_table(("setting", "value", "source", "from"), rows)


@zephyr.command()
@click.option("-n", "--nodes", type=click.IntRange(1, 50), default=5, show_default=True, help="How many nodes.")
@click.option(
    "--base-port",
    type=click.IntRange(1024, 65000),
    default=8080,
    show_default=True,
    help="HTTP port of node n1; the others follow.",
)
@click.option("--cluster", default=CLUSTER_DEFAULT, show_default=True, help="Name of the cluster.")
@click.option("--no-etcd", is_flag=True, help="A cluster that lives by gossip alone.")
@click.option(
    "--run-for",
    "run_for_s",
    callback=client.duration_s,
    metavar="DURATION",
    help="Stay this long. Default: until Ctrl-C on a terminal, else as long as the tour.",
)
@click.option("--seed", type=int, help="Of the keys, values and choices. Default: another one each time.")
@output_option
def demo(
    *, nodes: int, base_port: int, cluster: str, no_etcd: bool, run_for_s: float | None, seed: int | None, output: str
) -> int:
    """Run a cluster on this machine: to play with on a terminal, else to watch it survive a killed node."""
    from zephyr import demo as demonstration  # noqa: PLC0415  # brings aiohttp along

    plan = demonstration.Plan(
        nodes=nodes, base_port=base_port, cluster=cluster, with_etcd=not no_etcd, run_for_s=run_for_s, seed=seed,
        tour=not sys.stdout.isatty(),
    )  # fmt: skip
    show = (lambda *_table: None) if output == "json" else print_table
    report = demonstration.run(plan, show, partial(click.echo, err=True))
    if output == "json":
        print_json(report.document())
    return EXIT_ERROR if report.failures else 0


for command in (
    values.get, values.put, values.delete, values.increment, values.ttl, values.scan, values.explain, client.members,
    client.ring, operators.views, operators.evict, operators.events, operators.certificate,
):  # fmt: skip
    zephyr.add_command(command)
zephyr.add_command(chaos)
for command in (faults.run_scenario, faults.list_scenarios):
    chaos.add_command(command)
