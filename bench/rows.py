"""What a row of the table is: a question, a baseline, a goal, and the function that measures it.

Knows nothing of what is measured. Absolute figures move by a factor of five between machines, and between
two minutes on a shared one; so a goal is on a ratio, taken in interleaved rounds, of which the median counts.
Where a goal is on time (a stall, a lag), the baseline's figure stands beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

ROUNDS = 5
"""Interleaved rounds of a ratio: the median of five stands against two that were disturbed."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row's value should be. Both ends count as met."""

    low: float | None = None
    high: float | None = None

    def text(self, unit: str) -> str:
        """Write it as it stands in the table."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}{unit}"
        if self.low is not None:
            return f">= {self.low:g}{unit}"
        return f"<= {self.high:g}{unit}" if self.high is not None else "-"

    def verdict(self, value: float) -> str:
        """Return met, missed, or shown where there is no goal."""
        if self.low is None and self.high is None:
            return "shown"
        is_met = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return "met" if is_met else "missed"


@dataclass(slots=True)
class Measured:
    """What a row's function found."""

    value: float
    """What the goal is about: a ratio, or ms."""
    ours: str
    """The figure of the product, with its unit."""
    baseline: str
    """The figure of the baseline, with its unit."""
    cpu_us: tuple[float, float] | None = None
    """CPU microseconds a request of the server process: ours, the baseline's."""
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping in the JSON, the rounds above all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    group: str
    title: str
    baseline: str
    unit: str
    goal: Goal
    measure: Callable[[], Measured]

    @property
    def command(self) -> str:
        """What measures this row alone."""
        return f"make bench ONLY={self.name}"


class NotMeasurableError(Exception):
    """Something that a row needs is missing on this machine."""


ROWS: list[Row] = []
"""All rows, in the order of the table."""


def row(
    name: str, title: str, *, baseline: str, unit: str = "", low: float | None = None, high: float | None = None
) -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
    """Register a function as a row. Its group is the name of its module."""

    def register(measure: Callable[[], Measured]) -> Callable[[], Measured]:
        group = measure.__module__.rpartition(".")[2]
        ROWS.append(Row(name, group, title, baseline, unit, Goal(low, high), measure))
        return measure

    return register


def selected(only: Iterable[str]) -> list[Row]:
    """Return the rows whose group or name is named, or whose name begins so; all without a name."""
    names = tuple(only)
    return [item for item in ROWS if not names or item.group in names or item.name.startswith(names)]


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def rounded(values: Iterable[float], digits: int = 3) -> list[float]:
    """Shorten figures for the JSON."""
    return [round(value, digits) for value in values]
