"""The Triton quantizers on a GPU: their bandwidth beside a device copy, sampled in turn.

    python scripts/check_quantize.py --out DIR
    python scripts/check_quantize.py --offline

Bytes that a quantizer must move over its time, as a share of what a copy of the same values attains.
Writes quantize.json; exit 1 where one misses its mark: 85% of the copy in one pass, 75% with a Hadamard
transform. That the bytes are the reference's is `pytest -m gpu tests/test_triton_quantize.py
tests/test_fused.py`. Offline the same kernels are compiled for GPUs that are not here: registers, spills
and instructions; exit 1 where one spills.
"""

from __future__ import annotations

import functools
import itertools
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
from fp4kernels.fusion import (  # noqa: E402
    Philox,
    RmsNorm,
    SwiGlu,
    Target,
    quantize_fused,
    quantize_with_transpose,
)
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule, Transform  # noqa: E402

SIZE, COPIES = 8192, 2  # each of 128 MiB, beyond any last-level cache
SECONDS = 3.0
ONE_PASS, ROTATED = 0.85, 0.75
MX, NV = RECIPES["mxfp4"], RECIPES["nvfp4"]


OFFLINE = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")


@dataclass(frozen=True)
class Case:
    name: str
    recipe: Recipe
    given_amax: bool = True
    mark: float | None = ONE_PASS
    prologue: str = "none"  # or rms, swiglu
    transposed: Recipe | None = None


HADAMARD_16 = replace(NV, transform=Transform("hadamard-16"))
CASES = (
    Case("mxfp4", MX),
    Case("nvfp4, given amax", NV),
    Case("nvfp4, own amax", NV, given_amax=False, mark=None),
    Case("nvfp4, four over six", replace(NV, scale_rule=ScaleRule("four-six-mse")), mark=None),
    Case("mxfp4, stochastic", replace(MX, rounding=Rounding.STOCHASTIC), mark=None),
    Case("mxfp4, hadamard-32", replace(MX, transform=Transform("hadamard-32")), mark=ROTATED),
    Case("nvfp4, hadamard-16", HADAMARD_16, mark=ROTATED),
    Case("nvfp4, hadamard-128", replace(NV, transform=Transform("hadamard-128")), mark=None),
    Case("mxfp4-row-14", RECIPES["mxfp4-row-14"], mark=None),
    Case("mxfp4 of rms_norm", MX, mark=None, prologue="rms"),
    Case("nvfp4 of rms_norm", NV, mark=None, prologue="rms"),
    Case("nvfp4 of rms_norm, own amax", NV, given_amax=False, mark=None, prologue="rms"),
    Case("mxfp4-row-14 of rms_norm", RECIPES["mxfp4-row-14"], mark=None, prologue="rms"),
    Case("mxfp4 of swiglu", MX, mark=None, prologue="swiglu"),
    Case("nvfp4 of swiglu", NV, mark=None, prologue="swiglu"),
    Case("mxfp4 and transpose", MX, mark=None, transposed=MX),
    Case("nvfp4 and transpose, hadamard-16", NV, mark=None, transposed=HADAMARD_16),
    Case("mxfp4 of swiglu and transpose", MX, mark=None, prologue="swiglu", transposed=MX),
)


def main(
    out: Annotated[Path | None, typer.Option(help="folder that gets quantize.json")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="compile only; needs no GPU")] = False,
) -> None:
    """Measure on the GPU at hand, or compile for those that are not."""
    if offline:
        raise SystemExit(not compiled())
    device = probe_device(None)
    if device.kind != "cuda" or out is None:
        raise SystemExit("give --out and a GPU, on which the quantizers run, or --offline")
    out.mkdir(parents=True, exist_ok=True)
    raise SystemExit(not measure(device, out))


def compiled() -> bool:
    """Whether no case spills on any GPU."""
    from fp4kernels.triton.both_launch import both_sources  # imports triton
    from fp4kernels.triton.offline import compile_for
    from fp4kernels.triton.quantize_launch import quantize_sources

    x, good = torch.empty((SIZE, SIZE), dtype=torch.bfloat16, device="meta"), True
    for arch, case in itertools.product(OFFLINE, CASES):
        converts, prologue = arch in ("sm_100", "sm_120"), prologue_of(case, x)
        if case.transposed is None:
            sources = quantize_sources(
                x.shape, x.dtype, case.recipe, prologue=prologue, converts=converts
            )
        else:
            assert not isinstance(prologue, RmsNorm)
            sources = both_sources(
                (SIZE, SIZE), x.dtype, (Target(case.recipe), Target(case.transposed)),
                prologue=prologue, converts=converts,
            )  # fmt: skip
        for source in sources:
            built = compile_for(source, arch)
            good &= built.spills == 0
            print(f"{arch:7} {case.name:36} {built.name:22} {built.registers:4} registers "
                  f"{built.spills:4} spills {built.shared_bytes:6} shared "
                  f"{sum(built.instructions.values()):5} instructions", flush=True)  # fmt: skip
    return good


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
    chance = None if case.recipe.rounding is Rounding.NEAREST_EVEN else Philox(1)
    return [call(case, x, other, chance) for x, other in zip(xs, xs[::-1], strict=True)]


def call(case: Case, x: torch.Tensor, other: torch.Tensor, chance: Philox | None) -> Call:
    given = case.given_amax and case.recipe.format.tensor_scale
    # a little above what the transform may make of the largest value, as a delayed amax would be
    amax = x.abs().amax().float() * 1.5 if given else None
    target, prologue = Target(case.recipe, amax, chance), prologue_of(case, other)
    if case.transposed is None:
        return functools.partial(quantize_fused, x, target, prologue=prologue)
    assert not isinstance(prologue, RmsNorm)
    transposed = Target(case.transposed, amax, chance)
    return functools.partial(quantize_with_transpose, x, target, transposed, prologue=prologue)


def prologue_of(case: Case, other: torch.Tensor) -> RmsNorm | SwiGlu | None:
    if case.prologue == "rms":
        return RmsNorm(other[0])
    return SwiGlu(other) if case.prologue == "swiglu" else None


def moved(case: Case, x: torch.Tensor) -> float:
    """Bytes read and written; a first pass for the amax reads all values once more."""
    passes = 1 if case.given_amax or not case.recipe.format.tensor_scale else 2
    read = passes * x.nbytes * (2 if case.prologue == "swiglu" else 1)
    recipes = [case.recipe] if case.transposed is None else [case.recipe, case.transposed]
    return read + sum(recipe.format.bits(*x.shape) for recipe in recipes) / 8


if __name__ == "__main__":
    typer.run(main)
