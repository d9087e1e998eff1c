"""From tensors to launches of the quantize kernels, and from a shape to offline builds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.packing import Packed
from fp4kernels.philox import Philox
from fp4kernels.prologues import Prologue
from fp4kernels.recipes import Recipe, ScaleRule, Transform
from fp4kernels.scaling import FOUR_SIX, WINDOWS
from fp4kernels.targets import Target, check_count
from fp4kernels.transforms import HADAMARD_SIZES
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.quantize_config import QuantizeConfig
from fp4kernels.triton.quantize_work import MOST_BLOCKS, Launch, work

__all__ = ["DEFAULT", "MOST_BLOCKS", "QuantizeConfig", "quantize", "quantize_sources", "quantizes"]

CONVERTS = (10, 11, 12)  # major compute capabilities that convert to E2M1
SOURCE_SEED = (3, 3)  # neither 1 nor a multiple of 16, of which Triton would make use
_MX_RULES = ("floor", "ceil", "rceil", "even", "floor-3/4")
_RULES = {
    *((MXFP4, rule) for rule in (*map(ScaleRule, _MX_RULES), *WINDOWS)),
    *((NVFP4, rule) for rule in (ScaleRule.NV, *FOUR_SIX)),
}
_POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
    torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
DEFAULT = QuantizeConfig()


def quantizes(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether `quantize` takes the recipe, and values of `dtype`."""
    known = (recipe.format, recipe.scale_rule) in _RULES and dtype in _FLOATS
    fused = recipe.transform is Transform.NONE or recipe.transform in HADAMARD_SIZES
    return known and fused and recipe.outliers is None


def quantize(
    x: Tensor,
    recipe: Recipe,
    amax: Tensor | None = None,
    *,
    prologue: Prologue | None = None,
    chance: Philox | None = None,
    swizzle: bool = False,
    raised: Tensor | None = None,
    config: QuantizeConfig = DEFAULT,
) -> Packed:
    """As reference.quantize, on its device, of what the prologue and then the recipe's transform make
    of `x` [..., K]; bit for bit but for the sign of a NaN, and what a prologue's docstring says.

    NVFP4 with an `amax`, a float32 scalar on that device, takes one pass and clips what is larger;
    a block that holds NaN or Inf then dequantizes to NaN, alone unless `amax` is not finite. It is
    the largest magnitude after the transform. Without one, a first pass finds it. The host never
    waits for either. With `swizzle` the scales are one line, as fp4kernels.swizzle lays out those
    of all rows. `raised`, an int64 scalar on that device, goes with a recipe that has a window: it
    grows by reference.count_raised.

    Raises FormatError unless `quantizes`, for shapes as the reference, the prologue and the transform
    do, where a stochastic rounding has no `chance` or another one has, and for an `amax` or `raised`
    that is another kind of tensor or that the recipe has no use for; BuildError where Triton fails.
    """
    check_known(recipe, x.dtype)
    Target(recipe, amax, chance).check(x)
    check_count(raised, x, recipe)
    todo = work(x, recipe, prologue, swizzle, config)
    out = todo.empty()
    run(todo.launches(out, amax, raised, seed_of(chance), converts(x)), x, recipe)
    return out


def quantize_sources(
    shape: Sequence[int],
    dtype: torch.dtype,
    recipe: Recipe,
    *,
    prologue: Prologue | None = None,
    swizzle: bool = False,
    converts: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> list[KernelSource]:
    """All kernels that `quantize` compiles for such an x, without a given amax but with all counts,
    for a GPU that `converts` to E2M1 or not. A prologue's tensors are on the device "meta"."""
    x = torch.empty(torch.Size(shape), dtype=dtype, device="meta")
    todo = work(x, recipe, prologue, swizzle, config)
    raised = None if recipe.window is None else x.new_empty((), dtype=torch.int64)
    launches = [*todo.launches(todo.empty(), None, raised, SOURCE_SEED, converts)]
    return sources_of(launches[::-1])


def check_known(recipe: Recipe, dtype: torch.dtype) -> None:
    """FormatError unless `quantizes`."""
    if not quantizes(recipe, dtype):
        raise FormatError(
            "the Triton quantizer takes mxfp4 with floor, ceil, rceil, even, floor-3/4 or floor-row "
            "and nvfp4 with nv or four-six, without outliers, of bfloat16, float16 or float32, but "
            f"got {recipe.format.name} with {recipe.scale_rule}, {recipe.transform}, of {dtype}"
        )


def run(launches: Iterable[Launch], x: Tensor, recipe: Recipe) -> None:
    """On the device of x. BuildError where Triton fails, which compiles at the first launch."""
    try:
        with torch.cuda.device(x.get_device()):
            for launch in launches:
                launch.kernel[(launch.programs,)](
                    **launch.arguments, **launch.constants, **launch.options
                )
    except (CompilationError, OutOfResources, PTXASError) as error:
        raise BuildError(f"the quantizer of {recipe.name} did not build: {error}") from error


def sources_of(launches: Iterable[Launch]) -> list[KernelSource]:
    """What these launches compile."""
    return [
        KernelSource(launch.kernel, _kinds(launch), launch.constants, launch.options)
        for launch in launches
    ]


def _kinds(launch: Launch) -> dict[str, str | int | None]:
    return {name: _kind(value) for name, value in launch.arguments.items()}


def _kind(value: Tensor | float | None) -> str | int | None:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else value


def seed_of(chance: Philox | None) -> tuple[int, int]:
    """Two int32, as a launch passes them."""
    low, high = (_signed(word) for word in (chance.key if chance else (0, 0)))
    return low, high


def converts(x: Tensor) -> bool:
    """Whether the GPU that holds `x` has the instruction."""
    if x.device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(x.device)[0] in CONVERTS


def warp_size(x: Tensor) -> int:
    """Threads of a warp of the GPU that holds `x`: 64 of AMD's CDNA."""
    if x.device.type != "cuda":
        return 32
    return int(torch.cuda.get_device_properties(x.device).warp_size)


def _signed(word: int) -> int:
    """The int32 of the same bits, which a launch always passes as such."""
    return word - (1 << 32) if word >> 31 else word
