"""Everything compiled and loaded before the first step, or before a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from fp4kernels.errors import FormatError
from fp4kernels.ops import linear
from fp4kernels.qtensor import QTensor
from fp4kernels.tables import Table


def warmup(
    model: torch.nn.Module,
    ms: Sequence[int],
    *,
    table: Table | None = None,
    dtype: torch.dtype = torch.bfloat16,
    batch_invariant: bool = False,
) -> int:
    """Run `linear` once for every kind of quantized weight of `model` and every M of `ms`.

    After it, a call with such a weight, M and `dtype` of activations resolves, compiles and loads
    nothing. Weights are the two-dimensional QTensors among parameters and buffers; those of one
    shape, recipe, layout and device are one kind. Returns how many calls there were. Raises
    FormatError where there is no such weight, and what `linear` raises.
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
    for w in kinds.values():
        for m in ms:
            x = torch.zeros(m, w.shape[1], dtype=dtype, device=w.device)
            linear(x, w, table=table, batch_invariant=batch_invariant)
        if w.device.type == "cuda":
            torch.cuda.synchronize(w.device)  # what fails on the device fails here
    return len(kinds) * len(ms)
