"""What a user sees on stderr while a tune runs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fp4bench.summary import Line
from fp4bench.trials import FailedTrial, PassedTrial, Race
from fp4bench.workloads import Problem


class TuneProgress:
    """A bar of the budget with the time left on a terminal; one line a workload elsewhere."""

    def __init__(self, console: Console, budget: float) -> None:
        self._console, self._budget = console, budget
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=budget, left="")
        self._label, self._trials, self._failed = "", 0, 0

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def workload(self, index: int, total: int, problem: Problem, reused: int) -> None:
        self._label = f"[{index + 1}/{total}] {problem.workload.label}"
        layers = ", ".join(problem.layers)
        earlier = f", {reused} earlier trials reused" if reused else ""
        self._console.print(f"{self._label}  ({layers}{earlier})", highlight=False)
        self._advance()

    def trial(self, trial: PassedTrial | FailedTrial) -> None:
        self._trials += 1
        self._failed += isinstance(trial, FailedTrial)
        self._advance()

    def race(self, race: Race, again: bool) -> None:
        line = Line(race)
        if again:
            self._label = f"racing again: {race.workload.label}"
        name = f"{race.workload.label} {race.recipe}, raced again" if again else race.recipe
        self._console.print(
            f"    {name}: {line.measurement.median_ns / 1e3:.1f} µs, {line.speedup_text}",
            highlight=False, markup=False,
        )  # fmt: skip
        self._advance()

    def _advance(self) -> None:
        spent = time.monotonic() - self._start
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(
            self._task,
            completed=min(spent, self._budget),
            description=f"{self._label}: {self._trials} trials{failed}",
            left=f"{max(0, self._budget - spent):.0f} s left",
        )


class BenchProgress:
    """What is under way: a spinner on a terminal, one line a workload elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._status = console, console.status("starting")

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def stage(self, text: str) -> None:
        self._status.update(text)

    def workload(self, index: int, total: int, problem: Problem) -> None:
        text = f"[{index + 1}/{total}] {problem.workload.label}"
        self._status.update(f"\\{text}")  # the bracket is no markup
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)


class StudyProgress:
    """A bar of the evaluations on a terminal; one line a source elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def source(self, index: int, total: int, label: str) -> None:
        text = f"[{index + 1}/{total}] {label}"
        self._bar.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)

    def advance(self) -> None:
        self._bar.advance(self._task)
