"""Fused quantizers: the bytes that plain torch makes on a CPU; a norm or gate in front may turn a few.

Their times are those of check_quantize.py.
"""

from __future__ import annotations

import functools
import itertools

import torch

from device.place import Place, Row, collect
from fp4kernels.fusion import (
    RmsNorm,
    SwiGlu,
    Target,
    quantize_fused,
    quantize_with_transpose,
)
from fp4kernels.packing import Packed, unpack_nibbles
from fp4kernels.recipes import recipe as recipe_named

PROLOGUES = ("none", "rms", "swiglu")
RECIPES = ("mxfp4", "nvfp4")
TURNED = 1e-3  # of the codes: where a device's exp or sum is an ulp off, and the value near a tie


def measured(place: Place) -> list[Row]:
    cases = [
        (f"{recipe} of {front}", functools.partial(row, place, recipe, front))
        for recipe, front in itertools.product(RECIPES, PROLOGUES)
    ]
    cases += [(f"{name} and transpose", functools.partial(both, place, name)) for name in RECIPES]
    return collect(cases)


def row(place: Place, recipe: str, front: str) -> Row:
    size = (33, 128) if place.small else (1025, 4096)
    generator = torch.Generator().manual_seed(6)
    x, other = (torch.randn(size, generator=generator).bfloat16() for _ in range(2))
    found = []
    for where in (place.torch_device, torch.device("cpu")):
        here, beside = x.to(where), other.to(where)
        prologue = {"none": None, "rms": RmsNorm(beside[0]), "swiglu": SwiGlu(beside)}[front]
        amax = torch.tensor(30.0, device=where) if recipe == "nvfp4" else None
        made = quantize_fused(here, Target(recipe_named(recipe), amax), prologue=prologue)
        found.append(Packed(*(part.cpu() for part in made)))
    return judged(found[0], found[1], 0.0 if front == "none" else TURNED)


def both(place: Place, recipe: str) -> Row:
    size = (64, 128) if place.small else (1024, 4096)
    x = torch.randn(size, generator=torch.Generator().manual_seed(6)).bfloat16()
    found = []
    for where in (place.torch_device, torch.device("cpu")):
        amax = torch.tensor(30.0, device=where) if recipe == "nvfp4" else None
        target = Target(recipe_named(recipe), amax)
        made = quantize_with_transpose(x.to(where), target, target)
        found.append([Packed(*(part.cpu() for part in one)) for one in made])
    rows = [judged(one, other, 0.0) for one, other in zip(*found, strict=True)]
    return {"codes_apart": max(one["codes_apart"] for one in rows)}


def judged(mine: Packed, plain: Packed, allowed: float) -> Row:
    """AssertionError where more than a share of `allowed` of the codes or scales differ."""
    codes = float((unpack_nibbles(mine.codes) != unpack_nibbles(plain.codes)).float().mean())
    scales = float((mine.scales != plain.scales).float().mean())
    if max(codes, scales) > allowed:
        raise AssertionError(f"{codes:.2%} of the codes and {scales:.2%} of the scales differ")
    return {"codes_apart": codes, "scales_apart": scales}
