"""Results as tables for people, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as RichTable

from fp4bench.doctor import Ability
from fp4bench.summary import Line
from fp4bench.tuner import Outcome


def results_table(lines: Sequence[Line]) -> RichTable:
    """The table of a tune."""
    table = RichTable(title="FP4 GEMM, M×N×K; times are medians in µs", title_justify="left")
    table.add_column("workload")
    table.add_column("recipe")
    for name in ("default", "tuned", "speed-up", "vs torch bf16", "format error"):
        table.add_column(name, justify="right")
    for line in lines:
        ratio = line.against_bf16.middle
        table.add_row(
            line.race.workload.label,
            line.race.recipe,
            f"{line.race.default.median_ns / 1e3:.1f}",
            f"{line.measurement.median_ns / 1e3:.1f}",
            line.speedup_text,
            f"{ratio:.2f}×" + (" slower" if ratio < 1 else ""),
            f"{line.race.accuracy.format_error_db:.1f} dB",
            end_section=line is lines[-1],
        )
    return table


def abilities_table(abilities: Sequence[Ability]) -> RichTable:
    table = RichTable()
    for name in ("kernel", "recipe", "runs here", "proven by", "why not"):
        table.add_column(name)
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
