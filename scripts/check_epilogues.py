"""Compile the kernels that finish their own sums with every epilogue for GPUs that need not be here.

Prints registers, spills, stack, shared memory and instructions beside the kernel without an
epilogue; exits with 1 where one spills, or needs more shared memory than legality counts on, if it may
run there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from importlib.metadata import version

from fp4bench.proof.targets import target
from fp4kernels.devices import Toolchain
from fp4kernels.epilogues import Activation, Epilogue
from fp4kernels.recipes import Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import VARIANTS
from fp4kernels.triton.finishing import FinishingVariant
from fp4kernels.triton.gemm import DecodeGemm
from fp4kernels.triton.offline import Compiled, KernelSource, compile_for
from fp4kernels.variants import Config
from fp4kernels.workloads import GemmWorkload

EPILOGUES = [
    Epilogue(activation, following)
    for activation, following in itertools.product(Activation, ("", "mxfp4", "nvfp4"))
]
KERNELS = {v.name: v for v in VARIANTS.values() if isinstance(v, FinishingVariant)}
USUAL = {"dot_scaled": "mxfp4", "dot_scaled_swizzled": "nvfp4", "fold_fp8": "mxfp4-row-14"}
ARCHES = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]
NS = (4096, 28672)  # K shared out at a small M, and not


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=ARCHES)
    parser.add_argument("--variant", nargs="+", default=[*KERNELS], choices=KERNELS)
    parser.add_argument("--recipe", help="default: nvfp4-w4a16, or what the variant is for")
    parser.add_argument("--m", nargs="+", type=int, default=[1, 64, 512])
    given = parser.parse_args()
    wrong, here = 0, Toolchain("", version("triton"))
    for arch, name in itertools.product(given.arch, given.variant):
        kernel, board = KERNELS[name], target(arch)
        recipe = recipe_named(given.recipe or USUAL.get(name, "nvfp4-w4a16"))
        taken = kernel.takes(recipe, board, here) is None
        # decoding compiles for GPUs that it is not for, too
        if not (taken or isinstance(kernel, DecodeGemm)):
            continue
        if not kernel.compiles_for(arch):
            continue
        for m, n in itertools.product(given.m, NS):
            work = GemmWorkload(m, n, 4096)
            config = kernel.default(work, recipe, board)
            limit = kernel.shared_limit(config, recipe, work, board)
            print(f"{arch} {name} {recipe.name} {work.label} {config.label}")
            for label, source in sources(kernel, config, recipe, work):
                built = compile_for(source, arch)
                bad = built.spills > 0 or (taken and built.shared_bytes > limit)
                wrong += bad and label != "plain"
                print(f"    {label:16} {line(built)}{' WRONG' * bad}", flush=True)
    return int(wrong > 0)


def sources(
    kernel: FinishingVariant, config: Config, recipe: Recipe, work: GemmWorkload
) -> Iterator[tuple[str, KernelSource]]:
    """The GEMM without an epilogue, and the kernels that each epilogue is in."""
    yield "plain", kernel.sources(config, recipe, work)[0]
    for epilogue in EPILOGUES:
        if kernel.unfused(epilogue, config) is not None:
            continue
        for source in kernel.finished_sources(epilogue, config, recipe, work):
            if "finish" in source.kernel.__name__:
                yield f"{epilogue.activation} {epilogue.recipe}", source


def line(built: Compiled) -> str:
    return (
        f"{built.name}: {built.registers} registers, {built.spills} spills, {built.stack_bytes} "
        f"bytes of stack, {built.shared_bytes} shared, {sum(built.instructions.values())} "
        "instructions"
    )


if __name__ == "__main__":
    sys.exit(main())
