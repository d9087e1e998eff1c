"""How much an M between two tuned sizes of a model loses against tuning it, by the static model.

    python scripts/check_static_buckets.py --board h100 --recipe mxfp4

Every (N, K) of the preset, at every M below; prints what loses more than 10%, and ends with 1 if
anything does. A prediction: nothing is measured; check_buckets.py does that on a device.
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

SMALL = (2, 3, 4, 6, 8, 12, 20, 24, 28, 40, 48, 56, 80, 96, 112, 160, 192, 224)
BETWEEN = (*SMALL, *range(320, 4097, 64))
ALLOWED = 1.10


def main(
    board: Annotated[list[str] | None, typer.Option()] = None,
    recipe: Annotated[list[str] | None, typer.Option()] = None,
    preset: str = "llama-3.1-8b",
    m: Annotated[str, typer.Option(help="tuned sizes, 1,16,...; default: the preset's")] = "",
    triton: str = "3.9.0",
) -> None:
    """Predict, print, judge."""
    works = [problem.gemm for problem in from_preset(preset, None)]
    tuned, worst = sorted(map(int, m.split(","))) if m else sorted({work.m for work in works}), 1.0
    over, judged = 0, 0
    for name in board or ["h100", "b200"]:
        for how in recipe or ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]:
            for n, k in sorted({(work.n, work.k) for work in works}):
                of = Buckets(BOARDS[name], Toolchain("", triton), how, GemmWorkload(1, n, k), tuned)
                losses = {between: of.loss(between) for between in BETWEEN}
                worst = max(worst, *losses.values())
                many = {between: loss for between, loss in losses.items() if loss > ALLOWED}
                over, judged = over + len(many), judged + len(losses)
                shown = "  ".join(f"{between}: {loss:.3f}" for between, loss in many.items())
                print(f"{name} {how} {n}x{k}  {shown}", flush=True)
    print(f"{over} of {judged} lose more than {ALLOWED}x, at worst {worst:.3f}x; tuned at {tuned}")
    raise SystemExit(worst > ALLOWED)


if __name__ == "__main__":
    typer.run(main)
