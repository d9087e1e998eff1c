"""Proofs as tables: one for each architecture, a row for each kernel, recipe and M."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from rich.table import Table

from fp4bench.proof.rows import BuiltProof, FailedProof, Proof
from fp4kernels.workloads import GemmWorkload

MEMORY = ("global", "shared", "local")
LEGEND = (
    "regs: a thread; spills: accesses to local memory; shared: bytes of a program; mma, mem (global, "
    "shared, local) and rest: instructions in the first kernel's code, not of one pass through its loop; "
    "per FP4: instructions of that pass for each FP4 weight, but for MMA, loads and barriers. "
    "Compiled only: nothing ran, and no time was measured."
)


def tables(rows: Sequence[Proof], width: int) -> Iterable[Table]:
    for arch, group in itertools.groupby(rows, lambda row: row.arch):
        yield _table(arch, list(group), width)


def _table(arch: str, rows: Sequence[Proof], width: int) -> Table:
    refused = {row.variant: row.refused for row in rows if row.refused}
    title = f"{arch}, Triton {rows[0].toolchain.triton}"
    notes = [f"compiled, but not for use: {name} {why}" for name, why in refused.items()]
    note = "\n".join(notes) or None
    table = Table(
        title=title, caption=note, title_justify="left", caption_justify="left", width=None,
        box=None, padding=(0, 2, 0, 0), pad_edge=False,
    )  # fmt: skip
    wide = width >= 100
    table.add_column("recipe", no_wrap=True)
    table.add_column("kernel", no_wrap=True)
    products = all(isinstance(row.workload, GemmWorkload) for row in rows)
    table.add_column("M" if products else "workload", justify="right", no_wrap=True)
    table.add_column("config" if wide else "tile", no_wrap=True)
    for name in ("regs", "spills", "shared", "mma", "mem", "rest", "per FP4"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("matrix instructions", overflow="fold")
    for (recipe, kernel, size), group in itertools.groupby(
        rows, lambda row: (row.recipe, row.variant, _size(row))
    ):
        table.add_row(recipe, kernel, size, *_cells(list(group)))
    return table


def _size(row: Proof) -> str:
    work = row.workload
    return str(work.m) if isinstance(work, GemmWorkload) else work.label


def _cells(rows: Sequence[Proof]) -> list[str]:
    built = [row for row in rows if isinstance(row, BuiltProof)]
    label = _tile(rows[0].config) if len(rows) == 1 else f"{len(rows)} configs"
    failed = [row for row in rows if isinstance(row, FailedProof)]
    if not built:
        return [label, *["-"] * 7, f"failed: {failed[0].status}"]
    code = [row.gemm for row in built]
    mma = [kernel.instructions.get("mma", 0) for kernel in code]
    memory = [sum(kernel.instructions.get(kind, 0) for kind in MEMORY) for kernel in code]
    rest = [
        sum(kernel.instructions.values()) - a - b
        for kernel, a, b in zip(code, mma, memory, strict=True)
    ]
    numbers = (
        [kernel.registers for kernel in code],
        [sum(kernel.spills for kernel in row.code) for row in built],
        [kernel.shared_bytes for kernel in code],
        mma, memory, rest,
    )  # fmt: skip
    kinds = sorted({short(kind) for kernel in code for kind in kernel.mma_kinds})
    words = [*(kinds or ["none"]), *([f"{len(failed)} failed"] if failed else [])]
    loops = [kernel.loop.per_value for kernel in code if kernel.loop is not None]
    return [label, *map(_range, numbers), _decimals(loops), ", ".join(words)]


def short(kind: str) -> str:
    """A matrix instruction without what says neither shape nor type."""
    kind = kind.replace("tcgen05.mma.cta_group::1", "tcgen05.mma")
    return re.sub(r"\.(sync|aligned|row|col|mma_async)(?=\.|$)", "", kind)


def _tile(config: dict[str, int]) -> str:
    blocks = [str(value) for name, value in config.items() if name.startswith("block_")]
    return "×".join(blocks) or " ".join(f"{name}={value}" for name, value in config.items())


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _decimals(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}-{high}"
