"""A paged KV cache in FP4: who holds which page, what is appended and evicted.

Codes and block scales lie in pages, one row for each token and kv head (K8V4 holds D bytes of K):

    k_codes, v_codes      uint8 [pages, page_size, kv_heads, D/2]         NHD
                                [pages, kv_heads, page_size, D/2]         HND
    k_scales, v_scales    uint8 [.., .., .., D/16] (E4M3), [.., D/32] (E8M0), in the same order
    k_scale, v_scale      float32 scalars for the whole cache, given once; 1 with E8M0 scales
    page_table            int32 [sequences, pages]: entry j of a row is the page of the sequence's
                          tokens j*page_size .. (j+1)*page_size-1; 0 beyond them
    lengths               int32 [sequences]: tokens held

    value[d] = decode(code[d]) * decode(scale[d // block]) * k_scale      (blocks lie along D)

A row is as a row of a canonical QTensor: the first of two codes in the low nibble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fp4kernels.attention.problem import check_finite
from fp4kernels.attention.recipes import AttentionRecipe, attention_recipe, check_head_dim
from fp4kernels.attention.storing import Held, Order, append_op, check_scale, gathered
from fp4kernels.errors import CacheError, FormatError, WorkloadError
from fp4kernels.formats import named
from fp4kernels.recipes import Recipe
from fp4kernels.transforms import transformed

PAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class CacheShape:
    pages: int
    page_size: int
    sequences: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.page_size not in PAGE_SIZES:
            raise FormatError(
                f"the page size must be one of {PAGE_SIZES}, but got {self.page_size}"
            )
        check_head_dim(self.head_dim)
        if min(self.pages, self.sequences, self.kv_heads) < 1:
            raise WorkloadError(
                "a cache has at least one page, sequence and kv head, but got "
                f"{self.pages}, {self.sequences}, {self.kv_heads}"
            )


class KVCache:
    """Keys and values of several sequences, quantized as they are appended.

    `k_scale` and `v_scale` stand for the tensor scales of NVFP4: values up to 2688 times the scale
    are held, what is larger is clipped. `recipe` names an AttentionRecipe, of which k, v and rotate
    matter. With `checked` the values appended must be finite, which waits for a GPU; without,
    NaN is stored as NaN.
    """

    def __init__(
        self,
        shape: CacheShape,
        recipe: str = "nvfp4",
        *,
        order: str = "nhd",
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        checked: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = shape
        self.recipe: AttentionRecipe = attention_recipe(recipe)
        self.order = named("order of a page", order, {member.value: member for member in Order})
        self.checked = checked
        self.device = torch.device(device)
        self.k_codes, self.k_scales, self.k_scale = self._room(self.recipe.k, k_scale)
        self.v_codes, self.v_scales, self.v_scale = self._room(self.recipe.v, v_scale)
        self.page_table = self._integers(shape.sequences, shape.pages)
        self.lengths = self._integers(shape.sequences)
        self._held = [0] * shape.sequences
        self._pages: list[list[int]] = [[] for _ in range(shape.sequences)]
        self._free = [*reversed(range(shape.pages))]

    def length(self, sequence: int) -> int:
        """Tokens that it holds, without asking the device. CacheError for no such sequence."""
        self._check_sequence(sequence)
        return self._held[sequence]

    @property
    def longest(self) -> int:
        return max(self._held)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def keys(self) -> Held:
        return Held(self.k_codes, self.k_scales, self.k_scale)

    @property
    def values(self) -> Held:
        return Held(self.v_codes, self.v_scales, self.v_scale)

    @property
    def bytes_per_token(self) -> int:
        """Of K and V of all heads."""
        tensors = (self.k_codes, self.k_scales, self.v_codes, self.v_scales)
        return sum(t.nbytes for t in tensors) // (self.shape.pages * self.shape.page_size)

    def append(self, k: Tensor, v: Tensor, counts: Sequence[int]) -> None:
        """Quantize and store k, v [T, kv_heads, D]: the first counts[0] tokens to sequence 0, ...

        One error, and nothing written, where: shapes, types or devices do not fit (FormatError,
        WorkloadError), a value is not finite (FormatError), counts are not one for each sequence
        and T in all (WorkloadError), or there are too few pages (CacheError).
        """
        self._check_new(k, v, counts)
        size = self.shape.page_size
        needed = [
            -(-(held + new) // size) - len(pages)
            for held, new, pages in zip(self._held, counts, self._pages, strict=True)
        ]
        if sum(needed) > len(self._free):
            raise CacheError(
                f"{sum(counts)} tokens need {sum(needed)} free pages of {size}, but "
                f"{len(self._free)} of {self.shape.pages} are free; evict a sequence first"
            )
        free = self._free.copy()
        tables = [
            pages + [free.pop() for _ in range(more)]
            for pages, more in zip(self._pages, needed, strict=True)
        ]
        slots = [
            table[at // size] * size + at % size
            for table, held, new in zip(tables, self._held, counts, strict=True)
            for at in range(held, held + new)
        ]
        placed = torch.tensor(slots, dtype=torch.int64, device=self.device)
        append_op(k, v, *self.keys, *self.values, placed, self.recipe.text, self.order.value)
        self._free, self._pages = free, tables
        self._held = [held + new for held, new in zip(self._held, counts, strict=True)]
        self._publish([sequence for sequence, more in enumerate(needed) if more])

    def evict(self, sequence: int, tokens: int | None = None) -> None:
        """Forget a sequence, or its oldest `tokens`, which must be whole pages.

        CacheError where it holds no such tokens.
        """
        self._check_sequence(sequence)
        held, size = self._held[sequence], self.shape.page_size
        if tokens is None:
            gone, self._held[sequence] = len(self._pages[sequence]), 0
        else:
            if not 0 <= tokens <= held or tokens % size:
                raise CacheError(
                    f"the oldest tokens go in whole pages of {size}, and there are {held}, "
                    f"but got {tokens}"
                )
            gone, self._held[sequence] = tokens // size, held - tokens
        pages = self._pages[sequence]
        self._pages[sequence] = pages[gone:]
        self._free += reversed(pages[:gone])
        self._publish([sequence])

    def dequantized(self, sequence: int) -> tuple[Tensor, Tensor]:
        """float32 k, v [length, kv_heads, D] that the cache stands for: K is rotated back."""
        self._check_sequence(sequence)
        length, pages = self._held[sequence], self.page_table[sequence]
        k = gathered(self.keys, self.recipe.k, pages, length, self.order)
        v = gathered(self.values, self.recipe.v, pages, length, self.order)
        if length:
            k = transformed(k, self.recipe.rotation(self.shape.head_dim))[1](k)
        return k, v

    def _room(self, how: Recipe, scale: float) -> Held:
        check_scale(how, scale)
        fmt, at = how.format, self.shape
        rows = (at.page_size, at.kv_heads)
        lead = (at.pages, *(rows if self.order is Order.NHD else rows[::-1]))
        row = (*lead, at.head_dim)
        codes, scales = (
            torch.zeros(shape, dtype=torch.uint8, device=self.device)
            for shape in (fmt.codes_shape(row), fmt.scales_shape(row))
        )
        return Held(codes, scales, torch.tensor(scale, dtype=torch.float32, device=self.device))

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)

    def _publish(self, sequences: Sequence[int]) -> None:
        """What the host knows, to the tensors that kernels read."""
        for sequence in sequences:
            pages = self._pages[sequence] + [0] * (self.shape.pages - len(self._pages[sequence]))
            self.page_table[sequence].copy_(torch.tensor(pages, dtype=torch.int32))
        self.lengths.copy_(torch.tensor(self._held, dtype=torch.int32))

    def _check_sequence(self, sequence: int) -> None:
        if not 0 <= sequence < self.shape.sequences:
            raise CacheError(
                f"sequences are numbered from 0 to {self.shape.sequences - 1}, but got {sequence}"
            )

    def _check_new(self, k: Tensor, v: Tensor, counts: Sequence[int]) -> None:
        row = (self.shape.kv_heads, self.shape.head_dim)
        if k.shape != v.shape or k.dim() != 3 or k.shape[1:] != row or not k.numel():
            raise WorkloadError(
                f"new k and v are [T, {row[0]}, {row[1]}] with T of at least 1, but got "
                f"{tuple(k.shape)} and {tuple(v.shape)}"
            )
        if len(counts) != self.shape.sequences or min(counts) < 0 or sum(counts) != len(k):
            raise WorkloadError(
                f"counts are a number for each of {self.shape.sequences} sequences, {len(k)} in "
                f"all, but got {list(counts)[:8]}"
            )
        for x in (k, v):
            if not x.is_floating_point() or x.device.type != self.device.type:
                raise FormatError(
                    f"new k and v are floating tensors on {self.device}, but got {x.dtype} on "
                    f"{x.device}"
                )
        if self.checked:
            check_finite(k=k, v=v)
