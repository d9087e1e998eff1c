"""Run what is fused with the Triton quantizer under the interpreter; a child of test_fused.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Writes to stdout what it found wrong, as a JSON list, of each function here or those that it is
given the names of.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.fusion import quantize_fused
from fp4kernels.packing import Packed
from fp4kernels.philox import Philox
from fp4kernels.prologues import Prologue, RmsNorm, SwiGlu
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule, Transform
from fp4kernels.swizzle import swizzled
from fp4kernels.targets import Target
from fp4kernels.transforms import transformed
from fp4kernels.triton.both_launch import quantize_both
from fp4kernels.triton.quantize_launch import QuantizeConfig, quantize
from interpret_quantize import FORMATS, SMALL, differs, samples
from prologue_kernels import normal, row_factors, silu

MX, NV = RECIPES["mxfp4"], RECIPES["nvfp4"]
ROWS = [RECIPES[f"mxfp4-row-{window}"] for window in (14, 28)]
HOWS = [
    MX, NV, ROWS[0],
    replace(NV, scale_rule=ScaleRule.FOUR_SIX_MAE),
    replace(MX, scale_rule=ScaleRule.FLOOR_3_4, transform=Transform.HADAMARD_32),
    replace(NV, transform=Transform.HADAMARD_16),
    replace(NV, rounding=Rounding.STOCHASTIC, transform=Transform.HADAMARD_16),
    replace(ROWS[1], rounding=Rounding.STOCHASTIC, transform=Transform.HADAMARD_128),
]  # fmt: skip
BY_CHANCE = replace(NV, rounding=Rounding.STOCHASTIC)
TAKEN = [(how, torch.bfloat16) for how in HOWS] + [
    (how, dtype) for how in (MX, NV) for dtype in (torch.float16, torch.float32)
]
DEFAULT = QuantizeConfig()


def check(
    x: Tensor, recipe: Recipe, prologue: Prologue, config: QuantizeConfig = DEFAULT
) -> Iterator[str]:
    """Bit for bit the reference's of what this arithmetic makes of x; of some once more, swizzled."""
    y, _ = transformed(normal(x, recipe, prologue, config), recipe.transform)
    chance = None if recipe.rounding is Rounding.NEAREST_EVEN else Philox(5)
    wanted = reference.quantize(y, recipe, chance)
    ours = quantize(x, recipe, prologue=prologue, chance=chance, config=config)
    found = differs(ours, wanted)
    amax = y.abs().max() if recipe.format.tensor_scale and y.numel() else None
    if found is None and recipe in (MX, NV) and not y.isnan().any():
        ours = quantize(
            x, recipe, amax, prologue=prologue, chance=chance, swizzle=True, config=config
        )
        scales = swizzled(wanted.scales.reshape(-1, wanted.scales.shape[-1]))
        found = differs(ours, Packed(wanted.codes, scales, wanted.tensor_scale))
    if found:
        kind = type(prologue).__name__
        yield f"{kind} {recipe.name} {recipe.scale_rule} {tuple(x.shape)} {x.dtype}: {found}"


