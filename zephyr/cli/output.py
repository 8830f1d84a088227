"""How a command ends and what it prints: exit codes, tables, JSON.

Data goes to stdout. Errors are raised as `CommandError` and become one line on stderr in `zephyr.cli.main`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from zephyr.errors import ZephyrError

EXIT_ERROR = 1
EXIT_UNREACHABLE = 2
EXIT_NOT_FOUND = 3
EXIT_TIME_OUT = 4
"""Also where a quorum was not reached."""
EXIT_UNHEALTHY = 5
"""Also where gossip and etcd disagree."""
EXIT_USAGE = 64
"""EX_USAGE of sysexits.h."""
EXIT_INTERRUPTED = 130
"""What a shell reports of a program that Ctrl-C ended."""


class CommandError(ZephyrError):
    """A command failed; its text is the line for the person, its code the process's."""

    def __init__(self, detail: str, exit_code: int) -> None:
        """`exit_code`: one of those above."""
        super().__init__(detail)
        self.exit_code = exit_code


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    help="table: for a terminal, tab-separated when piped.",
)


def print_json(document: Any) -> None:
    """Print a document for programs."""
    click.echo(json.dumps(document, indent=2))


def print_json_line(document: Any) -> None:
    """Print one document of many for programs."""
    click.echo(json.dumps(document))


def print_row(row: Sequence[Any], widths: Sequence[int]) -> None:
    """Print one row of a table whose others are still to come: in columns on a terminal, else tab-separated."""
    cells = [" ".join(_cell(value).split()) for value in row]
    if sys.stdout.isatty():
        click.echo(" ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    else:
        click.echo("\t".join(cells))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows as a table on a terminal, else tab-separated under a line of column names."""
    texts = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *texts]:
            click.echo("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console  # noqa: PLC0415  # slow, and only a terminal needs it
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*(Column(name, overflow="fold") for name in columns))  # On a narrow terminal nothing is cut off.
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def moment(unix_ms: int | None) -> str:
    """Write a moment: UTC in ISO 8601, with milliseconds; nothing when there is none."""
    if unix_ms is None:
        return ""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(unix_ms // 1000))}.{unix_ms % 1000:03}Z"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
