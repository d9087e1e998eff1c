"""QTensor: a quantized matrix that travels like a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.errors import LayoutError
from fp4kernels.formats import BlockFormat
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.recipes import recipe as recipe_named


class QTensor(Tensor):
    """Packed codes, block scales and a tensor scale, with the logical shape [..., K] and dtype.

    The canonical layout of one row, block size B (other layouts: see `fp4kernels.layouts`):

        codes   | c1 c0 | c3 c2 | ... |     uint8, element 0 in the low nibble, K/2 bytes;
                                            a byte each, where codes have more than 4 bits
        scales  | s0 (values 0..B-1) | s1 (values B..2B-1) | ...     K/B of them: uint8, bfloat16
                                            or float32; blocks of R rows share one row of scales
        tensor_scale   one float32 for the whole tensor, 1 where nothing needs it

        value[k] = decode(c[k]) * decode(s[k // B]) * tensor_scale

    A wrapper subclass: `detach`, `clone` and moves between devices keep it quantized; any other
    operation raises, so that nothing dequantizes by accident.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    recipe_name: str
    layout_name: str

    @staticmethod
    def __new__(
        cls,
        packed: Packed,
        recipe_name: str,
        shape: torch.Size,
        dtype: torch.dtype,
        layout_name: str = Layout.CANONICAL,
    ) -> QTensor:
        self: QTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=packed.codes.device
        )
        self.codes, self.scales, self.tensor_scale = packed
        self.recipe_name = recipe_name
        self.layout_name = layout_name
        return self

    @property
    def recipe(self) -> Recipe:
        return recipe_named(self.recipe_name)

    @property
    def format(self) -> BlockFormat:
        return self.recipe.format

    @property
    def held_as(self) -> Layout:
        """The memory layout; `Tensor.layout` is torch's own word for strided and sparse."""
        return Layout(self.layout_name)

    @property
    def packed(self) -> Packed:
        return Packed(self.codes, self.scales, self.tensor_scale)

    @property
    def held_bytes(self) -> int:
        """Bytes of codes and block scales."""
        return self.codes.nbytes + self.scales.nbytes

    def dequantize(self) -> Tensor:
        """The float32 values, of the logical shape."""
        return reference.dequantize(self.to_layout(Layout.CANONICAL).packed, self.format)

    def to_layout(self, layout: Layout) -> QTensor:
        """The same values held in `layout`; LayoutError unless the tensor is a matrix."""
        if layout is self.held_as:
            return self
        if self.dim() != 2:
            raise LayoutError(f"only a matrix has layouts, but got shape {tuple(self.shape)}")
        n, k = self.shape
        packed = convert(self.packed, n, self.format, self.held_as, layout, k)
        return QTensor(packed, self.recipe_name, self.shape, self.dtype, layout.value)

    def __repr__(self) -> str:  # type: ignore[override]
        return (
            f"QTensor({self.recipe_name}, shape={tuple(self.shape)}, dtype={self.dtype}, "
            f"layout={self.layout_name}, device={self.device})"
        )

    def __tensor_flatten__(self) -> tuple[list[str], tuple[str, str, torch.dtype]]:
        meta = (self.recipe_name, self.layout_name, self.dtype)
        return ["codes", "scales", "tensor_scale"], meta

    def _stable_hash_for_caching(self) -> str:
        """What a compiled graph depends on: everything but the bytes."""
        return f"{self.recipe_name} {self.layout_name} {self.dtype} {tuple(self.shape)}"

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], meta: tuple[str, str, torch.dtype], size: torch.Size, stride: Any
    ) -> QTensor:
        packed = Packed(inner["codes"], inner["scales"], inner["tensor_scale"])
        recipe_name, layout_name, dtype = meta
        return QTensor(packed, recipe_name, size, dtype, layout_name)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KEEPS_QUANTIZED:
            self: QTensor = args[0]
            dtype = kwargs.pop("dtype", None) or self.dtype  # the logical one: bytes stay bytes
            packed = Packed(*(func(t, *args[1:], **kwargs) for t in self.packed))
            return QTensor(packed, self.recipe_name, self.shape, dtype, self.layout_name)
        raise NotImplementedError(
            f"{func} is not defined on a QTensor; call .dequantize() first, or fp4kernels.linear"
        )


_aten = torch.ops.aten
_KEEPS_QUANTIZED = {
    _aten.detach.default,
    _aten.clone.default,
    _aten._to_copy.default,
    _aten.alias.default,
}

# it holds tensors and strings alone, so torch.load(weights_only=True) may rebuild it
torch.serialization.add_safe_globals([QTensor])
