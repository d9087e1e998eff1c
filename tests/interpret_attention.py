"""Run the attention kernels under the Triton interpreter; a child process of the attention tests.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
The first argument names a check; it reads a JSON list of cases and writes one answer to each: null
where all is well, else what is wrong.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fp4bench.proof.targets import ARCHES
from fp4kernels.attention import gate
from fp4kernels.attention.accuracy import errors
from fp4kernels.attention.cache import CacheShape, KVCache
from fp4kernels.attention.cases import odd_case
from fp4kernels.attention.operands import TILE, Places, plain, prepare
from fp4kernels.attention.problem import Mask, MaskKind, Segments, mask_named
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.reference import attention
from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.attention.simulate import simulate
from fp4kernels.attention.storing import Held
from fp4kernels.attention.synthetic import inputs
from fp4kernels.attention.variant import Launched
from fp4kernels.attention.workload import AttentionWorkload
from fp4kernels.devices import probe_toolchain
from fp4kernels.triton import attention_operands
from fp4kernels.triton.attention_append import append
from fp4kernels.triton.attention_decode import DecodeShape, FlashDecodeConfig, flash_decode
from fp4kernels.triton.attention_prefill import PrefillConfig, prefill
from interpret_quantize import differs

# P and the output rounded to bf16, and float32 sums of products of bf16: no more than that
LEAST_DB = 46.0


def filled(
    recipe: str, order: str, head_dim: int, page_size: int, kv_heads: int, lengths: list[int]
) -> KVCache:
    """Pages of the sequences lie between each other's."""
    pages = sum(-(-length // page_size) for length in lengths) + 1
    shape = CacheShape(pages, page_size, len(lengths), kv_heads, head_dim)
    nvfp4 = recipe.startswith("nvfp4")
    cache = KVCache(shape, recipe, order=order, k_scale=0.75 if nvfp4 else 1, v_scale=1)
    generator = torch.Generator().manual_seed(head_dim)
    half = [length // 2 for length in lengths]
    for counts in (half, [length - some for length, some in zip(lengths, half, strict=True)]):
        k, v = (torch.randn(sum(counts), kv_heads, head_dim, generator=generator) for _ in "kv")
        cache.append(k, v + 0.5, counts)
    return cache


def check_decode(case: dict[str, Any]) -> str | None:
    """Over what the cache holds, against float64."""
    cache = filled(*(case[name] for name in ("recipe", "order", "head_dim", "page_size", "kv_heads", "lengths")))  # fmt: skip
    queries, group, window = case["queries"], case["group"], case["window"]
    at = cache.shape
    generator = torch.Generator().manual_seed(5)
    heads = at.kv_heads * group
    q = torch.randn(at.sequences, queries, heads, at.head_dim, generator=generator)
    q = q.to(getattr(torch, case["dtype"]))
    shape = DecodeShape(
        at.sequences, queries, heads, at.kv_heads, at.head_dim, at.page_size, at.pages,
        cache.longest, window > 0,
    )  # fmt: skip
    arguments = (q, cache.keys, cache.values, cache.page_table, cache.lengths, shape,
                 cache.recipe, cache.order)  # fmt: skip
    options = {"window": window, "scale": 0.11, "config": FlashDecodeConfig(**case["config"])}
    out, lse = flash_decode(*arguments, cores=case["cores"], **options)
    again = flash_decode(*arguments, cores=case["cores"], **options)
    if not (torch.equal(out, again[0]) and torch.equal(lse, again[1])):
        return "two runs differ"
    mask = Mask(MaskKind.SLIDING, window) if window else Mask(MaskKind.CAUSAL)
    for sequence, length in enumerate(case["lengths"]):
        if not length:
            if out[sequence].any() or bool((lse[sequence] != -math.inf).any()):
                return f"sequence {sequence} holds nothing, but got something"
            continue
        k, v = (x[None] for x in cache.dequantized(sequence))
        exact = attention(q[sequence : sequence + 1].float(), k, v, mask, scale=0.11)
        found = errors(out[sequence], lse[sequence], exact[0][0], exact[1][0])
        # rotated queries are rounded to bf16 once more, and so are those of other types
        rounded = cache.recipe.rotate or q.dtype is not torch.bfloat16
        if not (found.sqnr >= LEAST_DB - 6 * rounded and found.lse < (0.02 if rounded else 1e-4)):
            return f"sequence {sequence}: {found}"
    return None


def check_append(case: dict[str, Any]) -> str | None:
    """The same tokens by the kernel and by the reference: every byte of the cache."""
    recipe, order, head_dim = case["recipe"], case["order"], case["head_dim"]
    cache = filled(recipe, order, head_dim, 16, 2, [5, 20])
    dtype = getattr(torch, case["dtype"])
    x = rows(37, 2, head_dim).clamp(-6e4, 6e4) if dtype is torch.float16 else rows(37, 2, head_dim)
    x = x.to(dtype)
    slots = torch.randperm(cache.shape.pages * 16, generator=torch.Generator().manual_seed(1))[:37]
    kernel, plain = (
        [Held(*(t.clone() for t in held)) for held in (cache.keys, cache.values)] for _ in "ab"
    )
    y = x.flip(0).contiguous()
    append(x, y, *kernel, slots, cache.recipe, cache.order)
    torch.ops.fp4kernels.cache_append(
        x, y, *plain[0], *plain[1], slots, cache.recipe.text, cache.order.value
    )
    for name, ours, wanted in zip("kv", kernel, plain, strict=True):
        for part, a, b in zip(("codes", "scales"), ours[:2], wanted[:2], strict=True):
            if not torch.equal(a, b):
                at = (a != b).nonzero()[0].tolist()
                return f"{name} {part} at {at}: {a[tuple(at)]} for {b[tuple(at)]}, {(a != b).sum()}"
    return None


def rows(tokens: int, kv_heads: int, head_dim: int) -> Tensor:
    """Of every magnitude from the smallest to the largest, with zeros of both signs."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, kv_heads, head_dim, generator=generator)
    x[3, :, :32] = 0
    x[4, :, :32] = -0.0
    x[5] *= 1e-30
    x[6] *= 1e30
    x[7] = torch.arange(head_dim) / 8 - 4  # ties
    x[8, 0, :16] = torch.tensor([6.0, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25] * 2)
    x[9] *= 2.0**-9
    x[10] *= 448
    return x


def check_prefill(case: dict[str, Any]) -> str | None:
    """Against the simulation with the same tiles, and twice the same."""
    how, head_dim = attention_recipe(case["recipe"]), case["head_dim"]
    lengths, kv_heads = case["lengths"], case["kv_heads"]
    cu_q, cu_k = (tuple(accumulate(n, initial=0)) for n in zip(*lengths, strict=True))
    heads, scale = kv_heads * case["group"], head_dim**-0.5
    q, k, v = inputs(case["kind"], cu_q[-1], cu_k[-1], heads, kv_heads, head_dim)
    operands = prepare(q, k, v, Segments(cu_q, cu_k), how, scale)
    mask = mask_named(case["mask"], case["window"])
    config = PrefillConfig(**case["config"])
    runs = []
    for fill in (math.nan, 12345.0):
        out = torch.full(q.shape, fill).to(getattr(torch, case["dtype"]))
        lse = prefill(operands, how, mask, scale, out, device=ARCHES[case["arch"]], config=config)
        runs.append((out, lse))
    if not all(map(torch.equal, *runs)):
        return "two runs differ"
    want, want_lse = simulate(operands, how, mask, scale, head_dim, config.block_n)
    out, lse = runs[0]
    if not torch.equal(lse == -math.inf, want_lse == -math.inf):
        return "other rows see nothing"
    found = errors(out, lse, want, want_lse)
    # float32 sums in another order, and an exp2 beside a tie of P's rounding; bf16 outputs
    least = 70.0 if out.dtype is torch.float32 else LEAST_DB
    return None if found.sqnr >= least and found.lse < 1e-4 else str(found)


def check_operands(case: dict[str, Any]) -> str | None:
    """Smoothed, rotated and quantized by kernels and by torch: every byte, and the bias nearly."""
    how, head_dim = attention_recipe(case["recipe"]), case["head_dim"]
    lengths, kv_heads = case["lengths"], case["kv_heads"]
    cu_q, cu_k = (tuple(accumulate(n, initial=0)) for n in zip(*lengths, strict=True))
    heads, dtype = kv_heads * case["group"], getattr(torch, case["dtype"])
    q, k, v = (
        x.to(dtype) for x in inputs(case["kind"], cu_q[-1], cu_k[-1], heads, kv_heads, head_dim)
    )
    v[::3, :, ::5] = -0.0  # in blocks with others, and a block of nothing else
    v[64:128, 0, 5], k[cu_k[-1] - 1], q[0, 0, :32] = -0.0, 0, 7 * q[0, 0, :32]
    places = Places(Segments(cu_q, cu_k))
    wanted = plain(q, k, v, places, how, 0.3)
    ours = attention_operands.prepare(q, k, v, places, how, 0.3)
    for name in ("q", "k", "v"):
        if wrong := differs(getattr(ours, name), getattr(wanted, name)):
            return f"{name}: {wrong}"
    for name in ("shift", "means"):
        a, b = getattr(ours, name), getattr(wanted, name)
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            return f"{name} differs"
    if wanted.bias is None or ours.bias is None or wanted.means is None:
        return None if ours.bias is wanted.bias else "one bias is missing"
    for number, (queries, keys) in enumerate(lengths):
        tiles = slice(places.q[number] // TILE, places.q[number + 1] // TILE)
        a, b = (bias[:, tiles, :keys] for bias in (ours.bias, wanted.bias))
        # float32 sums of head_dim products in another order
        if (
            queries
            and keys
            and not torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
        ):
            return f"bias of sequence {number} is off by {float((a - b).abs().max())}"
    return None


def check_variant(case: dict[str, Any]) -> str | None:
    """What is tuned, through the gate; the same with half the output is caught."""
    work, recipe = AttentionWorkload(**case["work"]), attention_recipe(case["recipe"])
    kernel, device = ATTENTION_VARIANTS[case["variant"]], ARCHES[case["arch"]]
    config = kernel.config({**kernel.default(work, recipe, device).values(), **case["config"]})
    toolchain = replace(probe_toolchain("cpu"), triton=version("triton"))
    if why := kernel.illegal(config, recipe, work, device, toolchain):
        return why
    launch = kernel.build(config, recipe, device, toolchain)

    def halved(on: Launched, out: Tensor, lse: Tensor) -> None:
        launch(on, out, lse)
        out /= 2

    rounding, tile = kernel.rounding(config, recipe, device), kernel.tile(config)
    one = odd_case(case["kind"], work, recipe, 1, torch.device("cpu"))
    outcome = gate.check(launch, rounding, one, tile)
    if outcome.why is not None:
        return outcome.why
    return None if gate.check(halved, rounding, one, tile).why else "half of it passes, too"


CHECKS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "decode": check_decode,
    "append": check_append,
    "prefill": check_prefill,
    "operands": check_operands,
    "variant": check_variant,
}


def main() -> None:
    check = CHECKS[sys.argv[1]]
    json.dump([check(case) for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
