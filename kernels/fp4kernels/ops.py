"""torch.library ops over plain tensors, and the functions that wrap them for QTensors.

A plan travels as text: it says which kernel runs which M, so the ops depend on their arguments
alone, and a captured graph never looks a table up.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.cpu import launch as cpu
from fp4kernels.devices import Device, Toolchain, surroundings
from fp4kernels.dispatch import DEFAULT_PLAN, built, built_finished, candidate_for
from fp4kernels.epilogues import PLAIN, Activation, Added, Epilogue, empty_output
from fp4kernels.errors import BuildError, FormatError, LayoutError
from fp4kernels.formats import NVFP4
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.qtensor import QTensor
from fp4kernels.recipes import Recipe, Rounding
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.tables import Table
from fp4kernels.triton.gemm import MIN_CAPABILITY
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload


@torch.library.custom_op("fp4kernels::quantize", mutates_args=())
def quantize_op(
    x: Tensor, recipe: str, amax: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and tensor scale of `x` [..., K], canonical."""
    return tuple(_quantize(x, _nearest(recipe), amax))  # type: ignore[return-value]


@quantize_op.register_fake
def _quantize_fake(
    x: Tensor, recipe: str, amax: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
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
    batch_invariant: bool = False,
) -> Tensor:
    """x [..., K] times an N x K weight held in `layout`, transposed; quantizes x as the recipe."""
    how = _recipe(recipe)
    k = x.shape[-1]
    rows = x.reshape(-1, k).contiguous()
    m = rows.shape[0]
    out = x.new_empty((m, n))
    if m:
        launch = _launcher(plan, (m, n, k), recipe, layout, x.device.type, batch_invariant)
        left = rows.bfloat16() if how.weight_only else quantize_rows(rows, recipe)
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
    batch_invariant: bool = False,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


@torch.library.custom_op("fp4kernels::linear_finished", mutates_args=())
def linear_finished_op(
    x: Sequence[Tensor],
    w: Sequence[Tensor],
    added: Sequence[Tensor | None],
    n: int,
    recipe: str,
    layout: str,
    plan: str,
    activation: str,
    following: str,
    dtype: torch.dtype,
    batch_invariant: bool = False,
) -> list[Tensor]:
    """As linear_op for a matrix x or its codes, scales and tensor scale, with an epilogue.

    `w` and `added` are the tensors of Packed and of Added, `following` the next layer's recipe or
    empty. Returns out [M, columns] of `dtype`, or its codes, scales and tensor scale.
    """
    how, epilogue = _nearest(recipe), Epilogue(Activation(activation), following)
    left = x[0].bfloat16() if how.weight_only else x[0].contiguous()
    m, k = left.shape[0], left.shape[1] * (1 if len(x) == 1 else 2)
    operands = Added(*added)
    epilogue.check(m, n, operands)
    out = empty_output(m, n, epilogue, dtype, left.device)
    if m:
        workload, here = GemmWorkload(m, n, k), surroundings(left.device.type)
        chosen = candidate_for(plan, workload, how, Layout(layout), here, batch_invariant)
        given: Tensor | Packed = left
        if not how.weight_only:
            given = Packed(*x) if len(x) == 3 else _quantize(left, how.activations)
        built_finished(chosen, epilogue, here)(given, Packed(*w), operands, out)
    elif isinstance(out, Packed):
        out.tensor_scale.fill_(1.0)
    return [out] if isinstance(out, Tensor) else [*out]


@linear_finished_op.register_fake
def _linear_finished_fake(
    x: Sequence[Tensor],
    w: Sequence[Tensor],
    added: Sequence[Tensor | None],
    n: int,
    recipe: str,
    layout: str,
    plan: str,
    activation: str,
    following: str,
    dtype: torch.dtype,
    batch_invariant: bool = False,
) -> list[Tensor]:
    epilogue, m = Epilogue(Activation(activation), following), x[0].shape[0]
    epilogue.check(m, n, Added(*added))
    out = empty_output(m, n, epilogue, dtype, x[0].device)
    return [out] if isinstance(out, Tensor) else [*out]


