"""Results as tables for people, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table as RichTable

from fp4bench.doctor import Ability
from fp4bench.summary import Line
from fp4bench.tuner import Outcome


def results_table(lines: Sequence[Line]) -> RichTable:
    """The table of a tune: a tie keeps the default, below 1.00× is slower than torch's bf16."""
    table = RichTable(
        title="FP4 GEMM alone, both operands quantized before; M×N×K, times in µs",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("recipe", no_wrap=True)
    for name in ("default", "tuned", "speed-up [95%]", "vs bf16", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        ratio, steady = line.against_bf16.middle, line.against_bf16.high < 2 * line.against_bf16.low
        table.add_row(
            line.race.workload.label,
            line.race.recipe,
            f"{line.race.default.median_ns / 1e3:.1f}",
            f"{line.measurement.median_ns / 1e3:.1f}",
            line.speedup_text,
            f"[red]{ratio:.2f}×[/]" if ratio < 1 else f"{ratio:.2f}×" if steady else "unsteady",
            f"{line.race.accuracy.format_error_db:.1f} dB",
        )
    return table


def abilities_table(abilities: Sequence[Ability]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD)
    for name in ("kernel", "recipe", "runs here", "proven by"):
        table.add_column(name, no_wrap=True)
    table.add_column("why not")
    for ability in abilities:
        runs = f"yes, {ability.badge}" if ability.badge else "no"
        table.add_row(ability.variant, ability.recipe, runs, ability.proof, ability.reason or "")
    return table


def outcome_text(outcome: Outcome) -> str:
    """One line on what the run did, and one for each thing that went wrong."""
    failures = ", ".join(f"{n} {status.value}" for status, n in outcome.failures.items())
    lines = [f"{outcome.tried} trials measured, {outcome.reused} reused from earlier runs"
             + (f" ({failures})" if failures else "")]  # fmt: skip
    lines += outcome.problems
    if outcome.unreached:
        names = ", ".join(problem.workload.label for problem in outcome.unreached)
        lines.append(f"the budget ended before: {names}; run again to go on from here")
    if outcome.interrupted:
        lines.append("interrupted: what was measured is kept; run again to go on from here")
    return "\n".join(lines)
