"""The commands that judge what a cluster went through: `zephyr chaos check`.

Reads a recorded history and says what it shows. Runs nothing, and talks to no node.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr.cli.output import EXIT_ERROR, output_option, print_json, print_table

if TYPE_CHECKING:
    from chaos.checkers import Report, Verdict
    from chaos.history import Operation


@click.group(no_args_is_help=False)
def chaos() -> None:
    """Judge what a cluster went through."""


@chaos.command("check")
@click.argument("history", type=click.Path(path_type=Path))
@output_option
def check_history(*, history: Path, output: str) -> int:
    """Check whether a recorded history kept what the data plane claims.

    Exit code 1 when a claim was broken, and when the run served too little to show anything.
    """
    from chaos.checkers import check  # noqa: PLC0415  # of no use to the other commands
    from chaos.history import read_history  # noqa: PLC0415

    report = check(read_history(history))
    if output == "json":
        print_json(_document(report))
    else:
        columns = ("check", "verdict", "judged", "unknown", "violations", "note")
        print_table(columns, [_row(verdict) for verdict in report.verdicts])
        for verdict in report.red:
            for text in _violations(verdict):
                click.echo(text, err=True)
    if not report.is_served:
        click.echo(
            f"zephyr: {report.served} of {report.operations} operations were served: the run shows nothing", err=True
        )
    return EXIT_ERROR if report.red or not report.is_served else 0


def _row(verdict: Verdict) -> tuple[Any, ...]:
    figures = ", ".join(f"{name} {value:g}" for name, value in verdict.figures.items())
    note = verdict.note or figures
    return (verdict.name, verdict.colour, verdict.judged, verdict.unknown, verdict.violation_count, note)


def _violations(verdict: Verdict) -> list[str]:
    """Tell each violation that was kept, and where in the history it is."""
    texts = []
    for violation in verdict.violations:
        lines = ", ".join(str(item.line) for item in violation.operations)
        texts.append(f"{verdict.name}: {violation.text}" + (f" (lines {lines})" if lines else ""))
    left_out = verdict.violation_count - len(verdict.violations)
    return [*texts, f"{verdict.name}: {left_out} more"] if left_out else texts


def _document(report: Report) -> dict[str, Any]:
    return {
        "operations": report.operations,
        "served": report.served,
        "verdicts": [
            {
                "check": verdict.name,
                "verdict": verdict.colour,
                "judged": verdict.judged,
                "unknown": verdict.unknown,
                "violations": verdict.violation_count,
                "figures": {name: _finite(value) for name, value in verdict.figures.items()},
                "note": verdict.note,
                "examples": [
                    {"text": violation.text, "operations": [_operation(item) for item in violation.operations]}
                    for violation in verdict.violations
                ],
            }
            for verdict in report.verdicts
        ],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "line": operation.line,
        "process": operation.process,
        "op": operation.kind,
        "key": operation.key,
        "value": operation.value,
        "version": operation.version.hex(),
        "invoked_s": operation.invoked_s,
        "completed_s": _finite(operation.completed_s),
        "outcome": operation.outcome,
        "coordinator": operation.coordinator,
    }


def _finite(value: float) -> float | None:
    """JSON knows no infinity: what never came is null."""
    return value if isfinite(value) else None
