"""Results as tables for people, on a terminal: what does not fit is left out or folded, not cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fp4bench.attainment import Entry, entries
from fp4bench.compare import Pair
from fp4bench.doctor import Ability
from fp4bench.ledger import Outcome
from fp4bench.summary import Line
from fp4bench.trials import BANDWIDTHS, BATCH_INVARIANT, END_TO_END, PEAKS, Limits, Race
from fp4kernels.attention.workload import AttentionWorkload

if TYPE_CHECKING:
    import pandas as pd

PRODUCT = "M×N×K, times in µs"
ATTENTION = "batch×keys heads/kv heads×D, times in µs"
_FOLD = {"config": 24, "reason": 40, "tensor": 24}  # of a listing


@dataclass(frozen=True)
class Column:
    """`spare`: 0 stays, the highest is left out first. `fold`: the width down to which a text may be
    folded over several lines; 0 for what may not."""

    name: str
    cells: Sequence[str]
    spare: int = 0
    align: Literal["left", "right"] = "left"
    fold: int = 0
    red: Sequence[bool] = ()


def fitted(columns: Sequence[Column], width: int, title: str | None = None) -> RichTable:
    """A table of as many columns as `width` takes."""
    kept = list(columns)
    while _width(kept) > width and any(column.spare for column in kept):
        kept.remove(max(kept, key=lambda column: column.spare))
    return _table(kept, title, tight=_width(kept) > width)


def results_table(lines: Sequence[Line], width: int = 120, most: Limits | None = None) -> RichTable:
    """The table of a tune of one operation: a tie keeps the default, below 1.00× is slower than
    torch's bf16."""
    shares = [line.share(most) for line in lines]
    races = [line.race for line in lines]
    speed = [line.speedup_text.partition(" ") for line in lines]
    columns = (
        Column("workload", [race.workload.label for race in races]),
        Column("recipe", [race.recipe for race in races]),
        Column("default", [f"{race.default.median_ns / 1e3:.1f}" for race in races], 2, "right"),
        Column("tuned", [f"{x.measurement.median_ns / 1e3:.1f}" for x in lines], 0, "right"),
        Column("speed-up", [first for first, _, _ in speed], 0, "right"),
        Column("[95%]", [interval for _, _, interval in speed], 3),
        Column(
            "vs bf16",
            [_against_bf16(line) for line in lines],
            0,
            "right",
            red=[line.against_bf16.middle < 1 for line in lines],
        ),
        Column("of limit", ["" if x is None else f"{100 * x:.0f}%" for x in shares], 1, "right"),
        Column("error", [f"{r.accuracy.format_error_db:.1f} dB" for r in races], 1, "right"),
    )
    if not any(isinstance(race.workload, AttentionWorkload) for race in races):
        return fitted(columns, width, f"FP4 GEMM alone, both operands quantized before; {PRODUCT}")
    whole = Column("end to end", [_end_to_end(race) for race in races], 1, "right")
    title = f"FP4 attention alone, and with quantizing what is new; {ATTENTION}"
    return fitted((*columns, whole), width, title)


def bench_table(races: Sequence[Race], most: Limits | None, width: int) -> RichTable:
    """Default, tuned and baselines of each workload under each policy, beside what is possible."""
    rows = [
        (race, entry)
        for race in races
        for entry in entries(race, most)
        if not (entry.role == "tuned" and race.tuned_values == race.default_values)
    ]
    seen: set[tuple[object, ...]] = set()
    kept = []
    for race, entry in rows:
        ours = entry.role in ("default", "tuned", BATCH_INVARIANT, END_TO_END)
        key = (race.workload, race.policy, race.recipe if ours else "", entry.role)
        if key not in seen:  # recipes of one run share their baselines
            seen.add(key)
            kept.append((race, entry, ours))
    kept.sort(key=lambda row: (row[0].workload.place, str(row[0].policy), not row[2]))
    policies = [f"{race.policy.cache} {race.policy.launch}" for race, _, _ in kept]
    columns = (
        Column("workload", [race.workload.label for race, _, _ in kept]),
        Column("policy", policies),
        Column("what", [f"{r.recipe} {e.role}" if ours else e.role for r, e, ours in kept]),
        Column("µs", [f"{e.measurement.median_ns / 1e3:.1f}" for _, e, _ in kept], 0, "right"),
        Column(
            "GFLOP/s", [f"{e.measurement.gflops(r.workload):.0f}" for r, e, _ in kept], 2, "right"
        ),
        Column("of limit", [_share(e) for _, e, _ in kept], 1, "right"),
        Column("vs bf16", [f"{e.against_bf16.middle:.2f}×" for _, e, _ in kept], 0, "right"),
        Column(
            "[95%]",
            [f"[{e.against_bf16.low:.2f}, {e.against_bf16.high:.2f}]" for _, e, _ in kept],
            3,
        ),
    )
    title = "one interleaved run; M×N×K, median times of the GEMM alone"
    if any(isinstance(race.workload, AttentionWorkload) for race in races):
        title = f"one interleaved run; {ATTENTION}, medians"
    return fitted(columns, width, title)


