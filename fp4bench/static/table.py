"""Predictions as tables: one for each workload and recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from fp4bench.static.rows import PredictedTime

SHOWN = 8  # of a workload and recipe, and its default
LEGEND = (
    "PREDICTION: nothing ran, and no time was measured. Compiled for the board, then a roofline with "
    "occupancy, waves and pipeline depth. bound by: what takes longest; held: programs that fit on a "
    "core; occupied: its warps; of limit: the roofline's time over this."
)


def tables(groups: Iterable[Sequence[PredictedTime]]) -> Iterable[Table]:
    for group in groups:
        yield _table(group)


def _table(group: Sequence[PredictedTime]) -> Table:
    first = group[0]
    title = (
        f"PREDICTION for {first.device.name}: {first.workload.label} {first.candidate.recipe}, "
        f"{len(group)} configs"
    )
    table = Table(
        title=title, title_justify="left", width=None, box=None, padding=(0, 2, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    columns = (
        "#", "kernel", "config", "µs", "bound by", "regs", "held", "occupied", "waves", "of limit",
    )  # fmt: skip
    for name in columns:
        left = name in ("kernel", "config", "bound by")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "config")
    for place, row in enumerate(group, 1):
        if place <= SHOWN or row.default:
            table.add_row(f"{place}", *_cells(row))
    return table


def _cells(row: PredictedTime) -> list[str]:
    config = row.candidate.config.label
    return [
        row.candidate.variant,
        f"{config} (default)" if row.default else config,
        f"{row.predicted_ns / 1e3:.1f}",
        row.bound_by,
        f"{row.registers}" + (" spilled" if row.spills else ""),
        f"{row.resident}",
        f"{row.occupancy:.0%}",
        f"{row.waves:.2f}",
        f"{row.share_of_limit:.0%}",
    ]
