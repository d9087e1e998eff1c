"""torch.library ops over plain tensors, and the functions that wrap them for QTensors.

A plan travels as text: it says which kernel runs which M, so the ops depend on their arguments
alone, and a captured graph never looks a table up.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.cpu import launch as cpu
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain
from fp4kernels.errors import FormatError, LayoutError
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.qtensor import QTensor
from fp4kernels.recipes import Recipe, Rounding
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import FALLBACK, VARIANTS, untuned, variant
from fp4kernels.tables import Table, parse_plan
from fp4kernels.triton.gemm import MIN_CAPABILITY
from fp4kernels.variants import Candidate, Launcher
from fp4kernels.workloads import GemmWorkload

DEFAULT_PLAN = ""  # the untuned candidate for the weight's layout, chosen by M


@torch.library.custom_op("fp4kernels::quantize", mutates_args=())
def quantize_op(x: Tensor, recipe: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and tensor scale of `x` [..., K], canonical."""
    return tuple(_quantize(x, _nearest(recipe)))  # type: ignore[return-value]


@quantize_op.register_fake
def _quantize_fake(x: Tensor, recipe: str) -> tuple[Tensor, Tensor, Tensor]:
    fmt = _nearest(recipe).format
    reference.check_blocks(x, fmt)
    codes = x.new_empty(fmt.codes_shape(x.shape), dtype=torch.uint8)
    scales = x.new_empty(fmt.scales_shape(x.shape), dtype=fmt.scale.dtype)
    return codes, scales, x.new_empty((), dtype=torch.float32)


@torch.library.custom_op("fp4kernels::linear", mutates_args=())
def linear_op(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    n: int,
    recipe: str,
    layout: str,
    plan: str,
) -> Tensor:
    """x [..., K] times an N x K weight held in `layout`, transposed; quantizes x as the recipe."""
    how = _nearest(recipe)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty((rows.shape[0], n))
    if rows.shape[0] == 0:
        return out.view(*x.shape[:-1], n)
    workload = GemmWorkload(rows.shape[0], n, x.shape[-1])
    launch = _launcher(plan, workload, how, Layout(layout), x.device.type)
    left = rows.bfloat16() if how.weight_only else _quantize(rows, how.activations)
    launch(left, Packed(codes, scales, tensor_scale), out)
    return out.view(*x.shape[:-1], n)


@linear_op.register_fake
def _linear_fake(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor,
    n: int,
    recipe: str,
    layout: str,
    plan: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


def quantize(x: Tensor, recipe: str) -> QTensor:
    """Quantize `x` [..., K] along K as the named recipe ("mxfp4", "nvfp4", …).

    Raises FormatError for an unknown recipe, or one that is more than codes and scales to nearest
    even, or if the shape is not whole blocks.
    """
    reference.check_blocks(x, _nearest(recipe).format)
    return QTensor(Packed(*quantize_op(x, recipe)), recipe, x.shape, x.dtype)


def linear(
    x: Tensor, w: QTensor, bias: Tensor | None = None, *, table: Table | None = None
) -> Tensor:
    """As torch.nn.functional.linear with an FP4 weight; activations are quantized per the recipe.

    With a table, its kernels run, and `w` must be held as they read it (`table.arrange(w)`).
    Without one, the untuned kernel for the layout of `w` runs. Raises TableError for a problem
    that was not tuned, LayoutError for a weight in another layout, FormatError for shapes.
    """
    n, k = w.shape
    if x.shape[-1] != k:
        raise FormatError(f"x [..., K] and w [N, K] share K, but got {x.shape[-1]} and {k}")
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise FormatError(f"activations are bfloat16 or float32, but got {x.dtype}")
    plan = DEFAULT_PLAN
    if table is not None:
        chosen = table.lookup(n, k, w.recipe_name)
        if chosen.layout is not w.held_as:
            raise LayoutError(
                f"the table's kernels read layout {chosen.layout.value!r}, but the weight is held "
                f"as {w.layout_name!r}; call table.arrange(w) once and keep the result"
            )
        plan = chosen.text
    out: Tensor = linear_op(
        x, w.codes, w.scales, w.tensor_scale, n, w.recipe_name, w.layout_name, plan
    )
    return out if bias is None else out + bias


def _nearest(name: str) -> Recipe:
    """The recipe called `name`, if an op can do all that it asks for."""
    how = recipe_named(name)
    if not how.plain or how.rounding is not Rounding.NEAREST_EVEN:
        asked = [how.rounding, how.transform, how.outliers.name if how.outliers else "no outliers"]
        raise FormatError(
            "an op quantizes to nearest even, without transform or clamp, but "
            f"{name} asks for {', '.join(asked)}; use fp4kernels.simulate.approximate"
        )
    return how


def _launcher(
    plan: str, workload: GemmWorkload, recipe: Recipe, layout: Layout, kind: str
) -> Launcher:
    device, toolchain = _surroundings(kind)
    if plan:
        return _built(parse_plan(plan).choose(workload.m), device, toolchain)
    workload.check(recipe)
    kernels = [v for v in VARIANTS.values() if v.layout is layout and v is not FALLBACK]
    able = [v for v in kernels if v.takes(recipe, device, toolchain) is None]
    if not able and layout is not FALLBACK.layout:
        raise LayoutError(f"no kernel on {device.name} reads a {recipe.name} weight as {layout}")
    chosen = untuned(able or [FALLBACK], workload, recipe, device)
    config = chosen.default(workload, recipe, device)
    return _built(Candidate(recipe.name, chosen.name, layout, config), device, toolchain)


@functools.lru_cache(maxsize=4096)
def _built(candidate: Candidate, device: Device, toolchain: Toolchain) -> Launcher:
    kernel = variant(candidate.variant)
    return kernel.build(candidate.config, recipe_named(candidate.recipe), device, toolchain)


@functools.cache
def _surroundings(kind: str) -> tuple[Device, Toolchain]:
    """Probed at the first call: an op has no other way to learn where it runs."""
    return probe_device(kind), probe_toolchain(kind)


def _quantize(x: Tensor, recipe: Recipe) -> Packed:
    """By C++ on a CPU with a compiler, by Triton on a GPU, where those know the recipe; else by the
    reference."""
    reference.check_blocks(x, recipe.format)
    if x.device.type == "cuda" and _runs_triton(*_surroundings("cuda")):
        from fp4kernels.triton import quantize_launch as gpu  # imports triton

        if gpu.quantizes(recipe, x.dtype):
            return gpu.quantize(x, recipe)
    if x.device.type == "cpu" and cpu.quantizes(recipe, x.dtype):
        device, toolchain = _surroundings("cpu")
        if toolchain.compiler is not None:
            return cpu.quantize(x.contiguous(), recipe, device, toolchain)
    return reference.quantize(x, recipe)


def _runs_triton(device: Device, toolchain: Toolchain) -> bool:
    """Whether the Triton quantizer was ever compiled for such a device."""
    return toolchain.triton is not None and device.compute_capability >= MIN_CAPABILITY
