"""FP4 attention: right by the simulation and the reference, and its times beside torch SDPA in bf16."""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from device.place import Place, Row, collect
from fp4bench.clocks import Call
from fp4kernels.attention.accuracy import errors
from fp4kernels.attention.cache import CacheShape, KVCache
from fp4kernels.attention.decoding import decode
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.prefill import attention
from fp4kernels.attention.problem import Segments, mask_named, segments_of
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.reference import attention as exact_attention
from fp4kernels.attention.simulate import simulate
from fp4kernels.attention.storing import append_op
from fp4kernels.attention.synthetic import inputs

RECIPES = ("nvfp4", "mxfp4")
NEAR_DB = 0.5  # how much further from the exact result than the simulation a kernel may be
DECODE_DB = 35.0  # of a product of the dequantized cache whose operands are rounded to bf16
PAGE = 64


def measured(place: Place) -> list[Row]:
    cases = itertools.product(RECIPES, (right_prefill, right_decode, right_append))
    found = [(f"{f.__name__} {recipe}", functools.partial(f, place, recipe)) for recipe, f in cases]
    times = itertools.product(RECIPES, (time_prefill, time_decode, time_append))
    found += [
        (f"{f.__name__} {recipe}", functools.partial(f, place, recipe)) for recipe, f in times
    ]
    return collect(found)


def right_prefill(place: Place, recipe: str) -> Row:
    """No further from float64 than the simulation in torch is."""
    tokens, keys = (70, 150) if place.small else (500, 1100)
    q, k, v = (x.to(place.torch_device) for x in inputs("outliers", tokens, keys, 4, 2, 128, 3))
    how, mask, scale = attention_recipe(recipe), mask_named("causal"), 128**-0.5
    out, lse = (x[0] for x in attention(q[None], k[None], v[None], recipe=recipe, mask="causal"))
    segments = segments_of(q[None], k[None])
    exact = exact_attention(q, k, v, mask, segments)
    simulated = simulate(prepare(q, k, v, segments, how, scale), how, mask, scale, 128)
    mine, theirs = errors(out, lse, *exact), errors(*simulated, *exact)
    if not mine.sqnr >= theirs.sqnr - NEAR_DB:
        raise AssertionError(f"prefill has {mine.sqnr:.2f} dB, its simulation {theirs.sqnr:.2f} dB")
    return {**asdict(mine), "simulated_sqnr": theirs.sqnr}


def cache_of(shape: CacheShape, recipe: str, device: torch.device) -> KVCache:
    scale = 0.01 if recipe == "nvfp4" else 1.0  # MXFP4 has no tensor scale
    return KVCache(shape, recipe, k_scale=scale, v_scale=scale, device=device)


