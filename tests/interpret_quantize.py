"""Run the Triton quantizer under the interpreter; a child process of test_triton_quantize.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
The argument names a function here; writes to stdout what it found wrong, as a JSON list.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.packing import Packed
from fp4kernels.philox import Philox
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule
from fp4kernels.scaling import FOUR_SIX
from fp4kernels.swizzle import swizzled
from fp4kernels.transforms import HADAMARD_SIZES, transformed
from fp4kernels.triton.quantize_launch import QuantizeConfig, quantize

MX_RULES = ("floor", "ceil", "rceil", "even", "floor-3/4")
MX = [replace(RECIPES["mxfp4"], scale_rule=ScaleRule(rule)) for rule in MX_RULES]
NV = RECIPES["nvfp4"]
FOUR_SIXES = [replace(NV, scale_rule=rule) for rule in FOUR_SIX]
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
SMALL = QuantizeConfig(values=512, warps=1)


def differs(ours: Packed, wanted: Packed) -> str | None:
    """The first part that is not equal bit for bit; any NaN is as good as another.

    Codes under a tensor scale of NaN have the sign of a NaN, which differs between machines.
    """
    for name, a, b in zip(Packed._fields, ours, wanted, strict=True):
        if name == "codes" and wanted.tensor_scale.isnan():
            a, b = a & 0x77, b & 0x77
        if a.dtype is torch.float32:
            a, b = (torch.where(t.isnan(), 0x7FC00000, t.view(torch.int32)) for t in (a, b))
        if a.shape != b.shape:
            return f"{name} {tuple(a.shape)} for {tuple(b.shape)}"
        if not torch.equal(a, b):
            at = (a != b).nonzero()[0].tolist()
            return f"{name} at {at}: {a[tuple(at)]} for {b[tuple(at)]}, {(a != b).sum()} in all"
    return None


def against_reference(
    x: Tensor, recipe: Recipe, what: str, chance: Philox | None = None
) -> Iterator[str]:
    turned, _ = transformed(x, recipe.transform)
    wrong = differs(quantize(x, recipe, chance=chance), reference.quantize(turned, recipe, chance))
    if wrong:
        yield (
            f"{recipe.name} {recipe.scale_rule} {recipe.rounding} {recipe.transform}, {what}, "
            f"{x.dtype}: {wrong}"
        )


def ties(step: int) -> Tensor:
    """Rows that begin with 6, so that the scale is 1 or 2: every tie, and its neighbours."""
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.0])
    near = torch.cat([middles, *(middles.nextafter(torch.tensor(e)) for e in (9.0, -9.0))])
    row = torch.cat([near, -near, torch.zeros(64 - 2 * len(near))])
    row = torch.cat([torch.cat([torch.tensor([6.0]), part]) for part in row.split(step - 1)])
    row = row[: len(row) // step * step]
    return row * torch.tensor([[1.0], [2.0], [2.0**-40], [2.0**90], [-1.0]])


def samples(block: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(37, 96, generator=generator)
    spread = x * torch.exp2(torch.linspace(-149, 126, 37)).unsqueeze(1)
    zeros = torch.zeros(3, 64)
    zeros[1], zeros[2, 5] = -0.0, 1.0
    one_bad = x.clone()
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), -float("nan")])
    one_bad[3, 64:68] = bad
    return {
        "gaussian": x,
        "from subnormals to the largest": spread,
        "subnormals alone": spread[:3],
        "one subnormal": torch.full((1, 32), 1e-45),
        "the largest numbers": torch.full((1, 32), torch.finfo(torch.float32).max),
        "zeros of both signs": zeros,
        "all zeros": -torch.zeros(2, 32),
        "ties": ties(block),
        "NaN and Inf": one_bad,
        "Inf": torch.where(one_bad.isnan(), 1.0, one_bad),
        "one block": x[0, :32],
        "no rows": x[:0],
        "three dimensions, not contiguous": x[:36].view(4, 9, 96).transpose(0, 1)[:, :, :32],
    }


def same() -> Iterator[str]:
    for recipe in (*MX, NV):
        for (what, x), dtype in itertools.product(
            samples(recipe.format.block_size).items(), FORMATS
        ):
            yield from against_reference(x.to(dtype), recipe, what)


def every_scale() -> Iterator[str]:
    """Blocks whose amax has every exponent, on both sides of where each rule changes."""
    exponents = torch.arange(256).unsqueeze(1) << 23
    edges = [0, 1, 0x1FFFFF, 0x200000, 0x3FFFFF, 0x400000, 0x400001, 0x5FFFFF, 0x600000, 0x7FFFFF]
    amax = (exponents + torch.tensor(edges)).flatten().int().view(torch.float32)
    share = torch.linspace(-1, 1, 16)
    x = amax.unsqueeze(1) * torch.cat([share, -share])
    for recipe in MX:
        yield from against_reference(x, recipe, "every exponent")
    # E4M3 bytes: all of them, their ties and the neighbours of those, under one tensor scale
    steps = (torch.arange(8 * 126 + 1).int() << 17) + (120 << 23)
    scales = torch.cat([steps, steps + 1, steps - 1]).view(torch.float32)
    small = torch.arange(0, 9, 1 / 16) * 2.0**-9
    amax = torch.cat([scales[scales <= 448], small, torch.tensor([448.0])]) * 6
    yield from against_reference(amax.unsqueeze(1) * share, NV, "every E4M3 scale")
    noise = torch.randn(512, 16, generator=torch.Generator().manual_seed(6))
    for tensor_amax in (1e-45, 1e-38, 1.7e-36, 0.3, 5e4, 3e38):
        x = noise / noise.abs().max() * tensor_amax
        yield from against_reference(x, NV, f"amax {tensor_amax}")


def given_amax() -> Iterator[str]:
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(7))
    largest = x.abs().max()
    for times in (1.0, 3.0, 0.25):  # what is larger clips, as it would were it that amax
        amax = largest * times
        seen = torch.cat([x.clamp(-amax, amax), amax.expand(1, 64)])
        codes, scales, tensor_scale = reference.quantize(seen, NV)
        wrong = differs(quantize(x, NV, amax), Packed(codes[:-1], scales[:-1], tensor_scale))
        if wrong:
            yield f"{times} of amax: {wrong}"
    bad = x.clone()
    bad[2, 20], bad[4, 40] = float("nan"), -float("inf")
    ours, rest = quantize(bad, NV, largest), quantize(x, NV, largest)
    back, lost = reference.dequantize(ours, NV.format), torch.zeros(9, 64, dtype=torch.bool)
    lost[2, 16:32], lost[4, 32:48] = True, True
    if not torch.equal(back.isnan(), lost):
        yield f"{int((back.isnan() != lost).sum())} values are wrongly NaN, or wrongly not"
    if not torch.equal(back[~lost], reference.dequantize(rest, NV.format)[~lost]):
        yield "blocks beside a lost one differ"


def layouts() -> Iterator[str]:
    generator = torch.Generator().manual_seed(8)
    for (rows, k), recipe in itertools.product(
        [(1, 32), (5, 96), (128, 128), (129, 160), (261, 32)], (MX[0], NV)
    ):
        x = torch.randn(rows, k, generator=generator).bfloat16()
        codes, scales, tensor_scale = reference.quantize(x, recipe)
        wanted = Packed(codes, swizzled(scales), tensor_scale)
        wrong = differs(quantize(x, recipe, swizzle=True), wanted)
        if wrong:
            yield f"{recipe.name} {rows} x {k}, swizzled: {wrong}"
        wrong = differs(quantize(x, recipe, config=SMALL), Packed(codes, scales, tensor_scale))
        if wrong:
            yield f"{recipe.name} {rows} x {k}, {SMALL}: {wrong}"


def four_over_six() -> Iterator[str]:
    """Every sample, blocks whose choices err alike, and an amax from outside."""
    noise = torch.randn(2048, 16, generator=torch.Generator().manual_seed(9))
    alike = torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0]).repeat(64, 2)
    alike = alike * torch.exp2(torch.arange(-32.0, 32)).unsqueeze(1)
    for recipe in FOUR_SIXES:
        for what, x in samples(16).items():
            yield from against_reference(x, recipe, what)
        for x in (noise, noise.bfloat16(), noise * 1e-30, noise.half()):
            yield from against_reference(x, recipe, "noise")
        yield from against_reference(alike, recipe, "powers of two")
        back = reference.dequantize(quantize(noise, recipe), recipe.format)
        codes, scales, tensor_scale = reference.quantize(noise, recipe)
        steps = back.abs().amax(1) / (recipe.format.scale.decode(scales[:, 0]) * tensor_scale)
        if not 0.1 < (steps < 5).float().mean() < 0.9:
            yield "the largest value becomes 4 in all blocks, or in none"
        part = quantize(noise[:512], recipe, noise.abs().max())
        wrong = differs(part, Packed(codes[:512], scales[:512], tensor_scale))
        if wrong:
            yield f"{recipe.scale_rule}, given amax: {wrong}"


def chance() -> Iterator[str]:
    """By chance, to the reference's bytes; the draws of the mean's neighbours; and no bias."""
    proper, naive = Rounding.STOCHASTIC, Rounding.STOCHASTIC_NAIVE
    for recipe, seed, rounding in (
        (MX[0], 0, proper), (MX[4], 2**63 + 5, proper), (NV, 2**40, proper), (NV, 3, naive),
        (FOUR_SIXES[0], 4, proper),
    ):  # fmt: skip
        how = replace(recipe, rounding=rounding)
        for what, x in samples(recipe.format.block_size).items():
            yield from against_reference(x, how, what, Philox(seed))
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    for dtype in FORMATS:
        how = replace(NV, rounding=proper)
        yield from against_reference(x.to(dtype), how, "noise", Philox(7))
    draws = 32
    for how in (
        replace(MX[1], rounding=Rounding.STOCHASTIC),
        replace(NV, rounding=Rounding.STOCHASTIC),
    ):
        backs = torch.stack(
            [
                reference.dequantize(quantize(x, how, chance=Philox(seed)), how.format)
                for seed in range(draws)
            ]
        )
        of_one = (backs - x).square().sum() / draws
        of_mean = (backs.mean(0) - x).square().sum() * draws
        if not 0.9 < of_mean / of_one < 1.1:  # 4096 values move it by 2%
            yield f"{how.name}: the mean of {draws} errs {of_mean / of_one:.3f} of what it should"


def rotations() -> Iterator[str]:
    """Every size, with the formats, roundings and layouts that it meets."""
    generator = torch.Generator().manual_seed(10)
    for transform, recipe in itertools.product(HADAMARD_SIZES, (MX[0], NV, FOUR_SIXES[0])):
        k = 3 * max(HADAMARD_SIZES[transform], recipe.format.block_size)
        x = torch.randn(11, k, generator=generator) * 3
        x[0], x[1, 1:], x[2] = -0.0, 0.0, x[2] * 1e-39
        how = replace(recipe, transform=transform)
        for dtype in FORMATS:
            yield from against_reference(x.to(dtype), how, "noise")
        yield from against_reference(x[:0], how, "no rows")
        by_chance = replace(how, rounding=Rounding.STOCHASTIC)
        yield from against_reference(x, by_chance, "noise", Philox(3))
        turned, _ = transformed(x, transform)
        codes, scales, tensor_scale = reference.quantize(turned, recipe)
        amax = turned.abs().max() if recipe.format is NV.format else None
        ours = quantize(x, how, amax, swizzle=True)
        wrong = differs(ours, Packed(codes, swizzled(scales), tensor_scale))
        if wrong:
            yield f"{recipe.name} {transform}, swizzled: {wrong}"


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    check.__name__: check
    for check in (
        same,
        every_scale,
        given_amax,
        layouts,
        four_over_six,
        chance,
        rotations,
    )
}


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # what no one wrote is seen
    json.dump([*CHECKS[sys.argv[1]]()], sys.stdout)
