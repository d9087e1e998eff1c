"""Decode attention over an FP4 KV cache beside torch SDPA and the same kernel over bf16, in one run.

    python scripts/check_attention_cpu.py --context 4096,32768
    python scripts/check_attention_cpu.py --prefill 1x1024x8x64,1x4096x8x128

Batch 1, one bf16 query, 32 heads of 128 over 8 kv heads. torch SDPA reads bf16 K and V that lie ready,
with enable_gqa and with the kv heads repeated before; the faster counts. Percentages are KV bytes a
second of the memory read bandwidth, measured here. Exit 1 if a mark of NVFP4 at 32k is missed.

With --prefill instead, batch x length x heads x head dim: NVFP4 prefill of operands that lie ready, and
whole, beside its simulation in torch and torch SDPA in bf16.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the measuring process of a tune has it

import torch  # noqa: E402
import typer  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention as sdpa  # noqa: E402

from fp4bench import limits, telemetry, timing  # noqa: E402
from fp4bench.clocks import Call  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4kernels.attention.operands import prepare  # noqa: E402
from fp4kernels.attention.prefill import attention  # noqa: E402
from fp4kernels.attention.problem import Mask, segments_of  # noqa: E402
from fp4kernels.attention.recipes import attention_recipe  # noqa: E402
from fp4kernels.attention.simulate import simulate  # noqa: E402
from fp4kernels.attention.storing import Held, Order  # noqa: E402
from fp4kernels.cpu.attention import (  # noqa: E402
    BF16,
    DecodeKernel,
    default_config,
    formats_of,
)
from fp4kernels.cpu.attention_prefill import prefill as by_cpp  # noqa: E402
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 128, 64
SCALE = HEAD_DIM**-0.5
COLD_BYTES = 128 << 20  # of the copies that take turns
DEFAULT = default_config(HEADS // KV_HEADS, torch.bfloat16)
CONTENDERS = {
    "nvfp4": DEFAULT,
    "nvfp4, for float32": default_config(HEADS // KV_HEADS, torch.float32),
    "nvfp4, one byte": replace(DEFAULT, q_bytes=1, p_bytes=1),
    "mxfp4": DEFAULT,
}
MARK_CONTEXT, MARK_RATIO, MARK_BANDWIDTH = 32768, 3.0, 0.70


def main(context: str = "4096,32768", seconds: float = 8.0, prefill: str = "") -> None:
    """Race them at every context, or at every shape of prefill."""
    device, toolchain = probe_device("cpu"), probe_toolchain("cpu")
    torch.set_num_threads(device.cores)
    if prefill:
        for shape in prefill.split(","):
            race_prefill(*map(int, shape.split("x")), seconds=seconds)
        return
    missed = 0
    for length in map(int, context.split(",")):
        missed += race(length, seconds, device, toolchain)
    raise SystemExit(missed > 0)


def race(length: int, seconds: float, device: Device, toolchain: Toolchain) -> int:
    """Prints one context; how many marks it misses."""
    policy = timing.default_policy("cpu", "cold")
    calls: dict[str, list[Call]] = {
        "torch SDPA, gqa": torch_calls(length, repeated=False),
        "torch SDPA, repeated": torch_calls(length, repeated=True),
        "bf16 cache": kernel_calls(
            DecodeKernel((BF16, BF16), HEAD_DIM, DEFAULT, device, toolchain), "bf16", length
        ),
    }
    for name, config in CONTENDERS.items():
        recipe = name.partition(",")[0]
        formats = formats_of(attention_recipe(recipe))
        kernel = DecodeKernel(formats, HEAD_DIM, config, device, toolchain)
        calls[name] = kernel_calls(kernel, recipe, length)
    read = limits.measure(device, toolchain).memory_read
    assert read is not None
    operations = [timing.Operation(each, "cpu", policy) for each in calls.values()]
    taken = dict(zip(calls, timing.interleaved(
        operations, telemetry.monitor(device), seconds, contenders=len(operations)
    ), strict=True))  # fmt: skip
    baselines = ("torch SDPA, gqa", "torch SDPA, repeated", "bf16 cache")
    print(f"context {length}, memory read {read:.1f} GB/s")
    missed = 0
    for name in calls:
        milliseconds = sorted(taken[name].samples_ns)[len(taken[name].samples_ns) // 2] / 1e6
        share = row_bytes(name.partition(",")[0]) * length * KV_HEADS / milliseconds / 1e6 / read
        ratios = [paired_ratio(taken[base], taken[name]).middle for base in baselines]
        print(f"  {name:22} {milliseconds:8.3f} ms  {share:4.0%} of read  "
              + ", ".join(f"{r:.2f}x {b}" for b, r in zip(baselines, ratios, strict=True)),
              flush=True)  # fmt: skip
        if name == "nvfp4" and length == MARK_CONTEXT:
            missed = (min(ratios) < MARK_RATIO) + (share < MARK_BANDWIDTH)
    return missed


def race_prefill(batch: int, length: int, heads: int, head_dim: int, *, seconds: float) -> None:
    """Prints one shape, under a full mask: the best of what fits into `seconds` each."""
    how, mask, scale = attention_recipe("nvfp4"), Mask(), head_dim**-0.5
    q, k, v = (torch.randn(batch, length, heads, head_dim).bfloat16() for _ in "qkv")
    segments = segments_of(q, k)
    operands = prepare(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), segments, how, scale)
    q_head, k_head, v_head = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    calls: dict[str, Callable[[], object]] = {
        "nvfp4, kernel": lambda: by_cpp(operands, how, mask, scale, head_dim),
        "nvfp4, whole": lambda: attention(q, k, v),
        "simulation": lambda: simulate(operands, how, mask, scale, head_dim),
        "torch SDPA": lambda: sdpa(q_head, k_head, v_head),
    }
    taken = {name: best_of(call, seconds) for name, call in calls.items()}
    work = 4 * batch * length * length * heads * head_dim
    print(f"prefill {batch}x{length}x{heads}x{head_dim}")
    for name, best in taken.items():
        ratios = [taken[base] / best for base in ("simulation", "torch SDPA")]
        print(f"  {name:22} {best * 1e3:8.2f} ms  {work / best / 1e9:6.0f} GF/s  "
              f"{ratios[0]:.2f}x simulation, {ratios[1]:.2f}x torch SDPA", flush=True)  # fmt: skip


def best_of(call: Callable[[], object], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def torch_calls(length: int, repeated: bool) -> list[Call]:
    heads = HEADS if repeated else KV_HEADS
    copies = copies_of(4 * HEAD_DIM * length * heads)
    q = torch.randn(1, HEADS, 1, HEAD_DIM, dtype=torch.bfloat16)

    def call(k: Tensor, v: Tensor) -> Call:
        return lambda: sdpa(q, k, v, enable_gqa=not repeated)

    shape = (1, heads, length, HEAD_DIM)
    return [call(*(torch.randn(shape).bfloat16() for _ in "kv")) for _ in range(copies)]


def kernel_calls(kernel: DecodeKernel, kind: str, length: int) -> list[Call]:
    """Over random codes: no time depends on them."""
    q = torch.randn(1, 1, HEADS, HEAD_DIM, dtype=torch.bfloat16)
    pages = torch.arange(length // PAGE, dtype=torch.int32)[None]
    lengths = torch.tensor([length], dtype=torch.int32)

    def call(keys: Held, values: Held) -> Call:
        return lambda: kernel(
            q, keys, values, pages, lengths, Order.NHD, window=0, scale=SCALE
        )  # fmt: skip

    copies = copies_of(row_bytes(kind) * length * KV_HEADS)
    return [call(*(held(kind, length) for _ in "kv")) for _ in range(copies)]


def held(kind: str, length: int) -> Held:
    lead = (length // PAGE, PAGE, KV_HEADS)
    if kind == "bf16":
        return Held(torch.randn(*lead, HEAD_DIM).bfloat16(), torch.zeros(1), torch.ones(()))
    codes = torch.randint(0, 256, (*lead, HEAD_DIM // 2), dtype=torch.uint8)
    low, block = (0x30, 16) if kind == "nvfp4" else (124, 32)
    scales = torch.randint(low, low + 6, (*lead, HEAD_DIM // block), dtype=torch.uint8)
    return Held(codes, scales, torch.ones(()))


def row_bytes(kind: str) -> int:
    """Of K and V, for one token and kv head."""
    return {"nvfp4": 144, "mxfp4": 136}.get(kind, 4 * HEAD_DIM)


def copies_of(size: int) -> int:
    return max(2, -(-COLD_BYTES // size))


if __name__ == "__main__":
    typer.run(main)
