"""FP4 prefill in plain torch: what it promises, and how far it is from float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from attention_inputs import explained
from fp4kernels.attention.accuracy import AttentionError, errors
from fp4kernels.attention.operands import TILE, Places, prepare
from fp4kernels.attention.problem import Mask, MaskKind, Segments
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.reference import attention
from fp4kernels.attention.simulate import rounded, simulate
from fp4kernels.attention.synthetic import KINDS, inputs
from fp4kernels.elements import E2M1, E4M3

FULL, CAUSAL, SLIDING = Mask(), Mask(MaskKind.CAUSAL), Mask(MaskKind.SLIDING, 70)


def whole(q: Tensor, k: Tensor) -> Segments:
    return Segments((0, len(q)), (0, len(k)))


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    recipe: str,
    mask: Mask = FULL,
    segments: Segments | None = None,
) -> tuple[Tensor, Tensor]:
    how, scale = attention_recipe(recipe), q.shape[-1] ** -0.5
    operands = prepare(q, k, v, segments or whole(q, k), how, scale)
    return simulate(operands, how, mask, scale, q.shape[-1])


def error(q: Tensor, k: Tensor, v: Tensor, recipe: str, mask: Mask = FULL) -> AttentionError:
    exact = attention(q, k, v, mask, whole(q, k))
    return errors(*run(q, k, v, recipe, mask), *exact)


@pytest.mark.parametrize("mask", [FULL, CAUSAL, SLIDING], ids=str)
@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4-single", "mxfp4"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_the_formats_own(kind: str, recipe: str, mask: Mask) -> None:
    q, k, v = inputs(kind, 300, 300, 4, 2, 128)
    found = error(q, k, v, recipe, mask)
    assert found.sqnr >= explained(attention_recipe(recipe))
    assert found.cosine >= 0.94
    assert found.mean <= 0.09


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp4", "nvfp4,p_scale=1", "nvfp4,reverse=1"])
def test_magnitude(recipe: str, head_dim: int) -> None:
    """Q = K = 0 and V = 1 give 1 and ln S: a halved output has a cosine of 1, too."""
    zeros, ones = torch.zeros(200, 2, head_dim), torch.ones(200, 2, head_dim)
    out, lse = run(zeros, zeros, ones, recipe)
    # quantized directly, a probability of 1 is 6 times the E4M3 number beside 1/6
    share = 1.03125 if recipe == "nvfp4,p_scale=1" else 1.0
    torch.testing.assert_close(out, ones * share, rtol=1e-6, atol=0)
    torch.testing.assert_close(lse, torch.full((2, 200), math.log(200)))


@pytest.mark.parametrize("rotate", [0, 1])
def test_a_structured_mean_of_q_is_added_back(rotate: int) -> None:
    """Without it, scores lose what the mean says about each key."""
    q, k, v = inputs("gaussian", 256, 256, 2, 2, 64)
    q = 0.1 * q + torch.linspace(-3, 3, 64) * torch.tensor([1.0, -1.0])[:, None]
    found = error(q, k, v, f"nvfp4,rotate={rotate}")
    assert found.sqnr >= explained(attention_recipe("nvfp4"))
    assert found.lse < 0.1
    how = attention_recipe("nvfp4")
    operands = prepare(q, k, v, whole(q, k), how, 0.125)
    assert operands.bias is not None
    operands.bias.zero_()
    wrong = errors(
        *simulate(operands, how, FULL, 0.125, 64), *attention(q, k, v, FULL, whole(q, k))
    )
    assert wrong.sqnr < 5


def test_a_short_query_over_a_long_prefix() -> None:
    q, k, v = inputs("gaussian", 3, 1000, 4, 1, 64)
    assert error(q, k, v, "nvfp4", CAUSAL).sqnr >= explained(attention_recipe("nvfp4"))
    assert error(q, k, v, "nvfp4", SLIDING).sqnr >= explained(attention_recipe("nvfp4"))


@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=str)
def test_sequences_do_not_see_each_other(mask: Mask) -> None:
    """One is empty, one has no keys, one ends on a tile; with block scales alone bits are equal."""
    q, k, v = inputs("outliers", 330, 480, 4, 2, 64)
    lengths = [(2, 130), (0, 0), (200, 222), (128, 128)] + ([(0, 0)] if mask.causal else [])
    if not mask.causal:
        q = torch.cat((q, q[:5]))
        lengths.append((5, 0))
    cu_q, cu_k = (tuple(itertools.accumulate(n, initial=0)) for n in zip(*lengths, strict=True))
    segments = Segments(cu_q, cu_k)
    out, lse = run(q, k, v, "nvfp4-single", mask, segments)
    for of_q, of_k in segments.spans:
        if of_k.start == of_k.stop:
            assert not out[of_q].any()
            assert bool((lse[:, of_q] == -math.inf).all())
            continue
        alone, alone_lse = run(q[of_q], k[of_k], v[of_k], "nvfp4-single", mask)
        torch.testing.assert_close(out[of_q], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse[:, of_q], alone_lse, rtol=1e-6, atol=1e-6)


def test_operands_start_on_tiles_and_callers_keep_theirs() -> None:
    q, k, v = inputs("biased-k", 130, 300, 4, 2, 96)
    before = [x.clone() for x in (q, k, v)]
    places = Places(Segments((0, 2, 130), (0, 257, 300)))
    assert (places.q, places.k, places.longest_q, places.longest_k) == (
        [0, TILE, 2 * TILE], [0, 3 * TILE, 4 * TILE], 128, 3 * TILE,
    )  # fmt: skip
    assert places.table(q.device).tolist() == [[2, 257, 0, 0, 0], [128, 43, 2, 128, 384]]
    operands = prepare(q, k, v, places.segments, attention_recipe("nvfp4"), 0.1)
    assert all(map(torch.equal, before, (q, k, v)))
    assert operands.q.codes.shape == (4, 2 * TILE, 64)
    assert operands.k.scales.shape == (2, 4 * TILE, 8)
    assert operands.v.codes.shape == (2, 128, 2 * TILE)
    assert not operands.k.codes[:, 257:384].any()
    assert not operands.q.codes[:, 2:TILE].any()
    assert not operands.v.codes[:, 96:].any()


def test_p_is_rounded_block_by_block() -> None:
    """Direct and two-level P, and both ways to divide, from the definition, one block at a time."""
    generator = torch.Generator().manual_seed(1)
    p = torch.exp2(-12 * torch.rand(1, 40, 32, generator=generator))
    p[0, 0, 16:] = 0
    for p_scale, round_scale in itertools.product((1.0, 448.0, 2688.0), (False, True)):
        how = attention_recipe(f"nvfp4,p_scale={p_scale},round_scale={int(round_scale)}")
        got = rounded(p * p_scale, how)
        for block, back in zip((p * p_scale).view(-1, 16), got.view(-1, 16), strict=True):
            wanted = block.max() / 6
            scale = E4M3.decode(E4M3.encode(wanted.clamp(max=448)))
            divisor = scale if round_scale else wanted
            codes = E2M1.encode(block / divisor) if divisor > 0 else torch.zeros(16).byte()
            torch.testing.assert_close(back, E2M1.decode(codes) * scale, rtol=1e-6, atol=0)


def test_direct_p_loses_small_probabilities() -> None:
    """Beside a sink all others lie below E4M3's smallest scale of 2^-9, times 6."""
    p = torch.full((1, 1, 32), 2.0**-13)
    assert not rounded(p, attention_recipe("nvfp4,p_scale=1")).any()
    assert bool(rounded(2688 * p, attention_recipe("nvfp4")).all())


@pytest.mark.parametrize(("better", "worse", "kind"), [
    ("nvfp4", "nvfp4,p_scale=1", "sink"),
    ("nvfp4", "mxfp4", "gaussian"),
    ("nvfp4", "nvfp4,smooth_q=0", "outliers"),
    ("nvfp4,smooth_q=0", "nvfp4,smooth_q=0,smooth_k=0", "outliers"),
    ("nvfp4,smooth_q=0,smooth_k=0", "mxfp4,smooth_q=0,smooth_k=0", "biased-k"),
])  # fmt: skip
def test_axes_order_as_published(better: str, worse: str, kind: str) -> None:
    q, k, v = inputs(kind, 256, 256, 2, 1, 128)
    assert error(q, k, v, better).sqnr > error(q, k, v, worse).sqnr + 0.2
