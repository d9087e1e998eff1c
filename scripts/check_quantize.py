"""The Triton quantizers on a GPU: their bandwidth beside a device copy, sampled in turn.

    python scripts/check_quantize.py --out DIR

Bytes that a quantizer must move over its time, as a share of what a copy of the same values attains.
Writes quantize.json; exit 1 where one misses its mark: 85% of the copy in one pass, 75% with a Hadamard
transform. That the bytes are the reference's is `pytest -m gpu tests/test_triton_quantize.py`.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fp4bench import telemetry  # noqa: E402
from fp4bench.clocks import Call  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4bench.timing import Operation, interleaved  # noqa: E402
from fp4bench.trials import Policy  # noqa: E402
from fp4kernels.devices import Device, probe_device  # noqa: E402
from fp4kernels.philox import Philox  # noqa: E402
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule, Transform  # noqa: E402

SIZE, COPIES = 8192, 2  # each of 128 MiB, beyond any last-level cache
SECONDS = 3.0
ONE_PASS, ROTATED = 0.85, 0.75
MX, NV = RECIPES["mxfp4"], RECIPES["nvfp4"]


@dataclass(frozen=True)
class Case:
    name: str
    recipe: Recipe
    given_amax: bool = True
    mark: float | None = ONE_PASS


CASES = (
    Case("mxfp4", MX),
    Case("nvfp4, given amax", NV),
    Case("nvfp4, own amax", NV, given_amax=False, mark=None),
    Case("nvfp4, four over six", replace(NV, scale_rule=ScaleRule("four-six-mse")), mark=None),
    Case("mxfp4, stochastic", replace(MX, rounding=Rounding.STOCHASTIC), mark=None),
    Case("mxfp4, hadamard-32", replace(MX, transform=Transform("hadamard-32")), mark=ROTATED),
    Case("nvfp4, hadamard-16", replace(NV, transform=Transform("hadamard-16")), mark=ROTATED),
)


def main(out: Annotated[Path, typer.Option(help="folder that gets quantize.json")]) -> None:
    """Measure on the GPU at hand."""
    device = probe_device(None)
    if device.kind != "cuda":
        raise SystemExit("the Triton quantizers run on a GPU, but there is none here")
    out.mkdir(parents=True, exist_ok=True)
    raise SystemExit(not measure(device, out))


def measure(device: Device, out: Path) -> bool:
    """Whether every case meets its mark."""
    xs = [torch.randn(SIZE, SIZE, device="cuda").bfloat16() for _ in range(COPIES)]
    policy = Policy(launch="graph", cache="cold")
    target = torch.empty_like(xs[0])
    copy: list[Call] = [functools.partial(target.copy_, x) for x in xs]
    every = [copy, *(calls(case, xs) for case in CASES)]
    operations = [Operation(each, device.kind, policy) for each in every]
    seconds = SECONDS * len(every)
    base, *found = interleaved(operations, telemetry.monitor(device), seconds, len(every))
    rows, good = [], True
    shown = Table("quantizer", "GB/s", "of copy", "mark", box=None)
    for case, measured in zip(CASES, found, strict=True):
        size = moved(case, xs[0])
        times_faster = paired_ratio(base, measured).middle
        share = times_faster * size / (2 * xs[0].nbytes)
        good &= case.mark is None or share >= case.mark
        rows.append({"case": case.name, "ns": measured.median_ns, "bytes": size,
                     "copy_ns": base.median_ns, "of_copy": share, "mark": case.mark})  # fmt: skip
        mark = "" if case.mark is None else f"{case.mark:.0%}"
        shown.add_row(case.name, f"{size / measured.median_ns:.0f}", f"{share:.1%}", mark)
    Console(stderr=True).print(shown)
    values = {"device": device.name, "arch": device.arch, "size": SIZE, "rows": rows}
    (out / "quantize.json").write_text(json.dumps(values, indent=1) + "\n")
    return good


def calls(case: Case, xs: list[torch.Tensor]) -> list[Call]:
    from fp4kernels.triton.quantize_launch import quantize  # imports triton

    chance = None if case.recipe.rounding is Rounding.NEAREST_EVEN else Philox(1)
    given = case.given_amax and case.recipe.format.tensor_scale
    # a little above what the transform may make of the largest value, as a delayed amax would be
    amaxes = [x.abs().amax().float() * 1.5 if given else None for x in xs]
    return [
        functools.partial(quantize, x, case.recipe, amax, chance=chance)
        for x, amax in zip(xs, amaxes, strict=True)
    ]


def moved(case: Case, x: torch.Tensor) -> float:
    """Bytes read and written; a first pass for the amax reads all values once more."""
    passes = 1 if case.given_amax or not case.recipe.format.tensor_scale else 2
    return passes * x.nbytes + case.recipe.format.bits(*x.shape) / 8


if __name__ == "__main__":
    typer.run(main)