def filled(place: Place, recipe: str, lengths: list[int], heads: int, d: int) -> KVCache:
    pages = sum(-(-length // PAGE) for length in lengths)
    shape = CacheShape(pages, PAGE, len(lengths), heads, d)
    cache = cache_of(shape, recipe, place.torch_device)
    k, v = (torch.randn(sum(lengths), heads, d, device=place.torch_device) for _ in "kv")
    cache.append(k, v, lengths)
    return cache


def right_decode(place: Place, recipe: str) -> Row:
    """Near the exact attention over what the cache stands for, sequences of several lengths."""
    lengths = [1, 70, 200] if place.small else [1, 70, 1000, 4097]
    cache = filled(place, recipe, lengths, 2, 128)
    q = torch.randn(len(lengths), 1, 8, 128, device=place.torch_device).bfloat16()
    out, lse = decode(q, cache)
    least = float("inf")
    for sequence, length in enumerate(lengths):
        k, v = cache.dequantized(sequence)
        exact = exact_attention(
            q[sequence].float(), k, v, mask_named("causal"), Segments((0, 1), (0, length))
        )
        least = min(least, errors(out[sequence], lse[sequence], *exact).sqnr)
    if not least >= DECODE_DB:
        raise AssertionError(f"decode has {least:.2f} dB of {DECODE_DB}")
    return {"sqnr": least}


def right_append(place: Place, recipe: str) -> Row:
    """The bytes that a CPU stores."""
    k, v = (torch.randn(150, 2, 128, generator=torch.Generator().manual_seed(4)) for _ in "kv")
    held = []
    for device in (place.torch_device, torch.device("cpu")):
        cache = cache_of(CacheShape(4, PAGE, 2, 2, 128), recipe, device)
        cache.append(k.to(device), v.to(device), [100, 50])
        held.append([part.cpu() for part in (*cache.keys, *cache.values)])
    same = [torch.equal(one, other) for one, other in zip(*held, strict=True)]
    if not all(same):
        raise AssertionError(f"of codes, scales and tensor scales of K and V are equal: {same}")
    return {"equal": True}


def time_prefill(place: Place, recipe: str) -> Row:
    """Quantizing included, and launched one by one: lengths come from the host."""
    tokens, heads, kv_heads, d = (64, 4, 2, 64) if place.small else (4096, 32, 8, 128)
    shape = (1, tokens, heads, d)
    q, k, v = (
        torch.randn(1, tokens, n, d, device=place.torch_device).bfloat16()
        for n in (heads, kv_heads, kv_heads)
    )

    def ours() -> object:
        return attention(q, k, v, recipe=recipe, mask="causal", checked=False)

    found = place.race(
        {"fp4": [ours], "sdpa": [torch_call(q, k, v, causal=True)]}, 0.15, eager=True
    )
    flops = 2 * shape[1] ** 2 * heads * d  # both products, of half the scores
    return {**found, "tokens": tokens, "tflops": flops / found["fp4"] / 1e3,
            "times_sdpa": found["sdpa"] / found["fp4"]}  # fmt: skip


def torch_call(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Call:
    """Over [B, S, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return lambda: sdpa(q, k, v, is_causal=causal, enable_gqa=True)


def time_decode(place: Place, recipe: str) -> Row:
    length, heads, kv_heads, d = (128, 4, 2, 64) if place.small else (32768, 32, 8, 128)
    q = torch.randn(1, 1, heads, d, device=place.torch_device).bfloat16()
    first = filled(place, recipe, [length], kv_heads, d)
    size = first.bytes_per_token * length
    caches = [first, *(filled(place, recipe, [length], kv_heads, d)
                       for _ in range(place.copies(size) - 1))]  # fmt: skip
    for cache in caches:
        cache.checked = False
    shape = (1, length, kv_heads, d)
    pairs = [[torch.randn(shape, device=place.torch_device).bfloat16() for _ in "kv"]
             for _ in range(place.copies(4 * length * kv_heads * d))]  # fmt: skip
    found = place.race({
        "fp4": [functools.partial(decode, q, cache) for cache in caches],
        "sdpa": [torch_call(q, k, v, causal=False) for k, v in pairs],
        "copy": place.copy_calls(size),
    }, 0.2)  # fmt: skip
    return {**found, "context": length, "bytes": size, "of_copy": found["copy"] / found["fp4"],
            "times_sdpa": found["sdpa"] / found["fp4"]}  # fmt: skip


def time_append(place: Place, recipe: str) -> Row:
    """Of a prompt's tokens at once."""
    tokens, kv_heads, d = (64, 2, 64) if place.small else (16384, 8, 128)
    cache = filled(place, recipe, [tokens], kv_heads, d)
    slots = torch.arange(tokens, device=place.torch_device)
    shape = (tokens, kv_heads, d)
    size = cache.bytes_per_token * tokens + 4 * tokens * kv_heads * d
    pairs = [[torch.randn(shape, device=place.torch_device).bfloat16() for _ in "kv"]
             for _ in range(place.copies(size))]  # fmt: skip
    rest = (*cache.keys, *cache.values, slots, cache.recipe.text, cache.order.value)
    found = place.race({
        "fp4": [functools.partial(append_op, k, v, *rest) for k, v in pairs],
        "copy": place.copy_calls(size),
    }, 0.1)  # fmt: skip
    return {**found, "tokens": tokens, "bytes": size, "of_copy": found["copy"] / found["fp4"]}
