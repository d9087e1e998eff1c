"""Run batch-invariant products under the Triton interpreter; a child of test_batch_invariance.py.

As interpret_decode.py: for each [variant, recipe, [N, K]] of the JSON list null where every row has
the same bits in batches of all sizes and wherever it stands there, else which has not.

numpy's product sums otherwise at the edges of a tile; here, as in a matrix instruction, each place
of a tile is summed like every other.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fp4bench.proof.targets import ARCHES
from fp4kernels import reference
from fp4kernels.layouts import Layout, convert
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import untuned, variant
from fp4kernels.workloads import GemmWorkload
from interpret_decode import CPU, TOOLCHAIN, loops_run

SIZES = (1, 3, 17, 64, 200)


def along_k(a: Any, b: Any, dtype: Any) -> Any:
    total = np.zeros((a.shape[0], b.shape[1]), dtype)
    for k in range(a.shape[1]):
        total += a[:, k : k + 1].astype(dtype) * b[k : k + 1].astype(dtype)
    return total


def differing(name: str, recipe_name: str, sizes: tuple[int, int]) -> str | None:
    (n, k), kernel, recipe = sizes, variant(name), recipe_named(recipe_name)
    generator = torch.Generator().manual_seed(4)
    w = reference.quantize(torch.randn(n, k, generator=generator), recipe)
    held = convert(w, n, recipe.format, Layout.CANONICAL, kernel.layout)
    x = torch.randn(max(SIZES), k, generator=generator)

    def product(first: int, m: int, **changes: int) -> torch.Tensor:
        """Of rows from `first` on, by the configuration for their number."""
        workload = GemmWorkload(m, n, k, output_dtype="float32")
        config = untuned([kernel], workload, recipe, ARCHES["sm_90"], batch_invariant=True).config
        launch = kernel.build(replace(config, stages=2, **changes), recipe, CPU, TOOLCHAIN)  # type: ignore[call-arg]
        here, out = x[first : first + m], torch.empty(m, n)
        left = here.bfloat16() if recipe.weight_only else reference.quantize(here, recipe)
        launch(left, held, out)
        return out

    shared = {"split_k": 2} if name.startswith("decode") else {}  # as it is for a longer K
    whole = product(0, max(SIZES), **shared)
    for m in SIZES[:-1]:
        first = (max(SIZES) - m) // 2
        if not torch.equal(product(first, m, **shared), whole[first : first + m]):
            return f"M={m} differs"
    if shared and torch.equal(product(0, 17, split_k=4), whole[:17]):
        return "another order of summing leaves no trace: this test would see nothing"
    return None


def main() -> None:
    np.matmul = along_k  # type: ignore[assignment]
    cases = json.load(sys.stdin)
    json.dump([differing(*case) for case in cases] if loops_run() else ["skip"], sys.stdout)


if __name__ == "__main__":
    main()