def inputs(rows: int, k: int, seed: int = 1) -> Tensor:
    """Rows of many sizes, one of zeros, one with -0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=generator)
    x *= torch.exp2(torch.linspace(-12, 12, rows)).unsqueeze(1)
    x[rows // 2], x[rows // 3, ::2] = 0.0, -0.0
    return x


def rms() -> Iterator[str]:
    weight = torch.randn(384, generator=torch.Generator().manual_seed(2))
    for recipe, dtype in TAKEN:
        yield from check(inputs(7, 384).to(dtype), recipe, RmsNorm(weight.to(dtype)))
    yield from check(inputs(7, 384).bfloat16(), NV, RmsNorm(weight, 1e-5), SMALL)
    for recipe, k in ((MX, 32), (NV, 48), (ROWS[0], 1056)):
        yield from check(inputs(3, k).half(), recipe, RmsNorm(torch.ones(k)))
    for recipe, k in ((NV, 16384 + 96), (ROWS[1], 16384 + 32)):  # in chunks
        yield from check(inputs(2, k).bfloat16(), recipe, RmsNorm(torch.ones(k)))
    x = inputs(8, 64).view(2, 4, 64)
    for bad in (x, x[:0], torch.where(x > 3, math.inf, x), torch.where(x > 3, math.nan, x)):
        for recipe in (NV, ROWS[0]):
            yield from check(bad, recipe, RmsNorm(torch.ones(64), 0.0 if bad is x[:0] else 1e-6))


def factors() -> Iterator[str]:
    """Of rows, within what RmsNorm says of them."""
    for k in (32, 96, 4096, 5120, 16384, 40000, 53248):
        norm = RmsNorm(torch.ones(k), 1e-6)
        for dtype in (torch.float32, torch.bfloat16):
            x = inputs(4, k, seed=k).to(dtype) + (k == 96)
            found = row_factors(x, MX, norm, DEFAULT).double()
            exact = (x.double().square().mean(-1, keepdim=True) + norm.eps).rsqrt()
            units = float(((found / exact - 1).abs() * 2**24).max())
            if not units <= math.log2(k) / 2 + 4 + k / 16384:
                yield f"K={k} of {dtype}: {units:.2f} units"


def swiglu() -> Iterator[str]:
    for recipe, dtype in TAKEN:
        gate, up = inputs(7, 384).to(dtype) * 0.1, inputs(7, 384, seed=3).to(dtype)
        yield from check(gate, recipe, SwiGlu(up))
        if recipe is NV:
            yield from check(torch.cat((gate, up), -1), recipe, SwiGlu())
    yield from check(gate.bfloat16(), NV, SwiGlu(up.bfloat16()), SMALL)
    gate, up = inputs(9, 48), inputs(9, 48, seed=3)  # rows of three blocks, an odd number of them
    yield from check(gate, NV, SwiGlu(up))
    yield from check(torch.cat((gate, up), -1).half(), NV, SwiGlu())
    turned = inputs(64, 9).T.view(3, 3, 64)  # not contiguous
    for gate in (turned, turned[:0], torch.where(turned > 3, math.inf, turned)):
        yield from check(gate, MX, SwiGlu(gate.flip(-1)))


def silus() -> Iterator[str]:
    """All numbers of 16 bits and some of 32, within what SwiGlu says of them."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    noise = torch.randn(1 << 16, generator=torch.Generator().manual_seed(4)) * 30
    for x in (every.view(torch.bfloat16).float(), every.view(torch.half).float(), noise):
        found, wide = silu(x), x.double()
        exact = wide / (1 + (-wide).exp())
        exact = torch.where(wide < -700, 0.0, exact).masked_fill(wide == -math.inf, math.nan)
        wrong = (found.double() - exact).abs() > 2.0**-17 * exact.abs() + 2.0**-119
        wrong |= found.isnan() != exact.isnan()
        wrong |= (found.signbit() != x.signbit()) & ~x.isnan() & (x > -80)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            yield f"silu({float(x[at])}) is not {float(found[at])}; {int(wrong.sum())} in all"


def rows() -> Iterator[str]:
    """Bytes and counts of the recipes whose scales are raised for the sake of their row."""
    generator = torch.Generator().manual_seed(6)
    spread = torch.randn(9, 66, 32, generator=generator)
    powers = torch.randint(-40, 5, (9, 66, 1), generator=generator).float()
    spread = (spread * torch.exp2(powers)).view(9, 2112)
    edges = torch.exp2(torch.arange(-32.0, 1)).repeat_interleave(32).view(1, -1)
    edges = edges * torch.tensor([[1.0], [1.5], [1.999], [2.0**-120], [2.0**120]])
    every = {"spread": spread, "edges": edges, "long": spread.view(1, -1)}
    cases = [*itertools.product(ROWS, every.items(), FORMATS[:1])]
    cases += [(ROWS[0], sample, FORMATS[0]) for sample in samples(32).items()]
    cases += [(ROWS[1], ("spread", spread), dtype) for dtype in FORMATS[1:]]
    for recipe, (what, x), dtype in cases:
        x, raised = x.to(dtype), torch.tensor(7)
        ours = quantize(x, recipe, raised=raised)
        found = differs(ours, reference.quantize(x, recipe))
        if found is None and raised != 7 + reference.count_raised(x, recipe):
            found = f"{raised - 7} raised, not {reference.count_raised(x, recipe)}"
        if found:
            yield f"{recipe.name}, {what}, {dtype}: {found}"
    if not reference.count_raised(spread, ROWS[1]):
        yield "no scale was raised"


