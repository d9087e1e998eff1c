"""What is done to the sums of a GEMM in float32 before they are rounded, once.

In this order, each where it is asked for:

    1. bias      a number of each column is added
    2. activation of each element; SwiGLU takes columns in pairs, 2j the gate and 2j + 1 what it
       lets through, silu(gate) * up, and leaves N/2 columns: see `interleaved`
    3. residual  an element of another matrix is added
    4. recipe    the output is quantized as the next layer wants it

`finished` and `quantized` are the plain truth. A kernel that does the same within itself is fused;
around any other one `beside` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fp4kernels import reference
from fp4kernels.errors import FormatError
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe, Rounding
from fp4kernels.recipes import recipe as recipe_named


class Activation(StrEnum):
    NONE = "none"
    GELU = "gelu"  # x * (1 + erf(x / sqrt 2)) / 2
    GELU_TANH = "gelu-tanh"  # the same by tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) for erf
    SWIGLU = "swiglu"


class Added(NamedTuple):
    """Tensors that an epilogue takes, each None where it is not asked for."""

    bias: Tensor | None = None  # bfloat16 or float32 [N]
    residual: Tensor | None = None  # bfloat16 or float32 [M, columns of the output]
    amax: Tensor | None = None  # float32 scalar: what the next layer's tensor scale is made for


@dataclass(frozen=True)
class Epilogue:
    """An activation, and the name of the recipe that the output is quantized by, if it is."""

    activation: Activation = Activation.NONE
    recipe: str = ""

    @property
    def next_recipe(self) -> Recipe | None:
        """How the output is quantized: as activations of the next layer."""
        return recipe_named(self.recipe).activations if self.recipe else None

    def columns(self, n: int) -> int:
        """Of the output of N sums."""
        return n // 2 if self.activation is Activation.SWIGLU else n

    def sums(self, columns: int) -> int:
        """The way back: N."""
        return columns * 2 if self.activation is Activation.SWIGLU else columns

    def check(self, m: int, n: int, added: Added) -> None:
        """FormatError unless the output has whole pairs and blocks, and `added` fits it."""
        if self.activation is Activation.SWIGLU and n % 2:
            raise FormatError(f"swiglu takes columns in pairs, but N={n} is odd")
        how = self.next_recipe
        if how is not None:
            if how.format not in (MXFP4, NVFP4) or not how.plain:
                raise FormatError(
                    f"an output is quantized to mxfp4 or nvfp4, without transform or clamp, but "
                    f"got {self.recipe}"
                )
            if how.rounding is not Rounding.NEAREST_EVEN or recipe_named(self.recipe).weight_only:
                raise FormatError(
                    f"an output is quantized to nearest even, for a recipe of FP4 activations, but "
                    f"got {self.recipe}"
                )
            block = how.format.block_size
            if self.columns(n) % block:
                raise FormatError(
                    f"{self.recipe} needs whole blocks of {block} columns, but the output has "
                    f"{self.columns(n)}; pad N"
                )
        scaled = how is not None and how.format.tensor_scale
        if scaled != (added.amax is not None):
            need = "needs the amax that its tensor scale is made for" if scaled else "takes no amax"
            raise FormatError(f"an output in {self.recipe or 'bfloat16 or float32'} {need}")
        shapes = {"bias": (n,), "residual": (m, self.columns(n)), "amax": ()}
        for name, shape in shapes.items():
            tensor: Tensor | None = getattr(added, name)
            kinds = (torch.float32,) if name == "amax" else (torch.bfloat16, torch.float32)
            if tensor is not None and (tensor.shape != shape or tensor.dtype not in kinds):
                raise FormatError(
                    f"{name} must be {' or '.join(map(str, kinds))} of shape {shape}, but got "
                    f"{tensor.dtype} of {tuple(tensor.shape)}"
                )


PLAIN = Epilogue()

# launch(x, w, added, out): as variants.Launcher, but that out is Packed where the epilogue quantizes
FinishedLauncher = Callable[[Packed | Tensor, Packed, Added, Tensor | Packed], None]


def interleaved(gate: Tensor, up: Tensor) -> Tensor:
    """Weights [N, K] of gate and up (or biases [N]) as SwiGLU takes them: [2N, K], row by row."""
    return torch.stack((gate, up), 1).flatten(0, 1)


def finished(sums: Tensor, epilogue: Epilogue, added: Added) -> Tensor:
    """Steps 1 to 3 of `sums` [M, N], in their own dtype: [M, N], or [M, N/2] for SwiGLU."""
    values = sums if added.bias is None else sums + added.bias.to(sums.dtype)
    match epilogue.activation:
        case Activation.GELU:
            values = functional.gelu(values)
        case Activation.GELU_TANH:
            values = functional.gelu(values, approximate="tanh")
        case Activation.SWIGLU:
            values = functional.silu(values[:, 0::2]) * values[:, 1::2]
    return values if added.residual is None else values + added.residual.to(values.dtype)


def quantized(values: Tensor, how: Recipe, amax: Tensor | None) -> Packed:
    """Step 4, as reference.quantize; under a given `amax` larger values clip, and a block that is
    not finite is lost alone."""
    if amax is None:
        return reference.quantize(values, how)
    return reference.quantize_within(values, how, amax)


def beside(
    launch: Callable[[Packed | Tensor, Packed, Tensor], None], epilogue: Epilogue
) -> FinishedLauncher:
    """The epilogue in a pass of its own, over sums in a float32 workspace that `launch` writes."""

    def launch_finished(x: Packed | Tensor, w: Packed, added: Added, out: Tensor | Packed) -> None:
        m, columns = output_shape(out)
        sums = w.codes.new_empty((m, epilogue.sums(columns)), dtype=torch.float32)
        launch(x, w, sums)
        write(finished(sums, epilogue, added), epilogue, added, out)

    return launch_finished


def write(values: Tensor, epilogue: Epilogue, added: Added, out: Tensor | Packed) -> None:
    """Step 4, or the rounding to the dtype of `out`."""
    if isinstance(out, Tensor):
        out.copy_(values)
        return
    how = epilogue.next_recipe
    assert how is not None
    for into, made in zip(out, quantized(values, how, added.amax), strict=True):
        into.copy_(made)


def empty_output(
    m: int, n: int, epilogue: Epilogue, dtype: torch.dtype, device: torch.device
) -> Tensor | Packed:
    """What a launch for N sums a row writes: a matrix of `dtype`, or Packed."""
    shape, how = torch.Size((m, epilogue.columns(n))), epilogue.next_recipe
    if how is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return Packed(
        torch.empty(how.format.codes_shape(shape), dtype=torch.uint8, device=device),
        torch.empty(how.format.scales_shape(shape), dtype=torch.uint8, device=device),
        torch.empty((), dtype=torch.float32, device=device),
    )


def output_shape(out: Tensor | Packed) -> tuple[int, int]:
    """Rows and columns of numbers."""
    if isinstance(out, Tensor):
        return out.shape[0], out.shape[1]
    return out.codes.shape[0], out.codes.shape[1] * 2
