"""The KV cache against plain lists of tokens, and decode over it against the reference."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.attention import decoding
from fp4kernels.attention.cache import CacheShape, KVCache
from fp4kernels.attention.decoding import decode
from fp4kernels.attention.problem import Mask, MaskKind
from fp4kernels.attention.recipes import ATTENTION_RECIPES, K8V4_ATTENTION
from fp4kernels.attention.reference import attention
from fp4kernels.attention.storing import quantize_under
from fp4kernels.devices import surroundings
from fp4kernels.errors import CacheError, FormatError, WorkloadError
from fp4kernels.packing import Packed, unpack_nibbles
from fp4kernels.recipes import RECIPES
from fp4kernels.scalar import quantize as one_by_one

SMALL = CacheShape(pages=8, page_size=16, sequences=3, kv_heads=2, head_dim=64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(cache: KVCache) -> list[Tensor]:
    """Copies of everything that an append may change."""
    tensors = (*cache.keys, *cache.values, cache.page_table, cache.lengths)
    return [*(t.clone() for t in tensors), torch.tensor([cache.free_pages, cache.longest])]


@pytest.mark.parametrize("order", ["nhd", "hnd"])
@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp4", "k8v4"])
def test_tokens_come_back_as_each_is_quantized(recipe: str, order: str) -> None:
    """Appended one by one or many at once, on pages of other sequences, after evictions."""
    cache = KVCache(SMALL, recipe, order=order)
    how, chance = cache.recipe, random.Random(3)
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(3)]
    for step in range(12):
        counts = [chance.choice((0, 1, 1, 13)) for _ in range(3)]
        if not sum(counts) or sum(map(len, kept)) + sum(counts) > 80:
            victim = chance.randrange(3)
            if len(kept[victim]) > 16:
                cache.evict(victim, 16)
                kept[victim] = kept[victim][16:]
            else:
                cache.evict(victim)
                kept[victim] = []
            continue
        k, v = drawn(sum(counts), 2, 64, seed=step), drawn(sum(counts), 2, 64, seed=-step)
        cache.append(k, v, counts)
        rows = iter(zip(k, v, strict=True))
        for sequence, count in enumerate(counts):
            kept[sequence] += [next(rows) for _ in range(count)]
    assert all(kept)
    assert cache.free_pages == 8 - sum(-(-len(tokens) // 16) for tokens in kept)
    for sequence, tokens in enumerate(kept):
        assert cache.length(sequence) == int(cache.lengths[sequence]) == len(tokens)
        for got, want, of in zip(
            cache.dequantized(sequence), zip(*tokens, strict=True), (how.k, how.v), strict=True
        ):
            codes, scales = quantize_under(torch.stack(want), of, torch.ones(()))
            assert torch.equal(
                got, reference.dequantize(Packed(codes, scales, torch.ones(())), of.format)
            )


def test_the_layout_is_the_one_drawn() -> None:
    """One token by hand: page, place, low nibble first, blocks along D."""
    for order in ("nhd", "hnd"):
        cache = KVCache(SMALL, "nvfp4", order=order)
        cache.append(drawn(17, 2, 64), drawn(17, 2, 64), [17, 0, 0])
        x = torch.zeros(1, 2, 64)
        x[0, 0, 16:20] = torch.tensor([6.0, -0.5, 1.5, 12.0])
        cache.append(x, x, [1, 0, 0])
        page = int(cache.page_table[0, 1])
        at = (page, 1, 0) if order == "nhd" else (page, 0, 1)  # place 1, head 0
        assert cache.v_scales[at].tolist() == [0, 0x40, 0, 0]  # 12 / 6 = 2
        assert cache.v_codes[at][8:10].tolist() == [0x85, 0x72]  # 3, -0.25 → -0; 0.75 → 1, 6
        assert cache.k_codes.shape == ((8, 16, 2, 32) if order == "nhd" else (8, 2, 16, 32))


def test_blocks_under_a_given_scale_are_those_of_the_single_format() -> None:
    """Bit for bit, every block alone, with a scale of 1; other scales move the range."""
    nv, single = RECIPES["nvfp4"], RECIPES["nvfp4-single"]
    x = drawn(40, 64) * torch.exp2(torch.arange(40.0) - 20)[:, None]
    codes, scales = quantize_under(x, nv, torch.ones(()))
    expected = one_by_one(x.tolist(), single)
    assert unpack_nibbles(codes).tolist() == expected.codes
    assert scales.tolist() == expected.scales
    for power in (-40, 30):
        moved = quantize_under(x * 2.0**power, nv, torch.tensor(2.0**power))
        assert torch.equal(moved[0], codes)
        assert torch.equal(moved[1], scales)


def test_what_overflows_a_scale_is_clipped_and_nan_stays() -> None:
    nv = RECIPES["nvfp4"]
    x = torch.zeros(1, 48)
    x[0, 0], x[0, 16], x[0, 33] = 3e38, math.inf, -5000.0
    codes, scales = quantize_under(x, nv, torch.tensor(2.0**-64))
    back = reference.dequantize(Packed(codes, scales, torch.tensor(2.0**-64)), nv.format)[0]
    assert back[0] == 2688 * 2.0**-64
    assert bool(back[16:32].isnan().all())
    assert back[33] == -2688 * 2.0**-64
    assert int((back != 0).sum()) == 2 + 16


@pytest.mark.parametrize(("head_dim", "recipe", "rotate"), [
    (64, "nvfp4", False), (96, "mxfp4", True), (128, "k8v4", False), (256, "nvfp4", True),
    (64, "k8v4", True), (128, "mxfp4", False),
])  # fmt: skip
def test_decode_is_the_reference_over_what_is_held(
    head_dim: int, recipe: str, rotate: bool
) -> None:
    shape = CacheShape(pages=9, page_size=16, sequences=3, kv_heads=2, head_dim=head_dim)
    cache = KVCache(shape, f"{recipe},rotate={int(rotate)}", order="hnd" if rotate else "nhd")
    cache.append(drawn(60, 2, head_dim), drawn(60, 2, head_dim, seed=1), [41, 0, 19])
    q = drawn(3, 2, 8, head_dim, seed=2)
    for window in (None, 7):
        out, lse = decode(q, cache, window=window)
        assert torch.equal(out[1], torch.zeros_like(out[1]))
        assert bool((lse[1] == -math.inf).all())
        mask = Mask(MaskKind.SLIDING, window) if window else Mask(MaskKind.CAUSAL)
        for sequence in (0, 2):
            k, v = (x[None] for x in cache.dequantized(sequence))
            exact, exact_lse = attention(q[sequence : sequence + 1], k, v, mask)
            torch.testing.assert_close(out[sequence].double(), exact[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lse[sequence].double(), exact_lse[0], rtol=1e-5, atol=1e-5)


def test_rotation_and_eight_bits_help_keys_with_outliers() -> None:
    """A channel of each block is ten times the others."""
    k = drawn(64, 1, 128)
    k[..., 5::32] *= 10
    errors = {}
    for recipe in ("mxfp4", "mxfp4,rotate=1", "k8v4"):
        cache = KVCache(CacheShape(4, 16, 1, 1, 128), recipe)
        cache.append(k, k, [64])
        errors[recipe] = float((cache.dequantized(0)[0] - k).square().sum())
    assert errors["mxfp4,rotate=1"] < 0.8 * errors["mxfp4"]
    assert errors["k8v4"] < 0.1 * errors["mxfp4"]


def test_bytes_per_token() -> None:
    """NVFP4 72 bytes for each of K and V of a head of 128, MXFP4 68, against 256 of bf16."""
    shape = CacheShape(2, 16, 1, 4, 128)
    sizes = {name: KVCache(shape, name).bytes_per_token // 4 for name in ATTENTION_RECIPES}
    assert sizes == {"nvfp4": 144, "nvfp4-single": 144, "mxfp4": 136, "k8v4": 132 + 72}
    assert K8V4_ATTENTION.k.format.bits_per_value == 8.25


NEW = torch.zeros(4, 2, 64)


def with_nan(bad: float) -> Tensor:
    x = NEW.clone()
    x[3, 1, 63] = bad
    return x


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ((NEW, NEW[:3], [4, 0, 0]), WorkloadError, r"new k and v are \[T, 2, 64\]"),
    ((NEW[:, :1], NEW[:, :1], [4, 0, 0]), WorkloadError, "new k and v are"),
    ((NEW[..., :32], NEW[..., :32], [4, 0, 0]), WorkloadError, "new k and v are"),
    ((NEW[:0], NEW[:0], [0, 0, 0]), WorkloadError, "T of at least 1"),
    ((NEW, NEW, [4, 0]), WorkloadError, "a number for each of 3 sequences"),
    ((NEW, NEW, [3, 0, 0]), WorkloadError, "4 in all, but got"),
    ((NEW, NEW, [5, -1, 0]), WorkloadError, "4 in all, but got"),
    ((NEW.int(), NEW.int(), [4, 0, 0]), FormatError, "floating tensors on cpu"),
    ((with_nan(math.nan), NEW, [4, 0, 0]), FormatError, "k holds NaN or Inf"),
    ((NEW, with_nan(-math.inf), [4, 0, 0]), FormatError, "v holds NaN or Inf"),
    ((drawn(93, 2, 64), drawn(93, 2, 64), [1, 92, 0]), CacheError,
     "93 tokens need 7 free pages of 16, but 6 of 8 are free"),
])  # fmt: skip
def test_a_bad_append_writes_nothing(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    cache = KVCache(SMALL)
    cache.append(drawn(32, 2, 64), drawn(32, 2, 64), [16, 0, 16])
    before = stored(cache)
    with pytest.raises(error, match=words):
        cache.append(*arguments)
    assert all(map(torch.equal, before, stored(cache)))
    cache.append(drawn(96, 2, 64), drawn(96, 2, 64), [0, 96, 0])  # no page was lost
    assert cache.free_pages == 0


def test_an_unchecked_cache_keeps_nan() -> None:
    cache = KVCache(SMALL, checked=False)
    cache.append(with_nan(math.nan), NEW, [4, 0, 0])
    k, _ = cache.dequantized(0)
    assert bool(k[3, 1, 48:].isnan().all())
    assert int(k.isnan().sum()) == 16


def test_only_what_is_held_can_be_evicted() -> None:
    cache = KVCache(SMALL)
    cache.append(drawn(40, 2, 64), drawn(40, 2, 64), [40, 0, 0])
    before = stored(cache)
    for sequence, tokens in ((3, None), (-1, None), (0, 48), (0, 8), (0, -16), (1, 16)):
        with pytest.raises(CacheError):
            cache.evict(sequence, tokens)
    assert all(map(torch.equal, before, stored(cache)))
    cache.evict(0, 32)
    assert (cache.length(0), cache.free_pages) == (8, 7)
    cache.evict(0)
    assert (cache.longest, cache.free_pages) == (0, 8)


@pytest.mark.parametrize(("shape", "options", "error", "words"), [
    ((8, 24, 3, 2, 64), {}, FormatError, "page size must be one of"),
    ((8, 16, 3, 2, 72), {}, FormatError, "head dim must be one of"),
    ((0, 16, 3, 2, 64), {}, WorkloadError, "at least one page"),
    ((8, 16, 3, 2, 64), {"recipe": "nvfp8"}, FormatError, "did you mean 'nvfp4'"),
    ((8, 16, 3, 2, 64), {"order": "nhx"}, FormatError, "did you mean 'nhd'"),
    ((8, 16, 3, 2, 64), {"k_scale": 0.0}, FormatError, r"between 2\^-64 and 2\^64"),
    ((8, 16, 3, 2, 64), {"v_scale": math.nan}, FormatError, r"between 2\^-64 and 2\^64"),
    ((8, 16, 3, 2, 64), {"recipe": "mxfp4", "v_scale": 2.0}, FormatError, "no tensor scale"),
    ((8, 16, 3, 2, 64), {"recipe": "k8v4", "k_scale": 2.0}, FormatError, "no tensor scale"),
])  # fmt: skip
def test_a_cache_that_cannot_be_is_refused(
    shape: tuple[int, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        KVCache(CacheShape(*shape), **options)


@pytest.mark.parametrize(("q", "window", "error", "words"), [
    (torch.zeros(2, 1, 4, 64), None, WorkloadError, r"q is \[3, Sq, heads, 64\]"),
    (torch.zeros(3, 0, 4, 64), None, WorkloadError, "at least one query"),
    (torch.zeros(3, 1, 4, 128), None, WorkloadError, "q is"),
    (torch.zeros(3, 1, 3, 64), None, WorkloadError, "multiple of kv heads, but got 3 and 2"),
    (torch.zeros(3, 1, 4, 64).double(), None, FormatError, "bfloat16, float16 or float32"),
    (torch.zeros(3, 1, 4, 64), 0, WorkloadError, "at least one key, but got 0"),
    (torch.zeros(3, 6, 4, 64), None, WorkloadError, "sequence 2 holds 5 of 6"),
    (torch.full((3, 1, 4, 64), math.nan), None, FormatError, "q holds NaN"),
])  # fmt: skip
def test_a_bad_query_is_refused(
    q: Tensor, window: int | None, error: type[Exception], words: str
) -> None:
    cache = KVCache(SMALL)
    cache.append(drawn(25, 2, 64), drawn(25, 2, 64), [20, 0, 5])
    with pytest.raises(error, match=words):
        decode(q, cache, window=window)


def test_the_ops_are_sound_for_compilers() -> None:
    from fp4kernels.attention.decoding import decode_op
    from fp4kernels.attention.storing import append_op

    cache = KVCache(SMALL)
    cache.append(drawn(25, 2, 64), drawn(25, 2, 64), [20, 0, 5])
    q = drawn(3, 2, 4, 64)
    torch.library.opcheck(decode_op, (
        q, *cache.keys, *cache.values, cache.page_table, cache.lengths, 20, "nvfp4", "nhd", 0, 0.1,
    ))  # fmt: skip
    slots = torch.tensor([70, 71])
    torch.library.opcheck(append_op, (
        drawn(2, 2, 64), drawn(2, 2, 64), *cache.keys, *cache.values, slots, "nvfp4", "nhd",
    ))  # fmt: skip


def test_decode_without_a_compiler_is_the_plain_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(SMALL, "nvfp4")
    cache.append(drawn(30, 2, 64), drawn(30, 2, 64, seed=1), [17, 0, 13])
    q = drawn(3, 1, 4, 64, seed=2)
    fast = decode(q, cache)
    device, toolchain = surroundings("cpu")
    without = device, dataclasses.replace(toolchain, compiler=None, compiler_version=None)
    monkeypatch.setattr(decoding, "surroundings", lambda kind: without)
    monkeypatch.setattr(decoding, "by_cpp", None)  # calling it fails
    for plain, other in zip(decode(q, cache), fast, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-5)
