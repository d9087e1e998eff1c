"""The CPU kernel made slower by a known share: what a race must find. Run as a measuring process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from torch import Tensor  # noqa: E402

from fp4bench import worker  # noqa: E402
from fp4kernels import registry  # noqa: E402
from fp4kernels.cpu.gemm import CppGemm  # noqa: E402
from fp4kernels.devices import Device, Toolchain  # noqa: E402
from fp4kernels.packing import Packed  # noqa: E402
from fp4kernels.recipes import Recipe  # noqa: E402
from fp4kernels.variants import Config, KernelVariant, Launcher  # noqa: E402


class SlowedGemm(CppGemm):
    """Each call takes `percent` longer: what it took is waited for once more, in part."""

    def __init__(self, percent: int) -> None:
        self.name = f"slowed_{percent}"  # type: ignore[misc]
        self._share = 1 + percent / 100

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        run, now, share = (
            super().build(config, recipe, device, toolchain),
            time.perf_counter,
            self._share,
        )

        def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
            start = now()
            run(x, w, out)
            end = start + share * (now() - start)
            while now() < end:
                pass

        return launch


SLOWED: dict[str, KernelVariant] = {v.name: v for v in map(SlowedGemm, (0, 2, 5, 10))}
registry.VARIANTS.update(SLOWED)  # type: ignore[attr-defined]

if __name__ == "__main__":
    worker.main()
