"""Where results go: a table on the terminal, JSON, and the table in docs/performance.md."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.rows import Measured, Row

BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"
_COLUMNS = ("row", "what", "ours", "baseline", "value", "goal", "verdict", "CPU us", "command")


@dataclass(slots=True)
class Finding:
    """One row and what became of it."""

    row: Row
    measured: Measured | None
    problem: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Return met, missed, shown, or not run."""
        return "not run" if self.measured is None else self.row.goal.verdict(self.measured.value)

    def cells(self) -> tuple[str, ...]:
        """Return the texts of its line."""
        row, measured = self.row, self.measured
        what = f"{row.title}, against {row.baseline}"
        if measured is None:
            return (row.name, what, "-", "-", "-", row.goal.text(row.unit), self.problem, "-", row.command)
        cpu = "-" if measured.cpu_us is None else f"{measured.cpu_us[0]:.0f} / {measured.cpu_us[1]:.0f}"
        return (
            row.name, what, measured.ours, measured.baseline, f"{measured.value:.3g}{row.unit}",
            row.goal.text(row.unit), self.verdict, cpu, row.command,
        )  # fmt: skip


def print_table(findings: list[Finding], console: Console) -> None:
    """Draw the table for a person. The command of a row is its name after `make bench ONLY=`."""
    table = Table(title="make bench", caption="one row alone: make bench ONLY=<row>; CPU us: ours / baseline's")
    for name in _COLUMNS[:-1]:
        table.add_column(name, overflow="fold")
    colours = {"met": "green", "missed": "red", "not run": "yellow"}
    for finding in findings:
        table.add_row(*finding.cells()[:-1], style=colours.get(finding.verdict))
    console.print(table)


def machine() -> dict[str, str]:
    """Describe where and when this ran."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def write_json(findings: list[Finding], path: Path) -> None:
    """Keep everything, the single rounds too."""
    rows = [
        {
            "row": finding.row.name,
            "group": finding.row.group,
            "title": finding.row.title,
            "baseline": finding.row.baseline,
            "goal": finding.row.goal.text(finding.row.unit),
            "verdict": finding.verdict,
            "command": finding.row.command,
            "seconds": round(finding.seconds, 1),
            "problem": finding.problem,
            "measured": None if finding.measured is None else asdict(finding.measured),
        }
        for finding in findings
    ]
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def update_document(findings: list[Finding], path: Path) -> None:
    """Replace the table between the markers. Raises ValueError where there are none."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END}")
    where = machine()
    seconds = sum(finding.seconds for finding in findings)
    lines = [
        f"{where['time']}, {where['cpu']}, Python {where['python']}, one run of {seconds / 60:.0f} minutes.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for finding in findings:
        *cells, command = finding.cells()
        lines.append("| " + " | ".join([*cells, f"`{command}`"]) + " |")
    path.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