def limits_text(most: Limits) -> str:
    """The device's measured limits in two lines."""
    moved = {name: getattr(most, name) for name in BANDWIDTHS}
    done = {name: getattr(most, name) for name in PEAKS}
    lines = [
        "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in rates.items() if value)
        for rates in (moved, done)
    ]
    return (
        f"limits in GB/s: {lines[0]}\nin GFLOP/s: {lines[1]} (measured {most.time:%Y-%m-%d %H:%M})"
    )


def comparison_table(pairs: Sequence[Pair], width: int) -> RichTable:
    """B's time over A's: above 1.00× is slower."""
    races = [pair.a.race for pair in pairs]
    columns = [
        Column("workload", [race.workload.label for race in races]),
        Column("recipe", [race.recipe for race in races]),
        Column("role", [pair.role for pair in pairs]),
        Column("A", [f"{pair.a_ns / 1e3:.1f}" for pair in pairs], 2, "right"),
        Column("B", [f"{pair.b_ns / 1e3:.1f}" for pair in pairs], 2, "right"),
        Column("B/A", [f"{pair.ratio:.2f}×" for pair in pairs], 0, "right"),
        Column("[99%]", [f"[{pair.low:.2f}, {pair.high:.2f}]" for pair in pairs], 1),
        Column("verdict", [p.verdict for p in pairs], red=[p.regression for p in pairs]),
    ]
    devices, caches = [race.device.name for race in races], [race.policy.cache for race in races]
    for name, values in (("device", devices), ("cache", caches)):
        if len(set(values)) > 1:
            columns.insert(2, Column(name, values))
    return fitted(columns, width, "M×N×K, median times in µs")


def listing_table(data: pd.DataFrame, width: int, sort: str | None = None) -> RichTable:
    """Rows of evidence.frame; the column that they are sorted by is always there."""
    status = data["status"].fillna("") + (": " + data["reason"]).fillna("")
    names = {  # column → how far it can be spared
        "kind": 9, "role": 5, "shape": 0, "recipe": 0, "variant": 4, "config": 6,
        "median_us": 0, "low_us": 8, "high_us": 8, "gflops": 3, "format_error_db": 7,
        "data": 1, "tensor": 6, "bits_per_value": 2, "relative_mse": 0, "effective_bits": 5,
    }  # fmt: skip
    for name in ("device", "cache", "launch", "weights"):
        if data[name].nunique() > 1:
            names[name] = 2
    if sort is not None and sort != "status":
        names[sort] = 0
    columns = [
        Column(name, _cells(data[name]), spare, "right" if _numeric(data[name]) else "left",
               fold=_FOLD.get(name, 0))
        for name, spare in names.items()
        if name == sort or data[name].notna().any()
    ]  # fmt: skip
    if (status != "").any():
        columns.append(Column("status", [str(value) for value in status], fold=48))
    return fitted(columns, width)


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
    other = outcome.wall - outcome.compiling - outcome.measuring
    lines = [f"{outcome.tried} trials measured, {outcome.reused} reused from earlier runs"
             + (f" ({failures})" if failures else ""),
             f"{outcome.wall:.0f} s: {outcome.measuring:.0f} s measuring, "
             f"{outcome.compiling:.0f} s compiling, {max(0, other):.1f} s else"]  # fmt: skip
    lines += outcome.problems
    if outcome.unreached:
        names = ", ".join(problem.workload.label for problem in outcome.unreached)
        lines.append(f"the budget ended before: {names}; run again to go on from here")
    if outcome.interrupted:
        lines.append("interrupted: what was measured is kept; run again to go on from here")
    return "\n".join(lines)


def _table(columns: Sequence[Column], title: str | None, tight: bool) -> RichTable:
    table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in columns:
        table.add_column(
            Text(column.name), justify=column.align, overflow="fold",
            no_wrap=not (tight or column.fold),
        )  # fmt: skip
    for row, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        red = [bool(column.red) and column.red[row] for column in columns]
        table.add_row(*map(_text, cells, red))
    return table


def _width(columns: Sequence[Column]) -> int:
    """What a table needs, with its texts folded."""
    short = [
        Column(c.name, [cell[: c.fold] for cell in c.cells] if c.fold else c.cells) for c in columns
    ]
    wide = Console(width=10_000)
    return wide.measure(_table(short, None, tight=False)).maximum


def _end_to_end(race: Race) -> str:
    measured = race.baselines.get(END_TO_END)
    return "" if measured is None else f"{measured.median_ns / 1e3:.1f}"


def _share(entry: Entry) -> str:
    """How much of the binding limit is reached, and which it is."""
    if entry.share is None or entry.bound is None:
        return ""
    return f"{100 * entry.share:.0f}% {entry.bound.by}"


def _against_bf16(line: Line) -> str:
    ratio, steady = line.against_bf16.middle, line.against_bf16.high < 2 * line.against_bf16.low
    return f"{ratio:.2f}×" if ratio < 1 or steady else "unsteady"


def _text(cell: str, red: bool) -> Text:
    """As it is, no markup, without control characters."""
    plain = "".join(c if c.isprintable() else "�" for c in cell)
    return Text(plain, style="red" if red else "")


def _numeric(values: pd.Series[Any]) -> bool:
    import pandas as pd  # slow to import

    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _cells(values: pd.Series[Any]) -> list[str]:
    import pandas as pd

    def cell(value: Any) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return [cell(value) for value in values]
