"""Compile a Triton kernel for a GPU on a machine that has none, and read what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fp4kernels.errors import BuildError
from fp4kernels.triton.instructions import mix

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP = 32
_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE
)
_AMD_INSTRUCTION = re.compile(
    r"^\s+((?:v|s|ds|global|buffer|flat|scratch|tensor)_\w+)", re.MULTILINE
)
_MMA = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b[\w.:]*")
_AMD_MMA = re.compile(r"\bv_(?:s?mfma|smfmac|s?wmma|swmmac)_\w+")


@dataclass(frozen=True)
class Box:
    """What a tensor descriptor takes at once: Triton's name of an element, and the sides."""

    element: str
    sides: tuple[int, ...]

    @property
    def type(self) -> str:
        return f"tensordesc<{self.element}{[*self.sides]}>"


Argument = str | int | Box | None


@dataclass(frozen=True)
class KernelSource:
    """What a launch would compile.

    `arguments` are the run-time ones: a pointer's Triton type, an integer's value, a descriptor's box,
    or None.
    """

    kernel: Any  # a triton.JITFunction
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def specialization(self) -> tuple[Any, ...]:
        """Equal for sources that compile to the same code for one architecture."""

        def kind(value: Argument) -> Argument:
            if value is None or isinstance(value, str | Box) or value == 1:
                return value
            return "whole 16s" if value % 16 == 0 else "any"

        kinds = {name: kind(value) for name, value in self.arguments.items()}
        return self.kernel.__name__, kinds, dict(self.constants), dict(self.options)


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of a kernel for one architecture.

    Registers are VGPRs on AMD, where `ptx` is empty and `sass` is the assembler's input.
    """

    name: str
    arch: str
    registers: int  # per thread
    stack_bytes: int  # per thread; holds what did not fit into registers
    shared_bytes: int  # per block
    ptx: str
    sass: str

    @cached_property
    def instructions(self) -> Counter[str]:
        """Opcode without modifiers → how often it stands in the code."""
        pattern = _INSTRUCTION if self.ptx else _AMD_INSTRUCTION
        return Counter(name.partition(".")[0] for name in pattern.findall(self.sass))

    @property
    def mma_kinds(self) -> tuple[str, ...]:
        """The matrix instructions in it, each once: as PTX names them, and AMD's assembler."""
        found = _MMA.findall(self.ptx) if self.ptx else _AMD_MMA.findall(self.sass)
        return tuple(sorted(set(found)))

    @property
    def spills(self) -> int:
        """Loads and stores of thread-local memory."""
        return mix(self.instructions)["local"]


def compile_kernel(source: KernelSource, capability: int) -> Compiled:
    """Build for sm_`capability`. BuildError where Triton or the assembler fails."""
    return compile_for(source, f"sm_{capability}")


def compile_for(source: KernelSource, arch: str) -> Compiled:
    """Build for an architecture such as sm_90 or gfx950. BuildError as above."""
    names = source.kernel.arg_names
    constants, signature, attributes = dict(source.constants), {}, {}
    for name, value in source.arguments.items():
        if value is None or value == 1:  # a launch makes a constant of both
            constants[name] = value
        elif isinstance(value, Box):
            signature[name] = value.type
        else:
            signature[name] = value if isinstance(value, str) else "i32"
            if isinstance(value, str) or value % 16 == 0:  # tensors start on 16 bytes
                attributes[(names.index(name),)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    ast = ASTSource(source.kernel, signature, constants, attributes)
    name, inspect = source.kernel.__name__, _inspect_amd if _is_amd(arch) else _inspect
    try:
        built = triton.compile(ast, target=target_of(arch), options=dict(source.options))
    except Exception as error:  # the compiler raises RuntimeError and its own kinds alike
        raise BuildError(f"{name} for {arch}: {_first_cause(error)}") from error
    return inspect(name, arch, built)


def _first_cause(error: BaseException) -> BaseException:
    """Of an error in a function that a kernel calls, what went wrong there."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_amd(arch: str) -> bool:
    return arch.startswith("gfx")


def target_of(arch: str) -> GPUTarget:
    """How Triton names sm_90 or gfx950."""
    if not _is_amd(arch):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), _WARP)
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else _WARP)


def _inspect_amd(name: str, arch: str, built: Any) -> Compiled:
    text = built.asm["amdgcn"]
    counts = {key: int(value) for key, value in re.findall(r"^ +\.(\w+): +(\d+)$", text, re.M)}
    return Compiled(
        name=name,
        arch=arch,
        registers=counts["vgpr_count"],
        stack_bytes=counts["private_segment_fixed_size"],
        shared_bytes=built.metadata.shared,
        ptx="",
        sass=text,
    )


def _inspect(name: str, arch: str, built: Any) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(built.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        sass = _tool("nvdisasm", str(cubin))
    counts = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
    return Compiled(
        name=name,
        arch=arch,
        registers=counts["REG"],
        stack_bytes=counts["STACK"],
        shared_bytes=built.metadata.shared,
        ptx=built.asm["ptx"],
        sass=sass,
    )


def _tool(name: str, *arguments: str) -> str:
    command = [str(_TOOLS / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode:
        raise BuildError(f"{name} failed: {result.stderr.strip()[-500:]}")
    return result.stdout
