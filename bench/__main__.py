"""`python -m bench`: measure, show the table, keep it.

A full run replaces the table in docs/performance.md, so that all of it comes from one run; a run of some
rows (`--only`) leaves it alone. Detection takes the better part of an hour, so it must be asked for. Ends with
0 also where a goal is missed, since a measurement is no test, and with 1 where something could not be measured.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from bench import detection, eviction, http, idle, memory, replication, ring, store
from bench.load import stop_servers
from bench.report import Finding, print_table, update_document, write_json
from bench.rows import NotMeasurableError, Row, selected

DOCUMENT = Path("docs/performance.md")
GROUPS = [
    module.__name__.rpartition(".")[2] for module in (http, replication, ring, store, memory, eviction, detection, idle)
]
"""In the order of the table. Their import registers the rows."""
ASKED_FOR = {"detection", "idle"}
"""Groups that are no part of a full run."""


def _measure(row: Row, console: Console) -> Finding:
    began_s = time.monotonic()
    try:
        finding = Finding(row, row.measure())
    except NotMeasurableError as error:
        finding = Finding(row, None, str(error))
    finding.seconds = time.monotonic() - began_s
    *_, ours, baseline, value, goal, verdict, _, _ = finding.cells()
    console.print(f"{row.name}: {ours} against {baseline}: {value} (goal {goal}): {verdict}; {finding.seconds:.0f} s")
    return finding


@click.command()
@click.option("--only", "names", multiple=True, help=f"A group ({', '.join(GROUPS)}) or a row.")
@click.option("--json", "json_path", default="bench/results.json", show_default=True, type=click.Path(path_type=Path))
@click.option("--document/--no-document", default=True, help="Update docs/performance.md after a full run.")
def main(names: tuple[str, ...], json_path: Path, *, document: bool) -> None:
    """Measure what ZephyrCache costs, against baselines of the same run."""
    only = [part for name in names for part in name.replace(",", " ").split()]
    rows = [row for row in selected(only) if only or row.group not in ASKED_FOR]
    rows.sort(key=lambda row: GROUPS.index(row.group))
    if not rows:
        raise click.UsageError(f"no row and no group is called {' or '.join(only)}")
    # Ended from outside, it still stops what the rows started.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        findings = [_measure(row, console) for row in rows]
    finally:
        stop_servers()
    print_table(findings, console)
    if only:
        json_path = json_path.with_name("results-part.json") if json_path == Path("bench/results.json") else json_path
    write_json(findings, json_path)
    if document and not only:
        update_document(findings, DOCUMENT)
    sys.exit(1 if any(finding.measured is None for finding in findings) else 0)


if __name__ == "__main__":
    main()
