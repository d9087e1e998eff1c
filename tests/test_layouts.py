"""Layouts: lossless both ways, and the bytes lie where the drawing says."""

from __future__ import annotations

import pytest
import torch

from fp4kernels import reference
from fp4kernels.layouts import PANEL_HEADER, Layout, convert, held_bytes
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.recipes import RECIPES, Recipe

BOTH = [RECIPES["mxfp4"], RECIPES["nvfp4"]]


def random_packed(n: int, k: int, recipe: Recipe) -> Packed:
    """Every byte value may occur: what a file may hold, not what a quantizer writes."""
    generator = torch.Generator().manual_seed(n * k)
    codes = torch.randint(0, 256, (n, k // 2), generator=generator, dtype=torch.uint8)
    shape = (n, k // recipe.format.block_size)
    scales = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Packed(codes, scales, torch.tensor(1.5))


def test_element_0_sits_in_the_low_nibble() -> None:
    codes = torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0xF3]]
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (37, 96), (48, 576)])
def test_panels_are_lossless(recipe: Recipe, shape: tuple[int, int]) -> None:
    packed = random_packed(*shape, recipe)
    panels = convert(packed, shape[0], recipe.format, Layout.CANONICAL, Layout.PANEL16)
    back = convert(panels, shape[0], recipe.format, Layout.PANEL16, Layout.CANONICAL)
    for ours, original in zip(back, packed, strict=True):
        assert torch.equal(ours, original)
    size = panels.codes.numel() + panels.scales.numel()
    assert size == held_bytes(*shape, recipe.format, Layout.PANEL16)


def test_a_panel_line_reads_as_drawn() -> None:
    recipe = RECIPES["mxfp4"]
    packed = random_packed(20, 64, recipe)
    codes = unpack_nibbles(packed.codes)
    panels = convert(packed, 20, recipe.format, Layout.CANONICAL, Layout.PANEL16)
    for column, line, j in ((0, 0, 0), (15, 3, 2), (3, 7, 3), (18, 5, 1)):
        byte = panels.codes[column // 16, line, column % 16, j].item()
        low, high = codes[column, line * 8 + j], codes[column, line * 8 + 4 + j]
        assert byte == (low | high << 4).item()
    scales = panels.scales[PANEL_HEADER:].view(2, 2, 16)
    assert scales[1, 1, 2] == packed.scales[18, 1]


def test_the_header_ignores_blocks_of_zeros_and_reports_nan() -> None:
    recipe = RECIPES["mxfp4"]
    codes = torch.zeros(2, 32, dtype=torch.uint8)
    codes[0, 0], codes[1, 20] = 0x01, 0x88  # a value; a block of minus zeros
    scales = torch.tensor([[100, 3], [254, 7]], dtype=torch.uint8)
    panels = convert(Packed(codes, scales, torch.ones(())), 2, recipe.format,
                     Layout.CANONICAL, Layout.PANEL16)  # fmt: skip
    assert panels.scales[:3].tolist() == [100, 127, 0]
    scales[1, 1] = 255
    panels = convert(Packed(codes, scales, torch.ones(())), 2, recipe.format,
                     Layout.CANONICAL, Layout.PANEL16)  # fmt: skip
    assert panels.scales[2] == 1


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_dequantize_reads_random_bytes_as_the_formula_says(recipe: Recipe) -> None:
    packed = random_packed(3, 64, recipe)
    values = reference.dequantize(packed, recipe.format)
    codes = unpack_nibbles(packed.codes)
    for row, k in ((0, 0), (1, 33), (2, 63)):
        element = recipe.format.element.decode(codes[row, k : k + 1])
        block = k // recipe.format.block_size
        scale = recipe.format.scale.decode(packed.scales[row, block : block + 1])
        assert torch.equal((element * scale * 1.5).nan_to_num(7),
                           values[row, k : k + 1].nan_to_num(7))  # fmt: skip
