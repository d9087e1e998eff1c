"""Layouts: lossless both ways, and the bytes lie where the drawing says."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchao.prototype.mx_formats.utils import from_blocked, to_blocked

from fp4kernels import reference
from fp4kernels.errors import LayoutError
from fp4kernels.formats import FORMATS, BlockFormat
from fp4kernels.layouts import PANEL_HEADER, Layout, convert, held_bytes, reciprocal
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.swizzle import swizzled, swizzled_size, unswizzled

BOTH = [RECIPES["mxfp4"], RECIPES["nvfp4"]]
ANY_BYTES = [layout for layout in Layout if layout is not Layout.FOLDED]  # see test_folding.py
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 21))


def random_packed(n: int, k: int, fmt: BlockFormat) -> Packed:
    """Every byte value may occur: what a file may hold, not what a quantizer writes."""
    generator = torch.Generator().manual_seed(n * k)
    codes = torch.randint(0, 256, fmt.codes_shape((n, k)), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 256, fmt.scales_shape((n, k)), generator=generator)
    return Packed(codes, scales.to(fmt.scale.dtype), torch.tensor(1.5))


def there(packed: Packed, n: int, fmt: BlockFormat, target: Layout) -> Packed:
    return convert(packed, n, fmt, Layout.CANONICAL, target)


def size_of(packed: Packed) -> int:
    return packed.codes.nbytes + packed.scales.nbytes


def test_element_0_sits_in_the_low_nibble() -> None:
    codes = torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0xF3]]
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (37, 96), (48, 576), (129, 160)])
@pytest.mark.parametrize("way", [*itertools.permutations(ANY_BYTES)])
def test_every_way_through_all_layouts_is_lossless(
    recipe: Recipe, shape: tuple[int, int], way: tuple[Layout, ...]
) -> None:
    packed, n = random_packed(*shape, recipe.format), shape[0]
    held, source = packed, Layout.CANONICAL
    for target in way:
        held = convert(held, n, recipe.format, source, target, shape[1])
        assert size_of(held) == held_bytes(*shape, recipe.format, target)
        for got, direct in zip(held, there(packed, n, recipe.format, target), strict=True):
            assert torch.equal(got, direct)
        source = target
    back = convert(held, n, recipe.format, source, Layout.CANONICAL, shape[1])
    for ours, original in zip(back, packed, strict=True):
        assert torch.equal(ours, original)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_every_format_swizzles_or_says_why_not(fmt: BlockFormat) -> None:
    packed = random_packed(160, 640, fmt)
    assert size_of(packed) == held_bytes(160, 640, fmt, Layout.CANONICAL)
    if fmt.block_shape in ((1, 16), (1, 32), (1, 64), (1, 128)) and fmt.scale.bits == 8:
        line = there(packed, 160, fmt, Layout.SWIZZLED)
        assert size_of(line) == held_bytes(160, 640, fmt, Layout.SWIZZLED)
        back = convert(line, 160, fmt, Layout.SWIZZLED, Layout.CANONICAL)
        assert torch.equal(back.scales, packed.scales)
        assert back.codes is packed.codes
    else:
        with pytest.raises(LayoutError, match=f"but {fmt.name} has {fmt.scale} scales of"):
            there(packed, 160, fmt, Layout.SWIZZLED)
    if fmt.name not in ("mxfp4", "nvfp4"):
        for layout in (Layout.PANEL16, Layout.INTERLEAVED):
            with pytest.raises(LayoutError, match=f"mxfp4 and nvfp4, but got {fmt.name}"):
                there(packed, 160, fmt, layout)


@given(SIZES)
def test_swizzled_scales_are_torchaos_byte_for_byte(size: tuple[int, int]) -> None:
    scales = torch.randint(0, 256, size, dtype=torch.uint8)
    line = swizzled(scales)
    assert line.numel() == swizzled_size(*size)
    assert torch.equal(line, to_blocked(scales))
    assert torch.equal(unswizzled(line, *size), scales)
    assert torch.equal(unswizzled(line, *size), from_blocked(line, *size))


@given(SIZES)
def test_a_swizzled_scale_lies_where_the_formula_says(size: tuple[int, int]) -> None:
    scales = torch.randint(1, 256, size, dtype=torch.uint8)
    row, column = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    tile = row // 128 * -(-size[1] // 4) + column // 4
    line, at = swizzled(scales), tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
    assert torch.equal(line[at], scales)
    assert line.count_nonzero() == scales.numel()  # the rest is padding


def test_a_reciprocal_returns_every_float32_bit_for_bit() -> None:
    mantissas = torch.arange(1 << 23, dtype=torch.int32)
    for exponent in (0, 1, 126, 127, 254):
        scales = (mantissas | exponent << 23).view(torch.float32)
        other = reciprocal(scales)
        assert other.dtype is torch.float64
        assert torch.equal(reciprocal(other).view(torch.int32), scales.view(torch.int32))
    special = torch.tensor([0.0, float("inf"), float("nan")])
    assert torch.equal(reciprocal(reciprocal(special)).nan_to_num(7), special.nan_to_num(7))


def test_a_reciprocal_in_float32_is_within_an_ulp_of_the_way_back() -> None:
    scales = (torch.arange(1 << 23, dtype=torch.int32) | 127 << 23).view(torch.float32)
    back = reciprocal(reciprocal(scales).float().double())
    off = (back.view(torch.int32) - scales.view(torch.int32)).abs()
    assert off.max() == 1
    assert 0.17 < off.float().mean() < 0.18


def test_the_two_conventions_of_a_checkpoint() -> None:
    """amax / 2688 and 2688 / amax, each rounded to float32 on its own."""
    amax = torch.rand(10000, generator=torch.Generator().manual_seed(1)).double() * 40 + 0.01
    direct, inverse = (amax / 2688).float(), (2688 / amax).float()
    off = reciprocal(direct).float().view(torch.int32) - inverse.view(torch.int32)
    assert off.abs().max() <= 1


def test_a_panel_line_reads_as_drawn() -> None:
    recipe = RECIPES["mxfp4"]
    packed = random_packed(20, 64, recipe.format)
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
    packed = random_packed(3, 64, recipe.format)
    values = reference.dequantize(packed, recipe.format)
    codes = unpack_nibbles(packed.codes)
    for row, k in ((0, 0), (1, 33), (2, 63)):
        element = recipe.format.element.decode(codes[row, k : k + 1])
        block = k // recipe.format.block_size
        scale = recipe.format.scale.decode(packed.scales[row, block : block + 1])
        assert torch.equal((element * scale * 1.5).nan_to_num(7),
                           values[row, k : k + 1].nan_to_num(7))  # fmt: skip
