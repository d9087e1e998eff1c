"""Compile the decoding kernels with every epilogue for GPUs that need not be here.

Prints registers, spills, stack, shared memory and instructions beside the kernel without an
epilogue; exits with 1 where one spills.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator

from fp4bench.proof.targets import target
from fp4kernels.epilogues import Activation, Epilogue
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.triton.decode_launch import decode_finished_sources
from fp4kernels.triton.gemm import DecodeConfig, DecodeGemm
from fp4kernels.triton.interleaved_launch import interleaved_finished_sources
from fp4kernels.triton.offline import Compiled, KernelSource, compile_for
from fp4kernels.workloads import GemmWorkload

EPILOGUES = [
    Epilogue(activation, following)
    for activation, following in itertools.product(Activation, ("", "mxfp4", "nvfp4"))
]
NS = (4096, 28672)  # K shared out at a small M, and not


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90", "sm_100", "gfx942"])
    parser.add_argument("--recipe", default="nvfp4-w4a16")
    parser.add_argument("--m", nargs="+", type=int, default=[1, 64, 512])
    given = parser.parse_args()
    spilled = 0
    for arch, name in itertools.product(given.arch, ("decode_bf16", "decode_canonical")):
        kernel = variant(name)
        assert isinstance(kernel, DecodeGemm)
        if not kernel.compiles_for(arch):
            continue
        for m, n in itertools.product(given.m, NS):
            work = GemmWorkload(m, n, 4096)
            config = kernel.default(work, recipe_named(given.recipe), target(arch))
            assert isinstance(config, DecodeConfig)
            print(f"{arch} {name} {work.label} {config.label}")
            for label, source in sources(kernel, config, given.recipe, work):
                built = compile_for(source, arch)
                spilled += built.spills > 0 and label != "plain"
                print(f"    {label:16} {line(built)}", flush=True)
    return int(spilled > 0)


def sources(
    kernel: DecodeGemm, config: DecodeConfig, recipe_name: str, work: GemmWorkload
) -> Iterator[tuple[str, KernelSource]]:
    """The GEMM without an epilogue, and the kernel that each epilogue is in."""
    recipe = recipe_named(recipe_name)
    yield "plain", kernel.sources(config, recipe, work)[0]
    for epilogue in EPILOGUES:
        if kernel.unfused(epilogue, config) is not None:
            continue
        if kernel.name == "decode_bf16":
            found = interleaved_finished_sources(config, recipe, work, epilogue, direct=True)
        else:
            found = decode_finished_sources(config, recipe, work, epilogue)
        (source,) = (one for one in found if "finish" in one.kernel.__name__)
        yield f"{epilogue.activation} {epilogue.recipe}", source


def line(built: Compiled) -> str:
    return (
        f"{built.name}: {built.registers} registers, {built.spills} spills, {built.stack_bytes} "
        f"bytes of stack, {built.shared_bytes} shared, {sum(built.instructions.values())} "
        "instructions"
    )


if __name__ == "__main__":
    sys.exit(main())
