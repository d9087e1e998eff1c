"""One part of device_suite.py in this process.

    python scripts/device/part.py attention --out DIR --device cuda 60

Writes DIR/steps/NAME.rows.json. The last argument is the seconds that samples may take.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path[:] = [path for path in sys.path if path != str(SCRIPTS / "device")]  # that is a package
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS.parent / "kernels"), str(SCRIPTS)]

import typer  # noqa: E402

from device import attention, experts, fused, products, tuning  # noqa: E402
from device.place import Place, Row  # noqa: E402
from fp4kernels.devices import probe_device, probe_toolchain  # noqa: E402


def main(
    name: str,
    seconds: float,
    out: Annotated[Path, typer.Option(help="folder that gets all files")],
    device: Annotated[str, typer.Option(help="cpu or cuda")],
    preset: Annotated[str | None, typer.Option(help="a model of search_spaces/models")] = None,
    probe: Annotated[list[str] | None, typer.Option(help="MxNxK")] = None,
) -> None:
    """Measure, and write the rows."""
    where = probe_device(device)
    place = Place(where, probe_toolchain(device), seconds, small=device == "cpu")
    rows = measured(name, place, out, preset, probe or [])
    file = out / "steps" / f"{name}.rows.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps([{"device": where.name, **row} for row in rows], default=str))
    partial.replace(file)


def measured(
    name: str, place: Place, out: Path, preset: str | None, probes: list[str]
) -> list[Row]:
    match name:
        case "probes":
            return tuning.probes(place, out, probes)
        case "race":
            return tuning.race(place, out, probes)
        case "models":
            return tuning.models(place, out, preset)
        case "summary":
            return tuning.summary(place, out)
        case "quantizers":
            return tuning.quantizers(place, out)
    parts = {
        "attention": attention.measured, "experts": experts.measured, "fused": fused.measured,
        "epilogues": products.epilogues, "invariance": products.invariance,
        "dense": products.dense,
    }  # fmt: skip
    return parts[name](place)


if __name__ == "__main__":
    typer.run(main)
