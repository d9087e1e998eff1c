"""Compile the decode_bf16 search space for GPUs that need not be here; exit 1 on a failure.

    python scripts/compile_all.py --arch sm_80 --arch sm_90

Kernels that differ only in how programs are numbered compile alike and are built once: each
distinct tile, with one share of K and with several. A row is marked where a kernel needs more
shared memory than the variant's legality predicts, or spills more than --most-spills times.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.triton.decode_launch import decode_sources
from fp4kernels.triton.gemm import DecodeConfig, DecodeGemm, shared_bytes
from fp4kernels.triton.offline import Compiled, compile_kernel
from fp4kernels.workloads import GemmWorkload

SPACE = Path(__file__).parent.parent / "search_spaces" / "decode_bf16.toml"
DEVICES = {
    d.arch: d
    for d in (
        Device("cuda", "A100", "sm_80", 108, 40 << 20, 163 << 10, 80 << 30),
        Device("cuda", "RTX 4090", "sm_89", 128, 72 << 20, 99 << 10, 24 << 30),
        Device("cuda", "H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30),
        Device("cuda", "B200", "sm_100", 148, 126 << 20, 227 << 10, 180 << 30),
        Device("cuda", "RTX 5090", "sm_120", 170, 96 << 20, 99 << 10, 32 << 30),
    )
}
TOOLCHAIN = Toolchain(str(torch.__version__), str(triton.__version__), None, None, None)
SHAPES = tuple(GemmWorkload(m, 4096, 4096) for m in (1, 32, 64, 128, 4096))


@dataclass(frozen=True)
class Built:
    """One compiled configuration, or why there is none."""

    config: DecodeConfig
    recipe: Recipe
    device: Device
    seconds: float
    gemm: Compiled | None
    error: str = ""

    def problem(self, most_spills: int) -> str:
        if self.gemm is None:
            return self.error
        predicted = shared_bytes(self.config, self.recipe, SHAPES[0], self.device)
        if self.gemm.shared_bytes > predicted:
            return f"predicted {predicted} bytes of shared memory"
        return "spills" if self.gemm.spills > most_spills else ""

    def row(self, most_spills: int) -> list[str]:
        found = ["-"] * 3
        if self.gemm is not None:
            numbers = (self.gemm.registers, self.gemm.spills, self.gemm.shared_bytes)
            found = [str(number) for number in numbers]
        problem = self.problem(most_spills)
        return [
            self.device.arch, self.recipe.name, self.config.label, *found,
            f"{self.seconds:.1f}", problem,
        ]  # fmt: skip


def kernels(recipe: Recipe, device: Device, effort: str) -> dict[DecodeConfig, GemmWorkload]:
    """The legal configurations of typical shapes, each distinct code once, and its shape."""
    space, variant = tomllib.loads(SPACE.read_text())[effort], DecodeGemm()
    found: dict[DecodeConfig, GemmWorkload] = {}
    for shape in SHAPES:
        for values in itertools.product(*space.values()):
            config = DecodeConfig(**dict(zip(space, values, strict=True)))
            if variant.illegal(config, recipe, shape, device, TOOLCHAIN) is None:
                config = replace(config, group_m=8, split_k=min(config.split_k, 2))
                found.setdefault(config, shape)
    return found


def compile_all(arches: list[str], recipes: list[str], effort: str) -> Iterator[tuple[int, Built]]:
    """Yields the number of builds in all, and each one."""
    work = [
        (config, shape, RECIPES[name], DEVICES[arch])
        for arch, name in itertools.product(arches, recipes)
        for config, shape in kernels(RECIPES[name], DEVICES[arch], effort).items()
    ]
    for config, shape, recipe, device in work:
        start = time.perf_counter()
        try:
            sources = decode_sources(config, recipe, shape)
            gemm, *_ = (compile_kernel(source, device.compute_capability) for source in sources)
            error = ""
        except BuildError as failure:
            gemm, error = None, str(failure)
        seconds = time.perf_counter() - start
        yield len(work), Built(config, recipe, device, seconds, gemm, error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", action="append", choices=[*DEVICES], help="default: sm_80, sm_90")
    parser.add_argument("--recipe", action="append", choices=[*RECIPES], help="default: all")
    parser.add_argument("--effort", choices=("quick", "full"), default="quick")
    parser.add_argument("--most-spills", type=int, default=32)
    arguments = parser.parse_args()

    console = Console(width=max(Console().width, 150))
    title = f"decode_bf16, Triton {triton.__version__}"
    columns = ["arch", "recipe", "config", "registers", "spills", "shared", "seconds", "problem"]
    table = Table(*columns, title=title)
    bad = 0
    description = TextColumn("{task.description}")
    with Progress(description, MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("compiling", total=None)
        builds = compile_all(
            arguments.arch or ["sm_80", "sm_90"], arguments.recipe or [*RECIPES], arguments.effort
        )
        for total, built in builds:
            bad += bool(built.problem(arguments.most_spills))
            table.add_row(*built.row(arguments.most_spills))
            bar.update(task, total=total, advance=1, description=built.device.arch)
    console.print(table)
    console.print(f"{table.row_count} kernels, {bad} with a problem")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
