"""The C++ kernels as programs of their own: under sanitizers, and on NEON by an emulator. Every one
must give bit for bit what the kernels give that are loaded here."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fp4kernels import gate
from fp4kernels.cpu import build, launch
from fp4kernels.cpu.gemm import CppConfig, CppGemm
from fp4kernels.cpu.w4a8 import CppW4A8
from fp4kernels.devices import Device, Toolchain
from fp4kernels.formats import NVFP4
from fp4kernels.layouts import Layout
from fp4kernels.recipes import RECIPES

ARM, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
ONE = CppConfig(mr=2, rg=2, kc=0, mc=128, panels=2, prefetch=1024)
TILES = CppConfig(mr=12, rg=4, kc=64, mc=24, panels=1, prefetch=0)
KERNELS = {
    "mxfp4": CppGemm(),
    "nvfp4": CppGemm(),
    "mxfp4-w4a8": CppW4A8(),
    "nvfp4-w4a8": CppW4A8(),
}

needs_arm = pytest.mark.skipif(
    shutil.which(ARM) is None or shutil.which(EMULATOR) is None,
    reason=f"needs {ARM} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


@needs_arm
@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        *itertools.product(["mxfp4", "nvfp4"], [ONE, TILES]),
        ("mxfp4-w4a8", ONE),
        ("nvfp4-w4a8", TILES),
    ],
    ids=lambda p: p if isinstance(p, str) else f"mr{p.mr}",
)
def test_neon_computes_the_same_bits(
    recipe: str, config: CppConfig, cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    program = compiled(ARM, recipe, config.values(), ("neon", ("-static",)), tmp_path)
    check_gemm([EMULATOR, program], recipe, config, (cpu, toolchain), tmp_path)


@pytest.mark.parametrize(
    ("recipe", "isa"),
    [
        *itertools.product(["mxfp4", "nvfp4", "nvfp4-w4a8"], ["best", "portable"]),
        ("mxfp4-w4a8", "best"),
    ],
)
def test_the_gemm_is_clean_under_sanitizers(
    recipe: str, isa: str, cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    level = cpu.isa if isa == "best" else isa
    assert toolchain.compiler is not None
    program = compiled(toolchain.compiler, recipe, TILES.values(), (level, SANITIZERS), tmp_path)
    check_gemm([program], recipe, TILES, (cpu, toolchain), tmp_path)


@pytest.mark.parametrize("recipe", ["mxfp4", "nvfp4", "mxint8"])
def test_the_quantizer_is_clean_under_sanitizers(
    recipe: str, cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    assert toolchain.compiler is not None
    how = (cpu.isa, SANITIZERS)
    values = {"rule": 0, "bits": RECIPES[recipe].format.element.bits}
    program = compiled(toolchain.compiler, recipe, values, how, tmp_path, "quantize")
    for rows, k in ((1, 32), (3, 96), (61, 2208)):
        x = torch.randn(rows, k, generator=torch.Generator().manual_seed(k))
        write(tmp_path / "values", [np.array([rows, k]), x.flatten().numpy()])
        subprocess.run([program, tmp_path / "values", tmp_path / "bytes"], check=True, timeout=60)
        here = launch.quantize(x, RECIPES[recipe], cpu, toolchain)
        there = np.fromfile(tmp_path / "bytes", np.uint8)
        both = torch.cat([here.codes.flatten(), here.scales.flatten()])
        np.testing.assert_array_equal(there, both.numpy())


def compiled(
    compiler: str,
    recipe: str,
    values: dict[str, int],
    how: tuple[str, tuple[str, ...]],
    folder: Path,
    name: str = "gemm",
) -> Path:
    """`how` is the instruction-set level, and further options."""
    isa, options = how
    flags = [flag for flag in build.flags(isa) if flag not in ("-shared", "-fPIC")]
    defines = [f"-D{field.upper()}={value}" for field, value in values.items()]
    source, program = Path(__file__).with_name(f"{name}_program.cpp"), folder / name
    subprocess.run(
        [compiler, *flags, *options, f"-I{build.SOURCES}", *defines,
         f"-DNVFP4={int(RECIPES[recipe].format == NVFP4)}",
         f'-DKERNEL="{KERNELS[recipe].source}"' if recipe in KERNELS else "-UKERNEL",
         source, "-o", program],
        check=True, timeout=120,
    )  # fmt: skip
    return program


def check_gemm(
    command: list[str | Path],
    recipe: str,
    config: CppConfig,
    here: tuple[Device, Toolchain],
    folder: Path,
    shape: tuple[int, int, int] = (9, 37, 288),
) -> None:
    kernel = KERNELS[recipe].build(config, RECIPES[recipe], *here)
    for data in gate.DATA:
        case = gate.synthetic_case(data, RECIPES[recipe], shape, 3, torch.device("cpu"))
        held = case.weight(Layout.PANEL16)
        expected = torch.full(shape[:2], float("nan"))
        kernel(case.x, held, expected)
        assert isinstance(case.x, tuple)
        operands = [part for one in (case.x, held) for part in (one.codes, one.scales)]
        write(folder / "operands", [
            np.array(shape),
            torch.stack([case.x.tensor_scale, held.tensor_scale]).numpy(),
            *(part.flatten().numpy() for part in operands),
        ])  # fmt: skip
        out = folder / "product"
        subprocess.run([*command, folder / "operands", out], check=True, timeout=60)
        found = torch.from_numpy(np.fromfile(out, np.float32)).view(shape[:2])
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def write(path: Path, arrays: list[NDArray[np.generic]]) -> None:
    """Each behind the number of its elements."""
    with path.open("wb") as file:
        for array in arrays:
            file.write(np.int64(array.size).tobytes() + array.tobytes())
