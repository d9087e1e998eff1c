"""MXFP4 and NVFP4 on this CPU beside torch bf16, kernel alone and end to end, in one run.

    python scripts/check_marks.py --n 4096 --k 4096

"kernel" has both operands quantized already; "end to end" is fp4kernels.linear, from bf16
activations to bf16 output with their quantization timed. Exit 1 if a mark of MXFP4 is missed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the measuring process of a tune has it

import torch  # noqa: E402
import typer  # noqa: E402

import fp4kernels  # noqa: E402
from fp4bench import telemetry, timing  # noqa: E402
from fp4bench.baselines import BASELINES  # noqa: E402
from fp4bench.clocks import Call  # noqa: E402
from fp4bench.operands import Operands  # noqa: E402
from fp4bench.racing import Ratio, paired_ratio  # noqa: E402
from fp4bench.trials import REFERENCE  # noqa: E402
from fp4bench.workloads import from_shapes  # noqa: E402
from fp4kernels.devices import probe_device, probe_toolchain  # noqa: E402
from fp4kernels.recipes import recipe as recipe_named  # noqa: E402
from fp4kernels.registry import default_candidate, variant  # noqa: E402

SECONDS = 4.0
# (M, cache, what) → the least ratio to torch bf16 that MXFP4 must reach
MARKS = {
    (512, "cold", "kernel"): 1.5, (512, "cold", "end to end"): 1.3,
    (1, "warm", "kernel"): 8.0, (1, "cold", "kernel"): 3.0,
}  # fmt: skip


def main(n: int = 4096, k: int = 4096) -> None:
    """Race the untuned kernels with torch bf16."""
    missed = 0
    for m, cache in ((1, "warm"), (1, "cold"), (8, "cold"), (512, "cold")):
        for recipe in ("mxfp4", "nvfp4"):
            for what, ratio in race(f"{m}x{n}x{k}", cache, recipe).items():
                mark = MARKS.get((m, cache, what)) if recipe == "mxfp4" else None
                missed += mark is not None and ratio.middle < mark
                aim = f", mark {mark}" if mark else ""
                print(f"M={m} {cache} {recipe} {what}: {ratio.middle:.2f}x "
                      f"[{ratio.low:.2f}, {ratio.high:.2f}] torch bf16{aim}", flush=True)  # fmt: skip
    raise SystemExit(missed > 0)


def race(shape: str, cache: str, recipe: str) -> dict[str, Ratio]:
    """How many times faster than torch bf16, paired."""
    (problem,) = from_shapes([shape])
    where, toolchain = probe_device("cpu"), probe_toolchain("cpu")
    torch.set_num_threads(where.cores)
    policy = timing.default_policy("cpu", cache)
    operands, how = Operands(problem, where, seed=0), recipe_named(recipe)
    candidate = default_candidate(problem.gemm, how, where, toolchain)
    kernel = variant(candidate.variant)
    launch = kernel.build(candidate.config, how, where, toolchain)
    alone = operands.calls(launch, kernel.layout, how, policy)
    weights = [call.args[1] for call in alone.calls]  # type: ignore[attr-defined]
    whole = timing.Operation([_linear(operands, w, recipe) for w in weights], "cpu", policy)
    baseline = operands.baseline_calls(BASELINES[REFERENCE], policy)
    dense, *ours = timing.interleaved(
        [baseline, alone, whole], telemetry.monitor(where), SECONDS, contenders=3
    )
    names = ("kernel", "end to end")
    return {name: paired_ratio(dense, mine) for name, mine in zip(names, ours, strict=True)}


def _linear(operands: Operands, w: fp4kernels.Packed, recipe: str) -> Call:
    layout = fp4kernels.Layout.PANEL16.value
    held = fp4kernels.QTensor(w, recipe, operands.weight.shape, torch.bfloat16, layout)
    return lambda: fp4kernels.linear(operands.activations, held)


if __name__ == "__main__":
    typer.run(main)