def both() -> Iterator[str]:
    """A matrix and its transpose, each as alone."""
    turned = replace(NV, transform=Transform.HADAMARD_16)
    drawn = replace(turned, rounding=Rounding.STOCHASTIC)
    cases = [
        (160, 96, MX, MX, False),
        (288, 80, NV, turned, True),
        (16, 128, replace(MX, transform=Transform.HADAMARD_128), NV, True),
        (32, 48, replace(NV, rounding=Rounding.STOCHASTIC), drawn, False),
        (128, 64, MX, HOWS[3], False),
    ]
    for m, k, one, other, swizzle in cases:
        yield from check_both(inputs(m, k).bfloat16(), Target(one), Target(other), None, swizzle)
    x = inputs(32, 64)
    yield from check_both(x.half(), Target(MX), Target(NV), SwiGlu(x.half().flip(0)))
    amax = torch.tensor(2.0**13)
    yield from check_both(x, Target(NV, amax), Target(turned, amax * 4), None)


def check_both(
    x: Tensor, target: Target, transposed: Target, prologue: SwiGlu | None, swizzle: bool = False
) -> Iterator[str]:
    y = x if prologue is None else normal(x, target.recipe, prologue, DEFAULT)
    found, targets = [], []
    for each, values in ((target, y), (transposed, y.mT)):
        by_chance = each.recipe.rounding is not Rounding.NEAREST_EVEN
        each = replace(each, chance=Philox(9) if by_chance else None)
        targets.append(each)
        found.append(quantize(values, each.recipe, each.amax, chance=each.chance, swizzle=swizzle))
    ours = quantize_both(x, *targets, prologue=prologue, swizzle=swizzle)
    for one, wanted, what in zip(ours, found, ("x", "its transpose"), strict=True):
        if wrong := differs(one, wanted):
            yield f"{what}, {target.recipe}, {transposed.recipe}, {tuple(x.shape)}: {wrong}"


def clipped() -> Iterator[str]:
    """The plain way with a given amax, beside values that are larger, NaN and Inf."""
    x = inputs(6, 64)
    x[1, 3], x[4, 40] = math.nan, -math.inf
    lost = ~x.view(6, 4, 16).isfinite().all(-1).repeat_interleave(8, -1)
    # where they clip, which value a choice or a chance sees is not the same
    for recipe, largest in ((NV, 900.0), (HOWS[3], 2e4), (BY_CHANCE, 2e4)):
        amax = torch.tensor(largest)
        chance = None if recipe.rounding is Rounding.NEAREST_EVEN else Philox(5)
        ours, plain = (
            found._replace(codes=torch.where(lost, found.codes & 0x77, found.codes))
            for found in (
                quantize(x, recipe, amax, chance=chance),
                quantize_fused(x, Target(recipe, amax, chance)),
            )
        )
        if wrong := differs(ours, plain):
            yield f"{recipe.scale_rule}, {recipe.rounding}: {wrong}"


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    check.__name__: check for check in (rms, factors, swiglu, silus, rows, both, clipped)
}


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # what no one wrote is seen
    names = sys.argv[1:] or [*CHECKS]
    json.dump([*itertools.chain.from_iterable(CHECKS[name]() for name in names)], sys.stdout)
