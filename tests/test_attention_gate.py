"""The gate of attention: kernels pass it, and whatever is wrong with an output does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fp4kernels.attention import gate
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.pages import paged, repeated
from fp4kernels.attention.plain import PlainConfig, PlainDecode, PlainPrefill
from fp4kernels.attention.problem import Mask, MaskKind, Segments
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.reference import attention
from fp4kernels.attention.storing import Held
from fp4kernels.attention.synthetic import inputs
from fp4kernels.attention.variant import AttentionLauncher, Launched, Paged, Quantized, Rounding
from fp4kernels.cpu.attention import DecodeConfig
from fp4kernels.cpu.attention_decode import CppAttentionDecode
from fp4kernels.devices import Device, Toolchain

LENGTHS = (75, 0, 33)
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
SCALE = HEAD_DIM**-0.5


def decoding(
    recipe: str, kind: str = "gaussian", queries: int = 2, window: int = 0
) -> tuple[Paged, gate.Case]:
    how = attention_recipe(recipe)
    q, k, v = inputs(kind, len(LENGTHS) * queries, sum(LENGTHS), HEADS, KV_HEADS, HEAD_DIM)
    q = q.bfloat16().float().view(len(LENGTHS), queries, HEADS, HEAD_DIM)
    on = paged(q, k, v, LENGTHS, how, 16, window=window, scale=SCALE, shuffled=3)
    return on, gate.decode_case(kind, how, on, torch.float32, range(len(LENGTHS)))


def prefilling(recipe: str) -> gate.Case:
    how, segments = attention_recipe(recipe), Segments((0, 30, 30, 100), (0, 40, 41, 111))
    q, k, v = inputs("outliers", 100, 111, HEADS, KV_HEADS, HEAD_DIM)
    made = prepare(q, k, v, segments, how, SCALE)
    on = Quantized(made, Mask(MaskKind.CAUSAL), SCALE)
    return gate.prefill_case("outliers", how, on, torch.bfloat16, HEAD_DIM)


@pytest.mark.parametrize(("recipe", "window"), [("nvfp4", 0), ("mxfp4,rotate=1", 7), ("k8v4", 40)])
def test_exact_results_are_those_of_the_reference(recipe: str, window: int) -> None:
    on, case = decoding(recipe, "outliers", window=window)
    mask = Mask(MaskKind.SLIDING, window) if window else Mask(MaskKind.CAUSAL)
    turned = attention_recipe(recipe).rotation(HEAD_DIM)
    for sequence, length in enumerate(LENGTHS):
        exact = case.exact[sequence]
        if not length:
            assert not exact.out.any()
            assert bool((exact.lse == -math.inf).all())
            continue
        q = gate.transformed(on.q[sequence], turned)[0]
        k, v = (
            gate.gathered(held, how, on.page_table[sequence], length, on.order)
            for held, how in ((on.keys, case.recipe.k), (on.values, case.recipe.v))
        )
        out, lse = attention(q[None], k[None], v[None], mask, scale=SCALE)
        torch.testing.assert_close(exact.out, out[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(exact.lse, lse[0], rtol=1e-12, atol=1e-12)
        assert bool((exact.spread + 1e-12 >= exact.out.abs()).all())


def test_a_cache_of_many_sequences_is_one_repeated() -> None:
    how = attention_recipe("nvfp4")
    q, k, v = inputs("gaussian", 3, 40, HEADS, KV_HEADS, HEAD_DIM)
    q = q.view(3, 1, HEADS, HEAD_DIM)
    one = paged(q[:1], k, v, [40], how, 16, window=0, scale=SCALE)
    many, listed = repeated(one, q), paged(q, *(x.repeat(3, 1, 1) for x in (k, v)), [40] * 3, how, 16, window=0, scale=SCALE)  # fmt: skip
    results = [
        gate.decode_case("", how, on, torch.float32, range(3)).exact for on in (many, listed)
    ]
    for sequence in range(3):
        assert torch.equal(results[0][sequence].out, results[1][sequence].out)


@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp4,rotate=1", "k8v4"])
def test_the_fallback_of_decoding_passes(recipe: str, cpu: Device, toolchain: Toolchain) -> None:
    kernel, how = PlainDecode(), attention_recipe(recipe)
    launch = kernel.build(PlainConfig(), how, cpu, toolchain)
    for kind, window in (("sink", 0), ("biased-k", 20)):
        case = decoding(recipe, kind, window=window)[1]
        outcome = gate.check(launch, kernel.rounding(PlainConfig(), how, cpu), case)
        assert outcome.why is None
        assert 0 < outcome.used < 0.5


@pytest.mark.parametrize(("recipe", "config"), [
    ("nvfp4", DecodeConfig(rows=2, tile=16, split=32)),
    ("mxfp4", DecodeConfig(rows=2, tile=32, split=32, q_bytes=1, p_bytes=1)),
    ("k8v4", DecodeConfig(rows=4, tile=32, split=64, p_bytes=2)),
])  # fmt: skip
def test_the_cpp_kernel_passes_what_it_declares(
    recipe: str, config: DecodeConfig, cpu: Device, toolchain: Toolchain
) -> None:
    kernel, how = CppAttentionDecode(), attention_recipe(recipe)
    if kernel.takes(how, cpu, toolchain) is not None:
        pytest.skip("there is no C++ compiler")
    launch = kernel.build(config, how, cpu, toolchain)
    rounding = kernel.rounding(config, how, cpu)
    used = []
    for kind in ("outliers", "sink"):
        outcome = gate.check(launch, rounding, decoding(recipe, kind)[1])
        assert outcome.why is None
        used.append(outcome.used)
    assert max(used) > 0.001  # the bound says something
    if config.p_bytes == 1 and cpu.has_avx512:
        finer = dataclasses.replace(config, q_bytes=3, p_bytes=3)
        exact = kernel.rounding(finer, how, cpu)
        assert "outside the gate" in str(gate.check(launch, exact, decoding(recipe)[1]).why)


def right(on: Launched, out: Tensor, lse: Tensor) -> None:
    """What the wrong ones spoil."""
    assert isinstance(on, Paged)
    how = attention_recipe("nvfp4")
    PlainDecode().build(PlainConfig(), how, None, None)(on, out, lse)  # type: ignore[arg-type]


def halved(on: Launched, out: Tensor, lse: Tensor) -> None:
    right(on, out, lse)
    out /= 2


def unwritten(on: Launched, out: Tensor, lse: Tensor) -> None:
    kept = out[2, 1, 3, 5].clone()
    right(on, out, lse)
    out[2, 1, 3, 5] = kept


def added(on: Launched, out: Tensor, lse: Tensor) -> None:
    before = lse.clone()
    right(on, out, lse)
    lse += before.nan_to_num(0.0)


def forgets_the_last_key(on: Launched, out: Tensor, lse: Tensor) -> None:
    assert isinstance(on, Paged)
    right(dataclasses.replace(on, lengths=(on.lengths - 1).clamp(min=0)), out, lse)


def stays_on_a_page(on: Launched, out: Tensor, lse: Tensor) -> None:
    assert isinstance(on, Paged)
    table = on.page_table.clone()
    table[:, 1] = table[:, 0]
    right(dataclasses.replace(on, page_table=table), out, lse)


def takes_another_head(on: Launched, out: Tensor, lse: Tensor) -> None:
    assert isinstance(on, Paged)
    values = Held(on.values.codes.flip(2), on.values.scales.flip(2), on.values.scale)
    right(dataclasses.replace(on, values=values), out, lse)


def in_base_two(on: Launched, out: Tensor, lse: Tensor) -> None:
    right(on, out, lse)
    lse /= math.log(2)


def empty_is_not(on: Launched, out: Tensor, lse: Tensor) -> None:
    right(on, out, lse)
    lse[1] = 0.0


@pytest.mark.parametrize("wrong", [
    halved, unwritten, added, forgets_the_last_key, stays_on_a_page, takes_another_head, in_base_two,
    empty_is_not,
])  # fmt: skip
def test_a_wrong_decode_is_caught(wrong: AttentionLauncher) -> None:
    case = decoding("nvfp4")[1]
    assert gate.check(right, Rounding(), case).why is None
    outcome = gate.check(wrong, Rounding(), case)
    assert outcome.why is not None
    assert "gate" in outcome.why


def test_writing_beyond_an_output_is_caught() -> None:
    def beyond(on: Launched, out: Tensor, lse: Tensor) -> None:
        right(on, out, lse)
        end = out.storage_offset() + out.numel()
        torch.as_strided(out, (1,), (1,), end).fill_(0.0)

    assert "wrote outside" in str(gate.check(beyond, Rounding(), decoding("nvfp4")[1]).why)


def of_prefill(spoil: Callable[[Tensor, Tensor], None]) -> gate.Outcome:
    how = attention_recipe("nvfp4")
    launch = PlainPrefill().build(PlainConfig(), how, None, None)  # type: ignore[arg-type]

    def spoiled(on: Launched, out: Tensor, lse: Tensor) -> None:
        launch(on, out, lse)
        spoil(out, lse)

    return gate.check(spoiled, Rounding(), prefilling("nvfp4"))


def test_prefill_is_held_against_its_simulation() -> None:
    assert of_prefill(lambda out, lse: None).why is None
    for spoil in (
        lambda out, lse: out[40].neg_(),
        lambda out, lse: out.mul_(1.01),
        lambda out, lse: lse[1, 7].add_(0.01),
        lambda out, lse: out[50, 1, 3].fill_(math.nan),
    ):
        assert "gate" in str(of_prefill(spoil).why)
