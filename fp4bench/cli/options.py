"""Options that commands share, and how their texts are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fp4bench.errors import UsageError
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain

DEFAULT_PRESET = {"cpu": "smollm2-135m", "cuda": "llama-3.1-8b"}
DEFAULT_RECIPES = {"cpu": ["mxfp4", "nvfp4"],
                   "cuda": ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]}  # fmt: skip
MODEL_MS = "1,8,512"
TRAINING_TOKENS = 8192
LEAST_BUDGET = 5.0  # starting the measuring process takes about this long

DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="cpu or cuda; default: a GPU if there is one. cpu:LEVEL holds the CPU to an "
        "instruction-set level: amx (unmeasured, never chosen otherwise), avx512vnni, avxvnni, avx2, "
        "neon or portable"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
OutOption = Annotated[Path, typer.Option(help="folder that gets results/ and reports/")]
ResultsArgument = Annotated[Path, typer.Argument(help="a results file or folder")]
ShapeOption = Annotated[list[str] | None, typer.Option(help="MxNxK; may be repeated")]
RecipeOption = Annotated[list[str] | None, typer.Option(help="may be repeated")]


def surroundings(device: str | None) -> tuple[Device, Toolchain]:
    where = probe_device(device)
    return where, probe_toolchain(where.kind)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"--{name} must be one of {', '.join(choices)}, but got {value!r}")
    return value


def sizes(text: str, name: str = "m") -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*\d{1,18}\s*", part, re.ASCII) for part in parts):
        raise UsageError(
            f"--{name} reads as numbers with commas, such as 1,8,512, but got {text!r}"
        )
    return [int(part) for part in parts]


def duration(name: str, text: str) -> float:
    """A time such as 90s, 10m or 1h in seconds."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*(s|m|h)?", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"--{name} reads as 90s, 10m or 1h, but got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def seconds(text: str) -> float:
    """A budget of wall time."""
    found = duration("budget", text)
    if found < LEAST_BUDGET:
        raise UsageError(
            f"--budget must be at least {LEAST_BUDGET:.0f}s, about what starting the measuring "
            f"process and one trial take, but got {text}"
        )
    return found


def share(text: str) -> float:
    """A threshold such as 5% as 0.05."""
    match = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"--threshold reads as 5% (from 0% to under 100%), but got {text!r}")
    return float(match[1]) / 100
