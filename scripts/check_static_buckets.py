"""How much an M between two tuned sizes of a model loses against tuning it, by the static model.

    python scripts/check_static_buckets.py --board h100 --recipe mxfp4

Every (N, K) of the preset, at every M below. Exit 1 if one loses more than 10%. A prediction: nothing is
measured; check_buckets.py does that on a device.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402

from fp4bench.boards import BOARDS  # noqa: E402
from fp4bench.static.buckets import Buckets  # noqa: E402
from fp4bench.workloads import from_preset  # noqa: E402
from fp4kernels.devices import Toolchain  # noqa: E402
from fp4kernels.workloads import GemmWorkload  # noqa: E402

BETWEEN = (2, 3, 8, 12, 24, 33, 48, 96, 160, 192, 384, 700, 1500, 2048, 3000)
ALLOWED = 1.10


def main(
    board: Annotated[list[str] | None, typer.Option()] = None,
    recipe: Annotated[list[str] | None, typer.Option()] = None,
    preset: str = "llama-3.1-8b",
    triton: str = "3.9.0",
) -> None:
    """Predict, print, judge."""
    works = [problem.gemm for problem in from_preset(preset, None)]
    tuned, worst = sorted({work.m for work in works}), 1.0
    for name in board or ["h100", "b200"]:
        for how in recipe or ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]:
            for n, k in sorted({(work.n, work.k) for work in works}):
                of = Buckets(BOARDS[name], Toolchain("", triton), how, GemmWorkload(1, n, k), tuned)
                losses = {m: of.loss(m) for m in BETWEEN}
                worst = max(worst, *losses.values())
                shown = "  ".join(f"{m}: {loss:.3f}" for m, loss in losses.items())
                print(f"{name} {how} {n}x{k}  {shown}", flush=True)
    print(f"worst {worst:.3f}x, allowed {ALLOWED}x; tuned at {tuned}")
    raise SystemExit(worst > ALLOWED)


if __name__ == "__main__":
    typer.run(main)
