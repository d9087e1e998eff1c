"""What a layout costs: the bytes of a packed weight, and the seconds that packing takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fp4bench.trials import Race
from fp4kernels.devices import Device
from fp4kernels.formats import BlockFormat
from fp4kernels.layouts import Layout, convert, held_bytes
from fp4kernels.packing import Packed
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import candidate_from_json
from fp4kernels.scales import ScaleFormat
from fp4kernels.workloads import GemmWorkload

REPEATS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Held:
    """A weight N x K in the layout that a kernel reads; one of bf16 would take 2NK bytes."""

    n: int
    k: int
    format: str
    layout: Layout
    bytes: int
    canonical_bytes: int
    pack_seconds: float  # from canonical; once for a weight, whatever M

    @property
    def text(self) -> str:
        return (
            f"{self.n}×{self.k} {self.format} {self.layout}: {self.bytes / 1e6:.2f} MB, canonical "
            f"{self.canonical_bytes / 1e6:.2f} MB; packed in {1e3 * self.pack_seconds:.0f} ms"
        )


def of_races(races: Iterable[Race], device: Device) -> Iterator[Held]:
    """Of every weight that the races' own kernels read, in each layout but the canonical one; packs
    weights of chance, and so is to be called when nothing is timed."""
    seen = set()
    for race in races:
        work = race.workload
        if not isinstance(work, GemmWorkload):
            continue  # attention has no weight
        for values in (race.default_values, race.tuned_values):
            layout = candidate_from_json(values).layout
            key = (work.n, work.k, recipe_named(race.recipe).format, layout)
            if layout is not Layout.CANONICAL and key not in seen:
                seen.add(key)
                yield measured(*key, device)


def measured(n: int, k: int, fmt: BlockFormat, layout: Layout, device: Device) -> Held:
    """Packs such a weight on the device."""
    where = device.torch_device
    codes = torch.randint(0, 256, fmt.codes_shape((n, k)), dtype=torch.uint8, device=where)
    byte = 127 if fmt.scale is ScaleFormat.E8M0 else 0x38  # scales of 1
    scales = torch.full(fmt.scales_shape((n, k)), byte, dtype=fmt.scale.dtype, device=where)
    packed = Packed(codes, scales, torch.ones((), device=where))
    times = []
    for _ in range(REPEATS):
        _finish(device)
        start = time.perf_counter()
        convert(packed, n, fmt, Layout.CANONICAL, layout)
        _finish(device)
        times.append(time.perf_counter() - start)
    return Held(
        n, k, fmt.name, layout, held_bytes(n, k, fmt, layout),
        held_bytes(n, k, fmt, Layout.CANONICAL), min(times),
    )  # fmt: skip


def _finish(device: Device) -> None:
    """A GPU works on after the call."""
    if device.kind == "cuda":
        torch.cuda.synchronize()