def quantize(x: Tensor, recipe: str, *, amax: Tensor | None = None) -> QTensor:
    """Quantize `x` [..., K] along K as the named recipe ("mxfp4", "nvfp4", …).

    With `amax`, a float32 scalar, the tensor scale of nvfp4 is made for that, not for the largest
    value of x: what is larger clips, and a row's codes do not depend on the rows beside it.

    Raises FormatError for an unknown recipe, or one that is more than codes and scales to nearest
    even, if the shape is not whole blocks, and for an amax that the recipe has no use for.
    """
    how = _nearest(recipe)
    reference.check_blocks(x, how.format)
    if amax is not None and (how.format != NVFP4 or amax.dtype is not torch.float32 or amax.dim()):
        raise FormatError(
            f"amax is a float32 scalar, for nvfp4, but got {amax.dtype} of {tuple(amax.shape)} for "
            f"{recipe}"
        )
    return QTensor(Packed(*quantize_op(x, recipe, amax)), recipe, x.shape, x.dtype)


def linear(
    x: Tensor,
    w: QTensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    amax: Tensor | None = None,
    epilogue: Epilogue = PLAIN,
    table: Table | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """As torch.nn.functional.linear with an FP4 weight; activations are quantized per the recipe.

    With a table, its kernels run, and `w` must be held as they read it (`table.arrange(w)`).
    Without one, the untuned kernel for the layout of `w` runs. A QTensor `x` of the recipe of `w` is
    taken as it is. Raises TableError for a problem that was not tuned, LayoutError for a weight in
    another layout, FormatError for shapes.

    `bias` [N], the activation of `epilogue` and `residual` [..., columns] are applied in float32, in
    this order, before the only rounding. Where `epilogue` names a recipe the result is a QTensor,
    the next layer's x, whose tensor scale is made for `amax`. See fp4kernels.epilogues.

    With `batch_invariant` a row of the result is the same bit for bit whatever rows are beside it:
    one order of summing for every M. Raises FormatError where the recipe scales all activations
    together, LayoutError or TableError where no kernel for this layout, or of this table, can.
    """
    n, k = w.shape
    if x.shape[-1] != k:
        raise FormatError(f"x [..., K] and w [N, K] share K, but got {x.shape[-1]} and {k}")
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise FormatError(f"activations are bfloat16 or float32, but got {x.dtype}")
    given = isinstance(x, QTensor)
    if isinstance(x, QTensor):
        plainly = w.recipe.weight_only or w.recipe.activation is not None
        if plainly or x.recipe_name != w.recipe_name:
            raise FormatError(
                f"a quantized x has the recipe of w, but got {x.recipe_name} and {w.recipe_name}"
                + ", which takes x as it is" * plainly
            )
    if batch_invariant and not given:
        _check_rows_apart(w.recipe)
    plan = DEFAULT_PLAN
    if table is not None:
        chosen = table.lookup(n, k, w.recipe_name)
        if chosen.layout is not w.held_as:
            raise LayoutError(
                f"the table's kernels read layout {chosen.layout.value!r}, but the weight is held "
                f"as {w.layout_name!r}; call table.arrange(w) once and keep the result"
            )
        plan = chosen.text
    if not given and epilogue == PLAIN and bias is None and residual is None and amax is None:
        out: Tensor = linear_op(
            x, w.codes, w.scales, w.tensor_scale, n, w.recipe_name, w.layout_name, plan,
            batch_invariant,
        )  # fmt: skip
        return out
    shape = (*x.shape[:-1], epilogue.columns(n))
    if isinstance(x, QTensor):
        codes, scales = x.codes, x.scales  # a traced graph knows these, but no property
        left = [codes.reshape(-1, codes.shape[-1]), scales.reshape(-1, scales.shape[-1])]
        left.append(x.tensor_scale)
    else:
        left = [x.reshape(-1, k)]
    rest = None if residual is None else residual.reshape(-1, residual.shape[-1])
    parts = linear_finished_op(
        left, [w.codes, w.scales, w.tensor_scale], [bias, rest, amax], n, w.recipe_name, w.layout_name, plan,
        epilogue.activation.value, epilogue.recipe, x.dtype, batch_invariant,
    )  # fmt: skip
    if not epilogue.recipe:
        flat: Tensor = parts[0]
        return flat.view(shape)
    codes, scales, tensor_scale = parts
    packed = Packed(
        codes.view(*shape[:-1], codes.shape[-1]), scales.view(*shape[:-1], scales.shape[-1]),
        tensor_scale,
    )  # fmt: skip
    return QTensor(packed, epilogue.recipe, torch.Size(shape), x.dtype)


@functools.cache
def _recipe(name: str) -> Recipe:
    """As _nearest, within ops: torch.compile does not trace through a cache."""
    return _nearest(name)


@functools.lru_cache(maxsize=4096)  # found once: looking it up takes longer than a small product
def _launcher(
    plan: str,
    size: tuple[int, int, int],
    recipe: str,
    layout: str,
    kind: str,
    batch_invariant: bool,
) -> Launcher:
    """For M, N, K."""
    workload, how, here = GemmWorkload(*size), _recipe(recipe), surroundings(kind)
    chosen = candidate_for(plan, workload, how, Layout(layout), here, batch_invariant)
    if variant(chosen.variant).backend == "cpp":
        _compiled_beside(recipe)
    return built(chosen, here)


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


def _check_rows_apart(recipe: Recipe) -> None:
    """FormatError where quantizing activations gives a row other codes beside other rows."""
    fmt = recipe.activations.format
    if not recipe.weight_only and (fmt.tensor_scale or fmt.block_shape[0] != 1):
        raise FormatError(
            f"a batch-invariant product scales each row of x by itself, but {recipe.name} has one "
            "scale for all of them; use a recipe of mxfp4, or one that keeps x in 16 bits "
            f"({recipe.format.name}-w4a16), or give x quantized with an amax of your own"
        )


def quantize_rows(rows: Tensor, recipe: str) -> Packed:
    """Contiguous activations of a product with weights of `recipe`. FormatError as `quantize`."""
    if rows.device.type == "cpu":
        launch = _cpu_quantizer(recipe, rows.dtype)
        if launch is not None:
            reference.check_blocks(rows, _recipe(recipe).activations.format)
            return launch(rows, None)
    return _quantize(rows, _recipe(recipe).activations)


@functools.cache
def _compiled_beside(recipe: str) -> None:
    """Compile the quantizer and the thread pool while the GEMM is compiled: who needs one first waits
    for it."""

    def build() -> None:
        with contextlib.suppress(BuildError):  # the call that needs it says so
            if _recipe(recipe).weight_only:
                cpu.start_pool(*surroundings("cpu"))
            else:
                _cpu_quantizer(recipe, torch.bfloat16)

    threading.Thread(target=build).start()


@functools.cache
def _cpu_quantizer(
    recipe: str, dtype: torch.dtype
) -> Callable[[Tensor, Tensor | None], Packed] | None:
    """None where C++ cannot quantize such activations here."""
    how, (device, toolchain) = _recipe(recipe).activations, surroundings("cpu")
    if toolchain.compiler is None or not cpu.quantizes(how, dtype):
        return None
    return cpu.quantizer(how, dtype, device, toolchain)


def _quantize(x: Tensor, recipe: Recipe, amax: Tensor | None = None) -> Packed:
    """By C++ on a CPU with a compiler, by Triton on a GPU, where those know the recipe; else by the
    reference."""
    reference.check_blocks(x, recipe.format)
    if x.device.type == "cuda" and _runs_triton(*surroundings("cuda")):
        from fp4kernels.triton import quantize_launch as gpu  # imports triton

        if gpu.quantizes(recipe, x.dtype):
            return gpu.quantize(x, recipe, amax)
    if x.device.type == "cpu" and cpu.quantizes(recipe, x.dtype):
        device, toolchain = surroundings("cpu")
        if toolchain.compiler is not None:
            return cpu.quantize(x.contiguous(), recipe, device, toolchain, amax)
    if amax is None:
        return reference.quantize(x, recipe)
    return reference.quantize_within(x, recipe, amax)


def _runs_triton(device: Device, toolchain: Toolchain) -> bool:
    """Whether the Triton quantizer was ever compiled for such a device."""
    return toolchain.triton is not None and device.compute_capability >= MIN_CAPABILITY
