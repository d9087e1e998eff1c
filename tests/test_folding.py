"""FOLDED: every value exact in FP8, every bit back, and a reason where a row does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.errors import LayoutError
from fp4kernels.folding import E4M3_FOLD, E5M2_FOLD, FOLDS, Fold, folded
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.layouts import Layout, convert, held_bytes
from fp4kernels.packing import Packed, pack_nibbles
from fp4kernels.recipes import RECIPES
from fp4kernels.scaling import ScaleRule

ALL_CODES = torch.arange(16, dtype=torch.uint8).repeat(2)


def packed_of(scales: list[list[int]], codes: Tensor = ALL_CODES) -> Packed:
    """Every code in every block."""
    held = torch.tensor(scales, dtype=torch.uint8)
    everywhere = codes.repeat(held.shape[1]).expand(len(held), -1)
    return Packed(pack_nibbles(everywhere), held, torch.tensor(1.5))


def values_of(held: Packed) -> Tensor:
    """float64 values of a folded weight, as a kernel reads them."""
    fold = E4M3_FOLD if held.codes.dtype is E4M3_FOLD.dtype else E5M2_FOLD
    top = held.scales[:, :1].double()
    shift = torch.where(top == 255, torch.nan, top - 127 - fold.peak)
    return held.codes.double() * torch.exp2(shift) * held.tensor_scale


def assert_same(one: Packed, other: Packed) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.dtype is theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fold", FOLDS, ids=str)
def test_every_code_under_every_scale_of_a_window_is_exact_and_comes_back(fold: Fold) -> None:
    tops = range(fold.window, 253, 17)
    packed = packed_of([[*range(top - fold.window, top + 1)] for top in tops])
    held = convert(packed, len(tops), MXFP4, Layout.CANONICAL, Layout.FOLDED)
    assert held.codes.dtype is fold.dtype
    expected = reference.dequantize(packed._replace(tensor_scale=torch.ones(())), MXFP4).double()
    assert torch.equal(values_of(held), expected * 1.5)
    assert torch.equal(held.codes.float().signbit(), expected.signbit())  # of -0, too
    assert_same(convert(held, len(tops), MXFP4, Layout.FOLDED, Layout.CANONICAL), packed)
    k = packed.codes.shape[1] * 2
    size = held.codes.nbytes + held.scales.nbytes
    assert size == held_bytes(len(tops), k, MXFP4, Layout.FOLDED)


def test_blocks_of_zeros_take_any_scale_and_nan_takes_its_row() -> None:
    packed = packed_of([[100, 0, 255], [255, 114, 100], [7, 3, 254], [9, 9, 9]])
    zeros = pack_nibbles(torch.tensor([0, 8], dtype=torch.uint8).repeat(16))
    packed.codes[0, 16:32] = packed.codes[2, 32:] = packed.codes[3] = 0
    packed.codes[0, 16:32] = zeros
    held = convert(packed, 4, MXFP4, Layout.CANONICAL, Layout.FOLDED)
    assert held.codes.dtype is torch.float8_e4m3fn
    assert held.scales[:, 0].tolist() == [255, 255, 7, 127]
    assert held.codes.float().isfinite().all()
    assert_same(convert(held, 4, MXFP4, Layout.FOLDED, Layout.CANONICAL), packed)
    expected = reference.dequantize(packed, MXFP4).double()
    assert torch.equal(values_of(held)[2:], expected[2:])


def test_one_wide_row_makes_all_of_them_e5m2() -> None:
    held = folded(packed_of([[100, 100], [100, 115]]), MXFP4)
    assert held.codes.dtype is torch.float8_e5m2


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ([[9, 9], [100, 129]], r"within 2\^28, but those of row 1 spread over 2\^29; keep it"),
        ([[9, 9], [253, 253]], r"up to 2\^125, .* but row 1 has 2\^126"),
    ],
)
def test_a_row_that_does_not_fit_says_why(scales: list[list[int]], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        folded(packed_of(scales), MXFP4)


def test_other_formats_do_not_fold() -> None:
    packed = Packed(torch.zeros(4, 16).byte(), torch.zeros(4, 2).byte(), torch.ones(()))
    with pytest.raises(LayoutError, match="folded holds mxfp4, but got nvfp4"):
        convert(packed, 4, NVFP4, Layout.CANONICAL, Layout.FOLDED)


def spread_rows() -> Tensor:
    """Blocks that fall by 2^3 each, one of zeros, one of NaN, and a row of zeros."""
    x = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(3))
    x *= torch.exp2(-3.0 * torch.arange(16))[None, :, None]
    x[1, 4], x[1, 0, 5], x[2] = 0, torch.nan, 0
    return x.flatten(1)


@pytest.mark.parametrize("window", [14, 28])
def test_a_row_recipe_keeps_scales_in_its_window(window: int) -> None:
    x, recipe = spread_rows(), RECIPES[f"mxfp4-row-{window}"]
    free, held = reference.quantize(x, RECIPES["mxfp4"]), reference.quantize(x, recipe)
    assert held.tensor_scale == 1
    bytes_ = held.scales.int()
    assert bytes_[1, 0] == 255
    bytes_[1, 0] = 0
    top = bytes_.amax(-1, keepdim=True)
    assert torch.equal(top, free.scales.int().masked_fill(free.scales == 255, 0).amax(-1, True))
    expected = torch.maximum(free.scales.int(), top - window)
    assert torch.equal(held.scales.int(), expected)
    # what needs no larger scale is what it was
    same = (free.scales == held.scales).repeat_interleave(16, -1)
    assert torch.equal(held.codes[same], free.codes[same])
    raised = (free.scales != held.scales) & (x.view(3, 16, 32) != 0).any(-1)
    assert reference.count_raised(x, recipe) == raised.sum() > 0
    assert reference.count_raised(x, RECIPES["mxfp4"]) == 0
    wanted = E4M3_FOLD if window == 14 else E5M2_FOLD
    assert folded(held, MXFP4).codes.dtype is wanted.dtype


def test_a_window_is_known_from_the_recipe() -> None:
    windows = {name: r.window for name, r in RECIPES.items() if r.window is not None}
    assert windows == {"mxfp4-row-14": 14, "mxfp4-row-28": 28}
    assert RECIPES["mxfp4-row-14"].scale_rule is ScaleRule.FLOOR_ROW_14
