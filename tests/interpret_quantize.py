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
from fp4kernels.recipes import RECIPES, Recipe, ScaleRule
from fp4kernels.swizzle import swizzled
from fp4kernels.triton.quantize_launch import QuantizeConfig, quantize

MX_RULES = (ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.RCEIL, ScaleRule.EVEN)
MX = [replace(RECIPES["mxfp4"], scale_rule=rule) for rule in MX_RULES]
NV = RECIPES["nvfp4"]
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
SMALL = QuantizeConfig(values=512)


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


def against_reference(x: Tensor, recipe: Recipe, what: str) -> Iterator[str]:
    wrong = differs(quantize(x, recipe), reference.quantize(x, recipe))
    if wrong:
        yield f"{recipe.name} {recipe.scale_rule}, {what}, {x.dtype}: {wrong}"


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


CHECKS: dict[str, Callable[[], Iterator[str]]] = {
    check.__name__: check for check in (same, every_scale, given_amax, layouts)
}


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # what no one wrote is seen
    json.dump([*CHECKS[sys.argv[1]]()], sys.stdout)
