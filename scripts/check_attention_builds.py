"""Compile the attention kernels for every GPU architecture that is known here, without one.

    python scripts/check_attention_builds.py [--arch sm_90 --arch gfx950]

Prefill of every recipe, mask and head dim, what quantizes its operands, and decode and append of every
recipe and head dim, each in their untuned configuration. Prints registers, spills, shared memory and matrix instructions; exit 1
where one does not compile, spills, needs more shared memory than there is, or is called native and is
not. A build that this Triton is known not to do is named and passes. Minutes for each architecture.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402

from fp4bench.proof.targets import ARCHES, target  # noqa: E402
from fp4kernels.attention.problem import Mask, MaskKind  # noqa: E402
from fp4kernels.attention.recipes import ATTENTION_RECIPES, HEAD_DIMS  # noqa: E402
from fp4kernels.attention.storing import Order  # noqa: E402
from fp4kernels.devices import Device  # noqa: E402
from fp4kernels.errors import BuildError  # noqa: E402
from fp4kernels.triton.attention_append import append_sources  # noqa: E402
from fp4kernels.triton.attention_decode import DecodeShape, decode_sources  # noqa: E402
from fp4kernels.triton.attention_operands import operand_sources  # noqa: E402
from fp4kernels.triton.attention_prefill import CONVERTS, prefill_source  # noqa: E402
from fp4kernels.triton.flash_prefill import badge, default, not_compiled  # noqa: E402
from fp4kernels.triton.offline import Compiled, KernelSource, compile_for, target_of  # noqa: E402
from fp4kernels.variants import Badge  # noqa: E402

MASKS = (Mask(), Mask(MaskKind.CAUSAL), Mask(MaskKind.SLIDING, 1024))
SCALED = ("block_scale", "mfma_scale", "wmma_scale")  # in the names of block-scaled instructions
TRITON = importlib.metadata.version("triton")


def main(
    arch: Annotated[list[str] | None, typer.Option(help="all that are known, if none")] = None,
) -> None:
    """Compile, print, and judge."""
    wrong = 0
    for device in map(target, arch or ARCHES):
        for what, source, native in sources(device):
            try:
                built = compile_for(source, device.arch)
            except BuildError as error:
                wrong += 1
                print(f"{device.arch} {what}: {str(error)[:200]}", flush=True)
                continue
            why = fault(built, device, native)
            wrong += why is not None
            print(
                f"{device.arch} {what}: {built.registers} registers, {built.spills} spills, "
                f"{built.shared_bytes} bytes shared, {', '.join(built.mma_kinds)} {why or ''}",
                flush=True,
            )
    raise SystemExit(wrong > 0)


def sources(device: Device) -> Iterator[tuple[str, KernelSource, bool]]:
    """What it is, its source, and whether it must multiply natively."""
    for recipe, head_dim in itertools.product(ATTENTION_RECIPES.values(), HEAD_DIMS):
        shape = DecodeShape(8, 1, 32, 8, head_dim, 64, 512, 32768)
        for source in (
            *decode_sources(shape, recipe, Order.NHD, device),
            *append_sources(head_dim, 8, recipe, 64, Order.NHD),
        ):
            yield f"{source.kernel.__name__} {recipe.name} {head_dim}", source, False
        if not recipe.four_bit:
            continue
        for rotate in (False, True):
            how = replace(recipe, rotate=rotate)
            converts = device.compute_capability // 10 in CONVERTS
            warp = target_of(device.arch).warp_size
            for source in operand_sources(how, head_dim, converts=converts, warp=warp):
                yield f"{source.kernel.__name__} {how.text} {head_dim}", source, False
        if why := not_compiled(recipe, device, TRITON):
            print(f"{device.arch} prefill {recipe.name}: {why}")
            continue
        native = badge(recipe, device) is Badge.NATIVE
        for mask in MASKS:
            label = default(head_dim, recipe, device).label
            yield (
                f"prefill {recipe.name} {head_dim} {mask.kind} {label}",
                prefill_source(recipe, mask, head_dim, device),
                native,
            )


def fault(built: Compiled, device: Device, native: bool) -> str | None:
    """What is wrong with a build, or None."""
    if built.spills:
        return "SPILLS"
    if built.shared_bytes > device.shared_memory:
        return f"NEEDS MORE THAN {device.shared_memory} BYTES"
    scaled = all(any(name in kind for name in SCALED) for kind in built.mma_kinds)
    return "NOT NATIVE" if native and not (scaled and built.mma_kinds) else None


if __name__ == "__main__":
    typer.run(main)
