"""Other ways to do the same linear layer, raced beside the kernels of this project."""

from __future__ import annotations

from collections.abc import Mapping

from fp4bench.baselines.base import Baseline, Call
from fp4bench.baselines.flashinfer import Flashinfer
from fp4bench.baselines.gemlite import Gemlite
from fp4bench.baselines.llama_cpp import LlamaCpp
from fp4bench.baselines.torch_dense import TorchBf16, TorchFp8, TorchFp32, TorchInt8
from fp4bench.baselines.torch_fp4 import TorchFp4
from fp4bench.baselines.torchao_int4 import Torchao
from fp4bench.baselines.triton_kernels import TritonKernels
from fp4bench.baselines.vllm_marlin import VllmMarlin

__all__ = ["BASELINES", "Baseline", "Call"]

BASELINES: Mapping[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        TorchBf16(),
        TorchFp32(),
        TorchInt8(),
        TorchFp8(),
        TorchFp4(),
        Torchao(),
        Gemlite(),
        TritonKernels(),
        VllmMarlin(),
        Flashinfer(),
        LlamaCpp(),
    )
}
