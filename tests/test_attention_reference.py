"""The reference of attention against torch's own in float64, and everything it must refuse."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fp4kernels.attention import accuracy, recipes
from fp4kernels.attention.problem import (
    Mask,
    MaskKind,
    check_finite,
    mask_named,
    segments_of,
)
from fp4kernels.attention.reference import attention
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.recipes import RECIPES

CAUSAL = Mask(MaskKind.CAUSAL)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_torch(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """[B, S, H, D] with a mask bool [Sq, Sk]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


def seen_by(mask: Mask, queries: int, keys: int) -> Tensor:
    """Pair by pair, from the definition."""
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for i, j in itertools.product(range(queries), range(keys)):
        back = i + keys - queries - j
        seen[i, j] = not mask.causal or (back >= 0 and (not mask.window or back < mask.window))
    return seen


@pytest.mark.parametrize("mask", [Mask(), CAUSAL, Mask(MaskKind.SLIDING, 3)], ids=str)
@pytest.mark.parametrize(("queries", "keys", "heads", "kv_heads", "head_dim"), [
    (7, 7, 4, 4, 64), (3, 11, 4, 1, 96), (1, 9, 8, 2, 128), (5, 6, 2, 2, 256),
])  # fmt: skip
def test_agrees_with_torch(
    mask: Mask, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    q = drawn(2, queries, heads, head_dim)
    k, v = (drawn(2, keys, kv_heads, head_dim, seed=seed) for seed in (1, 2))
    seen = seen_by(mask, queries, keys)
    assert torch.equal(mask.visible(queries, keys, q.device), seen)
    out, lse = attention(q, k, v, mask)
    torch.testing.assert_close(out, by_torch(q, k, v, seen), rtol=1e-12, atol=1e-12)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(heads // kv_heads, 2))
    scores = (scores / head_dim**0.5).masked_fill(~seen, -math.inf)
    torch.testing.assert_close(lse, scores.exp().sum(-1).log(), rtol=1e-12, atol=1e-12)


def test_magnitude() -> None:
    """Q = K = 0 and V = 1 give 1 and ln S: a halved output has a cosine of 1, too."""
    zeros, ones = torch.zeros(1, 37, 2, 64), torch.ones(1, 37, 2, 64)
    out, lse = attention(zeros, zeros, ones, dtype=torch.float32)
    torch.testing.assert_close(out, ones)
    torch.testing.assert_close(lse, torch.full((1, 2, 37), math.log(37)))


def test_several_sequences_are_as_each_alone() -> None:
    """One of them empty, and one with queries but no keys."""
    q, k, v = drawn(9, 4, 64), drawn(12, 2, 64, seed=1), drawn(12, 2, 64, seed=2)
    segments = segments_of(q, k, (0, 4, 4, 7, 9), (0, 5, 5, 12, 12))
    out, lse = attention(q, k, v, segments=segments)
    for of_q, of_k in [(slice(0, 4), slice(0, 5)), (slice(4, 7), slice(5, 12))]:
        alone, alone_lse = attention(q[None, of_q], k[None, of_k], v[None, of_k])
        assert torch.equal(out[of_q], alone[0])
        assert torch.equal(lse[:, of_q], alone_lse[0])
    assert torch.equal(out[7:], torch.zeros_like(out[7:]))
    assert bool((lse[:, 7:] == -math.inf).all())


def test_scale_is_used() -> None:
    q, k, v = drawn(1, 3, 1, 64), drawn(1, 5, 1, 64, seed=1), drawn(1, 5, 1, 64, seed=2)
    given, _ = attention(2 * q, k, v, scale=1 / 16)
    assert torch.equal(given, attention(q, k, v)[0])


Q, K = torch.zeros(1, 4, 4, 64), torch.zeros(1, 6, 2, 64)
FLAT_Q, FLAT_K = Q.flatten(0, 1), K.flatten(0, 1)


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ((torch.zeros(1, 4, 4, 80), torch.zeros(1, 6, 2, 80), torch.zeros(1, 6, 2, 80)), FormatError,
     r"head dim must be one of \(64, 96, 128, 256\), but got 80"),
    ((Q[:, :0], K, K), WorkloadError, "at least one query"),
    ((Q, K[:, :0], K[:, :0]), WorkloadError, "at least one query, key"),
    ((torch.zeros(1, 7, 4, 64), K, K, CAUSAL), WorkloadError,
     "sequence 0 has 7 queries and 6 keys"),
    ((Q, K, K[:, :5]), WorkloadError, "k and v of one shape"),
    ((Q, K[:, :, :, :32], K[:, :, :, :32]), WorkloadError, "share batch and head dim"),
    ((Q.expand(3, -1, -1, -1), K, K), WorkloadError, "share batch"),
    ((torch.zeros(1, 4, 3, 64), K, K), WorkloadError, "multiple of kv heads, but got 3 and 2"),
    ((Q.int(), K.int(), K.int()), FormatError, "floating type"),
    ((Q, K.half(), K.half()), FormatError, "one floating type"),
    ((FLAT_Q, FLAT_K, FLAT_K), WorkloadError, "needs the cumulative lengths"),
])  # fmt: skip
def test_bad_input_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        attention(*arguments)


