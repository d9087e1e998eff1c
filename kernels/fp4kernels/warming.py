"""Everything compiled and loaded before the first step, or before a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fp4kernels.epilogues import PLAIN, Epilogue
from fp4kernels.errors import FormatError
from fp4kernels.ops import linear, quantize
from fp4kernels.qtensor import QTensor
from fp4kernels.tables import Table


@dataclass(frozen=True)
class Use:
    """How a layer calls `linear`: all that decides which kernel it compiles, but for the sizes.

    `bias` and `residual` are the dtypes of what is added, or None; with `quantized`, x comes in the
    weight's recipe, as from an epilogue of the layer before.
    """

    epilogue: Epilogue = PLAIN
    bias: torch.dtype | None = None
    residual: torch.dtype | None = None
    quantized: bool = False

    def fits(self, w: QTensor) -> bool:
        """Whether the weight has whole pairs and blocks of columns, and its recipe takes such an x."""
        n, how = w.shape[0], self.epilogue.next_recipe
        columns = self.epilogue.columns(n)
        whole = how is None or columns % how.format.block_size == 0
        taken = not (self.quantized and w.recipe.weight_only)
        return taken and whole and self.epilogue.sums(columns) == n


PLAINLY = (Use(),)


def warmup(
    model: torch.nn.Module,
    ms: Sequence[int],
    *,
    uses: Sequence[Use] = PLAINLY,
    table: Table | None = None,
    dtype: torch.dtype = torch.bfloat16,
    batch_invariant: bool = False,
) -> int:
    """Run `linear` once for every kind of quantized weight of `model`, every M of `ms` and every use.

    After it, a call with such a weight, M, use and `dtype` of activations resolves, compiles and loads
    nothing. Weights are the two-dimensional QTensors among parameters and buffers; those of one
    shape, recipe, layout and device are one kind. A use is left out for weights that it does not fit.
    Returns how many calls there were. Raises FormatError where there is no such weight, or a use fits
    none of them, and what `linear` raises.
    """
    kinds = {
        (w.shape, w.recipe_name, w.layout_name, w.device): w
        for w in chain(model.parameters(), model.buffers())
        if isinstance(w, QTensor) and w.dim() == 2
    }
    if not kinds:
        raise FormatError(
            "warmup needs a model with quantized weights, but no parameter or buffer of "
            f"{type(model).__name__} is a QTensor matrix; make some with fp4kernels.quantize"
        )
    for use in uses:
        if not any(use.fits(w) for w in kinds.values()):
            raise FormatError(f"a use of warmup must fit a weight of the model, but got {use}")
    calls = [(w, m, use) for w in kinds.values() for m in ms for use in uses if use.fits(w)]
    for w, m, use in calls:
        operands = _operands(w, m, use, dtype)
        linear(*operands[:3], residual=operands[3], amax=operands[4], epilogue=use.epilogue,
               table=table, batch_invariant=batch_invariant)  # fmt: skip
    for device in {w.device for w in kinds.values() if w.device.type == "cuda"}:
        torch.cuda.synchronize(device)  # what fails on the device fails here
    return len(calls)


def _operands(
    w: QTensor, m: int, use: Use, dtype: torch.dtype
) -> tuple[Tensor, QTensor, Tensor | None, Tensor | None, Tensor | None]:
    """x, w, bias, residual and amax: zeros, and an amax of 1."""
    (n, k), how = w.shape, use.epilogue.next_recipe

    def zeros(*shape: int, of: torch.dtype | None) -> Tensor | None:
        return None if of is None else torch.zeros(shape, dtype=of, device=w.device)

    x = torch.zeros(m, k, dtype=dtype, device=w.device)
    scaled = how is not None and how.format.tensor_scale
    return (
        quantize(x, w.recipe_name) if use.quantized else x,
        w,
        zeros(n, of=use.bias),
        zeros(m, use.epilogue.columns(n), of=use.residual),
        torch.ones((), device=w.device) if scaled else None,
    )
