"""The untuned CPU kernels by `fp4bench bench`, against the marks that this project sets itself.

    python scripts/check_marks.py --out build/marks

Products of 4096 x 4096 and 4096 x 14336 as shares of the device's limits and beside torch bf16, layers of
real models beside torch bf16 at four sizes of M; then, timed here, fp4kernels.linear with the quantization
of its activations, and the quantizers beside a copy. Prints every figure and its mark; exit 1 where one
is missed. With --rows FILE it judges what an earlier bench recorded, and times nothing.

A limit is the fastest of short repeats, and so is what is held against it: the best of a kernel's
interleaved samples; the share by their median stands beside it. Ratios to torch are of paired samples.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the measuring process of a tune has it

import torch  # noqa: E402
import typer  # noqa: E402
from torch import Tensor  # noqa: E402

import fp4kernels  # noqa: E402
from fp4bench import evidence, telemetry, timing  # noqa: E402
from fp4bench.attainment import entries  # noqa: E402
from fp4bench.baselines import BASELINES  # noqa: E402
from fp4bench.clocks import Call  # noqa: E402
from fp4bench.operands import Operands  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4bench.summary import pooled  # noqa: E402
from fp4bench.trials import REFERENCE, Race  # noqa: E402
from fp4bench.workloads import from_shapes  # noqa: E402
from fp4kernels.devices import Device, probe_device  # noqa: E402
from fp4kernels.layouts import Layout  # noqa: E402
from fp4kernels.recipes import recipe  # noqa: E402

SECONDS = 4.0
LONG_K, SLACK = 14336, 0.9  # of a mark, at the longer K
RECIPES = ("mxfp4", "nvfp4", "mxfp4-w4a8", "nvfp4-w4a8", "mxfp4-w4a16", "nvfp4-w4a16")
LAYERS = ((1536, 384), (5632, 2048), (14336, 4096))  # N, K
BUCKETS = (1, 8, 64, 512)
WHOLE = 1.6  # times torch bf16, of linear() at M = 512, quantization timed
QUANTIZE = 0.60  # of the bytes a copy moves


@dataclass(frozen=True)
class Mark:
    """What a default must reach at N = 4096: a share of its limit, and a ratio to torch bf16."""

    m: int
    recipe: str
    cache: str
    share: float
    ratio: float = 0.0


MARKS = (
    Mark(512, "mxfp4", "cold", 0.88, 1.8), Mark(512, "nvfp4", "cold", 0.65, 1.4),
    Mark(8, "mxfp4", "warm", 0.75), Mark(8, "nvfp4", "warm", 0.56),
    Mark(1, "mxfp4", "warm", 0.65), Mark(1, "mxfp4", "cold", 0.90), Mark(1, "nvfp4", "cold", 0.90),
    Mark(512, "mxfp4-w4a8", "cold", 0.70), Mark(512, "mxfp4-w4a16", "cold", 0.90, 1.0),
)  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="folder that gets results/")] = ROOT / "build" / "marks",
    rows: Annotated[Path | None, typer.Option(help="recorded rows to judge instead")] = None,
    seconds: Annotated[str, typer.Option(help="of sampling, for each product")] = "8s",
) -> None:
    """Measure, print, judge."""
    device = probe_device("cpu")
    torch.set_num_threads(device.cores)
    verdicts = [*judged(rows or measured(out, device, seconds))]
    if not verdicts:
        raise SystemExit(f"no race in {rows} has a mark")
    if rows is None:
        verdicts += [whole(device), *quantizers(device)]
    raise SystemExit(not all(verdicts))


def said(what: str, found: float, must: float, unit: str) -> bool:
    """Prints a figure beside its mark."""
    met = found >= must
    print(
        f"{what:42} {found:6.2f} {unit:25} mark {must:.2f}{'' if met else '  MISSED'}", flush=True
    )
    return met


def measured(out: Path, device: Device, seconds: str) -> Path:
    """The folder of rows that `fp4bench bench` made."""
    ms = sorted({mark.m for mark in MARKS})
    bench([f"{m}x4096x{k}" for k in (4096, LONG_K) for m in ms], out, seconds, "2", "--limits")
    bench([f"{m}x{n}x{k}" for n, k in LAYERS for m in BUCKETS], out, seconds, "1")
    return out / "results" / device.slug


def bench(shapes: list[str], out: Path, seconds: str, passes: str, *more: str) -> None:
    asked = [f"--shape={each}" for each in shapes] + [f"--recipe={each}" for each in RECIPES]
    command = [sys.executable, "-m", "fp4bench", "bench", *asked, f"--out={out}",
               f"--seconds={seconds}", f"--passes={passes}", *more]  # fmt: skip
    path = os.pathsep.join(sys.path[:2])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"fp4bench bench ended with {done.returncode}")


def judged(rows: Path) -> Iterator[bool]:
    """Of every race of a default that has a mark."""
    found = evidence.read(rows)
    limits = max(found.limits, key=lambda each: each.time, default=None)
    if limits is None:
        raise SystemExit(f"the rows need the device's limits, but {rows} has none; bench --limits")
    for race in pooled(found.races):
        entry = next(iter(entries(race, limits)))  # the default's
        work, cache = race.gemm, race.policy.cache
        what = f"{work.label} {race.recipe} {cache}"
        for mark in marks_of(race):
            slack = SLACK if work.k == LONG_K else 1.0
            assert entry.bound is not None
            held, room = work.fewest_bytes(recipe(race.recipe)), race.device.cache_bytes
            if entry.bound.by == "cache" and held > room / 2:
                print(
                    f"{what:42} not judged: {held / 1e6:.0f} MB do not stay in a cache of {room / 1e6:.0f}"
                )
                continue
            best = entry.bound.ns / min(entry.measurement.samples_ns)
            unit = f"of {entry.bound.by} (median {entry.share:.2f})"
            yield said(what, best, mark.share * slack, unit)
            if mark.ratio:
                yield said(what, entry.against_bf16.middle, mark.ratio * slack, "x torch bf16")
        if (work.n, work.k) in LAYERS and cache == "cold":
            yield said(what, entry.against_bf16.middle, 1.0, "x torch bf16")


def marks_of(race: Race) -> list[Mark]:
    work = race.gemm
    if work.n != 4096:
        return []
    key = work.m, race.recipe, race.policy.cache
    return [mark for mark in MARKS if (mark.m, mark.recipe, mark.cache) == key]


def whole(device: Device) -> bool:
    """MXFP4 from bf16 activations to bf16 output at M = 512."""
    (problem,) = from_shapes(["512x4096x4096"])
    policy, operands = timing.default_policy("cpu", "cold"), Operands(problem, device, seed=0)
    held = fp4kernels.quantize(operands.weight.bfloat16(), "mxfp4").to_layout(Layout.PANEL16)
    ours: Call = lambda: fp4kernels.linear(operands.activations, held)  # noqa: E731
    entered = [
        operands.baseline_calls(BASELINES[REFERENCE], policy), timing.Operation([ours], "cpu", policy)
    ]  # fmt: skip
    dense, linear = timing.interleaved(entered, telemetry.monitor(device), SECONDS, len(entered))
    ratio = paired_ratio(dense, linear).middle
    return said("512x4096x4096 mxfp4 with quantization", ratio, WHOLE, "x torch bf16")


def quantizers(device: Device) -> Iterator[bool]:
    """Of 64 MB of bf16: bytes a second, over those of a copy in the same minute."""
    x = torch.randn(8192, 4096).bfloat16()
    amax, to = x.abs().max().float(), torch.empty_like(x)
    calls: dict[str, tuple[Call, float]] = {
        "copy": (lambda: to.copy_(x), 2.0 * x.nbytes),
        "mxfp4": (lambda: fp4kernels.quantize(x, "mxfp4"), moved(x, 1, 32)),
        "nvfp4, amax given": (lambda: fp4kernels.quantize(x, "nvfp4", amax=amax), moved(x, 1, 16)),
        "nvfp4, two passes": (lambda: fp4kernels.quantize(x, "nvfp4"), moved(x, 2, 16)),
    }
    policy = timing.default_policy("cpu", "cold")
    operations = [timing.Operation([call], "cpu", policy) for call, _ in calls.values()]
    taken = timing.interleaved(operations, telemetry.monitor(device), 2 * SECONDS, len(operations))
    copied, *ours = zip(calls, taken, strict=True)
    for name, one in ours:
        share = paired_ratio(copied[1], one).middle * calls[name][1] / calls["copy"][1]
        yield said(f"quantize 64 MB, {name}", share, QUANTIZE, "of a copy")


def moved(x: Tensor, passes: int, block: int) -> float:
    """Bytes of bf16 read, of codes and of scales."""
    return passes * x.nbytes + x.numel() * (0.5 + 1 / block)


if __name__ == "__main__":
    typer.run(main)
