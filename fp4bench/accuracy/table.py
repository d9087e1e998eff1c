"""The study for people: one table for each kind of data."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable

from fp4bench.present import Column, fitted
from fp4bench.trials import FormatAccuracy, decibels, effective_bits

LEGEND = (
    "bits: a value, scales counted; eff. bits: -½ log2 MSE; max/RMS: the largest error; GEMM: both\n"
    "operands quantized; *: the least error among recipes of as many whole bits"
)


@dataclass(frozen=True)
class Line:
    """One recipe on one kind of data: means over its tensors, and the largest error."""

    rows: Sequence[FormatAccuracy]

    @property
    def recipe(self) -> str:
        return self.rows[0].recipe

    @property
    def bits(self) -> float:
        return statistics.fmean(row.bits_per_value for row in self.rows)

    @property
    def relative_mse(self) -> float:
        return statistics.fmean(row.relative_mse for row in self.rows)

    @property
    def cells(self) -> tuple[str, ...]:
        output = statistics.fmean(10 ** (row.format_error_db / 10) for row in self.rows)
        return (
            f"{self.bits:.3f}", _three_digits(1e3 * self.relative_mse),
            f"{effective_bits(self.relative_mse):.2f}", f"{-decibels(self.relative_mse):.1f}",
            f"{statistics.fmean(row.cosine for row in self.rows):.5f}",
            _three_digits(max(row.max_error for row in self.rows)), f"{decibels(output):.1f}",
        )  # fmt: skip


def tables(rows: Iterable[FormatAccuracy], width: int) -> list[RichTable]:
    """Sorted by bits per value, then error; a star marks the least error of each whole number of
    bits."""
    kinds: dict[tuple[str, str | None], dict[str, list[FormatAccuracy]]] = defaultdict(dict)
    for row in rows:
        kinds[row.data, row.model].setdefault(row.recipe, []).append(row)
    return [
        _table(_title(data, model, found), [Line(own) for own in found.values()], width)
        for (data, model), found in kinds.items()
    ]


def _table(title: str, lines: list[Line], width: int) -> RichTable:
    lines.sort(key=lambda line: (line.bits, line.relative_mse))
    best: dict[int, Line] = {}
    for line in lines:
        least = best.setdefault(math.floor(line.bits), line)
        if line.relative_mse < least.relative_mse:
            best[math.floor(line.bits)] = line
    stars = ["*" if line is best[math.floor(line.bits)] else "" for line in lines]
    cells = list(zip(*(line.cells for line in lines), strict=True))
    numbers = (
        ("bits", 0), ("MSE ·10³", 0), ("eff. bits", 1), ("SQNR dB", 2), ("cosine", 4),
        ("max/RMS", 3), ("GEMM dB", 0),
    )  # fmt: skip
    columns = [Column("", stars), Column("recipe", [line.recipe for line in lines], fold=24)]
    columns += [
        Column(name, own, spare, "right") for (name, spare), own in zip(numbers, cells, strict=True)
    ]
    return fitted(columns, width, title)


def _title(data: str, model: str | None, found: dict[str, list[FormatAccuracy]]) -> str:
    most = max(found.values(), key=len)
    if model is not None:
        return f"{data} of {model}: means over {len(most)} tensors"
    sizes = ", ".join(f"{m}×{n}×{k}" for m, n, k in dict.fromkeys((r.m, r.n, r.k) for r in most))
    return f"{data}, M×N×K {sizes}"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".")