@pytest.mark.parametrize(("cu_q", "cu_k", "words"), [
    ((0, 4), None, "needs the cumulative lengths"),
    ((0, 5), (0, 6), "queries rise from 0 to 4"),
    ((0, 3, 2, 4), (0, 1, 2, 6), "queries rise"),
    ((1, 4), (0, 6), "queries rise"),
    ((0, 4), (0, 3, 6), "of the same sequences, but got 1 and 2"),
    ((), (), "rise from 0"),
])  # fmt: skip
def test_bad_cumulative_lengths_are_refused(cu_q: Any, cu_k: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        segments_of(FLAT_Q, FLAT_K, cu_q, cu_k)
    with pytest.raises(WorkloadError, match="go with q"):
        segments_of(Q, K, (0, 4), (0, 6))


def test_a_mask_is_known_and_fits_its_window() -> None:
    assert mask_named("sliding", 5) == Mask(MaskKind.SLIDING, 5)
    with pytest.raises(FormatError, match="'casual'; did you mean 'causal'"):
        mask_named("casual")
    for kind, window in (("sliding", None), ("causal", 3), ("full", -1), ("sliding", -2)):
        with pytest.raises(WorkloadError, match="window of at least 1"):
            mask_named(kind, window)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = torch.zeros(3, 4)
    check_finite(x=x)
    x[1, 2] = bad
    with pytest.raises(FormatError, match="y holds NaN or Inf"):
        check_finite(x=torch.zeros(2), y=x)


def test_recipes_are_text_and_back() -> None:
    for how in recipes.ATTENTION_RECIPES.values():
        assert recipes.attention_recipe(how.text) == how
    how = recipes.attention_recipe("nvfp4,smooth_q=0,p_scale=448,reverse=1")
    assert (how.smooth_q, how.p_scale, how.reverse) == (False, 448.0, True)
    assert recipes.attention_recipe(how.text) == how
    assert how.four_bit
    assert not recipes.K8V4_ATTENTION.four_bit
    for text, words in (
        ("nvfp5", "did you mean 'nvfp4'"),
        ("nvfp4,smoth_q=1", "did you mean 'smooth_q'"),
        ("nvfp4,p_scale=much", "a name and a number"),
        ("nvfp4,p_scale=0", "above 0"),
        ("mxfp4,round_scale=0", "only E4M3 scales"),
    ):
        with pytest.raises(FormatError, match=words):
            recipes.attention_recipe(text)


def test_a_recipe_of_other_operands_is_refused() -> None:
    nv, single = RECIPES["nvfp4"], RECIPES["nvfp4-single"]
    with pytest.raises(FormatError, match="scales of a byte"):
        recipes.AttentionRecipe("own", nv, RECIPES["int4-g128"], nv, single)
    with pytest.raises(FormatError, match="takes the place of a tensor scale"):
        recipes.AttentionRecipe("own", nv, nv, nv, nv)
    with pytest.raises(FormatError, match="has other operands"):
        _ = recipes.AttentionRecipe("nvfp4", None, nv, nv, single).text


def test_errors_are_what_they_are_called() -> None:
    exact, lse = torch.tensor([3.0, 4.0]), torch.tensor([1.0, -math.inf])
    found = accuracy.errors(exact + torch.tensor([0.1, -0.3]), lse + 0.5, exact, lse)
    assert found.sqnr == pytest.approx(10 * math.log10(25 / 0.1), abs=1e-4)
    assert found.rmse == pytest.approx(math.sqrt(0.05), abs=1e-6)
    assert (found.max, found.mean, found.lse) == pytest.approx((0.3, 0.2, 0.5), abs=1e-6)
    assert found.cosine < 1
    assert accuracy.errors(2 * exact, lse, exact, lse).cosine == pytest.approx(1)
    assert accuracy.errors(exact, lse, exact, lse).sqnr == math.inf
    assert accuracy.errors(exact, torch.zeros(2), exact, lse).lse == math.inf
    assert math.isnan(accuracy.errors(exact * math.nan, lse, exact, lse).sqnr)
