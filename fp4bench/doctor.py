"""What this machine can run, how, and what to do about what it cannot."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fp4kernels.devices import UNMEASURED, Device, Toolchain, own_levels
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import VARIANTS

ISA_NEEDS = "AVX-512 VNNI and VBMI"


@dataclass(frozen=True)
class Ability:
    """Whether one variant runs one recipe here."""

    variant: str
    recipe: str
    badge: str | None  # native, emulated, storage-only; None where it does not run
    proof: str
    reason: str | None


@dataclass(frozen=True)
class Finding:
    """Something that costs speed or function, and the exact fix."""

    problem: str
    fix: str


def abilities(device: Device, toolchain: Toolchain) -> list[Ability]:
    found = []
    for variant in VARIANTS.values():
        for recipe in RECIPES.values():
            why = variant.takes(recipe, device, toolchain)
            badge = variant.badge(recipe, device).value if why is None else None
            found.append(Ability(variant.name, recipe.name, badge, variant.proof.value, why))
    return found


def findings(device: Device, toolchain: Toolchain) -> list[Finding]:
    found = []
    if toolchain.compiler is None:
        found.append(
            Finding("no C++ compiler: CPU kernels fall back to torch", "apt-get install g++")
        )
    if device.kind == "cpu" and not device.has_avx512:
        found.append(
            Finding(
                f"this CPU ({device.arch}) lacks {ISA_NEEDS}: the portable C++ path runs",
                "nothing to install; a newer x86 server runs the fast path",
            )
        )
    if device.isa in UNMEASURED:
        found.append(
            Finding(
                f"the {device.isa} kernels are proven, but were never timed: no such CPU was at hand",
                "compare what `fp4bench bench` says with --device cpu",
            )
        )
    elif device.kind == "cpu":
        found += [
            Finding(
                f"this CPU has {level}, but runs {device.isa}: the {level} kernels were never timed",
                f"compare what `fp4bench bench` says with --device cpu:{level}",
            )
            for level in own_levels()
            if level in UNMEASURED
        ]
    if torch.version.cuda and not torch.cuda.is_available():
        found.append(
            Finding(
                "torch is a CUDA build, but sees no GPU",
                "check nvidia-smi, the driver, and CUDA_VISIBLE_DEVICES",
            )
        )
    if device.kind == "cuda" and toolchain.triton is None:
        found.append(Finding("no Triton: GPU kernels cannot run", "pip install 'triton>=3.6'"))
    if device.kind == "cuda" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        found.append(
            Finding("no C compiler: Triton builds its launchers with one", "apt-get install gcc")
        )
    return found


def to_json(device: Device, toolchain: Toolchain) -> dict[str, Any]:
    return {
        "schema": 1,
        "device": asdict(device),
        "toolchain": asdict(toolchain),
        "abilities": [asdict(ability) for ability in abilities(device, toolchain)],
        "findings": [asdict(finding) for finding in findings(device, toolchain)],
    }
