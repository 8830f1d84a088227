"""What all tests have: figures, which are for the reader of a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

FIGURE = "figure"


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that notes a measured time or count; all of them are printed when the run ends."""

    def note(what: str, value: float, unit: str = "s") -> None:
        record_property(FIGURE, f"{what}: {value:.2f} s" if unit == "s" else f"{what}: {value} {unit}".rstrip())

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [(report.nodeid, value) for report in reports for name, value in report.user_properties if name == FIGURE]
    if figures:
        terminalreporter.section("figures")
    for test, value in sorted(figures):
        terminalreporter.line(f"{test.rpartition('::')[2]}: {value}")
