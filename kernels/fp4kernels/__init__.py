"""FP4 formats, kernels and tuned tables that training code imports.

w = fp4kernels.quantize(layer.weight, "nvfp4")
table = fp4kernels.Table.load("table.json")
y = fp4kernels.linear(x, table.arrange(w), table=table)
"""

from fp4kernels.attention.cache import CacheShape, KVCache
from fp4kernels.attention.decoding import decode as attention_decode
from fp4kernels.attention.prefill import attention
from fp4kernels.elements import E2M1, E4M3, ElementFormat
from fp4kernels.epilogues import Activation, Epilogue
from fp4kernels.errors import (
    BuildError,
    CacheError,
    DeviceError,
    FormatError,
    Fp4Error,
    LayoutError,
    TableError,
    WorkloadError,
)
from fp4kernels.formats import MXFP4, NVFP4, BlockFormat
from fp4kernels.layouts import Layout
from fp4kernels.ops import linear, quantize
from fp4kernels.packing import Packed
from fp4kernels.qtensor import QTensor
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.scales import ScaleFormat
from fp4kernels.tables import Plan, Table, TableWarning
from fp4kernels.warming import Use, warmup

__all__ = [
    "E2M1",
    "E4M3",
    "MXFP4",
    "NVFP4",
    "RECIPES",
    "Activation",
    "BlockFormat",
    "BuildError",
    "CacheError",
    "CacheShape",
    "DeviceError",
    "ElementFormat",
    "Epilogue",
    "FormatError",
    "Fp4Error",
    "KVCache",
    "Layout",
    "LayoutError",
    "Packed",
    "Plan",
    "QTensor",
    "Recipe",
    "ScaleFormat",
    "Table",
    "TableError",
    "TableWarning",
    "Use",
    "WorkloadError",
    "attention",
    "attention_decode",
    "linear",
    "quantize",
    "warmup",
]
