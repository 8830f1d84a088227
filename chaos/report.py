"""Tables of what many runs showed: shares with their Wilson intervals, percentiles, means.

Pure: results in, rows of text out. `chaos.simulate` prints them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from chaos.gossip_scenarios import LIFEGUARD_ARMS, Case, Result

WILSON_Z = 1.959964
"""Of a two-sided interval of 95 %."""
SHARE_PREFIXES = ("false_deaths", "deaths_")
"""Counts that should be 0: what matters is the share of runs in which they are not."""
ARM_NAMES = {"lifeguard": "Lifeguard", "udp": "Lifeguard, UDP alone", "swim": "SWIM"}
LIFEGUARD_SHARE_MAX = 0.04
LIFEGUARD_RATIO_LEAST = 15.0
LIFEGUARD_SLOWER_MAX = 0.05
"""What Lifeguard must reach: at most this share of runs with a false death, at least this many times fewer than without
it, and a median detection at most this much slower."""


class Table(NamedTuple):
    """A title, the heads of columns, and rows of as many texts."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the bounds of the share behind `hits` out of `count`, with a confidence of 95 % (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, square = hits / count, WILSON_Z * WILSON_Z
    middle = share + square / (2 * count)
    spread = WILSON_Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    scale = 1 + square / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that at least this share of all do not exceed; infinite for none."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def tables(results: Iterable[Result]) -> list[Table]:
    """Return the tables of one scenario's results, in their order."""
    cells: dict[Case, list[Result]] = {}
    for result in results:
        cells.setdefault(replace(result.case, seed=0), []).append(result)
    scenario = next(iter(cells)).scenario
    if scenario == "claims":
        return [_claims(cells)]
    found = [_table(scenario, cells)]
    if scenario == "lifeguard":
        found += [_lifeguard_cells(cells), _lifeguard(cells)]
    return found


def _table(title: str, cells: dict[Case, list[Result]]) -> Table:
    """One row for each cell: what distinguishes it, then what was measured."""
    varying = [
        name for name in ("nodes", "loss", "starved", "lifeguard", "connections", "profile") if _varies(name, cells)
    ]
    measured = list(dict.fromkeys(name for cell in cells.values() for result in cell for name in result.values))
    columns = [*varying, "runs", "failed", *(head for name in measured for head in _heads(name))]
    rows = []
    for case, cell in cells.items():
        texts = [_text(getattr(case, name)) for name in varying]
        texts += [str(len(cell)), str(sum(bool(result.failure) for result in cell))]
        for name in measured:
            texts += _summary(name, [result.values[name] for result in cell if name in result.values])
        rows.append(tuple(texts))
    return Table(title, tuple(columns), rows)


def _claims(cells: dict[Case, list[Result]]) -> Table:
    """One row for each check, over all runs that came to their end."""
    runs = [result.values for cell in cells.values() for result in cell if result.values]
    checks = dict.fromkeys(name.removeprefix("judged ") for run in runs for name in run if name.startswith("judged "))
    rows = []
    for check in checks:
        judged = [run[f"judged {check}"] for run in runs]
        violations = [run[f"violations {check}"] for run in runs]
        red = sum(count > 0 for count in violations)
        unknown = sum(not count and not broken for count, broken in zip(judged, violations, strict=True))
        texts = (check, len(runs) - red - unknown, red, unknown, round(sum(judged)), round(sum(violations)))
        rows.append(tuple(map(str, texts)))
    operations, served = (round(sum(run[name] for run in runs)) for name in ("operations", "served"))
    title = f"claims: {len(runs)} runs, {operations} operations, {served} of them served"
    return Table(title, ("check", "runs green", "red", "unknown", "judged", "violations"), rows)


def _varies(name: str, cells: dict[Case, list[Result]]) -> bool:
    return name == "nodes" or len({getattr(case, name) for case in cells}) > 1


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _heads(name: str) -> tuple[str, ...]:
    words = name.removesuffix("_s").replace("_", " ")
    if name.endswith("_s"):
        return f"{words} p50 s", "p99 s"
    return (f"runs with {words}",) if name.startswith(SHARE_PREFIXES) else (words,)


