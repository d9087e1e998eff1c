"""The C++ decode kernel: every instruction set that this machine runs, against float64."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from fp4kernels.attention import decoding
from fp4kernels.attention.cache import CacheShape, KVCache
from fp4kernels.attention.problem import Mask, MaskKind
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.reference import attention
from fp4kernels.attention.storing import Held, Order
from fp4kernels.cpu.attention import (
    BF16,
    DecodeConfig,
    DecodeKernel,
    default_config,
    format_number,
    formats_of,
    malformed,
)
from fp4kernels.cpu.build import compile_object, load
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import MXFP6_E2M3
from fp4kernels.transforms import transformed
from test_cpu_gemm import with_isa

ISAS = ["avx512vnni", "avx2", "portable"]
EPS = 2.0**-24  # half a unit of float32
PRECISE = DecodeConfig(q_bytes=3, p_bytes=3)
SMALL = dataclasses.replace(PRECISE, rows=3, tile=16, split=32, ahead=2)
CASES = [  # between them: every format, head dim and field at several values
    ("nvfp4", 128, "nhd", PRECISE),
    ("nvfp4", 64, "hnd", dataclasses.replace(SMALL, q_bytes=2, p_bytes=2)),
    ("mxfp4", 96, "nhd", DecodeConfig(rows=8, tile=32, split=64, ahead=0, q_bytes=3, p_bytes=1)),
    ("mxfp4", 256, "hnd", dataclasses.replace(PRECISE, rows=1, tile=32, split=64, ahead=1)),
    ("k8v4", 128, "nhd", SMALL),
    ("nvfp4", 128, "nhd", DecodeConfig()),
    ("nvfp4", 256, "nhd", DecodeConfig(rows=4, tile=32, split=64, q_bytes=1, p_bytes=1)),
    ("mxfp4", 64, "nhd", DecodeConfig(rows=8, tile=16, split=64, q_bytes=1, p_bytes=2)),
]  # fmt: skip
# plain C++ is one for all FP4: two cases are enough where there is no AVX-512
PATHS = [(isa, case) for isa in ISAS for case in (CASES if isa == ISAS[0] else CASES[1::3])]
LENGTHS = (0, 211, 3, 15, 16, 17)  # around a page, empty, and odd


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(recipe: str, head_dim: int, order: str, lengths: tuple[int, ...]) -> KVCache:
    cache = KVCache(CacheShape(24, 16, len(lengths), 2, head_dim), recipe, order=order)
    tokens = sum(lengths)
    cache.append(drawn(tokens, 2, head_dim), drawn(tokens, 2, head_dim, seed=1), lengths)
    return cache


def launched(
    kernel: DecodeKernel, q: Tensor, cache: KVCache, window: int = 0
) -> tuple[Tensor, Tensor]:
    turned, _ = transformed(q, cache.recipe.rotation(q.shape[-1]))
    return kernel(
        turned, cache.keys, cache.values, cache.page_table, cache.lengths, cache.order,
        window=window, scale=q.shape[-1] ** -0.5,
    )  # fmt: skip


def built(
    recipe: str, head_dim: int, config: DecodeConfig, device: Device, toolchain: Toolchain
) -> DecodeKernel:
    formats = formats_of(attention_recipe(recipe))
    return DecodeKernel(formats, head_dim, config, device, toolchain)


def agree(
    got: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, window: int, config: DecodeConfig
) -> None:
    """One sequence within what rounding explains, at the worst: q, k and v [tokens, heads, D].

    A score is off by q's rounding (half a unit, which is 2^(2-8 bytes) of the row's largest value
    at most) over the sum of |k|, and by one rounding for each of D sums (of float32; integers need
    fewer) of |q k|. The weights are off by twice as much as the scores, relatively, and by half a
    unit of the largest; the rest is rounded once for every key.
    """
    mask = Mask(MaskKind.SLIDING, window) if window else Mask(MaskKind.CAUSAL)
    exact, exact_lse = attention(q[None], k[None], v[None], mask)
    group, head_dim, keys = q.shape[1] // k.shape[1], q.shape[2], len(k)
    x, y, z = (t.double().abs() for t in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))  # fmt: skip
    largest = x.amax(-1)[..., None]  # [queries, heads, 1]
    sums = y.sum(-1).amax(0)[:, None]
    products = torch.einsum("qhd,khd->qhk", x, y).amax(-1)[..., None]
    unit = 2.0 ** (1 - 8 * config.q_bytes) * largest * sums
    score = head_dim**-0.5 * (unit + (head_dim + 8) * EPS * products)
    top = z.amax(0)  # [heads, D]
    weights = 2 * score + (keys + 16) * EPS + keys * 2.0 ** (-8 * config.p_bytes)
    out, lse = got
    assert bool(((out - exact[0]).abs() <= weights * top).all())
    bound = (score[..., 0] + 8 * EPS * (1 + exact_lse[0].T.abs()) + keys * EPS).T
    assert bool(((lse - exact_lse[0]).abs() <= bound).all())


@pytest.mark.parametrize(
    ("isa", "case"), PATHS, ids=lambda x: x if isinstance(x, str) else f"{x[0]}-{x[1]}"
)
def test_every_path_is_the_reference(
    isa: str, case: tuple[str, int, str, DecodeConfig], cpu: Device, toolchain: Toolchain
) -> None:
    recipe, head_dim, order, config = case
    kernel = built(recipe, head_dim, config, with_isa(cpu, isa), toolchain)
    for rotate, (group, queries, window) in itertools.product(
        (0, 1), [(1, 1, 0), (4, 3, 0), (8, 1, 7), (4, 2, 40)]
    ):
        cache = filled(f"{recipe},rotate={rotate}", head_dim, order, LENGTHS)
        q = drawn(len(LENGTHS), queries, 2 * group, head_dim, seed=2)
        out, lse = launched(kernel, q, cache, window)
        assert torch.equal(out[0], torch.zeros_like(out[0]))
        assert bool((lse[0] == -math.inf).all())
        for sequence in range(1, len(LENGTHS)):
            k, v = cache.dequantized(sequence)
            agree((out[sequence], lse[sequence]), q[sequence], k, v, window, config)


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 2), (torch.float16, 3)])
def test_the_integers_of_a_default_round_less_than_its_output(
    dtype: torch.dtype, count: int, cpu: Device, toolchain: Toolchain
) -> None:
    """Queries with outlying channels, so that few keys take most of the weight."""
    config = default_config(4, dtype)
    assert (config.q_bytes, config.p_bytes) == (count, count)
    cache = filled("nvfp4", 128, "nhd", (380,))
    q = drawn(1, 1, 8, 128, seed=2)
    q[..., 5::32] *= 20
    q = q.to(dtype).float()
    exact = attention(q, *(x[None] for x in cache.dequantized(0)))[0]
    out, _ = launched(built("nvfp4", 128, config, cpu, toolchain), q, cache)
    own = (out - exact).square().mean().sqrt()
    rounded = (exact.to(dtype).double() - exact).square().mean().sqrt()
    assert own < rounded / 8


def test_one_key_is_its_value(cpu: Device, toolchain: Toolchain) -> None:
    cache = filled("nvfp4", 128, "nhd", (1, 1))
    kernel = built(*CASES[0][:2], CASES[0][3], cpu, toolchain)
    out, lse = launched(kernel, drawn(2, 1, 8, 128, seed=4), cache)
    for sequence in range(2):
        value = cache.dequantized(sequence)[1][0].repeat_interleave(4, 0)
        torch.testing.assert_close(out[sequence, 0], value, rtol=2.0**-21, atol=0)
    assert bool(lse.isfinite().all())


def test_equal_keys_give_the_mean_and_the_logarithm_of_their_number() -> None:
    """Q = K = 0 and V = 1, through the op: a lost or doubled key cannot hide."""
    for recipe, length in itertools.product(("nvfp4", "mxfp4", "k8v4"), (1, 15, 16, 17, 333)):
        cache = KVCache(CacheShape(24, 16, 1, 2, 128), recipe)
        zeros = torch.zeros(length, 2, 128)
        cache.append(zeros, zeros + 1, [length])
        out, lse = decoding.decode(torch.zeros(1, 1, 8, 128), cache)
        expected = cache.dequantized(0)[1][:1].repeat_interleave(4, 1)
        torch.testing.assert_close(out[0], expected, rtol=2.0**-20, atol=0)
        torch.testing.assert_close(
            lse, torch.full_like(lse, math.log(length)), rtol=2.0**-20, atol=2.0**-22
        )


@pytest.mark.parametrize("isa", ISAS)
def test_the_result_does_not_depend_on_the_number_of_threads(
    isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    recipe, head_dim, order, config = CASES[1]
    cache, q = filled(recipe, head_dim, order, (300, 0, 41)), drawn(3, 2, 8, head_dim, seed=3)
    outs = []
    for cores in (1, 2, 5):
        device = dataclasses.replace(with_isa(cpu, isa), cores=cores)
        outs.append(launched(built(recipe, head_dim, config, device, toolchain), q, cache))
    for other in outs[1:]:
        assert all(map(torch.equal, outs[0], other))


@pytest.mark.parametrize("isa", ISAS)
def test_powers_of_two(isa: str, cpu: Device, toolchain: Toolchain) -> None:
    """Within 2^-23 of 2^x; nothing below 2^-125; NaN stays."""
    head_dim, config = CASES[1][1], CASES[1][3]
    defines = {name.upper(): value for name, value in dataclasses.asdict(config).items()}
    defines |= {"KEYS": 0, "VALUES": 0, "HEAD_DIM": head_dim}
    library = load(compile_object("attention_decode.cpp", defines, with_isa(cpu, isa), toolchain))
    x = torch.cat([torch.linspace(-124.9, 0, 1 << 16), torch.linspace(-1, 0, 1 << 14)])
    x[0], x[1], x[2], x[3] = -math.inf, -126.0, math.nan, 0.0
    got = torch.empty_like(x)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, got))
    library.attention_exp2(*pointers, ctypes.c_int64(len(x)))
    assert got[:2].tolist() == [0, 0]
    assert bool(got[2].isnan())
    assert got[3] == 1
    exact = torch.exp2(x[4:].double())
    assert float(((got[4:] - exact) / exact).abs().max()) <= 2.0**-23


@pytest.mark.parametrize(("recipe", "byte"), [
    ("nvfp4", 0x7F), ("nvfp4", 0xB8), ("nvfp4", 0), ("mxfp4", 255), ("mxfp4", 0), ("mxfp4", 193),
])  # fmt: skip
def test_scales_that_no_quantizer_writes(
    recipe: str, byte: int, cpu: Device, toolchain: Toolchain
) -> None:
    """NaN, negative, zero or very large, in one block of a value and a key."""
    head_dim, config = (128, CASES[0][3]) if recipe == "nvfp4" else (96, CASES[2][3])
    cache = filled(recipe, head_dim, "nhd", (40, 40))
    cache.v_scales[cache.page_table[0, 1], 3, 0, 1] = byte
    cache.k_scales[cache.page_table[1, 1], 3, 0, 1] = byte
    q = drawn(2, 1, 2, head_dim, seed=3) * 2.0**-66
    out, lse = launched(built(recipe, head_dim, config, cpu, toolchain), q, cache)
    for sequence in range(2):
        k, v = (x[None] for x in cache.dequantized(sequence))
        exact, exact_lse = attention(q[sequence : sequence + 1], k, v)
        torch.testing.assert_close(
            out[sequence].double(), exact[0], rtol=1e-2, atol=1e-2, equal_nan=True
        )
        torch.testing.assert_close(
            lse[sequence].double(), exact_lse[0], rtol=1e-5, atol=1e-5, equal_nan=True
        )


def test_queries_that_are_not_finite_give_nan(cpu: Device, toolchain: Toolchain) -> None:
    cache, q = filled("nvfp4", 128, "nhd", (40, 40)), drawn(2, 1, 2, 128)
    q[1, 0, 1, 5] = math.inf
    out, _ = launched(built(*CASES[0][:2], CASES[0][3], cpu, toolchain), q, cache)
    assert bool(out[1, 0, 1].isnan().all())
    assert int(out.isnan().sum()) == 128


def test_a_cache_in_bfloat16(cpu: Device, toolchain: Toolchain) -> None:
    """What FP4 is compared with."""
    config = dataclasses.replace(SMALL, rows=4)
    kernel = DecodeKernel((BF16, BF16), 128, config, cpu, toolchain)
    k, v = (drawn(3, 16, 2, 128, seed=seed).bfloat16() for seed in (0, 1))
    none, one = torch.zeros(1, dtype=torch.uint8), torch.ones(())
    q = drawn(1, 2, 8, 128, seed=2)
    out, lse = kernel(
        q, Held(k, none, one), Held(v, none, one), torch.tensor([[2, 0, 1]], dtype=torch.int32),
        torch.tensor([39], dtype=torch.int32), Order.NHD, window=0, scale=128**-0.5,
    )  # fmt: skip
    held = (x[torch.tensor([2, 0, 1])].flatten(0, 1)[:39].float() for x in (k, v))
    agree((out[0], lse[0]), q[0], *held, 0, PRECISE)


@pytest.mark.parametrize(("changes", "words"), [
    ({"rows": 0}, "between 1 and 16 rows"),
    ({"tile": 24}, "a tile has 16, 32, 64, 128 keys, but got 24"),
    ({"split": 96}, "a split is whole tiles, up to 65536 keys, but got 96"),
    ({"split": 1 << 20}, "up to 65536 keys"),
    ({"ahead": -1}, "0 to 8 tiles ahead, but got -1"),
    ({"q_bytes": 0}, "but got 0 and 3"),
    ({"p_bytes": 4}, "but got 3 and 4"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(
    changes: dict[str, int], words: str, cpu: Device, toolchain: Toolchain
) -> None:
    config = dataclasses.replace(DecodeConfig(q_bytes=3, p_bytes=3), **changes)
    assert words in str(malformed(config))
    with pytest.raises(BuildError, match="but got"):
        DecodeKernel((0, 0), 128, config, cpu, toolchain)


def test_other_formats_and_head_dims_are_refused(cpu: Device, toolchain: Toolchain) -> None:
    with pytest.raises(FormatError, match="reads K and V in nvfp4, mxfp4 and mxint8"):
        format_number(MXFP6_E2M3)
    with pytest.raises(BuildError, match="the head dim must be one of"):
        DecodeKernel((0, 0), 72, DecodeConfig(), cpu, toolchain)
