"""fp4kernels.attention: its values, its gradients against float64, torch.compile, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fp4kernels
from attention_inputs import explained
from fp4kernels import reference
from fp4kernels.attention.accuracy import decibels, errors
from fp4kernels.attention.operands import TILE, prepare
from fp4kernels.attention.prefill import attention_op
from fp4kernels.attention.problem import mask_named, segments_of
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.reference import attention
from fp4kernels.attention.synthetic import inputs
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.transforms import transformed

BF16_DB = 40.0  # of products whose operands are rounded to bf16


def batch(kind: str = "gaussian", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    q, k, v = inputs(kind, 2 * 70, 2 * 150, 4, 2, 64)
    return [x.unflatten(0, (2, -1)).to(dtype).requires_grad_() for x in (q, k, v)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dense_and_flat_are_one(dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in batch("outliers", dtype))
    out, lse = fp4kernels.attention(q, k, v, mask="causal")
    assert out.dtype is dtype
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (2, 4, 70), torch.float32)
    exact = attention(q, k, v, mask_named("causal"))
    assert errors(out, lse, *exact).sqnr >= explained(attention_recipe("nvfp4"))
    flat, flat_lse = fp4kernels.attention(
        *(x.flatten(0, 1) for x in (q, k, v)), mask="causal",
        cu_q=torch.tensor([0, 70, 140]), cu_k=[0, 150, 300],
    )  # fmt: skip
    assert torch.equal(flat, out.flatten(0, 1))
    assert torch.equal(flat_lse, lse.transpose(0, 1).flatten(1))


def straight_through(
    q: Tensor, k: Tensor, v: Tensor, recipe: str, mask: str, window: int | None
) -> Tensor:
    """float64 O of one sequence whose rounding errors are constants: what autograd makes of it is
    the definition of the gradients."""
    how, scale = attention_recipe(recipe), q.shape[-1] ** -0.5
    assert how.q is not None
    segments = segments_of(q[None], k[None])
    with torch.no_grad():
        operands = prepare(q.float(), k.float(), v.float(), segments, how, scale)
        q_held, k_held, v_held = (
            reference.dequantize(x, of.format).double()
            for x, of in ((operands.q, how.q), (operands.k, how.k), (operands.v, how.v))
        )
        group = q.shape[1] // k.shape[1]
        q_held, d = q_held[:, : len(q)], q.shape[-1]
        k_held = k_held[:, : len(k)].repeat_interleave(group, 0)
        scores = q_held @ k_held.transpose(1, 2)
        tiles = torch.arange(len(q)) // TILE
        if operands.bias is not None and operands.means is not None:
            scores += operands.bias[:, tiles, : len(k)]
            means = transformed(operands.means[..., :d], how.rotation(d))[0].double()
            q_held = q_held[..., :d] + means[:, tiles]
        q_held, k_held = q_held[..., :d], k_held[..., :d]
        v_held = v_held.transpose(1, 2)[:, : len(v), :d].repeat_interleave(group, 0)
    turn = transformed(torch.eye(d), how.rotation(d))[0].double()

    def heads(x: Tensor, times: int) -> Tensor:
        moved = x.transpose(0, 1).repeat_interleave(times, 0)
        return moved - moved.detach()

    scores = scores + (heads(q, 1) @ turn) @ k_held.transpose(1, 2)
    scores = scores + q_held @ (heads(k, group) @ turn).transpose(1, 2)
    seen = mask_named(mask, window).visible(len(q), len(k), q.device)
    p = (scores * scale).masked_fill(~seen, -math.inf).softmax(-1)
    return (p @ (v_held + heads(v, group))).transpose(0, 1)


@pytest.mark.parametrize(("recipe", "mask", "window", "head_dim"), [
    ("nvfp4", "full", None, 64), ("mxfp4,rotate=1", "sliding", 40, 96),
    ("nvfp4,smooth_q=0,smooth_k=0", "causal", None, 128),
])  # fmt: skip
def test_gradients(recipe: str, mask: str, window: int | None, head_dim: int) -> None:
    q, k, v = (x.requires_grad_() for x in inputs("outliers", 140, 200, 4, 2, head_dim))
    out, _ = fp4kernels.attention(
        q[None], k[None], v[None], recipe=recipe, mask=mask, window=window
    )
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad(out, (q, k, v), grad)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(
        straight_through(wide[0], wide[1], wide[2], recipe, mask, window), wide, grad[0].double()
    )
    for name, got, want in zip("qkv", found, expected, strict=True):
        noise = float((got.double() - want).square().sum())
        assert decibels(float(want.square().sum()), noise) >= BF16_DB, name


def test_gradients_of_several_sequences() -> None:
    """One without keys and one without queries get zeros."""
    q, k, v = (x.requires_grad_() for x in inputs("gaussian", 30, 60, 4, 2, 64))
    out, _ = fp4kernels.attention(q, k, v, recipe="nvfp4-single", cu_q=[0, 20, 25, 25, 30],
                                  cu_k=[0, 40, 40, 45, 60])  # fmt: skip
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert not grads[0][20:25].any()
    assert not grads[1][40:45].any()
    assert not grads[2][40:45].any()
    of_q, of_k = slice(25, 30), slice(45, 60)
    alone = [x.detach()[None, of].requires_grad_() for x, of in ((q, of_q), (k, of_k), (v, of_k))]
    one, _ = fp4kernels.attention(alone[0], alone[1], alone[2], recipe="nvfp4-single")
    for got, want, of in zip(
        grads, torch.autograd.grad(one.sum(), alone), (of_q, of_k, of_k), strict=True
    ):
        torch.testing.assert_close(got[of], want[0], rtol=1e-3, atol=1e-4)


def test_it_compiles_whole_and_trains() -> None:
    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * fp4kernels.attention(q, k, v, mask="causal")[0]

    eager, captured = batch(), batch()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = layer(*eager)
    assert torch.equal(compiled(*captured), out)
    out.sum().backward()
    compiled(*captured).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager, captured, strict=True))


def test_the_op_is_sound_for_compilers() -> None:
    q, k, v = (x[:, :20].detach().requires_grad_() for x in batch())
    torch.library.opcheck(attention_op, (q, k, v, "mxfp4", "causal", 0, 0.125, [], [], True))


def test_callers_keep_what_they_pass() -> None:
    tensors = batch("biased-k")
    before = [x.detach().clone() for x in tensors]
    out, _ = fp4kernels.attention(*tensors)
    out.sum().backward()
    assert all(map(torch.equal, before, (x.detach() for x in tensors)))


Q, K = torch.zeros(1, 4, 4, 64), torch.zeros(1, 6, 2, 64)


@pytest.mark.parametrize(("arguments", "options", "error", "words"), [
    ((Q, K, K), {"recipe": "nvfp3"}, FormatError, "did you mean 'nvfp4'"),
    ((Q, K, K), {"recipe": "k8v4"}, FormatError, "prefill multiplies FP4 under one kind"),
    ((Q, K, K), {"mask": "alibi"}, FormatError, "a mask must be a known name"),
    ((Q, K, K), {"mask": "sliding"}, WorkloadError, "window of at least 1"),
    ((Q, K, K), {"cu_q": [0, 4], "cu_k": [0, 6]}, WorkloadError, "go with q"),
    ((Q.double(), K.double(), K.double()), {}, FormatError, "but got torch.float64"),
    ((Q, torch.full_like(K, math.nan), K), {}, FormatError, "k holds NaN or Inf"),
    ((Q[:, :0], K, K), {}, WorkloadError, "at least one query"),
    ((Q, K[:, :3], K[:, :3]), {"mask": "causal"}, WorkloadError,
     "4 queries and 3 keys"),
    ((Q[..., :40], K[..., :40], K[..., :40]), {}, FormatError, "head dim must be one of"),
])  # fmt: skip
def test_bad_input_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fp4kernels.attention(*arguments, **options)