def _summary(name: str, values: list[float]) -> list[str]:
    if name.endswith("_s"):
        return [seconds(percentile(values, 0.5)), seconds(percentile(values, 0.99))]
    if name.startswith(SHARE_PREFIXES):
        return [share(sum(value > 0 for value in values), len(values))]
    return [f"{sum(values) / len(values):.4g}" if values else "-"]


def seconds(value_s: float) -> str:
    """Write a time, or that it did not come."""
    return "never" if math.isinf(value_s) else f"{value_s:.2f}"


def share(hits: int, count: int) -> str:
    """Write a share and its interval."""
    return f"{hits}/{count} = {100 * hits / max(1, count):.1f} % {_interval(hits, count)}"


def _interval(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _lifeguard_cells(cells: dict[Case, list[Result]]) -> Table:
    """One row for each cell, its arms beside each other: runs with false deaths, and when half know."""
    arms = [arm for arm in LIFEGUARD_ARMS if _arm(cells, 0, arm)]
    columns = ["nodes", "loss", "starved"]
    for arm in arms:
        columns += [ARM_NAMES[arm], "p50 s"]
    rows: dict[tuple[int, float, float], list[str]] = {}
    for case in cells:
        rows.setdefault((case.nodes, case.loss, case.starved), [])
    for (nodes, loss, starved), texts in rows.items():
        texts += [str(nodes), f"{100 * loss:g} %", f"{100 * starved:g} %"]
        chosen = {case: cell for case, cell in cells.items() if (case.loss, case.starved) == (loss, starved)}
        for arm in arms:
            runs = _arm(chosen, nodes, arm)
            texts += [f"{_hits(runs)}/{len(runs)} {_interval(_hits(runs), len(runs))} %", seconds(_median_s(runs))]
    title = "Lifeguard, cell by cell: runs with false deaths, and until half know of the silent death"
    return Table(title, tuple(columns), [tuple(texts) for texts in rows.values()])


def _lifeguard(cells: dict[Case, list[Result]]) -> Table:
    """Compare with Lifeguard and without, over all cells of one size and over all."""
    rows = []
    sizes = list(dict.fromkeys(case.nodes for case in cells))
    for nodes in [*sizes, 0] if len(sizes) > 1 else sizes:
        plain = _arm(cells, nodes, "swim")
        for arm, name in ARM_NAMES.items():
            runs = _arm(cells, nodes, arm)
            if runs:
                goals = ("", "", "") if arm == "swim" or not plain else _goals(runs, plain)
                found = share(_hits(runs), len(runs)), seconds(_median_s(runs))
                rows.append((str(nodes or "all"), name, *found, *goals))
    columns = ("nodes", "protocol", "runs with false deaths", "half know p50 s", "times fewer", "slower", "goals met")
    return Table("Lifeguard against plain SWIM", columns, rows)


def _arm(cells: dict[Case, list[Result]], nodes: int, arm: str) -> list[Result]:
    """Return the runs of one arm: of clusters of that size, or of any (0)."""
    wanted = LIFEGUARD_ARMS[arm]
    chosen = [
        cell for case, cell in cells.items()
        if nodes in (0, case.nodes) and (case.lifeguard, case.connections) == wanted
    ]  # fmt: skip
    return [result for cell in chosen for result in cell if result.values]


def _hits(runs: list[Result]) -> int:
    return sum(result.values["false_deaths"] > 0 for result in runs)


def _median_s(runs: list[Result]) -> float:
    return percentile([result.values["half_s"] for result in runs], 0.5)


def _goals(runs: list[Result], plain: list[Result]) -> tuple[str, str, str]:
    """Return how many times fewer, how much slower, and whether that is good enough."""
    found = _hits(runs) / len(runs)
    ratio = _hits(plain) / len(plain) / found if found else math.inf
    slower = _median_s(runs) / _median_s(plain) - 1
    holds = found <= LIFEGUARD_SHARE_MAX and ratio >= LIFEGUARD_RATIO_LEAST and slower <= LIFEGUARD_SLOWER_MAX
    return f"{ratio:.1f}" if found else "all", f"{100 * slower:+.1f} %", "yes" if holds else "no"
