"""llama.cpp's matrix product on a CPU, through the ggml library inside llama-cpp-python."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor

from fp4bench.baselines.base import Baseline, Call, first, needs_multiples
from fp4bench.baselines.ggml import Ggml, Product
from fp4kernels.devices import Device
from fp4kernels.formats import MXFP4
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload


class LlamaCpp(Baseline):
    """MXFP4 weights, repacked where llama.cpp would repack them when it loads a model.

    Its product takes float32 activations, quantizes them to 8 bits inside every call, and writes
    float32: a user cannot have it otherwise, so neither is charged to this project's conversions.
    """

    name = "llama_cpp"
    arithmetic = Arithmetic.INT8
    quantizes_activations = True
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * MXFP4.bits_per_value / 8

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        if device.kind != "cpu":
            return "runs here on a CPU alone"
        folder = _libraries()
        if folder is None:
            return "llama_cpp is not installed; it comes with llama-cpp-python"
        try:
            known = Ggml.load(folder).knows_mxfp4()
        except (OSError, AttributeError) as error:
            return f"the ggml library of llama-cpp-python does not load: {error}"
        return first(
            None if known else "this llama-cpp-python is older than MXFP4",
            needs_multiples(workload, 1, MXFP4.block_size),
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        folder = _libraries()
        assert folder is not None, "absent() says so"
        ggml = Ggml.load(folder)
        wide, codes = x.float().contiguous(), ggml.quantize(w.float().contiguous())
        return [Product(ggml, wide, codes, len(w)) for _ in range(copies)]


def _libraries() -> Path | None:
    """The folder of llama-cpp-python's shared libraries; the package itself is not imported."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "lib"
